//! A shop that may not leave the mesh, but for the hosts that it is allowed: real servers outside, a real resolver, and an attacker who has an address.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use weft_tests::{PATIENCE, Running, World, eventually, require};

const GOOD: &str = "203.0.113.10";
const EVIL: &str = "203.0.113.66";
const RESOLVER: &str = "203.0.113.53";

const MESH: &str = r#"
egress: deny
dnsCapture: true
namespaces: {lax: {egress: allow}}
manifests: ["@WORK@/egress.yaml"]
workloads:
- {name: web, namespace: shop, command: [sleep, infinity]}
- {name: job, namespace: shop, command: [sleep, infinity]}
- {name: open, namespace: lax, command: [sleep, infinity]}
"#;

const WEB: &str = "shop/web";
const JOB: &str = "shop/job";

const EXTERNALS: &str = r#"
apiVersion: weft.dev/v1alpha1
kind: ExternalService
metadata: {name: plain, namespace: shop}
spec: {hosts: [plain.example, "*.wild.example", rebind.example], ports: [{port: 80, protocol: http}]}
---
apiVersion: weft.dev/v1alpha1
kind: ExternalService
metadata: {name: tls, namespace: shop}
spec: {hosts: [tls.example], ports: [{port: 443, protocol: tls}]}
---
apiVersion: weft.dev/v1alpha1
kind: ExternalService
metadata: {name: originated, namespace: shop}
spec:
  hosts: [originated.example, impostor.example]
  ports: [{port: 80, protocol: http}]
  tls: {mode: originate, caCertificates: @CA@}
---
apiVersion: weft.dev/v1alpha1
kind: ExternalService
metadata: {name: database, namespace: shop}
spec: {hosts: [db.example], ports: [{port: 5432, protocol: tcp}]}
---
apiVersion: weft.dev/v1alpha1
kind: ExternalService
metadata: {name: fixed, namespace: shop}
spec:
  hosts: [fixed.example]
  ports: [{port: 80, protocol: http}, {port: 5432, protocol: tcp}]
  resolution: static
  endpoints: [{address: 203.0.113.10}]
---
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: plain, namespace: shop}
spec:
  targetRef: {group: weft.dev, kind: ExternalService, name: plain}
  action: Allow
  rules: [{from: [{serviceAccounts: [web]}], to: [{methods: [GET]}]}]
"#;

/// Two servers outside that say which of them they are. The lab may have one user alone.
const NGINX: &str = r"
user root;
daemon off;
master_process off;
pid @DIR@/nginx.pid;
error_log stderr warn;
events { worker_connections 64; }
http {
    access_log off;
    client_body_temp_path @DIR@/body; proxy_temp_path @DIR@/proxy; fastcgi_temp_path @DIR@/fastcgi; uwsgi_temp_path @DIR@/uwsgi; scgi_temp_path @DIR@/scgi;
    server { listen 203.0.113.10:80; listen 203.0.113.66:80; return 200 '$server_addr $scheme $host\n'; }
    server {
        listen 203.0.113.10:443 ssl;
        ssl_certificate @DIR@/good.pem; ssl_certificate_key @DIR@/good.key;
        return 200 '$server_addr $scheme $host $ssl_server_name\n';
    }
    server {
        listen 203.0.113.66:443 ssl;
        ssl_certificate @DIR@/evil.pem; ssl_certificate_key @DIR@/evil.key;
        return 200 '$server_addr $scheme $host $ssl_server_name\n';
    }
}
";

fn openssl(work: &Path, line: &str) {
    let output = Command::new("sh").current_dir(work).args(["-c", &format!("openssl {line}")]).output().expect("a shell");
    assert!(output.status.success(), "openssl {line}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A CA, a certificate of it for the good hosts, and one for the attacker's own host.
fn certificates(work: &Path) -> String {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(work, &format!("req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj '/CN=outside'"));
    for (name, hosts) in [("good", "DNS:tls.example,DNS:originated.example"), ("evil", "DNS:evil.example")] {
        openssl(work, &format!("req -new {key} -keyout {name}.key -out {name}.csr -subj '/CN={name}'"));
        fs::write(work.join("san"), format!("subjectAltName={hosts}\n")).expect("the directory is ours");
        openssl(
            work,
            &format!("x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem -days 2 -extfile san"),
        );
    }
    fs::read_to_string(work.join("ca.pem")).expect("it was written")
}

fn prepare(work: &Path) {
    let ca = certificates(work);
    // JSON's escapes are YAML's.
    let text = EXTERNALS.replace("@CA@", &Value::from(ca).to_string());
    fs::write(work.join("egress.yaml"), text).expect("the directory is ours");
    fs::write(work.join("nginx.conf"), NGINX.replace("@DIR@", &work.to_string_lossy())).expect("the directory is ours");
    fs::write(work.join("resolv.conf"), format!("nameserver {RESOLVER}\n")).expect("the directory is ours");
}

/// Brings up what is outside; it ends with what is returned.
fn outside(world: &World) -> Vec<Running> {
    for address in [GOOD, EVIL, RESOLVER] {
        world.lab(&["ip", "address", "add", &format!("{address}/32"), "dev", "weft0"]).wait(PATIENCE).good();
    }
    let names = [
        format!("plain.example={GOOD}"),
        format!("tls.example={GOOD}"),
        format!("originated.example={GOOD}"),
        format!("impostor.example={EVIL}"),
        format!("*.wild.example={GOOD}"),
        format!("wild.example={GOOD}"),
        format!("evil.example={EVIL}"),
        format!("db.example={GOOD}"),
        "rebind.example=10.47.0.1".to_owned(),
    ];
    let mut dns = vec!["outside.py", "serve", RESOLVER];
    dns.extend(names.iter().map(String::as_str));
    let greeters = [GOOD, EVIL].map(|address| world.lab_peer(&["outside.py", "greet", address, "5432"]));
    let mut all = vec![world.lab_peer(&dns)];
    all.extend(greeters);
    for running in &all {
        eventually("it serves", || running.stdout().contains("ready").then_some(()));
    }
    let conf = world.work().join("nginx.conf");
    all.push(world.lab(&["nginx", "-e", "stderr", "-c", &conf.to_string_lossy()]));
    eventually("nginx serves", || {
        let asked = world.lab(&["curl", "-sS", &format!("http://{GOOD}/")]).wait(PATIENCE);
        asked.status.success().then_some(())
    });
    all
}

#[test]
fn a_shop_leaves_the_mesh_for_what_it_may_and_for_nothing_else() {
    require(&["curl", "nginx", "openssl"]);
    let world = World::up_with_sidecar(MESH, r#"exec @SIDECAR@ "$@" --resolv-conf=@WORK@/resolv.conf"#, prepare);
    let _outside = outside(&world);
    denied_by_default(&world);
    hosts(&world);
    names_decide(&world);
    tls(&world);
    originated(&world);
    identity(&world);
    dns(&world);
    bytes(&world);
    explained(&world);
}

fn denied_by_default(world: &World) {
    for url in
        [format!("http://{EVIL}/"), format!("http://{GOOD}/"), "http://evil.example/".to_owned(), format!("http://{EVIL}:8080/")]
    {
        assert_eq!(world.status(WEB, &url), "403 egress-denied", "{url}");
    }
    let ended = world.exec(WEB, &["curl", "-sSk", "--max-time", "10", "https://evil.example/"]);
    assert!(!ended.status.success(), "TLS to another host: {}", ended.stdout);
    assert_eq!(world.status("lax/open", &format!("http://{EVIL}/")), "200", "a namespace that lets its own out");
    let said = world.curl(WEB, &["-o", "/dev/null", "-w", "%header{weft-ref}", "http://evil.example/x?secret=1"]);
    let output = world.shell(&format!("weft why -o json {said}")).output().expect("weft runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let why: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((&why["to"], &why["port"], &why["cause"]), (&"evil.example".into(), &80.into(), &"egress".into()), "{why:#}");
    assert!(why["remedy"].as_str().is_some_and(|text| text.contains("evil.example")), "{why:#}");
}

fn hosts(world: &World) {
    assert_eq!(world.curl(WEB, &["http://plain.example/"]), format!("{GOOD} http plain.example\n"));
    assert_eq!(world.curl(WEB, &["http://a.b.wild.example/"]), format!("{GOOD} http a.b.wild.example\n"));
    assert_eq!(world.status(WEB, "http://wild.example/"), "403 egress-denied", "a wildcard is not what it is below");
    assert_eq!(world.status(WEB, "http://plain.example:8080/"), "403 egress-denied", "another port");
    let said = "%{http_code} %header{weft-error}";
    let rebound = ["-o", "/dev/null", "-w", said, "-H", "Host: rebind.example", &format!("http://{EVIL}/")];
    assert_eq!(world.curl(WEB, &rebound), "502 name-unresolved", "a name that leads into the mesh");
}

/// What was dialled does not matter where a host is named.
fn names_decide(world: &World) {
    let spoofed = world.curl(WEB, &["-H", "Host: plain.example", &format!("http://{EVIL}/")]);
    assert_eq!(spoofed, format!("{GOOD} http plain.example\n"), "an allowed name at the attacker's address");
    let codes = world.curl(
        WEB,
        &[
            "-o",
            "/dev/null",
            "-w",
            "%{http_code} ",
            "http://plain.example/",
            "--next",
            "-sS",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code} %{num_connects} ",
            "-H",
            "Host: evil.example",
            "http://plain.example/",
            "--next",
            "-sS",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "http://plain.example/",
        ],
    );
    assert_eq!(codes, "200 403 0 200", "each request on a connection by its own host");
    let absolute = world.curl(
        WEB,
        &["-o", "/dev/null", "-w", "%{http_code}", "--request-target", "http://evil.example/", "http://plain.example/"],
    );
    assert_eq!(absolute, "403", "the target names the host, whatever Host says");
}

fn tls(world: &World) {
    let work = world.work();
    let ca = work.join("ca.pem");
    let ca = ca.to_string_lossy();
    let good = format!("{GOOD} https tls.example tls.example\n");
    assert_eq!(world.curl(WEB, &["--cacert", &ca, "https://tls.example/"]), good);
    let moved = world.curl(WEB, &["--cacert", &ca, "--resolve", &format!("tls.example:443:{EVIL}"), "https://tls.example/"]);
    assert_eq!(moved, good, "the name decides, not the address");
    let nameless = world.exec(WEB, &["curl", "-sSk", "--max-time", "10", &format!("https://{GOOD}/")]);
    assert!(!nameless.status.success(), "no server name: {}", nameless.stdout);
    let hello = format!("openssl s_client -noservername -connect {GOOD}:443 </dev/null");
    let refused = world.exec(WEB, &["sh", "-c", &hello]);
    assert!(!refused.stdout.contains("BEGIN CERTIFICATE"), "{}", refused.stdout);
    assert_eq!(world.status(WEB, "http://tls.example:443/"), "502 protocol-mismatch", "plain HTTP where TLS is declared");
}

fn originated(world: &World) {
    let said = world.curl(WEB, &["http://originated.example/"]);
    assert_eq!(said, format!("{GOOD} https originated.example originated.example\n"), "the sidecar speaks TLS");
    assert_eq!(world.status(WEB, "http://impostor.example/"), "502 upstream-tls", "a certificate for another host");
    let both = world.curl(WEB, &["-H", "Host: originated.example", "http://impostor.example/"]);
    assert_eq!(both, format!("{GOOD} https originated.example originated.example\n"), "Host and server name are one");
}

/// The principal of a policy is the caller's own identity.
fn identity(world: &World) {
    assert_eq!(world.status(JOB, "http://plain.example/"), "403 denied");
    assert_eq!(world.status(JOB, "http://originated.example/"), "200", "no policy is for that one");
    let posted =
        world.curl(WEB, &["-o", "/dev/null", "-w", "%{http_code} %header{weft-error}", "-XPOST", "http://plain.example/"]);
    assert_eq!(posted, "403 denied", "another method");
    let file = world.work().join("egress.yaml");
    let text = fs::read_to_string(&file).expect("it is there");
    let change = |to: &str| {
        let temporary = world.work().join(".egress.new");
        fs::write(&temporary, to).and_then(|()| fs::rename(&temporary, &file)).expect("the directory is ours");
    };
    change(&text.replace("serviceAccounts: [web]", "serviceAccounts: [job]"));
    eventually("the other one may", || (world.status(JOB, "http://plain.example/") == "200").then_some(()));
    assert_eq!(world.status(WEB, "http://plain.example/"), "403 denied");
    change(&text);
    eventually("as before", || (world.status(WEB, "http://plain.example/") == "200").then_some(()));
}

/// The workload's own name server is the lab's, which knows none of these names: its sidecar has asked another.
fn dns(world: &World) {
    let over_udp = world.peer(WEB, &["dns_client.py", "plain.example"]);
    assert!(over_udp.to_string().contains(GOOD), "{over_udp}");
    let over_tcp = world.peer(WEB, &["outside.py", "ask", "evil.example"]);
    assert_eq!(over_tcp["addresses"][0], EVIL, "{over_tcp}");
    assert_eq!(over_tcp["id"], 7, "the answer is under the id of the question");
    let nobody = world.peer(WEB, &["outside.py", "ask", "nobody.example"]);
    assert_eq!(nobody["addresses"], Value::Array(vec![]), "{nobody}");
    // No name server knows it: its endpoints are fixed.
    assert_eq!(world.curl(WEB, &["http://fixed.example/"]), format!("{GOOD} http fixed.example\n"));
    let over_tcp = world.peer(WEB, &["outside.py", "ask", "fixed.example"]);
    assert_eq!((&over_tcp["addresses"], &over_tcp["id"]), (&serde_json::json!([GOOD]), &7.into()), "{over_tcp}");
    let greeted = world.peer(WEB, &["raw.py", "talk", "fixed.example", "5432", "x"]);
    assert!(greeted["data"].as_str().is_some_and(|data| data.starts_with(&format!("hello from {GOOD}"))), "{greeted}");
}

/// Bytes are known by the name that led to their address.
fn bytes(world: &World) {
    let greeted = world.peer(WEB, &["raw.py", "talk", "db.example", "5432", "x"]);
    assert!(greeted["data"].as_str().is_some_and(|data| data.starts_with(&format!("hello from {GOOD}"))), "{greeted}");
    let refused = world.peer(WEB, &["raw.py", "talk", EVIL, "5432", "x"]);
    assert_eq!(refused["outcome"], "reset", "{refused}");
}

fn explained(world: &World) {
    let ask = |from: &str, to: &str| {
        let line = format!("weft explain -o json --from {from} --to-host {to}");
        let output = world.shell(&line).output().expect("weft runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let told: Value = serde_json::from_str(&text)
            .unwrap_or_else(|e| panic!("{line}: {e}: {text} {}", String::from_utf8_lossy(&output.stderr)));
        told["answers"][0]["verdict"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(ask("shop/web", "evil.example:80"), "denied");
    assert_eq!(ask("shop/web", "tls.example:443"), "allowed");
    assert_eq!(ask("shop/web", "plain.example:80"), "depends on the request");
    assert_eq!(ask("shop/job", "plain.example:80"), "denied");
    assert_eq!(ask("lax/open", "evil.example:80"), "allowed");
    let status = world.shell("weft status").output().expect("weft runs");
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(text.contains("egress deny"), "{text}");
}
