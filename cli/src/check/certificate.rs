//! When a certificate ends.

use anyhow::{Context, bail};
use x509_parser::pem::Pem;

/// The validity of the certificate that ends first, in seconds since 1970.
pub(super) struct Validity {
    pub(super) not_before: i64,
    pub(super) not_after: i64,
}

/// Reads a chain in PEM.
pub(super) fn validity(pem: &[u8]) -> anyhow::Result<Validity> {
    let mut earliest: Option<Validity> = None;
    for block in Pem::iter_from_buffer(pem) {
        let block = block.context("it is no PEM")?;
        let certificate = block.parse_x509().ok().context("it holds what is no certificate")?;
        let validity = certificate.validity();
        let (not_before, not_after) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        if earliest.as_ref().is_none_or(|other| not_after < other.not_after) {
            earliest = Some(Validity { not_before, not_after });
        }
    }
    match earliest {
        Some(validity) => Ok(validity),
        None => bail!("it holds no certificate"),
    }
}
