use std::sync::Mutex;

use weft_proto::v1;
use weft_proto::v1::resource::Body;

use super::claims::tests::{NOW, payload, token};
use super::*;
use crate::snapshot::{Entry, Place, Snapshot};

const FROM: &str = "10.244.0.5";

/// Whether a refusal is the right one.
type Expected = fn(&Refusal) -> bool;
/// A name, what the model knows, what the API server then says one after another, from where the call comes, and the refusal.
type Case = (&'static str, Option<PodFacts>, Vec<Option<PodFacts>>, &'static str, Option<Expected>);

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn review() -> Review {
    Review {
        authenticated: true,
        audiences: vec!["weft".into()],
        username: "system:serviceaccount:shop:web.front".into(),
        extra: [(POD_NAME, "web-0"), (POD_UID, "u-1")].map(|(k, v)| (k.to_owned(), vec![v.to_owned()])).into(),
        error: String::new(),
    }
}

fn facts() -> PodFacts {
    PodFacts {
        uid: Some("u-1".into()),
        service_account: "web.front".into(),
        addresses: vec![ip(FROM), ip("fd00::5")],
        host_network: false,
        has_sidecar: true,
        place: Place::default(),
    }
}

/// Answers with what it was given; of the pod's states one after another, the last for ever.
struct Scripted {
    review: Result<Review, String>,
    pods: Mutex<Vec<Option<PodFacts>>>,
}

#[tonic::async_trait]
impl Witness for Scripted {
    async fn review(&self, _token: &str, audience: &str) -> Result<Review, String> {
        assert_eq!(audience, "weft");
        self.review.clone()
    }
    async fn pod(&self, pod: &ObjectRef) -> Result<Option<PodFacts>, String> {
        assert_eq!(pod.to_string(), "shop/web-0");
        let mut pods = self.pods.lock().expect("no one panicked");
        Ok(if pods.len() > 1 { pods.remove(0) } else { pods.first().cloned().flatten() })
    }
}

fn attester(known: Option<PodFacts>, review: Result<Review, String>, pods: Vec<Option<PodFacts>>) -> PodTokens {
    let entry = Entry::new(Body::Mesh(v1::Mesh::default()));
    let mut snapshot = Snapshot::new(entry.clone(), entry);
    if let Some(known) = known {
        snapshot.pods.insert("shop/web-0".parse().expect("valid"), Arc::new(known));
    }
    let witness = Arc::new(Scripted { review, pods: Mutex::new(pods) });
    PodTokens::new(witness, Hub::new(snapshot), "cluster.local".parse().expect("valid"), "weft".into())
}

async fn outcome(known: Option<PodFacts>, review: Review, pods: Vec<Option<PodFacts>>, from: &str) -> Result<String, Refusal> {
    attester(known, Ok(review), pods).attest_at(&token(&payload()), ip(from), NOW).await.map(|(id, pod)| format!("{id} {pod}"))
}

#[tokio::test]
async fn reviews_and_what_comes_of_them() {
    let changed = |change: &dyn Fn(&mut Review)| {
        let mut r = review();
        change(&mut r);
        r
    };
    let user = |name: &'static str| changed(&|r| r.username = name.into());
    let refused: Vec<(&str, Review, Expected)> = vec![
        ("not authenticated", changed(&|r| r.authenticated = false), |e| matches!(e, Refusal::NotAuthenticated(_))),
        ("another audience", changed(&|r| r.audiences = vec!["vault".into()]), |e| matches!(e, Refusal::Audience { .. })),
        ("a server without audiences", changed(&|r| r.audiences.clear()), |e| matches!(e, Refusal::Audience { .. })),
        ("a person", user("alice"), |e| matches!(e, Refusal::NotServiceAccount(_))),
        ("a node", user("system:node:n1"), |e| matches!(e, Refusal::NotServiceAccount(_))),
        ("no name", user("system:serviceaccount:shop:"), |e| matches!(e, Refusal::NotServiceAccount(_))),
        ("one part too many", user("system:serviceaccount:shop:web:x"), |e| matches!(e, Refusal::NotServiceAccount(_))),
        ("a namespace that is none", user("system:serviceaccount:a.b:web"), |e| matches!(e, Refusal::NotServiceAccount(_))),
        ("no pod", changed(&|r| drop(r.extra.remove(POD_NAME))), |e| *e == Refusal::NotBound),
        ("no uid", changed(&|r| drop(r.extra.remove(POD_UID))), |e| *e == Refusal::NotBound),
        ("two pods", changed(&|r| r.extra.get_mut(POD_NAME).expect("there").push("web-1".into())), |e| *e == Refusal::NotBound),
        ("another account than the pod's", user("system:serviceaccount:shop:admin"), |e| {
            matches!(e, Refusal::AnotherAccount { .. })
        }),
        ("an earlier pod of the name", changed(&|r| drop(r.extra.insert(POD_UID.into(), vec!["u-0".into()]))), |e| {
            matches!(e, Refusal::AnotherPod(_))
        }),
    ];
    for (name, review, expected) in refused {
        let e = outcome(Some(facts()), review, vec![Some(facts())], FROM).await.expect_err(name);
        assert!(expected(&e), "{name}: {e}");
    }
    let good = outcome(Some(facts()), review(), vec![None], FROM).await;
    assert_eq!(good.as_deref(), Ok("spiffe://cluster.local/ns/shop/sa/web.front shop/web-0"));
}

#[tokio::test]
async fn pods_and_what_comes_of_them() {
    let changed = |change: &dyn Fn(&mut PodFacts)| {
        let mut f = facts();
        change(&mut f);
        Some(f)
    };
    let none = changed(&|f| f.addresses.clear());
    let cases: Vec<Case> = vec![
        ("known and at its address", Some(facts()), vec![None], FROM, None),
        ("at its other address", Some(facts()), vec![None], "fd00::5", None),
        ("the watch is behind", None, vec![Some(facts())], FROM, None),
        ("the watch has the pod before", changed(&|f| f.uid = Some("u-0".into())), vec![Some(facts())], FROM, None),
        ("no address at first", none.clone(), vec![none, Some(facts())], FROM, None),
        (
            "another pod's address",
            Some(facts()),
            vec![Some(facts())],
            "10.244.0.6",
            Some(|e| matches!(e, Refusal::Elsewhere { .. })),
        ),
        ("gone", None, vec![None], FROM, Some(|e| matches!(e, Refusal::NoSuchPod(_)))),
        (
            "on the host's network",
            None,
            vec![changed(&|f| f.host_network = true)],
            FROM,
            Some(|e| matches!(e, Refusal::HostNetwork(_))),
        ),
        ("without a uid", None, vec![changed(&|f| f.uid = None)], FROM, Some(|e| matches!(e, Refusal::AnotherPod(_)))),
    ];
    for (name, known, pods, from, expected) in cases {
        let outcome = outcome(known, review(), pods, from).await;
        match (outcome, expected) {
            (Ok(_), None) => {}
            (Err(e), Some(expected)) => assert!(expected(&e), "{name}: {e}"),
            (outcome, _) => panic!("{name}: {outcome:?}"),
        }
    }
}

#[tokio::test]
async fn the_control_planes_own_identity_is_never_issued() {
    let mut reserved = review();
    reserved.username = "system:serviceaccount:weft-system:weft-control-plane".into();
    let e = outcome(None, reserved, vec![None], FROM).await.expect_err("reserved");
    assert!(matches!(e, Refusal::Reserved(_)), "{e}");
}

#[tokio::test]
async fn what_is_no_token_is_not_sent_on_and_no_refusal_repeats_one() {
    let secret = token(&payload());
    let middle = secret.split('.').nth(1).expect("three parts").to_owned();
    let away = attester(None, Err("connection refused".into()), vec![None]);
    for (token, code) in [
        (String::new(), Code::InvalidArgument),
        ("with space inside".to_owned(), Code::InvalidArgument),
        ("x".repeat(MAX_TOKEN + 1), Code::InvalidArgument),
        ("eyJhbGciOi.secret.signature".to_owned(), Code::InvalidArgument),
        (secret.clone(), Code::Unavailable),
    ] {
        let status = Status::from(away.attest_at(&token, ip(FROM), NOW).await.expect_err("refused"));
        assert_eq!(status.code(), code, "{status}");
        assert!(!status.message().contains("secret") && !status.message().contains(&middle), "{status}");
    }
}

/// Counts reviews, and answers none of them before it is told to.
struct Slow {
    asked: Semaphore,
    go: Semaphore,
}

#[tonic::async_trait]
impl Witness for Slow {
    async fn review(&self, _token: &str, _audience: &str) -> Result<Review, String> {
        self.asked.add_permits(1);
        let _go = self.go.acquire().await.map_err(|e| e.to_string())?;
        Ok(Review::default())
    }
    async fn pod(&self, _pod: &ObjectRef) -> Result<Option<PodFacts>, String> {
        Ok(None)
    }
}

fn slow() -> (Arc<Slow>, Arc<PodTokens>) {
    let witness = Arc::new(Slow { asked: Semaphore::new(0), go: Semaphore::new(0) });
    let entry = Entry::new(Body::Mesh(v1::Mesh::default()));
    let hub = Hub::new(Snapshot::new(entry.clone(), entry));
    let tokens = PodTokens::new(witness.clone(), hub, "cluster.local".parse().expect("valid"), "weft".into());
    (witness, Arc::new(tokens))
}

#[tokio::test]
async fn a_token_that_names_itself_useless_is_not_sent_on() {
    let (witness, tokens) = slow();
    let mut other = payload();
    other["aud"] = "vault".into();
    let refused = tokens.attest_at(&token(&other), ip(FROM), NOW).await;
    assert!(matches!(refused, Err(Refusal::Audience { .. })), "{refused:?}");
    let refused = tokens.attest_at(&token(&payload()), ip(FROM), NOW + 7200).await;
    assert_eq!(refused, Err(Refusal::Expired { seconds: 3600 }));
    assert_eq!(witness.asked.available_permits(), 0);
}

#[tokio::test]
async fn one_source_waits_for_few_reviews_and_keeps_nobody_else_out() {
    let (witness, tokens) = slow();
    let good = token(&payload());
    let ask = |from: IpAddr| {
        let (tokens, good) = (tokens.clone(), good.clone());
        tokio::spawn(async move { tokens.attest_at(&good, from, NOW).await })
    };
    let greedy: Vec<_> = (0..MAX_OF_ONE_SOURCE).map(|_| ask(ip(FROM))).collect();
    let all = witness.asked.acquire_many(MAX_OF_ONE_SOURCE as u32).await.expect("open");
    all.forget();
    assert_eq!(tokens.attest_at(&good, ip(FROM), NOW).await, Err(Refusal::Crowd(ip(FROM))));
    let other = ask(ip("10.244.0.6"));
    witness.asked.acquire().await.expect("another source is asked about").forget();
    witness.go.add_permits(Semaphore::MAX_PERMITS >> 1);
    for asking in greedy.into_iter().chain([other]) {
        let outcome = asking.await.expect("it ends");
        assert!(matches!(outcome, Err(Refusal::NotAuthenticated(_))), "{outcome:?}");
    }
    let waiting = tokens.waiting.lock().expect("no one panicked");
    assert_eq!((waiting.bytes, waiting.by_source.len()), (0, 0));
}

#[test]
fn what_waits_has_a_budget_of_bytes() {
    let waiting = Mutex::new(Waiting::default());
    let sources = (1..=255).map(|i| IpAddr::from([10, 0, 0, i]));
    let held: Vec<_> = sources
        .flat_map(|from| (0..2).map(move |_| from))
        .filter_map(|from| Queued::take(&waiting, from, MAX_TOKEN).ok())
        .collect();
    assert_eq!(held.len(), MAX_BYTES / MAX_TOKEN);
    assert_eq!(Queued::take(&waiting, ip("10.1.0.1"), 1).err(), Some(Refusal::Full));
    drop(held);
    assert!(Queued::take(&waiting, ip("10.1.0.1"), MAX_TOKEN).is_ok());
}
