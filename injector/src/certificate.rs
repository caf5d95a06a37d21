//! The webhook's own certificate: made, kept in a secret, made anew in time, and vouched for in the webhook configuration.
//!
//! A CA signs one leaf, and its key is gone with that: nobody can have another leaf from it. Replicas share secret and
//! configuration without a lock: each write names the version that was read, and whoever comes second looks again.
//! No call fails while a leaf is exchanged, because
//!
//! 1. the secret gets a new leaf, and in `ca.crt` the new CA before the old one;
//! 2. the webhook configuration gets that `ca.crt`, by which leaves of either CA are good;
//! 3. a replica serves the new leaf only some seconds after it has found 2 done, by itself or by another, so that API servers
//!    have learnt of it, and the old one until then;
//! 4. the old CA stays until it expires, which is when no replica can serve its leaf any more.
//!
//! The configuration is read before the secret: what is in the secret then is never older than what the configuration
//! was written by, and so no replica sets a CA bundle back.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose,
};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use weft_core::wellknown::BACKDATE_SECS;
use weft_tls::{Key, key_der};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
use zeroize::Zeroizing;

use crate::base64;

mod keeper;

pub use keeper::Keeper;

/// Why there is no certificate to serve, or none that the API server knows.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// One could not be made.
    #[error("a certificate could not be made: {0}")]
    Make(#[from] rcgen::Error),
    /// What was given is no certificate with its key.
    #[error("the certificate can't be used: {0}")]
    Unusable(String),
    /// The API server did not do its part.
    #[error("{doing}: {source}")]
    Cluster {
        /// What was tried.
        doing: String,
        /// What it said.
        source: Box<kube::Error>,
    },
    /// There is no webhook to vouch in.
    #[error("the webhook configuration {0} has no webhook of this service, or is not there: `weft install` makes it")]
    NoWebhook(String),
}

/// A certificate as it is kept.
pub struct Made {
    /// The leaf, PEM.
    pub certificate: String,
    /// Its key, PEM.
    pub key: Zeroizing<String>,
    /// The CA that signed it, PEM.
    pub authority: String,
}

/// Makes a CA, and its one leaf for `names`, both good for `life` from `now` on.
pub fn make(names: &[String], now: OffsetDateTime, life: Duration) -> Result<Made, CertificateError> {
    let params = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = now - Duration::from_secs(BACKDATE_SECS.unsigned_abs());
        params.not_after = now + life;
        params
    };
    // Two CAs in one bundle must not have the same name.
    let mut authority = params(&format!("weft injector {}", now.unix_timestamp()));
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let authority_key = Key::generate()?;
    let authority_pem = authority.self_signed(&authority_key)?.pem();

    let mut leaf = params(names.first().map_or("weft-injector", String::as_str));
    leaf.subject_alt_names = CertificateParams::new(names)?.subject_alt_names;
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.use_authority_key_identifier_extension = true;
    let key = Key::generate()?;
    let certificate = leaf.signed_by(&key, &Issuer::new(authority, authority_key))?.pem();
    Ok(Made { certificate, key: key.pem(), authority: authority_pem })
}

/// A certificate with its key, ready to be served. `Debug` shows no key.
pub struct Serving {
    certified: Arc<CertifiedKey>,
    names: Vec<String>,
    not_before: i64,
    not_after: i64,
}

impl Serving {
    /// Reads a PEM chain, leaf first, and its PEM key, and checks that they belong together.
    pub fn read(chain: &[u8], key: &[u8]) -> Result<Self, CertificateError> {
        let unusable = |why: &dyn fmt::Display| CertificateError::Unusable(why.to_string());
        let chain: Vec<_> = CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>().map_err(|e| unusable(&e))?;
        let leaf = chain.first().ok_or_else(|| unusable(&"it is empty"))?;
        let (names, not_before, not_after) = facts(leaf).ok_or_else(|| unusable(&"it does not parse"))?;
        let key = key_der(key).ok_or_else(|| unusable(&"there is no private key in PEM"))?;
        let key = PrivateKeyDer::try_from(key.as_slice()).map_err(|e| unusable(&e))?;
        let certified = CertifiedKey::new(chain, any_supported_type(&key).map_err(|e| unusable(&e))?);
        certified.keys_match().map_err(|e| unusable(&e))?;
        Ok(Self { certified: Arc::new(certified), names, not_before, not_after })
    }

    /// Seconds since it was made.
    fn age(&self, now: i64) -> i64 {
        now - (self.not_before + BACKDATE_SECS)
    }

    /// Whether it is time for another: after two thirds of its life, or with other names.
    fn is_due(&self, names: &[String], now: i64) -> bool {
        let start = self.not_before + BACKDATE_SECS;
        self.names != names || now >= start + (self.not_after - start) / 3 * 2
    }
}

impl fmt::Debug for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serving").field("names", &self.names).field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// The DNS names of a certificate, and when it is good.
fn facts(der: &CertificateDer<'_>) -> Option<(Vec<String>, i64, i64)> {
    let (_, certificate) = X509Certificate::from_der(der.as_ref()).ok()?;
    let alternatives = certificate.subject_alternative_name().ok()?;
    let names = alternatives.iter().flat_map(|extension| &extension.value.general_names);
    let names = names.filter_map(|name| if let GeneralName::DNSName(name) = name { Some((*name).to_owned()) } else { None });
    let validity = certificate.validity();
    Some((names.collect(), validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// The CA `first`, then those of the PEM texts `others` that are good at `now` and not there yet.
fn bundle(first: &str, others: &[&[u8]], now: i64) -> String {
    /// Where something went wrong again and again, the bundle does not grow for ever.
    const MOST: usize = 4;
    let mut authorities: Vec<CertificateDer<'static>> = Vec::new();
    for text in [&[first.as_bytes()][..], others].concat() {
        for der in CertificateDer::pem_slice_iter(text).filter_map(Result::ok) {
            let good = facts(&der).is_some_and(|(_, _, not_after)| not_after > now);
            if good && authorities.len() < MOST && !authorities.contains(&der) {
                authorities.push(der);
            }
        }
    }
    authorities.iter().map(|der| pem(der)).collect()
}

fn pem(der: &[u8]) -> String {
    let text = base64::encode(der);
    let lines: Vec<&str> = (0..text.len()).step_by(64).map(|at| &text[at..text.len().min(at + 64)]).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// The certificate in use: what TLS asks at every handshake.
#[derive(Default)]
pub struct Current(ArcSwapOption<Serving>);

impl Current {
    /// From now on this one is served.
    pub fn serve(&self, serving: Serving) {
        self.0.store(Some(Arc::new(serving)));
    }

    /// Seconds that the certificate in use is still good for, if there is one.
    pub fn seconds_left(&self, now: i64) -> Option<i64> {
        self.0.load().as_ref().map(|serving| serving.not_after - now)
    }

    /// TLS 1.3 with this certificate, for HTTP/1.1.
    pub fn tls(self: Arc<Self>) -> rustls::ServerConfig {
        let mut config = rustls::ServerConfig::builder_with_provider(weft_tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has TLS 1.3 suites")
            .with_no_client_auth()
            .with_cert_resolver(self);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.send_tls13_tickets = 0;
        config
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load().as_ref().map(|serving| serving.certified.clone())
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Current").field(&self.0.load().as_ref()).finish()
    }
}

/// Seconds since the Unix epoch.
pub fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(3 * 3600);

    fn names() -> Vec<String> {
        vec!["weft-injector.weft-system.svc".to_owned()]
    }

    fn made(at: i64) -> Made {
        make(&names(), OffsetDateTime::from_unix_timestamp(at).expect("a time"), LIFE).expect("made")
    }

    #[test]
    fn a_leaf_is_due_after_two_thirds_of_its_life_or_with_other_names() {
        let start = 1_800_000_000;
        let made = made(start);
        let serving = Serving::read(made.certificate.as_bytes(), made.key.as_bytes()).expect("it is whole");
        assert!(!serving.is_due(&names(), start));
        assert!(!serving.is_due(&names(), start + 2 * 3600 - 1));
        assert!(serving.is_due(&names(), start + 2 * 3600));
        assert!(serving.is_due(&["elsewhere".to_owned()], start));
    }

    #[test]
    fn no_key_is_shown_and_none_but_its_own_is_taken() {
        let (one, other) = (made(1_800_000_000), made(1_800_000_000));
        let serving = Serving::read(one.certificate.as_bytes(), one.key.as_bytes()).expect("it is whole");
        let current = Current::default();
        current.serve(serving);
        let shown = format!("{current:?}");
        assert!(shown.contains("weft-injector.weft-system.svc") && !shown.contains("PRIVATE"), "{shown}");
        assert!(Serving::read(one.certificate.as_bytes(), other.key.as_bytes()).is_err());
        assert!(Serving::read(b"", one.key.as_bytes()).is_err());
        assert!(Serving::read(one.certificate.as_bytes(), b"").is_err());
    }

    #[test]
    fn a_bundle_has_the_new_ca_and_what_of_the_old_is_still_good() {
        let start = 1_800_000_000;
        let (old, new) = (made(start), made(start + 3600));
        let both = bundle(&new.authority, &[old.authority.as_bytes(), new.authority.as_bytes()], start + 3600);
        let count = |text: &str| CertificateDer::pem_slice_iter(text.as_bytes()).filter_map(Result::ok).count();
        assert_eq!(count(&both), 2);
        assert_eq!(bundle(&new.authority, &[both.as_bytes()], start + 3600), both, "the same again");
        let later = bundle(&new.authority, &[both.as_bytes(), b"no certificate"], start + 4 * 3600 - 1);
        assert_eq!((count(&later), both.starts_with(&later)), (1, true), "the old one has expired");
    }
}
