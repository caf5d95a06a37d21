//! The kinds of traffic management: Gateway API's routes and grants, and traffic policies.
//!
//! Routes are read as leniently as Gateway API asks: what is spelt as no version knows it is looked at by the model, which refuses a route with a
//! condition, and not the file that it stands in. A `TrafficPolicy` is ours, and read strictly.

mod policy;
mod route;

use std::time::Duration;

use serde::Deserialize;
use weft_core::Namespace;
use weft_core::service::ObjectRef;

pub use policy::{BackendTrafficPolicySpec, PolicyObject, TargetRef, TrafficPolicySpec, Wrong, is_token, session};
pub use route::{
    BackendRef, Filter, Fraction, GrpcMatch, HeaderChange, HeaderField, HttpMatch, Mirror, NoMatch, PathChange, PathMatch,
    Redirect, Retry, Rewrite, RouteObject, RouteSpec, Rule, Rules, Timeouts, ValueMatch,
};

/// Gateway API's group.
pub const GATEWAY: &str = "gateway.networking.k8s.io";

/// What a route or policy is attached to, as its author spells it. Equal references are one.
#[derive(Deserialize, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[serde(rename_all = "camelCase")]
pub struct ParentRef {
    /// Left out: Gateway API's own.
    pub group: Option<String>,
    /// Left out: `Gateway`.
    pub kind: Option<String>,
    /// Left out: the route's own.
    pub namespace: Option<String>,
    pub name: String,
    /// Of a Service: the name of a port.
    pub section_name: Option<String>,
    /// Left out: every port.
    pub port: Option<u16>,
}

impl ParentRef {
    /// The Service that it names, where it names one; another kind of parent is another controller's affair.
    pub fn service(&self, own: &Namespace) -> Option<ObjectRef> {
        if (self.group.as_deref(), self.kind.as_deref()) != (Some(""), Some("Service")) {
            return None;
        }
        let namespace = self.namespace.as_ref().map_or(Some(own.clone()), |n| n.parse().ok())?;
        Some(ObjectRef { namespace, name: self.name.parse().ok()? })
    }
}

/// `ReferenceGrant`: who may refer into its namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReferenceGrantObject {
    pub id: ObjectRef,
    pub spec: ReferenceGrantSpec,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct ReferenceGrantSpec {
    pub from: Vec<GrantFrom>,
    pub to: Vec<GrantTo>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct GrantFrom {
    pub group: String,
    pub kind: String,
    pub namespace: String,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct GrantTo {
    pub group: String,
    pub kind: String,
    /// Left out: every one.
    pub name: Option<String>,
}

impl ReferenceGrantObject {
    /// Whether a route of this kind and namespace may refer to a Service of this name in the grant's namespace.
    pub fn lets(&self, kind: &str, from: &Namespace, service: &str) -> bool {
        let from_ok = |f: &GrantFrom| f.group == GATEWAY && f.kind == kind && f.namespace == from.as_str();
        let to_ok = |t: &GrantTo| {
            t.group.is_empty() && t.kind == "Service" && t.name.as_deref().is_none_or(|n| n.is_empty() || n == service)
        };
        self.spec.from.iter().any(from_ok) && self.spec.to.iter().any(to_ok)
    }
}

/// A length of time as Gateway API writes it (GEP-2257): up to four numbers of at most five digits, each with its unit, `h`, `m`, `s` or `ms`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Time(pub Duration);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        parse_duration(&text)
            .map(Self)
            .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no duration: write 10s, 500ms or 1h30m")))
    }
}

/// Reads a duration of GEP-2257.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (mut rest, mut total, mut parts) = (text, Duration::ZERO, 0);
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        parts += 1;
        if !(1..=5).contains(&digits) || parts > 4 {
            return None;
        }
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let (unit, millis) =
            [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)].into_iter().find(|(u, _)| rest.starts_with(u))?;
        rest = &rest[unit.len()..];
        total += Duration::from_millis(number * millis);
    }
    (parts > 0).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_those_of_the_standard() {
        for (text, millis) in
            [("0s", 0), ("10s", 10_000), ("1h30m", 5_400_000), ("1m1ms", 60_001), ("99999h59m59s999ms", 359_999_999_999_u64)]
        {
            let expected = if text.starts_with("99999") { 99_999 * 3_600_000 + 59 * 60_000 + 59_999 } else { millis };
            assert_eq!(parse_duration(text), Some(Duration::from_millis(expected)), "{text}");
        }
        for text in ["", "10", "s", "-1s", "1.5s", "1us", "123456s", "1s1s1s1s1s", "1 s", "1S"] {
            assert_eq!(parse_duration(text), None, "{text:?}");
        }
    }
}
