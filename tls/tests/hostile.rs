//! Certificates that nobody should believe, and what is said of each: a table. The few that look odd and are good stand in it, too.

use std::path::Path;
use std::process::Command;

use rcgen::{
    BasicConstraints, CertificateParams, CidrSubnet, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, SanType, SigningKey as _,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use time::{Duration, OffsetDateTime};
use weft_tls::{LeafError, TrustBundle, VerifyError};

const ID: &str = "spiffe://test.example/ns/shop/sa/web";

struct Made {
    der: CertificateDer<'static>,
    key: KeyPair,
    params: CertificateParams,
}

impl Made {
    fn alone(params: CertificateParams) -> Self {
        let key = KeyPair::generate().expect("a key");
        Self { der: params.self_signed(&key).expect("signed").into(), key, params }
    }

    fn under(params: CertificateParams, by: &Self) -> Self {
        Self::with_key(params, by, KeyPair::generate().expect("a key"))
    }

    fn with_key(params: CertificateParams, by: &Self, key: KeyPair) -> Self {
        let der = params.signed_by(&key, &Issuer::from_params(&by.params, &by.key)).expect("signed").into();
        Self { der, key, params }
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("ASCII"))
}

fn leaf() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.not_before = OffsetDateTime::now_utc() - Duration::minutes(5);
    params.not_after = OffsetDateTime::now_utc() + Duration::days(1);
    params.subject_alt_names = vec![uri(ID)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn changed(change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = leaf();
    change(&mut params);
    params
}

fn bundle(anchors: &[&Made]) -> TrustBundle {
    let anchors = anchors.iter().map(|m| m.der.clone()).collect();
    TrustBundle::new("test.example".parse().expect("valid"), anchors).expect("anchors")
}

fn check(bundle: &TrustBundle, chain: &[&Made]) -> Result<(), VerifyError> {
    let chain: Vec<_> = chain.iter().map(|m| m.der.clone()).collect();
    bundle.check(&chain, UnixTime::now()).map(drop)
}

/// What is wrong, as a word for the table.
fn verdict(outcome: &Result<(), VerifyError>) -> String {
    match outcome {
        Ok(()) => "good".into(),
        Err(VerifyError::Leaf(LeafError::Malformed)) => "malformed".into(),
        Err(VerifyError::Leaf(LeafError::UriNames(n))) => format!("{n} URI names"),
        Err(VerifyError::Leaf(LeafError::Identity(_))) => "no identity".into(),
        Err(VerifyError::Leaf(LeafError::KeyUsage)) => "key usage".into(),
        Err(VerifyError::Leaf(LeafError::Ca)) => "a CA".into(),
        Err(VerifyError::Leaf(LeafError::Serial)) => "serial number".into(),
        Err(VerifyError::ForeignDomain { .. }) => "foreign domain".into(),
        Err(VerifyError::Validity { .. }) => "validity".into(),
        Err(VerifyError::Long(n)) => format!("{n} certificates"),
        Err(VerifyError::Chain { why, .. }) => format!("chain: {why}"),
        Err(other) => other.to_string(),
    }
}

#[test]
fn leaves_by_table() {
    let root = Made::alone(authority("root"));
    let trusted = bundle(&[&root]);
    let hours = Duration::hours;
    let custom = |critical: bool| {
        let mut extension = CustomExtension::from_oid_content(&[2, 25, 4_747], vec![0x05, 0x00]);
        extension.set_criticality(critical);
        extension
    };
    let now = OffsetDateTime::now_utc;
    let table: Vec<(&str, CertificateParams, &str)> = vec![
        ("a good one", leaf(), "good"),
        ("ended", changed(|p| p.not_after = now() - hours(1)), "validity"),
        ("not yet", changed(|p| p.not_before = now() + hours(1)), "validity"),
        ("it ends before it begins", changed(|p| (p.not_before, p.not_after) = (now(), now() - hours(2))), "validity"),
        ("a CA", changed(|p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))), "a CA"),
        ("no key usage", changed(|p| p.key_usages.clear()), "key usage"),
        ("key usage without digitalSignature", changed(|p| p.key_usages = vec![KeyUsagePurpose::KeyAgreement]), "key usage"),
        (
            "for servers alone, shown by a client",
            changed(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            "chain: RequiredEkuNotFound",
        ),
        (
            "for code",
            changed(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning]),
            "chain: RequiredEkuNotFound",
        ),
        (
            "for any usage by name",
            changed(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any]),
            "chain: RequiredEkuNotFound",
        ),
        ("no usage is named", changed(|p| p.extended_key_usages.clear()), "good"),
        ("no name", changed(|p| p.subject_alt_names.clear()), "0 URI names"),
        (
            "a common name alone",
            changed(|p| {
                p.subject_alt_names.clear();
                p.distinguished_name.push(DnType::CommonName, ID);
            }),
            "0 URI names",
        ),
        (
            "a DNS name alone",
            changed(|p| p.subject_alt_names = vec![SanType::DnsName("web".try_into().expect("ASCII"))]),
            "0 URI names",
        ),
        ("two URIs", changed(|p| p.subject_alt_names.push(uri("spiffe://test.example/ns/shop/sa/db"))), "2 URI names"),
        ("the same URI twice", changed(|p| p.subject_alt_names.push(uri(ID))), "2 URI names"),
        ("another URI first", changed(|p| p.subject_alt_names.insert(0, uri("https://x/"))), "2 URI names"),
        (
            "a DNS name and an address beside the URI",
            changed(|p| {
                p.subject_alt_names.push(SanType::DnsName("web".try_into().expect("ASCII")));
                p.subject_alt_names.push(SanType::IpAddress([10, 0, 0, 1].into()));
            }),
            "good",
        ),
        ("another domain", changed(|p| p.subject_alt_names = vec![uri("spiffe://else.example/ns/a/sa/b")]), "foreign domain"),
        ("an unknown extension", changed(|p| p.custom_extensions = vec![custom(false)]), "good"),
        (
            "an unknown extension that is critical",
            changed(|p| p.custom_extensions = vec![custom(true)]),
            "chain: UnsupportedCriticalExtension",
        ),
    ];
    for (what, params, wanted) in table {
        let got = verdict(&check(&trusted, &[&Made::under(params, &root)]));
        assert!(got == wanted || wanted.starts_with("chain: ") && got.starts_with(wanted), "{what}: {got}");
    }
    let p521 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).expect("a key");
    assert_eq!(verdict(&check(&trusted, &[&Made::with_key(leaf(), &root, p521)])), "good", "a P-521 key");
    assert_eq!(verdict(&check(&trusted, &[&Made::alone(leaf())])), "chain: UnknownIssuer", "signed by itself");
    let other = Made::alone(authority("root"));
    let forged = verdict(&check(&trusted, &[&Made::under(leaf(), &other)]));
    assert!(forged.starts_with("chain: "), "a root of the same name: {forged}");
    assert_eq!(bundle(&[&root]).check(&[], UnixTime::now()).map(drop), Err(VerifyError::Leaf(LeafError::Malformed)), "none");
}

#[test]
fn identities_by_table() {
    let root = Made::alone(authority("root"));
    let trusted = bundle(&[&root]);
    for text in [
        "",
        "spiffe://",
        "spiffe://test.example",
        "spiffe://test.example/",
        "spiffe:///ns/shop/sa/web",
        "SPIFFE://test.example/ns/shop/sa/web",
        "https://test.example/ns/shop/sa/web",
        "spiffe://TEST.example/ns/shop/sa/web",
        "spiffe://test.example/ns/Shop/sa/web",
        "spiffe://test.example./ns/shop/sa/.web",
        "spiffe://test.example:443/ns/shop/sa/web",
        "spiffe://user@test.example/ns/shop/sa/web",
        "spiffe://xn--fiqs8s.example/ns/shop/sa/web/",
        "spiffe://test.example/ns/shop/sa/web?x",
        "spiffe://test.example/ns/shop/sa/web#x",
        "spiffe://test.example/ns/shop/sa/we%62",
        "spiffe://test.example/ns/shop/sa/%2e%2e",
        "spiffe://test.example/ns/shop/sa/..",
        "spiffe://test.example/ns/./sa/web",
        "spiffe://test.example/ns/shop/../other/sa/web",
        "spiffe://test.example//ns/shop/sa/web",
        "spiffe://test.example/ns//sa/web",
        "spiffe://test.example/ns/shop/sa/",
        "spiffe://test.example/ns/shop/sa/web/",
        "spiffe://test.example/ns/shop/sa/web/more",
        "spiffe://test.example/ns/shop/sa/web\\x",
        "spiffe://test.example/ns/shop/sa/web\0",
        "spiffe://test.example/ns/shop/sa/web ",
        " spiffe://test.example/ns/shop/sa/web",
        "spiffe://test.example/sa/web/ns/shop",
        &format!("spiffe://{}/ns/shop/sa/web", "a".repeat(256)),
        &format!("spiffe://test.example/ns/{}/sa/web", "a".repeat(64)),
        &format!("spiffe://test.example/ns/shop/sa/{}", "a".repeat(254)),
        &format!("spiffe://test.example/ns/shop/sa/{}", "a/".repeat(20_000)),
    ] {
        let params = changed(|p| p.subject_alt_names = vec![uri(text)]);
        let outcome = check(&trusted, &[&Made::under(params, &root)]);
        let short: String = text.chars().take(60).collect();
        assert_eq!(verdict(&outcome), "no identity", "{short:?}");
        assert!(outcome.is_err_and(|e| e.to_string().len() < 400), "{short:?}: no hostile text at any length in a log");
    }
    // A name that is written with an `xn--` label is a name like others: it is compared byte by byte, never decoded (SPIFFE-ID, section 2.1).
    let idn = changed(|p| p.subject_alt_names = vec![uri("spiffe://xn--fiqs8s.example/ns/shop/sa/web")]);
    assert_eq!(verdict(&check(&trusted, &[&Made::under(idn, &root)])), "foreign domain");
}

#[test]
fn chains_by_table() {
    let root = Made::alone(authority("root"));
    let trusted = bundle(&[&root]);
    let under = |change: &dyn Fn(&mut CertificateParams), by: &Made| {
        let mut params = authority("between");
        change(&mut params);
        Made::under(params, by)
    };
    let constrained = |permitted: Vec<GeneralSubtree>, excluded: Vec<GeneralSubtree>| {
        let constraints = NameConstraints { permitted_subtrees: permitted, excluded_subtrees: excluded };
        under(&|p| p.name_constraints = Some(constraints.clone()), &root)
    };
    let now = OffsetDateTime::now_utc();
    let dns = |name: &str| GeneralSubtree::DnsName(name.into());
    let between: Vec<(&str, Made, &str)> = vec![
        ("an issuer", under(&|_| {}, &root), "good"),
        ("an issuer that ended", under(&|p| p.not_after = now - Duration::hours(1), &root), "CertExpired"),
        ("an issuer that is not yet", under(&|p| p.not_before = now + Duration::hours(1), &root), "CertNotValidYet"),
        ("an issuer that is no CA", under(&|p| p.is_ca = IsCa::ExplicitNoCa, &root), "EndEntityUsedAsCa"),
        (
            "an issuer for servers alone",
            under(&|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth], &root),
            "RequiredEkuNotFound",
        ),
        ("names of another kind are permitted", constrained(vec![dns("x.example")], vec![]), "good"),
        ("names of another kind are excluded", constrained(vec![], vec![dns("x.example")]), "good"),
        (
            "addresses are permitted",
            constrained(vec![GeneralSubtree::IpAddress(CidrSubnet::V4([10, 0, 0, 0], [255, 0, 0, 0]))], vec![]),
            "good",
        ),
    ];
    for (what, issuer, wanted) in &between {
        let got = verdict(&check(&trusted, &[&Made::under(leaf(), issuer), issuer]));
        assert!(got == *wanted || got.starts_with("chain: ") && got.contains(wanted), "{what}: {got}");
    }
    // Constraints on URIs are honoured by refusing: nobody here reads them, and so nobody may ignore them (RFC 5280, section 4.2.1.10).
    for (what, field) in [("permitted", 0xa0_u8), ("excluded", 0xa1)] {
        let name = b"test.example";
        let general = [&[0x86, name.len() as u8], &name[..]].concat();
        let subtree = [&[0x30, general.len() as u8], &general[..]].concat();
        let content = [&[0x30, subtree.len() as u8 + 2, field, subtree.len() as u8], &subtree[..]].concat();
        let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 30], content);
        extension.set_criticality(true);
        let issuer = under(&|p| p.custom_extensions = vec![extension.clone()], &root);
        let got = verdict(&check(&trusted, &[&Made::under(leaf(), &issuer), &issuer]));
        assert!(got.contains("NameConstraintViolation"), "a URI is {what}: {got}");
    }
    let shallow = under(&|p| p.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)), &root);
    let deep = Made::under(authority("deep"), &shallow);
    let got = verdict(&check(&trusted, &[&Made::under(leaf(), &deep), &deep, &shallow]));
    assert!(got.contains("PathLenConstraintViolated"), "{got}");
    let good = under(&|_| {}, &root);
    assert_eq!(verdict(&check(&trusted, &[&Made::under(leaf(), &good)])), "chain: UnknownIssuer", "its issuer is not shown");

    // An anchor vouches for its own domain and for no other.
    let foreign = Made::alone(authority("foreign"));
    let mut both = bundle(&[&root]);
    both.insert("else.example".parse().expect("valid"), vec![foreign.der.clone()]).expect("an anchor");
    assert!(verdict(&check(&both, &[&Made::under(leaf(), &foreign)])).starts_with("chain: "), "the foreign one for ours");
    let theirs = || changed(|p| p.subject_alt_names = vec![uri("spiffe://else.example/ns/a/sa/b")]);
    assert!(verdict(&check(&both, &[&Made::under(theirs(), &root)])).starts_with("chain: "), "ours for the foreign one");
    assert_eq!(verdict(&check(&both, &[&Made::under(theirs(), &foreign)])), "good");
}

/// However much a peer shows, it costs a bounded number of signatures.
#[test]
fn huge_chains_are_refused_without_much_work() {
    let root = Made::alone(authority("root"));
    let trusted = bundle(&[&root]);
    // Each could have signed each: a path builder without a budget would try all orders.
    let key = KeyPair::generate().expect("a key");
    let twins: Vec<Made> = (0..16)
        .map(|_| {
            let own = KeyPair::try_from(key.serialize_der()).expect("a key");
            let params = authority("twin");
            let by = Issuer::from_params(&params, &key);
            Made { der: params.signed_by(&own, &by).expect("signed").into(), key: own, params }
        })
        .collect();
    let mut chain: Vec<&Made> = vec![];
    let end = Made::under(leaf(), &twins[0]);
    chain.push(&end);
    chain.extend(&twins);
    let got = verdict(&check(&trusted, &chain));
    assert!(got.starts_with("chain: "), "{got}");
    chain.push(&twins[0]);
    assert_eq!(verdict(&check(&trusted, &chain)), "17 certificates");
    let big = changed(|p| {
        p.subject_alt_names.extend((0..2_000).map(|i| SanType::DnsName(format!("n{i}.example").try_into().expect("ASCII"))));
    });
    assert_eq!(verdict(&check(&trusted, &[&Made::under(big, &root)])), "good", "many names, of which one is a URI");
}

/// The element at the front of `bytes`, whole, and the rest (X.690, section 8.1).
fn element(bytes: &[u8]) -> (&[u8], &[u8]) {
    let (header, length) = match bytes[1] {
        n @ 0..=0x7f => (2, usize::from(n)),
        0x81 => (3, usize::from(bytes[2])),
        0x82 => (4, usize::from(u16::from_be_bytes([bytes[2], bytes[3]]))),
        _ => panic!("no certificate of a test is so long"),
    };
    bytes.split_at(header + length)
}

fn elements(whole: &[u8]) -> Vec<Vec<u8>> {
    let (mut rest, mut all) = (&whole[element(whole).0.len() - content(whole).len()..], vec![]);
    while !rest.is_empty() {
        let (first, others) = element(rest);
        all.push(first.to_vec());
        rest = others;
    }
    all
}

fn content(whole: &[u8]) -> &[u8] {
    match whole[1] {
        0..=0x7f => &whole[2..],
        0x81 => &whole[3..],
        _ => &whole[4..],
    }
}

fn encoded(tag: u8, content: &[u8]) -> Vec<u8> {
    let n = content.len();
    let mut der = match n {
        0..=0x7f => vec![tag, n as u8],
        0x80..=0xff => vec![tag, 0x81, n as u8],
        _ => vec![tag, 0x82, (n >> 8) as u8, n as u8],
    };
    der.extend_from_slice(content);
    der
}

/// The certificate with some of its fields changed, signed anew. `fields`: version, serial number, algorithm, issuer, validity, subject, key,
/// extensions.
fn signed_anew(
    made: &Made,
    by: &KeyPair,
    outer: Option<&[u8]>,
    change: impl FnOnce(&mut Vec<Vec<u8>>),
) -> CertificateDer<'static> {
    let parts = elements(&made.der);
    let mut fields = elements(&parts[0]);
    change(&mut fields);
    let body = encoded(0x30, &fields.concat());
    let signature = by.sign(&body).expect("signed");
    let bits = encoded(0x03, &[&[0], &signature[..]].concat());
    encoded(0x30, &[&body[..], outer.unwrap_or(&parts[1]), &bits].concat()).into()
}

#[test]
fn what_no_honest_issuer_writes_by_table() {
    let root = Made::alone(authority("root"));
    let trusted = bundle(&[&root]);
    let good = Made::under(leaf(), &root);
    let shown = |der: CertificateDer<'static>| verdict(&trusted.check(&[der], UnixTime::now()).map(drop));
    assert_eq!(shown(signed_anew(&good, &root.key, None, |_| {})), "good", "the tool itself changes nothing");
    let serial = |bytes: &[u8]| {
        let number = encoded(0x02, bytes);
        shown(signed_anew(&good, &root.key, None, |fields| fields[1] = number))
    };
    assert_eq!(serial(&[0x5a; 20]), "good", "the longest serial number that there is");
    for (what, bytes) in
        [("negative", vec![0x80, 1]), ("of 21 bytes", vec![1; 21]), ("of 1,000 bytes", vec![1; 1000]), ("empty", vec![])]
    {
        let got = serial(&bytes);
        assert!(got == "serial number" || got == "malformed", "a serial number that is {what}: {got}");
    }
    let v1 = signed_anew(&good, &root.key, None, |fields| {
        fields.remove(0);
        fields.pop();
    });
    assert_eq!(shown(v1), "0 URI names", "version 1 has no extensions, and so no identity");
    let v1 = signed_anew(&good, &root.key, None, |fields| drop(fields.remove(0)));
    let got = shown(v1);
    assert!(got != "good", "version 1 with extensions: {got}");
    let twice = signed_anew(&good, &root.key, None, |fields| {
        let all = fields.pop().expect("extensions");
        let list = elements(content(&all));
        let doubled = [list.concat(), list.concat()].concat();
        fields.push(encoded(0xa3, &encoded(0x30, &doubled)));
    });
    let got = shown(twice);
    assert!(got != "good", "every extension twice: {got}");
    let mut trailing = good.der.to_vec();
    trailing.push(0);
    let got = shown(trailing.into());
    assert!(got != "good", "bytes behind it: {got}");
    for cut in 0..good.der.len() {
        let got = shown(good.der[..cut].to_vec().into());
        assert!(got != "good", "cut at {cut}");
    }
    for i in 0..good.der.len() {
        let mut flipped = good.der.to_vec();
        flipped[i] ^= 0x01;
        assert_ne!(shown(flipped.into()), "good", "a bit of byte {i} is another");
    }
    // sha1WithRSA, md5WithRSA, ecdsa-with-SHA1: what the certificate says that it was signed by is not even tried.
    for oid in [
        &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x05][..],
        &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x04],
        &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01],
    ] {
        let algorithm = encoded(0x30, &[encoded(0x06, oid), vec![0x05, 0x00]].concat());
        let der = signed_anew(&good, &root.key, Some(&algorithm), |fields| fields[2].clone_from(&algorithm));
        let got = shown(der);
        assert!(got.contains("UnsupportedSignatureAlgorithm"), "{got}");
    }
}

/// Weak keys and digests, as a real tool makes them: ours cannot.
#[test]
fn weak_signatures_by_table() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let run = |line: &str| {
        let output = Command::new("sh").arg("-euc").arg(line).current_dir(dir.path()).output().expect("sh runs");
        assert!(
            output.status.success(),
            "it takes openssl (Debian's package has the same name): {}",
            String::from_utf8_lossy(&output.stderr)
        );
    };
    std::fs::write(
        dir.path().join("ext"),
        format!("subjectAltName=critical,URI:{ID}\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\nbasicConstraints=critical,CA:FALSE\n"),
    )
    .expect("written");
    let read = |name: &str| CertificateDer::from_pem_file(Path::new(&dir.path().join(name))).expect("a certificate");
    for (bits, digest, wanted) in [
        (2048, "sha256", "good"),
        (2048, "sha1", "Unsupported"),
        (2048, "md5", "Unsupported"),
        (1024, "sha256", "InvalidSignature"),
    ] {
        run(&format!(
            "openssl req -x509 -newkey rsa:{bits} -nodes -sha256 -keyout ca.key -out ca.pem -subj /CN=weak -days 2 -addext keyUsage=critical,keyCertSign 2>/dev/null\n\
             openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout leaf.key -out leaf.csr -subj /CN=leaf 2>/dev/null\n\
             openssl x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -CAcreateserial -{digest} -days 1 -extfile ext -out leaf.pem"
        ));
        let trusted = TrustBundle::new("test.example".parse().expect("valid"), vec![read("ca.pem")]).expect("an anchor");
        let got = verdict(&trusted.check(&[read("leaf.pem")], UnixTime::now()).map(drop));
        assert!(got.contains(wanted), "RSA {bits}, {digest}: {got}");
    }
}
