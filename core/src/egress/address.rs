//! Addresses that a name must not lead to.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Why the address of a name is not dialled.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Forbidden {
    /// The pod itself, by loopback or by the unspecified address.
    Loopback,
    /// Link-local: the metadata service of many clouds is there.
    LinkLocal,
    /// For many receivers, or for none.
    NoHost,
    /// One of the pod's own addresses.
    Own,
    /// Inside of the mesh.
    Mesh,
}

impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loopback => "a loopback address",
            Self::LinkLocal => "a link-local address",
            Self::NoHost => "no address of a host",
            Self::Own => "an address of the pod itself",
            Self::Mesh => "an address inside of the mesh",
        })
    }
}

/// Whether a name that somebody else controls may lead to an address: a name that leads into the pod or into the mesh would open what is closed
/// there (DNS rebinding). `own` are the pod's addresses and `mesh` the ranges of the mesh; none: they are not known, and everything is inside.
///
/// IPv4 addresses that are written into IPv6 ones (mapped, compatible, 6to4, and NAT64 by its well-known prefix, RFC 6052) are those IPv4 addresses.
pub fn forbidden(ip: IpAddr, own: &[IpAddr], mesh: Option<&[IpNet]>) -> Option<Forbidden> {
    let by_kind = match ip.to_canonical() {
        IpAddr::V4(v4) => of_v4(v4),
        IpAddr::V6(v6) => of_v6(v6).or_else(|| embedded(v6).and_then(of_v4)),
    };
    let also = match ip.to_canonical() {
        IpAddr::V6(v6) => embedded(v6).map(IpAddr::V4),
        IpAddr::V4(_) => None,
    };
    let each = || [Some(ip.to_canonical()), also].into_iter().flatten();
    by_kind
        .or_else(|| each().any(|ip| own.iter().any(|o| o.to_canonical() == ip)).then_some(Forbidden::Own))
        .or_else(|| each().any(|ip| mesh.is_none_or(|ranges| ranges.iter().any(|r| r.contains(&ip)))).then_some(Forbidden::Mesh))
}

fn of_v4(ip: Ipv4Addr) -> Option<Forbidden> {
    if ip.is_loopback() || ip.octets()[0] == 0 {
        Some(Forbidden::Loopback)
    } else if ip.is_link_local() {
        Some(Forbidden::LinkLocal)
    } else if ip.is_multicast() || ip.octets()[0] >= 240 {
        Some(Forbidden::NoHost)
    } else {
        None
    }
}

fn of_v6(ip: Ipv6Addr) -> Option<Forbidden> {
    if ip.is_loopback() || ip.is_unspecified() {
        Some(Forbidden::Loopback)
    } else if ip.is_unicast_link_local() || ip == AWS_METADATA {
        Some(Forbidden::LinkLocal)
    } else if ip.is_multicast() {
        Some(Forbidden::NoHost)
    } else {
        None
    }
}

/// The metadata service of one cloud over IPv6, which is not link-local.
const AWS_METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// The IPv4 address that some network takes an IPv6 address for.
fn embedded(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = ip.segments();
    let at = |high: u16, low: u16| Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    match s {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0, 0, 0, 0, 0, 0, high, low] => at(high, low),
        [0x2002, high, low, ..] => at(high, low),
        _ => None,
    }
}
