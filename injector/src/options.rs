//! What the injector is told: how to inject, and what is known of the namespaces.

use std::collections::BTreeMap;

use serde_json::Value;
use weft_core::Namespace;
use weft_core::wellknown::LABEL_INJECT;

use crate::error::{InjectError, excerpt};
use crate::manifest::{Metadata, as_object};
use crate::names::{ANNOTATION_ALLOW_NET_ADMIN, ANNOTATION_ALLOW_SHARED_PROCESSES, ANNOTATION_ALLOW_SIDECAR_UID};

/// How to inject.
#[derive(Debug, Clone)]
pub struct InjectorOptions {
    /// The version to write into the annotation [`crate::ANNOTATION_INJECTED`].
    pub version: String,
    /// The image of the sidecar; it holds the program `weft-sidecar`.
    pub sidecar_image: String,
    /// The image of the init container; it holds the program `weft-redirect` and the packet filter's tools.
    pub redirect_image: String,
    /// `HOST:PORT` of the control plane, as a pod reaches it.
    pub control_plane: String,
    /// The config map with the trust bundle, which must be in every namespace that is injected.
    pub trust_bundle: String,
    /// Whether the cluster knows native sidecars (Kubernetes 1.29 and later): init containers that stay. Without
    /// them the app may start before the sidecar is ready, its init containers have no network, and a Job's pod
    /// does not end by itself.
    pub native_sidecar: bool,
    /// What is known of each namespace. One that is not listed is taken for [`NamespaceFacts::selected`].
    pub namespaces: BTreeMap<Namespace, NamespaceFacts>,
}

/// What the label [`LABEL_INJECT`] says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InjectLabel {
    /// Inject.
    Enabled,
    /// Leave alone; it wins over an `enabled` elsewhere.
    Disabled,
}

impl InjectLabel {
    /// Reads the label from `metadata`; `on` says whose it is.
    pub(crate) fn read(metadata: &Metadata<'_>, on: &str) -> Result<Option<Self>, InjectError> {
        match metadata.label(LABEL_INJECT)? {
            None => Ok(None),
            Some("enabled") => Ok(Some(Self::Enabled)),
            Some("disabled") => Ok(Some(Self::Disabled)),
            Some(other) => Err(InjectError::Label { on: on.to_owned(), value: excerpt(other) }),
        }
    }
}

/// What matters of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceFacts {
    /// Its name.
    pub name: Namespace,
    /// Its injection label, if it has one.
    pub inject: Option<InjectLabel>,
    /// Whether its pods may run as the sidecar's user.
    pub allow_sidecar_uid: bool,
    /// Whether its pods may have containers that are privileged or may change the network.
    pub allow_net_admin: bool,
    /// Whether its pods may share their process namespace.
    pub allow_shared_processes: bool,
}

impl NamespaceFacts {
    /// A namespace of which no more is known than that the webhook was called for a pod in it. The API server
    /// calls only for what the webhook's selectors match, so it counts as enabled; it allows nothing. So a watch
    /// that lags behind neither lets a pod into the mesh's namespace without its sidecar, nor loosens a rule.
    pub fn selected(name: Namespace) -> Self {
        Self {
            name,
            inject: Some(InjectLabel::Enabled),
            allow_sidecar_uid: false,
            allow_net_admin: false,
            allow_shared_processes: false,
        }
    }

    /// Reads the manifest of a core `v1` `Namespace`.
    pub fn from_manifest(manifest: &Value) -> Result<Self, InjectError> {
        let metadata = Metadata::parse(as_object(manifest, "the namespace")?)?;
        let name: Namespace = metadata.name()?.unwrap_or_default().parse()?;
        let inject = InjectLabel::read(&metadata, &format!("the namespace {name}"))?;
        let allows = |annotation: &str| Ok::<bool, InjectError>(metadata.annotation(annotation)? == Some("true"));
        Ok(Self {
            inject,
            allow_sidecar_uid: allows(ANNOTATION_ALLOW_SIDECAR_UID)?,
            allow_net_admin: allows(ANNOTATION_ALLOW_NET_ADMIN)?,
            allow_shared_processes: allows(ANNOTATION_ALLOW_SHARED_PROCESSES)?,
            name,
        })
    }
}
