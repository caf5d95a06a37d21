//! Tokens of end users (RFC 7515, 7517, 7519; RFC 8725 for what to refuse): read and verified by pure functions of bytes, keys and the time.
//!
//! One form is taken: three parts of canonical base64url, signed with a private key. What is not known to be harmless is refused: `none`, shared secrets,
//! `crit`, unencoded payloads, a member that stands twice. Keys and addresses of keys that a token brings along are not looked at.

mod json;
mod jwks;
mod token;

pub use jwks::{Jwks, JwksError};
pub use token::{Unverified, Verified, assume};

pub use json::read as read_claims;

#[cfg(test)]
mod tests;
