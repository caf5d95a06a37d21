//! Messages as they stand on the wire: fields and heads, how HTTP/1 writes and reads them, and HTTP/2's frames and sections. Nothing here waits, opens or
//! keeps a connection.
//!
//! A room of its own since every request passes through it twice in each sidecar: it is built for speed, most of what surrounds it for size.

pub mod fields;
pub mod h1;
pub mod h2;
pub mod head;
pub mod hop;
pub mod octets;

pub use fields::{Fields, Known};
pub use head::{RequestHead, ResponseHead};
