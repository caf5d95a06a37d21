//! The CNI plugin in the place of init containers with a capability: what pods have, who waits for the agent, and what becomes of
//! pods that started without it.

use serde_json::{Value, json};
use weft_tests::cluster::{CNI, Cluster, HOME, Installed, Namespace, kubectl, must, soon, when};

use crate::install::create;
use crate::rights::may;
use crate::traffic::answers;
use crate::{APPS, Mesh};

/// The configuration of our own cluster's network.
const CHAIN: &str = "/etc/cni/net.d/10-bridge.conflist";
/// What `weft-redirect verify` ends with where the rules are not in force.
const NOT_IN_FORCE: u8 = 3;

/// What the node has of CNI, before weft comes; None on a cluster whose nodes cannot be entered.
pub(crate) struct Files {
    listing: Option<String>,
    chain: Option<String>,
}

impl Files {
    pub(crate) fn of(cluster: &Cluster) -> Self {
        Self { listing: listing(cluster), chain: cluster.on_node(&format!("cat {CHAIN}")) }
    }

    pub(crate) fn are_as_they_were(&self, cluster: &Cluster) {
        assert_eq!(self.listing, listing(cluster), "the node's plugins and configurations");
        if let Some(socket) = cluster.on_node("ls -A /run/weft-cni 2>/dev/null || true") {
            assert_eq!(socket, "", "the agent's socket is still on the node");
        }
    }
}

/// The names of all plugins and configurations, and what is in the latter.
fn listing(cluster: &Cluster) -> Option<String> {
    cluster.on_node("ls -A /opt/cni/bin /etc/cni/net.d; for file in /etc/cni/net.d/*; do echo \"$file\"; cat \"$file\"; done")
}

pub(crate) fn pods_have_no_privilege(mesh: &Mesh<'_>) {
    for pod in APPS.iter().flat_map(|app| mesh.shop.pods(app)) {
        let pod = mesh.shop.pod(&pod);
        assert!(!pod["spec"].to_string().contains("NET_ADMIN"), "{pod:#}");
        assert!(pod["metadata"]["annotations"]["weft.dev/redirect"].is_string(), "{pod:#}");
        let ours = pod["spec"]["initContainers"].as_array().expect("an injected pod has init containers");
        for container in ours {
            // What the Pod Security level `restricted` asks of a container.
            let security = &container["securityContext"];
            assert_eq!(security["runAsNonRoot"], true, "{container:#}");
            assert_eq!(security["allowPrivilegeEscalation"], false, "{container:#}");
            assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}), "{container:#}");
            assert_ne!(security["privileged"], true, "{container:#}");
        }
        let proof = verification(&pod).expect("every pod of the mesh proves its redirect");
        assert_eq!(proof.pointer("/state/terminated/exitCode"), Some(&json!(0)), "{proof:#}");
    }
    if let Some(chain) = mesh.cluster.on_node(&format!("cat {CHAIN}")) {
        assert!(chain.contains(CNI), "the plugin is in the node's chain: {chain}");
    }
}

/// The status of the container that proves a pod's redirect.
fn verification(pod: &Value) -> Option<&Value> {
    let all = pod.pointer("/status/initContainerStatuses").and_then(Value::as_array);
    all.into_iter().flatten().find(|status| status["name"] == "weft-verify")
}

pub(crate) fn rights_are_the_least(mesh: &Mesh<'_>) {
    let shop = mesh.shop.name();
    for (verb, resource, namespace) in [
        ("get", "pods", shop),
        ("watch", "pods", shop),
        ("delete", "pods", shop),
        ("create", "events.events.k8s.io", shop),
        ("get", "daemonsets.apps/weft-cni", HOME),
    ] {
        assert!(may(CNI, verb, resource, namespace), "{CNI} may not {verb} {resource} in {namespace:?}");
    }
    for (verb, resource, namespace) in [
        ("create", "pods", shop),
        ("patch", "pods", shop),
        ("create", "pods/exec", shop),
        ("get", "secrets", HOME),
        ("list", "secrets", shop),
        ("get", "configmaps", shop),
        ("patch", "daemonsets.apps/weft-cni", HOME),
        ("get", "daemonsets.apps", "kube-system"),
        ("get", "nodes", ""),
        ("create", "serviceaccounts/token", shop),
        ("create", "tokenreviews.authentication.k8s.io", ""),
    ] {
        assert!(!may(CNI, verb, resource, namespace), "{CNI} may {verb} {resource} in {namespace:?}");
    }
}

/// Takes the agents off their nodes, or brings them back, by a node selector that no node fits. The DaemonSet stays, so that the
/// plugin does.
fn agents_are(there: bool) {
    let nowhere = if there { Value::Null } else { json!("nowhere") };
    let patch = json!({"spec": {"template": {"spec": {"nodeSelector": {"weft.dev/test": nowhere}}}}}).to_string();
    must(&["-n", HOME, "patch", "daemonset", CNI, "--type=merge", "-p", &patch]);
    if there {
        return Installed::is_on_every_node();
    }
    soon("the agents are gone", || {
        let left = must(&["-n", HOME, "get", "pods", "-l", &format!("app.kubernetes.io/name={CNI}"), "-o", "name"]);
        when(left.is_empty(), || left.clone())
    });
}

pub(crate) fn agent_is_away(mesh: &Mesh<'_>, node: &Files) {
    agents_are(false);
    // What runs notices nothing.
    answers(&mesh.shop, &mesh.client(), "http://echo/name", "200");

    // Whoever may be in the mesh waits, and it is said for whom.
    let gone = mesh.shop.pods("echo").swap_remove(0);
    must(&["-n", mesh.shop.name(), "delete", "pod", &gone, "--timeout=120s"]);
    let waiting = new_pod(&mesh.shop, "echo");
    soon("the new pod is told what it waits for", || {
        let said = events(&mesh.shop, &waiting, "FailedCreatePodSandBox");
        when(said.contains("weft's agent on this node does not answer"), || format!("{waiting}: {said:?}"))
    });
    // The cluster's own pods do not.
    let passer_by = format!("passer-by-{}", mesh.shop.name());
    create("kube-system", &passer_by).expect("a pod of the cluster's own");
    let ran = std::panic::catch_unwind(|| {
        soon("a pod of kube-system runs", || {
            let phase = must(&["-n", "kube-system", "get", "pod", &passer_by, "-o", "jsonpath={.status.phase}"]);
            when(phase == "Succeeded", || phase.clone())
        });
    });
    must(&["-n", "kube-system", "delete", "pod", &passer_by, "--timeout=120s"]);
    if let Err(panic) = ran {
        std::panic::resume_unwind(panic);
    }

    // The network's owner writes its configuration anew, and nobody is there to mend it: the pod comes round the plugin.
    let rewritten = node.chain.as_ref().map(|text| {
        let line = format!("cat > {CHAIN}.new <<'END'\n{}\nEND\nmv {CHAIN}.new {CHAIN}", text.trim_end());
        mesh.cluster.on_node(&line)
    });
    if rewritten.is_some() {
        soon("the pod finds that it has no redirect", || {
            let pod = mesh.shop.pod(&waiting);
            let proof = verification(&pod).cloned().unwrap_or_default();
            let ends = ["/state/terminated/exitCode", "/lastState/terminated/exitCode"];
            when(ends.iter().any(|end| proof.pointer(end) == Some(&json!(NOT_IN_FORCE))), || proof.to_string())
        });
        let pod = mesh.shop.pod(&waiting);
        let started = pod.pointer("/status/containerStatuses/0/state/waiting");
        assert!(started.is_some(), "nothing else of it has started: {pod:#}");
    } else {
        eprintln!("a pod that comes round the plugin: not on this cluster, since there is no access to its nodes");
    }

    agents_are(true);
    if rewritten.is_some() {
        soon("it is made anew, with the reason", || {
            let said = events(&mesh.shop, &waiting, "RedirectMissing");
            let is_there = mesh.shop.all_pods("echo").iter().any(|pod| pod["metadata"]["name"] == waiting.as_str());
            when(!is_there && said.contains("before weft's CNI plugin"), || format!("{waiting} is there: {is_there}; {said:?}"))
        });
    }
    mesh.shop.is_ready("echo");
    for pod in mesh.shop.pods("echo") {
        let pod = mesh.shop.pod(&pod);
        let proof = verification(&pod).expect("every pod of the mesh proves its redirect");
        assert_eq!(proof.pointer("/state/terminated/exitCode"), Some(&json!(0)), "{proof:#}");
    }
    answers(&mesh.shop, &mesh.client(), "http://echo/name", "200");
}

/// The one pod of an app that has no address yet.
#[track_caller]
fn new_pod(namespace: &Namespace, app: &str) -> String {
    soon("a pod takes the place of the one that was deleted", || {
        let pods = namespace.all_pods(app);
        let is_new = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["podIP"].is_null();
        let new = pods.iter().find(is_new).and_then(|pod| pod["metadata"]["name"].as_str());
        new.map(str::to_owned).ok_or_else(|| format!("{} pods of {app} have addresses", pods.len()))
    })
}

/// What all events of a pod with this reason say.
pub(crate) fn events(namespace: &Namespace, pod: &str, reason: &str) -> String {
    let selector = format!("involvedObject.name={pod},reason={reason}");
    let list = kubectl(&["-n", namespace.name(), "get", "events", "--field-selector", &selector, "-o", "json"]).json();
    let messages = list["items"].as_array().into_iter().flatten().filter_map(|event| event["message"].as_str());
    messages.collect::<Vec<_>>().join("\n")
}
