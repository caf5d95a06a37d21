use weft_core::SpiffeId;
use weft_core::wellknown::LEAF_LIFETIME_SECS;
use weft_tls::{LeafInfo, PendingKey};

use super::super::ca::{Source, Whose};
use super::super::csr;
use super::records::Seat;
use super::*;

fn pod(name: &str) -> ObjectRef {
    format!("shop/{name}").parse().expect("a name")
}

/// A CA in a directory, and sidecars that answer when they are told to.
struct World {
    home: tempfile::TempDir,
    trust: Arc<Trust>,
}

struct Sidecar {
    leaf: LeafInfo,
    anchor: String,
    seat: Seat,
}

impl World {
    fn new() -> Self {
        let home = tempfile::tempdir().expect("temporary directory");
        let trust = Self::start(home.path());
        Self { home, trust }
    }

    fn start(dir: &std::path::Path) -> Arc<Trust> {
        let ca = Ca::open("cluster.local".parse().expect("valid"), &Source::Kept(dir)).expect("it opens");
        Trust::new(Arc::new(ca), Arc::new(|_| true))
    }

    fn restart(&mut self) {
        // The earlier one ends first: a directory has one control plane.
        let elsewhere = tempfile::tempdir().expect("temporary directory");
        self.trust = Self::start(elsewhere.path());
        self.trust = Self::start(self.home.path());
    }

    fn issue(&self, name: &str) -> LeafInfo {
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().expect("valid");
        let key = PendingKey::generate().expect("a key");
        let request = csr::check(&key.request(&id).expect("a request")).expect("good");
        let chain = self.trust.ca.issue(&id, &pod(name), &request.public_key, Whose::Sidecar).expect("issued").waited();
        LeafInfo::read(&chain[0]).expect("a leaf")
    }

    /// Gets a certificate, and connects.
    fn join(&self, name: &str) -> Sidecar {
        let leaf = self.issue(name);
        let seat = self.trust.ca.records().joined(&leaf).expect("it names a pod");
        let mut sidecar = Sidecar { leaf, anchor: self.trust.ca.anchor_hash(), seat };
        self.answer(&mut sidecar);
        sidecar
    }

    fn renew(&self, name: &str, sidecar: &mut Sidecar) {
        (sidecar.leaf, sidecar.anchor) = (self.issue(name), self.trust.ca.anchor_hash());
        self.answer(sidecar);
    }

    /// Says that the bundle is in force.
    fn answer(&self, sidecar: &mut Sidecar) {
        sidecar.seat.says(&v1::ServedCertificate {
            serial: sidecar.leaf.serial.clone(),
            not_after: sidecar.leaf.not_after,
            anchor: sidecar.anchor.clone(),
            trusted: self.trust.ca.now().bundle.hashes(self.trust.ca.domain()).collect(),
            ..Default::default()
        });
    }

    fn phase(&self) -> v1::TrustPhase {
        self.trust.try_step();
        assert_eq!(self.trust.status().problem, "", "the disk is good");
        self.trust.status().phase()
    }
}

#[test]
fn a_rotation_goes_on_after_each_restart_and_says_who_is_missing() {
    let mut world = World::new();
    let first = world.trust.status();
    assert_eq!((first.phase(), first.anchors.len(), first.fixed.as_str()), (v1::TrustPhase::Settled, 1, ""));
    let (mut a, _b) = (world.join("a"), world.join("b"));
    world.trust.rotate(&[]).expect("begun");
    assert!(matches!(world.trust.rotate(&[]), Err(TrustError::Refused(Refusal::UnderWay))));
    world.answer(&mut a);
    assert_eq!(world.phase(), v1::TrustPhase::Spreading);
    let status = world.trust.status();
    assert_eq!((status.holders, status.trusting, status.connected, status.missing_total), (2, 1, 2, 1));
    assert_eq!((status.missing[0].namespace.as_str(), status.missing[0].pod.as_str()), ("shop", "b"));

    // Nobody has said anything to the new process, and it knows that both are there.
    world.restart();
    assert_eq!(world.phase(), v1::TrustPhase::Spreading);
    let status = world.trust.status();
    assert_eq!((status.holders, status.connected, status.missing_total), (2, 0, 2));
    assert!(status.missing[0].why.contains("not connected"), "{status:?}");
    let mut a = world.join("a");
    let wrong = world.trust.rotate(&["shop/nobody".into()]).expect_err("not missing");
    assert!(wrong.to_string().contains("shop/nobody is not among those who are missing"), "{wrong}");
    assert!(matches!(world.trust.rotate(&["nonsense".into()]), Err(TrustError::Name(_))));
    world.trust.rotate(&["shop/b".into()]).expect("it is missing");
    assert_eq!(world.phase(), v1::TrustPhase::Reissuing);

    let refused = world.trust.finish(&[]).expect_err("a serves the old root's");
    assert!(refused.to_string().contains("1 may still serve"), "{refused}");
    world.restart();
    assert_eq!(world.phase(), v1::TrustPhase::Reissuing);
    world.renew("a", &mut a);
    let _a = world.join("a");
    let status = world.trust.status();
    assert_eq!((status.given_up, status.missing_total), (vec!["shop/b".to_owned()], 0));
    let new = status.anchors.iter().find(|a| a.new).expect("two roots");
    assert!(new.issuing && new.served_by == 1, "{new:?}");
    world.trust.finish(&[]).expect("nobody serves the old root's");
    let settled = world.trust.status();
    assert_eq!((settled.phase(), settled.anchors.len()), (v1::TrustPhase::Settled, 1));
    assert_eq!(settled.anchors[0].hash, new.hash);
    world.restart();
    assert_eq!(world.trust.status().anchors[0].hash, new.hash);
    assert!(matches!(world.trust.finish(&[]), Err(TrustError::Refused(Refusal::Settled))));
}

#[test]
fn an_abort_waits_for_those_who_have_the_new_root() {
    let world = World::new();
    let old = world.trust.status().anchors[0].hash.clone();
    let mut a = world.join("a");
    world.trust.rotate(&[]).expect("begun");
    world.answer(&mut a);
    assert_eq!(world.phase(), v1::TrustPhase::Reissuing);
    world.renew("a", &mut a);
    world.trust.abort(&[]).expect("under way");
    assert_eq!(world.phase(), v1::TrustPhase::Returning);
    assert_eq!(world.trust.status().missing_total, 1);
    assert!(matches!(world.trust.rotate(&[]), Err(TrustError::Refused(Refusal::Aborting))));
    world.renew("a", &mut a);
    assert_eq!(world.phase(), v1::TrustPhase::Settled);
    let status = world.trust.status();
    assert_eq!((status.anchors.len(), status.anchors[0].hash.as_str()), (1, old.as_str()));
    assert!(matches!(world.trust.abort(&[]), Err(TrustError::Refused(Refusal::Settled))));
}

#[test]
fn a_directory_of_an_earlier_version_has_a_gap_as_long_as_a_certificate_lives() {
    let mut world = World::new();
    drop(world.join("a"));
    std::fs::remove_file(world.home.path().join("issued")).expect("it was there");
    world.restart();
    world.trust.rotate(&[]).expect("begun");
    assert_eq!(world.phase(), v1::TrustPhase::Spreading);
    let status = world.trust.status();
    assert_eq!(status.missing_total, 1);
    let left = status.missing[0].until - unix_now();
    assert!(status.missing[0].pod.is_empty() && (LEAF_LIFETIME_SECS - 60..=LEAF_LIFETIME_SECS).contains(&left), "{status:?}");
    world.restart();
    assert_eq!(world.trust.status().missing_total, 1, "it is remembered");
    world.trust.rotate(&[UNRECORDED.into()]).expect("it is missing");
    assert_eq!(world.phase(), v1::TrustPhase::Reissuing);
    assert_eq!(world.trust.status().given_up, [UNRECORDED]);
}

#[test]
fn a_ca_that_is_given_is_not_ours_to_replace() {
    let made = super::super::ca::make(&"cluster.local".parse().expect("valid"), "").expect("made");
    let pem = super::super::ca::Pem {
        place: "here".into(),
        chain: made.chain.to_string(),
        key: made.issuer_key.clone(),
        anchors: None,
    };
    let ca = Ca::open("cluster.local".parse().expect("valid"), &Source::Text(&pem)).expect("good");
    let trust = Trust::new(Arc::new(ca), Arc::new(|_| true));
    assert!(trust.rotate(&[]).expect_err("refused").to_string().contains("--ca-chain"));
    assert!(trust.finish(&[]).is_err() && trust.abort(&[]).is_err());
    let status = trust.status();
    assert_eq!((status.phase(), status.anchors.len(), status.fixed.is_empty()), (v1::TrustPhase::Settled, 1, false));
}

#[test]
fn a_rotation_that_is_refused_leaves_no_keys() {
    let world = World::new();
    let roots = || std::fs::read_dir(world.home.path()).expect("there").flatten().filter(|e| e.path().is_dir()).count();
    world.trust.rotate(&["nonsense".into()]).expect_err("no name");
    world.trust.rotate(&["shop/nobody".into()]).expect_err("not missing");
    assert_eq!(roots(), 0);
    // The state cannot be written: there is a directory in its place.
    std::fs::create_dir(world.home.path().join("trust.json")).expect("made");
    world.trust.rotate(&[]).expect_err("the disk is at fault");
    std::fs::remove_dir(world.home.path().join("trust.json")).expect("removed");
    world.trust.rotate(&["nonsense".into()]).expect_err("no name");
    assert_eq!(world.trust.status().phase(), v1::TrustPhase::Settled);
}

#[test]
fn what_keeps_a_step_from_being_taken_is_told() {
    let world = World::new();
    let mut a = world.join("a");
    world.trust.rotate(&[]).expect("begun");
    world.answer(&mut a);
    let state = world.home.path().join("trust.json");
    let aside = world.home.path().join("aside");
    std::fs::rename(&state, &aside).expect("moved");
    std::fs::create_dir(&state).expect("made");
    world.trust.try_step();
    let status = world.trust.status();
    assert!(status.phase() == v1::TrustPhase::Spreading && status.problem.contains("trust.json"), "{status:?}");
    std::fs::remove_dir(&state).expect("removed");
    assert_eq!(world.phase(), v1::TrustPhase::Reissuing);
}

#[test]
fn what_a_sidecar_says_of_its_end_is_believed_within_a_certificates_life() {
    let world = World::new();
    let mut a = world.join("a");
    for end in [i64::MAX, i64::MIN] {
        a.leaf.not_after = end;
        world.answer(&mut a);
        let until = world.trust.ca.records().read(|ledger| ledger.holders()[&pod("a")].until());
        let left = until - unix_now();
        assert!((LEAF_LIFETIME_SECS - 60..=LEAF_LIFETIME_SECS).contains(&left), "{left}");
    }
}
