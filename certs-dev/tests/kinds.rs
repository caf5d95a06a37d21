//! Each kind of leaf has the defect that it promises, and no other.

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use weft_certs::{Authority, Leaf, LeafKind, LeafSpec};
use weft_core::wellknown::{BACKDATE_SECS, LEAF_LIFETIME_SECS, OID_ATTESTED_POD};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::parse_x509_certificate;
use x509_parser::time::ASN1Time;

const ID: &str = "spiffe://test.example/ns/shop/sa/web";

fn authority() -> Authority {
    Authority::new("test.example")
}

fn parse(der: &[u8]) -> X509Certificate<'_> {
    let (rest, certificate) = parse_x509_certificate(der).expect("a certificate in DER");
    assert!(rest.is_empty(), "bytes follow the certificate");
    certificate
}

/// Everything that is wrong with a leaf that should be a good one for [`ID`] under `authority`.
fn defects(leaf: &Leaf, authority: &Authority) -> Vec<&'static str> {
    let certificate = parse(&leaf.chain_der[0]);
    let issuer_der = authority.issuer_der();
    let issuer = parse(&issuer_der);
    let now = ASN1Time::now().timestamp();
    let validity = certificate.validity();

    let mut uris = Vec::new();
    let mut has_dns = false;
    if let Some(san) = certificate.subject_alternative_name().expect("one SAN extension at most") {
        for name in &san.value.general_names {
            match name {
                GeneralName::URI(uri) => uris.push(*uri),
                GeneralName::DNSName(_) => has_dns = true,
                other => panic!("an unexpected name: {other:?}"),
            }
        }
    }
    let signs =
        certificate.key_usage().expect("one key usage extension at most").is_some_and(|usage| usage.value.digital_signature());
    let both_ends = certificate
        .extended_key_usage()
        .expect("one extended key usage extension at most")
        .is_some_and(|usage| usage.value.server_auth && usage.value.client_auth);
    let explicit_constraints = certificate.basic_constraints().expect("one basic constraints extension at most").is_some();

    [
        (validity.not_after.timestamp() < now, "expired"),
        (validity.not_before.timestamp() > now, "not yet valid"),
        (uris.is_empty(), "no URI"),
        (uris.len() == 1 && uris[0] != ID, "another URI"),
        (uris.len() > 1, "several URIs"),
        (has_dns, "a DNS name"),
        (certificate.subject().iter_common_name().next().is_some(), "a common name"),
        (!signs, "no digitalSignature"),
        (!both_ends, "not for both ends"),
        (certificate.is_ca(), "a CA"),
        (!explicit_constraints, "no basic constraints"),
        (certificate.verify_signature(Some(issuer.public_key())).is_err(), "another signer"),
    ]
    .into_iter()
    .filter_map(|(holds, defect)| holds.then_some(defect))
    .collect()
}

fn promised(kind: LeafKind) -> &'static [&'static str] {
    match kind {
        LeafKind::Valid => &[],
        LeafKind::Expired => &["expired"],
        LeafKind::NotYetValid => &["not yet valid"],
        LeafKind::WrongTrustDomain => &["another URI"],
        LeafKind::WrongSan => &["no URI", "a DNS name"],
        LeafKind::TwoUriSans => &["several URIs"],
        LeafKind::NoSan => &["no URI"],
        LeafKind::CnOnly => &["no URI", "a common name"],
        LeafKind::WrongKeyUsage => &["no digitalSignature"],
        LeafKind::WrongExtendedKeyUsage => &["not for both ends"],
        LeafKind::CaLeaf => &["a CA"],
        LeafKind::SelfSigned | LeafKind::ForeignRoot => &["another signer"],
    }
}

#[test]
fn each_kind_has_its_defect_and_no_other() {
    let authority = authority();
    for kind in LeafKind::ALL {
        let leaf = authority.leaf(&LeafSpec::new(kind, ID));
        assert_eq!(defects(&leaf, &authority), promised(kind), "{kind}");
    }
}

#[test]
fn the_chain_leads_to_the_root() {
    let authority = authority();
    let root_der = authority.root_der();
    let root = parse(&root_der);
    assert!(root.is_ca());
    root.verify_signature(None).expect("the root signs itself");
    assert!(root.subject_alternative_name().expect("at most one").is_none(), "an authority is nobody's identity");

    let leaf = authority.leaf(&LeafSpec::new(LeafKind::Valid, ID));
    assert_eq!(leaf.chain_der.len(), 2);
    assert_eq!(leaf.chain_der[1], authority.issuer_der());
    let issuer = parse(&leaf.chain_der[1]);
    assert!(issuer.is_ca());
    assert_eq!(issuer.issuer(), root.subject());
    issuer.verify_signature(Some(root.public_key())).expect("the root signs the issuer");
    assert!(issuer.subject_alternative_name().expect("at most one").is_none());
}

#[test]
fn a_self_signed_leaf_stands_alone() {
    let leaf = authority().leaf(&LeafSpec::new(LeafKind::SelfSigned, ID));
    assert_eq!(leaf.chain_der.len(), 1);
    parse(&leaf.chain_der[0]).verify_signature(None).expect("it is signed with its own key");
}

#[test]
fn a_foreign_chain_differs_in_its_keys_alone() {
    let authority = authority();
    let leaf = authority.leaf(&LeafSpec::new(LeafKind::ForeignRoot, ID));
    let own_der = authority.issuer_der();
    let (own, foreign) = (parse(&own_der), parse(&leaf.chain_der[1]));
    assert_eq!(own.subject(), foreign.subject());
    assert_ne!(own.public_key().raw, foreign.public_key().raw);
    parse(&leaf.chain_der[0]).verify_signature(Some(foreign.public_key())).expect("its own issuer signed it");
}

#[test]
fn a_valid_leaf_is_backdated_and_lives_for_a_day() {
    let leaf = authority().leaf(&LeafSpec::new(LeafKind::Valid, ID));
    let certificate = parse(&leaf.chain_der[0]);
    let validity = certificate.validity();
    let (from, until) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    assert_eq!(until - from, BACKDATE_SECS + LEAF_LIFETIME_SECS);
    let age = ASN1Time::now().timestamp() - from;
    assert!((BACKDATE_SECS..BACKDATE_SECS + 60).contains(&age), "backdated by {age} s");
}

#[test]
fn the_attested_pod_is_an_extension_that_is_not_critical() {
    let authority = authority();
    let long = format!("shop/{}", "p".repeat(200));
    for pod in ["shop/web-1", long.as_str()] {
        let leaf = authority.leaf(&LeafSpec::new(LeafKind::Valid, ID).with_pod(pod));
        assert_eq!(attested_pod(&leaf).as_deref(), Some(pod));
        assert_eq!(defects(&leaf, &authority), promised(LeafKind::Valid));
    }
    assert_eq!(attested_pod(&authority.leaf(&LeafSpec::new(LeafKind::Valid, ID))), None);
}

fn attested_pod(leaf: &Leaf) -> Option<String> {
    let certificate = parse(&leaf.chain_der[0]);
    let extension =
        certificate.extensions().iter().find(|extension| extension.oid.iter().is_some_and(|arcs| arcs.eq(OID_ATTESTED_POD)))?;
    assert!(!extension.critical);
    let (length, text) = match extension.value {
        [0x0c, 0x81, length, text @ ..] | [0x0c, length @ 0..=0x7f, text @ ..] => (usize::from(*length), text),
        other => panic!("not a UTF8String of fewer than 256 bytes: {other:?}"),
    };
    assert_eq!(length, text.len());
    Some(String::from_utf8(text.to_vec()).expect("UTF-8"))
}

#[test]
fn pem_and_der_say_the_same() {
    let authority = authority();
    let leaf = authority.leaf(&LeafSpec::new(LeafKind::Valid, ID));
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(leaf.chain_pem().as_bytes()).collect::<Result<_, _>>().expect("certificates in PEM");
    assert_eq!(chain, leaf.chain_der);
    let root = CertificateDer::from_pem_slice(authority.root_pem().as_bytes()).expect("a certificate in PEM");
    assert_eq!(root, authority.root_der());
    let key = rustls_pki_types::PrivateKeyDer::from_pem_slice(leaf.key_pem().as_bytes()).expect("a key in PEM");
    assert_eq!(key.secret_der(), leaf.key_der.secret_der());
    assert!(authority.issuer_key_pem().starts_with("-----BEGIN PRIVATE KEY-----"));
}

#[test]
fn names_are_unique_and_lead_back_to_the_kind() {
    for kind in LeafKind::ALL {
        assert_eq!(kind.to_string().parse::<LeafKind>(), Ok(kind));
    }
    let error = "fine".parse::<LeafKind>().expect_err("there is no such kind");
    assert!(error.to_string().contains("\"fine\"") && error.to_string().contains("foreign-root"), "{error}");
}

#[test]
fn debug_never_prints_a_key() {
    let authority = authority();
    let leaf = authority.leaf(&LeafSpec::new(LeafKind::Valid, ID));
    assert_eq!(format!("{authority:?}"), "Authority { trust_domain: test.example, .. }");
    assert_eq!(format!("{leaf:?}"), "Leaf { certificates: 2, .. }");
}

#[test]
fn what_no_certificate_can_hold_is_an_error() {
    assert!(Authority::try_new("Not A Domain").is_err());
    let error = authority().try_leaf(&LeafSpec::new(LeafKind::Valid, "spiffe://bücher/ns/a/sa/b")).expect_err("not ASCII");
    assert!(error.to_string().contains("ASCII"), "{error}");
}
