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
/// Where some network takes an IPv6 address for an IPv4 one, both are looked at: see [`Embedded::of`].
pub fn forbidden(ip: IpAddr, own: &[IpAddr], mesh: Option<&[IpNet]>) -> Option<Forbidden> {
    let ip = ip.to_canonical();
    let embedded = match ip {
        IpAddr::V4(_) => Embedded::default(),
        IpAddr::V6(v6) => Embedded::of(v6),
    };
    let each = || std::iter::once(ip).chain(embedded.addresses().map(IpAddr::V4));
    let by_kind = |ip| match ip {
        IpAddr::V4(v4) => of_v4(v4),
        IpAddr::V6(v6) => of_v6(v6),
    };
    // Loopback and unspecified of IPv6 lie within what may be an embedded address: the address itself comes first.
    each()
        .find_map(by_kind)
        .or_else(|| each().any(|ip| own.iter().any(|o| o.to_canonical() == ip)).then_some(Forbidden::Own))
        .or_else(|| each().any(|ip| mesh.is_none_or(|ranges| ranges.iter().any(|r| r.contains(&ip)))).then_some(Forbidden::Mesh))
}

fn of_v4(ip: Ipv4Addr) -> Option<Forbidden> {
    if ip.is_loopback() || ip.octets()[0] == 0 {
        Some(Forbidden::Loopback)
    } else if ip.is_link_local() || METADATA_V4.contains(&ip) {
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
    } else if ip.is_unicast_link_local() || METADATA_V6.contains(&ip) {
        Some(Forbidden::LinkLocal)
    } else if ip.is_multicast() {
        Some(Forbidden::NoHost)
    } else {
        None
    }
}

/// Metadata services of clouds that are not link-local: Alibaba's, and Azure's host.
const METADATA_V4: [Ipv4Addr; 2] = [Ipv4Addr::new(100, 100, 100, 200), Ipv4Addr::new(168, 63, 129, 16)];
/// The same over IPv6: of AWS, and of Google.
const METADATA_V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

/// The IPv4 addresses that some network takes an IPv6 address for; at most four.
#[derive(Default)]
struct Embedded([Option<Ipv4Addr>; 4]);

impl Embedded {
    /// Reads an address that is not IPv4-mapped (`::ffff:0:0/96`, RFC 4291, section 2.5.5.2: that is the IPv4 address). By prefix:
    ///
    /// - `::/96`, IPv4-compatible (RFC 4291, section 2.5.5.1), and `::ffff:0:0:0/96`, IPv4-translated (RFC 2765): the last 32 bits;
    /// - `64:ff9b::/96`, NAT64 (RFC 6052, section 2.1): the last 32 bits;
    /// - `64:ff9b:1::/48`, NAT64 within one network (RFC 8215): which length of prefix that has is not known, so that each that fits is read
    ///   (48, 56, 64 and 96 bits, with bits 64 to 71 left out; RFC 6052, section 2.2);
    /// - `2002::/16`, 6to4 (RFC 3056): bits 16 to 47;
    /// - `2001::/32`, Teredo (RFC 4380, section 4): the client, inverted, and the server;
    /// - an interface identifier `[02]00:5efe:…`, ISATAP (RFC 5214, section 6.1): the last 32 bits.
    fn of(ip: Ipv6Addr) -> Self {
        let (bits, o) = (ip.to_bits(), ip.octets());
        let last = Ipv4Addr::from_bits(bits as u32);
        let mut found = Self::default();
        match ip.segments() {
            [0, 0, 0, 0, 0 | 0xffff, 0, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => found.0[0] = Some(last),
            [0x64, 0xff9b, 1, ..] => {
                found.0 = [
                    Ipv4Addr::new(o[6], o[7], o[9], o[10]),
                    Ipv4Addr::new(o[7], o[9], o[10], o[11]),
                    Ipv4Addr::new(o[9], o[10], o[11], o[12]),
                    last,
                ]
                .map(Some);
                // Where the rest is zero, a length that does not fit reads 0.0.0.0 or what begins so: no host, and no harm.
                found.0.iter_mut().for_each(|v4| *v4 = v4.filter(|v4| v4.octets()[0] != 0));
            }
            [0x2002, ..] => found.0[0] = Some(Ipv4Addr::from_bits((bits >> 80) as u32)),
            [0x2001, 0, ..] => found.0[..2]
                .copy_from_slice(&[Some(Ipv4Addr::from_bits(!(bits as u32))), Some(Ipv4Addr::from_bits((bits >> 64) as u32))]),
            [_, _, _, _, 0 | 0x200, 0x5efe, ..] => found.0[0] = Some(last),
            _ => {}
        }
        found
    }

    fn addresses(&self) -> impl Iterator<Item = Ipv4Addr> {
        self.0.iter().copied().flatten()
    }
}
