//! Protocols that are bytes to the mesh, declared nowhere: client first, server first, their own TLS, half-closed.

use serde_json::json;
use weft_tests::{World, eventually, require};

const MESH: &str = r#"
workloads:
- name: redis
  namespace: data
  command: [redis-server, --port, "6379", --bind, 0.0.0.0, --protected-mode, "no", --save, "", --appendonly, "no", --dir, "@WORK@"]
  ports: [{port: 6379}]
- name: mariadb
  namespace: data
  workdir: "@WORK@"
  command: [sh, "@PEERS@/mariadb.sh"]
  ports: [{port: 3306}]
- name: postgres
  namespace: data
  workdir: "@WORK@"
  command: [sh, "@PEERS@/postgres.sh"]
  ports: [{port: 5432}]
- name: iperf
  namespace: data
  command: [iperf3, -s, -p, "5201"]
  ports: [{port: 5201}]
  # It takes one connection at a time for a test, and a health check's would be one.
  health: {command: ["true"]}
- name: sum
  namespace: data
  command: ["@PYTHON@", "@PEERS@/tcp_peer.py", sum, "7001"]
  ports: [{port: 7001}]
- name: banner
  namespace: data
  command: ["@PYTHON@", "@PEERS@/tcp_peer.py", banner, "7002"]
  ports: [{port: 7002}]
- name: client
  namespace: shop
  command: [sleep, infinity]
"#;
const CLIENT: &str = "shop/client";

const BRIEF: &str = r#"
workloads:
- name: brief
  namespace: data
  command: ["@PYTHON@", "@PEERS@/tcp_peer.py", brief, "7003"]
  ports: [{port: 7003}]
- name: curt
  namespace: data
  command: ["@PYTHON@", "@PEERS@/tcp_peer.py", brief, "7004"]
  ports: [{port: 7004}]
- name: terse
  namespace: data
  command: ["@PYTHON@", "@PEERS@/tcp_peer.py", brief, "7005"]
  ports: [{port: 7005}]
- name: client
  namespace: shop
  command: [sleep, infinity]
"#;

#[test]
fn with_plain_timestamps_no_connection_waits_for_one_to_another_service() {
    let world = World::up_with_redirect(BRIEF, r#"exec @REDIRECT@ "$@" --plain-timestamps"#);
    assert_eq!(world.exec(CLIENT, &["cat", "/proc/sys/net/ipv4/tcp_timestamps"]).good(), "2\n");
    // The kernel gives all but one of them another port at random: of 4,500 connections about 17 meet one that rests there, and began by a clock that was ahead.
    let repeated =
        world.peer(CLIENT, &["raw.py", "same_port", "1500", "brief.data", "7003", "curt.data", "7004", "terse.data", "7005"]);
    assert_eq!(repeated, 0, "one port to three services in turn: packets that were sent again");
}

#[test]
fn databases_and_bare_tcp_pass_over_mutual_tls() {
    require(&["redis-server", "redis-cli", "mariadbd", "mariadb", "mariadb-install-db", "initdb", "psql", "openssl", "iperf3"]);
    let world = World::up(MESH);
    redis(&world);
    mariadb(&world);
    postgres(&world);
    iperf(&world);
    assert_eq!(
        world.peer(CLIENT, &["raw.py", "half_close", "sum.data", "7001"]),
        true,
        "a client that ends its half is answered"
    );
    for round in ["raced", "remembered"] {
        let said = world.peer(CLIENT, &["raw.py", "banner", "banner.data", "7002"]);
        assert_eq!(
            said,
            json!(["220 the server speaks first\r\n", "and then the client\r\n"]),
            "the server speaks first ({round})"
        );
    }
    for service in ["redis", "mariadb", "postgres", "iperf", "sum", "banner"] {
        let peer = format!("spiffe://cluster.local/ns/data/sa/{service}");
        let target = format!("data/{service}");
        world.mutual_tls_edge("shop/client-0", &peer, &[("direction", "outbound"), ("target", &target), ("protocol", "tcp")]);
    }
    let inbound = [
        ("direction", "inbound"),
        ("target", "port 3306"),
        ("protocol", "tcp"),
        ("peer", "spiffe://cluster.local/ns/shop/sa/client"),
    ];
    world.mutual_tls_edge("data/mariadb-0", inbound[3].1, &inbound);
}

fn redis(world: &World) {
    let redis = |words: &[&str]| {
        let mut command = vec!["redis-cli", "-h", "redis.data"];
        command.extend(words);
        world.exec(CLIENT, &command).good()
    };
    assert_eq!(redis(&["set", "thread", "blue"]), "OK\n");
    assert_eq!(redis(&["get", "thread"]), "blue\n");
}

fn mariadb(world: &World) {
    let ask = ["mariadb", "--no-defaults", "-h", "mariadb.data", "-P", "3306", "-u", "lab", "-plab", "-N", "-B", "-e"];
    let ask = |statement: &str| {
        let mut command = ask.to_vec();
        command.push(statement);
        world.exec(CLIENT, &command).good()
    };
    assert_eq!(ask("select 40 + 2"), "42\n");
    assert_eq!(ask("select repeat('x', 4000000)").len(), 4_000_001, "a large answer");
}

fn postgres(world: &World) {
    let ask = |mode: &str, statement: &str| {
        let target = format!("host=postgres.data port=5432 user=lab dbname=postgres connect_timeout=10 sslmode={mode}");
        world.exec(CLIENT, &["psql", target.as_str(), "-Atc", statement])
    };
    // It accepts connections a moment before it serves them.
    let sum = eventually("PostgreSQL serves", || {
        let answer = ask("disable", "select 40 + 2");
        answer.status.success().then_some(answer.stdout)
    });
    assert_eq!(sum, "42\n");
    let own_tls = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    assert_eq!(ask("disable", own_tls).good(), "f\n");
    assert_eq!(ask("require", own_tls).good(), "t\n", "its own TLS negotiation works inside the mesh's");
}

fn iperf(world: &World) {
    let directions: [&[&str]; 2] = [&[], &["-R"]];
    for direction in directions {
        let mut command = vec!["iperf3", "-c", "iperf.data", "-p", "5201", "-n", "32M", "-J"];
        command.extend(direction);
        // It may still be busy with ending the test before.
        let report = eventually("iperf3 takes a test", || {
            let output = world.exec(CLIENT, &command);
            output.status.success().then(|| output.json())
        });
        let bytes = report["end"]["sum_received"]["bytes"].as_u64().unwrap_or_default();
        // It ends when the sender has sent all: what the proxies still hold then is not counted.
        assert!(bytes >= 8 << 20, "{direction:?}: {bytes} bytes came");
    }
}
