//! What may be away, and who notices: pods that are replaced, the control plane, the webhook.

use std::time::Duration;

use serde_json::{Value, json};
use weft_tests::Running;
use weft_tests::cluster::{CONTROL_PLANE, HOME, INJECTOR, Installed, must, soon, spawn, when};

use crate::Mesh;
use crate::install::{create, logs, would_be};
use crate::replicas::are_gone;
use crate::traffic::{answers, callers};

/// The file that ends the load.
const END: &str = "/tmp/enough";

/// Requests from a pod of the shop without a pause, on connections that are kept and on new ones.
pub(crate) struct Load<'a> {
    mesh: &'a Mesh<'a>,
    client: String,
    running: Running,
}

impl<'a> Load<'a> {
    pub(crate) fn start(mesh: &'a Mesh<'_>) -> Self {
        let client = mesh.client();
        // An earlier load may have ended here.
        mesh.shop.exec(&client, &["rm", "-f", END]).good();
        let exec = ["-n", mesh.shop.name(), "exec", &client, "-c", "app", "--"];
        let load = ["python3", "/shop/load.py", "echo", "80", "/name", END];
        let running = spawn(&[&exec[..], &load].concat());
        Self { mesh, client, running }
    }

    /// Waits until requests of each kind have had some more success.
    #[track_caller]
    pub(crate) fn goes_on(&self) {
        let successes = || {
            let told = self.running.stderr();
            ["kept ", "new "].map(|kind| told.lines().filter(|line| line.starts_with(kind)).count())
        };
        let before = successes();
        soon("the load goes on", || {
            let now = successes();
            when((0..now.len()).all(|kind| now[kind] >= before[kind] + 5), || format!("{now:?} after {before:?}"))
        });
    }

    /// Ends it: no request has failed.
    #[track_caller]
    pub(crate) fn cost_nothing(self) {
        self.mesh.shop.exec(&self.client, &["touch", END]).good();
        let failures = self.running.wait(Duration::from_secs(30)).json();
        assert_eq!(failures, json!([]), "requests failed");
    }
}

pub(crate) fn costs_no_request(mesh: &Mesh<'_>) {
    let shop = mesh.shop.name();
    let load = Load::start(mesh);
    load.goes_on();

    let before = mesh.shop.pods("echo");
    must(&["-n", shop, "rollout", "restart", "deployment/echo"]);
    mesh.shop.is_ready("echo");
    soon("the old pods are gone", || {
        let left = mesh.shop.all_pods("echo").len();
        when(left == before.len(), || format!("{left} pods are there"))
    });
    let after = mesh.shop.pods("echo");
    assert!(after.iter().all(|pod| !before.contains(pod)), "{after:?} are not new, after {before:?}");
    load.goes_on();

    let of_it = format!("app.kubernetes.io/name={CONTROL_PLANE}");
    must(&["-n", HOME, "delete", "pods", "-l", &of_it, "--timeout=120s"]);
    load.goes_on();
    Installed::is_ready(CONTROL_PLANE);
    load.goes_on();
    load.cost_nothing();
}

/// Its pod has a sidecar, which does not keep it from ending, and a certificate from a control plane that is new.
pub(crate) fn a_job_ends(mesh: &Mesh<'_>) {
    mesh.shop.apply(mesh.cluster, "job.yaml");
    must(&["-n", mesh.shop.name(), "wait", "--for=condition=complete", "job/order", "--timeout=120s"]);
    let seen = logs(&mesh.shop, "job/order");
    assert_eq!(callers(&seen), [mesh.shop.identity("order.v1")], "{seen}");
    let pods = mesh.shop.all_pods("order");
    assert!(pods.iter().all(|pod| pod["status"]["phase"] == "Succeeded") && pods.len() == 1, "{pods:#?}");
}

pub(crate) fn of_the_webhook(mesh: &Mesh<'_>) {
    let (shop, plain) = (mesh.shop.name(), mesh.plain.name());
    let deployment = format!("deployment/{INJECTOR}");
    let scale = |replicas: &str| must(&["-n", HOME, "scale", &deployment, &format!("--replicas={replicas}")]);
    let replicas = must(&["-n", HOME, "get", &deployment, "-o", "jsonpath={.spec.replicas}"]);
    scale("0");
    are_gone(INJECTOR);

    // Whoever is asked refuses now (`failurePolicy: Fail`): what is created, nobody was asked about, nor waited for.
    create(plain, "passer-by").expect("a pod outside of the mesh");
    for namespace in ["default", "kube-system"] {
        would_be(namespace, "").expect("a pod of a namespace that is not in the mesh");
    }
    would_be(shop, "disabled").expect("a pod that does not want to be in the mesh");
    for (namespace, label, webhook) in [(shop, "", "namespace.inject.weft.dev"), (plain, "enabled", "pod.inject.weft.dev")] {
        let why = would_be(namespace, label).expect_err("a pod that would be outside of the mesh and should not");
        assert!(why.contains(&format!("failed calling webhook \"{webhook}\"")), "{why}");
    }
    answers(&mesh.shop, &mesh.client(), "http://echo/name", "200");

    scale(&replicas);
    Installed::is_ready(INJECTOR);
    for (namespace, label) in [(shop, ""), (plain, "enabled")] {
        let pod = soon("pods get sidecars again", || would_be(namespace, label));
        assert_eq!(pod.pointer("/spec/initContainers/1/name"), Some(&Value::from("weft-sidecar")), "{pod:#}");
    }
}
