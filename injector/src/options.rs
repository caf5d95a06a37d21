//! What the injector is told: how to inject, and what is known of the namespaces.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use serde_json::Value;
use weft_core::wellknown::{ANNOTATION_MTLS, ANNOTATION_MTLS_PORTS, CONTROL_PLANE_NAMESPACE, DEFAULT_TRUST_DOMAIN, LABEL_INJECT};
use weft_core::{Namespace, TrustDomain};

use crate::error::{InjectError, excerpt};
use crate::manifest::{Metadata, as_object};
use crate::names::{
    ANNOTATION_ALLOW_NET_ADMIN, ANNOTATION_ALLOW_SHARED_PROCESSES, ANNOTATION_ALLOW_SIDECAR_UID, ANNOTATION_FORBID,
    ANNOTATION_SKIP_INBOUND_PORTS, ANNOTATION_SKIP_OUTBOUND_PORTS, ANNOTATION_SKIP_SUBNETS, POD_OPTIONS,
};

/// How to inject.
#[derive(Debug, Clone)]
pub struct InjectorOptions {
    /// The version to write into the annotation [`crate::ANNOTATION_INJECTED`].
    pub version: String,
    /// The image of the sidecar; it holds the program `weft-sidecar`.
    pub sidecar_image: String,
    /// The image of the init container; it holds the program `weft-redirect` and the packet filter's tools.
    pub redirect_image: String,
    /// When nodes pull these images: `Always`, `IfNotPresent` or `Never`.
    pub image_pull_policy: String,
    /// `HOST:PORT` of the control plane, as a pod reaches it.
    pub control_plane: String,
    /// The trust domain of the mesh.
    pub trust_domain: TrustDomain,
    /// The config map with the trust bundle, which must be in every namespace that is injected.
    pub trust_bundle: String,
    /// Whether the cluster knows native sidecars ([`NativeSidecars`]): init containers that stay. Without them the
    /// app may start before the sidecar is ready, its init containers have no network, and a Job's pod does not end
    /// by itself.
    pub native_sidecar: bool,
    /// Who redirects the pod's traffic.
    pub redirect: Redirect,
    /// Variables of the telemetry of sidecars whose pod and namespace say nothing of it.
    pub telemetry: Vec<(String, String)>,
    /// Namespaces whose pods are never touched, whatever their labels say.
    pub protected: BTreeSet<Namespace>,
}

impl InjectorOptions {
    /// Options for an installation of this version from one image, with the defaults for the rest.
    pub fn new(image: &str, control_plane: &str) -> Self {
        let protected = ["kube-system", "kube-public", "kube-node-lease", CONTROL_PLANE_NAMESPACE];
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            sidecar_image: image.to_owned(),
            redirect_image: image.to_owned(),
            image_pull_policy: "IfNotPresent".to_owned(),
            control_plane: control_plane.to_owned(),
            trust_domain: DEFAULT_TRUST_DOMAIN.parse().expect("the default is a trust domain"),
            trust_bundle: "weft-trust-bundle".to_owned(),
            native_sidecar: true,
            redirect: Redirect::Init,
            telemetry: Vec::new(),
            protected: protected.iter().map(|name| name.parse().expect("constant names are labels")).collect(),
        }
    }
}

/// Who redirects a pod's traffic to its sidecar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Redirect {
    /// An init container, which takes one capability for it.
    #[default]
    Init,
    /// The CNI plugin, so that the pod needs no privilege at all; [`crate::ANNOTATION_REDIRECT`] tells it how.
    Cni,
}

impl FromStr for Redirect {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "init" => Ok(Self::Init),
            "cni" => Ok(Self::Cni),
            _ => Err(format!("{:?} is neither \"init\" nor \"cni\"", excerpt(text))),
        }
    }
}

/// When to use native sidecars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NativeSidecars {
    /// Where the API server's version has them.
    #[default]
    Auto,
    /// Always, for servers that have them without their version saying so.
    Always,
    /// Never.
    Never,
}

impl NativeSidecars {
    /// The first minor version of Kubernetes 1 all of whose nodes have them: a kubelet may be three versions older than the API server,
    /// and has them since 1.29.
    const SINCE: u32 = 32;

    /// Whether to use them with a server of this version, as `/version` has its parts: `1`, `32` or `32+`. A
    /// version that cannot be read has none.
    pub fn suit(self, major: &str, minor: &str) -> bool {
        let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse::<u32>().unwrap_or(0);
        match self {
            Self::Auto => (number(major), number(minor)) >= (1, Self::SINCE),
            Self::Always => true,
            Self::Never => false,
        }
    }
}

impl FromStr for NativeSidecars {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            _ => Err(format!("{:?} is none of \"auto\", \"always\" and \"never\"", excerpt(text))),
        }
    }
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

/// A way round the mesh that a pod's annotation may ask for, and its namespace may forbid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bypass {
    /// Ports at which what comes in is not the sidecar's.
    SkipInboundPorts,
    /// Ports to which the pod connects by itself.
    SkipOutboundPorts,
    /// Subnets to which the pod connects by itself.
    SkipSubnets,
    /// Taking plaintext where strict mTLS is in force.
    Permissive,
}

impl Bypass {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::SkipInboundPorts, Self::SkipOutboundPorts, Self::SkipSubnets, Self::Permissive];

    const fn word(self) -> &'static str {
        match self {
            Self::SkipInboundPorts => "skip-inbound-ports",
            Self::SkipOutboundPorts => "skip-outbound-ports",
            Self::SkipSubnets => "skip-subnets",
            Self::Permissive => "permissive",
        }
    }

    /// The way that `annotation` with this value goes, if it goes one.
    pub(crate) fn asked_by(annotation: &str, value: &str) -> Option<Self> {
        let way = match annotation {
            ANNOTATION_SKIP_INBOUND_PORTS => Self::SkipInboundPorts,
            ANNOTATION_SKIP_OUTBOUND_PORTS => Self::SkipOutboundPorts,
            ANNOTATION_SKIP_SUBNETS => Self::SkipSubnets,
            ANNOTATION_MTLS | ANNOTATION_MTLS_PORTS if value.contains("permissive") => return Some(Self::Permissive),
            _ => return None,
        };
        (!value.trim().is_empty()).then_some(way)
    }

    fn read_list(text: &str) -> Result<BTreeSet<Self>, String> {
        let mut ways = BTreeSet::new();
        for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
            match Self::ALL.into_iter().find(|way| way.word() == word) {
                Some(way) => {
                    ways.insert(way);
                }
                None if word == "all" => ways.extend(Self::ALL),
                None => {
                    let words = Self::ALL.map(Self::word).join(", ");
                    return Err(format!("{:?} is none of {words} and all", excerpt(word)));
                }
            }
        }
        Ok(ways)
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
    /// What its pods may not ask for.
    pub forbidden: BTreeSet<Bypass>,
    /// What its pods have where they say nothing: those of [`POD_OPTIONS`] that it is annotated with.
    pub defaults: BTreeMap<&'static str, String>,
}

impl NamespaceFacts {
    /// A namespace of which no more is said than that its pods are to be injected, as for a manifest that is
    /// injected by hand. It allows nothing that could undo the mesh, and forbids nothing else.
    pub fn selected(name: Namespace) -> Self {
        Self {
            name,
            inject: Some(InjectLabel::Enabled),
            allow_sidecar_uid: false,
            allow_net_admin: false,
            allow_shared_processes: false,
            forbidden: BTreeSet::new(),
            defaults: BTreeMap::new(),
        }
    }

    /// Reads the manifest of a core `v1` `Namespace`, of which the metadata suffices.
    pub fn from_manifest(manifest: &Value) -> Result<Self, InjectError> {
        let metadata = Metadata::parse(as_object(manifest, "the namespace")?)?;
        let name: Namespace = metadata.name()?.unwrap_or_default().parse()?;
        let on = format!("the namespace {name}");
        let inject = InjectLabel::read(&metadata, &on)?;
        let allows = |annotation: &str| Ok::<bool, InjectError>(metadata.annotation(annotation)? == Some("true"));
        let forbid = metadata.annotation(ANNOTATION_FORBID)?.unwrap_or_default();
        // A word that is not known could be one that forbids: nothing is admitted until it is mended.
        let forbidden = Bypass::read_list(forbid).map_err(|why| {
            let value = excerpt(forbid);
            InjectError::Annotation { on: on.clone(), name: ANNOTATION_FORBID, value, why }
        })?;
        let mut defaults = BTreeMap::new();
        for option in POD_OPTIONS {
            if let Some(text) = metadata.annotation(option)? {
                defaults.insert(option, text.to_owned());
            }
        }
        Ok(Self {
            inject,
            allow_sidecar_uid: allows(ANNOTATION_ALLOW_SIDECAR_UID)?,
            allow_net_admin: allows(ANNOTATION_ALLOW_NET_ADMIN)?,
            allow_shared_processes: allows(ANNOTATION_ALLOW_SHARED_PROCESSES)?,
            forbidden,
            defaults,
            name,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_nodes_of_a_server_have_native_sidecars_from_1_32_on() {
        for (major, minor, has) in [
            ("1", "32", true),
            ("1", "33+", true),
            ("1", "34-gke", true),
            ("2", "0", true),
            ("1", "31", false),
            ("1", "20+", false),
            ("", "", false),
            ("one", "many", false),
        ] {
            assert_eq!(NativeSidecars::Auto.suit(major, minor), has, "{major}.{minor}");
            assert!(NativeSidecars::Always.suit(major, minor));
            assert!(!NativeSidecars::Never.suit(major, minor));
        }
    }

    #[test]
    fn what_is_forbidden_reads_by_its_words() {
        assert_eq!(Bypass::read_list(""), Ok(BTreeSet::new()));
        assert_eq!(Bypass::read_list("permissive, skip-subnets"), Ok(BTreeSet::from([Bypass::Permissive, Bypass::SkipSubnets])));
        assert_eq!(Bypass::read_list("all"), Ok(BTreeSet::from(Bypass::ALL)));
        assert!(Bypass::read_list("skip-ports").expect_err("no word").contains("skip-inbound-ports"));
    }

    #[test]
    fn an_annotation_that_skips_nothing_goes_round_nothing() {
        assert_eq!(Bypass::asked_by(ANNOTATION_SKIP_SUBNETS, "10.0.0.0/8"), Some(Bypass::SkipSubnets));
        assert_eq!(Bypass::asked_by(ANNOTATION_SKIP_SUBNETS, " "), None);
        assert_eq!(Bypass::asked_by(ANNOTATION_MTLS_PORTS, "80=strict,81=permissive"), Some(Bypass::Permissive));
        assert_eq!(Bypass::asked_by(ANNOTATION_MTLS, "strict"), None);
    }
}
