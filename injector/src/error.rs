//! Why a pod is refused. Each message says what is wrong, where it stands, and how to mend it.

use weft_core::identity::InvalidName;
use weft_core::wellknown::{LABEL_INJECT, SIDECAR_CONTAINER, SIDECAR_UID};

use crate::names::{ANNOTATION_ALLOW_NET_ADMIN, ANNOTATION_ALLOW_SHARED_PROCESSES, ANNOTATION_ALLOW_SIDECAR_UID};

/// Why a pod, or the review that carries it, is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InjectError {
    /// A part of the review or the manifest has the wrong type, or is missing.
    #[error("{at} should be {expected}")]
    Malformed {
        /// Where it stands: `spec.containers[0].securityContext`.
        at: String,
        /// What should be there.
        expected: &'static str,
    },

    /// The namespace's name is not one.
    #[error(transparent)]
    Namespace(#[from] InvalidName),

    /// The injection label has another value than the two that it may have.
    #[error("{on} has the label {label}: {value:?}; it must read \"enabled\" or \"disabled\"", label = LABEL_INJECT)]
    Label {
        /// Whose label: the pod's or a namespace's.
        on: String,
        /// What it reads.
        value: String,
    },

    /// An annotation has a value that cannot be used.
    #[error("the pod's annotation {name}: {value:?} can't be used: {why}")]
    Annotation {
        /// The annotation.
        name: &'static str,
        /// What it reads.
        value: String,
        /// What is wrong with it, and what would be right.
        why: String,
    },

    /// The sidecar would ask for more than it may use.
    #[error("the pod's annotation {request} ({requested}) is above {limit} ({limited}); lower the one or raise the other")]
    RequestAboveLimit {
        /// The annotation with the request.
        request: &'static str,
        /// The request.
        requested: String,
        /// The annotation with the limit.
        limit: &'static str,
        /// The limit.
        limited: String,
    },

    /// What runs as the sidecar's user bypasses the redirect.
    #[error(
        "{at} is {uid}, the user id of the sidecar, whose traffic the redirect lets by: the pod would bypass the mesh; \
         choose another user id, or annotate the namespace {namespace} with {allow}: \"true\"",
        uid = SIDECAR_UID, allow = ANNOTATION_ALLOW_SIDECAR_UID
    )]
    SidecarUid {
        /// Where it is asked for.
        at: String,
        /// The pod's namespace.
        namespace: weft_core::Namespace,
    },

    /// What may change the pod's network can undo the redirect.
    #[error(
        "{at} asks for {power}, with which it could undo the redirect to the sidecar; remove it, label the pod \
         {label}: \"disabled\", or annotate the namespace {namespace} with {allow}: \"true\"",
        label = LABEL_INJECT, allow = ANNOTATION_ALLOW_NET_ADMIN
    )]
    NetworkPower {
        /// Where it is asked for.
        at: String,
        /// The capability, or `privileged`.
        power: String,
        /// The pod's namespace.
        namespace: weft_core::Namespace,
    },

    /// What sees the sidecar's process can reach its keys.
    #[error(
        "{at} is true, so that the pod's containers could reach into the sidecar and its keys; remove it, label the \
         pod {label}: \"disabled\", or annotate the namespace {namespace} with {allow}: \"true\"",
        label = LABEL_INJECT, allow = ANNOTATION_ALLOW_SHARED_PROCESSES
    )]
    SharedProcesses {
        /// Where it is asked for.
        at: &'static str,
        /// The pod's namespace.
        namespace: weft_core::Namespace,
    },

    /// A name that injection needs is in use, in a pod that has no sidecar yet.
    #[error("{at} is named {name:?}, which the mesh needs for itself beside {sidecar}; rename it", sidecar = SIDECAR_CONTAINER)]
    NameTaken {
        /// Whose name it is.
        at: String,
        /// The name.
        name: &'static str,
    },
}

impl InjectError {
    /// The HTTP status that the API server reports along with the message.
    pub fn status_code(&self) -> u16 {
        match self {
            Self::Malformed { .. } | Self::Namespace(_) => 400,
            Self::SidecarUid { .. } | Self::NetworkPower { .. } | Self::SharedProcesses { .. } => 403,
            Self::Label { .. } | Self::Annotation { .. } | Self::RequestAboveLimit { .. } | Self::NameTaken { .. } => 422,
        }
    }
}

/// As much of a user's text as a message should repeat.
pub(crate) fn excerpt(text: &str) -> String {
    const LONGEST: usize = 80;
    text.chars().take(LONGEST).collect()
}
