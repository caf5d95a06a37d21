//! The TLS of the mesh, seen from outside by real tools: one version, the listed suites and groups, a certificate of the caller's, and nothing to resume.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use weft_certs::{Authority, LeafKind, LeafSpec};
use weft_tests::{Running, World, eventually, require};

const MESH: &str = r#"
mtls: strict
manifests: ["@WORK@/trust.yaml"]
workloads:
- {name: app, namespace: shop, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090}]}
- {name: web, namespace: shop, command: [sleep, infinity]}
- {name: visitor, namespace: outside, sidecar: false, command: [sleep, infinity]}
"#;

/// What `openssl s_client` says of a handshake with the sidecar of `app`, over which a request is sent. With `shows`, it has a certificate of a domain that
/// the mesh believes.
fn handshake(world: &World, options: &str, shows: bool) -> String {
    let (work, to) = (world.work(), world.address("shop/app-0"));
    let file = |name: &str| work.join(name).display().to_string();
    let certificate = format!("-cert '{}' -key '{}' -cert_chain '{}'", file("leaf.pem"), file("leaf.key"), file("issuer.pem"));
    let line = format!(
        "printf 'GET /name HTTP/1.1\\r\\nHost: app\\r\\nConnection: close\\r\\n\\r\\n' | timeout 10 openssl s_client -ign_eof -alpn weft/h1 -connect \
         {to}:8090 {options} {} 2>&1; true",
        if shows { certificate.as_str() } else { "" }
    );
    world.exec("outside/visitor", &["sh", "-c", &line]).good()
}

fn prepare(work: &Path, foreign: &Authority) {
    let leaf = foreign.leaf(&LeafSpec::new(LeafKind::Valid, "spiffe://east.example/ns/shop/sa/buyer"));
    for (name, text) in [("leaf.pem", leaf.chain_pem()), ("leaf.key", leaf.key_pem())] {
        fs::write(work.join(name), text).expect("written");
    }
    fs::write(work.join("issuer.pem"), foreign.issuer_pem()).expect("written");
    let bundle = foreign.root_pem().replace('\n', "\n    ");
    let federation = format!(
        "apiVersion: weft.dev/v1alpha1\nkind: FederatedTrustDomain\nmetadata: {{name: east, namespace: weft-system}}\nspec:\n  trustDomain: \
         east.example\n  bundle: |\n    {bundle}\n"
    );
    fs::write(work.join("trust.yaml"), federation).expect("written");
}

#[test]
fn a_sidecar_takes_one_version_the_listed_suites_and_groups_and_a_certificate() {
    require(&["openssl", "curl"]);
    let foreign = Authority::new("east.example");
    let world = World::up_with(MESH, |work| prepare(work, &foreign));
    let whole = eventually("a handshake", || Some(handshake(&world, "", true)).filter(|said| said.contains("HTTP/1.1 200")));
    for told in ["New, TLSv1.3,", "Compression: NONE", "Early data was not sent", "ALPN protocol: weft/h1"] {
        assert!(whole.contains(told), "{told}: {whole}");
    }
    // Nothing to resume a session by (RFC 8446, section 4.6.1): a resumed one would have outlived a denial, a rotation or a policy.
    assert!(!whole.contains("New Session Ticket arrived"), "{whole}");

    for (options, good) in [
        ("-tls1_3", true),
        ("-tls1_2", false),
        ("-no_tls1_3", false),
        ("-ciphersuites TLS_AES_128_GCM_SHA256", true),
        ("-ciphersuites TLS_AES_256_GCM_SHA384", true),
        ("-ciphersuites TLS_CHACHA20_POLY1305_SHA256", true),
        ("-ciphersuites TLS_AES_128_CCM_SHA256", false),
        ("-ciphersuites TLS_AES_128_CCM_8_SHA256", false),
        ("-groups X25519", true),
        ("-groups P-256", true),
        ("-groups P-384", false),
        ("-groups P-521", false),
        ("-groups X448", false),
        ("-groups ffdhe2048", false),
        ("-alpn weft/none", false),
    ] {
        let said = handshake(&world, options, true);
        assert_eq!(said.contains("HTTP/1.1 200"), good, "{options}: {said}");
    }
    let nobody = handshake(&world, "", false);
    assert!(nobody.contains("certificate required") && !nobody.contains("HTTP/1.1 200"), "without a certificate: {nobody}");

    // Between sidecars, the hybrid group goes first.
    assert_eq!(world.status("shop/web", "http://app:8090/name"), "200");
    world.mutual_tls_edge("shop/app-0", "spiffe://cluster.local/ns/shop/sa/web", &[("direction", "inbound")]);
}

const VISITOR: &str = "outside/visitor";
/// Where the control plane of such a world listens.
const CONTROL_PLANE: &str = "10.47.0.1";
/// Where what a scanner sends to the sidecar of `app` gets the name that the mesh goes by.
const RELAY: &str = "9443";
/// A scanner that takes longer is ended.
const SCAN: Duration = Duration::from_secs(400);

const SUITES: [&str; 3] = ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];

/// Groups by their numbers in the registry: `X25519MLKEM768`, `x25519`, `secp256r1`.
const GROUPS: [u64; 3] = [4588, 29, 23];
/// `secp384r1`, `secp521r1`, `x448`, `ffdhe2048`, `ffdhe3072`, `X25519Kyber768Draft00`, `SecP256r1MLKEM768`, `SecP384r1MLKEM1024`, `MLKEM768`, `MLKEM1024`.
const OTHER_GROUPS: [u64; 10] = [24, 25, 30, 256, 257, 25497, 4587, 4589, 513, 514];

/// Starts `testssl` with the checks that mean something for such a server: versions, suites and groups, what is shown and what could be resumed, renegotiation,
/// compression. `--openssl` has it say what the port is reached by, where it uses a real client.
fn testssl(world: &World, at: &str, openssl: &Path, report: &Path) -> Running {
    let limit = SCAN.as_secs().to_string();
    // A machine that stands still for seconds is no answer either.
    let patience = ["MAX_WAITSOCK=10", "MAX_SOCKET_FAIL=20", "MAX_OSSL_FAIL=20", "HEADER_MAXSLEEP=1"];
    let command = ["timeout", "--kill-after=5", &limit, "testssl", "--quiet", "--color", "0"];
    let options = "--warnings batch --sneaky --nodns none --connect-timeout 20 --openssl-timeout 20 -p -f -S -R -C";
    let (openssl, report) = (openssl.display().to_string(), report.display().to_string());
    let mut words: Vec<&str> = ["env"].into_iter().chain(patience).chain(command).chain(options.split(' ')).collect();
    words.extend(["--openssl", &openssl, "--jsonfile", &report, at]);
    world.spawn(VISITOR, &words)
}

/// What `testssl` found, by the names that it gives.
fn findings(report: &Path) -> BTreeMap<String, (String, String)> {
    let text = fs::read_to_string(report).expect("testssl has written its report");
    let told: Vec<Value> = serde_json::from_str(&text).unwrap_or_else(|e| panic!("it is not JSON ({e}): {text}"));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    told.iter().map(|f| (text(&f["id"]), (text(&f["severity"]), text(&f["finding"])))).collect()
}

fn words(text: &str) -> BTreeSet<&str> {
    text.split_whitespace().collect()
}

/// What of it is the mesh's posture; of `identity`, which the server shows.
fn is_the_posture(found: &BTreeMap<String, (String, String)>, identity: &str) {
    let of = |id: &str| {
        found.get(id).map_or_else(|| panic!("nothing about {id}: {found:#?}"), |(grade, said)| (grade.as_str(), said.as_str()))
    };
    for version in ["SSLv2", "SSLv3", "TLS1", "TLS1_1", "TLS1_2"] {
        assert_eq!(of(version).1, "not offered", "{version}");
    }
    assert!(of("TLS1_3").1.starts_with("offered"), "{:?}", of("TLS1_3"));
    assert_eq!(words(of("PFS_ciphers").1), SUITES.into());
    // It knows no hybrid group.
    assert_eq!(words(of("PFS_ECDHE_curves").1), ["X25519", "prime256v1"].into());
    assert!(of("TLS_session_ticket").1.starts_with("no "), "{:?}", of("TLS_session_ticket"));
    assert_eq!((of("sessionresumption_ticket").1, of("SSL_sessionID_support").1), ("not supported", "no"));
    assert!(of("sessionresumption_ID").1.starts_with("No Session ID"), "{:?}", of("sessionresumption_ID"));
    for good in ["secure_renego", "secure_client_renego", "CRIME_TLS"] {
        assert_eq!(of(good).0, "OK", "{good}: {:?}", of(good));
    }
    assert_eq!((of("cert_subjectAltName").1, of("cert_keySize").1), (identity, "EC 256 bits"));
}

/// What `nmap` sees of TLS at a port; nothing where it sees none.
fn nmap(world: &World, at: &str, port: &str) -> String {
    let command = "timeout --kill-after=5 200 nmap -Pn -n --script +ssl-enum-ciphers,+ssl-cert --script-timeout 180 -p";
    let words: Vec<&str> = command.split(' ').chain([port, at]).collect();
    let said = world.spawn(VISITOR, &words).wait(SCAN).good();
    assert!(said.contains(&format!("{port}/tcp open")), "{said}");
    said
}

fn enumerates_the_posture(said: &str) {
    let listed: BTreeSet<&str> =
        said.split_whitespace().filter(|word| word.starts_with("TLS") || word.starts_with("SSL")).collect();
    // It has names of its own, and offers one group.
    let suites = SUITES.map(|suite| suite.replace("TLS_", "TLS_AKE_WITH_"));
    assert_eq!(listed, suites.iter().map(String::as_str).chain(["TLSv1.3:"]).collect(), "{said}");
}

/// Scanners know neither client certificates nor weft's ALPN names: `peers/weft_alpn.py` says one in their stead. So of the sidecar they see what a server says in the
/// clear, and `testssl`, by way of `openssl`, what it shows. That a client must have a certificate, the other test sees.
#[test]
fn scanners_see_that_posture_at_a_sidecar_and_at_the_control_plane() {
    require(&["nmap", "openssl", "testssl"]);
    let world = World::up_with(&MESH.replace("manifests: [\"@WORK@/trust.yaml\"]\n", ""), |work| {
        for (name, alpn) in [("openssl-as-it-is", ""), ("openssl-of-the-mesh", " -alpn weft/h1")] {
            let script = format!("#!/bin/sh\n[ \"$1\" = s_client ] || exec openssl \"$@\"\nexec openssl \"$@\"{alpn}\n");
            fs::write(work.join(name), script).expect("written");
            fs::set_permissions(work.join(name), fs::Permissions::from_mode(0o755)).expect("it is ours");
        }
    });
    let app = world.address("shop/app-0");
    let relay = world.spawn_peer(VISITOR, &["weft_alpn.py", RELAY, &app, "8090"]);
    eventually("the relay listens", || relay.stdout().contains("listening").then_some(()));
    // testssl wants a path.
    let system = world.work().join("openssl-as-it-is");
    let reports = ["sidecar", "control-plane"].map(|name| world.work().join(format!("{name}.json")));
    let scans = [
        testssl(&world, &format!("127.0.0.1:{RELAY}"), &world.work().join("openssl-of-the-mesh"), &reports[0]),
        testssl(&world, &format!("{CONTROL_PLANE}:4700"), &system, &reports[1]),
    ];

    enumerates_the_posture(&nmap(&world, "127.0.0.1", RELAY));
    let control_plane = nmap(&world, CONTROL_PLANE, "4700");
    let shown: String = control_plane.lines().filter(|line| !line.contains("ssl-cert")).collect::<Vec<_>>().join("\n");
    enumerates_the_posture(&shown);
    assert!(control_plane.contains("URI:spiffe://cluster.local/ns/weft-system/sa/weft-control-plane"), "{control_plane}");
    // Who is not of the mesh sees no TLS at all.
    let stranger = nmap(&world, &app, "8090");
    assert!(!stranger.contains("ssl-"), "{stranger}");

    let numbers: Vec<String> = GROUPS.iter().chain(&OTHER_GROUPS).map(u64::to_string).collect();
    for (at, port, name) in [(app.as_str(), "8090", "weft/h1"), (CONTROL_PLANE, "4700", "h2")] {
        let question: Vec<&str> = ["groups.py", at, port, name].into_iter().chain(numbers.iter().map(String::as_str)).collect();
        let asked_for: Vec<Option<u64>> = serde_json::from_value(world.peer(VISITOR, &question)).expect("a list");
        // Each that is listed, and no other. Which one goes first is the client's to say.
        let expected: Vec<_> = GROUPS.map(Some).into_iter().chain(OTHER_GROUPS.map(|_| None)).collect();
        assert_eq!(asked_for, expected, "{name}");
    }

    for (scan, (report, name)) in scans.into_iter().zip(reports.iter().zip(["shop/sa/app", "weft-system/sa/weft-control-plane"]))
    {
        // It ends with the number of findings that it thinks bad, a certificate that no public CA has issued among them.
        let said = scan.wait(SCAN + Duration::from_secs(10));
        assert!(said.stdout.contains("Done "), "{}{}", said.stdout, said.stderr);
        is_the_posture(&findings(report), &format!("spiffe://cluster.local/ns/{name}"));
    }
}
