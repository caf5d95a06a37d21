//! The control plane: watch → model → snapshot → push; and issue. It does no work per request of the mesh's users.

pub mod config;
pub mod discovery;
pub mod dns;
pub mod hub;
pub mod issue;
pub mod model;
pub mod objects;
pub mod operator;
pub mod server;
pub mod snapshot;
pub mod watch;
