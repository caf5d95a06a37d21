use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use weft_core::SpiffeId;
use weft_tls::{LeafInfo, PendingKey};

use super::super::super::ca::{Source, Whose, make};
use super::super::super::csr;
use super::super::records::Seat;
use super::super::replicas::SETTLES;
use super::super::rotation::Refusal;
use super::*;

fn pod(name: &str) -> ObjectRef {
    format!("shop/{name}").parse().expect("a name")
}

fn replica(name: &str) -> ObjectRef {
    format!("weft-system/{name}").parse().expect("a name")
}

/// What there is of a cluster.
struct Fake {
    stored: Mutex<Stored>,
    replicas: Mutex<BTreeMap<ObjectRef, Option<Arc<Shared>>>>,
    pods: Mutex<BTreeSet<ObjectRef>>,
    /// Those of them that replicas have heard of.
    known: Mutex<BTreeSet<ObjectRef>>,
    /// So many changes lose against somebody who has nothing to do with a rotation.
    loses: AtomicUsize,
    unspread: AtomicBool,
    root_keys: Mutex<Vec<String>>,
    /// What time it is, in seconds.
    clock: Arc<AtomicU64>,
}

/// The cluster as one replica sees it.
struct View {
    fake: Arc<Fake>,
    me: ObjectRef,
}

fn next(version: &str) -> String {
    (version.parse::<u64>().expect("a number") + 1).to_string()
}

#[tonic::async_trait]
impl Cluster for View {
    async fn read(&self) -> Result<Stored, String> {
        Ok(self.fake.stored.lock().expect("whole").clone())
    }
    async fn swap(&self, wanted: &Stored) -> Result<Option<Stored>, String> {
        let mut stored = self.fake.stored.lock().expect("whole");
        if self.fake.loses.load(Relaxed) > 0 {
            self.fake.loses.fetch_sub(1, Relaxed);
            stored.version = next(&stored.version);
        }
        if stored.version != wanted.version {
            return Ok(None);
        }
        *stored = Stored { version: next(&stored.version), ..wanted.clone() };
        Ok(Some(stored.clone()))
    }
    async fn keep_root_key(&self, anchor: &str, _: &str) -> Result<(), String> {
        self.fake.root_keys.lock().expect("whole").push(anchor.to_owned());
        Ok(())
    }
    fn me(&self) -> ObjectRef {
        self.me.clone()
    }
    async fn others(&self) -> Result<Vec<Told>, String> {
        let others: Vec<_> =
            self.fake.replicas.lock().expect("whole").clone().into_iter().filter(|(r, _)| *r != self.me).collect();
        let mut told = Vec::new();
        for (replica, shared) in others {
            let silent = || Unheard::Silent("connection refused".into());
            let said = match shared {
                Some(shared) => shared.account().await.expect("it shares").map_err(Unheard::Silent),
                None => Err(silent()),
            };
            told.push(Told { replica, said });
        }
        Ok(told)
    }
    async fn pods(&self) -> Result<BTreeSet<ObjectRef>, String> {
        Ok(self.fake.pods.lock().expect("whole").clone())
    }
    fn known_pods(&self) -> BTreeSet<ObjectRef> {
        self.fake.known.lock().expect("whole").clone()
    }
    async fn unspread(&self) -> Result<Vec<ObjectRef>, String> {
        let lacks = self.fake.unspread.load(Relaxed).then(|| pod("weft-trust-bundle"));
        Ok(lacks.into_iter().collect())
    }
}

/// A sidecar that is connected to a replica.
struct Sidecar {
    name: &'static str,
    leaf: LeafInfo,
    anchor: String,
    seat: Seat,
}

impl Fake {
    fn new() -> Arc<Self> {
        let made = make(&"cluster.local".parse().expect("valid"), "").expect("made");
        let parts = Parts::made("Secret weft-system/weft-ca".into(), &made);
        Arc::new(Self {
            stored: Mutex::new(Stored { parts, version: "1".into(), ours: true }),
            replicas: Mutex::default(),
            pods: Mutex::default(),
            known: Mutex::default(),
            loses: AtomicUsize::new(0),
            unspread: AtomicBool::new(false),
            root_keys: Mutex::default(),
            clock: Arc::default(),
        })
    }

    fn start(self: &Arc<Self>, name: &str) -> Arc<Shared> {
        let stored = self.stored.lock().expect("whole").clone();
        let roots = stored.parts.roots().expect("good");
        let ca = Ca::open("cluster.local".parse().expect("valid"), &Source::Shared(&roots)).expect("it opens");
        let (view, clock) = (View { fake: self.clone(), me: replica(name) }, self.clock.clone());
        let shared = Shared::by(Arc::new(ca), Arc::new(view), Arc::new(move || Duration::from_secs(clock.load(Relaxed))));
        self.replicas.lock().expect("whole").insert(replica(name), Some(shared.clone()));
        shared
    }

    /// It ends, and its pod is there yet, or is not.
    fn end(&self, name: &str, is_listed: bool) {
        let mut replicas = self.replicas.lock().expect("whole");
        replicas.remove(&replica(name));
        if is_listed {
            replicas.insert(replica(name), None);
        }
    }

    /// Somebody writes the Secret.
    fn put(&self, parts: Parts, ours: bool) {
        let mut stored = self.stored.lock().expect("whole");
        *stored = Stored { parts, version: next(&stored.version), ours };
    }

    fn pass(&self, time: Duration) {
        self.clock.fetch_add(time.as_secs(), Relaxed);
    }

    fn state(&self) -> State {
        self.stored.lock().expect("whole").parts.roots().expect("good").state
    }
}

fn issue(at: &Shared, name: &str) -> LeafInfo {
    let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web".parse().expect("valid");
    let key = PendingKey::generate().expect("a key");
    let request = csr::check(&key.request(&id).expect("a request")).expect("good");
    let chain = at.ca.issue(&id, &pod(name), &request.public_key, Whose::Sidecar).expect("issued").waited();
    LeafInfo::read(&chain[0]).expect("a leaf")
}

fn join(fake: &Fake, at: &Shared, name: &'static str) -> Sidecar {
    for pods in [&fake.pods, &fake.known] {
        pods.lock().expect("whole").insert(pod(name));
    }
    let leaf = issue(at, name);
    let seat = at.ca.records().joined(&leaf).expect("it names a pod");
    let mut sidecar = Sidecar { name, leaf, anchor: at.ca.anchor_hash(), seat };
    answer(at, &mut sidecar);
    sidecar
}

/// It renews by one replica, and is connected to another.
fn renew(by: &Shared, at: &Shared, sidecar: &mut Sidecar) {
    (sidecar.leaf, sidecar.anchor) = (issue(by, sidecar.name), by.ca.anchor_hash());
    answer(at, sidecar);
}

/// It says that the bundle is in force.
fn answer(at: &Shared, sidecar: &mut Sidecar) {
    sidecar.seat.says(&v1::ServedCertificate {
        serial: sidecar.leaf.serial.clone(),
        not_after: sidecar.leaf.not_after,
        anchor: sidecar.anchor.clone(),
        trusted: at.ca.now().bundle.hashes(at.ca.domain()).collect(),
        ..Default::default()
    });
}

async fn phase_of(shared: &Shared) -> v1::TrustPhase {
    shared.step().await.expect("the store is good");
    shared.status().await.phase()
}

fn missing(status: &v1::TrustStatusResponse) -> Vec<String> {
    status.missing.iter().map(|m| format!("{}/{}", m.namespace, m.pod)).collect()
}

/// What was under way has come in.
async fn settle(fake: &Fake, shared: &Shared) {
    shared.step().await.expect("the store is good");
    fake.pass(SETTLES);
}

fn keys(shared: &Shared) -> usize {
    let set: serde_json::Value = serde_json::from_slice(&shared.ca.now().tokens.published()).expect("JSON");
    set["keys"].as_array().expect("a list").len()
}

#[tokio::test]
async fn a_root_is_rotated_by_replicas_of_which_one_ends_and_the_secret_has_the_new_one_alone() {
    let fake = Fake::new();
    let (one, two) = (fake.start("one"), fake.start("two"));
    let old = one.ca.anchor_hash();
    let (mut a, mut b) = (join(&fake, &one, "a"), join(&fake, &two, "b"));
    two.rotate(&[]).await.expect("begun");
    assert!(matches!(one.rotate(&[]).await, Err(TrustError::Refused(Refusal::UnderWay))), "it has heard of it");
    assert_eq!(fake.root_keys.lock().expect("whole").len(), 1);
    answer(&one, &mut a);
    let status = two.status().await;
    assert_eq!((status.phase(), status.holders, status.connected, status.trusting), (v1::TrustPhase::Spreading, 2, 2, 1));
    assert_eq!(missing(&status), ["weft-system/two", "shop/b"], "{status:?}");
    answer(&two, &mut b);
    assert_eq!(phase_of(&one).await, v1::TrustPhase::Spreading, "what was under way may come yet");
    settle(&fake, &one).await;
    assert_eq!(phase_of(&one).await, v1::TrustPhase::Reissuing);
    let new = one.ca.anchor_hash();
    assert!(new != old && keys(&one) == 2);

    // It ends before it has told anybody. Its pod is there yet, and is waited for.
    fake.end("one", true);
    drop(a);
    renew(&two, &two, &mut b);
    settle(&fake, &two).await;
    let refused = two.finish(&[]).await.expect_err("a is not connected");
    assert!(refused.to_string().contains("1 may still serve"), "{refused}");
    assert_eq!(missing(&two.status().await), ["weft-system/one", "shop/a"]);
    let mut a = join(&fake, &two, "a");
    renew(&two, &two, &mut a);
    let refused = two.finish(&[]).await.expect_err("a replica is silent");
    assert!(refused.to_string().contains("weft-system/one"), "{refused}");
    fake.end("one", false);
    let three = fake.start("three");
    assert_eq!(three.ca.anchor_hash(), new, "it begins with what there is");
    settle(&fake, &two).await;
    two.step().await.expect("the store is good");
    // Any of them takes the command; it was there for a moment only.
    assert!(three.finish(&[]).await.expect_err("what was under way may come yet").to_string().contains("three"));
    fake.loses.store(2, Relaxed);
    two.finish(&[]).await.expect("nobody serves the old root's");
    for replica in [&two, &three] {
        let status = replica.status().await;
        assert_eq!((status.phase(), status.anchors.len(), status.missing_total), (v1::TrustPhase::Settled, 1, 0), "{status:?}");
        assert_eq!((&status.anchors[0].hash, status.anchors[0].served_by), (&new, 2));
    }
    let names: Vec<String> = fake.stored.lock().expect("whole").parts.texts.keys().cloned().collect();
    assert_eq!(names, ["ca.crt", "tls.crt", "tls.key", "trust.json"]);
    // JWT-SVIDs of the old root's key last for some minutes.
    assert_eq!((keys(&two), keys(&three)), (2, 2));
    fake.pass(RETIRES);
    two.step().await.expect("the store is good");
    assert_eq!(keys(&two), 1);
    // And again, from there.
    two.rotate(&[]).await.expect("begun");
    assert_eq!(fake.state().current, new);
}

#[tokio::test]
async fn of_two_who_begin_at_once_one_does() {
    let fake = Fake::new();
    let (one, two) = (fake.start("one"), fake.start("two"));
    let (first, second) = tokio::join!(one.rotate(&[]), two.rotate(&[]));
    assert_eq!([first.is_ok(), second.is_ok()].iter().filter(|ok| **ok).count(), 1, "{first:?} {second:?}");
    assert_eq!(fake.root_keys.lock().expect("whole").len(), 1);
    for replica in [&one, &two] {
        replica.sync().await.expect("read");
        assert_eq!(replica.ca.now().bundle.hashes(replica.ca.domain()).count(), 2);
    }
}

#[tokio::test]
async fn an_abort_goes_back_and_a_pod_is_given_up_by_name_and_a_replica_is_not() {
    let fake = Fake::new();
    let one = fake.start("one");
    let old = one.ca.anchor_hash();
    let mut a = join(&fake, &one, "a");
    fake.pods.lock().expect("whole").insert(pod("away"));
    one.rotate(&[]).await.expect("begun");
    answer(&one, &mut a);
    fake.unspread.store(true, Relaxed);
    settle(&fake, &one).await;
    assert_eq!(missing(&one.status().await), ["shop/weft-trust-bundle"], "new pods would not find the control plane");
    fake.unspread.store(false, Relaxed);
    settle(&fake, &one).await;
    // Nobody has told this replica of the pod; the cluster has.
    assert_eq!(phase_of(&one).await, v1::TrustPhase::Spreading);
    assert_eq!(missing(&one.status().await), ["shop/away"]);
    assert!(matches!(one.rotate(&["shop/nobody".into()]).await, Err(TrustError::Refused(Refusal::NotMissing(_)))));
    fake.end("two", true);
    assert!(matches!(one.rotate(&["weft-system/two".into()]).await, Err(TrustError::Replicas(_))));
    fake.end("two", false);
    let two = fake.start("two");
    one.rotate(&["shop/away".into()]).await.expect("it is missing");
    assert_eq!(phase_of(&one).await, v1::TrustPhase::Reissuing, "whom it gives up is no part of the phase");
    renew(&two, &one, &mut a);
    assert_eq!(a.anchor, two.ca.anchor_hash());
    two.abort(&[]).await.expect("under way");
    settle(&fake, &one).await;
    assert_eq!(missing(&one.status().await), ["shop/a"]);
    renew(&two, &one, &mut a);
    assert_eq!(a.anchor, old);
    assert_eq!(phase_of(&one).await, v1::TrustPhase::Settled);
    assert_eq!(fake.state(), State::settled(old));
}

#[tokio::test]
async fn what_is_somebody_elses_is_not_rotated_and_an_issuer_that_was_renewed_is_taken_over() {
    let fake = Fake::new();
    let one = fake.start("one");
    fake.stored.lock().expect("whole").ours = false;
    assert!(matches!(one.rotate(&[]).await, Err(TrustError::Fixed)));
    assert!(one.status().await.fixed.contains("docs/identity.md"));
    // Another root, of which nobody has heard: it is not taken over, ours or not.
    let made = make(one.ca.domain(), "").expect("made");
    let before = one.ca.anchor_hash();
    for ours in [true, false] {
        fake.put(Parts::made("here".into(), &made), ours);
        let status = one.status().await;
        assert!(status.problem.contains("another root") && one.ca.anchor_hash() == before, "{status:?}");
    }
}
