//! Where a pod may go outside of the mesh, and how it gets there.
//!
//! **What is asked.** A destination that the mesh does not know is judged by the host that is meant, not by the address that was dialled: the server name of a
//! `ClientHello`, or the host of each HTTP request. Of the external services that name the host at the port, the mesh's own come before those of a
//! namespace, so that nobody takes a host out of the mesh's hands; among them, one that names the host itself comes before a wildcard, a longer
//! wildcard before a shorter one, and then the first by namespace and name. That one alone counts: its policies say who may, and it says how the host
//! is dialled. Where none names the host, the default decides.
//!
//! **What it is not.** The sidecar shares the pod with the application, which can go round it with the sidecar's user or mark. Who must be kept in
//! needs a network that keeps them in.

mod address;
mod external;
mod host;
mod origination;
mod table;

pub use address::{Forbidden, forbidden};
pub use external::{Egress, EgressDefault, Endpoint, External, ExternalPort, ExternalProtocol, InvalidEgress, Resolution};
pub use host::{Host, host_of};
pub use origination::{InvalidPeers, MAX_PEERS, Origination, Peer, Server};
pub use table::{Listed, Table};

/// Needed by an outbound policy whose [`Egress`] is not the default.
pub const FEATURE_EGRESS: &str = "egress/v1";
/// Needed by an outbound policy that has an external service with [`Server::Peer`].
pub const FEATURE_EGRESS_PEER: &str = "egress-peer/v1";

#[cfg(test)]
mod tests;
