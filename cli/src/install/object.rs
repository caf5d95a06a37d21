//! What every object of an installation has: its name, its place and its labels.

use serde_json::{Map, Value, json};

use super::VERSION;
use super::settings::Settings;

/// On everything that belongs to an installation, also on what the programs make themselves: `weft uninstall` goes by it.
pub(crate) const LABEL_PART_OF: &str = "app.kubernetes.io/part-of";
/// What [`LABEL_PART_OF`] reads.
pub(crate) const PART_OF: &str = "weft";
/// Which of the parts an object is for; selectors use it.
pub(crate) const LABEL_NAME: &str = "app.kubernetes.io/name";
/// The version that an object was installed with.
pub(crate) const LABEL_VERSION: &str = "app.kubernetes.io/version";

/// Whose an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Mesh,
    ControlPlane,
    Injector,
    /// The CNI plugin's agent on each node; only where it is chosen.
    Cni,
}

impl Part {
    /// The two that always run.
    pub(crate) const PROGRAMS: [Self; 2] = [Self::ControlPlane, Self::Injector];

    /// The name of its program, and of most of its objects.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Mesh => "weft",
            Self::ControlPlane => weft_core::wellknown::CONTROL_PLANE_SERVICE_ACCOUNT,
            Self::Injector => "weft-injector",
            Self::Cni => "weft-cni",
        }
    }

    const fn component(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::ControlPlane => "control-plane",
            Self::Injector => "injector",
            Self::Cni => "cni",
        }
    }

    /// The labels of its objects.
    pub(crate) fn labels(self) -> Map<String, Value> {
        [
            (LABEL_NAME, self.name()),
            ("app.kubernetes.io/component", self.component()),
            (LABEL_PART_OF, PART_OF),
            (LABEL_VERSION, VERSION),
        ]
        .into_iter()
        .map(|(label, value)| (label.to_owned(), value.into()))
        .collect()
    }

    /// What its pods, and no others, are selected by; it never changes, since a Deployment's selector cannot.
    pub(crate) fn selector(self) -> Value {
        json!({ LABEL_NAME: self.name(), LABEL_PART_OF: PART_OF })
    }

    /// The metadata of an object of the cluster's.
    pub(crate) fn in_cluster(self, name: &str) -> Value {
        json!({ "name": name, "labels": self.labels() })
    }

    /// The metadata of an object in weft's own namespace.
    pub(crate) fn in_namespace(self, settings: &Settings, name: &str) -> Value {
        json!({ "name": name, "namespace": settings.namespace, "labels": self.labels() })
    }
}
