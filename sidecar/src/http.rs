//! HTTP between codec and forwarder: our own head and body, whatever the version on the wire.

pub mod attempts;
pub mod body;
pub mod caller;
mod deadline;
pub mod exchange;
pub mod forward;
pub mod h1;
pub mod h2;
pub mod mirror;
pub mod routed;
pub mod session;
pub mod sink;
pub mod treatment;

pub use body::{Body, Chunk};
pub use weft_http::{Fields, Known, RequestHead, ResponseHead, fields, head, hop};
