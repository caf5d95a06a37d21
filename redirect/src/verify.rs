//! Proof by doing: connections are made, and it is looked at where they arrive.
//!
//! ```text
//!   this namespace                          the peer's namespace
//!   192.0.2.1, 2001:db8::1  ── veth pair ──  192.0.2.2, 2001:db8::2
//!   traps on the sidecar's two ports         listens on a port of its own, connects when told
//! ```
//!
//! Rules for incoming connections see only what comes in by an interface, so a second network namespace is
//! needed; with it at hand, outgoing probes go there too, and no packet leaves the machine. Outbound alone is
//! proven without it, by a probe to an address that is nobody's (RFC 5737, RFC 3849).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use nix::unistd::Uid;
use weft_core::wellknown::{PORT_ADMIN, SIDECAR_PORTS};

use crate::apply::{families, require_net_admin};
use crate::error::{RedirectError, VerifyError};
use crate::plan::{Exempt, Family, Ipv6, PortRange, RedirectConfig};

mod link;
mod peer;
mod trap;

pub use peer::{PROBE_PEER, PeerProgram, probe_peer};

use link::Link;
use peer::{Order, Peer};
use trap::{Dialled, Trap, dial};

/// Which rules to prove.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Directions {
    /// Both.
    Both,
    /// Those for connections that come in; needs a second network namespace.
    Inbound,
    /// Those for connections that the pod opens.
    Outbound,
}

/// What [`verify`] found to be so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// One line for each thing proven.
    pub proven: Vec<String>,
    /// What was not proven, and why that is no failure.
    pub notes: Vec<String>,
}

/// How long a probe may take that somebody of ours answers. It never leaves the machine; but a first packet that is lost while the ends
/// of a link find each other is repeated after a second, and the machine may be busy.
const ANSWERED_WITHIN: Duration = Duration::from_secs(3);
/// How long a probe that is to go by is waited for where nobody answers it.
const GOES_BY_WITHIN: Duration = Duration::from_millis(200);
/// How long a trap is watched for what it should not catch.
const STAYS_EMPTY_FOR: Duration = Duration::from_millis(50);

/// This namespace's end of the link, and its neighbour, in the ranges for documentation.
const LINK_V4: (IpAddr, IpAddr) = (IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)));
const LINK_V6: (IpAddr, IpAddr) =
    (IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2)));

const fn ends(family: Family) -> (IpAddr, IpAddr) {
    match family {
        Family::V4 => LINK_V4,
        Family::V6 => LINK_V6,
    }
}

/// Proves that the rules of `config` are in force. Listens on the sidecar's ports, so the sidecar must not run
/// yet. `peer` is the program for the other end; see [`probe_peer`].
///
/// Outbound alone takes no rights, so that a container without any can tell whether somebody else applied the rules;
/// what it lacks the rights to prove is a note.
pub fn verify(config: &RedirectConfig, directions: Directions, peer: &PeerProgram) -> Result<Verified, RedirectError> {
    config.check().map_err(RedirectError::Invalid)?;
    let (families, notes) = families(config.ipv6)?;
    let probes = Probes::choose(config, directions, &families)?;
    if probes.inbound.is_some() {
        require_net_admin()?;
    }
    let mut verified = Verified { proven: Vec::new(), notes };

    let mut link = match probes.inbound {
        Some(_) => Some(Link::up(peer, &families, probes.outbound)?),
        None => None,
    };
    let (several, count) = (families.len() > 1, families.len());
    let mut unproven = Vec::new();
    for family in families {
        if let Some(port) = probes.outbound {
            let proof = Outbound { config, family, port, linked: link.is_some(), peer };
            match proof.prove(&mut verified) {
                // A pod may have one IP version alone: what has nowhere to go cannot escape either.
                Err(VerifyError::NoRoute { to, .. }) if config.ipv6 == Ipv6::Auto && several => {
                    let note = format!("{family} outbound is not proven: no route to {to}, so nothing can leave that way");
                    verified.notes.push(note);
                    unproven.push(to);
                }
                other => other?,
            }
        }
        if let (Some(port), Some(link)) = (probes.inbound, &mut link) {
            prove_inbound(config, family, port, link, &mut verified)?;
        }
    }
    match unproven.first() {
        Some(to) if unproven.len() == count => {
            Err(VerifyError::NoRoute { to: *to, source: io::ErrorKind::NetworkUnreachable.into() }.into())
        }
        _ => Ok(verified),
    }
}

/// The ports that the probes go to, for each direction to prove.
struct Probes {
    inbound: Option<u16>,
    outbound: Option<u16>,
}

impl Probes {
    /// Ports that the rules do catch, or why there are none.
    fn choose(config: &RedirectConfig, directions: Directions, families: &[Family]) -> Result<Self, VerifyError> {
        let mut probes = Self { inbound: None, outbound: None };
        if directions != Directions::Outbound {
            probes.inbound = Some(probe_port("inbound", &config.skip_inbound_ports)?);
        }
        if directions != Directions::Inbound {
            let uid = Uid::effective().as_raw();
            if config.skip_uids.contains(&uid) || config.exempt.contains(&Exempt::Uid(uid)) {
                return Err(VerifyError::ProbeIsExempt { uid });
            }
            for (here, there) in families.iter().map(|family| ends(*family)) {
                if let Some(net) = config.skip_subnets.iter().find(|net| net.contains(&here) || net.contains(&there)) {
                    let why = format!("the probe's destination is in {net}, which is skipped");
                    return Err(VerifyError::NothingToCatch(why));
                }
            }
            probes.outbound = Some(probe_port("outbound", &config.skip_outbound_ports)?);
        }
        Ok(probes)
    }
}

fn probe_port(direction: &str, skipped: &[PortRange]) -> Result<u16, VerifyError> {
    // High ports first: nothing is likely to be declared for them.
    let free =
        (1..=u16::MAX).rev().find(|port| !SIDECAR_PORTS.contains(port) && !skipped.iter().any(|range| range.contains(*port)));
    free.ok_or_else(|| VerifyError::NothingToCatch(format!("every {direction} port is skipped")))
}

/// The proof for connections of one IP version that the pod opens.
struct Outbound<'a> {
    config: &'a RedirectConfig,
    family: Family,
    port: u16,
    /// Whether the other end of the link listens on `port`.
    linked: bool,
    peer: &'a PeerProgram,
}

impl Outbound<'_> {
    fn prove(&self, verified: &mut Verified) -> Result<(), VerifyError> {
        let (here, there) = ends(self.family);
        let to = SocketAddr::new(if self.linked { there } else { here }, self.port);
        let trap = Trap::set(SocketAddr::new(self.family.loopback(), self.config.outbound_port))?;

        if let Err(source) = trap::route(to) {
            return Err(VerifyError::NoRoute { to, source });
        }
        trap.expect_caught("to", to, dial(to, None, ANSWERED_WITHIN)?, ANSWERED_WITHIN)?;
        verified.proven.push(format!("{} outbound: {to} is caught on port {}", self.family, self.config.outbound_port));

        for exempt in &self.config.exempt {
            match *exempt {
                Exempt::Mark(mark) => self.prove_mark(&trap, to, mark, verified)?,
                Exempt::Uid(uid) => self.prove_uid(&trap, to, uid, verified)?,
            }
        }
        if let Some(port) = self.config.dns_port {
            self.prove_dns(SocketAddr::new(to.ip(), 53), port, verified)?;
        }
        Ok(())
    }

    /// What is asked of DNS arrives, over both transports.
    fn prove_dns(&self, to: SocketAddr, port: u16, verified: &mut Verified) -> Result<(), VerifyError> {
        let at = SocketAddr::new(self.family.loopback(), port);
        let trap = Trap::set(at)?;
        trap.expect_caught("to", to, dial(to, None, ANSWERED_WITHIN)?, ANSWERED_WITHIN)?;
        trap::expect_datagram(at, to, ANSWERED_WITHIN)?;
        verified.proven.push(format!("{} DNS: {to} is caught on port {port} over UDP and TCP", self.family));
        Ok(())
    }

    /// To mark a socket takes a right that this process may lack.
    fn prove_mark(&self, trap: &Trap, to: SocketAddr, mark: u32, verified: &mut Verified) -> Result<(), VerifyError> {
        let why = format!("socket mark {mark:#x}");
        match dial(to, Some(mark), self.patience()) {
            Ok(dialled) => self.expect_let_by(trap, to, &why, dialled)?,
            Err(VerifyError::Socket { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
                let because = format!("no socket may be marked: {source}");
                verified.notes.push(format!("{} outbound: that {why} goes by is not proven: {because}", self.family));
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        verified.proven.push(format!("{} outbound: {why} goes by", self.family));
        Ok(())
    }

    /// Another user's connection takes a process of that user, which this one may lack the right to start.
    fn prove_uid(&self, trap: &Trap, to: SocketAddr, uid: u32, verified: &mut Verified) -> Result<(), VerifyError> {
        let why = format!("user {uid}");
        let mut process = match Peer::start(self.peer, Some(uid)) {
            Ok(process) => process,
            Err(error) => {
                let because = format!("no process could be started as that user: {error}");
                verified.notes.push(format!("{} outbound: that {why} goes by is not proven: {because}", self.family));
                return Ok(());
            }
        };
        let order = Order::Connect { to, within: self.patience() };
        let dialled = process.ask("connect", &order)?;
        self.expect_let_by(trap, to, &why, dialled)?;
        verified.proven.push(format!("{} outbound: {why} goes by", self.family));
        Ok(())
    }

    /// For what is to go by.
    const fn patience(&self) -> Duration {
        if self.linked { ANSWERED_WITHIN } else { GOES_BY_WITHIN }
    }

    fn expect_let_by(&self, trap: &Trap, to: SocketAddr, why: &str, dialled: Dialled) -> Result<(), VerifyError> {
        if trap.caught(STAYS_EMPTY_FOR)?.is_some() {
            return Err(VerifyError::ExemptCaught { to, why: why.to_owned() });
        }
        match dialled {
            // Without a link there is nobody at the other end, and no answer is the right answer.
            Err(saw) if self.linked => Err(VerifyError::ExemptLost { to, why: why.to_owned(), saw }),
            _ => Ok(()),
        }
    }
}

/// The proof for connections of one IP version that come in by an interface.
fn prove_inbound(
    config: &RedirectConfig,
    family: Family,
    port: u16,
    link: &mut Link,
    verified: &mut Verified,
) -> Result<(), VerifyError> {
    let (here, _) = ends(family);
    let any = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let trap = Trap::set(SocketAddr::new(any, config.inbound_port))?;

    let to = SocketAddr::new(here, port);
    let dialled = link.peer.ask("connect", &Order::Connect { to, within: ANSWERED_WITHIN })?;
    trap.expect_caught("from another namespace to", to, dialled, ANSWERED_WITHIN)?;
    verified.proven.push(format!("{family} inbound: {to} is caught on port {}", config.inbound_port));

    // Whether anything listens on the admin port yet does not matter; that the trap stays empty does.
    let admin = SocketAddr::new(here, PORT_ADMIN);
    let _dialled = link.peer.ask("connect", &Order::Connect { to: admin, within: GOES_BY_WITHIN })?;
    if trap.caught(STAYS_EMPTY_FOR)?.is_some() {
        return Err(VerifyError::ExemptCaught { to: admin, why: "the sidecar's admin port".to_owned() });
    }
    verified.proven.push(format!("{family} inbound: the admin port {PORT_ADMIN} goes by"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(texts: &[&str]) -> Vec<PortRange> {
        texts.iter().map(|text| text.parse().expect("the test's ranges are well formed")).collect()
    }

    #[test]
    fn a_probe_goes_to_a_port_that_is_caught() {
        assert_eq!(probe_port("inbound", &[]).ok(), Some(65_535));
        assert_eq!(probe_port("inbound", &ranges(&["8000-65535"])).ok(), Some(7_999));
        assert_eq!(probe_port("inbound", &ranges(&["1-4739", "4744-65535"])).ok(), Some(4_742));
        let none = probe_port("inbound", &ranges(&["1-65535"]));
        assert!(matches!(none, Err(VerifyError::NothingToCatch(_))));
    }

    #[test]
    fn a_probe_that_the_rules_let_by_proves_nothing() {
        let skips_all = |text: &str| RedirectConfig {
            skip_subnets: vec![text.parse().expect("the test's subnet is well formed")],
            ..RedirectConfig::default()
        };
        for subnet in ["0.0.0.0/0", "192.0.2.2/32", "2001:db8::/32"] {
            let chosen = Probes::choose(&skips_all(subnet), Directions::Both, &Family::ALL);
            assert!(matches!(chosen, Err(VerifyError::NothingToCatch(_))), "{subnet}");
            assert!(Probes::choose(&skips_all(subnet), Directions::Inbound, &Family::ALL).is_ok(), "{subnet}");
        }
        let ipv6 = Probes::choose(&skips_all("::/0"), Directions::Both, &[Family::V4]);
        assert!(ipv6.is_ok(), "IPv6 is not probed");
        let own = RedirectConfig { skip_uids: vec![Uid::effective().as_raw()], ..RedirectConfig::default() };
        assert!(matches!(Probes::choose(&own, Directions::Both, &Family::ALL), Err(VerifyError::ProbeIsExempt { .. })));
        assert!(Probes::choose(&own, Directions::Inbound, &Family::ALL).is_ok());
    }
}
