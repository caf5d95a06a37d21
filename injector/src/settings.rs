//! What a pod's annotations, and its namespace's, ask of its sidecar, parsed once.

use std::collections::BTreeSet;
use std::net::IpAddr;

use weft_core::Namespace;
use weft_core::wellknown::{ANNOTATION_MTLS, ANNOTATION_MTLS_PORTS, PORT_DNS};

use crate::error::{InjectError, excerpt};
use crate::manifest::Metadata;
use crate::names::{
    ANNOTATION_CONNECT_TIMEOUT, ANNOTATION_CPU_LIMIT, ANNOTATION_CPU_REQUEST, ANNOTATION_DNS_CAPTURE, ANNOTATION_DRAIN_GRACE,
    ANNOTATION_DRAIN_TIMEOUT, ANNOTATION_IDLE_TIMEOUT, ANNOTATION_LOG, ANNOTATION_MEMORY_LIMIT, ANNOTATION_MEMORY_REQUEST,
    ANNOTATION_REWRITE_PROBES, ANNOTATION_SKIP_INBOUND_PORTS, ANNOTATION_SKIP_OUTBOUND_PORTS, ANNOTATION_SKIP_SUBNETS,
    ANNOTATION_TELEMETRY, ANNOTATION_WORKERS, ANNOTATION_WORKLOAD_API,
};
use crate::options::{Bypass, NamespaceFacts};
use crate::quantity::Quantity;
use crate::telemetry;

const DEFAULT_CPU_REQUEST: &str = "10m";
const DEFAULT_MEMORY_REQUEST: &str = "16Mi";
const DEFAULT_MEMORY_LIMIT: &str = "128Mi";

/// Says what is wrong with a text.
type Check = fn(&str) -> Result<(), String>;

/// Options that the sidecar takes as they are, once their form is checked: it would not start with a bad one.
const PASSED_ON: [(&str, &str, Check); 6] = [
    (ANNOTATION_LOG, "WEFT_LOG", log_filter),
    (ANNOTATION_WORKERS, "WEFT_WORKERS", workers),
    (ANNOTATION_CONNECT_TIMEOUT, "WEFT_CONNECT_TIMEOUT", duration),
    (ANNOTATION_IDLE_TIMEOUT, "WEFT_IDLE_TIMEOUT", duration),
    (ANNOTATION_DRAIN_GRACE, "WEFT_DRAIN_GRACE", duration),
    (ANNOTATION_DRAIN_TIMEOUT, "WEFT_DRAIN_TIMEOUT", duration),
];

/// What one pod asks of its sidecar.
pub(crate) struct Settings {
    pub(crate) cpu: Share,
    pub(crate) memory: Share,
    pub(crate) skips: Skips,
    /// Whether the containers are offered the Workload API.
    pub(crate) workload_api: bool,
    /// The sidecar's variables for what it is told directly.
    pub(crate) environment: Vec<(&'static str, String)>,
    /// Those of its telemetry; none where nobody says so.
    pub(crate) telemetry: Option<Vec<(String, String)>>,
}

/// How much of a resource the sidecar asks for, and how much it may use at most.
pub(crate) struct Share {
    pub(crate) request: Quantity,
    pub(crate) limit: Option<Quantity>,
}

/// What bypasses the sidecar.
pub(crate) struct Skips {
    pub(crate) inbound_ports: BTreeSet<u16>,
    pub(crate) outbound_ports: BTreeSet<u16>,
    pub(crate) subnets: BTreeSet<String>,
    /// What is asked of DNS is caught as well.
    pub(crate) dns_capture: bool,
}

/// Where options are looked up: among the pod's annotations, then among its namespace's.
pub(crate) struct Asked<'a> {
    pub(crate) pod: &'a Metadata<'a>,
    pub(crate) namespace: &'a NamespaceFacts,
}

/// An option that is set, and whose annotation it is: the pod's, or the namespace's of this name.
struct Said<'a> {
    name: &'static str,
    text: &'a str,
    by: Option<&'a Namespace>,
}

impl Said<'_> {
    fn wrong(&self, why: impl Into<String>) -> InjectError {
        let on = self.by.map_or_else(|| "the pod".to_owned(), |namespace| format!("the namespace {namespace}"));
        InjectError::Annotation { on, name: self.name, value: excerpt(self.text), why: why.into() }
    }

    /// The same without the value, which may hold a secret.
    fn wrong_secretly(&self, why: String) -> InjectError {
        Said { text: "…", name: self.name, by: self.by }.wrong(why)
    }
}

impl<'a> Asked<'a> {
    /// Names the service by the label that Kubernetes recommends, or by `app`.
    pub(crate) fn name_service(&self, variables: &mut Vec<(String, String)>) -> Result<(), InjectError> {
        if variables.is_empty() || variables.iter().any(|(name, _)| name == telemetry::SERVICE_NAME) {
            return Ok(());
        }
        let label = self.pod.label("app.kubernetes.io/name")?;
        if let Some(name) = label.map_or_else(|| self.pod.label("app"), |name| Ok(Some(name)))? {
            variables.push((telemetry::SERVICE_NAME.to_owned(), name.to_owned()));
        }
        Ok(())
    }

    fn option(&self, name: &'static str) -> Result<Option<Said<'a>>, InjectError> {
        if let Some(text) = self.pod.annotation(name)? {
            self.may_ask(name, text)?;
            return Ok(Some(Said { name, text, by: None }));
        }
        let inherited = self.namespace.defaults.get(name);
        Ok(inherited.map(|text| Said { name, text, by: Some(&self.namespace.name) }))
    }

    fn may_ask(&self, name: &'static str, text: &str) -> Result<(), InjectError> {
        match Bypass::asked_by(name, text) {
            Some(way) if self.namespace.forbidden.contains(&way) => {
                Err(InjectError::Forbidden { name, namespace: self.namespace.name.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Refuses what the namespace forbids among the annotations that the control plane reads.
    pub(crate) fn check_mtls(&self) -> Result<(), InjectError> {
        for name in [ANNOTATION_MTLS, ANNOTATION_MTLS_PORTS] {
            self.may_ask(name, self.pod.annotation(name)?.unwrap_or_default())?;
        }
        Ok(())
    }

    /// Whether what the pod asks of DNS goes to the sidecar.
    fn captures_dns(&self) -> Result<bool, InjectError> {
        match self.option(ANNOTATION_DNS_CAPTURE)? {
            None => Ok(false),
            Some(said) => match said.text.trim() {
                "enabled" => Ok(true),
                "disabled" => Ok(false),
                _ => Err(said.wrong("it should read \"enabled\" or \"disabled\"")),
            },
        }
    }

    /// Whether the probes are to be rewritten.
    pub(crate) fn rewrites_probes(&self) -> Result<bool, InjectError> {
        match self.option(ANNOTATION_REWRITE_PROBES)? {
            None => Ok(true),
            Some(said) => match said.text.trim() {
                "true" => Ok(true),
                "false" => Ok(false),
                _ => Err(said.wrong("it should read \"true\" or \"false\"")),
            },
        }
    }
}

/// An option that reads `enabled` or `disabled`; it is disabled where nobody says so.
fn enabled(asked: &Asked<'_>, name: &'static str) -> Result<bool, InjectError> {
    match asked.option(name)? {
        None => Ok(false),
        Some(said) => match said.text.trim() {
            "enabled" => Ok(true),
            "disabled" => Ok(false),
            _ => Err(said.wrong("it should read \"enabled\" or \"disabled\"")),
        },
    }
}

impl Settings {
    pub(crate) fn parse(asked: &Asked<'_>) -> Result<Self, InjectError> {
        let mut environment = Vec::new();
        for (name, variable, check) in PASSED_ON {
            if let Some(said) = asked.option(name)? {
                let text = said.text.trim();
                check(text).map_err(|why| said.wrong(why))?;
                environment.push((variable, text.to_owned()));
            }
        }
        let dns_capture = asked.captures_dns()?;
        if dns_capture {
            environment.push(("WEFT_DNS_PORT", PORT_DNS.to_string()));
        }
        Ok(Self {
            cpu: Share::parse(asked, ANNOTATION_CPU_REQUEST, ANNOTATION_CPU_LIMIT, DEFAULT_CPU_REQUEST, None)?,
            memory: Share::parse(
                asked,
                ANNOTATION_MEMORY_REQUEST,
                ANNOTATION_MEMORY_LIMIT,
                DEFAULT_MEMORY_REQUEST,
                Some(DEFAULT_MEMORY_LIMIT),
            )?,
            workload_api: enabled(asked, ANNOTATION_WORKLOAD_API)?,
            skips: Skips {
                inbound_ports: list(asked, ANNOTATION_SKIP_INBOUND_PORTS, port)?,
                outbound_ports: list(asked, ANNOTATION_SKIP_OUTBOUND_PORTS, port)?,
                subnets: list(asked, ANNOTATION_SKIP_SUBNETS, subnet)?,
                dns_capture,
            },
            environment,
            telemetry: telemetry_of(asked)?,
        })
    }
}

/// The variables of the sidecar's telemetry. The service is named by the pod's label where they do not name it.
fn telemetry_of(asked: &Asked<'_>) -> Result<Option<Vec<(String, String)>>, InjectError> {
    let Some(said) = asked.option(ANNOTATION_TELEMETRY)? else { return Ok(None) };
    let mut variables = telemetry::variables(said.text).map_err(|why| said.wrong_secretly(why))?;
    asked.name_service(&mut variables)?;
    Ok(Some(variables))
}

impl Share {
    /// A default yields to what is asked for: it is never the reason why a request exceeds a limit, which the
    /// API server would refuse.
    fn parse(
        asked: &Asked<'_>,
        request_name: &'static str,
        limit_name: &'static str,
        default_request: &str,
        default_limit: Option<&str>,
    ) -> Result<Self, InjectError> {
        let constant = |text: &str| Quantity::parse(text).expect("the defaults are quantities");
        let asked_request = quantity(asked, request_name, |_| Ok(()))?;
        let asked_limit =
            quantity(asked, limit_name, |limit| if limit.is_zero() { Err("a limit should be above zero") } else { Ok(()) })?;
        let request_is_asked = asked_request.is_some();
        let request = asked_request.unwrap_or_else(|| constant(default_request));
        match asked_limit {
            Some(limit) if request.exceeds(&limit) && request_is_asked => Err(InjectError::RequestAboveLimit {
                request: request_name,
                requested: request.as_str().to_owned(),
                limit: limit_name,
                limited: limit.as_str().to_owned(),
            }),
            Some(limit) if request.exceeds(&limit) => Ok(Self { request: limit.clone(), limit: Some(limit) }),
            Some(limit) => Ok(Self { request, limit: Some(limit) }),
            None => {
                let limit =
                    default_limit.map(constant).map(|limit| if request.exceeds(&limit) { request.clone() } else { limit });
                Ok(Self { request, limit })
            }
        }
    }
}

fn quantity(
    asked: &Asked<'_>,
    name: &'static str,
    fits: impl Fn(&Quantity) -> Result<(), &'static str>,
) -> Result<Option<Quantity>, InjectError> {
    let Some(said) = asked.option(name)? else {
        return Ok(None);
    };
    let read = Quantity::parse(said.text.trim()).and_then(|quantity| fits(&quantity).map(|()| quantity));
    read.map(Some).map_err(|why| said.wrong(why))
}

/// A list joined by commas. An annotation that is absent or blank is an empty list; an entry that is blank is a mistake.
fn list<T: Ord>(
    asked: &Asked<'_>,
    name: &'static str,
    entry: impl Fn(&str) -> Result<T, String>,
) -> Result<BTreeSet<T>, InjectError> {
    let said = match asked.option(name)? {
        Some(said) if !said.text.trim().is_empty() => said,
        _ => return Ok(BTreeSet::new()),
    };
    said.text.split(',').map(|part| entry(part.trim()).map_err(|why| said.wrong(why))).collect()
}

/// As the sidecar reads its durations.
fn duration(text: &str) -> Result<(), String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let known = ["ms", "s", "m", "h"].contains(&&text[digits.len()..]);
    let number = digits.bytes().all(|byte| byte.is_ascii_digit()) && digits.parse::<u32>().is_ok();
    if known && number { Ok(()) } else { Err("write 250ms, 2s, 5m or 1h".to_owned()) }
}

fn workers(text: &str) -> Result<(), String> {
    const MOST: u16 = 256;
    match text.parse::<u16>() {
        Ok(count) if count <= MOST && text.bytes().all(|byte| byte.is_ascii_digit()) => Ok(()),
        _ => Err(format!("write a number from 0 to {MOST}")),
    }
}

fn log_filter(text: &str) -> Result<(), String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let target = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_:".contains(&b));
    let known = text.split(',').all(|part| match part.split_once('=') {
        Some((name, level)) => target(name) && LEVELS.contains(&level),
        None => LEVELS.contains(&part),
    });
    if known { Ok(()) } else { Err(format!("write a level ({}), or TARGET=LEVEL, joined by commas", LEVELS.join(", "))) }
}

fn port(text: &str) -> Result<u16, String> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(port) if digits && port > 0 => Ok(port),
        _ => Err(format!("{:?} is no port; list numbers from 1 to {}, joined by commas", excerpt(text), u16::MAX)),
    }
}

/// A subnet in its plain form; a bare address stands for itself alone.
fn subnet(text: &str) -> Result<String, String> {
    let wrong = || format!("{:?} is no subnet; list them as 10.0.0.0/8 or fd00::/8, joined by commas", excerpt(text));
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let length = match length {
        None => longest,
        Some(digits) if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse::<u8>().ok().filter(|length| *length <= longest).ok_or_else(wrong)?
        }
        Some(_) => return Err(wrong()),
    };
    let network = network_of(address, length);
    if network != address {
        return Err(format!("{:?} has bits beyond its prefix; write {network}/{length}", excerpt(text)));
    }
    Ok(format!("{network}/{length}"))
}

/// The address with all but its first `length` bits cleared.
fn network_of(address: IpAddr, length: u8) -> IpAddr {
    let length = u32::from(length);
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ports_are_numbers_from_one() {
        assert_eq!(port("1"), Ok(1));
        assert_eq!(port("65535"), Ok(u16::MAX));
        for bad in ["", "0", "65536", "+80", "-1", "80-90", "http", "8 0", "٣"] {
            assert!(port(bad).is_err(), "{bad} was accepted");
        }
    }

    #[test]
    fn subnets_take_their_plain_form() {
        for (text, plain) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("fd00::/8", "fd00::/8"),
            ("::/0", "::/0"),
            ("FD00:0::1", "fd00::1/128"),
        ] {
            assert_eq!(subnet(text).as_deref(), Ok(plain));
        }
        for bad in ["", "10.0.0/8", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/8/8", "fd00::/129", "example.com"] {
            assert!(subnet(bad).is_err(), "{bad} was accepted");
        }
        let error = subnet("10.1.2.3/8").expect_err("bits beyond the prefix");
        assert!(error.ends_with("write 10.0.0.0/8"), "{error}");
    }

    #[test]
    fn what_is_passed_on_is_what_the_sidecar_can_read() {
        let cases: [(Check, &[&str], &[&str]); 3] = [
            (duration, &["0s", "250ms", "5m", "1h"], &["", "5", "s", "1.5s", "5d", "5 s", "-1s", "99999999999s"]),
            (workers, &["0", "8", "256"], &["", "-1", "+1", "257", "auto"]),
            (log_filter, &["info", "info,weft_sidecar=debug", "h2::proto=off"], &["", "loud", "a=b=c", "info,", "=info", "$(X)"]),
        ];
        for (check, good, bad) in cases {
            for text in good {
                assert_eq!(check(text), Ok(()), "{text}");
            }
            for text in bad {
                assert!(check(text).is_err(), "{text} was accepted");
            }
        }
    }

    proptest! {
        #[test]
        fn a_plain_subnet_stays_as_it_is(text in "([0-9a-f:.]{1,20})(/[0-9]{1,3})?") {
            if let Ok(plain) = subnet(&text) {
                prop_assert_eq!(subnet(&plain), Ok(plain));
            }
        }
    }
}
