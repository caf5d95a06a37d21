//! What follows from the objects of a cluster, without asking it anything more.
#![cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "only a client sees a cluster"))]

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use weft_core::wellknown::LABEL_INJECT;
use weft_injector::{ANNOTATION_NOT_INJECTED, FILE_ANCHORS};

use super::{Code, Finding};
use crate::install::access::TRUST_BUNDLE;
use crate::install::sidecars::{self, Owner};

/// The name of an object, and the namespace that it is in.
fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

fn label<'a>(object: &'a Value, label: &str) -> Option<&'a str> {
    object.pointer("/metadata/labels")?.get(label)?.as_str()
}

/// Namespaces whose label is neither of the words that it may be: the webhook is not called for them.
pub(super) fn namespaces(namespaces: &[Value]) -> Vec<Finding> {
    let wrong = namespaces.iter().filter_map(|namespace| {
        let value = label(namespace, LABEL_INJECT).filter(|value| !["enabled", "disabled"].contains(value))?;
        let name = name(namespace);
        Some(Finding::bad(
            Code::NamespaceLabel,
            format!("namespace {name} has the label {LABEL_INJECT}={value}, which means nothing: its pods are not meshed"),
            format!("kubectl label --overwrite namespace {name} {LABEL_INJECT}=enabled (or disabled)"),
        ))
    });
    wrong.collect()
}

/// Whether a pod should have a sidecar, by the labels alone.
fn is_wanted(pod: &Value, namespace: Option<&str>, excluded: &[&str]) -> bool {
    if excluded.contains(&text(pod, "/metadata/namespace")) || sidecars::has_ended(pod) {
        return false;
    }
    match (label(pod, LABEL_INJECT), namespace) {
        (Some("disabled"), _) | (_, Some("disabled")) => false,
        (Some("enabled"), _) | (_, Some("enabled")) => true,
        _ => false,
    }
}

/// The pods of a mesh: those without the sidecar that they should have, and those with one of another version.
pub(super) fn pods(namespaces: &[Value], pods: &[Value], version: &str, excluded: &[&str]) -> Vec<Finding> {
    let labels: BTreeMap<&str, Option<&str>> = namespaces.iter().map(|one| (name(one), label(one, LABEL_INJECT))).collect();
    let of = |pod: &Value| labels.get(text(pod, "/metadata/namespace")).copied().flatten();
    let mut findings = Vec::new();

    let (meshed, others): (Vec<&Value>, Vec<&Value>) = pods.iter().partition(|pod| sidecars::has_sidecar(pod));
    let lacking: Vec<&Value> = others.into_iter().filter(|pod| is_wanted(pod, of(pod), excluded)).collect();
    let (excused, slipped): (Vec<&Value>, Vec<&Value>) = lacking.into_iter().partition(|pod| excuse(pod).is_some());
    for (owner, count) in sidecars::by_owner(slipped) {
        findings.push(Finding::bad(
            Code::Unmeshed,
            format!("{} without the sidecar that it should have: {}", counted(count), said(&owner)),
            owner.remedy(),
        ));
    }
    let excuses: BTreeSet<(Owner, String)> = excused.into_iter().filter_map(|pod| Some((Owner::of(pod), excuse(pod)?))).collect();
    for (owner, why) in excuses {
        findings.push(Finding::warning(
            Code::Unmeshed,
            format!("{} is in the mesh's namespace but not in the mesh: {why}", said(&owner)),
            format!("label its pods {LABEL_INJECT}=disabled if that is meant"),
        ));
    }

    let old =
        meshed.iter().filter(|pod| !sidecars::has_ended(pod) && sidecars::version(pod).is_some_and(|theirs| theirs != version));
    for (owner, count) in sidecars::by_owner(old.copied()) {
        findings.push(Finding::warning(
            Code::Version,
            format!("{} with the sidecar of another version than {version}: {}", counted(count), said(&owner)),
            owner.remedy(),
        ));
    }
    let running = meshed.iter().filter(|pod| !sidecars::has_ended(pod)).count();
    let enabled = labels.values().filter(|label| **label == Some("enabled")).count();
    findings.push(Finding::good(Code::Unmeshed, format!("{running} pods have sidecars; {enabled} namespaces are meshed")));
    findings
}

/// Why a pod has no sidecar although it was asked for: what it says itself, or what cannot be meshed.
fn excuse(pod: &Value) -> Option<String> {
    if let Some(why) = pod.pointer("/metadata/annotations").and_then(|all| all.get(ANNOTATION_NOT_INJECTED)?.as_str()) {
        return Some(why.to_owned());
    }
    if pod.pointer("/spec/hostNetwork") == Some(&Value::Bool(true)) {
        return Some("it uses the host's network".to_owned());
    }
    (pod.pointer("/spec/os/name").and_then(Value::as_str) == Some("windows")).then(|| "it runs on Windows".to_owned())
}

fn counted(count: usize) -> String {
    if count == 1 { "a pod".to_owned() } else { format!("{count} pods") }
}

fn said(owner: &Owner) -> String {
    format!("{} in {}", owner.name, owner.namespace)
}

/// Namespaces that are meshed and lack the anchors without which no sidecar starts, or have others than most.
pub(super) fn bundles(namespaces: &[Value], bundles: &[Value], excluded: &[&str]) -> Vec<Finding> {
    let held: BTreeMap<&str, &str> = bundles
        .iter()
        .filter(|bundle| name(bundle) == TRUST_BUNDLE)
        .map(|bundle| {
            let anchors = bundle.get("data").and_then(|data| data.get(FILE_ANCHORS)?.as_str());
            (text(bundle, "/metadata/namespace"), anchors.unwrap_or_default().trim())
        })
        .collect();
    let remedy = "the control plane writes it: see kubectl logs -n weft-system deployment/weft-control-plane";
    let mut findings = Vec::new();
    let meshed = namespaces.iter().filter(|one| label(one, LABEL_INJECT) == Some("enabled")).map(name);
    for namespace in meshed.filter(|name| !excluded.contains(name)) {
        if held.get(namespace).is_none_or(|anchors| anchors.is_empty()) {
            findings.push(Finding::bad(
                Code::TrustBundle,
                format!("namespace {namespace} has no trust bundle (ConfigMap {TRUST_BUNDLE})"),
                remedy,
            ));
        }
    }
    let different: BTreeSet<&str> = held.values().copied().filter(|anchors| !anchors.is_empty()).collect();
    if different.len() > 1 {
        findings.push(Finding::warning(
            Code::TrustBundle,
            format!("there are {} different trust bundles", different.len()),
            remedy,
        ));
    }
    findings
}

/// The webhook: that each entry can be called, and what becomes of pods while it cannot.
pub(super) fn webhook(configuration: &Value, ca: Option<&str>) -> Vec<Finding> {
    let Some(hooks) = configuration.get("webhooks").and_then(Value::as_array).filter(|hooks| !hooks.is_empty()) else {
        return vec![Finding::bad(
            Code::Webhook,
            "no webhook is registered: no pod gets a sidecar",
            "weft upgrade --apply registers it",
        )];
    };
    let mut findings = Vec::new();
    for hook in hooks {
        let (name, bundle) = (text(hook, "/name"), text(hook, "/clientConfig/caBundle"));
        if bundle.is_empty() {
            findings.push(Finding::bad(
                Code::Webhook,
                format!("the API server can't call the webhook {name}: it has no caBundle"),
                "the injector puts it there: see kubectl logs -n weft-system deployment/weft-injector",
            ));
        } else if ca.is_some_and(|ca| ca != bundle) {
            findings.push(Finding::bad(
                Code::Webhook,
                format!("the webhook {name} has another caBundle than the injector's certificate needs"),
                "restart the injector: kubectl rollout restart -n weft-system deployment/weft-injector",
            ));
        }
        if text(hook, "/failurePolicy") == "Ignore" {
            findings.push(Finding::warning(
                Code::Webhook,
                format!("the webhook {name} lets pods by, outside of the mesh, while no injector answers (failurePolicy Ignore)"),
                "weft upgrade --apply --failure-policy Fail",
            ));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::good(Code::Webhook, "the webhook is registered, with the injector's certificate"));
    }
    findings
}

#[cfg(test)]
mod tests;
