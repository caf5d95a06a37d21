//! The mesh's nouns and its pure decisions.
//!
//! Nothing here waits, opens a socket or reads a clock: time and randomness come in as arguments, so that
//! every decision can be tested as a value and explained offline by the code that takes it at run time.
#![warn(missing_docs)]

pub mod admission;
pub mod authorization;
pub mod backoff;
pub mod balance;
pub mod breaker;
pub mod conventions;
pub mod detect;
pub mod egress;
pub mod failure;
pub mod gate;
pub mod hex;
pub mod identity;
pub mod jwt;
pub mod metrics;
pub mod network_policy;
pub mod policy;
pub mod protocol;
pub mod rate;
pub mod retry;
pub mod service;
pub mod telemetry;
pub mod trace;
pub mod traffic;
pub mod version;
pub mod wellknown;
mod window;

pub use identity::{Name, Namespace, ServiceAccount, SpiffeId, TrustDomain};
