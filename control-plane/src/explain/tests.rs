use weft_core::policy::MtlsMode;

use super::*;
use crate::model::Model;
use crate::snapshot::Entry;
use crate::watch::{Change, parse};

/// A shop whose namespace lets its own in, with some policies.
const SHOP: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, annotations: {weft.dev/default-policy: allow-same-namespace}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: raw, port: 81, appProtocol: tcp}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web}}
spec: {serviceAccountName: web, containers: [{name: weft-sidecar}]}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {serviceAccountName: web, containers: [{name: weft-sidecar}]}
status: {podIP: 10.0.0.2}
---
apiVersion: v1
kind: Pod
metadata: {name: client-0, namespace: front}
spec: {serviceAccountName: client, containers: [{name: weft-sidecar}]}
status: {podIP: 10.0.9.1}
---
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: books, namespace: shop}
spec:
  targetRef: {kind: Service, name: web}
  action: Allow
  rules: [{from: [{namespaces: [front]}], to: [{ports: [8080], methods: [GET], paths: [/books/*]}]}]
---
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: elsewhere, namespace: shop}
spec: {selector: {matchLabels: {app: db}}, action: Deny, rules: [{}]}
---
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: look, namespace: shop}
spec: {action: Audit, rules: [{from: [{ipBlocks: [10.0.9.0/24]}]}]}
";

fn snapshot(manifests: &str) -> Snapshot {
    let mesh = Entry::new(Body::Mesh(v1::Mesh::default()));
    let mut model = Model::new("td".parse().expect("a domain"), MtlsMode::Permissive, mesh.clone(), mesh);
    model.apply(parse::parse("test", manifests).expect("good").into_iter().map(Change::Upsert).collect());
    model.snapshot().clone()
}

fn id(text: &str) -> v1::ObjectRef {
    let (namespace, name) = text.split_once('/').expect("namespace and name");
    v1::ObjectRef { namespace: namespace.into(), name: name.into() }
}

fn ask(from: &str, port: u32, call: Option<(&str, &str)>) -> v1::ExplainRequest {
    let call = call.map(|(method, path)| v1::ExplainedCall { method: method.into(), path: path.into(), ..Default::default() });
    v1::ExplainRequest { from: Some(id(from)), to: Some(id("shop/web")), port, call, ..Default::default() }
}

fn answer_to(manifests: &str, ask: &v1::ExplainRequest) -> v1::ExplainResponse {
    explain(&snapshot(manifests), &"td".parse().expect("a domain"), ask).expect("an answer")
}

/// The one answer that all pods give.
fn only(manifests: &str, ask: &v1::ExplainRequest) -> v1::Explanation {
    let mut response = answer_to(manifests, ask);
    assert_eq!(response.answers.len(), 1, "{response:?}");
    assert_eq!(response.answers[0].pods, ["shop/web-0", "shop/web-1"]);
    response.answers.remove(0)
}

#[test]
fn the_verdict_is_that_of_the_sidecars() {
    use v1::ExplainedVerdict::{Allowed, ByRequest, Denied};
    let table = [
        (ask("front/client", 80, Some(("GET", "/books/1?x=y"))), Allowed, "shop/books", "allowed by ALLOW shop/books rule 0"),
        (ask("front/client", 80, Some(("PUT", "/books/1"))), Denied, "", "denied: no ALLOW policy matches"),
        (ask("front/client", 80, None), ByRequest, "", "it depends on what is asked for"),
        (ask("shop/web", 80, None), Denied, "", "denied: no ALLOW policy matches"),
        // The policy holds for the ports of the Service, the second one as well; it is declared to be opaque.
        (ask("front/client", 81, Some(("GET", "/books/1"))), Denied, "", "denied: no ALLOW policy matches"),
    ];
    for (ask, verdict, policy, reason) in table {
        let told = only(SHOP, &ask);
        assert_eq!(told.verdict(), verdict, "{ask:?}: {told:?}");
        assert_eq!(told.policy, policy, "{told:?}");
        assert!(told.reason.starts_with(reason), "{told:?}");
        assert_eq!(told.remedy.is_empty(), verdict == Allowed, "{told:?}");
    }
}

#[test]
fn each_policy_is_told_of_and_why_it_applies_or_not() {
    let told = only(SHOP, &ask("front/client", 80, Some(("GET", "/books/1"))));
    let lines: Vec<String> =
        told.considered.iter().map(|c| format!("{} {} {} {}: {}", c.applies, c.matches, c.action, c.policy, c.why)).collect();
    assert_eq!(
        lines,
        [
            "true true ALLOW shop/books: rule 0 matches: from namespaces front; to ports 8080, methods GET, paths /books/*",
            "true true AUDIT shop/look: rule 0 matches: from ipBlocks 10.0.9.0/24",
            "false false DENY shop/elsewhere: its selector does not pick this pod",
        ]
    );
    let assumed =
        "the source is assumed: ipBlocks are judged by 10.0.9.1, the address of one pod of the caller; name the pod that calls";
    assert_eq!(told.notes, ["AUDIT shop/look rule 0 matches: it would be told of", assumed]);
    let told = only(SHOP, &ask("front/client", 80, Some(("PUT", "/books/1"))));
    assert!(told.considered[0].why.contains("asks for methods GET"), "{told:?}");
}

#[test]
fn who_calls_is_an_identity_with_an_address_or_nobody() {
    let response = answer_to(SHOP, &ask("front/client", 80, None));
    assert_eq!((response.caller.as_str(), response.source.as_str()), ("spiffe://td/ns/front/sa/client", "10.0.9.1"));
    let pod = v1::ExplainRequest { from: None, from_pod: Some(id("shop/web-1")), ..ask("front/client", 80, None) };
    let response = answer_to(SHOP, &pod);
    assert_eq!((response.caller.as_str(), response.source.as_str()), ("spiffe://td/ns/shop/sa/web", "10.0.0.2"));
    let nobody = v1::ExplainRequest { from: None, unauthenticated: true, ..ask("front/client", 80, Some(("GET", "/books/1"))) };
    let told = only(SHOP, &nobody);
    assert_eq!(told.verdict(), v1::ExplainedVerdict::Denied, "{told:?}");
    let strict = SHOP.replace("{weft.dev/default-policy", "{weft.dev/mtls: strict, weft.dev/default-policy");
    let told = only(&strict, &nobody);
    assert!(told.reason.contains("is strict and the caller spoke plaintext"), "{told:?}");
}

#[test]
fn a_source_that_is_assumed_is_said_to_be_where_networks_matter() {
    let notes = |manifests: &str, ask: &v1::ExplainRequest| only(manifests, ask).notes;
    let known = v1::ExplainRequest { from: None, from_pod: Some(id("front/client-0")), ..ask("front/client", 80, None) };
    assert!(!notes(SHOP, &known).iter().any(|note| note.contains("assumed")));
    let nowhere = notes(SHOP, &ask("front/other", 80, None));
    assert!(nowhere.iter().any(|note| note.contains("judged by 0.0.0.0")), "{nowhere:?}");
    let without = SHOP.replace("{ipBlocks: [10.0.9.0/24]}", "{namespaces: [front]}");
    assert!(!notes(&without, &ask("front/other", 80, None)).iter().any(|note| note.contains("assumed")));
}

#[test]
fn pods_with_one_policy_have_it_compiled_once() {
    let snapshot = snapshot(SHOP);
    let own: SpiffeId = "spiffe://td/ns/shop/sa/web".parse().expect("an identity");
    let mut judged = Judged::default();
    for pod in ["shop/web-0", "shop/web-1"] {
        let entry = &snapshot.inbound[&pod.parse::<ObjectRef>().expect("a name")];
        let Body::Inbound(wire) = &entry.body else { panic!("{entry:?}") };
        assert!(judged.get(entry.version, wire, &own).is_ok());
    }
    assert_eq!(judged.0.len(), 1);
}

#[test]
fn pods_that_answer_otherwise_are_told_apart() {
    let odd = SHOP.replace(
        "{name: web-1, namespace: shop, labels: {app: web}}",
        "{name: web-1, namespace: shop, labels: {app: web, tier: old}}",
    );
    let deny = "---\napiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: old, namespace: shop}\n\
                spec: {selector: {matchLabels: {tier: old}}, action: Deny, more: 1}\n";
    let response = answer_to(&(odd + deny), &ask("front/client", 80, Some(("GET", "/books/1"))));
    let verdicts: Vec<_> = response.answers.iter().map(|a| (a.pods.join(","), a.verdict())).collect();
    let expected =
        [("shop/web-0".to_owned(), v1::ExplainedVerdict::Allowed), ("shop/web-1".to_owned(), v1::ExplainedVerdict::Denied)];
    assert_eq!(verdicts, expected);
    let broken = response.answers[1].considered.iter().find(|c| c.policy == "shop/old").expect("it is told of");
    assert!(broken.why.contains("cannot be honoured") && broken.why.contains("spec.more"), "{broken:?}");
}

/// Spoils a question.
type Spoil = &'static dyn Fn(&mut v1::ExplainRequest);

#[test]
fn what_is_not_there_is_said() {
    let good = ask("front/client", 80, None);
    let no = |change: &dyn Fn(&mut v1::ExplainRequest)| {
        let mut ask = good.clone();
        change(&mut ask);
        explain(&snapshot(SHOP), &"td".parse().expect("a domain"), &ask).expect_err("no answer").to_string()
    };
    let table: [(Spoil, &str); 8] = [
        (&|a| a.to = None, "is missing"),
        (&|a| a.to = Some(id("shop/nobody")), "there is no Service shop/nobody"),
        (&|a| a.port = 82, "no pod at port 82"),
        (&|a| a.port = 0, "1 to 65535"),
        (&|a| a.from = None, "caller is missing"),
        (&|a| a.from = Some(id("front/No")), "lower-case"),
        (&|a| a.from_pod = Some(id("front/no")), "no pod front/no"),
        (&|a| a.from_pod = Some(id("shop/web-0")), "pod shop/web-0 is spiffe://td/ns/shop/sa/web, and not"),
    ];
    for (change, message) in table {
        assert!(no(change).contains(message), "{message}: {}", no(change));
    }
}

/// RFC 7515, appendix A.3: a key, and what it has signed.
const SIGNED: &str = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";

#[test]
fn clauses_about_tokens_are_answered_by_a_token_or_by_claims() {
    use v1::ExplainedVerdict::{Allowed, Denied};
    let keys = r#"jwks: '{"keys":[{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}]}'"#;
    let world = |keys: &str| {
        let (shop, _) = SHOP.split_once("---\napiVersion: weft.dev").expect("policies");
        format!(
            "{shop}---\napiVersion: weft.dev/v1alpha1\nkind: JwtIssuer\nmetadata: {{name: joe, namespace: shop}}\nspec: {{issuer: joe, audiences: [shop], {keys}}}\n\
             ---\napiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: shop}}\nspec:\n  action: Allow\n  \
             rules: [{{from: [{{jwt: {{issuer: joe, claims: [{{path: [\"http://example.com/is_root\"], values: [\"true\"]}}]}}}}]}}]\n"
        )
    };
    let ask = |token: &'static str, claims: &'static str| {
        let mut ask = ask("front/client", 80, Some(("GET", "/")));
        let call = ask.call.as_mut().expect("it has one");
        (call.token, call.claims) = (token.into(), claims.into());
        ask
    };
    let (inline, remote) = (world(keys), world("jwksUri: http://keys.shop/"));
    let root = r#"{"iss": "joe", "http://example.com/is_root": true}"#;
    for (world, ask, verdict, reason) in [
        (&inline, ask("", ""), Denied, "no token"),
        (&inline, ask("", root), Allowed, ""),
        (&inline, ask("", r#"{"iss": "joe", "aud": "bank", "http://example.com/is_root": true}"#), Denied, "another audience"),
        (&inline, ask("", r#"{"iss": "jim", "http://example.com/is_root": true}"#), Denied, "an issuer that is not asked for"),
        (&inline, ask(SIGNED, ""), Denied, "has expired at 2011-03-22T18:43:00Z"),
        // It is not verified here, and for nobody.
        (&remote, ask(SIGNED, ""), Denied, "another audience"),
        (&remote, ask("abc", ""), Denied, "cannot be read"),
    ] {
        let told = only(world, &ask);
        assert_eq!(told.verdict(), verdict, "{told:?}");
        assert!(told.remedy.contains(reason), "{told:?}");
    }
    assert_eq!(only(&inline, &ask("", root)).notes, ["the token is assumed to be signed, and valid in time"]);
    for (token, claims) in [(SIGNED, root), ("", "{}"), ("", "[]"), ("", "x")] {
        assert!(explain(&snapshot(&inline), &"td".parse().expect("a domain"), &ask(token, claims)).is_err(), "{claims}");
    }
}

const NETWORK: &str = "\
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: front-only, namespace: shop}
spec: {podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: front}}}], ports: [{port: 8080}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: out, namespace: front}
spec: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}]}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: another, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}}
";

#[test]
fn network_policies_of_both_ends_are_asked() {
    use v1::ExplainedVerdict::{Allowed, Denied};
    let shop = format!("{SHOP}{NETWORK}");
    let told = only(&shop, &ask("front/client", 80, Some(("GET", "/books/1"))));
    assert_eq!(told.verdict(), Allowed, "{told:?}");
    let lines: Vec<String> = told
        .considered
        .iter()
        .filter(|c| c.target.contains("NetworkPolicy"))
        .map(|c| format!("{} {} {} {}: {}", c.applies, c.matches, c.action, c.policy, c.why))
        .collect();
    assert_eq!(
        lines,
        [
            "true true EGRESS front/out: rule 0 allows it",
            "true true INGRESS shop/front-only: rule 0 allows it",
            "false false INGRESS shop/another: its podSelector does not pick this pod",
        ]
    );
    let told = only(&shop, &ask("front/client", 81, None));
    assert_eq!((told.verdict(), told.policy.as_str()), (Denied, "shop/front-only"), "{told:?}");
    assert!(told.reason.starts_with("denied at the called pod: no NetworkPolicy allows it"), "{told:?}");
    let closed = shop.replace("matchLabels: {app: web}}}]}]}\n---", "matchLabels: {app: no}}}]}]}\n---");
    let told = only(&closed, &ask("front/client", 80, Some(("GET", "/books/1"))));
    assert!(told.reason.starts_with("denied at the caller: ") && told.policy == "front/out", "{told:?}");
    assert!(told.remedy.contains("front/out"), "{told:?}");
}

#[test]
fn a_host_outside_is_answered_for_as_the_callers_sidecar_would() {
    use v1::ExplainedVerdict::{Allowed, ByRequest, Denied};
    let outside = "---\napiVersion: weft.dev/v1alpha1\nkind: ExternalService\nmetadata: {name: pay, namespace: front}\n\
         spec: {hosts: ['*.pay.example'], ports: [{port: 80, protocol: http}, {port: 443, protocol: tls}], tls: {mode: none}}\n\
         ---\napiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: pay, namespace: front}\n\
         spec: {targetRef: {group: weft.dev, kind: ExternalService, name: pay}, action: Allow, \
         rules: [{from: [{serviceAccounts: [client]}], to: [{methods: [GET]}]}]}\n\
         ---\napiVersion: v1\nkind: Namespace\nmetadata: {name: front, annotations: {weft.dev/egress: deny}}\n";
    let snapshot = snapshot(&format!("{SHOP}{outside}"));
    let told = |from: &str, host: &str, port: u32, call: Option<(&str, &str)>| {
        let question = v1::ExplainRequest { to: None, to_host: host.into(), ..ask(from, port, call) };
        let answer = explain(&snapshot, &"td".parse().expect("a domain"), &question).unwrap_or_else(|e| panic!("{host}: {e}"));
        let first = &answer.answers[0];
        (first.verdict(), first.policy.clone(), first.reason.clone() + &first.remedy)
    };
    assert_eq!(told("front/client", "a.pay.example", 80, Some(("GET", "/"))).0, Allowed);
    assert_eq!(told("front/client", "a.pay.example", 80, Some(("POST", "/"))).0, Denied);
    assert_eq!(told("front/client", "a.pay.example", 80, None).0, ByRequest);
    // Of TLS nobody sees the method.
    assert_eq!(told("front/client", "a.pay.example", 443, Some(("GET", "/"))).0, Denied);
    let (verdict, _, words) = told("front/client", "evil.example", 443, None);
    assert!(
        verdict == Denied && words.contains("namespace front") && words.contains("an ExternalService with the host evil.example"),
        "{words}"
    );
    assert_eq!(told("shop/web", "evil.example", 443, None).0, Allowed, "another namespace, and the mesh says nothing");
    let nobody = v1::ExplainRequest { to: None, to_host: "a.example".into(), ..ask("front/stranger", 80, None) };
    assert!(matches!(explain(&snapshot, &"td".parse().expect("a domain"), &nobody), Err(Unexplained::NotThere(_))));
}

#[test]
fn network_policies_are_asked_about_an_address_outside_where_it_is_known() {
    use v1::ExplainedVerdict::{Allowed, Denied};
    let outside = "---\napiVersion: weft.dev/v1alpha1\nkind: ExternalService\nmetadata: {name: pay, namespace: front}\n\
         spec: {hosts: [pay.example], ports: [{port: 80, targetPort: 8080, protocol: http}]}\n\
         ---\napiVersion: weft.dev/v1alpha1\nkind: ExternalService\nmetadata: {name: fixed, namespace: front}\n\
         spec: {hosts: [fixed.example], ports: [{port: 80, protocol: http}], resolution: static, endpoints: [{address: 203.0.113.1}, {address: 203.0.113.9}]}\n\
         ---\napiVersion: weft.dev/v1alpha1\nkind: ExternalService\nmetadata: {name: stock, namespace: front}\n\
         spec: {hosts: [stock.example], ports: [{port: 80, protocol: http}], tls: {mode: mutual, identities: ['spiffe://td/*']}}\n\
         ---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: out, namespace: front}\n\
         spec: {podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 203.0.113.8/29}}], ports: [{port: 8080}, {port: 80}]}]}\n";
    let snapshot = snapshot(&format!("{SHOP}{outside}"));
    let told = |host: &str, address: &str| {
        let question =
            v1::ExplainRequest { to: None, to_host: host.into(), to_address: address.into(), ..ask("front/client", 80, None) };
        let answer = explain(&snapshot, &"td".parse().expect("a domain"), &question).unwrap_or_else(|e| panic!("{host}: {e}"));
        let first = &answer.answers[0];
        (first.verdict(), first.policy.clone(), first.reason.clone() + &first.notes.join("\n"))
    };
    let (verdict, _, words) = told("pay.example", "");
    assert!(verdict == Allowed && words.contains("not judged") && words.contains("--address"), "{words}");
    let (verdict, policy, words) = told("pay.example", "203.0.113.1");
    assert!(verdict == Denied && policy == "front/out" && words.contains("203.0.113.1:8080"), "{words}");
    assert_eq!(told("pay.example", "203.0.113.9").0, Allowed);
    assert!(told("pay.example", "64:ff9b::7f00:1").2.contains("a loopback address"));
    let (verdict, _, words) = told("fixed.example", "");
    assert!(verdict == Allowed && words.contains("203.0.113.1:80 is not dialled"), "one of them is enough: {words}");
    assert!(told("fixed.example", "203.0.113.7").2.contains("none of the endpoints"));
    // Under the default, what is dialled is what is asked about.
    assert_eq!((told("203.0.113.1", "").0, told("203.0.113.9", "").0), (Denied, Allowed));
    // Nobody goes by one that expects peers of the mesh's own domain.
    let (verdict, policy, words) = told("stock.example", "");
    assert!(verdict == Denied && words.contains("the mesh's own trust domain"), "{policy}: {words}");
}
