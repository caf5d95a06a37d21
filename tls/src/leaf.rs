//! What a leaf certificate says of itself.

use rustls_pki_types::CertificateDer;
use weft_core::service::ObjectRef;
use weft_core::{SpiffeId, identity::InvalidName, wellknown};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Why a certificate is no SVID (SPIFFE X509-SVID, sections 2 to 4).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeafError {
    /// It does not parse.
    #[error("it is not a certificate")]
    Malformed,
    /// It has no URI SAN, or more than one.
    #[error("it has {0} URI names where exactly one is required")]
    UriNames(usize),
    /// Its URI is not an identity of ours.
    #[error(transparent)]
    Identity(#[from] InvalidName),
    /// Its key may not sign.
    #[error("its key usage lacks digitalSignature")]
    KeyUsage,
    /// Its serial number is negative, or longer than 20 bytes (RFC 5280, section 4.1.2.2).
    #[error("its serial number is negative, or longer than 20 bytes")]
    Serial,
    /// It is a CA.
    #[error("it is a CA certificate")]
    Ca,
}

/// The facts of a leaf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeafInfo {
    /// Who.
    pub id: SpiffeId,
    /// The pod that was attested, where the issuer recorded one.
    pub pod: Option<ObjectRef>,
    /// Serial number, hexadecimal.
    pub serial: String,
    /// Start of validity, seconds since the Unix epoch.
    pub not_before: i64,
    /// End of validity, seconds since the Unix epoch.
    pub not_after: i64,
}

impl LeafInfo {
    /// Reads a leaf and checks that its shape is that of an SVID. Says nothing about who signed it.
    pub fn read(der: &CertificateDer<'_>) -> Result<Self, LeafError> {
        let (_, cert) = X509Certificate::from_der(der.as_ref()).map_err(|_| LeafError::Malformed)?;
        let names = cert.subject_alternative_name().map_err(|_| LeafError::Malformed)?;
        let uris: Vec<&str> = names
            .iter()
            .flat_map(|san| &san.value.general_names)
            .filter_map(|n| if let GeneralName::URI(uri) = n { Some(*uri) } else { None })
            .collect();
        let [uri] = uris[..] else { return Err(LeafError::UriNames(uris.len())) };
        let id: SpiffeId = uri.parse()?;
        if cert.is_ca() {
            return Err(LeafError::Ca);
        }
        // The path builder takes any number; a denial is to mean one certificate.
        let serial = cert.raw_serial();
        let is_negative = serial.first().is_none_or(|byte| byte & 0x80 != 0);
        if is_negative || serial.strip_prefix(&[0]).unwrap_or(serial).len() > 20 {
            return Err(LeafError::Serial);
        }
        let usage = cert.key_usage().map_err(|_| LeafError::Malformed)?;
        if !usage.is_some_and(|u| u.value.digital_signature()) {
            return Err(LeafError::KeyUsage);
        }
        Ok(Self {
            id,
            pod: attested_pod(&cert),
            serial: weft_core::hex::hex(cert.raw_serial()),
            not_before: cert.validity().not_before.timestamp(),
            not_after: cert.validity().not_after.timestamp(),
        })
    }
}

fn attested_pod(cert: &X509Certificate<'_>) -> Option<ObjectRef> {
    let ours = cert.extensions().iter().find(|e| e.oid.iter().is_some_and(|arcs| arcs.eq(wellknown::OID_ATTESTED_POD)))?;
    // UTF8String, short form of length or one length byte.
    let text = match ours.value {
        [0x0c, n @ 0..=0x7f, text @ ..] if text.len() == usize::from(*n) => text,
        [0x0c, 0x81, n, text @ ..] if text.len() == usize::from(*n) => text,
        [0x0c, 0x82, hi, lo, text @ ..] if text.len() == usize::from(u16::from_be_bytes([*hi, *lo])) => text,
        _ => return None,
    };
    std::str::from_utf8(text).ok()?.parse().ok()
}
