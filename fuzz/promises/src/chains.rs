//! Whole chains, as a peer shows them in a handshake.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::client::danger::ServerCertVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use weft_core::SpiffeId;
use weft_tls::{
    ClientVerifier, Denied, LeafInfo, PinnedAnchor, ServerVerifier, TrustBundle, VerifyError, anchor_hash, provider, verify_error,
};

/// The anchor, and the only two leaves that ever were issued under it (by way of one issuer): its key is thrown away (`make-seeds`).
const ANCHOR: &[u8] = include_bytes!("chains/anchor.der");
const WORKLOAD: &[u8] = include_bytes!("chains/workload.der");
const CONTROL_PLANE: &[u8] = include_bytes!("chains/control-plane.der");
/// A time at which they are good.
const NOW: u64 = 2_000_000_000;

struct Fixture {
    issued: [LeafInfo; 2],
    mesh: Arc<TrustBundle>,
    /// The same anchor for another domain's names.
    other: Arc<TrustBundle>,
    denying: Arc<TrustBundle>,
}

fn fixture() -> &'static Fixture {
    static MADE: OnceLock<Fixture> = OnceLock::new();
    MADE.get_or_init(|| {
        let issued = [WORKLOAD, CONTROL_PLANE].map(|der| LeafInfo::read(&CertificateDer::from(der)).expect("an SVID"));
        let bundle =
            |domain: &str| TrustBundle::new(domain.parse().expect("a trust domain"), vec![ANCHOR.into()]).expect("an anchor");
        let denied = Denied::new(vec![issued[0].id.clone()], vec![issued[1].serial.clone()]);
        Fixture {
            mesh: Arc::new(bundle("cluster.local")),
            other: Arc::new(bundle("east.example")),
            denying: Arc::new(bundle("cluster.local").denying(Arc::new(denied))),
            issued,
        }
    })
}

/// No chain is believed but one that leads to the anchor, for the very names that were signed; and none where the anchor vouches for another
/// domain, the identity is another than the expected one, or it is denied.
pub fn chain(bytes: &[u8]) {
    let Some((leaf, rest)) = certificates(bytes) else { return };
    let f = fixture();
    let now = UnixTime::since_unix_epoch(Duration::from_secs(NOW));
    let name = ServerName::try_from("web.shop").expect("a name");
    let client =
        |bundle: &Arc<TrustBundle>| ClientVerifier::mandatory(provider(), bundle.clone()).verify_client_cert(&leaf, &rest, now);
    let server = |bundle: &Arc<TrustBundle>, expected: &[SpiffeId]| {
        let verifier = ServerVerifier::new(provider(), bundle.clone(), expected.to_vec());
        verifier.verify_server_cert(&leaf, &rest, &name, &[], now)
    };
    let all: Vec<SpiffeId> = f.issued.iter().map(|info| info.id.clone()).collect();
    let accepted = server(&f.mesh, &all).is_ok();
    let pinned = PinnedAnchor::new(provider(), anchor_hash(&CertificateDer::from(ANCHOR))).verify_server_cert(
        &leaf,
        &rest,
        &name,
        &[],
        now,
    );
    if accepted || client(&f.mesh).is_ok() || pinned.is_ok() {
        let info = LeafInfo::read(&leaf).expect("who is believed has a name");
        assert!(f.issued.contains(&info), "nobody has signed {info:?}");
    }
    if let Ok(info) = LeafInfo::read(&leaf) {
        assert!(!info.id.is_control_plane() || client(&f.mesh).is_err(), "a control plane calls no workload");
        assert!(info.id.is_control_plane() || pinned.is_err(), "a workload is no control plane");
        let others: Vec<SpiffeId> = all.iter().filter(|id| **id != info.id).cloned().collect();
        assert!(server(&f.mesh, &others).is_err() && server(&f.mesh, &[]).is_err(), "it is none of those that are expected");
    }
    assert!(server(&f.other, &all).is_err() && client(&f.other).is_err(), "the anchor vouches for another domain");
    match server(&f.denying, &all) {
        Ok(_) => panic!("it is denied"),
        Err(e) => assert_eq!(accepted, matches!(verify_error(&e), Some(VerifyError::Denied { .. })), "{e}"),
    }
}

/// Certificates one after another, as far as their lengths are well formed; what remains is one more. None without a first.
fn certificates(mut bytes: &[u8]) -> Option<(CertificateDer<'_>, Vec<CertificateDer<'_>>)> {
    let mut all = Vec::new();
    while !bytes.is_empty() && all.len() < 20 {
        let (one, rest) = bytes.split_at(length(bytes).unwrap_or(bytes.len()).min(bytes.len()));
        all.push(CertificateDer::from(one));
        bytes = rest;
    }
    (!all.is_empty()).then(|| (all.remove(0), all))
}

/// The bytes of the DER value that comes first, with its head: a length of two bytes, as all certificates here have.
fn length(bytes: &[u8]) -> Option<usize> {
    let [0x30, 0x82, high, low, ..] = bytes else { return None };
    Some(4 + usize::from(u16::from_be_bytes([*high, *low])))
}
