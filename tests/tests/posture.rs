//! The TLS of the mesh, seen from outside by a real tool: one version, the listed suites and groups, a certificate of the caller's, and nothing to resume.

use std::fs;
use std::path::Path;

use weft_certs::{Authority, LeafKind, LeafSpec};
use weft_tests::{World, eventually, require};

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
