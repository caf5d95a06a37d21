//! The packet rules that bring a pod's TCP connections to its sidecar: applied, proven, printed, removed.
//!
//! ```text
//! RedirectConfig ─▶ plan (the rules as a value) ─▶ iptables or nft text ─▶ tools (the kernel) ─▶ verify
//! ```
//!
//! Connections that the pod opens are redirected to the sidecar's outbound port on loopback; connections that
//! come in by an interface, to its inbound port. The original destination stays readable on the socket
//! (`SO_ORIGINAL_DST`). Either all rules are in place or an error says what is, so that no pod starts
//! half-captured.
//!
//! This room never touches the connections themselves: that is the sidecar's.

mod apply;
mod error;
mod netns;
mod plan;
mod timestamps;
mod tools;
mod verify;

pub use apply::{Applied, Removed, Script, Shown, apply, apply_verified, remove, render, show};
pub use error::{RedirectError, Refusal, VerifyError};
pub use netns::within;
pub use plan::{Exempt, Family, InvalidPortRange, Ipv6, PortRange, RedirectConfig};
pub use tools::Backend;
pub use verify::{Directions, PROBE_PEER, PeerProgram, Verified, probe_peer, verify};

/// What `weft-redirect` ends with where a probe found that the rules are not in force; any other failure is 1. The CNI plugin's
/// agent tells by it which pods started without their redirect.
pub const STATUS_NOT_IN_FORCE: u8 = 3;
