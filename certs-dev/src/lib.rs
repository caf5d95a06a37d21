//! A throwaway authority for development and tests: an anchor, an issuer, and leaves both good and bad.
//!
//! Each [`LeafKind`] but the first has exactly one defect, so that a test of the code that must refuse it
//! proves that very check. Nothing here is fit for production: keys are neither protected nor wiped from
//! memory, and none is ever put in git.
#![warn(missing_docs)]

mod authority;
mod leaf;

pub use authority::{Authority, CertsError, Leaf};
pub use leaf::{LeafKind, LeafSpec, UnknownKind};
