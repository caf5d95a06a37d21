//! Whether a call may come in, by who calls and what is asked for, and why not.

pub mod policy;

pub use policy::{Action, Authorization, Policy, Posture};
