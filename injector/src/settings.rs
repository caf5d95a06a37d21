//! What a pod's annotations ask of its sidecar, parsed once.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::error::{InjectError, excerpt};
use crate::manifest::Metadata;
use crate::names::{
    ANNOTATION_CPU_LIMIT, ANNOTATION_CPU_REQUEST, ANNOTATION_MEMORY_LIMIT, ANNOTATION_MEMORY_REQUEST,
    ANNOTATION_SKIP_INBOUND_PORTS, ANNOTATION_SKIP_OUTBOUND_PORTS, ANNOTATION_SKIP_SUBNETS,
};
use crate::quantity::Quantity;

const DEFAULT_CPU_REQUEST: &str = "10m";
const DEFAULT_MEMORY_REQUEST: &str = "16Mi";
const DEFAULT_MEMORY_LIMIT: &str = "128Mi";

/// What one pod asks of its sidecar.
pub(crate) struct Settings {
    pub(crate) cpu: Share,
    pub(crate) memory: Share,
    pub(crate) skips: Skips,
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
}

impl Settings {
    pub(crate) fn parse(metadata: &Metadata<'_>) -> Result<Self, InjectError> {
        Ok(Self {
            cpu: Share::parse(metadata, ANNOTATION_CPU_REQUEST, ANNOTATION_CPU_LIMIT, DEFAULT_CPU_REQUEST, None)?,
            memory: Share::parse(
                metadata,
                ANNOTATION_MEMORY_REQUEST,
                ANNOTATION_MEMORY_LIMIT,
                DEFAULT_MEMORY_REQUEST,
                Some(DEFAULT_MEMORY_LIMIT),
            )?,
            skips: Skips {
                inbound_ports: list(metadata, ANNOTATION_SKIP_INBOUND_PORTS, port)?,
                outbound_ports: list(metadata, ANNOTATION_SKIP_OUTBOUND_PORTS, port)?,
                subnets: list(metadata, ANNOTATION_SKIP_SUBNETS, subnet)?,
            },
        })
    }
}

impl Share {
    /// A default yields to what is asked for: it is never the reason why a request exceeds a limit, which the
    /// API server would refuse.
    fn parse(
        metadata: &Metadata<'_>,
        request_name: &'static str,
        limit_name: &'static str,
        default_request: &str,
        default_limit: Option<&str>,
    ) -> Result<Self, InjectError> {
        let constant = |text: &str| Quantity::parse(text).expect("the defaults are quantities");
        let asked_request = quantity(metadata, request_name)?;
        let asked_limit = quantity(metadata, limit_name)?;
        if let Some(limit) = &asked_limit
            && limit.is_zero()
        {
            return Err(annotation(limit_name, limit.as_str(), "a limit should be above zero".to_owned()));
        }
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

fn quantity(metadata: &Metadata<'_>, name: &'static str) -> Result<Option<Quantity>, InjectError> {
    let Some(text) = metadata.annotation(name)? else {
        return Ok(None);
    };
    Quantity::parse(text.trim()).map(Some).map_err(|why| annotation(name, text, why.to_owned()))
}

/// A list joined by commas. An annotation that is absent or blank is an empty list; an entry that is blank is a mistake.
fn list<T: Ord>(
    metadata: &Metadata<'_>,
    name: &'static str,
    entry: impl Fn(&str) -> Result<T, String>,
) -> Result<BTreeSet<T>, InjectError> {
    let text = metadata.annotation(name)?.unwrap_or_default();
    if text.trim().is_empty() {
        return Ok(BTreeSet::new());
    }
    text.split(',').map(|part| entry(part.trim()).map_err(|why| annotation(name, text, why))).collect()
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

fn annotation(name: &'static str, value: &str, why: String) -> InjectError {
    InjectError::Annotation { name, value: excerpt(value), why }
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

    proptest! {
        #[test]
        fn a_plain_subnet_stays_as_it_is(text in "([0-9a-f:.]{1,20})(/[0-9]{1,3})?") {
            if let Ok(plain) = subnet(&text) {
                prop_assert_eq!(subnet(&plain), Ok(plain));
            }
        }
    }
}
