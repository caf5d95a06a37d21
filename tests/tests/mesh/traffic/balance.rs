//! Who is chosen: sessions that stay, keys that hash, zones that come first, and copies for whoever looks on.

use std::collections::BTreeSet;

use weft_tests::{World, eventually};

use super::{CLIENT, ask, change, known, put};

const MESH: &str = r#"
manifests: ["@WORK@/traffic.yaml"]
workloads:
- {name: web, namespace: shop, replicas: 4, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090, protocol: http}]}
- {name: shadow, namespace: shop, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090, protocol: http}]}
- {name: client, namespace: front, command: [sleep, infinity]}
services:
- {name: web, namespace: shop, ports: [{port: 80, targetPort: 8090, protocol: http}]}
- {name: shadow, namespace: shop, ports: [{port: 80, targetPort: 8090, protocol: http}]}
"#;

fn policy(spec: &str) -> String {
    format!(
        "---\napiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: web, namespace: shop}}\nspec:\n  targetRef: {{name: web}}\n{spec}"
    )
}

fn route(rule: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: web, namespace: shop}}\n\
         spec:\n  parentRefs: [{{group: \"\", kind: Service, name: web}}]\n  rules:\n  - backendRefs: [{{name: web, port: 80}}]\n{rule}"
    )
}

#[test]
fn who_is_chosen() {
    let world = World::up_with(MESH, |work| put(work, &policy("  balancer: {type: RoundRobin}\n")));
    eventually("the policy is known", || (names(&world, &[], 12).1.len() == 4).then_some(()));
    let (answers, all) = names(&world, &[], 40);
    assert_eq!(all.len(), 4, "{answers:?}");
    for name in &all {
        let count = answers.iter().filter(|a| *a == name).count();
        assert!((9..=11).contains(&count), "{name} had {count} of 40: {answers:?}");
    }
    hashed(&world);
    sessions(&world);
    mirrored(&world);
}

/// Who answers so many requests.
fn names(world: &World, words: &[&str], n: usize) -> (Vec<String>, BTreeSet<String>) {
    let url = format!("http://web.shop/name?n=[1-{n}]");
    let all: Vec<&str> = words.iter().copied().chain([url.as_str()]).collect();
    let answers: Vec<String> = world.curl(CLIENT, &all).lines().map(str::to_owned).collect();
    let different = answers.iter().cloned().collect();
    (answers, different)
}

fn hashed(world: &World) {
    for kind in ["RingHash", "Maglev"] {
        let field = kind[..1].to_lowercase() + &kind[1..];
        let spec = format!("  balancer: {{type: {kind}, {field}: {{header: x-user}}}}\n");
        put(&world.work(), &policy(&spec));
        let of = |user: u32| names(world, &["-H", &format!("x-user: {user}")], 4).1;
        eventually("the balancer is known", || known(world, "shop/web")["traffic"].to_string().contains(kind).then_some(()));
        let chosen: Vec<BTreeSet<String>> = (0..20).map(of).collect();
        assert!(chosen.iter().all(|names| names.len() == 1), "{kind}: a user stays with one: {chosen:?}");
        assert!(chosen.iter().flatten().collect::<BTreeSet<_>>().len() >= 3, "{kind}: users are spread: {chosen:?}");
        assert_eq!(chosen, (0..20).map(of).collect::<Vec<_>>(), "{kind}: and stay");
    }
}

fn sessions(world: &World) {
    let spread = policy("  balancer: {type: RoundRobin}\n");
    for (session, is_cookie) in [("{sessionName: stay}", true), ("{sessionName: x-stay, type: Header}", false)] {
        let manifest = format!("{spread}{}", route(&format!("    sessionPersistence: {session}\n")));
        let marked = || {
            let head = world.curl(CLIENT, &["-o", "/dev/null", "-D", "-", "http://web.shop/name"]);
            let field = if is_cookie { "set-cookie: stay=" } else { "x-stay: " };
            head.lines()
                .find_map(|line| line.strip_prefix(field))
                .map(|rest| rest.split(';').next().unwrap_or_default().to_owned())
        };
        put(&world.work(), &manifest);
        let mark = eventually("an answer carries a mark", marked);
        let sent = if is_cookie { format!("cookie: other=1; stay={mark}") } else { format!("x-stay: {mark}") };
        let (answers, different) = names(world, &["-H", &sent], 12);
        assert_eq!(different.len(), 1, "{session}: {answers:?}");
        assert!(names(world, &[], 12).1.len() > 1, "without a mark nobody stays");
        let forged = sent.replace(&mark, "01040a2fff03ff0000000000");
        assert_eq!(names(world, &["-H", &forged], 12).0.len(), 12, "a forged mark is no mark");
    }
}

/// A copy goes to the other service, with a mark on it, and what becomes of it is nobody's concern.
fn mirrored(world: &World) {
    let mirror = "    filters: [{type: RequestMirror, requestMirror: {backendRef: {name: shadow, port: 80}}}]\n";
    let shadow = format!("http://{}:8090", world.address("shop/shadow-0"));
    let copies = |what: &str| -> usize {
        let paths: Vec<String> = serde_json::from_str(&world.curl(CLIENT, &[&format!("{shadow}/paths")])).expect("JSON");
        paths.iter().filter(|path| path.contains(what)).count()
    };
    put(&world.work(), &route(mirror));
    let mut round = 0;
    eventually("copies arrive", || {
        round += 1;
        assert_eq!(ask(world, &["http://web.shop/name?first"]).0, "200");
        (copies("first") > 0).then_some(())
    });
    let body = "b".repeat(5000);
    assert_eq!(ask(world, &["-d", &body, "http://web.shop/echo?copied"]).1, body);
    eventually("a body is copied", || {
        let bodies: Vec<(usize, String)> =
            serde_json::from_str(&world.curl(CLIENT, &[&format!("{shadow}/bodies")])).expect("JSON");
        bodies.iter().any(|(size, _)| *size == 5000).then_some(())
    });
    // The copy hangs, and the caller has its answer all the same.
    ask(world, &[&format!("{shadow}/broken?code=500")]);
    assert_eq!(names(world, &[], 20).0.len(), 20, "a mirror that fails is nobody's failure");
    let service = known(world, "shop/web");
    assert!(service["endpoints"].as_array().is_some_and(|all| all.iter().all(|e| e["failures_in_a_row"] == 0)), "{service:#}");

    let half = mirror.replace("port: 80}}", "port: 80}, fraction: {numerator: 1, denominator: 2}}");
    change(world, &route(&half), || {
        let before = copies("half");
        names(world, &[], 1);
        ask(world, &["http://web.shop/name?half=[1-40]"]);
        let more = eventually("copies of some arrive", || (copies("half") > before).then(|| copies("half") - before));
        more < 40
    });
}
