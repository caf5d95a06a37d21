//! What can go wrong, why, and what to do about it.

use std::fmt;
use std::io;
use std::net::SocketAddr;

/// Why the rules were not applied, proven, removed or shown.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    /// The configuration contradicts itself.
    #[error("the redirect cannot work as asked: {}", .0.join("; "))]
    Invalid(Vec<String>),
    /// There is nothing to apply the rules with.
    #[error("found no {wanted} in {searched}: install iptables or nftables, or choose another --backend")]
    NoTool {
        /// The back end that was asked for.
        wanted: &'static str,
        /// The directories that were searched.
        searched: String,
    },
    /// This process may not change the network namespace.
    #[error(
        "changing packet rules needs CAP_NET_ADMIN in the network namespace: add NET_ADMIN to the init \
         container's capabilities, or use the CNI plugin"
    )]
    NoNetAdmin,
    /// The network namespace that was handed over could not be entered.
    #[error(
        "the network namespace could not be entered: to do so takes CAP_SYS_ADMIN, both here and over the user namespace \
         that it belongs to"
    )]
    NotEntered(#[source] io::Error),
    /// IPv6 is required and not there.
    #[error("IPv6 is required, but {0}: enable it, or use --ipv6=auto or --ipv6=off")]
    NoIpv6(String),
    /// Every back end refused.
    #[error("no rules were applied:{}", bullets(.attempts))]
    Refused {
        /// What each back end said, in the order of trying.
        attempts: Vec<Refusal>,
    },
    /// The pod is half-captured: some rules were applied, others refused, and the former could not be removed.
    #[error(
        "the rules were applied in part and could not be removed again; do not \
         start this pod:\n  - {applying}\n  - {undoing}"
    )]
    HalfApplied {
        /// The refusal that ended the attempt.
        applying: Refusal,
        /// The refusal that ended its removal.
        undoing: Refusal,
    },
    /// Rules could not be read or removed.
    #[error("the rules could not be {doing}:{}", bullets(.refusals))]
    Stuck {
        /// `read` or `removed`.
        doing: &'static str,
        /// What each back end said.
        refusals: Vec<Refusal>,
    },
    /// The rules do not do what they should, or that could not be found out.
    #[error("the redirect is not proven")]
    Verify(#[from] VerifyError),
    /// The rules were applied, were not proven, and are gone again.
    #[error("the rules were applied, but not proven, and so were removed again")]
    RolledBack {
        /// Why they were not proven.
        source: Box<RedirectError>,
    },
    /// The rules were applied, were not proven, and are still there.
    #[error("the rules were applied, but not proven, and could not be removed ({undoing}); do not start this pod")]
    NotRolledBack {
        /// Why they were not proven.
        source: Box<RedirectError>,
        /// Why they were not removed.
        undoing: Box<RedirectError>,
    },
}

impl RedirectError {
    /// Whether a probe found the rules not to be in force. Anything else that goes wrong says nothing about them.
    pub fn is_not_in_force(&self) -> bool {
        matches!(self, Self::Verify(VerifyError::NotCaught { .. }))
    }
}

fn bullets(refusals: &[Refusal]) -> String {
    let lines: Vec<String> = refusals.iter().map(ToString::to_string).collect();
    format!("\n  - {}", lines.join("\n  - "))
}

/// What a tool said when it refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The command line.
    pub command: String,
    /// Its standard error, or why it was not started.
    pub why: String,
}

impl Refusal {
    /// Whether it is a matter of rights, not of what the kernel or the image has.
    pub(crate) fn is_denial(&self) -> bool {
        ["Permission denied", "Operation not permitted", "must be root"].iter().any(|text| self.why.contains(text))
    }

    fn advice(&self) -> Option<&'static str> {
        let says = |texts: &[&str]| texts.iter().any(|text| self.why.contains(text));
        if says(&["xtables.lock", "xtables lock"]) {
            Some("its lock is held by another process, or cannot be written: see XTABLES_LOCKFILE")
        } else if self.is_denial() {
            Some(
                "it needs CAP_NET_ADMIN in the network namespace: add NET_ADMIN to the init container, or use \
                 the CNI plugin",
            )
        } else if says(&["is not installed"]) {
            Some("add it to the image (packages iptables, nftables, iproute2)")
        } else if says(&["insmod", "Table does not exist", "not supported", "kernel module", "No such file"]) {
            Some(
                "the kernel lacks a part: load iptable_nat and ip6table_nat for legacy, nf_tables and nft_chain_nat \
                 for the others, and xt_owner, xt_mark, xt_multiport and xt_REDIRECT",
            )
        } else {
            None
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`: {}", self.command, self.why)?;
        match self.advice() {
            Some(advice) => write!(f, " ({advice})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Refusal {}

/// Why the redirect is not proven.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The sidecar, or another process, listens where the probe must.
    #[error(
        "{at} is taken: something, perhaps the sidecar, listens there already; verify before it starts, in \
         the init container"
    )]
    PortTaken {
        /// The address that the probe needs.
        at: SocketAddr,
    },
    /// The probe's own connections are exempt.
    #[error(
        "this process runs as user {uid}, which is exempt, so that its connections prove nothing: verify as \
         another user"
    )]
    ProbeIsExempt {
        /// The user of this process.
        uid: u32,
    },
    /// Everything is let by.
    #[error("nothing to prove: {0}; verify the other direction alone, or skip less")]
    NothingToCatch(String),
    /// A probe has nowhere to go.
    #[error(
        "no route to {to}, so that nothing can be caught on the way: verify once the namespace has its default \
         route, or verify both directions, which brings a link of its own"
    )]
    NoRoute {
        /// Where the probe was going.
        to: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// A connection went past the rules.
    #[error("a connection {direction} {to} was not caught: {saw}")]
    NotCaught {
        /// `to` or `from another namespace to`.
        direction: &'static str,
        /// Where it was going.
        to: SocketAddr,
        /// What became of it.
        saw: String,
    },
    /// A connection was caught, but its original destination is lost.
    #[error("a connection to {to} was caught, but its original destination reads {read}")]
    WrongDestination {
        /// Where it was going.
        to: SocketAddr,
        /// Where the kernel says it was going.
        read: SocketAddr,
    },
    /// A connection that should go by was caught.
    #[error("a connection to {to} was caught, although it is exempt: {why}")]
    ExemptCaught {
        /// Where it was going.
        to: SocketAddr,
        /// Why it is exempt.
        why: String,
    },
    /// A connection that should go by went nowhere.
    #[error("a connection to {to}, which is exempt ({why}), was not caught, but did not arrive: {saw}")]
    ExemptLost {
        /// Where it was going.
        to: SocketAddr,
        /// Why it is exempt.
        why: String,
        /// What became of it.
        saw: String,
    },
    /// The link to a second namespace could not be made.
    #[error("the link for the probe could not be made; to prove outbound alone needs none")]
    Link(#[source] Refusal),
    /// The process at the other end of the link did not do its part.
    #[error("the probe's other end did not {doing}: {why}")]
    Peer {
        /// What it was told.
        doing: &'static str,
        /// What it said.
        why: String,
    },
    /// A socket call failed.
    #[error("could not {doing} for the probe")]
    Socket {
        /// What was tried.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}
