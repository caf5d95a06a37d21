use std::os::unix::fs::symlink;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints,
};
use time::{Duration as Days, OffsetDateTime};
use weft_core::SpiffeId;
use weft_core::service::ObjectRef;
use zeroize::Zeroizing;

use super::*;
use crate::issue::ca::{Source, Whose};
use crate::issue::csr;

fn domain() -> TrustDomain {
    "cluster.local".parse().expect("valid")
}

fn authority(name: &str, path: Option<u8>) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(path.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// A certificate with what signs under it.
struct Made {
    pem: String,
    key: KeyPair,
    params: CertificateParams,
}

impl Made {
    fn root(params: CertificateParams) -> Self {
        let key = KeyPair::generate().expect("a key");
        Self { pem: params.self_signed(&key).expect("signed").pem(), key, params }
    }

    fn under(params: CertificateParams, by: &Self) -> Self {
        let key = KeyPair::generate().expect("a key");
        let signer = Issuer::from_params(&by.params, &by.key);
        Self { pem: params.signed_by(&key, &signer).expect("signed").pem(), key, params }
    }
}

fn pem(chain: &[&Made], roots: &[&Made]) -> Pem {
    Pem {
        place: "here".into(),
        chain: chain.iter().map(|m| m.pem.as_str()).collect(),
        key: Zeroizing::new(chain[0].key.serialize_pem()),
        anchors: (!roots.is_empty()).then(|| roots.iter().map(|m| m.pem.as_str()).collect()),
    }
}

#[test]
fn what_may_not_issue_is_refused_by_table() {
    let root = Made::root(authority("root", None));
    let other = Made::root(authority("other", None));
    let issuer = Made::under(authority("issuer", Some(0)), &root);
    let between = Made::under(authority("between", Some(1)), &root);
    let below = Made::under(authority("below", Some(0)), &between);
    standing(&domain(), &pem(&[&issuer, &root], &[])).expect("the chain ends with the root");
    standing(&domain(), &pem(&[&issuer], &[&root])).expect("as cert-manager writes it");
    let long = standing(&domain(), &pem(&[&below, &between], &[&other, &root])).expect("two between leaf and root");
    assert_eq!(long.authority.chain.len(), 3, "what is between is served");
    assert_eq!(long.bundle.hashes(&domain()).count(), 2);
    assert_eq!(long.issuing.map(|i| i.anchor), Some(long.authority.anchor().to_owned()), "the root that the chain leads to");

    let changed = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = authority("changed", Some(0));
        change(&mut params);
        Made::under(params, &root)
    };
    let leaf = changed(&|p| p.is_ca = IsCa::ExplicitNoCa);
    let mute = changed(&|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
    let ended = changed(&|p| p.not_after = OffsetDateTime::now_utc() - Days::hours(1));
    let early = changed(&|p| p.not_before = OffsetDateTime::now_utc() + Days::hours(1));
    let too_deep = Made::under(authority("too deep", Some(0)), &issuer);
    let elsewhere = changed(&|p| {
        let subtree = GeneralSubtree::DnsName("example.org".into());
        p.name_constraints = Some(NameConstraints { permitted_subtrees: vec![subtree], excluded_subtrees: vec![] });
    });
    let many: Vec<&Made> = std::iter::once(&issuer).chain([&root; 8]).collect();
    for (name, given, why) in [
        ("no CA", pem(&[&leaf], &[&root]), "is not a CA"),
        ("it may not sign", pem(&[&mute], &[&root]), "keyCertSign"),
        ("ended", pem(&[&ended], &[&root]), "is valid from"),
        ("not yet", pem(&[&early], &[&root]), "is valid from"),
        ("path length", pem(&[&too_deep, &issuer], &[&root]), "would not be believed"),
        ("another root", pem(&[&issuer], &[&other]), "would not be believed"),
        ("a gap", pem(&[&below], &[&root]), "would not be believed"),
        ("a root that is no CA", pem(&[&issuer], &[&root, &leaf]), "a root is not usable"),
        ("no root", Pem { anchors: Some(String::new()), ..pem(&[&issuer], &[]) }, "names 0 roots"),
        (
            "another key",
            Pem { key: Zeroizing::new(other.key.serialize_pem()), ..pem(&[&issuer], &[&root]) },
            "not that of the first",
        ),
        ("no certificate", Pem { chain: "text".into(), ..pem(&[&issuer], &[&root]) }, "1 to 8"),
        ("many", pem(&many, &[&root]), "1 to 8"),
    ] {
        let e = standing(&domain(), &given).err().unwrap_or_else(|| panic!("{name} was taken"));
        assert!(e.to_string().contains(why), "{name}: {e}");
    }
    // Names of a kind that a leaf does not have: webpki goes by the kinds that are there.
    standing(&domain(), &pem(&[&elsewhere], &[&root])).expect("a constraint on DNS names is none on a URI");
}

#[test]
fn a_root_is_rotated_by_way_of_the_roots_and_not_before_its_leaves_are_gone() {
    let (old, new) = (Made::root(authority("old", None)), Made::root(authority("new", None)));
    let (old_issuer, new_issuer) = (Made::under(authority("i", Some(0)), &old), Made::under(authority("i", Some(0)), &new));
    let ca = Ca::open(domain(), &Source::Text(&pem(&[&old_issuer], &[&old]))).expect("good");
    let refused = |given: &Pem, why: &str| {
        let e = ca.renew(given).expect_err(why);
        assert!(e.to_string().contains(why), "{e}");
    };
    refused(&pem(&[&new_issuer], &[&new]), "nobody in the mesh trusts yet");
    refused(&pem(&[&new_issuer], &[&new, &old]), "nobody in the mesh trusts yet");
    assert!(ca.renew(&pem(&[&old_issuer], &[&old, &new])).expect("the new root beside the old"));
    assert_eq!(ca.anchor_pem().matches("BEGIN").count(), 2, "pods that start are told of both");

    let pod: ObjectRef = "shop/web-0".parse().expect("valid");
    let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().expect("valid");
    let key = weft_tls::PendingKey::generate().expect("a key");
    let request = csr::check(&key.request(&id).expect("made")).expect("good");
    ca.issue(&id, &pod, &request.public_key, Whose::Sidecar).expect("signed").waited();

    assert!(ca.renew(&pem(&[&new_issuer], &[&old, &new])).expect("all trust it"));
    assert!(!ca.renew(&pem(&[&new_issuer], &[&old, &new])).expect("it is the same"));
    refused(&pem(&[&new_issuer], &[&new]), "1 sidecars");
    // The pod gets a certificate of the new root, and says that it serves it.
    let chain = ca.issue(&id, &pod, &request.public_key, Whose::Sidecar).expect("signed").waited();
    let leaf = weft_tls::LeafInfo::read(&chain[0]).expect("a leaf");
    let mut seat = ca.records().joined(&leaf).expect("it names a pod");
    seat.says(&v1::ServedCertificate {
        serial: leaf.serial.clone(),
        not_after: leaf.not_after,
        anchor: ca.anchor_hash(),
        ..Default::default()
    });
    assert!(ca.renew(&pem(&[&new_issuer], &[&new])).expect("nobody serves the old one"));
    assert_eq!(ca.now().issuing, None);
}

/// The files of one moment in a directory of their own, as a kubelet writes a Secret's.
fn put(dir: &Path, moment: &str, given: &Pem) {
    let data = dir.join(moment);
    std::fs::create_dir(&data).expect("made");
    let files =
        [("tls.crt", given.chain.as_str()), ("tls.key", &given.key), ("ca.crt", given.anchors.as_deref().unwrap_or_default())];
    for (name, text) in files {
        std::fs::write(data.join(name), text).expect("written");
    }
    symlink(moment, dir.join("..new")).expect("made");
    std::fs::rename(dir.join("..new"), dir.join("..data")).expect("renamed");
    for (name, _) in files {
        let _ = symlink(Path::new("..data").join(name), dir.join(name));
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), waiting).await.expect(what);
}

#[tokio::test]
async fn files_that_are_exchanged_by_a_link_are_taken_over_while_it_runs() {
    let root = Made::root(authority("root", None));
    let issuers = [(); 3].map(|()| Made::under(authority("issuer", Some(0)), &root));
    let dir = tempfile::tempdir().expect("temporary directory");
    put(dir.path(), "..1", &pem(&[&issuers[0]], &[&root]));
    let files = Files { chain: dir.path().join("tls.crt"), key: dir.path().join("tls.key"), bundle: None };
    let ca = Arc::new(Ca::open(domain(), &Source::Given(&files)).expect("good"));
    let first = ca.now().authority.chain[0].clone();
    let following = tokio::spawn(follow(files, ca.clone()));
    put(dir.path(), "..2", &pem(&[&issuers[1]], &[&root]));
    until("the second issuer", || ca.now().authority.chain[0] != first).await;
    let second = ca.now().authority.chain[0].clone();

    // A chain without its key: told, and the earlier one stays.
    put(dir.path(), "..3", &Pem { key: Zeroizing::new(root.key.serialize_pem()), ..pem(&[&issuers[2]], &[&root]) });
    until("a problem", || !ca.problem().is_empty()).await;
    assert!(ca.problem().contains("not that of the first certificate"), "{}", ca.problem());
    assert_eq!(ca.now().authority.chain[0], second);
    put(dir.path(), "..4", &pem(&[&issuers[2]], &[&root]));
    until("no problem", || ca.problem().is_empty()).await;
    assert_ne!(ca.now().authority.chain[0], second);
    following.abort();
}
