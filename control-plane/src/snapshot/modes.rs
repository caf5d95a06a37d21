//! The mTLS modes of a pod with who set them: for explanations. Sidecars have the modes in their inbound policy.

use std::fmt;

use weft_core::Namespace;
use weft_core::policy::MtlsMode;
use weft_core::service::ObjectRef;
use weft_core::wellknown::{ANNOTATION_FORBID, ANNOTATION_MTLS, ANNOTATION_MTLS_PORTS};

/// Who set a mode.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum SetBy {
    /// Nobody else: what the control plane was told for the whole mesh.
    Default,
    /// The annotation of a namespace.
    Namespace(Namespace),
    /// The pod's own annotation: of the whole pod, or of ports.
    Pod { ports: bool },
    /// A namespace that does not let its pods be more permissive than itself.
    Forbidden(Namespace),
    /// An `MtlsPolicy`.
    Policy(ObjectRef, Level),
    /// An `MtlsPolicy` that cannot be honoured, and no version before it could be.
    Broken(ObjectRef),
}

/// What a policy is attached to; the nearest one is followed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    Workload,
    Namespace,
    Mesh,
}

impl fmt::Display for SetBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the default of the mesh"),
            Self::Namespace(name) => write!(f, "the annotation {ANNOTATION_MTLS} of Namespace {name}"),
            Self::Pod { ports: false } => write!(f, "the pod's own annotation {ANNOTATION_MTLS}"),
            Self::Pod { ports: true } => write!(f, "the pod's own annotation {ANNOTATION_MTLS_PORTS}"),
            Self::Forbidden(name) => write!(f, "the annotation {ANNOTATION_FORBID} of Namespace {name}"),
            Self::Policy(id, Level::Workload) => write!(f, "MtlsPolicy {id}, which selects the pod"),
            Self::Policy(id, Level::Namespace) => write!(f, "MtlsPolicy {id}, for the namespace"),
            Self::Policy(id, Level::Mesh) => write!(f, "MtlsPolicy {id}, for the mesh"),
            Self::Broken(id) => write!(f, "MtlsPolicy {id}, which cannot be honoured"),
        }
    }
}

/// The modes of one pod.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodModes {
    pub mode: MtlsMode,
    pub by: SetBy,
    /// Ports with a mode of their own, in order.
    pub ports: Vec<(u16, MtlsMode, SetBy)>,
}

impl PodModes {
    /// The mode of a port, and who set it.
    pub fn of(&self, port: u16) -> (MtlsMode, &SetBy) {
        let own = self.ports.iter().find(|(p, ..)| *p == port);
        own.map_or((self.mode, &self.by), |(_, mode, by)| (*mode, by))
    }

    /// The same, for people.
    pub fn told(&self, port: u16) -> String {
        let own = self.ports.iter().any(|(p, ..)| *p == port);
        let (mode, by) = self.of(port);
        if own { format!("{mode} at port {port}, set by {by}") } else { format!("{mode}, set by {by}") }
    }
}
