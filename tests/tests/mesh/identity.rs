//! Whom the mesh believes: who is denied is refused and cut at once, both ways, for as long as that stands; and a foreign trust domain is believed for as
//! long as its anchors are there.

use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use weft_certs::{Authority, LeafKind, LeafSpec};
use weft_tests::{PATIENCE, Running, World, eventually, require};

const MESH: &str = r#"
mtls: strict
manifests: ["@WORK@/trust.yaml"]
workloads:
- {name: app, namespace: shop, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090}]}
- {name: raw, namespace: shop, command: ["@PYTHON@", "@PEERS@/tcp_peer.py", echo, "7000"], ports: [{port: 7000}]}
- {name: web, namespace: shop, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8091"], ports: [{port: 8091}]}
- {name: job, namespace: shop, command: [sleep, infinity]}
- {name: visitor, namespace: outside, sidecar: false, command: [sleep, infinity]}
"#;
const WEB: &str = "shop/web";
const JOB: &str = "shop/job";
const WEB_ID: &str = "spiffe://cluster.local/ns/shop/sa/web";
const NOTHING: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: unused}\n";

/// Writes the manifests that the world follows, at once.
fn put(work: &Path, text: &str) {
    let (file, temporary) = (work.join("trust.yaml"), work.join(".trust.new"));
    fs::write(&temporary, text).expect("the directory is ours");
    fs::rename(&temporary, &file).expect("the directory is ours");
}

#[test]
fn who_is_denied_is_refused_and_cut_and_a_foreign_domain_is_believed_while_it_stands() {
    require(&["curl", "openssl"]);
    let foreign = Authority::new("east.example");
    let world = World::up_with(MESH, |work| {
        put(work, NOTHING);
        let leaf = foreign.leaf(&LeafSpec::new(LeafKind::Valid, "spiffe://east.example/ns/shop/sa/buyer"));
        fs::write(work.join("leaf.pem"), leaf.chain_pem()).expect("written");
        fs::write(work.join("leaf.key"), leaf.key_pem()).expect("written");
        fs::write(work.join("issuer.pem"), foreign.issuer_pem()).expect("written");
    });
    denied_by_an_operator(&world);
    denied_by_a_manifest(&world);
    federated(&world, &foreign);
}

fn weft(world: &World, words: &str) -> Running {
    Running::start(world.shell(&format!("weft trust {words}")))
}

/// A connection that is open until somebody ends it: it has echoed a text already.
fn open(world: &World, from: &str) -> Running {
    let wait = world.spawn_peer(from, &["raw.py", "wait", "raw.shop", "7000", "hello"]);
    eventually("the echo", || wait.stderr().contains("hello").then_some(()));
    wait
}

fn status(world: &World, from: &str) -> String {
    world.status(from, "http://app.shop:8090/name")
}

fn denied_by_an_operator(world: &World) {
    assert_eq!((status(world, WEB).as_str(), status(world, JOB).as_str()), ("200", "200"));
    assert_eq!(world.status(JOB, "http://web.shop:8091/name"), "200");
    let tap = Running::start(world.shell("weft tap shop/raw --direction inbound --from sa/web -o json"));
    eventually("the tap sees a connection", || {
        world.spawn_peer(WEB, &["raw.py", "talk", "raw.shop", "7000", "hello"]).wait(PATIENCE).good();
        (!tap.stdout().is_empty()).then_some(())
    });
    let (its, other) = (open(world, WEB), open(world, JOB));

    let said = weft(world, &format!("deny add {WEB_ID} --reason 'its key is gone'")).wait(PATIENCE).good();
    assert!(said.contains(WEB_ID) && said.contains("its key is gone") && !said.contains("too old"), "{said}");
    let ended: Value = its.wait(PATIENCE).json();
    assert_ne!(ended["outcome"], "data", "what was open is cut: {ended}");
    // It is told as weft's own doing.
    eventually("the tap tells why it ended", || {
        let events = tap.stdout().lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).collect::<Vec<_>>();
        events.iter().any(|event| event["reason"] == "denied" && event["detail"].to_string().contains("was cut")).then_some(())
    });
    // From both ends of it: its peers refuse it as a client, and as a server.
    eventually("it calls nobody", || (status(world, WEB) != "200").then_some(()));
    eventually("nobody calls it", || (world.status(JOB, "http://web.shop:8091/name") == "502 upstream-denied").then_some(()));
    assert_eq!(status(world, JOB), "200", "others go on");

    // A control plane that starts again knows it still, and renews nothing.
    let control_plane = world.control_plane();
    world.signal(control_plane, Signal::SIGKILL);
    eventually("another control plane runs", || (!world.runs(control_plane)).then_some(()));
    let list = eventually("it answers", || {
        let output = weft(world, "deny list -o json").wait(PATIENCE);
        output.status.success().then(|| serde_json::from_str::<Value>(&output.stdout).ok())?
    });
    assert_eq!((&list["entries"][0]["subject"], &list["entries"][0]["source"]), (&json!(WEB_ID), &json!("")), "{list:#}");
    assert_ne!(status(world, WEB), "200");

    let said = weft(world, &format!("deny remove {WEB_ID}")).wait(PATIENCE).good();
    assert!(said.contains("nobody is denied"), "{said}");
    eventually("it calls again", || (status(world, WEB) == "200").then_some(()));
    eventually("it is called again", || (world.status(JOB, "http://web.shop:8091/name") == "200").then_some(()));
    eventually("it is let in again where it was cut off", || {
        let said = world.peer(WEB, &["raw.py", "talk", "raw.shop", "7000", "hello"]);
        (said["data"] == "hello").then_some(())
    });
    assert_eq!(other.stdout(), "", "what others had open stayed open");
    let refused = weft(world, "deny add spiffe://cluster.local/ns/weft-system/sa/weft-control-plane").wait(PATIENCE);
    assert!(!refused.status.success() && refused.stderr.contains("control plane's"), "{}", refused.stderr);
}

fn denied_by_a_manifest(world: &World) {
    let serial = world.config("shop/web-0")["certificate"]["serial"].as_str().expect("it has one").to_owned();
    let its = open(world, WEB);
    let denial = format!(
        "apiVersion: weft.dev/v1alpha1\nkind: IdentityDenial\nmetadata: {{name: stolen, namespace: weft-system}}\nspec: {{serials: [\"{serial}\"]}}\n"
    );
    put(&world.work(), &denial);
    let ended: Value = its.wait(PATIENCE).json();
    assert_ne!(ended["outcome"], "data", "what was open is cut: {ended}");
    eventually("it calls nobody", || (status(world, WEB) != "200").then_some(()));
    let list = weft(world, "deny list").wait(PATIENCE).good();
    assert!(list.contains(&serial) && list.contains("weft-system/stolen"), "{list}");
    put(&world.work(), &denial.replace("weft-system", "shop"));
    eventually("elsewhere it has no effect", || (status(world, WEB) == "200").then_some(()));
    put(&world.work(), NOTHING);
}

/// What a peer of the foreign domain is answered, by way of its own TLS.
fn visit(world: &World) -> String {
    let (work, to) = (world.work(), world.address("shop/app-0"));
    let file = |name: &str| work.join(name).display().to_string();
    let request = r"GET /name HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n";
    let line = format!(
        "printf '{request}' | timeout 10 openssl s_client -quiet -ign_eof -tls1_3 -alpn weft/h1 -connect {to}:8090 -cert '{}' -key '{}' \
         -cert_chain '{}' 2>&1",
        file("leaf.pem"),
        file("leaf.key"),
        file("issuer.pem")
    );
    world.exec("outside/visitor", &["sh", "-c", &format!("{line}; true")]).good()
}

fn federated(world: &World, foreign: &Authority) {
    assert!(!visit(world).contains("HTTP/1.1 200"), "nobody vouches for it");
    let bundle = foreign.root_pem().replace('\n', "\n    ");
    let federation = format!(
        "apiVersion: weft.dev/v1alpha1\nkind: FederatedTrustDomain\nmetadata: {{name: east, namespace: weft-system}}\nspec:\n  trustDomain: \
         east.example\n  bundle: |\n    {bundle}\n"
    );
    put(&world.work(), &federation);
    eventually("the foreign domain is believed", || visit(world).contains("HTTP/1.1 200").then_some(()));
    let status = weft(world, "status -o json").wait(PATIENCE).json();
    assert_eq!(status["federated"][0]["trustDomain"], "east.example", "{status:#}");
    // Its own is nobody else's to say.
    put(&world.work(), &federation.replace("east.example", "cluster.local"));
    eventually("its anchors are gone", || (!visit(world).contains("HTTP/1.1 200")).then_some(()));
    let problems = Running::start(world.shell("weft status")).wait(PATIENCE).good();
    assert!(problems.contains("mesh's own trust domain"), "{problems}");
    put(&world.work(), NOTHING);
}

/// Where servers of the foreign domain are, outside of the mesh.
const EAST: &str = "203.0.113.20";
const STOCK: &str = "spiffe://east.example/ns/shop/sa/stock";

/// Calls out to a foreign domain: ports 80 and 7000 lead to a server that is who it should be, 81 to one of a third domain, and 82 to one whose chain leads to
/// a root that only looks like the right one.
fn peers(identity: &str) -> String {
    let ports = "{port: 80, targetPort: 8443, protocol: http}, {port: 81, targetPort: 8444, protocol: http}, {port: 82, targetPort: 8445, protocol: http}, \
                 {port: 7000, targetPort: 7443, protocol: tcp}";
    format!(
        "---\napiVersion: weft.dev/v1alpha1\nkind: ExternalService\nmetadata: {{name: stock, namespace: shop}}\nspec: {{hosts: ['{EAST}'], ports: [{ports}], \
         tls: {{mode: mutual, identities: ['{identity}']}}, resolution: static, endpoints: [{{address: {EAST}}}]}}\n"
    )
}

fn federation(foreign: &Authority) -> String {
    let bundle = foreign.root_pem().replace('\n', "\n    ");
    format!(
        "---\napiVersion: weft.dev/v1alpha1\nkind: FederatedTrustDomain\nmetadata: {{name: east, namespace: weft-system}}\nspec:\n  trustDomain: \
         east.example\n  bundle: |\n    {bundle}\n"
    )
}

/// Servers that any SPIFFE peer could be, and that ask for the client's certificate; they end with what is returned.
fn servers(world: &World) -> Vec<Running> {
    world.lab(&["ip", "address", "add", &format!("{EAST}/32"), "dev", "weft0"]).wait(PATIENCE).good();
    let work = world.work();
    let anchors = "cp \"$(find \"$WEFT_RUN_DIR\" -name chain.pem | head -n 1)\"";
    Running::start(world.shell(&format!("{anchors} '{}'", work.join("own.pem").display()))).wait(PATIENCE).good();
    let file = |name: &str| work.join(name).display().to_string();
    let serve = |port: u16, name: &str, how: &str| {
        let [chain, key, issuer] = ["pem", "key", "issuer"].map(|kind| file(&format!("{name}.{kind}")));
        world.lab(&[
            "openssl",
            "s_server",
            "-accept",
            &format!("{EAST}:{port}"),
            "-tls1_3",
            "-cert",
            &chain,
            "-key",
            &key,
            "-cert_chain",
            &issuer,
            "-CAfile",
            &file("own.pem"),
            "-Verify",
            "4",
            "-verify_return_error",
            how,
        ])
    };
    let all = vec![
        serve(8443, "stock", "-www"),
        serve(8444, "west", "-www"),
        serve(8445, "posing", "-www"),
        serve(7443, "stock", "-rev"),
    ];
    for running in &all {
        eventually("it serves", || running.stdout().contains("ACCEPT").then_some(()));
    }
    all
}

#[test]
fn a_foreign_domain_is_called_while_its_anchors_stand_and_its_servers_are_who_is_meant() {
    require(&["curl", "openssl"]);
    let (east, west) = (Authority::new("east.example"), Authority::new("west.example"));
    let world = World::up_with(MESH, |work| {
        put(work, NOTHING);
        let valid = |authority: &Authority, id: &str| authority.leaf(&LeafSpec::new(LeafKind::Valid, id));
        for (name, authority, leaf) in [
            ("stock", &east, valid(&east, STOCK)),
            ("west", &west, valid(&west, "spiffe://west.example/ns/shop/sa/stock")),
            ("posing", &east, east.leaf(&LeafSpec::new(LeafKind::ForeignRoot, STOCK))),
        ] {
            fs::write(work.join(format!("{name}.pem")), leaf.chain_pem()).expect("written");
            fs::write(work.join(format!("{name}.key")), leaf.key_pem()).expect("written");
            fs::write(work.join(format!("{name}.issuer")), authority.issuer_pem()).expect("written");
        }
    });
    let _servers = servers(&world);
    let put = |text: &str| put(&world.work(), &format!("{NOTHING}{text}"));
    let is = |port: u16| world.status(WEB, &format!("http://{EAST}:{port}/"));
    let becomes = |what: &str, wanted: &str| eventually(what, || (is(80) == wanted).then_some(()));
    let open = || {
        let wait = world.spawn_peer(WEB, &["raw.py", "wait", EAST, "7000", "hello\n"]);
        eventually("the echo", || wait.stderr().contains("olleh").then_some(()));
        wait
    };
    let is_cut = |wait: Running| {
        let ended: Value = wait.wait(PATIENCE).json();
        assert_ne!(ended["outcome"], "data", "what was open is cut: {ended}");
    };
    let (peers_stock, believed) = (peers(STOCK), federation(&east));

    put(&peers_stock);
    becomes("nobody vouches for it", "502 upstream-untrusted");
    put(&(believed.clone() + &peers_stock));
    becomes("it is called", "200");
    assert_eq!(is(81), "502 upstream-identity", "another domain, whose anchors nobody asks");
    assert_eq!(is(82), "502 upstream-tls", "another root");
    let explained = world.shell(&format!("weft explain --from shop/web --to-host {EAST}:80")).output().expect("weft runs");
    let told = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(told.contains("ALLOWED") && told.contains("mutual TLS with spiffe://east.example"), "{told}");

    put(&(believed.clone() + &peers("spiffe://east.example/ns/shop/sa/other")));
    becomes("another one is meant", "502 upstream-identity");
    put(&(believed.clone() + &peers("spiffe://east.example/*")));
    becomes("everybody of the domain is", "200");
    put(&(believed.clone() + &peers_stock));
    becomes("as before", "200");

    // Whatever takes the connection's ground away ends it.
    let wait = open();
    let denial = format!(
        "---\napiVersion: weft.dev/v1alpha1\nkind: IdentityDenial\nmetadata: {{name: stolen, namespace: weft-system}}\nspec: {{identities: ['{STOCK}']}}\n"
    );
    put(&(believed.clone() + &peers_stock + &denial));
    is_cut(wait);
    becomes("it is denied", "502 upstream-denied");
    put(&(believed.clone() + &peers_stock));
    becomes("it is denied no more", "200");
    let wait = open();
    put(&peers_stock);
    is_cut(wait);
    becomes("nobody vouches for it any more", "502 upstream-untrusted");
    put(&(believed.clone() + &peers_stock));
    becomes("it is called again", "200");
    let wait = open();
    put(&believed);
    is_cut(wait);
    eventually("nothing leads there", || (is(80) != "200").then_some(()));
}
