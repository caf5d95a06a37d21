//! Versions of Kubernetes, as far as they matter here.

use std::fmt;
use std::str::FromStr;

/// A version of Kubernetes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct KubeVersion {
    major: u32,
    minor: u32,
}

impl KubeVersion {
    /// What manifests are printed for, unless another version is asked for: the oldest that still gets fixes counts as current.
    pub(crate) const CURRENT: Self = Self::new(1, 34);
    /// The oldest that weft runs on.
    pub(crate) const OLDEST: Self = Self::new(1, 20);
    /// The first with `policy/v1`.
    pub(crate) const POLICY_V1: Self = Self::new(1, 21);
    /// The first that evaluates rules in a CRD's schema. Earlier ones do not know the field, or refuse it.
    pub(crate) const CRD_RULES: Self = Self::new(1, 25);
    /// The first with `matchConditions` of webhooks switched on.
    pub(crate) const MATCH_CONDITIONS: Self = Self::new(1, 28);
    /// The first with native sidecars switched on.
    pub(crate) const NATIVE_SIDECARS: Self = Self::new(1, 32);

    const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }
}

impl FromStr for KubeVersion {
    type Err = String;

    /// Reads `1.31`, and also what servers say of themselves: `v1.31.2-gke.7` or, from two fields, `1.31+`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no version of Kubernetes: write 1.31");
        let (major, rest) = text.strip_prefix('v').unwrap_or(text).split_once('.').ok_or_else(wrong)?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).map_or(rest, |end| &rest[..end]);
        match (major.parse(), digits.parse()) {
            (Ok(major), Ok(minor)) => Ok(Self::new(major, minor)),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for KubeVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_people_and_servers_write_them() {
        for text in ["1.34", "v1.34", "v1.34.2-gke.7", "1.34+"] {
            assert_eq!(text.parse::<KubeVersion>(), Ok(KubeVersion::CURRENT), "{text}");
        }
        for bad in ["", "1", "1.", "one.31", "v", "31"] {
            assert!(bad.parse::<KubeVersion>().is_err(), "{bad:?} was accepted");
        }
        assert!(KubeVersion::new(1, 9) < KubeVersion::OLDEST && KubeVersion::OLDEST < KubeVersion::POLICY_V1);
        assert_eq!(KubeVersion::OLDEST.to_string(), "1.20");
    }
}
