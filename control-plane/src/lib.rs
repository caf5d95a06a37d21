//! The control plane: watch → model → snapshot → push; and issue. It does no work per request of the mesh's users.

pub mod accept;
pub mod config;
pub mod dashboard;
pub mod discovery;
pub mod dns;
pub mod explain;
pub mod hub;
pub mod issue;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod model;
pub mod objects;
pub mod operator;
pub mod probe;
pub mod push;
pub mod relay;
pub mod replicas;
pub mod server;
pub mod snapshot;
pub mod source;
pub mod suggest;
pub mod watch;
