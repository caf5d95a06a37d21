//! The decision about one pod, and the patch that carries it out.

use serde::Serialize;
use serde_json::{Map, Value, json};
use weft_core::wellknown::SIDECAR_CONTAINER;

use crate::error::InjectError;
use crate::manifest::{Pod, flag_in, object_in, text_in};
use crate::names::{ANNOTATION_INJECTED, ANNOTATION_NOT_INJECTED, ANNOTATION_REDIRECT};
use crate::options::{InjectLabel, InjectorOptions, NamespaceFacts, Redirect};
use crate::parts;
use crate::probes::{Probes, hook_warnings};
use crate::settings::{Asked, Settings};
use crate::{genuine, guard};

/// What becomes of a pod that is not refused.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// Why it gets no sidecar, if it gets none.
    pub skipped: Option<SkipReason>,
    /// What is changed, in this order: most of it the sidecar; in a pod that gets none, a note of the reason, or
    /// probes that were added after its sidecar.
    pub ops: Vec<PatchOp>,
    /// What its author should know.
    pub warnings: Vec<String>,
}

/// Why a pod is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SkipReason {
    /// The review is about neither a pod's creation nor a change of its containers.
    NotAPodCreation,
    /// It is changed in a way that the mesh has nothing against.
    Update,
    /// It has its sidecar already.
    AlreadyInjected,
    /// It uses the host's network, which is not the pod's to redirect.
    HostNetwork,
    /// It runs on Windows, where there is no redirect.
    Windows,
    /// Its namespace is the cluster's or the mesh's own, which is never touched.
    ProtectedNamespace,
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
            Self::Update => "update",
            Self::AlreadyInjected => "already-injected",
            Self::HostNetwork => "host-network",
            Self::Windows => "windows",
            Self::ProtectedNamespace => "protected-namespace",
            Self::PodDisabled => "pod-disabled",
            Self::NamespaceDisabled => "namespace-disabled",
            Self::NotEnabled => "not-enabled",
        }
    }

    /// What to tell the author of a pod that asked for a sidecar in vain.
    fn in_vain(self) -> Option<&'static str> {
        match self {
            Self::HostNetwork => Some("this pod is not in the mesh: it uses the host's network (spec.hostNetwork)"),
            Self::Windows => Some("this pod is not in the mesh: it runs on Windows (spec.os)"),
            Self::NamespaceDisabled => Some("this pod is not in the mesh: its namespace is labelled weft.dev/inject: disabled"),
            Self::NotAPodCreation
            | Self::Update
            | Self::AlreadyInjected
            | Self::ProtectedNamespace
            | Self::PodDisabled
            | Self::NotEnabled => None,
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
    pub(crate) fn add(path: impl Into<String>, value: Value) -> Self {
        Self { path: path.into(), value }
    }
}

/// Decides about `pod`, which is to be created in `namespace`.
pub fn patch_pod(pod: &Value, namespace: &NamespaceFacts, options: &InjectorOptions) -> Result<Decision, InjectError> {
    // Before anything is read: what a broken pod of the cluster's own gets is no concern of the mesh's.
    if options.protected.contains(&namespace.name) {
        return Ok(left_alone(SkipReason::ProtectedNamespace));
    }
    let pod = Pod::parse(pod)?;
    if let Some(reason) = not_wanted(&pod, namespace)? {
        return with_note(&pod, reason, namespace);
    }
    // The guard comes before the end of the second call for the same pod: another webhook may have added a
    // container since the first.
    let sidecar = pod.container(SIDECAR_CONTAINER);
    guard::check(&pod, sidecar.is_some(), namespace)?;
    let asked = Asked { pod: &pod.metadata, namespace };
    let probes = if asked.rewrites_probes()? { Probes::rewrite(&pod)? } else { Probes::default() };
    asked.check_mtls()?;
    let settings = Settings::parse(&asked)?;
    if let Some(sidecar) = sidecar {
        genuine::check(&pod, &settings, options)?;
        return Ok(Decision { ops: probes.into_late_ops(sidecar)?, ..left_alone(SkipReason::AlreadyInjected) });
    }
    guard::names_are_free(&pod)?;
    let mut warnings = probes.warnings.clone();
    warnings.extend(hook_warnings(&pod)?);
    warnings.extend(classic_warnings(&pod, options)?);
    Ok(Decision { skipped: None, ops: operations(&pod, &settings, probes, options)?, warnings })
}

pub(crate) fn left_alone(reason: SkipReason) -> Decision {
    Decision { skipped: Some(reason), ops: Vec::new(), warnings: Vec::new() }
}

/// Where a sidecar was asked for in vain, by the pod or for all pods of its namespace, the pod says so itself. Nobody else's pod is
/// written to.
fn with_note(pod: &Pod<'_>, reason: SkipReason, namespace: &NamespaceFacts) -> Result<Decision, InjectError> {
    let mut decision = left_alone(reason);
    let wish = InjectLabel::read(&pod.metadata, "the pod")?;
    if ![wish, namespace.inject].contains(&Some(InjectLabel::Enabled)) {
        return Ok(decision);
    }
    decision.warnings.extend(reason.in_vain().map(str::to_owned));
    if pod.metadata.annotation(ANNOTATION_NOT_INJECTED)? != Some(reason.as_str()) {
        decision.ops = annotate(pod, &[(ANNOTATION_NOT_INJECTED, reason.as_str().to_owned())]);
    }
    Ok(decision)
}

/// What a server without native sidecars makes of some pods.
fn classic_warnings(pod: &Pod<'_>, options: &InjectorOptions) -> Result<Vec<String>, InjectError> {
    let mut warnings = Vec::new();
    if options.native_sidecar {
        return Ok(warnings);
    }
    if pod.init_containers.is_some_and(|list| !list.is_empty()) {
        warnings.push("init containers have no network here: the sidecar starts after them (no native sidecars)".to_owned());
    }
    if text_in(pod.spec, "spec", "restartPolicy")?.is_some_and(|policy| policy != "Always") {
        warnings.push("this pod won't end by itself: its sidecar runs on (no native sidecars)".to_owned());
    }
    Ok(warnings)
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

/// The probes come first, since what follows moves the containers that they are in. The redirect, or the proof that it is there,
/// comes before the sidecar, whose ports it tries, and both before the pod's own init containers, which so are in the mesh too.
fn operations(
    pod: &Pod<'_>,
    settings: &Settings,
    probes: Probes,
    options: &InjectorOptions,
) -> Result<Vec<PatchOp>, InjectError> {
    let sidecar = parts::sidecar_container(options, settings, probes.variable()?);
    let mut annotations = vec![(ANNOTATION_INJECTED, options.version.clone())];
    let mut init = Vec::new();
    match options.redirect {
        Redirect::Init => init.push(parts::redirect_container(options, settings)),
        Redirect::Cni => {
            annotations.push((ANNOTATION_REDIRECT, parts::redirect_arguments(&settings.skips).join(" ")));
            init.push(parts::verify_container(options, settings));
        }
    }
    let mut ordinary = Vec::new();
    let list = if options.native_sidecar { &mut init } else { &mut ordinary };
    list.push(sidecar);

    let mut ops = probes.ops;
    if settings.workload_api {
        for container in &pod.containers {
            ops.extend(parts::offer_workload_api(container)?);
        }
    }
    ops.extend(annotate(pod, &annotations));
    append(&mut ops, "/spec/volumes", pod.volumes.is_some(), parts::volumes(options, settings));
    prepend(&mut ops, "/spec/initContainers", pod.init_containers.is_some(), init);
    prepend(&mut ops, "/spec/containers", true, ordinary);
    Ok(ops)
}

fn annotate(pod: &Pod<'_>, annotations: &[(&str, String)]) -> Vec<PatchOp> {
    if pod.metadata.annotations.is_some() {
        let one = |(name, value): &(&str, String)| PatchOp::add(format!("/metadata/annotations/{}", escaped(name)), json!(value));
        return annotations.iter().map(one).collect();
    }
    let all: Map<String, Value> = annotations.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
    if pod.metadata.object.is_some() {
        vec![PatchOp::add("/metadata/annotations", Value::Object(all))]
    } else {
        vec![PatchOp::add("/metadata", json!({ "annotations": all }))]
    }
}

/// Puts `values` first in the list at `path`, in their order; makes the list where there is none.
fn prepend(ops: &mut Vec<PatchOp>, path: &str, exists: bool, values: Vec<Value>) {
    if exists {
        ops.extend(values.into_iter().enumerate().map(|(index, value)| PatchOp::add(format!("{path}/{index}"), value)));
    } else if !values.is_empty() {
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
