use std::sync::Mutex;

use weft_proto::v1;
use weft_proto::v1::resource::Body;

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
    attester(known, Ok(review), pods).attest("a.b.c", ip(from)).await.map(|(id, pod)| format!("{id} {pod}"))
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
    let secret = "eyJhbGciOi.secret.signature";
    let away = attester(None, Err("connection refused".into()), vec![None]);
    for (token, code) in [
        (String::new(), Code::InvalidArgument),
        ("with space inside".to_owned(), Code::InvalidArgument),
        ("x".repeat(MAX_TOKEN + 1), Code::InvalidArgument),
        (secret.to_owned(), Code::Unavailable),
    ] {
        let status = Status::from(away.attest(&token, ip(FROM)).await.expect_err("refused"));
        assert_eq!(status.code(), code, "{status}");
        assert!(!status.message().contains("secret"), "{status}");
    }
}
