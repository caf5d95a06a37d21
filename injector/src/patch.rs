//! The decision about one pod, and the patch that carries it out.

use serde::Serialize;
use serde_json::{Value, json};
use weft_core::wellknown::SIDECAR_CONTAINER;

use crate::error::InjectError;
use crate::guard;
use crate::manifest::{Pod, flag_in, object_in, text_in};
use crate::names::ANNOTATION_INJECTED;
use crate::options::{InjectLabel, InjectorOptions, NamespaceFacts};
use crate::parts;
use crate::settings::Settings;

/// What becomes of a pod that is not refused.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It gets its sidecar by these operations, in this order.
    Patch(Vec<PatchOp>),
    /// It stays as it is.
    Skip(SkipReason),
}

/// Why a pod is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SkipReason {
    /// The review is not about the creation of a pod.
    NotAPodCreation,
    /// It has its sidecar already.
    AlreadyInjected,
    /// It uses the host's network, which is not the pod's to redirect.
    HostNetwork,
    /// It runs on Windows, where there is no redirect.
    Windows,
    /// Its own label says so.
    PodDisabled,
    /// Its namespace's label says so.
    NamespaceDisabled,
    /// Neither its own label nor its namespace's asks for a sidecar.
    NotEnabled,
}

impl SkipReason {
    /// The reason in kebab case, as audit annotations and metrics have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotAPodCreation => "not-a-pod-creation",
            Self::AlreadyInjected => "already-injected",
            Self::HostNetwork => "host-network",
            Self::Windows => "windows",
            Self::PodDisabled => "pod-disabled",
            Self::NamespaceDisabled => "namespace-disabled",
            Self::NotEnabled => "not-enabled",
        }
    }
}

/// One operation of a JSON patch (RFC 6902). Only `add` is needed: on a member that is there, it replaces the
/// value (section 4.1).
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "op", rename = "add")]
pub struct PatchOp {
    /// Where the value goes, as a JSON pointer (RFC 6901).
    pub path: String,
    /// What is put there.
    pub value: Value,
}

impl PatchOp {
    fn add(path: impl Into<String>, value: Value) -> Self {
        Self { path: path.into(), value }
    }
}

/// Decides about `pod`, which is to be created in `namespace`.
pub fn patch_pod(pod: &Value, namespace: &NamespaceFacts, options: &InjectorOptions) -> Result<Outcome, InjectError> {
    let pod = Pod::parse(pod)?;
    if let Some(reason) = not_wanted(&pod, namespace)? {
        return Ok(Outcome::Skip(reason));
    }
    // The guard comes before the end of the second call for the same pod: another webhook may have added a
    // container since the first.
    let injected = pod.has_container(SIDECAR_CONTAINER);
    guard::check(&pod, injected, namespace)?;
    if injected {
        return Ok(Outcome::Skip(SkipReason::AlreadyInjected));
    }
    guard::names_are_free(&pod)?;
    let settings = Settings::parse(&pod.metadata)?;
    Ok(Outcome::Patch(operations(&pod, &settings, options)))
}

/// A `disabled` anywhere wins; without one, an `enabled` anywhere suffices.
fn not_wanted(pod: &Pod<'_>, namespace: &NamespaceFacts) -> Result<Option<SkipReason>, InjectError> {
    let wish = InjectLabel::read(&pod.metadata, "the pod")?;
    let by_label = match (wish, namespace.inject) {
        (Some(InjectLabel::Disabled), _) => Some(SkipReason::PodDisabled),
        (_, Some(InjectLabel::Disabled)) => Some(SkipReason::NamespaceDisabled),
        (None, None) => Some(SkipReason::NotEnabled),
        (Some(InjectLabel::Enabled), _) | (_, Some(InjectLabel::Enabled)) => None,
    };
    if by_label.is_some() {
        return Ok(by_label);
    }
    if flag_in(pod.spec, "spec", "hostNetwork")? {
        return Ok(Some(SkipReason::HostNetwork));
    }
    if let Some(os) = object_in(pod.spec, "spec", "os")?
        && text_in(os, "spec.os", "name")? == Some("windows")
    {
        return Ok(Some(SkipReason::Windows));
    }
    Ok(None)
}

fn operations(pod: &Pod<'_>, settings: &Settings, options: &InjectorOptions) -> Vec<PatchOp> {
    let redirect = parts::redirect_container(options, settings);
    let sidecar = parts::sidecar_container(options, settings);
    let (init, ordinary) =
        if options.native_sidecar { (vec![redirect, sidecar], vec![]) } else { (vec![redirect], vec![sidecar]) };

    let mut ops = vec![annotate(pod, &options.version)];
    append(&mut ops, "/spec/volumes", pod.volumes.is_some(), parts::volumes(options));
    prepend(&mut ops, "/spec/initContainers", pod.init_containers.is_some(), init);
    prepend(&mut ops, "/spec/containers", true, ordinary);
    ops
}

fn annotate(pod: &Pod<'_>, version: &str) -> PatchOp {
    if pod.metadata.annotations.is_some() {
        PatchOp::add(format!("/metadata/annotations/{}", escaped(ANNOTATION_INJECTED)), json!(version))
    } else if pod.metadata.object.is_some() {
        PatchOp::add("/metadata/annotations", json!({ ANNOTATION_INJECTED: version }))
    } else {
        PatchOp::add("/metadata", json!({ "annotations": { ANNOTATION_INJECTED: version } }))
    }
}

/// Puts `values` first in the list at `path`, in their order; makes the list where there is none.
fn prepend(ops: &mut Vec<PatchOp>, path: &str, exists: bool, values: Vec<Value>) {
    if exists {
        ops.extend(values.into_iter().enumerate().map(|(index, value)| PatchOp::add(format!("{path}/{index}"), value)));
    } else {
        ops.push(PatchOp::add(path, Value::Array(values)));
    }
}

/// Puts `values` last in the list at `path`; makes the list where there is none.
fn append(ops: &mut Vec<PatchOp>, path: &str, exists: bool, values: Vec<Value>) {
    if exists {
        ops.extend(values.into_iter().map(|value| PatchOp::add(format!("{path}/-"), value)));
    } else {
        ops.push(PatchOp::add(path, Value::Array(values)));
    }
}

/// One reference token of a JSON pointer (RFC 6901, section 3).
fn escaped(token: &str) -> String {
    token.replace('~', "~0").replace('/', "~1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_escapes_the_tilde_before_the_slash() {
        assert_eq!(escaped("weft.dev/injected"), "weft.dev~1injected");
        assert_eq!(escaped("~/~1"), "~0~1~01");
    }

    #[test]
    fn an_operation_reads_as_rfc_6902_has_it() {
        let op = PatchOp::add("/a", json!([1]));
        assert_eq!(serde_json::to_value(op).expect("plain JSON"), json!({ "op": "add", "path": "/a", "value": [1] }));
    }
}
