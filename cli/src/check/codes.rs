//! The code of every finding. A code means one thing for ever: what is no longer found keeps its code, and no other thing gets it. `docs/checks.md` has a
//! section for each, which a test holds to this table.

use serde::{Serialize, Serializer};

macro_rules! codes {
    ($($variant:ident $code:literal $title:literal,)*) => {
        /// What a finding is about.
        #[cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "some are found on a cluster alone"))]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) enum Code { $(#[doc = $title] $variant,)* }

        impl Code {
            /// Every code.
            #[cfg(test)]
            pub(super) const ALL: &[Self] = &[$(Self::$variant,)*];

            /// As it is printed.
            pub(crate) const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $code,)* }
            }

            /// What it is about, in a few words.
            #[cfg(test)]
            pub(super) const fn title(self) -> &'static str {
                match self { $(Self::$variant => $title,)* }
            }
        }
    };
}

codes! {
    KubernetesVersion "WEFT-C001" "The server's version of Kubernetes",
    Interfaces "WEFT-C002" "Interfaces that the server must have",
    Rights "WEFT-C003" "What you may do in the cluster",
    OtherMesh "WEFT-C004" "Another mesh beside this one",
    OwnCa "WEFT-C005" "A CA of your own",
    Installed "WEFT-C006" "Whether weft is installed",
    Version "WEFT-C007" "Versions that differ",
    Programs "WEFT-C008" "weft's own programs run",
    Kinds "WEFT-C009" "Kinds of Gateway API and of weft",
    CaCertificate "WEFT-C010" "When the CA, the root and the webhook's certificate end",
    Webhook "WEFT-C011" "The webhook that adds sidecars",
    NamespaceLabel "WEFT-C012" "Labels of namespaces",
    TrustBundle "WEFT-C013" "The trust bundle in each namespace",
    Unmeshed "WEFT-C014" "Pods without a sidecar that should have one",
    Silent "WEFT-C015" "A sidecar that cannot be asked",
    NotReady "WEFT-C016" "A sidecar or a workload that is not ready",
    Clock "WEFT-C020" "Clocks that differ",
    Certificate "WEFT-C021" "A sidecar's certificate",
    Anchor "WEFT-C022" "An anchor that is not the mesh's",
    ControlPlane "WEFT-C023" "A sidecar without its control plane",
    Stale "WEFT-C024" "A sidecar that is behind the control plane",
    Problems "WEFT-C025" "Manifests that are not in force as written",
    Outbound "WEFT-C030" "The redirect of what a pod calls",
    Inbound "WEFT-C031" "The redirect of what calls a pod",
    Path "WEFT-C032" "The way from one pod to another",
    Mtu "WEFT-C033" "Large packets that do not arrive",
    Dns "WEFT-C034" "DNS",
    Conntrack "WEFT-C035" "The kernel's room for connections",
    Room "WEFT-C036" "The sidecar's room for connections",
    HeldUp "WEFT-C037" "Connections that take a second to open",
    NobodyListens "WEFT-C040" "A port on which nobody listens",
    LoopbackOnly "WEFT-C041" "A port that is open on loopback alone",
    Protocol "WEFT-C042" "A port that speaks something else than it is declared to",
    NoEndpoints "WEFT-C043" "A Service without an endpoint that is ready",
    Slow "WEFT-C050" "An endpoint that is slower than the others",
    Denied "WEFT-C051" "Calls that a policy refused",
    Failing "WEFT-C052" "Calls that fail",
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const PAGE: &str = include_str!("../../../docs/checks.md");

    #[test]
    fn every_code_is_one_of_its_own_and_has_a_section_of_the_page() {
        let codes: BTreeSet<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(codes.len(), Code::ALL.len(), "two have one code");
        for code in Code::ALL {
            let heading = format!("\n## {}: {}\n", code.as_str(), code.title());
            assert!(PAGE.contains(&heading), "docs/checks.md lacks the heading {heading:?}");
        }
        for line in PAGE.lines().filter_map(|l| l.strip_prefix("## WEFT-")) {
            let code = format!("WEFT-{}", line.split(':').next().unwrap_or_default());
            assert!(codes.contains(code.as_str()), "docs/checks.md has {code}, which nothing finds");
        }
    }
}
