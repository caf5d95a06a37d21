//! `weft inject`: manifests in, the same with sidecars out, as the webhook would give them: for clusters without it, and
//! to look at. Made for pipes: `kustomize build . | weft inject | kubectl apply -f -`.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::Value;
use weft_core::Namespace;
use weft_core::wellknown::CONTROL_PLANE_NAMESPACE;
use weft_injector::{Decision, InjectLabel, InjectorOptions, NamespaceFacts, Redirect, patch_pod};

use crate::install::access::TRUST_BUNDLE;
use crate::install::settings::{IMAGE, IMAGE_PULL_POLICY, NATIVE_SIDECARS, TRUST_DOMAIN};
use crate::install::{KubeVersion, service, yaml};
use crate::output::print;
use stream::{Chunk, Content};

mod stream;

/// The largest input that is read, in bytes.
const MAX_INPUT: u64 = 256 << 20;

/// What `weft inject` is told.
#[derive(Args, Debug)]
#[command(after_help = "What is no pod and makes none is passed on as it is. A pod that can't be in the mesh, since a label or \
                        the host's network forbid it, stays out of it; one that would weaken the mesh is an error, and then \
                        nothing is printed.\n\nExamples:\n  weft inject deployment.yaml | kubectl apply -f -\n  kustomize build . | weft inject | kubectl apply -f -")]
pub(crate) struct InjectArgs {
    /// Files of manifests in YAML or JSON; - is standard input
    #[arg(value_name = "FILE", default_value = "-")]
    files: Vec<PathBuf>,

    /// Namespace of manifests that name none
    #[arg(short, long, value_name = "NAMESPACE", default_value = "default")]
    namespace: Namespace,

    #[arg(long, value_name = "IMAGE", value_parser = IMAGE.read, default_value = IMAGE.default, help = IMAGE.help)]
    image: String,

    #[arg(
        long,
        value_name = "POLICY",
        value_parser = IMAGE_PULL_POLICY.read,
        default_value = IMAGE_PULL_POLICY.default,
        help = IMAGE_PULL_POLICY.help
    )]
    image_pull_policy: String,

    #[arg(
        long,
        value_name = "DOMAIN",
        value_parser = TRUST_DOMAIN.read,
        default_value = TRUST_DOMAIN.default,
        help = TRUST_DOMAIN.help
    )]
    trust_domain: String,

    #[arg(
        long,
        value_name = "WHEN",
        value_parser = NATIVE_SIDECARS.read,
        default_value = NATIVE_SIDECARS.default,
        help = NATIVE_SIDECARS.help
    )]
    native_sidecars: String,

    /// Who redirects a pod's traffic: init (an init container) or cni (the CNI plugin)
    #[arg(long, value_name = "WHO", default_value = "init")]
    redirect: Redirect,

    /// Version of Kubernetes that the manifests are for
    #[arg(long, value_name = "VERSION", default_value_t = KubeVersion::CURRENT)]
    kube_version: KubeVersion,
}

impl InjectArgs {
    fn options(&self) -> anyhow::Result<InjectorOptions> {
        let mut options = InjectorOptions::new(&self.image, &service::control_plane_address(CONTROL_PLANE_NAMESPACE));
        options.image_pull_policy.clone_from(&self.image_pull_policy);
        options.trust_domain = self.trust_domain.parse()?;
        TRUST_BUNDLE.clone_into(&mut options.trust_bundle);
        options.native_sidecar = match self.native_sidecars.as_str() {
            "always" => true,
            "never" => false,
            _ => self.kube_version >= KubeVersion::NATIVE_SIDECARS,
        };
        options.redirect = self.redirect;
        Ok(options)
    }
}

pub(crate) fn main(args: &InjectArgs) -> anyhow::Result<ExitCode> {
    let mut texts = Vec::new();
    for file in &args.files {
        texts.push((file, read(file)?));
    }
    let mut chunks = Vec::new();
    for (file, text) in &texts {
        chunks.extend(stream::parse(&file.display().to_string(), text)?);
    }
    let injection = Injection::new(args.options()?, &args.namespace, &chunks)?;
    let (text, report) = injection.run(chunks)?;
    for line in report {
        let _ = writeln!(std::io::stderr(), "{line}");
    }
    print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn read(file: &Path) -> anyhow::Result<String> {
    let named = || format!("{} can't be read", file.display());
    let source: Box<dyn std::io::Read> = if file == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(file).with_context(named)?)
    };
    let mut text = String::new();
    source.take(MAX_INPUT + 1).read_to_string(&mut text).with_context(named)?;
    if text.len() as u64 > MAX_INPUT {
        bail!("{} is larger than {MAX_INPUT} bytes: inject it in parts", file.display());
    }
    Ok(text)
}

/// One run over all of the input.
struct Injection {
    options: InjectorOptions,
    /// Of what names none.
    namespace: Namespace,
    /// Those whose manifests are among the input.
    namespaces: BTreeMap<Namespace, NamespaceFacts>,
}

impl Injection {
    fn new(options: InjectorOptions, namespace: &Namespace, chunks: &[Chunk<'_>]) -> anyhow::Result<Self> {
        let mut namespaces = BTreeMap::new();
        for chunk in chunks {
            for object in chunk.content.objects() {
                each(object, &mut |one: &Value| {
                    if one["apiVersion"] == "v1" && one["kind"] == "Namespace" {
                        let mut facts = NamespaceFacts::from_manifest(one)?;
                        // Whoever injects by hand asks for it; only a "disabled" says otherwise.
                        facts.inject = facts.inject.or(Some(InjectLabel::Enabled));
                        namespaces.insert(facts.name.clone(), facts);
                    }
                    Ok(())
                })?;
            }
        }
        Ok(Self { options, namespace: namespace.clone(), namespaces })
    }

    /// The output, and a line about each pod or maker of pods.
    fn run(&self, chunks: Vec<Chunk<'_>>) -> anyhow::Result<(String, Vec<String>)> {
        let (mut text, mut report, mut errors) = (String::new(), Vec::new(), Vec::new());
        for mut chunk in chunks {
            let mut changed = false;
            for object in chunk.content.objects_mut() {
                changed |= self.object(object, &mut report, &mut errors);
            }
            text.push_str(&if changed { chunk.written() } else { chunk.raw.to_owned() });
        }
        if !errors.is_empty() {
            bail!("nothing is printed, because of what must not be in the mesh as it is:\n  {}", errors.join("\n  "));
        }
        Ok((text, report))
    }

    /// Injects what `object` is or holds; whether anything was changed.
    fn object(&self, object: &mut Value, report: &mut Vec<String>, errors: &mut Vec<String>) -> bool {
        if let Some(items) = items_mut(object) {
            // Every one, also behind one that was changed.
            return items.iter_mut().fold(false, |changed, item| self.object(item, report, errors) | changed);
        }
        let Some(at) = template_of(object) else { return false };
        let said = said(object);
        match self.template(object, at) {
            Ok(decision) => {
                report.push(match decision.skipped {
                    None => format!("{said}: injected"),
                    Some(reason) => format!("{said}: left alone ({})", reason.as_str()),
                });
                report.extend(decision.warnings.iter().map(|warning| format!("{said}: {warning}")));
                !decision.ops.is_empty()
            }
            Err(error) => {
                errors.push(format!("{said}: {error:#}"));
                false
            }
        }
    }

    /// Decides about the template at `at`, and does it.
    fn template(&self, object: &mut Value, at: &str) -> anyhow::Result<Decision> {
        let namespace: Namespace = match object.pointer("/metadata/namespace").and_then(Value::as_str) {
            Some(name) => name.parse()?,
            None => self.namespace.clone(),
        };
        let selected = || NamespaceFacts::selected(namespace.clone());
        let facts = self.namespaces.get(&namespace).cloned().unwrap_or_else(selected);
        let template =
            object.pointer_mut(at).with_context(|| format!("it has no {}", at.trim_start_matches('/').replace('/', ".")))?;
        let decision = patch_pod(template, &facts, &self.options)?;
        let patch: json_patch::Patch = serde_json::from_value(serde_json::to_value(&decision.ops)?)?;
        json_patch::patch(template, &patch)?;
        Ok(decision)
    }
}

impl Chunk<'_> {
    /// The chunk with its content as it is now.
    fn written(&self) -> String {
        match &self.content {
            Content::Opaque => self.raw.to_owned(),
            Content::Yaml(object) => format!("{}{}", self.opening, yaml::document(object)),
            Content::Json(objects) => {
                let texts = objects.iter().map(|object| format!("{object:#}\n"));
                texts.fold(self.opening.clone(), |all, text| all + &text)
            }
        }
    }
}

/// Where the template of the pods is that an object makes, if it is one that makes pods; for a pod, itself.
fn template_of(object: &Value) -> Option<&'static str> {
    let group = object["apiVersion"].as_str()?.split_once('/').map_or("", |(group, _)| group);
    match (group, object["kind"].as_str()?) {
        ("", "Pod") => Some(""),
        ("", "PodTemplate") => Some("/template"),
        ("", "ReplicationController")
        | ("apps", "DaemonSet" | "Deployment" | "ReplicaSet" | "StatefulSet")
        | ("batch", "Job") => Some("/spec/template"),
        ("batch", "CronJob") => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

fn is_list(object: &Value) -> bool {
    object["kind"].as_str().is_some_and(|kind| kind.ends_with("List")) && object["items"].is_array()
}

fn items_mut(object: &mut Value) -> Option<&mut Vec<Value>> {
    if is_list(object) { object.get_mut("items")?.as_array_mut() } else { None }
}

/// Calls `look` for an object, or for each object of a list.
fn each(object: &Value, look: &mut impl FnMut(&Value) -> anyhow::Result<()>) -> anyhow::Result<()> {
    if is_list(object) {
        return object["items"].as_array().into_iter().flatten().try_for_each(|item| each(item, look));
    }
    look(object)
}

/// As `kubectl` names it, with its namespace where it has one.
fn said(object: &Value) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let kind = text("/kind").unwrap_or("?").to_lowercase();
    let name = text("/metadata/name").or_else(|| text("/metadata/generateName")).unwrap_or("(without a name)");
    match text("/metadata/namespace") {
        Some(namespace) => format!("{kind}/{name} in {namespace}"),
        None => format!("{kind}/{name}"),
    }
}

#[cfg(test)]
mod tests;
