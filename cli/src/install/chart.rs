//! The Helm chart: the same manifests, with the settings as values. It is written by `weft install --helm-chart DIR` and
//! kept in `deploy/helm/weft`; a test tells when the two differ.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use serde_json::{Map, Value, json};
use weft_core::wellknown::{CONTROL_PLANE_NAMESPACE, LABEL_INJECT};

use super::settings::{CNI_KEY, Settings, TABLE};
use super::{KubeVersion, VERSION, crd, render, webhook, yaml};

/// The one value that is no text: it stands without quotes.
const REPLICAS: &str = "{{ int .Values.replicas }}";
/// The value by which the chart makes the namespace too.
const CREATE_NAMESPACE: &str = "createNamespace";
/// When a section is there, as templates have it.
pub(super) const CREATE_NAMESPACE_CONDITION: &str = "if .Values.createNamespace";
/// See [`CREATE_NAMESPACE_CONDITION`].
pub(super) const CNI_CONDITION: &str = "if .Values.cni";
/// See [`CREATE_NAMESPACE_CONDITION`].
pub(super) const CNI_REPAIR_CONDITION: &str = "if and .Values.cni (eq .Values.cniRepair \"delete\")";

/// The annotation by which Helm leaves an object where it is. weft's kinds have it, since all that users have of them would go
/// too. They are templates: Helm never changes what is in `crds/`.
const KEEP: (&str, &str) = ("helm.sh/resource-policy", "keep");

/// A file of the chart: its path and its text.
pub(super) type File = (String, String);

/// Writes the chart into `directory`, over what is there.
pub(super) fn write(directory: &Path) -> anyhow::Result<()> {
    for (path, text) in files() {
        let path = directory.join(path);
        let named = || format!("{} can't be written", path.display());
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).with_context(named)?;
        }
        std::fs::write(&path, text).with_context(named)?;
    }
    Ok(())
}

/// All of its files, in the order of their paths.
pub(super) fn files() -> Vec<File> {
    let mut files = vec![
        ("Chart.yaml".to_owned(), yaml::document(&chart())),
        ("templates/NOTES.txt".to_owned(), notes()),
        ("templates/validate.yaml".to_owned(), validation()),
        ("values.schema.json".to_owned(), format!("{:#}\n", schema())),
        ("values.yaml".to_owned(), values()),
    ];
    let settings = Settings::filled("{{ .Release.Namespace }}", |setting| format!("{{{{ .Values.{} }}}}", setting.key));
    for section in render(&settings, KubeVersion::CURRENT) {
        let text = |objects: Vec<Value>| -> String {
            let all = objects.into_iter().map(|mut object| {
                if object["kind"] == "Deployment" {
                    object["spec"]["replicas"] = REPLICAS.into();
                }
                if section.name == crd::SECTION {
                    object["metadata"]["annotations"][KEEP.0] = KEEP.1.into();
                }
                format!("---\n{}", yaml::template(&object, &[REPLICAS]))
            });
            all.collect()
        };
        let mut text = match section.name {
            crd::SECTION => either(KubeVersion::CRD_RULES, |kube| text(crd::definitions(kube))),
            webhook::SECTION => either(KubeVersion::MATCH_CONDITIONS, |kube| text(vec![webhook::configuration(&settings, kube)])),
            _ => text(section.objects),
        };
        if let Some(condition) = section.condition {
            text = format!("{{{{- {condition} }}}}\n{text}{{{{- end }}}}\n");
        }
        files.push((format!("templates/{}.yaml", section.name), text));
    }
    files.sort();
    files
}

/// What a server of the version `since` and later gets, and what an earlier one does.
fn either(since: KubeVersion, text: impl Fn(KubeVersion) -> String) -> String {
    let (later, earlier) = (text(KubeVersion::CURRENT), text(KubeVersion::OLDEST));
    let condition = format!("if semverCompare \">={since}.0-0\" .Capabilities.KubeVersion.Version");
    format!("{{{{- {condition} }}}}\n{later}{{{{- else }}}}\n{earlier}{{{{- end }}}}\n")
}

fn chart() -> Value {
    json!({
        "apiVersion": "v2",
        "name": "weft",
        "description": "A service mesh: mutual TLS between pods, without the pods knowing",
        "type": "application",
        "version": VERSION,
        "appVersion": VERSION,
        "kubeVersion": format!(">={}.0-0", KubeVersion::POLICY_V1),
    })
}

/// A text as a setting's value; the number of replicas as a number, and a choice of two as a boolean.
fn value(key: &str, text: &str) -> Value {
    match (key, text.parse::<u32>(), text.parse::<bool>()) {
        ("replicas", Ok(number), _) => number.into(),
        (CNI_KEY, _, Ok(chosen)) => chosen.into(),
        _ => text.into(),
    }
}

fn values() -> String {
    let defaults = Settings::default().record();
    let mut text = "# Set when the chart is installed; `weft install --help` has the same as flags.\n\n".to_owned();
    for setting in &TABLE {
        let default = value(setting.key, defaults[setting.key].as_str().unwrap_or_default());
        let _ = write!(text, "# {}\n{}\n", setting.help, yaml::document(&json!({ setting.key: default })));
    }
    text + &format!("# Make the namespace, with its labels, instead of helm's --create-namespace\n{CREATE_NAMESPACE}: false\n")
}

fn schema() -> Value {
    let mut properties = Map::new();
    for setting in &TABLE {
        let schema = if setting.key == "replicas" {
            json!({ "type": "integer", "minimum": 1, "maximum": 99, "description": setting.help })
        } else if setting.key == CNI_KEY {
            json!({ "type": "boolean", "description": setting.help })
        } else {
            json!({ "type": "string", "pattern": setting.pattern, "description": setting.help })
        };
        properties.insert(setting.key.to_owned(), schema);
    }
    properties.insert(CREATE_NAMESPACE.to_owned(), json!({ "type": "boolean" }));
    json!({ "$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "properties": properties })
}

/// Refuses any other namespace: the control plane's identity has its name in it.
fn validation() -> String {
    let home = CONTROL_PLANE_NAMESPACE;
    let why = format!("the control plane's identity has its namespace in it: install with --namespace {home} --create-namespace");
    format!("{{{{- if ne .Release.Namespace \"{home}\" }}}}\n{{{{- fail \"{why}\" }}}}\n{{{{- end }}}}\n")
}

fn notes() -> String {
    format!(
        "weft {VERSION} is installed. Mesh a namespace and restart what runs in it:\n\n    \
         kubectl label namespace NAME {LABEL_INJECT}=enabled\n    \
         kubectl rollout restart deployment -n NAME\n\n\
         weft check tells how the installation is.\n"
    )
}

#[cfg(test)]
mod tests;
