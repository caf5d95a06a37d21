//! The admission webhook: pod in, JSON patch out.
//!
//! [`patch_pod`] decides about one pod: inject it, leave it alone for a [`SkipReason`], or refuse it with an
//! [`InjectError`] that says how to mend it. [`admit`] puts that decision into the words of an
//! `admission.k8s.io/v1` `AdmissionReview`.
//!
//! None of this keeps state, opens a socket or asks the API server: what is known of the namespace comes in as
//! [`NamespaceFacts`], so that `weft inject` gives the same answer offline, from the same code. The server around it
//! is behind the feature `server`.
#![warn(missing_docs)]

mod base64;
mod error;
mod genuine;
mod guard;
mod manifest;
mod names;
mod options;
mod parts;
mod patch;
mod probes;
mod quantity;
mod review;
mod settings;
mod telemetry;
mod update;

#[cfg(feature = "server")]
pub mod certificate;
#[cfg(feature = "server")]
pub mod config;
#[cfg(feature = "listen")]
pub mod listen;
#[cfg(feature = "server")]
pub mod namespaces;
#[cfg(feature = "server")]
pub mod status;
#[cfg(feature = "server")]
pub mod webhook;

pub use error::InjectError;
pub use names::*;
pub use options::{Bypass, InjectLabel, InjectorOptions, NamespaceFacts, NativeSidecars, Redirect};
pub use patch::{Decision, PatchOp, SkipReason, patch_pod};
pub use review::{Answer, Verdict, admit, namespace_of};
