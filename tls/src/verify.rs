//! Who is at the other end: chain, validity, usage and SPIFFE ID, checked in this order for both sides.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use weft_core::{SpiffeId, TrustDomain, wellknown};

use crate::bundle::{TrustBundle, anchor_hash};
use crate::leaf::{LeafError, LeafInfo};

/// Why a peer was refused. Every error says both what was seen and what would have been accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// The leaf is no SVID.
    #[error("the peer's certificate is not an SVID: {0}")]
    Leaf(#[from] LeafError),
    /// Nothing vouches for the peer's domain.
    #[error("the peer is {id}, and this mesh does not trust its domain")]
    ForeignDomain {
        /// Who the peer says that it is.
        id: SpiffeId,
    },
    /// The chain does not lead to an anchor of the peer's own domain, or a link of it is broken.
    #[error("the chain of {id} does not verify: {why}")]
    Chain {
        /// Who the peer says that it is.
        id: SpiffeId,
        /// What the path builder says.
        why: String,
    },
    /// The chain has more certificates than are looked at.
    #[error("the peer shows {0} certificates beside its own; at most {MAX_CHAIN} are looked at")]
    Long(usize),
    /// The leaf is outside its validity by this clock.
    #[error(
        "the certificate of {id} is valid from {not_before} to {not_after} (Unix seconds), and this machine's clock says {now}: \
         renew the certificate, or set the clock that is wrong"
    )]
    Validity {
        /// Who the peer says that it is.
        id: SpiffeId,
        /// Start of the window.
        not_before: i64,
        /// End of the window.
        not_after: i64,
        /// This machine's clock.
        now: i64,
    },
    /// A verified peer that is on the deny list.
    #[error("the peer is {id} with the certificate {serial}, and it is denied: see `weft trust deny list`")]
    Denied {
        /// Who it is.
        id: SpiffeId,
        /// Its certificate's serial number, hexadecimal.
        serial: String,
    },
    /// A verified peer under an identity that no workload has.
    #[error("{0} is reserved for a control plane, which calls no workload")]
    Reserved(SpiffeId),
    /// A verified peer that is not the one that was expected.
    #[error("the peer proved to be {actual}, and {} was expected", Expected(.expected))]
    Identity {
        /// Who it is.
        actual: SpiffeId,
        /// Who would have been accepted.
        expected: Vec<SpiffeId>,
    },
    /// A verified peer of a foreign domain that is not one of those who were expected.
    #[error("the peer proved to be {actual}, and {expected} was expected")]
    OtherPeer {
        /// Who it is.
        actual: SpiffeId,
        /// Who would have been accepted.
        expected: String,
    },
    /// A peer that says to be of another domain than the one whose anchors are asked.
    #[error("the peer says that it is {id}, and {expected} was expected: no anchors of other trust domains are asked")]
    OtherDomain {
        /// Who the peer says that it is.
        id: SpiffeId,
        /// Who would have been accepted.
        expected: String,
    },
    /// No certificate in the chain has the pinned hash.
    #[error(
        "no certificate that the control plane showed has the hash {pinned} that the join token pins: wrong server, or the root was replaced"
    )]
    NotPinned {
        /// The hash in the token.
        pinned: String,
    },
    /// The server is vouched for, but is not the control plane.
    #[error("{0} is not the control plane's identity")]
    NotControlPlane(SpiffeId),
}

impl VerifyError {
    /// What is wrong in a word, for metrics.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Leaf(_) => "not-an-svid",
            Self::ForeignDomain { .. } => "foreign-domain",
            Self::Chain { .. } | Self::Long(_) => "chain",
            Self::Validity { .. } => "validity",
            Self::Denied { .. } => "denied",
            Self::Reserved(_) | Self::NotControlPlane(_) => "reserved",
            Self::Identity { .. } | Self::OtherPeer { .. } | Self::OtherDomain { .. } => "identity",
            Self::NotPinned { .. } => "not-pinned",
        }
    }
}

struct Expected<'a>(&'a [SpiffeId]);

impl fmt::Display for Expected<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [] => f.write_str("nobody"),
            [one] => write!(f, "{one}"),
            [one, rest @ ..] => write!(f, "{one} or {} more", rest.len()),
        }
    }
}

impl From<VerifyError> for rustls::Error {
    fn from(e: VerifyError) -> Self {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(e))))
    }
}

/// The verifier's own error within a TLS error, if that is what it was.
pub fn verify_error(e: &rustls::Error) -> Option<&VerifyError> {
    match e {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => inner.downcast_ref(),
        _ => None,
    }
}

/// Certificates beside the leaf that are looked at. The path builder has budgets of its own; this is the first of them, and the cheapest.
const MAX_CHAIN: usize = 16;

/// Checks chain, validity and usage of a leaf against the anchors of its own trust domain.
pub(crate) fn verify_chain(
    provider: &CryptoProvider,
    bundle: &TrustBundle,
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    now: UnixTime,
    usage: KeyUsage,
) -> Result<LeafInfo, VerifyError> {
    if intermediates.len() > MAX_CHAIN {
        return Err(VerifyError::Long(intermediates.len()));
    }
    let info = LeafInfo::read(leaf)?;
    let anchors: Vec<_> = bundle.anchors(info.id.trust_domain()).cloned().collect();
    if anchors.is_empty() {
        return Err(VerifyError::ForeignDomain { id: info.id });
    }
    // The window is checked here, with an allowance for a peer whose clock is off, so that the error can name it; the
    // path builder then sees a time inside the leaf's window.
    let clock = now.as_secs() as i64;
    let skew = wellknown::CLOCK_SKEW_SECS;
    if info.not_after < info.not_before || clock < info.not_before - skew || clock > info.not_after + skew {
        return Err(VerifyError::Validity { not_before: info.not_before, not_after: info.not_after, now: clock, id: info.id });
    }
    let time = clock.clamp(info.not_before, info.not_after);
    let end = EndEntityCert::try_from(leaf).map_err(|e| VerifyError::Chain { id: info.id.clone(), why: e.to_string() })?;
    end.verify_for_usage(
        provider.signature_verification_algorithms.all,
        &anchors,
        intermediates,
        UnixTime::since_unix_epoch(Duration::from_secs(time.max(0) as u64)),
        usage,
        None,
        None,
    )
    .map_err(|e| VerifyError::Chain { id: info.id.clone(), why: e.to_string() })?;
    if bundle.denied().has(&info) {
        return Err(VerifyError::Denied { id: info.id, serial: info.serial });
    }
    Ok(info)
}

macro_rules! signature_methods {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Err(rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.provider.signature_verification_algorithms.supported_schemes()
        }
    };
}

pub(crate) use signature_methods;

/// Decides about a server: it must prove one of the identities that discovery gave for the endpoint.
#[derive(Debug)]
pub struct ServerVerifier {
    provider: Arc<CryptoProvider>,
    bundle: Arc<TrustBundle>,
    expected: Vec<SpiffeId>,
}

impl ServerVerifier {
    /// Accepts `expected` and nobody else; with none expected, nobody.
    pub fn new(provider: Arc<CryptoProvider>, bundle: Arc<TrustBundle>, expected: Vec<SpiffeId>) -> Self {
        Self { provider, bundle, expected }
    }

    /// Accepts the control plane of `domain` and nobody else.
    pub fn control_plane(provider: Arc<CryptoProvider>, bundle: Arc<TrustBundle>, domain: TrustDomain) -> Self {
        Self::new(provider, bundle, vec![SpiffeId::control_plane(domain)])
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let info = verify_chain(&self.provider, &self.bundle, end_entity, intermediates, now, KeyUsage::server_auth())?;
        if !self.expected.contains(&info.id) {
            return Err(VerifyError::Identity { actual: info.id, expected: self.expected.clone() }.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    signature_methods!();
}

/// Decides about a client: it must prove some identity of the mesh. Who may do what is decided afterwards.
#[derive(Debug)]
pub struct ClientVerifier {
    provider: Arc<CryptoProvider>,
    bundle: Arc<TrustBundle>,
    mandatory: bool,
}

impl ClientVerifier {
    /// Between sidecars: no connection without an identity.
    pub fn mandatory(provider: Arc<CryptoProvider>, bundle: Arc<TrustBundle>) -> Self {
        Self { provider, bundle, mandatory: true }
    }

    /// At the control plane: a workload that joins has no certificate yet. What it may call then is a table there.
    pub fn optional(provider: Arc<CryptoProvider>, bundle: Arc<TrustBundle>) -> Self {
        Self { provider, bundle, mandatory: false }
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let info = verify_chain(&self.provider, &self.bundle, end_entity, intermediates, now, KeyUsage::client_auth())?;
        // At a control plane a replica may come as a client of another.
        if self.mandatory && info.id.is_control_plane() {
            return Err(VerifyError::Reserved(info.id).into());
        }
        Ok(ClientCertVerified::assertion())
    }

    signature_methods!();
}

/// Decides about the control plane before there is a bundle: the anchor is the certificate in the shown chain whose
/// hash the join token pins.
#[derive(Debug)]
pub struct PinnedAnchor {
    provider: Arc<CryptoProvider>,
    /// SHA-256 of the anchor, hexadecimal.
    pinned: String,
}

impl PinnedAnchor {
    /// Pins the anchor with this SHA-256 (hexadecimal).
    pub fn new(provider: Arc<CryptoProvider>, pinned: String) -> Self {
        Self { provider, pinned }
    }
}

impl ServerCertVerifier for PinnedAnchor {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let anchor = intermediates
            .iter()
            .find(|der| anchor_hash(der) == self.pinned)
            .ok_or_else(|| VerifyError::NotPinned { pinned: self.pinned.clone() })?;
        let id = LeafInfo::read(end_entity).map_err(VerifyError::Leaf)?.id;
        let bundle = TrustBundle::new(id.trust_domain().clone(), vec![anchor.clone().into_owned()])
            .map_err(|e| VerifyError::Chain { id: id.clone(), why: e.to_string() })?;
        let info = verify_chain(&self.provider, &bundle, end_entity, intermediates, now, KeyUsage::server_auth())?;
        if !info.id.is_control_plane() {
            return Err(VerifyError::NotControlPlane(info.id).into());
        }
        Ok(ServerCertVerified::assertion())
    }

    signature_methods!();
}
