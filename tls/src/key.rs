//! Private keys, whose bytes are overwritten when they end: keys that are not SVIDs' alone, such as a CA's, are held as this too.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};
use zeroize::Zeroizing;

/// Base64 digits in a line of PEM (RFC 7468, section 2).
const LINE: usize = 64;

/// A private key that signs certificates and requests. `Debug` shows none of it.
///
/// The pair itself keeps its PKCS#8 in memory of its own, and does not clear that: so it is never held bare.
pub struct Key(Zeroizing<KeyPair>);

impl Key {
    /// A new ECDSA P-256 key.
    ///
    /// # Errors
    ///
    /// Where none can be made.
    pub fn generate() -> Result<Self, rcgen::Error> {
        KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map(|pair| Self(Zeroizing::new(pair)))
    }

    /// The first private key of a text: PKCS#8, SEC1 or PKCS#1; ECDSA, Ed25519 or RSA.
    ///
    /// # Errors
    ///
    /// Where there is none, or one that cannot sign.
    pub fn from_pem(pem: &str) -> Result<Self, rcgen::Error> {
        let der = key_der(pem.as_bytes()).ok_or(rcgen::Error::CouldNotParseKeyPair)?;
        KeyPair::try_from(der.as_slice()).map(|pair| Self(Zeroizing::new(pair)))
    }

    /// The key in DER: PKCS#8, or as it was read.
    pub fn der(&self) -> &[u8] {
        self.0.serialized_der()
    }

    /// The key as PEM.
    pub fn pem(&self) -> Zeroizing<String> {
        let der = self.der();
        let mut digits = Zeroizing::new(vec![0; base64::encoded_len(der.len(), true).unwrap_or_default()]);
        let length = STANDARD.encode_slice(der, &mut digits).unwrap_or_default();
        // One allocation that is large enough: what grows leaves its bytes behind.
        let mut text = Zeroizing::new(String::with_capacity(length + length / LINE + 80));
        text.push_str("-----BEGIN PRIVATE KEY-----\n");
        for line in digits[..length].chunks(LINE) {
            text.extend(line.iter().map(|digit| char::from(*digit)));
            text.push('\n');
        }
        text.push_str("-----END PRIVATE KEY-----\n");
        text
    }
}

impl PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        PublicKeyData::algorithm(&*self.0)
    }
}

impl SigningKey for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

/// The DER of the first private key in a PEM text (RFC 7468), with no copy left behind. None: there is none, or it is broken or encrypted.
pub fn key_der(pem: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let mut lines = pem.split(|b| *b == b'\n').map(<[u8]>::trim_ascii);
    lines.find(|line| line.starts_with(b"-----BEGIN ") && line.ends_with(b"PRIVATE KEY-----"))?;
    let mut digits = Zeroizing::new(Vec::with_capacity(pem.len()));
    for line in lines {
        if line.starts_with(b"-----END ") {
            let mut der = Zeroizing::new(vec![0; base64::decoded_len_estimate(digits.len())]);
            let length = STANDARD.decode_slice(digits.as_slice(), &mut der).ok()?;
            der.truncate(length);
            return Some(der);
        }
        digits.extend(line.iter().filter(|b| !b.is_ascii_whitespace()));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_goes_through_pem_and_signs_what_it_signed() {
        let key = Key::generate().expect("a key");
        let pem = key.pem();
        assert!(pem.lines().all(|line| line.len() <= LINE), "RFC 7468");
        // The pair's own writer, which leaves copies, writes the same.
        assert_eq!(*pem, key.0.serialize_pem());
        let again = Key::from_pem(&pem.replace('\n', "\r\n")).expect("the same key");
        assert_eq!((again.der(), again.der_bytes()), (key.der(), key.der_bytes()));
        let behind = format!("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n{}", *pem);
        assert_eq!(Key::from_pem(&behind).expect("found").der(), key.der());
        assert_eq!(format!("{key:?}"), "Key");
    }

    #[test]
    fn keys_of_other_kinds_are_read() {
        for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519, &rcgen::PKCS_RSA_SHA256] {
            let pair = KeyPair::generate_for(algorithm).expect("a key");
            let key = Key::from_pem(&pair.serialize_pem()).expect("a key that can be read");
            assert_eq!((key.der_bytes(), PublicKeyData::algorithm(&key)), (pair.der_bytes(), algorithm));
        }
    }

    #[test]
    fn what_is_no_key_is_none() {
        let pem = Key::generate().expect("a key").pem();
        let cut = &pem[..pem.len() - 30];
        let headed = pem.replacen('\n', "\nProc-Type: 4,ENCRYPTED\n", 1);
        for text in ["", "no key", "-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n", cut, &headed] {
            assert!(Key::from_pem(text).is_err(), "{text}");
        }
    }
}
