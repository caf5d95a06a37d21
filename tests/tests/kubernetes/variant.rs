//! Another installation than the default: by `weft install --apply`, with a CA of one's own, three replicas, sidecars as ordinary
//! containers, and a webhook that lets pods by while nobody answers it.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use weft_tests::Running;
use weft_tests::cluster::{
    CONTROL_PLANE, Cluster, HOME, INJECTOR, Installed, Inventory, Namespace, feed, kubectl, must, soon, weft, when,
};

use crate::Mesh;
use crate::cni::events;
use crate::install::{Redirect, create};
use crate::outage::Load;
use crate::replicas::{are_gone, replicas};
use crate::traffic::{answers, callers};

const POLICIES: &str = "trafficpolicies.weft.dev";

/// A root that somebody keeps, and issuers below it.
pub(crate) struct Root(TempDir);

impl Root {
    fn make(name: &str) -> Self {
        let root = Self(tempfile::tempdir().expect("a temporary directory"));
        std::fs::write(root.file("ext"), "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign\n")
            .expect("a fresh directory takes a file");
        root.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout root.key -out root.pem -days 30 -subj /CN={name} \
             -addext basicConstraints=critical,CA:TRUE,pathlen:1 -addext keyUsage=critical,keyCertSign,cRLSign"
        ));
        root
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn openssl(&self, words: &str) {
        let mut command = Command::new("openssl");
        command.args(words.split_whitespace()).current_dir(self.0.path());
        Running::start(command).wait(Duration::from_secs(60)).good();
    }

    /// The Secret with a new issuer, as cert-manager lays it out.
    fn secret(&self, issuer: &str) -> String {
        self.openssl(&format!(
            "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout issuer.key -out issuer.csr -subj /CN={issuer}"
        ));
        self.openssl(
            "x509 -req -in issuer.csr -CA root.pem -CAkey root.key -CAcreateserial -days 20 -extfile ext -out issuer.pem",
        );
        let text = |name: &str| std::fs::read_to_string(self.file(name)).expect("openssl wrote it");
        let data = json!({ "tls.crt": text("issuer.pem"), "tls.key": text("issuer.key"), "ca.crt": text("root.pem") });
        let metadata = json!({ "name": "weft-ca" });
        json!({ "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": metadata, "stringData": data })
            .to_string()
    }
}

pub(crate) fn everything(cluster: &Cluster) -> Mesh<'_> {
    let root = Root::make("own-root");
    let before = weft(&["check", "--pre"]).good();
    assert!(!before.contains('\u{2717}'), "weft check --pre: {before}");
    let flags = ["--replicas", "3", "--failure-policy", "Ignore", "--native-sidecars", "never"];
    let (installed, said) = Installed::by_apply(cluster, &flags, &[root.secret("first-issuer")]);
    assert!(said.contains("weft is installed"), "{said}");
    for program in [CONTROL_PLANE, INJECTOR] {
        assert_eq!(replicas(program).len(), 3);
    }
    let (shop, plain) = (Namespace::create("shop"), Namespace::create("plain"));
    must(&["label", "namespace", shop.name(), "weft.dev/inject=enabled"]);
    for file in ["client.yaml", "echo.yaml"] {
        shop.apply(cluster, file);
    }
    plain.apply(cluster, "client.yaml");
    for app in ["client", "echo"] {
        shop.is_ready(app);
        for pod in shop.pods(app) {
            has_ordinary_sidecar(&shop.pod(&pod));
        }
    }
    plain.is_ready("client");
    Mesh { cluster, redirect: Redirect::Init, root: Some(root), installed, shop, plain }
}

/// The redirect as an init container, and the sidecar before the app.
#[track_caller]
fn has_ordinary_sidecar(pod: &Value) {
    let names = |list: &str| -> Vec<String> {
        let all = pod["spec"][list].as_array();
        all.into_iter().flatten().map(|one| one["name"].as_str().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(names("initContainers"), ["weft-init"], "{pod:#}");
    assert_eq!(names("containers"), ["weft-sidecar", "app"], "{pod:#}");
}

pub(crate) fn is_mutual_tls(mesh: &Mesh<'_>) {
    let client = mesh.client();
    answers(&mesh.shop, &client, "http://echo/name", "200");
    let seen = mesh.shop.curl(&client, &["http://echo/seen"]);
    assert_eq!(callers(&seen), [mesh.shop.identity("client")], "{seen}");
}

/// Waits until every replica serves with a certificate from this issuer.
#[track_caller]
fn serve_by(mesh: &Mesh<'_>, issuer: &str) {
    let stranger = mesh.stranger();
    soon(&format!("all replicas have a certificate from {issuer}"), || {
        for (replica, address) in replicas(CONTROL_PLANE) {
            let url = format!("https://{address}:4700/");
            let told =
                mesh.plain.exec(&stranger, &["curl", "-skv", "--http2", "--max-time", "3", "-o", "/dev/null", &url]).stderr;
            let line = told.lines().find(|line| line.contains("issuer:")).unwrap_or_default();
            when(line.contains(issuer), || format!("{replica}: {line:?}"))?;
        }
        Ok(())
    });
}

pub(crate) fn follows_its_secret(mesh: &Mesh<'_>) {
    let root = mesh.root.as_ref().expect("this installation has a CA of its own");
    serve_by(mesh, "first-issuer");
    mesh.cluster.apply(Some(HOME), &root.secret("second-issuer"));
    serve_by(mesh, "second-issuer");
    // Who has a certificate from the first issuer and who has one from the second believe each other.
    let gone = mesh.client();
    must(&["-n", mesh.shop.name(), "delete", "pod", &gone, "--timeout=120s"]);
    mesh.shop.is_ready("client");
    for client in mesh.shop.pods("client") {
        answers(&mesh.shop, &client, "http://echo/name", "200");
    }

    mesh.cluster.apply(Some(HOME), &Root::make("other-root").secret("third-issuer"));
    for replica in replicas(CONTROL_PLANE).keys() {
        soon(&format!("{replica} says why it does not take another root over"), || {
            let log = kubectl(&["-n", HOME, "logs", replica]).stdout;
            when(log.contains("it leads to another root"), || log.lines().last().unwrap_or_default().to_owned())
        });
    }
    serve_by(mesh, "second-issuer");
    mesh.cluster.apply(Some(HOME), &root.secret("second-issuer"));
}

pub(crate) fn lets_pods_by(mesh: &Mesh<'_>) {
    let (deployment, shop) = (format!("deployment/{INJECTOR}"), mesh.shop.name());
    must(&["-n", HOME, "scale", &deployment, "--replicas=0"]);
    are_gone(INJECTOR);
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "passer-by" },
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "app", "image": "weft.local/shop:1", "imagePullPolicy": "Never", "command": ["sleep", "1000000"],
            }],
        },
    });
    feed(pod.to_string().as_bytes(), &["-n", shop, "create", "-f", "-"]).good();
    must(&["-n", HOME, "scale", &deployment, "--replicas=3"]);
    Installed::is_ready(INJECTOR);
    soon("weft check finds it", || {
        let output = weft(&["check"]);
        let found = output.stdout.contains(&format!("a pod without the sidecar that it should have: pod/passer-by in {shop}"));
        when(found && !output.status.success(), || format!("{}{}", output.stdout, output.stderr))
    });
    soon("an event tells about it", || {
        let said = events(&mesh.shop, "passer-by", "NotInMesh");
        when(said.contains("this pod has no sidecar"), || said.clone())
    });
    must(&["-n", shop, "delete", "pod", "passer-by", "--timeout=60s"]);
    // Made again, it is in the mesh.
    soon("new pods get sidecars", || {
        create(shop, "in-mesh")?;
        let names = mesh.shop.pod("in-mesh")["spec"]["containers"][0]["name"].clone();
        must(&["-n", shop, "delete", "pod", "in-mesh", "--timeout=60s"]);
        when(names == "weft-sidecar", || names.to_string())
    });
}

pub(crate) fn is_upgraded(mesh: &Mesh<'_>) {
    let replicas = || must(&["-n", HOME, "get", &format!("deployment/{CONTROL_PLANE}"), "-o", "jsonpath={.spec.replicas}"]);
    let same = weft(&["upgrade"]).good();
    assert!(same.contains("there is nothing to change"), "{same}");
    let shown = weft(&["upgrade", "--dry-run", "--replicas", "2", "--native-sidecars", "auto"]).good();
    assert!(
        shown.contains(&format!("~ Deployment {HOME}/{CONTROL_PLANE}")) && shown.contains("nothing has been changed"),
        "{shown}"
    );
    assert_eq!(replicas(), "3");

    let load = Load::start(mesh);
    load.goes_on();
    let said = weft(&["upgrade", "--apply", "--replicas", "2", "--mtls", "strict"]).good();
    assert!(said.contains("changed    Deployment"), "{said}");
    assert_eq!(replicas(), "2");
    load.goes_on();
    load.cost_nothing();
    // What was chosen before stays chosen.
    let settings = kubectl(&["-n", HOME, "get", "configmap", "weft-settings", "-o", "json"]).json();
    let chosen = |key: &str| settings["data"][key].clone();
    assert_eq!([chosen("replicas"), chosen("mtls"), chosen("failurePolicy")], ["2", "strict", "Ignore"], "{settings:#}");
    answers(&mesh.plain, &mesh.stranger(), &format!("http://echo.{}/name", mesh.shop.name()), "403 mtls-required");
    let same = weft(&["upgrade"]).good();
    assert!(same.contains("there is nothing to change"), "{same}");
}

pub(crate) fn leaves_what_is_not_its_own(mesh: Mesh<'_>, before: &Inventory) {
    let policy = json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": { "name": "echo" },
        "spec": { "targetRef": { "name": "echo" } },
    });
    mesh.cluster.apply(Some(mesh.shop.name()), &policy.to_string());

    // As people do who want to see first.
    let printed = weft(&["uninstall", "--dry-run"]).good();
    feed(printed.as_bytes(), &["delete", "--ignore-not-found", "-f", "-"]).good();
    for program in [CONTROL_PLANE, INJECTOR] {
        are_gone(program);
    }
    let left = must(&["get", "mutatingwebhookconfigurations,clusterroles,clusterrolebindings", "-o", "name"]);
    assert!(!left.contains("weft"), "{left}");
    must(&["-n", mesh.shop.name(), "get", "trafficpolicies", "echo"]);

    // What is left: a kind of which there is an object, a Secret that somebody made, and so the namespace.
    let said = weft(&["uninstall", "--apply", "--yes"]).good();
    assert!(said.contains(&format!("kept       CustomResourceDefinition {POLICIES}: 1 objects of it are left")), "{said}");
    assert!(said.contains("Secret weft-ca"), "{said}");
    must(&["-n", HOME, "get", "secret", "weft-ca"]);
    let said = weft(&["uninstall", "--apply", "--yes", "--delete-crds"]).good();
    let found = must(&["get", "customresourcedefinitions", POLICIES, "--ignore-not-found", "-o", "name"]);
    assert!(found.is_empty(), "{said}");

    let Mesh { shop, plain, installed, .. } = mesh;
    shop.begin_to_go();
    plain.begin_to_go();
    drop((shop, plain));
    // The namespace was the user's, and so it is to delete.
    drop(installed);
    soon("the cluster is as it was", || {
        let differences = before.differences(&Inventory::take());
        when(differences.is_empty(), || differences.join("\n"))
    });
}
