//! Seven faults, planted in worlds that run, and found by who knows only `weft --help`: each within three commands that it leads to.
//!
//! With `WEFT_TRANSCRIPTS` set to a file, what was typed and what was answered is appended to it.

use std::fs::{self, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use weft_certs::Authority;
use weft_tests::{PATIENCE, World, eventually, require};

const CLIENT: &str = "front/client";
/// Commands that may be needed.
const MOST: usize = 3;

/// A service of three endpoints, and who calls it. What `@SLOW@` and `@TARGET@` stand for differs by the fault.
const MESH: &str = r#"
manifests: ["@WORK@/policies.yaml"]
workloads:
- name: web
  namespace: shop
  replicas: 3
  command: ["@PYTHON@", "@PEERS@/laggard.py", "8090", "@WORK@/lag"]
  ports: [{port: 8090}]
- {name: client, namespace: front, command: [sleep, infinity]}
services:
- {name: web, namespace: shop, ports: [{port: 80, targetPort: @TARGET@, protocol: http}]}
"#;

fn mesh() -> String {
    MESH.replace("@TARGET@", "8090")
}

fn prepare(work: &Path) {
    fs::write(work.join("policies.yaml"), "").expect("the directory is ours");
}

/// What was typed about one fault, and what was answered.
struct Session<'a> {
    world: &'a World,
    fault: &'static str,
    typed: usize,
    text: String,
}

impl<'a> Session<'a> {
    /// Begins with what everybody knows.
    fn begin(world: &'a World, fault: &'static str) -> Self {
        let mut session = Self { world, fault, typed: 0, text: String::new() };
        let help = session.run("weft --help").0;
        assert!(help.contains("Begin with `weft check`") && help.contains("Is it healthy?"), "{help}");
        session.text.clear();
        session
    }

    fn run(&mut self, line: &str) -> (String, Option<i32>) {
        let output = self.world.shell(line).output().expect("a shell starts");
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        self.text.extend(["$ ", line, "\n", &said, "\n"]);
        (said, output.status.code())
    }

    /// Types one of the commands that the help names.
    fn types(&mut self, line: &str) -> (String, Option<i32>) {
        self.typed += 1;
        assert!(self.typed <= MOST, "{} took more than {MOST} commands:\n{}", self.fault, self.text);
        let name = line.split(' ').nth(1).expect("weft COMMAND").to_owned();
        let help = self.world.shell("weft --help").output().expect("a shell starts").stdout;
        assert!(String::from_utf8_lossy(&help).contains(&format!("\n  {name} ")), "the help does not lead to {name}");
        self.run(line)
    }

    /// `weft check`, which has to name the cause by its code and by these words.
    fn check(&mut self, code: &str, words: &[&str]) {
        let (said, _) = self.types("weft check");
        let line = said.lines().find(|line| line.ends_with(&format!("[{code}]")) && words.iter().all(|word| line.contains(word)));
        assert!(line.is_some(), "{}: weft check does not name the cause ({code}, {words:?}):\n{said}", self.fault);
    }

    /// A further command, which shows the same in another way.
    fn shows(&mut self, line: &str, words: &[&str]) {
        let (said, _) = self.types(line);
        assert!(words.iter().all(|word| said.contains(word)), "{}: {line} does not show {words:?}:\n{said}", self.fault);
    }

    fn end(self) {
        if let Some(file) = std::env::var_os("WEFT_TRANSCRIPTS").filter(|file| !file.is_empty()) {
            let file = OpenOptions::new().create(true).append(true).open(file);
            let mut file = file.expect("the file of WEFT_TRANSCRIPTS can be written");
            write!(file, "=== {} ({} commands) ===\n\n{}\n", self.fault, self.typed, self.text).expect("written");
        }
    }
}

/// Calls the service so many times; what becomes of them is counted by the sidecars.
fn call(world: &World, times: usize, path: &str) {
    let url = format!("http://web.shop{path}?n=[1-{times}]");
    world.exec(CLIENT, &["curl", "-s", "--max-time", "5", "-o", "/dev/null", &url]);
}

/// A line of shell in a pod's network namespace, as the lab's root.
fn in_network(world: &World, replica: &str, line: &str) {
    let address = world.address(replica);
    // Only the namespace that has the address has it among its local ones.
    let script = format!(
        "for p in /proc/[0-9]*; do if grep -q -B1 -- '|-- {address}$' $p/net/fib_trie 2>/dev/null && grep -A1 -- '|-- {address}$' $p/net/fib_trie | grep -q 'host LOCAL'; then \
         exec nsenter -t ${{p#/proc/}} -n sh -ec '{line}'; fi; done; exit 9"
    );
    world.lab(&["sh", "-c", &script]).wait(PATIENCE).good();
}

#[test]
fn a_mesh_that_is_well_has_nothing_bad() {
    require(&["curl"]);
    let world = World::up_with(&mesh(), prepare);
    call(&world, 60, "/");
    let output = world.shell("weft check -o json").output().expect("a shell starts");
    let found: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let bad: Vec<&Value> = found.as_array().expect("a list").iter().filter(|f| f["verdict"] == "bad").collect();
    assert!(output.status.success() && bad.is_empty(), "{bad:#?}");
    for code in [
        "WEFT-C020",
        "WEFT-C021",
        "WEFT-C023",
        "WEFT-C030",
        "WEFT-C031",
        "WEFT-C032",
        "WEFT-C033",
        "WEFT-C040",
        "WEFT-C050",
        "WEFT-C051",
    ] {
        assert!(
            found.as_array().into_iter().flatten().any(|f| f["code"] == code && f["verdict"] == "good"),
            "{code} was not looked at: {found:#}"
        );
    }
    forms(&world);
    views(&world);
    ends(&world);
    archive(&world);
}

#[test]
fn time_that_passes_is_no_skew_and_a_control_plane_that_is_gone_is_a_finding() {
    require(&["curl"]);
    let world = World::up_with(&mesh(), prepare);
    call(&world, 20, "/");
    let codes = |line: &str| -> Vec<(String, String)> {
        let output = world.shell(line).output().expect("a shell starts");
        let found: Vec<Value> = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{line}: {e}: {}", String::from_utf8_lossy(&output.stderr)));
        let word = |f: &Value, name: &str| f[name].as_str().expect("a text").to_owned();
        found.iter().map(|f| (word(f, "code"), word(f, "verdict"))).collect()
    };
    let has = |found: &[(String, String)], code: &str, verdict: &str| found.iter().any(|(c, v)| c == code && v == verdict);
    // Longer than clocks may differ without a word.
    let found = codes("weft check --window 8s -o json");
    assert!(has(&found, "WEFT-C020", "good") && !found.iter().any(|(_, verdict)| verdict == "bad"), "{found:?}");
    // Stopped, it takes connections and never answers.
    world.signal(world.control_plane(), Signal::SIGSTOP);
    let found = codes("weft check -o json");
    assert!(has(&found, "WEFT-C023", "bad"), "{found:?}");
    assert!(has(&found, "WEFT-C020", "good") && has(&found, "WEFT-C031", "good"), "what sidecars tell is judged: {found:?}");
    world.signal(world.control_plane(), Signal::SIGCONT);
}

/// What has no end ends when nobody reads it any more, whether or not there is something to tell.
fn ends(world: &World) {
    // A look at the redirect is a connection of the pod as well, and may end meanwhile.
    let line = "weft tap shop/web --path /tapped | head -n 1";
    let mut tap = world.shell(line).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("a shell starts");
    eventually("somebody is told of a call", || {
        call(world, 3, "/tapped");
        tap.try_wait().expect("it is our own child")
    });
    let mut told = String::new();
    tap.stdout.take().expect("piped").read_to_string(&mut told).expect("text");
    assert!(told.contains("/tapped"), "{told}");
    // `true` reads nothing at all, and nobody calls.
    for line in ["weft tap shop/web | true", "weft top --interval 200ms | head -n 3"] {
        let mut shell = world.shell(line).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a shell starts");
        eventually(&format!("{line} ends"), || shell.try_wait().expect("it is our own child"));
    }
}

/// Every form of every command that asks about a mesh.
fn forms(world: &World) {
    for command in [
        "check --window 1s",
        "status",
        "edges",
        "endpoints",
        "routes",
        "stat --since-start",
        "stat --since-start --by pod",
        "stat --since-start --by edge",
        "top --count 1 --interval 1s",
        "diff shop/web-0",
        "sidecar shop/web-0 /check",
        "trust status",
    ] {
        for form in ["table", "wide", "json", "yaml"] {
            let output = world.shell(&format!("weft {command} -o {form}")).output().expect("a shell starts");
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(
                output.status.success() && !text.is_empty(),
                "weft {command} -o {form}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            assert!(!text.contains('\x1b'), "colours in a pipe: {text:?}");
            if form == "yaml" {
                serde_saphyr::from_multiple::<Value>(&text).unwrap_or_else(|e| panic!("weft {command} -o yaml: {e}"));
            }
            if form == "json" {
                serde_json::from_str::<Value>(&text).unwrap_or_else(|e| panic!("weft {command} -o json: {e}"));
            }
        }
    }
    let coloured = world.shell("weft check --window 1s --color always").output().expect("a shell starts");
    assert!(String::from_utf8_lossy(&coloured.stdout).contains("\x1b[32m✓\x1b[0m"));
}

/// The rates of what is called, and what the control plane has against what a sidecar has.
fn views(world: &World) {
    let json = |line: &str| -> Value {
        let output = world.shell(line).output().expect("a shell starts");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{line}: {e}"))
    };
    let stat = json("weft stat --since-start --to shop/web -o json");
    assert!(stat[0]["requests"].as_u64() >= Some(60) && stat[0]["successRate"] == 1.0 && stat[0]["p99"].is_number(), "{stat:#}");
    eventually("both have the same", || {
        let diff = json("weft diff front/client-0 -o json");
        (diff["same"].as_u64() >= Some(5)
            && diff["missing"] == json!([])
            && diff["extra"] == json!([])
            && diff["stale"] == json!([]))
        .then_some(())
    });
}

/// Manifests with a secret wherever one may stand.
const WITH_SECRETS: &str = r#"
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata:
  name: with-secrets
  namespace: shop
  annotations:
    weft.dev/telemetry: OTEL_EXPORTER_OTLP_HEADERS=api-key=hunter2
    note: "-----BEGIN CERTIFICATE-----@CERTIFICATE@-----END CERTIFICATE----- Bearer hunter2-hunter2 https://u:hunter2@example.com/?k=hunter2"
spec:
  action: Audit
  rules:
  - to: [{headers: [{name: x-key, value: hunter2}]}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: batch, namespace: elsewhere}
spec:
  template:
    spec:
      containers:
      - name: batch
        args: ["--db-password=hunter2", hunter2]
        env: [{name: DB, value: "postgres://u:hunter2@db"}]
"#;

/// The archive has everything, and no private key or token of the world.
fn archive(world: &World) {
    let token = world.shell("weft token create shop/web-0 --service-account web").output().expect("a shell starts").stdout;
    let policies = world.work().join("policies.yaml");
    fs::write(policies.with_extension("new"), WITH_SECRETS.replace("@CERTIFICATE@", &"A".repeat(64))).expect("written");
    fs::rename(policies.with_extension("new"), policies).expect("renamed");
    eventually("the control plane has the policy", || {
        let told = world.shell("weft explain --from front/client --to shop/web:80 -o json").output().ok()?;
        String::from_utf8_lossy(&told.stdout).contains("with-secrets").then_some(())
    });
    let file = world.work().join("bundle.tar.gz");
    let line = format!("weft bundle --file {} && tar xzf {0} -C {}", file.display(), world.work().display());
    let output = world.shell(&line).output().expect("a shell starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let files = walk(&world.work().join("weft-bundle"));
    assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
    for name in [
        "check.json",
        "status.json",
        "trust.json",
        "sidecars/shop/web-0/config.json",
        "sidecars/front/client-0/metrics.txt",
        "manifests/extra/policies.yaml",
    ] {
        assert!(files.iter().any(|(path, _)| path.ends_with(name)), "{name} is not in it");
    }
    let mut secrets: Vec<Vec<u8>> = vec![String::from_utf8_lossy(&token).trim().as_bytes().to_vec()];
    for (path, content) in walk(&world.state()) {
        // Keys in PEM line by line, and other secrets whole.
        let text = String::from_utf8_lossy(&content).into_owned();
        if text.contains("PRIVATE KEY") {
            secrets.extend(
                text.lines().filter(|line| line.len() > 30 && !line.starts_with("-----")).map(|line| line.as_bytes().to_vec()),
            );
        } else if path.extension().is_some_and(|e| e == "key") {
            secrets.push(content);
        }
    }
    assert!(secrets.len() > 1, "no private key was found to look for");
    secrets.push(b"hunter2".to_vec());
    assert!(files.iter().any(|(_, content)| weft_tests::contains(content, b"with-secrets")), "the policy itself is in it");
    for (path, content) in files {
        for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
            assert!(!weft_tests::contains(&content, secret), "{} has a secret in it", path.display());
        }
        assert!(!weft_tests::contains(&content, b"PRIVATE KEY"), "{}", path.display());
    }
}

fn walk(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(walk(&path));
        } else if path.is_file() {
            found.push((path.clone(), fs::read(&path).unwrap_or_default()));
        }
    }
    found
}

#[test]
fn what_is_captured_is_what_the_program_says_and_ctrl_c_ends_it() {
    require(&["curl", "tcpdump"]);
    let world = World::up_with(&mesh(), prepare);
    if !nix::unistd::geteuid().is_root() {
        // The mesh is an ordinary user's, and so is the answer.
        let output = world.shell("weft capture shop/web-0").output().expect("a shell starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("as root (sudo)"), "{said}");
        return;
    }
    let piped = |line: &str| world.shell(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("a shell starts");
    let mut capture = piped("exec weft capture shop/web-0 --for 6s --packets 5000");
    let end = Instant::now() + Duration::from_secs(60);
    while capture.try_wait().expect("it is our own child").is_none() {
        call(&world, 20, "/captured-by-name");
        assert!(Instant::now() < end, "the capture does not end");
    }
    let output = capture.wait_with_output().expect("it has ended");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("GET /captured-by-name"), "{text}\n{}", String::from_utf8_lossy(&output.stderr));

    let file = world.work().join("web.pcap");
    let mut capture = piped(&format!("exec weft capture shop/web-0 --for 1h --packets 100000 --file {}", file.display()));
    eventually("something is captured", || {
        call(&world, 5, "/captured");
        weft_tests::contains(&fs::read(&file).ok()?, b"GET /captured").then_some(())
    });
    assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
    let pid = Pid::from_raw(i32::try_from(capture.id()).expect("a process"));
    // As a terminal does, but to weft alone: tcpdump is its own to end.
    kill(pid, Signal::SIGINT).expect("it runs");
    let status = eventually("the capture ends", || capture.try_wait().expect("it is our own child"));
    assert!(status.success(), "{status}");
    for entry in fs::read_dir("/proc").expect("there").flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let ours = weft_tests::contains(&line, b"tcpdump") && weft_tests::contains(&line, file.as_os_str().as_encoded_bytes());
        assert!(!ours, "{} goes on", entry.path().display());
    }
}

#[test]
fn a_slow_endpoint() {
    require(&["curl"]);
    let world = World::up_with(&mesh(), prepare);
    fs::write(world.work().join("lag"), "web-2 500").expect("written");
    // Each by its own address, since a caller that has the choice avoids who is slow; few at once, since the server lets five wait.
    let status = world.shell("weft status -o json").output().expect("a shell starts").stdout;
    let status: Value = serde_json::from_slice(&status).expect("JSON");
    let all = status["workloads"].as_array().expect("a list").iter().filter(|w| w["namespace"] == "shop");
    for address in all.map(|w| w["address"].as_str().expect("every replica has an address")) {
        let url = format!("http://{address}:8090/?n=[1-24]");
        world.exec(CLIENT, &["curl", "-s", "-Z", "--parallel-max", "4", "--max-time", "10", "-o", "/dev/null", &url]);
    }
    let mut session = Session::begin(&world, "a slow endpoint");
    session.check("WEFT-C050", &["shop/web-2", "shop/web"]);
    session.shows("weft stat --by pod --since-start", &["shop/web-2"]);
    session.end();
}

/// How long the CA lives, in seconds: long enough to bring a world up on a machine that is busy.
const LIFE: u32 = 120;
const OWN_CA: &str = r#"exec @CONTROL_PLANE@ "$@" --ca-chain='@WORK@/ca.pem' --ca-key='@WORK@/ca.key'"#;

#[test]
fn an_expired_certificate() {
    require(&["curl"]);
    let authority = Authority::try_ending_in("cluster.local", LIFE).expect("an authority");
    let world = World::up_with_control_plane(&mesh(), OWN_CA, |work| {
        prepare(work);
        fs::write(work.join("ca.pem"), authority.issuer_pem() + &authority.root_pem()).expect("written");
        fs::write(work.join("ca.key"), authority.issuer_key_pem()).expect("written");
    });
    call(&world, 5, "/");
    let not_after = world.config("front/client-0")["certificate"]["not_after"].as_i64().expect("a time");
    let end = Instant::now() + Duration::from_secs(2 * u64::from(LIFE));
    while now() <= not_after + 1 {
        assert!(Instant::now() < end, "the certificate does not end");
        std::thread::sleep(Duration::from_millis(200));
    }
    call(&world, 5, "/");
    let mut session = Session::begin(&world, "an expired certificate");
    session.check("WEFT-C021", &["shop/web-0", "expired"]);
    session.shows("weft status", &["shop"]);
    session.end();
}

fn now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is later than 1970");
    i64::try_from(now.as_secs()).expect("not that much later")
}

#[test]
fn a_wrong_policy() {
    require(&["curl"]);
    let world = World::up_with(&mesh(), prepare);
    assert_eq!(world.status(CLIENT, "http://web.shop/"), "200");
    // It was meant for the service account `client`, and names another.
    let policy = r#"
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: web-callers, namespace: shop}
spec:
  targetRef: {group: "", kind: Service, name: web}
  action: Allow
  rules: [{from: [{serviceAccounts: [front/frontend]}]}]
"#;
    let (file, temporary) = (world.work().join("policies.yaml"), world.work().join(".new"));
    fs::write(&temporary, policy).expect("written");
    fs::rename(temporary, file).expect("renamed");
    eventually("the policy refuses", || (world.status(CLIENT, "http://web.shop/") == "403 denied").then_some(()));
    call(&world, 10, "/books");
    let mut session = Session::begin(&world, "a wrong policy");
    session.check("WEFT-C051", &["ns/front/sa/client", "shop/web-", "web-callers"]);
    session.shows("weft explain --from front/client --to shop/web:80", &["web-callers", "front/frontend"]);
    session.end();
}

#[test]
fn a_wrong_port() {
    require(&["curl"]);
    let world = World::up_with(&MESH.replace("@TARGET@", "8091"), prepare);
    call(&world, 10, "/");
    let mut session = Session::begin(&world, "a wrong port");
    session.check("WEFT-C040", &["port 80 of Service shop/web leads to port 8091", "nobody listens", "it listens on 8090"]);
    session.shows("weft stat --since-start", &["upstream-connect-refused"]);
    session.end();
}

/// The wall clock of one sidecar is what a file says; its monotonic one is not touched. That is what a machine with a wrong clock has.
const SKEWED: &str = r#"
for word; do
    case $word in --pod-ips=10.47.1.1 | --pod-ips=10.47.1.1,*)
        export LD_PRELOAD=@FAKETIME@ FAKETIME_TIMESTAMP_FILE='@WORK@/clock' FAKETIME_NO_CACHE=1 FAKETIME_DONT_FAKE_MONOTONIC=1 ;;
    esac
done
exec @SIDECAR@ "$@"
"#;

/// Debian's libfaketime.
fn faketime() -> String {
    let all = fs::read_dir("/usr/lib").expect("there").flatten();
    let found = all.map(|dir| dir.path().join("faketime/libfaketime.so.1")).find(|path| path.exists());
    found.expect("libfaketime is missing: apt install libfaketime").display().to_string()
}

#[test]
fn a_skewed_clock() {
    require(&["curl"]);
    let script = SKEWED.replace("@FAKETIME@", &faketime());
    let world = World::up_with_sidecar(&mesh(), &script, |work| {
        prepare(work);
        fs::write(work.join("clock"), "+0").expect("written");
    });
    call(&world, 10, "/");
    assert_eq!(world.address("shop/web-0"), "10.47.1.1", "the script is for the first replica");
    fs::write(world.work().join("clock.new"), "+2d").expect("written");
    fs::rename(world.work().join("clock.new"), world.work().join("clock")).expect("renamed");
    eventually("its clock is two days ahead", || {
        let told = world.shell("weft sidecar shop/web-0 /check -o json").output().ok()?;
        let told: Value = serde_json::from_slice(&told.stdout).ok()?;
        (told["now_millis"].as_i64()? / 1000 > now() + 86_400).then_some(())
    });
    let mut session = Session::begin(&world, "a skewed clock");
    session.check("WEFT-C020", &["the clock of shop/web-0 is", "ahead"]);
    session.end();
}

#[test]
fn a_broken_redirect() {
    require(&["curl", "nsenter"]);
    let world = World::up_with(&mesh(), prepare);
    call(&world, 5, "/");
    // As a firewall service does when it starts.
    in_network(
        &world,
        "shop/web-1",
        "nft flush ruleset 2>/dev/null || iptables -t nat -F; iptables -t nat -F 2>/dev/null || true",
    );
    let mut session = Session::begin(&world, "a broken redirect");
    session.check("WEFT-C030", &["shop/web-1", "not redirected"]);
    session.end();
}

#[test]
fn an_mtu_black_hole() {
    require(&["curl", "nsenter"]);
    let world = World::up_with(&mesh(), prepare);
    assert_eq!(world.status(CLIENT, "http://web.shop/"), "200");
    // Each segment goes alone, as on a wire; and a link before one pod loses what is larger than 1,300 bytes, without a word.
    for replica in ["front/client-0", "shop/web-0", "shop/web-1", "shop/web-2"] {
        in_network(&world, replica, "ip link set dev eth0 gso_max_segs 1");
    }
    in_network(
        &world,
        "shop/web-1",
        "nft add table ip link; nft \"add chain ip link in { type filter hook prerouting priority -400 ; }\"; nft add rule ip link in iif eth0 ip length gt 1300 drop",
    );
    let mut session = Session::begin(&world, "an MTU black hole");
    session.check("WEFT-C033", &["shop/web-1", "packets of up to", "larger ones vanish"]);
    session.end();
}
