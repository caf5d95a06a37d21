//! Tokens of end users, made by somebody else's implementation: keys that are fetched through the mesh, replaced and gone; what callers are told.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use weft_tests::{World, eventually, require, require_modules};

const MESH: &str = r#"
mtls: strict
defaultPolicy: deny
manifests: ["@WORK@/policies.yaml"]
workloads:
- {name: api, namespace: shop, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090}]}
- {name: id, namespace: shop, command: ["@PYTHON@", "@PEERS@/jwt_issuer.py", serve, "8070", "@WORK@"], ports: [{port: 8070, protocol: http}]}
- {name: web, namespace: shop, command: [sleep, infinity]}
- {name: job, namespace: batch, command: [sleep, infinity]}
"#;

const WEB: &str = "shop/web";
const SEEN: &str = "http://api.shop:8090/seen";

/// The keys are the API's sidecar's alone to fetch, so that they come only if it shows who it is.
const POLICIES: &str = r#"
apiVersion: weft.dev/v1alpha1
kind: JwtIssuer
metadata: {name: id, namespace: shop}
spec:
  issuer: https://id.example.com/
  audiences: [shop]
  jwksUri: http://id.shop:8070/jwks
  forward: Strip
---
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: api, namespace: shop}
spec:
  targetRef: {group: "", kind: Service, name: api}
  action: Allow
  rules:
  - from: [{serviceAccounts: [shop/web]}]
    to: [{paths: [/name]}]
  - from:
    - serviceAccounts: [shop/web]
      jwt: {issuer: "https://id.example.com/", claims: [{name: realm.roles, values: [reader]}]}
    to: [{methods: [GET], paths: [/seen]}]
---
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: id, namespace: shop}
spec:
  targetRef: {group: "", kind: Service, name: id}
  action: Allow
  rules: [{from: [{serviceAccounts: [shop/api]}], to: [{methods: [GET], paths: [/jwks]}]}]
"#;

const READER: &str = r#"{"iss": "https://id.example.com/", "aud": ["shop"], "sub": "anna", "realm": {"roles": ["reader"]}}"#;

fn put(work: &Path, text: &str) {
    let (file, temporary) = (work.join("policies.yaml"), work.join(".policies.new"));
    fs::write(&temporary, text).expect("the directory is ours");
    fs::rename(&temporary, &file).expect("the directory is ours");
}

fn keys(world: &World, wanted: &[&str]) {
    let work = world.work();
    let mut words = vec!["jwt_issuer.py", "keys", work.to_str().expect("UTF-8")];
    words.extend(wanted);
    assert_eq!(world.peer(WEB, &words)["keys"], wanted.len());
}

fn token(world: &World, key: &str, alg: &str, seconds: i64, claims: &str) -> String {
    let work = world.work();
    let made =
        world.peer(WEB, &["jwt_issuer.py", "token", work.to_str().expect("UTF-8"), key, alg, &seconds.to_string(), claims]);
    made["token"].as_str().expect("a token").to_owned()
}

/// Status, challenge and reference of an answer.
fn ask(world: &World, from: &str, url: &str, token: Option<&str>) -> (String, String) {
    let said = "%{http_code} %header{www-authenticate}|%header{weft-ref}";
    let field = token.map(|token| format!("authorization: Bearer {token}"));
    let mut words = vec!["-o", "/dev/null", "-w", said, url];
    words.extend(field.iter().flat_map(|field| ["-H", field]));
    let text = world.curl(from, &words);
    let (status, reference) = text.split_once('|').expect("both are written");
    (status.trim_end().to_owned(), reference.to_owned())
}

const MISSING: &str = "401 Bearer";
const INVALID: &str = "401 Bearer error=\"invalid_token\"";

/// What an operator is told.
fn why(world: &World, reference: &str) -> String {
    let output = world.shell(&format!("weft why -o json {reference}")).output().expect("weft runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let why: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    why["text"].as_str().expect("a sentence").to_owned()
}

#[test]
fn tokens_open_what_policies_ask_them_for() {
    require(&["curl"]);
    require_modules(&["jwt", "cryptography"]);
    let world = World::up_with(MESH, |work| put(work, POLICIES));
    before_any_key(&world);
    judged(&world);
    rotated(&world);
    away(&world);
}

fn before_any_key(world: &World) {
    assert_eq!(ask(world, WEB, "http://api.shop:8090/name", None).0, "200", "what asks for no token");
    assert_eq!(ask(world, WEB, SEEN, None).0, MISSING);
    keys(world, &["old=RS256"]);
    // The server has had no keys to give until now, and the sidecar asks again at growing intervals.
    let early = token(world, "old", "RS256", 600, READER);
    eventually("keys are fetched through the mesh", || (ask(world, WEB, SEEN, Some(&early)).0 == "200").then_some(()));
    world.mutual_tls_edge("shop/id-0", "spiffe://cluster.local/ns/shop/sa/api", &[("direction", "inbound")]);
}

fn judged(world: &World) {
    let good = token(world, "old", "RS256", 600, READER);
    let seen = world.curl(WEB, &["-H", &format!("authorization: Bearer {good}"), SEEN]);
    assert!(!seen.contains(&good) && !seen.to_lowercase().contains("authorization"), "it is stripped: {seen}");
    let other = token(world, "old", "RS256", 600, &READER.replace("reader", "guest"));
    assert_eq!(ask(world, WEB, SEEN, Some(&other)).0, "403", "it is valid, and says something else");
    assert_eq!(ask(world, "batch/job", SEEN, Some(&good)).0, "403", "the workload counts as well");

    let table = [
        ("expired", token(world, "old", "RS256", -60, READER), "has expired at "),
        ("audience", token(world, "old", "RS256", 600, &READER.replace("[\"shop\"]", "\"bank\"")), "is for another audience"),
        ("shared secret", token(world, "old", "HS256", 600, READER), "an algorithm that is not taken"),
        ("no signature", token(world, "old", "none", 600, READER), "an algorithm that is not taken"),
        ("another signature", token(world, "old", "PS384", 600, READER) + "A", "a signature that is not the issuer's"),
        ("no token", "abc".to_owned(), "cannot be read"),
        (
            "issuer",
            token(world, "old", "RS256", 600, &READER.replace(".com/", ".com")),
            "a token of an issuer that is not asked for",
        ),
    ];
    for (what, token, reason) in table {
        let (status, reference) = ask(world, WEB, SEEN, Some(&token));
        assert_eq!(status, INVALID, "{what}");
        let text = why(world, &reference);
        assert!(text.contains(reason) && !text.contains(&token) && !text.contains("anna"), "{what}: {text}");
    }
    let field = format!("authorization: Bearer {good}");
    let twice =
        world.curl(WEB, &["-o", "/dev/null", "-w", "%{http_code}", "-H", &field, "-H", "Authorization: Basic eDp5", SEEN]);
    assert_eq!(twice, "401", "two fields");
    assert!(!world.log().contains(&good), "a token is in the log");
}

/// Keys that were fetched lately are asked for again after 30 s at the earliest.
const ROTATED: Duration = Duration::from_secs(60);

fn rotated(world: &World) {
    let old = token(world, "old", "RS256", 600, READER);
    keys(world, &["new=ES256"]);
    let new = token(world, "new", "ES256", 600, READER);
    let (began, mut status) = (Instant::now(), String::new());
    while began.elapsed() < ROTATED && status != "200" {
        status = ask(world, WEB, SEEN, Some(&new)).0;
        assert!(status == "200" || status == INVALID, "{status}");
    }
    assert_eq!(status, "200", "an unknown key has them fetched anew");
    let (status, reference) = ask(world, WEB, SEEN, Some(&old));
    assert_eq!(status, INVALID, "what the key had signed that is gone");
    assert!(why(world, &reference).contains("a key that the issuer does not list"));
}

fn away(world: &World) {
    fs::write(world.work().join("away"), "").expect("the directory is ours");
    let unknown = {
        let listed = fs::read(world.work().join("keys.json")).expect("it is there");
        keys(world, &["third=EdDSA"]);
        fs::write(world.work().join("keys.json"), listed).expect("the directory is ours");
        token(world, "third", "EdDSA", 600, READER)
    };
    assert_eq!(ask(world, WEB, SEEN, Some(&unknown)).0, INVALID);
    let new = token(world, "new", "ES256", 600, READER);
    assert_eq!(ask(world, WEB, SEEN, Some(&new)).0, "200", "the last good keys stay");
}
