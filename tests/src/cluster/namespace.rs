//! A namespace of a test's own, with the programs of a shop in it.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::{Cluster, kubectl, must, quietly};
use crate::{Output, programs};

/// What the shop's pods have in `/shop`, from `tests/`.
const FILES: [&str; 7] = [
    "peers/http_peer.py",
    "peers/raw.py",
    "peers/tcp_peer.py",
    "cluster/shop/grpc_health.py",
    "cluster/shop/load.py",
    "cluster/shop/nginx.conf",
    "cluster/shop/probed.py",
];

/// A namespace, until this is dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one whose name begins with a word and is nobody else's.
    #[track_caller]
    pub fn create(word: &str) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970");
        let name = format!("{word}-{:x}-{:x}", std::process::id(), now.subsec_micros());
        must(&["create", "namespace", &name]);
        let namespace = Self { name };
        let tests = programs::peers().with_file_name("");
        let files = FILES.map(|file| format!("--from-file={}", tests.join(file).display()));
        let mut words = vec!["-n", &namespace.name, "create", "configmap", "programs"];
        words.extend(files.iter().map(String::as_str));
        must(&words);
        namespace
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Has it deleted, without waiting: several go at the same time, and whoever drops one waits for it.
    #[track_caller]
    pub fn begin_to_go(&self) {
        must(&["delete", "namespace", &self.name, "--wait=false"]);
    }

    /// The identity of one of its service accounts.
    pub fn identity(&self, account: &str) -> String {
        format!("spiffe://cluster.local/ns/{}/sa/{account}", self.name)
    }

    /// Applies manifests of the shop.
    #[track_caller]
    pub fn apply(&self, cluster: &Cluster, file: &str) {
        cluster.apply(Some(&self.name), &Self::manifest(file));
    }

    /// A manifest of the shop.
    pub fn manifest(file: &str) -> String {
        let path = programs::peers().with_file_name("cluster").join("shop").join(file);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// Waits until a Deployment's pods are all there, new and ready.
    #[track_caller]
    pub fn is_ready(&self, app: &str) {
        must(&["-n", &self.name, "rollout", "status", &format!("deployment/{app}"), "--timeout=180s"]);
    }

    /// The pods of an app, those that are about to go included.
    #[track_caller]
    pub fn all_pods(&self, app: &str) -> Vec<Value> {
        let list = kubectl(&["-n", &self.name, "get", "pods", "-l", &format!("app={app}"), "-o", "json"]).json();
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// The names of an app's pods that are to stay; at least one.
    #[track_caller]
    pub fn pods(&self, app: &str) -> Vec<String> {
        let stays = |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null();
        let name = |pod: &Value| pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let names: Vec<String> = self.all_pods(app).iter().filter(stays).map(name).collect();
        assert!(!names.is_empty(), "{} has no pods in {}", app, self.name);
        names
    }

    /// A pod as it is now.
    #[track_caller]
    pub fn pod(&self, name: &str) -> Value {
        kubectl(&["-n", &self.name, "get", "pod", name, "-o", "json"]).json()
    }

    /// The address of a pod.
    #[track_caller]
    pub fn address(&self, pod: &str) -> String {
        let address = self.pod(pod)["status"]["podIP"].as_str().expect("a pod that runs has an address").to_owned();
        if address.contains(':') { format!("[{address}]") } else { address }
    }

    /// Runs a command in the app's container of a pod.
    #[track_caller]
    pub fn exec(&self, pod: &str, command: &[&str]) -> Output {
        self.exec_in(pod, "app", command)
    }

    /// The same in any container.
    #[track_caller]
    pub fn exec_in(&self, pod: &str, container: &str, command: &[&str]) -> Output {
        kubectl(&[&["-n", &self.name, "exec", pod, "-c", container, "--"][..], command].concat())
    }

    /// The same with a shell.
    #[track_caller]
    pub fn shell(&self, pod: &str, line: &str) -> String {
        self.exec(pod, &["sh", "-c", line]).good()
    }

    /// What curl prints in a pod.
    #[track_caller]
    pub fn curl(&self, pod: &str, arguments: &[&str]) -> String {
        self.exec(pod, &[&["curl", "-sS", "--fail", "--max-time", "10"][..], arguments].concat()).good()
    }

    /// The status of a GET with weft's own reason behind it, if weft gave one: `200`, `403 mtls-required`; `none` if there is no
    /// answer.
    #[track_caller]
    pub fn status(&self, pod: &str, url: &str) -> String {
        let said = "%{http_code} %header{weft-error}";
        let output = self.exec(pod, &["curl", "-sS", "--max-time", "3", "-o", "/dev/null", "-w", said, url]);
        if output.status.success() { output.stdout.trim().to_owned() } else { "none".to_owned() }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            show(&self.name);
        }
        quietly(&["delete", "namespace", &self.name, "--ignore-not-found", "--timeout=170s"]);
    }
}

/// Shows what there is to see of a namespace in which a test failed.
pub(super) fn show(namespace: &str) {
    let of = |words: &[&str]| quietly(&[&["-n", namespace][..], words].concat());
    eprintln!("--- {namespace}:\n{}", of(&["get", "pods,services,endpoints,configmaps,jobs", "-o", "wide"]));
    eprintln!("{}", of(&["describe", "pods"]));
    eprintln!("{}", of(&["get", "events", "--sort-by=.metadata.creationTimestamp"]));
    for pod in of(&["get", "pods", "-o", "name"]).lines() {
        eprintln!("--- {pod}:\n{}", of(&["logs", pod, "--all-containers", "--prefix", "--tail=40"]));
    }
}
