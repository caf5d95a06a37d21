use clap::Parser;

use super::*;

#[derive(Parser, Debug)]
struct Command {
    #[command(flatten)]
    args: ExplainArgs,
}

fn args(words: &[&str]) -> Result<ExplainArgs, String> {
    let words = ["explain"].iter().chain(words);
    Command::try_parse_from(words).map(|command| command.args).map_err(|e| e.to_string())
}

/// A shop, as its author would write it for a cluster: a Deployment has no pods here.
const SHOP: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 3
  template:
    metadata: {labels: {app: web}}
    spec: {serviceAccountName: web, containers: [{name: app, image: web}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: client, namespace: front}
spec: {template: {metadata: {labels: {app: client}}, spec: {serviceAccountName: client, containers: [{name: app}]}}}
---
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: books, namespace: shop}
spec:
  targetRef: {kind: Service, name: web}
  action: Allow
  rules: [{from: [{serviceAccounts: [front/client]}], to: [{methods: [GET], paths: [/books/*]}]}]
---
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: db, namespace: shop}
spec: {selector: {matchLabels: {app: db}}, action: Deny, rules: [{}]}
";

const NO_BOOKS: &str = "\
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: books, namespace: shop}
spec: {targetRef: {kind: Service, name: web}, action: Allow}
";

/// What is printed, and whether all is allowed.
fn told(words: &[&str], what_if: Option<&str>) -> (String, bool) {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    let mut all: Vec<String> = words.iter().map(ToString::to_string).collect();
    all.extend(["-f".to_owned(), write("shop.yaml", SHOP)]);
    if let Some(text) = what_if {
        all.extend(["--what-if".to_owned(), write("if.yaml", text)]);
    }
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let told = answer(&args(&all).expect("a question")).expect("an answer");
    (told.shown(), told.is_allowed())
}

const BOOKS: [&str; 6] = ["--from", "front/client", "--to", "shop/web:80", "--path", "/books/1"];

#[test]
fn an_allowed_call_is_told_with_its_policy() {
    let (text, is_allowed) = told(&BOOKS, None);
    let expected = "\
front/client → shop/web:80 GET /books/1
spiffe://cluster.local/ns/front/sa/client from address 198.18.0.2

ALLOWED at port 8080 of shop/web
  allowed by ALLOW shop/books rule 0 (from serviceAccounts front/client; to methods GET, paths /books/*)
  POLICY      ACTION  FOR                         WHY
  shop/books  ALLOW   the Service shop/web        matches    rule 0 matches: from serviceAccounts front/client; to methods GET, paths /books/*
  shop/db     DENY    workloads app=db of shop  not asked  its selector does not pick this pod
";
    let squeezed = |text: &str| text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>();
    assert_eq!(squeezed(&text), squeezed(expected), "{text}");
    assert!(is_allowed);
}

#[test]
fn a_denied_call_is_told_with_what_would_allow_it() {
    let (text, is_allowed) = told(&["--from", "shop/web", "--to", "shop/web:80", "--path", "/books/1", "--method", "PUT"], None);
    assert!(!is_allowed);
    for part in [
        "shop/web → shop/web:80 PUT /books/1\n",
        "\nDENIED at port 8080 of shop/web\n  denied: no ALLOW policy matches",
        "\n  what would allow it: ALLOW shop/books rule 0, which asks for serviceAccounts front/client",
        "no match",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let (text, is_allowed) = told(&["--from", "front/client", "--to", "shop/web:80"], None);
    assert!(!is_allowed && text.contains("\nDEPENDS ON THE REQUEST at port 8080"), "{text}");
    let (text, is_allowed) = told(&["--unauthenticated", "--to", "shop/web:80", "--mtls", "strict"], None);
    assert!(!is_allowed && text.contains("the caller spoke plaintext"), "{text}");
    assert!(text.starts_with("anyone without an identity → shop/web:80\nno identity from an unknown address"), "{text}");
}

#[test]
fn what_flips_is_told() {
    let (text, is_allowed) = told(&BOOKS, Some(NO_BOOKS));
    assert!(text.ends_with("\nWith these manifests, this flips:\n  shop/web: allowed → denied\n"), "{text}");
    assert!(!is_allowed);
    let (text, _) = told(&BOOKS, Some("apiVersion: v1\nkind: Namespace\nmetadata: {name: more}\n"));
    assert!(text.ends_with("nothing flips: every pod answers as before\n"), "{text}");
}

#[test]
fn without_a_question_every_caller_is_asked_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    let (shop, none) = (write("shop.yaml", SHOP), write("if.yaml", NO_BOOKS));
    let run = |words: &[&str]| run(&args(&[words, &["-f", &shop, "--what-if", &none]].concat()).expect("a question"));
    let (text, is_good) = run(&[]).expect("an answer");
    let lines: Vec<String> = text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(lines, ["FROM TO BEFORE AFTER", "front/client shop/web:80 depends on the request denied"]);
    assert!(!is_good);
    let (text, is_good) = run(&["--from", "shop/web"]).expect("an answer");
    assert!(is_good && text.starts_with("nothing flips"), "{text}");
    assert!(run(&["--path", "/x"]).is_err());
}

/// Calls out of the mesh are in no flow: nothing is said of them, and that is said.
#[test]
fn a_replay_says_that_it_does_not_judge_calls_out_of_the_mesh() {
    const EXTERNAL: &str = "\
apiVersion: weft.dev/v1alpha1
kind: ExternalService
metadata: {name: pay, namespace: shop}
spec: {hosts: [pay.example], ports: [{port: 80, protocol: http}]}
";
    const NO_FLOWS: &str = r#"{"weftFlows": 1, "since": 0, "until": 0, "sidecars": [], "notHeard": [], "leftOut": 0}"#;
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    let (shop, flows) = (write("shop.yaml", SHOP), write("flows", NO_FLOWS));
    let told = |change: &str| {
        let words = ["-f", &shop, "--what-if", change, "--flows", &flows];
        run(&args(&words).expect("a question")).expect("an answer").0
    };
    let (inside, outside) = (told(&write("inside.yaml", NO_BOOKS)), told(&write("outside.yaml", EXTERNAL)));
    assert!(outside.contains("calls out of the mesh are not recorded"), "{outside}");
    assert!(!inside.contains("not recorded") && inside.contains("nothing flips"), "{inside}");
}

#[test]
fn a_cluster_is_asked_by_its_own_objects_and_defaults() {
    let text = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web}}
spec: {serviceAccountName: web, containers: [{name: app}, {name: weft-sidecar}]}
status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}]}
";
    let objects = || weft_control_plane::watch::parse::parse("cluster", text).expect("good objects");
    let cluster = |flags: &[&str]| Cluster { objects: objects(), flags: flags.iter().map(ToString::to_string).collect() };
    let flags = ["--trust-domain=td", "--mtls=permissive", "--default-policy=deny", "--kube-namespace=mesh"];
    let asked = question(&args(&["--from", "shop/web", "--to", "shop/web:80"]).expect("a question")).expect("a question");
    let answer = Offline::of_cluster(cluster(&flags)).expect("a cluster").explain(&asked).expect("an answer");
    assert_eq!(answer.caller, "spiffe://td/ns/shop/sa/web");
    assert!(answer.answers[0].reason.contains("the default of the mesh is deny"), "{answer:?}");
    let error = Offline::of_cluster(cluster(&flags[..2])).expect_err("no default").to_string();
    assert!(error.contains("--default-policy"), "{error}");
}

#[test]
fn json_has_the_same() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("shop.yaml");
    std::fs::write(&file, SHOP).expect("written");
    let file = file.display().to_string();
    let words: Vec<&str> = BOOKS.into_iter().chain(["-f", &file, "-o", "json"]).collect();
    let json = serde_json::to_value(answer(&args(&words).expect("a question")).expect("an answer")).expect("plain JSON");
    assert_eq!(json["answers"][0]["verdict"], "allowed");
    assert_eq!(json["answers"][0]["policy"], "shop/books");
    assert_eq!(json["answers"][0]["considered"][1]["applies"], false);
    assert_eq!(json["flips"], serde_json::Value::Null);
}

#[test]
fn a_mesh_file_is_a_mesh_with_its_pods_and_defaults() {
    let dir = tempfile::tempdir().expect("a directory");
    let mesh = dir.path().join("mesh.yaml");
    let text = "defaultPolicy: allow-authenticated\nworkloads:\n- {name: web, namespace: shop, command: [\"true\"], ports: [{port: 80}]}\n";
    std::fs::write(&mesh, text).expect("written");
    let mesh = mesh.display().to_string();
    let words = ["--unauthenticated", "--to", "shop/web:80", "-f", &mesh];
    let told = answer(&args(&words).expect("a question")).expect("an answer");
    assert!(told.shown().contains("the default of the mesh is allow-authenticated"), "{}", told.shown());
}

#[test]
fn a_question_that_is_none_is_refused() {
    for (words, message) in [
        (&["--to", "a/b:80"][..], "--from"),
        (&["--from", "a/b"], "--to"),
        (&["--from", "a", "--to", "a/b:80"], "NAMESPACE/SERVICE-ACCOUNT"),
        (&["--from", "a/b", "--to", "a/b"], "NAMESPACE/SERVICE:PORT"),
        (&["--from", "a/b", "--to", "a/b:0"], "1 to 65535"),
        (&["--from", "a/b", "--to", "a/b:80", "--header", "x"], "NAME=VALUE"),
        (&["--from", "a/b", "--unauthenticated", "--to", "a/b:80"], "cannot be used with"),
        (&["--from", "a/b", "--to", "a/b:80", "--mtls", "strict"], "--file"),
    ] {
        let error = args(words).expect_err("no question");
        assert!(error.contains(message), "{message}: {error}");
    }
    // What cannot be read might be what decides.
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("a.yaml");
    std::fs::write(&file, SHOP.replace("port: 80,", "port: eighty,")).expect("written");
    let file = file.display().to_string();
    let words: Vec<&str> = BOOKS.into_iter().chain(["-f", &file]).collect();
    let error = answer(&args(&words).expect("a question")).expect_err("no answer").to_string();
    assert!(error.contains("a.yaml:4: spec.ports[0].port"), "{error}");
}
