//! Services that are only names for something else: in the mesh, outside of it, or nowhere.

use std::fs;

use serde_json::{Value, json};
use weft_tests::{PATIENCE, World, eventually};

const MESH: &str = r#"
manifests: ["@WORK@/aliases.yaml"]
workloads:
- {name: web, namespace: shop, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090}]}
- {name: client, namespace: front, command: [sleep, infinity]}
"#;
const ALIASES: [(&str, &str); 4] = [
    ("web", "web.shop.svc.cluster.local"),
    ("again", "web.front.svc.cluster.local"),
    ("outside", "www.example.com"),
    ("round", "round.front.svc.cluster.local"),
];
const CLIENT: &str = "front/client";
/// An address that is nobody's anywhere (RFC 5737), and in none of the mesh's ranges.
const ELSEWHERE: &str = "192.0.2.10";

#[test]
fn an_alias_stands_for_what_it_names() {
    let alias = |(name, target): &(&str, &str)| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: front}}\n\
             spec: {{type: ExternalName, externalName: {target}}}\n"
        )
    };
    let aliases: String = ALIASES.iter().map(alias).collect();
    let world = World::up_with(MESH, |work| fs::write(work.join("aliases.yaml"), aliases).expect("written"));
    names(&world);
    into_the_mesh(&world);
    out_of_the_mesh(&world);
}

fn names(world: &World) {
    let ask = |name: &str| world.peer(CLIENT, &["dns_client.py", &format!("{name}.front.svc.cluster.local")]);
    let web = json!(["web.shop.svc.cluster.local", "A", world.service("shop/web")]);
    let one = json!(["web.front.svc.cluster.local", "CNAME", "web.shop.svc.cluster.local"]);
    let two = json!(["again.front.svc.cluster.local", "CNAME", "web.front.svc.cluster.local"]);
    // Who asks here follows no alias by itself (RFC 1034, section 4.3.2, step 3a).
    assert_eq!(ask("web"), json!({"code": 0, "records": [one, web]}), "an alias comes with what it stands for");
    assert_eq!(ask("again"), json!({"code": 0, "records": [two, one, web]}), "and so does an alias of an alias");
    let outside = json!(["outside.front.svc.cluster.local", "CNAME", "www.example.com"]);
    assert_eq!(ask("outside"), json!({"code": 0, "records": [outside]}), "a name outside is passed on as it is");
    let round = ask("round");
    assert!(round["records"].as_array().is_some_and(|records| records.len() < 20), "an alias of itself is no end: {round}");
    assert_eq!(ask("nothing")["code"], 3, "a name that nobody has");
}

/// The alias is a name alone: whom the client talks to is the target, with the target's identity.
fn into_the_mesh(world: &World) {
    for alias in ["web", "again"] {
        let seen = world.exec(CLIENT, &["curl", "-sS", "--max-time", "10", &format!("http://{alias}:8090/seen")]).json();
        assert_eq!(field(&seen, "host"), [json!(format!("{alias}:8090"))], "{seen}");
        assert_eq!(field(&seen, "weft-client-id"), [json!("spiffe://cluster.local/ns/front/sa/client")], "{seen}");
    }
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    let fields = [("direction", "outbound"), ("target", "shop/web"), ("protocol", "http/1.1")];
    world.mutual_tls_edge("front/client-0", web, &fields);
}

/// Where the name outside leads is none of the mesh's business: the bytes pass as they are.
fn out_of_the_mesh(world: &World) {
    world.lab(&["ip", "addr", "add", &format!("{ELSEWHERE}/32"), "dev", "weft0"]).wait(PATIENCE).good();
    let _server = world.lab_peer(&["http_peer.py", "8099", ELSEWHERE]);
    let resolved = format!("www.example.com:8099:{ELSEWHERE}");
    let ask = ["curl", "-sS", "--max-time", "10", "--resolve", resolved.as_str(), "http://www.example.com:8099/seen"];
    let seen = eventually("the server outside serves", || {
        let output = world.exec(CLIENT, &ask);
        output.status.success().then(|| output.json())
    });
    let names: Vec<&str> = seen["headers"].as_array().into_iter().flatten().filter_map(|pair| pair[0].as_str()).collect();
    assert_eq!(names, ["host", "user-agent", "accept"], "nothing is added: {seen}");
    assert_eq!(seen["peer"], world.address("front/client-0"), "{seen}");
    let edge = world.edge("front/client-0", &[("direction", "outbound"), ("target", "unknown")]);
    assert_eq!((&edge["peer"], &edge["cipher"], &edge["protocol"]), (&json!("plaintext"), &json!(""), &json!("tcp")), "{edge:#}");
}

fn field(seen: &Value, name: &str) -> Vec<Value> {
    let fields = seen["headers"].as_array().into_iter().flatten();
    fields.filter(|pair| pair[0] == name).map(|pair| pair[1].clone()).collect()
}
