//! The admission webhook: pod in, JSON patch out.
//!
//! [`patch_pod`] decides about one pod: inject it, leave it alone for a [`SkipReason`], or refuse it with an
//! [`InjectError`] that says how to mend it. [`admit`] puts that decision into the words of an
//! `admission.k8s.io/v1` `AdmissionReview`.
//!
//! Nothing here keeps state, opens a socket or asks the API server: what is known of the namespaces comes in
//! with the [`InjectorOptions`], so that `weft inject` gives the same answer offline, from the same code.
#![warn(missing_docs)]

mod base64;
mod error;
mod guard;
mod manifest;
mod names;
mod options;
mod parts;
mod patch;
mod quantity;
mod review;
mod settings;

pub use error::InjectError;
pub use names::*;
pub use options::{InjectLabel, InjectorOptions, NamespaceFacts};
pub use patch::{Outcome, PatchOp, SkipReason, patch_pod};
pub use review::admit;
