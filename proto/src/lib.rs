//! The wire, `weft.v1`, and its conversion to and from `weft_core`: once, at the boundary, and nowhere else.
#![warn(missing_docs)]

/// Generated from `weft/v1/*.proto`, where everything is documented.
#[allow(missing_docs, clippy::pedantic, clippy::large_enum_variant, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("weft.v1");
}

/// The SPIFFE Workload API, generated from `spiffe/workload.proto`.
#[allow(missing_docs, clippy::pedantic, clippy::large_enum_variant, reason = "generated")]
pub mod spiffe {
    tonic::include_proto!("_");
}

mod convert;
pub mod name;

pub use convert::{
    MAX_ISSUERS, MAX_POLICIES, MAX_POLICY_BYTES, WireError, address_bytes, address_from, bound, endpoint_from, issuer_bytes,
    member_from, member_to, policy_bytes, posture_to, routes_from, routes_to,
};
pub use name::ResourceName;

/// The compiled descriptors, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
