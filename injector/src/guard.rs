//! What a pod must not have, unless its namespace allows it: the means to bypass the redirect or to reach the
//! sidecar's keys.
//!
//! This keeps honest pods honest. It is no boundary against a hostile workload: one that runs as root with the
//! default capabilities can still become the sidecar's user.

use serde_json::Value;
use weft_core::wellknown::{SIDECAR_CONTAINER, SIDECAR_PORTS, SIDECAR_UID};

use crate::error::{InjectError, excerpt};
use crate::manifest::{Container, Object, Pod, flag_in, list_in, malformed, object_in, text_in, whole_number_in};
use crate::names::{REDIRECT_CONTAINER, VERIFY_CONTAINER, VOLUME_STATE, VOLUME_TOKEN, VOLUME_TRUST_BUNDLE, VOLUME_WORKLOAD_API};
use crate::options::NamespaceFacts;

/// The one capability that our own init container adds.
pub(crate) const NET_ADMIN: &str = "NET_ADMIN";
/// With these, a container can change the packet rules or write packets past them.
const NETWORK_CAPABILITIES: [&str; 3] = ["ALL", NET_ADMIN, "NET_RAW"];

/// Refuses a pod that could bypass the mesh. In a pod that has its sidecar already (`injected`), our own
/// containers may have what they were given, and no more.
pub(crate) fn check(pod: &Pod<'_>, injected: bool, namespace: &NamespaceFacts) -> Result<(), InjectError> {
    if !namespace.allow_shared_processes {
        for (key, at) in [("shareProcessNamespace", "spec.shareProcessNamespace"), ("hostPID", "spec.hostPID")] {
            if flag_in(pod.spec, "spec", key)? {
                return Err(InjectError::SharedProcesses { at, namespace: namespace.name.clone() });
            }
        }
    }
    if !namespace.allow_sidecar_uid
        && let Some(security) = object_in(pod.spec, "spec", "securityContext")?
        && runs_as_sidecar(security, "spec.securityContext")?
    {
        return Err(InjectError::SidecarUid {
            at: "the pod's spec.securityContext.runAsUser".to_owned(),
            namespace: namespace.name.clone(),
        });
    }
    for container in &pod.containers {
        if !(injected && container.name == SIDECAR_CONTAINER) {
            ports_are_free(container)?;
        }
        if !(injected && [SIDECAR_CONTAINER, REDIRECT_CONTAINER].contains(&container.name)) {
            volumes_are_not_ours(container)?;
        }
        if let Some(security) = container.security {
            check_container(container, security, injected, namespace)?;
        }
    }
    Ok(())
}

/// Refuses a container that is put into a pod with a sidecar, as an ephemeral one is, and that could bypass the mesh or reach into the
/// sidecar. It is none of ours, whatever its name.
pub(crate) fn added(container: &Container<'_>, namespace: &NamespaceFacts) -> Result<(), InjectError> {
    ports_are_free(container)?;
    volumes_are_not_ours(container)?;
    // Who may add a container gets no certificate of the workload's by it.
    if !namespace.allow_shared_processes {
        mounts_none(container, &[VOLUME_WORKLOAD_API])?;
    }
    let target = text_in(container.object, &container.at, "targetContainerName")?;
    if target == Some(SIDECAR_CONTAINER) && !namespace.allow_shared_processes {
        return Err(InjectError::ReachesSidecar { at: container.said(), namespace: namespace.name.clone() });
    }
    container.security.map_or(Ok(()), |security| check_container(container, security, false, namespace))
}

/// The sidecar's token, keys and sockets are nobody else's to mount.
fn volumes_are_not_ours(container: &Container<'_>) -> Result<(), InjectError> {
    mounts_none(container, &[VOLUME_TOKEN, VOLUME_STATE, VOLUME_TRUST_BUNDLE])
}

fn mounts_none(container: &Container<'_>, names: &[&'static str]) -> Result<(), InjectError> {
    for mount in list_in(container.object, &container.at, "volumeMounts")?.unwrap_or_default() {
        let volume = mount.get("name").and_then(Value::as_str);
        for name in names {
            if volume == Some(*name) {
                return Err(InjectError::NameTaken { at: format!("a volume that {} mounts", container.said()), name });
            }
        }
    }
    Ok(())
}

/// What listens on one of the sidecar's ports keeps the sidecar from starting, and can't be reached by others.
fn ports_are_free(container: &Container<'_>) -> Result<(), InjectError> {
    for (port, protocol) in container.ports()? {
        if protocol == "TCP" && SIDECAR_PORTS.iter().any(|ours| i64::from(*ours) == port) {
            return Err(InjectError::PortTaken { at: container.said(), port });
        }
    }
    Ok(())
}

fn check_container(
    container: &Container<'_>,
    security: &Object,
    injected: bool,
    namespace: &NamespaceFacts,
) -> Result<(), InjectError> {
    let at = format!("{}.securityContext", container.at);
    let is_sidecar = injected && container.name == SIDECAR_CONTAINER;
    let is_redirect = injected && container.name == REDIRECT_CONTAINER;

    if !namespace.allow_sidecar_uid && !is_sidecar && runs_as_sidecar(security, &at)? {
        return Err(InjectError::SidecarUid {
            at: format!("securityContext.runAsUser of {}", container.said()),
            namespace: namespace.name.clone(),
        });
    }
    if namespace.allow_net_admin {
        return Ok(());
    }
    let refused = |power: String| InjectError::NetworkPower { at: container.said(), power, namespace: namespace.name.clone() };
    if flag_in(security, &at, "privileged")? {
        return Err(refused("securityContext.privileged".to_owned()));
    }
    for capability in added_capabilities(security, &at)? {
        let plain = plain_capability(capability);
        let ours = is_redirect && plain == NET_ADMIN;
        if NETWORK_CAPABILITIES.contains(&plain.as_str()) && !ours {
            return Err(refused(format!("{} in securityContext.capabilities.add", excerpt(capability))));
        }
    }
    Ok(())
}

fn runs_as_sidecar(security: &Object, at: &str) -> Result<bool, InjectError> {
    Ok(whole_number_in(security, at, "runAsUser")? == Some(i64::from(SIDECAR_UID)))
}

fn added_capabilities<'a>(security: &'a Object, at: &str) -> Result<Vec<&'a str>, InjectError> {
    let Some(capabilities) = object_in(security, at, "capabilities")? else {
        return Ok(Vec::new());
    };
    let at = format!("{at}.capabilities");
    let added = list_in(capabilities, &at, "add")?.unwrap_or_default();
    added.iter().map(|capability| capability.as_str().ok_or_else(|| malformed(&at, "add", "a list of texts"))).collect()
}

/// Container runtimes take a capability in any case, with or without its prefix.
fn plain_capability(capability: &str) -> String {
    let upper = capability.trim().to_ascii_uppercase();
    upper.strip_prefix("CAP_").unwrap_or(&upper).to_owned()
}

/// Refuses a pod, not yet injected, that uses a name which injection is about to add.
pub(crate) fn names_are_free(pod: &Pod<'_>) -> Result<(), InjectError> {
    for name in [REDIRECT_CONTAINER, VERIFY_CONTAINER] {
        if let Some(container) = pod.containers.iter().find(|container| container.name == name) {
            return Err(InjectError::NameTaken { at: format!("a container ({})", container.at), name });
        }
    }
    for (index, volume) in pod.volumes.unwrap_or_default().iter().enumerate() {
        let volume_name = volume.get("name").and_then(Value::as_str);
        for name in [VOLUME_TOKEN, VOLUME_STATE, VOLUME_TRUST_BUNDLE, VOLUME_WORKLOAD_API] {
            if volume_name == Some(name) {
                return Err(InjectError::NameTaken { at: format!("a volume (spec.volumes[{index}])"), name });
            }
        }
    }
    Ok(())
}
