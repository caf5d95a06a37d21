//! What weft's programs log of themselves: changed while they run, and no hindrance where nobody reads it.

use std::fs;
use std::process::Output;

use serde_json::{Value, json};
use weft_certs::{Authority, LeafKind, LeafSpec};
use weft_tests::{Running, World, eventually, require, weft};

const MESH: &str = r#"
workloads:
- {name: web, namespace: shop, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090}]}
- {name: client, namespace: front, command: [sleep, infinity]}
"#;

/// Standard error is a pipe that is open and never read: 64 KiB, after which whoever writes to it stands still.
const UNREAD: &str = "case $1 in log) exec @CONTROL_PLANE@ \"$@\" ;; esac; mkfifo @WORK@/unread; exec 2<>@WORK@/unread; exec @CONTROL_PLANE@ \"$@\" --heartbeat=1 --probe=127.0.0.1:4701";
const PROBE: &str = "http://127.0.0.1:4701/metrics";
const STATUS: &str = "http://127.0.0.1:4781/metrics";

fn said(world: &World, line: &str) -> Output {
    world.shell(line).output().expect("a shell starts")
}

#[track_caller]
fn good(world: &World, line: &str) -> String {
    let output = said(world, line);
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Lines that one has dropped, as it counts them; every question is an event to log, too.
fn lost(world: &World, url: &str) -> u64 {
    let text = world.lab(&["curl", "-sS", "--max-time", "5", url]).wait(weft_tests::PATIENCE).good();
    let line = text.lines().find_map(|line| line.strip_prefix("weft_log_lost_total "));
    line.and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("it tells nothing of its log:\n{text}"))
}

#[test]
fn levels_change_while_programs_run_and_a_log_that_nobody_reads_stops_none_of_them() {
    require(&["curl"]);
    let world = World::up_with_control_plane(MESH, UNREAD, |_| {});

    // Each is asked and told in the same way.
    let told: Value = serde_json::from_str(&good(&world, "weft log control-plane -o json")).expect("JSON");
    assert_eq!(told, json!([{"name": "control-plane", "filter": "kube_client=error,info"}]));
    assert!(
        good(&world, "weft log shop/web weft_sidecar::serve=debug,warn")
            .ends_with("shop/web-0  weft_sidecar::serve=debug,warn\n")
    );
    assert!(good(&world, "weft log shop/web-0").ends_with("shop/web-0  weft_sidecar::serve=debug,warn\n"));
    let refused = said(&world, "weft log control-plane a=b=c");
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("is no filter"), "{refused:?}");
    let none = said(&world, "weft log injector");
    assert!(String::from_utf8_lossy(&none.stderr).contains("has no injector"), "{none:?}");

    // Nobody reads the control plane's log, and it serves on.
    assert!(good(&world, "weft log control-plane trace").contains("trace"));
    eventually("lines are dropped", || {
        assert!(good(&world, "weft status").contains("web-0"));
        (lost(&world, PROBE) > 0).then_some(())
    });
    assert_eq!(world.status("front/client", "http://web.shop:8090/name"), "200");
    assert!(good(&world, "weft log control-plane info").contains("info"));
    injector(&world);
}

/// The injector, on the mesh's own network, which logs in the same way.
fn injector(world: &World) {
    let dir = world.work().join("injector");
    fs::create_dir_all(dir.join("namespaces")).expect("the directory is ours");
    let leaf = Authority::new("cluster.local").leaf(&LeafSpec::new(LeafKind::Valid, "spiffe://cluster.local/ns/a/sa/a"));
    fs::write(dir.join("tls.crt"), leaf.chain_pem()).expect("written");
    fs::write(dir.join("tls.key"), leaf.key_pem()).expect("written");
    let program = weft("weft-injector");
    let line = format!(
        "mkfifo {0}/unread; exec 2<>{0}/unread; exec {1} --sidecar-image=weft:1 --dir={0} --log=trace",
        dir.display(),
        program.display()
    );
    let mut running: Running = world.lab(&["sh", "-c", &line]);
    let program = program.to_string_lossy().into_owned();
    let log = |filter: &[&str]| {
        let words: Vec<&str> = [&*program, "log"].into_iter().chain(filter.iter().copied()).collect();
        world.lab(&words).wait(weft_tests::PATIENCE)
    };
    eventually("the injector serves", || {
        assert!(running.ended().is_none(), "it ended");
        log(&[]).status.success().then_some(())
    });
    assert_eq!(log(&[]).good(), "trace\n");
    assert_eq!(lost(world, STATUS), 0, "it has too little to say");
    assert_eq!(log(&["warn,kube=debug"]).good(), "kube=debug,warn\n");
    assert!(log(&["a=b=c"]).stderr.contains("is no filter"));
}
