//! Plugin and agent on a real kernel, in namespaces that need no root: the runtime's part is a shell script's.
//!
//! There is one user in there, so the sidecar's sockets are told by their mark.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;
use weft_injector::{ANNOTATION_REDIRECT, VERIFY_ARGUMENTS, VERIFY_CONTAINER};

/// A node with an agent, and the network namespace of a pod with a default route.
const PRELUDE: &str = r#"
set -eu
PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
export XTABLES_LOCKFILE="$scratch/xtables.lock"
pids=
trap 'kill $pids 2>/dev/null || true; cat "$scratch/agent.log" 2>/dev/null' EXIT

unshare --net sleep 600 &
pod=$!
pids="$pids $pod"
within 10 sh -c "! [ /proc/$pod/ns/net -ef /proc/self/ns/net ]"
in_pod() { nsenter --net=/proc/$pod/ns/net "$@"; }
in_pod ip link set lo up
in_pod ip link add up0 type veth peer name up1
in_pod ip link set up1 up
in_pod ip link set up0 up
in_pod ip addr add 198.18.0.1/24 dev up0
in_pod ip route add default via 198.18.0.2

mkdir "$scratch/bin" "$scratch/net.d"
printf '{"cniVersion": "1.0.0", "name": "net",\n  "plugins": [{"type": "bridge"}]}\n' >"$scratch/net.d/10-net.conflist"
cp "$scratch/net.d/10-net.conflist" "$scratch/before"

start_agent() {
    "$WEFT_CNI" install --dir "$scratch/pods" --bin-dir "$scratch/bin" --conf-dir "$scratch/net.d" \
        --socket "$scratch/run/agent.sock" --status-port 0 --exempt-mark 18247 2>"$scratch/agent.log" &
    agent=$!
    pids="$pids $agent"
}
chained() { grep -q weft-cni "$scratch/net.d/10-net.conflist"; }

# What the runtime would pass on standard input, by what the agent has put into the chain.
configuration() {
    python3 - "$scratch/net.d/10-net.conflist" <<'PYTHON'
import json, sys
chain = json.load(open(sys.argv[1]))
own = chain["plugins"][-1]
own.update(cniVersion=chain["cniVersion"], name=chain["name"], prevResult={"cniVersion": "1.0.0", "ips": [{"address": "198.18.0.1/24"}]})
print(json.dumps(own))
PYTHON
}
# call OPERATION NAMESPACE POD
call() {
    configuration | env CNI_COMMAND="$1" CNI_CONTAINERID=c1 CNI_IFNAME=eth0 CNI_NETNS="/proc/$pod/ns/net" CNI_PATH="$scratch/bin" \
        CNI_ARGS="IgnoreUnknown=1;K8S_POD_NAMESPACE=$2;K8S_POD_NAME=$3;K8S_POD_UID=uid-$3" "$scratch/bin/weft-cni" >"$scratch/out"
}
says() {
    grep -q -e "$1" "$scratch/out" || { cat "$scratch/out"; echo "this does not say: $1"; exit 1; }
}
fails() {
    if "$@"; then cat "$scratch/out"; echo "this succeeded: $*"; exit 1; fi
}
rules() { in_pod sh -c 'iptables-nft-save; iptables-legacy-save; nft list ruleset' 2>/dev/null | grep -i weft; }
"#;

/// Until a command succeeds.
const WITHIN: &str = r#"
within() {
    limit=$1; shift
    n=0
    until "$@"; do
        n=$((n + 1))
        [ $n -lt $((limit * 10)) ] || { echo "within $limit s this did not succeed: $*"; exit 1; }
        sleep 0.1
    done
}
"#;

/// Runs a script beside a directory of pods; a failure shows all that was printed.
fn on_a_node(script: &str) {
    for tool in ["unshare", "nsenter", "ip", "iptables-nft", "iptables-legacy", "nft", "python3"] {
        assert!(is_installed(tool), "this test needs `{tool}`: install util-linux, iproute2, iptables, nftables and python3");
    }
    let scratch = tempfile::tempdir().expect("a temporary directory");
    let shop = scratch.path().join("pods/shop");
    fs::create_dir_all(&shop).expect("it is writable");
    let args: Vec<&str> = VERIFY_ARGUMENTS.into_iter().chain(["--skip-outbound-ports", "3306"]).collect();
    let meshed = json!([{"name": VERIFY_CONTAINER, "args": args}]);
    for (name, words, init) in [
        ("meshed", Some("--skip-outbound-ports 3306"), Some(&meshed)),
        ("changed", Some("--skip-outbound-ports 1-65535"), Some(&meshed)),
        ("plain", None, None),
    ] {
        let annotations = words.map(|words| json!({ ANNOTATION_REDIRECT: words }));
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "annotations": annotations},
            "spec": {"initContainers": init, "containers": [{"name": "app"}]},
        });
        fs::write(shop.join(format!("{name}.json")), pod.to_string()).expect("it is writable");
    }
    let output = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "sh", "-c", &format!("{WITHIN}{PRELUDE}{script}")])
        .env("WEFT_CNI", env!("CARGO_BIN_EXE_weft-cni"))
        .env("scratch", scratch.path())
        .output()
        .expect("unshare was found above");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(
        !err.contains("unshare failed") && !err.contains("/proc/self/uid_map"),
        "this test needs user namespaces: set the sysctls user.max_user_namespaces above 0, \
         kernel.unprivileged_userns_clone to 1 and kernel.apparmor_restrict_unprivileged_userns to 0 where \
         they exist, or run as root\n{err}"
    );
    assert!(output.status.success(), "{}\n--- stdout\n{out}\n--- stderr\n{err}", output.status);
}

fn is_installed(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(sbin).any(|directory| directory.join(tool).exists())
}

#[test]
fn a_pod_of_the_mesh_is_redirected_before_it_starts() {
    on_a_node(
        r#"
        start_agent
        within 20 chained
        cmp "$WEFT_CNI" "$scratch/bin/weft-cni"
        [ "$(stat -c %a "$scratch/run")" = 700 ]

        # Without its redirect a pod is found out.
        fails call CHECK shop meshed
        says '"code":101'
        call ADD shop meshed
        says '"198.18.0.1/24"'
        rules | grep -q 3306
        rules | grep -q 4743
        call CHECK shop meshed
        [ ! -s "$scratch/out" ]
        call ADD shop meshed
        call CHECK shop meshed
        call DEL shop meshed
        [ ! -s "$scratch/out" ]
        "#,
    );
}

#[test]
fn other_pods_are_let_through_as_they_are() {
    on_a_node(
        r#"
        start_agent
        within 20 chained
        for namespace_and_pod in 'shop plain' 'kube-system dns' 'weft-system weft-cni-x'; do
            call ADD $namespace_and_pod
            says '"198.18.0.1/24"'
        done
        call CHECK shop plain
        fails rules
        fails call ADD shop changed
        says '"code":100'
        says 'not what it was admitted with'
        fails call ADD shop nobody
        says '"code":11'
        says 'no such pod'
        fails rules
        "#,
    );
}

#[test]
fn without_the_agent_pods_wait_and_where_it_goes_for_good_nothing_is_left() {
    on_a_node(
        r#"
        start_agent
        within 20 chained
        # Killed, it cannot take the plugin with it: so it is with a crash, and with a node that starts.
        kill -KILL $agent
        wait $agent || true
        fails call ADD shop plain
        says '"code":11'
        says 'does not answer'
        call ADD kube-system dns
        call DEL shop plain

        start_agent
        within 20 call ADD shop plain

        # Its owner writes the configuration anew, and nobody asked for that.
        cp "$scratch/before" "$scratch/new"
        mv "$scratch/new" "$scratch/net.d/10-net.conflist"
        within 20 chained

        # There is no DaemonSet here that would bring another agent.
        kill -TERM $agent
        wait $agent
        cmp "$scratch/before" "$scratch/net.d/10-net.conflist"
        [ -z "$(ls "$scratch/bin")" ]
        [ "$(ls -A "$scratch/net.d")" = 10-net.conflist ]
        "#,
    );
}
