//! What is caught and what is let by, as a value. Pure: nothing here starts a process or reads a file.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use weft_core::wellknown::{PORT_ADMIN, PORT_INBOUND, PORT_OUTBOUND, SIDECAR_UID};

pub(crate) mod iptables;
pub(crate) mod nft;

/// What the user asks of the redirect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectConfig {
    /// Where connections that come in from other pods are redirected to.
    pub inbound_port: u16,
    /// Where connections that the pod opens are redirected to.
    pub outbound_port: u16,
    /// How the sidecar's own connections are told from the application's; at least one way.
    pub exempt: Vec<Exempt>,
    /// Ports of this pod that reach the application directly.
    pub skip_inbound_ports: Vec<PortRange>,
    /// Ports of others that the pod reaches directly.
    pub skip_outbound_ports: Vec<PortRange>,
    /// Destinations that the pod reaches directly.
    pub skip_subnets: Vec<IpNet>,
    /// Users of this pod, besides the sidecar's, whose connections are not caught.
    pub skip_uids: Vec<u32>,
    /// Where what the pod asks of DNS is redirected to, over UDP and TCP; none: it is not caught, or as any connection. What is skipped otherwise is
    /// not skipped here, but for users.
    pub dns_port: Option<u16>,
    /// What to do about IPv6.
    pub ipv6: Ipv6,
    /// Whether TCP timestamps of the network namespace are to be plain: `timestamps.rs` says what that gives and costs.
    pub plain_timestamps: bool,
}

impl Default for RedirectConfig {
    fn default() -> Self {
        Self {
            inbound_port: PORT_INBOUND,
            outbound_port: PORT_OUTBOUND,
            exempt: vec![Exempt::Uid(SIDECAR_UID)],
            skip_inbound_ports: Vec::new(),
            skip_outbound_ports: Vec::new(),
            skip_subnets: Vec::new(),
            skip_uids: Vec::new(),
            dns_port: None,
            ipv6: Ipv6::Auto,
            plain_timestamps: false,
        }
    }
}

impl RedirectConfig {
    /// Every reason why this cannot work, all at once.
    pub fn check(&self) -> Result<(), Vec<String>> {
        let mut wrong = Vec::new();
        if self.inbound_port == self.outbound_port {
            wrong.push(format!("the inbound and the outbound port are both {}", self.inbound_port));
        }
        for (name, port) in [("inbound", self.inbound_port), ("outbound", self.outbound_port)] {
            if port == 0 {
                wrong.push(format!("the {name} port is 0, which nothing can listen on"));
            }
            if port == PORT_ADMIN {
                wrong.push(format!("the {name} port is {PORT_ADMIN}, which is the sidecar's admin port"));
            }
        }
        if let Some(port) = self.dns_port {
            if port == 0 {
                wrong.push("the DNS port is 0, which nothing can listen on".to_owned());
            }
            if [self.inbound_port, self.outbound_port, PORT_ADMIN].contains(&port) {
                wrong.push(format!("the DNS port is {port}, which is another port of the sidecar's"));
            }
        }
        if self.exempt.is_empty() {
            wrong.push("nothing is exempt, so that the sidecar would catch its own connections".to_owned());
        }
        if self.exempt.contains(&Exempt::Mark(0)) {
            wrong.push("the exempt mark is 0, which every unmarked socket has".to_owned());
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong) }
    }
}

/// How the sidecar's own connections are told from the application's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exempt {
    /// By the user that the sidecar runs as.
    Uid(u32),
    /// By the mark on the sidecar's sockets, where there is only one user; never 0.
    Mark(u32),
}

/// What to do about IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Ipv6 {
    /// Catch it where the network namespace has it.
    Auto,
    /// Catch it, and fail where the network namespace does not have it.
    Require,
    /// Leave it alone: connections over IPv6 go round the mesh.
    Off,
}

/// An IP version; each has rules of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    fn of(net: IpNet) -> Self {
        match net {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    pub(crate) const fn loopback(self) -> IpAddr {
        match self {
            Self::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Self::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
        }
    }

    fn loopback_net(self) -> IpNet {
        match self {
            Self::V4 => IpNet::new_assert(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8),
            Self::V6 => IpNet::new_assert(self.loopback(), 128),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// One port or several in a row, `80` or `8000-8010`; never port 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PortRange {
    first: u16,
    last: u16,
}

/// Why a text is not a port range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a port (80) or a range of ports (8000-8010) within 1 to 65535")]
pub struct InvalidPortRange(String);

impl PortRange {
    /// Whether the range has `port` in it.
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    const fn single(port: u16) -> Self {
        Self { first: port, last: port }
    }

    const fn is_single(self) -> bool {
        self.first == self.last
    }
}

impl FromStr for PortRange {
    type Err = InvalidPortRange;

    fn from_str(text: &str) -> Result<Self, InvalidPortRange> {
        let invalid = || InvalidPortRange(text.chars().take(40).collect());
        let (first, last) = text.split_once(['-', ':']).unwrap_or((text, text));
        let port = |digits: &str| digits.trim().parse::<u16>().map_err(|_| invalid());
        let range = Self { first: port(first)?, last: port(last)? };
        if range.first == 0 || range.first > range.last { Err(invalid()) } else { Ok(range) }
    }
}

/// Ports in ascending order without overlap, since nft refuses sets whose intervals overlap.
fn merge(ranges: &[PortRange]) -> Vec<PortRange> {
    let mut sorted = ranges.to_vec();
    sorted.sort_unstable();
    let mut merged: Vec<PortRange> = Vec::with_capacity(sorted.len());
    for range in sorted {
        match merged.last_mut() {
            Some(previous) if range.first <= previous.last.saturating_add(1) => {
                previous.last = previous.last.max(range.last);
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// The rules of one IP version, in order; the first that fits decides. They see TCP only, but for those about DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) family: Family,
    /// For connections that the pod opens.
    pub(crate) outbound: Vec<Rule>,
    /// For connections that come in by an interface.
    pub(crate) inbound: Vec<Rule>,
    /// For what the pod asks at port 53, before any other; empty where that is not caught.
    pub(crate) dns: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Let by what fits.
    Pass(Fits),
    /// Catch the rest: send it to this port of the pod.
    Redirect(u16),
    /// The same for port 53 over UDP and TCP.
    RedirectDns(u16),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fits {
    Uid(u32),
    Mark(u32),
    /// Leaves by the loopback interface: the pod talks to itself.
    LeavesByLoopback,
    To(IpNet),
    /// Merged, never empty.
    ToPorts(Vec<PortRange>),
}

impl Plan {
    pub(crate) fn new(config: &RedirectConfig, family: Family) -> Self {
        let exempt = config.exempt.iter().map(|exempt| match *exempt {
            Exempt::Uid(uid) => Fits::Uid(uid),
            Exempt::Mark(mark) => Fits::Mark(mark),
        });
        let subnets = config.skip_subnets.iter().filter(|net| Family::of(**net) == family);

        let mut outbound: Vec<Rule> = exempt.map(Rule::Pass).collect();
        let mut dns = outbound.clone();
        outbound.push(Rule::Pass(Fits::LeavesByLoopback));
        outbound.push(Rule::Pass(Fits::To(family.loopback_net())));
        outbound.extend(config.skip_uids.iter().map(|uid| Rule::Pass(Fits::Uid(*uid))));
        outbound.extend(pass_ports(&config.skip_outbound_ports));
        outbound.extend(subnets.map(|net| Rule::Pass(Fits::To(net.trunc()))));
        outbound.push(Rule::Redirect(config.outbound_port));

        // The sidecar's inbound and outbound ports are not let by: dialled from another pod they are
        // redirected like any other, and the sidecar closes what was meant for a port of its own.
        let mut passed_inbound = config.skip_inbound_ports.clone();
        passed_inbound.push(PortRange::single(PORT_ADMIN));
        let mut inbound: Vec<Rule> = pass_ports(&passed_inbound).into_iter().collect();
        inbound.push(Rule::Redirect(config.inbound_port));

        match config.dns_port {
            None => dns.clear(),
            Some(port) => {
                dns.push(Rule::Pass(Fits::LeavesByLoopback));
                dns.push(Rule::Pass(Fits::To(family.loopback_net())));
                dns.extend(config.skip_uids.iter().map(|uid| Rule::Pass(Fits::Uid(*uid))));
                dns.push(Rule::RedirectDns(port));
            }
        }

        Self { family, outbound, inbound, dns }
    }
}

fn pass_ports(ports: &[PortRange]) -> Option<Rule> {
    let merged = merge(ports);
    (!merged.is_empty()).then_some(Rule::Pass(Fits::ToPorts(merged)))
}

#[cfg(test)]
mod tests;
