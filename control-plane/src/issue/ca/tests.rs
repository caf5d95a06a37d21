use rcgen::{BasicConstraints, Issuer, KeyPair};
use rustls_pki_types::pem::PemObject;
use zeroize::Zeroizing;

use super::super::authority::last_certificate;
use super::*;
use std::os::unix::fs::PermissionsExt;

#[test]
fn keys_are_made_once_kept_private_and_used_again() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("ca");
    let domain: TrustDomain = "cluster.local".parse().expect("valid");
    let first = Ca::open(domain.clone(), &Source::Kept(&path)).expect("made").anchor_hash();
    let second = Ca::open(domain, &Source::Kept(&path)).expect("read again");
    assert_eq!(first, second.anchor_hash());
    for file in std::fs::read_dir(&path).expect("there").flatten() {
        let mode = file.metadata().expect("there").permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{:?}", file.path());
    }
    let anchor = CertificateDer::from_pem_slice(second.anchor_pem().as_bytes()).expect("one certificate");
    assert_eq!(weft_tls::anchor_hash(&anchor), second.anchor_hash());
    let svid = second.own_svid().expect("signed");
    assert!(svid.info().id.is_control_plane());
    assert_eq!(svid.chain().len(), 3);
    assert!(!format!("{svid:?}").contains("PRIVATE"));
}

#[test]
fn the_anchor_is_told_without_the_key_that_stands_beside_it() {
    let made = make(&"cluster.local".parse().expect("valid"), "").expect("made");
    let together = format!("{}{}", *made.chain, *made.issuer_key);
    let pem = Pem { place: "here".into(), chain: together, key: made.issuer_key.clone(), anchors: None };
    let ca = Ca::open("cluster.local".parse().expect("valid"), &Source::Text(&pem)).expect("good");
    assert!(!ca.anchor_pem().contains("PRIVATE"));
    assert!(made.chain.ends_with(&ca.anchor_pem()), "the root is last");
}

/// The CA that was made, with another issuer under its root, or under `root_key` in its root's name.
fn renewed(made: &Made, root_key: &str) -> Pem {
    let root = last_certificate(&made.chain).expect("made");
    let by = Issuer::from_ca_cert_pem(&root, KeyPair::from_pem(root_key).expect("a key")).expect("a CA");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_after = OffsetDateTime::now_utc() + Duration::hours(1);
    let key = KeyPair::generate().expect("a key");
    let issuer = params.signed_by(&key, &by).expect("signed");
    Pem { place: "there".into(), chain: issuer.pem() + &root, key: Zeroizing::new(key.serialize_pem()), anchors: None }
}

#[test]
fn an_issuer_is_renewed_under_its_root_and_under_no_other() {
    let domain: TrustDomain = "cluster.local".parse().expect("valid");
    let made = make(&domain, "").expect("made");
    let pem =
        |made: &Made| Pem { place: "there".into(), chain: made.chain.to_string(), key: made.issuer_key.clone(), anchors: None };
    let ca = Ca::open(domain.clone(), &Source::Text(&pem(&made))).expect("good");
    let mut issuing = ca.standing();
    let before = ca.own_svid().expect("signed").chain()[1].clone();
    assert!(!ca.renew(&pem(&made)).expect("it is the same"));

    let another = make(&domain, "").expect("made");
    for (bad, why) in [
        (pem(&another), "another root"),
        (renewed(&made, &another.root_key), "would not be believed"),
        (Pem { key: another.issuer_key.clone(), ..pem(&made) }, "not that of the first certificate"),
    ] {
        let e = ca.renew(&bad).expect_err(why);
        assert!(e.to_string().contains(why), "{e}");
    }
    assert!(!issuing.has_changed().expect("it is there"));
    assert_eq!(ca.own_svid().expect("signed").chain()[1], before);

    assert!(ca.renew(&renewed(&made, &made.root_key)).expect("good"));
    let left = issuing.borrow_and_update().authority.remaining().as_secs();
    assert!((3_500..=3_600).contains(&left), "{left}");
    let svid = ca.own_svid().expect("signed");
    assert_ne!(svid.chain()[1], before);
    assert_eq!(ca.anchor_hash(), Ca::open(domain, &Source::Text(&pem(&made))).expect("good").anchor_hash());
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let domain: TrustDomain = "cluster.local".parse().expect("valid");
    Ca::open(domain.clone(), &Source::Kept(dir.path())).expect("made");
    let files = given::Files { chain: dir.path().join("chain.pem"), key: dir.path().join("root.key"), bundle: None };
    let e = Ca::open(domain, &Source::Given(&files)).err().expect("refused");
    assert!(e.to_string().contains("not that of the first certificate"), "{e}");
}
