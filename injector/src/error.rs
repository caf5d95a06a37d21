//! Why a pod is refused. Each message says what is wrong, where it stands, and how to mend it.

use weft_core::identity::InvalidName;
use weft_core::wellknown::{LABEL_INJECT, SIDECAR_CONTAINER, SIDECAR_UID};

use crate::names::{
    ANNOTATION_ALLOW_NET_ADMIN, ANNOTATION_ALLOW_SHARED_PROCESSES, ANNOTATION_ALLOW_SIDECAR_UID, ANNOTATION_FORBID,
    ANNOTATION_REWRITE_PROBES,
};

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
    #[error("{on} has the annotation {name}: {value:?}, which can't be used: {why}")]
    Annotation {
        /// Whose annotation: the pod's or its namespace's.
        on: String,
        /// The annotation.
        name: &'static str,
        /// What it reads.
        value: String,
        /// What is wrong with it, and what would be right.
        why: String,
    },

    /// The sidecar would ask for more than it may use.
    #[error("the annotation {request} ({requested}) is above {limit} ({limited}); lower the one or raise the other")]
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

    /// The pod asks for a way round the mesh that its namespace forbids.
    #[error(
        "the pod has the annotation {name}, which would let it go round the mesh, and the namespace {namespace} forbids \
         that by {forbid}; remove the one or the other",
        forbid = ANNOTATION_FORBID
    )]
    Forbidden {
        /// The annotation.
        name: &'static str,
        /// The pod's namespace.
        namespace: weft_core::Namespace,
    },

    /// The namespace cannot be looked at now, so that what it forbids is not known.
    #[error("the namespace {namespace} can't be looked at ({why}), so that what it allows isn't known; try again")]
    NamespaceUnknown {
        /// The pod's namespace.
        namespace: weft_core::Namespace,
        /// What went wrong.
        why: String,
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

    /// What shares the sidecar's processes can reach its keys.
    #[error(
        "{at} has the sidecar as its targetContainerName, so that it could reach into the sidecar and its keys; choose another, \
         or annotate the namespace {namespace} with {allow}: \"true\"",
        allow = ANNOTATION_ALLOW_SHARED_PROCESSES
    )]
    ReachesSidecar {
        /// What asks for it.
        at: String,
        /// The pod's namespace.
        namespace: weft_core::Namespace,
    },

    /// The app listens where the sidecar must.
    #[error("{at} declares the port {port}, which is the sidecar's; let the app listen on another")]
    PortTaken {
        /// The container.
        at: String,
        /// The port.
        port: i64,
    },

    /// All probes together make more text than a program can be started with.
    #[error(
        "the pod's probes make {bytes} bytes of text for the sidecar, and at most {most} can be passed to it; shorten their \
         headers, or annotate the pod with {annotation}: \"false\"",
        annotation = ANNOTATION_REWRITE_PROBES
    )]
    ProbesTooLong {
        /// How much they make.
        bytes: usize,
        /// How much they may make.
        most: usize,
    },

    /// Something bears a name of ours, and is not ours.
    #[error("{at} is not what the mesh puts into a pod: {why}; take it out, and the sidecar is put there")]
    Forged {
        /// What it is.
        at: String,
        /// How that shows.
        why: String,
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
            Self::Forbidden { .. }
            | Self::SidecarUid { .. }
            | Self::NetworkPower { .. }
            | Self::SharedProcesses { .. }
            | Self::ReachesSidecar { .. } => 403,
            Self::NamespaceUnknown { .. } => 503,
            Self::Label { .. }
            | Self::Annotation { .. }
            | Self::RequestAboveLimit { .. }
            | Self::PortTaken { .. }
            | Self::ProbesTooLong { .. }
            | Self::Forged { .. }
            | Self::NameTaken { .. } => 422,
        }
    }

    /// The reason in kebab case, as metrics have it.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed { .. } => "malformed",
            Self::Namespace(_) => "namespace-name",
            Self::Label { .. } => "label",
            Self::Annotation { .. } => "annotation",
            Self::RequestAboveLimit { .. } => "request-above-limit",
            Self::Forbidden { .. } => "forbidden",
            Self::NamespaceUnknown { .. } => "namespace-unknown",
            Self::SidecarUid { .. } => "sidecar-uid",
            Self::NetworkPower { .. } => "network-power",
            Self::SharedProcesses { .. } => "shared-processes",
            Self::ReachesSidecar { .. } => "reaches-sidecar",
            Self::PortTaken { .. } => "port-taken",
            Self::ProbesTooLong { .. } => "probes-too-long",
            Self::NameTaken { .. } => "name-taken",
            Self::Forged { .. } => "forged",
        }
    }
}

/// As much of a user's text as a message should repeat.
pub(crate) fn excerpt(text: &str) -> String {
    const LONGEST: usize = 80;
    text.chars().take(LONGEST).collect()
}
