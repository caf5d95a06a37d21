//! The sidecars of a mesh, and its pods and Services: of one that runs on this machine, or, by way of `kubectl`, of a cluster.

use std::collections::BTreeMap;
use std::io::Read;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use serde::de::DeserializeOwned;
use serde_json::Value;
use weft_control_plane::objects::{Kind, Object};
use weft_control_plane::watch::parse::{from_json, parse_each};
use weft_core::Namespace;
use weft_core::wellknown::{CONTROL_PLANE_SERVICE_ACCOUNT, SIDECAR_CONTAINER};

use crate::install::object::LABEL_NAME;
use crate::install::sidecars;
use crate::rundir::{self, Which};
use crate::{sidecar, validate};

pub(crate) mod reach;
use reach::Reached;

/// Questions that are under way at once.
const AT_ONCE: usize = 8;
/// How long one command of kubectl may take: one that executes has no limit of its own.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where sidecars are asked.
#[derive(Debug, Clone)]
pub(crate) enum Fleet {
    /// The run directory of `weft up`.
    Run(PathBuf),
    /// A cluster, by a context of the kubeconfig or its current one.
    Cluster(Option<String>),
}

/// What one sidecar answered, under its pod's NAMESPACE/NAME.
pub(crate) type Answer = (String, anyhow::Result<String>);

impl Fleet {
    /// The cluster, where a context is named or no mesh runs on this machine.
    pub(crate) fn find(which: &Which, context: Option<&str>) -> anyhow::Result<Self> {
        if let Some(context) = context {
            return Ok(Self::Cluster(Some(context.to_owned())));
        }
        match which.find() {
            Ok(run) => Ok(Self::Run(run)),
            Err(why) if which.is_named() => Err(why),
            Err(why) => match kubectl(None, &["version", "--client", "-o", "json"]) {
                Ok(_) => Ok(Self::Cluster(None)),
                Err(other) => bail!("{why:#}; and a cluster cannot be asked: {other:#}"),
            },
        }
    }

    /// Asks every sidecar, or those of one namespace, whatever each of them answers: one that is going does not hide what the others know.
    pub(crate) fn ask(&self, namespace: Option<&Namespace>, method: &str, path: &str) -> anyhow::Result<Vec<Answer>> {
        let pods = self.sidecars(namespace)?;
        let answers = Self::each(&pods, |pod| self.ask_one(pod, method, path));
        Ok(pods.into_iter().zip(answers).collect())
    }

    /// Has every sidecar tell what it has at `path`, which is JSON.
    pub(crate) fn hear<T: DeserializeOwned>(&self, namespace: Option<&Namespace>, path: &str) -> anyhow::Result<Heard<T>> {
        Ok(Heard::of(self.ask(namespace, "GET", path)?))
    }

    /// The pods with a sidecar that can be asked, as NAMESPACE/NAME, in order.
    pub(crate) fn sidecars(&self, namespace: Option<&Namespace>) -> anyhow::Result<Vec<String>> {
        let mut found: Vec<String> = self.reachable(namespace)?.iter().map(Reached::name).collect();
        found.sort();
        Ok(found)
    }

    /// Asks one sidecar, by its pod's NAMESPACE/NAME.
    pub(crate) fn ask_one(&self, pod: &str, method: &str, path: &str) -> anyhow::Result<String> {
        match self {
            Self::Run(run) => sidecar::tell(run, pod, method, path),
            Self::Cluster(context) => {
                let (namespace, name) = pod.split_once('/').with_context(|| format!("{pod} is not NAMESPACE/NAME"))?;
                kubectl(context.as_deref(), &exec_words(namespace, name, method, path))
            }
        }
    }

    /// Does something for each of many, several at a time: each waits for another process.
    pub(crate) fn each<A: Sync, B: Send>(all: &[A], ask: impl Fn(&A) -> B + Sync) -> Vec<B> {
        let next = AtomicUsize::new(0);
        let mut found: Vec<(usize, B)> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..AT_ONCE.min(all.len()))
                .map(|_| {
                    scope.spawn(|| {
                        let mut mine = Vec::new();
                        while let Some((i, one)) = Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, all.get(i)?)))
                        {
                            mine.push((i, ask(one)));
                        }
                        mine
                    })
                })
                .collect();
            let joined = workers.into_iter().map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)));
            joined.flatten().collect()
        });
        found.sort_by_key(|(i, _)| *i);
        found.into_iter().map(|(_, answer)| answer).collect()
    }

    /// Every pod and Service that can be read.
    pub(crate) fn objects(&self) -> anyhow::Result<Vec<Object>> {
        match self {
            Self::Run(run) => {
                let read = validate::read(&[run.join(rundir::MANIFESTS)], true)?;
                let parts = read.files.iter().flat_map(|(file, text)| parse_each(file, text));
                Ok(parts.filter_map(|part| part.object.ok()).collect())
            }
            Self::Cluster(context) => {
                let mut all = Vec::new();
                for (kind, plural) in [(Kind::Pod, "pods"), (Kind::Service, "services")] {
                    let listed = listed(context.as_deref(), plural, None)?;
                    all.extend(listed.iter().filter_map(|value| from_json(kind, value).ok()));
                }
                Ok(all)
            }
        }
    }
}

/// What the sidecars told, in order.
#[derive(Debug)]
pub(crate) struct Heard<T> {
    pub(crate) told: Vec<(String, T)>,
    /// Who told nothing that can be read, and why.
    pub(crate) silent: BTreeMap<String, String>,
}

impl<T: DeserializeOwned> Heard<T> {
    fn of(answers: Vec<Answer>) -> Self {
        let (mut told, mut silent) = (Vec::new(), BTreeMap::new());
        for (pod, answer) in answers {
            let read = answer
                .and_then(|text| serde_json::from_str(&text).context("its answer can't be read: is it of another version?"));
            match read {
                Ok(one) => told.push((pod, one)),
                Err(why) => {
                    silent.insert(pod, format!("{why:#}"));
                }
            }
        }
        Self { told, silent }
    }
}

impl<T> Heard<T> {
    /// Says who was not heard. The exit status: 1 where somebody was not, 2 where nobody was.
    pub(crate) fn tell(&self) -> ExitCode {
        for (pod, why) in &self.silent {
            crate::complain(&format!("not heard: {pod}: {why}"));
        }
        ExitCode::from(self.status())
    }

    fn status(&self) -> u8 {
        match (self.silent.is_empty(), self.told.is_empty()) {
            (true, _) => 0,
            (false, false) => 1,
            (false, true) => 2,
        }
    }
}

/// What a cluster's control plane goes by: every object that explanations read, and the flags that it was installed with.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) objects: Vec<Object>,
    pub(crate) flags: Vec<String>,
}

/// The kinds that say who may call whom, and what kubectl calls them. A cluster may do without those that are not its own.
const KINDS: [(Kind, &str); 11] = [
    (Kind::Namespace, "namespaces"),
    (Kind::Service, "services"),
    (Kind::Pod, "pods"),
    (Kind::EndpointSlice, "endpointslices.discovery.k8s.io"),
    (Kind::NetworkPolicy, "networkpolicies.networking.k8s.io"),
    (Kind::AuthorizationPolicy, "authorizationpolicies.weft.dev"),
    (Kind::MtlsPolicy, "mtlspolicies.weft.dev"),
    (Kind::JwtIssuer, "jwtissuers.weft.dev"),
    (Kind::ExternalService, "externalservices.weft.dev"),
    (Kind::IdentityDenial, "identitydenials.weft.dev"),
    (Kind::Federation, "federatedtrustdomains.weft.dev"),
];

impl Cluster {
    /// Reads it by `kubectl`. A policy that cannot be read might be what decides: that is an error. Of other objects, those are left out.
    pub(crate) fn read(context: Option<&str>) -> anyhow::Result<Self> {
        let label = format!("{LABEL_NAME}={CONTROL_PLANE_SERVICE_ACCOUNT}");
        let text = kubectl(context, &["get", "deployments.apps", "-A", "-l", &label, "-o", "json"])?;
        let flags = flags(&serde_json::from_str(&text).context("kubectl prints what is not JSON")?)?;
        let mut objects = Vec::new();
        for (kind, plural) in KINDS {
            let values = match listed(context, plural, None) {
                Ok(values) => values,
                Err(why)
                    if plural.ends_with(".weft.dev") && why.to_string().contains("the server doesn't have a resource type") =>
                {
                    continue;
                }
                Err(why) => return Err(why),
            };
            for value in &values {
                match from_json(kind, value) {
                    Ok(object) => objects.push(object),
                    Err(_) if matches!(kind, Kind::Pod | Kind::Service | Kind::EndpointSlice) => {}
                    Err(fault) => {
                        let (namespace, name) = (&value["metadata"]["namespace"], &value["metadata"]["name"]);
                        bail!("{} {namespace}/{name} cannot be read: {}: {}", kind.as_str(), fault.field, fault.message);
                    }
                }
            }
        }
        Ok(Self { objects, flags })
    }

    /// What a flag of the control plane says; none where it is left out.
    pub(crate) fn flag(&self, name: &str) -> Option<&str> {
        self.flags.iter().find_map(|flag| flag.strip_prefix("--")?.strip_prefix(name)?.strip_prefix('='))
    }
}

/// The flags of the one control plane that a list of Deployments has.
fn flags(list: &Value) -> anyhow::Result<Vec<String>> {
    let found = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    let [deployment] = found else {
        bail!("the cluster has {} Deployments of weft's control plane, where one is expected: weft check says more", found.len());
    };
    let arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"].as_array();
    let arguments = arguments.context("the control plane's Deployment has no arguments")?;
    Ok(arguments.iter().filter_map(|word| word.as_str().map(ToOwned::to_owned)).collect())
}

/// Whether a pod has a sidecar that can be asked: its container, or its init container that stays.
fn runs_sidecar(pod: &Value) -> bool {
    sidecars::has_sidecar(pod) && pod["status"]["phase"] == "Running"
}

pub(crate) fn listed(context: Option<&str>, plural: &str, namespace: Option<&Namespace>) -> anyhow::Result<Vec<Value>> {
    let place = namespace.map_or_else(|| vec!["-A"], |n| vec!["-n", n.as_str()]);
    let text = kubectl(context, &[&["get", plural, "-o", "json"], &place[..]].concat())?;
    let mut list: Value = serde_json::from_str(&text).context("kubectl prints what is not JSON")?;
    match list.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) => Ok(items),
        _ => Err(anyhow!("kubectl get {plural} prints no list")),
    }
}

/// What `kubectl` is told so that a sidecar is asked.
fn exec_words<'a>(namespace: &'a str, pod: &'a str, method: &'a str, path: &'a str) -> [&'a str; 11] {
    ["exec", "-n", namespace, pod, "-c", SIDECAR_CONTAINER, "--", "weft-sidecar", "ask", method, path]
}

/// What `kubectl` prints.
pub(crate) fn kubectl(context: Option<&str>, words: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new("kubectl");
    command.args(context.map(|context| format!("--context={context}"))).arg("--request-timeout=30s").args(words);
    let what = words.first().unwrap_or(&"");
    let output = output(&mut command, PATIENCE).context("kubectl cannot be run: install it, or name a mesh on this machine")?;
    let Some(output) = output else { bail!("kubectl {what} did not end within {} s", PATIENCE.as_secs()) };
    if !output.status.success() {
        bail!("kubectl {what}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).context("kubectl prints what is not text")
}

/// What a command prints until it ends; none where it does not end in time, and is ended.
fn output(command: &mut Command, patience: Duration) -> std::io::Result<Option<Output>> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (tell, told) = mpsc::channel();
    let read = |which: usize, pipe: Option<Box<dyn Read + Send>>| {
        let tell = tell.clone();
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let outcome = pipe.map_or(Ok(0), |mut pipe| pipe.read_to_end(&mut text));
            let _ = tell.send((which, outcome.map(|_| text)));
        });
    };
    read(0, child.stdout.take().map(|pipe| Box::new(pipe) as _));
    read(1, child.stderr.take().map(|pipe| Box::new(pipe) as _));
    let end = Instant::now() + patience;
    let mut texts = [Vec::new(), Vec::new()];
    for _ in 0..2 {
        let Ok((which, text)) = told.recv_timeout(end.saturating_duration_since(Instant::now())) else {
            let _ = child.kill();
            child.wait()?;
            return Ok(None);
        };
        texts[which] = text?;
    }
    let [stdout, stderr] = texts;
    Ok(Some(Output { status: child.wait()?, stdout, stderr }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_control_plane_says_what_its_mesh_has_by_default() {
        let deployment = json!({"spec": {"template": {"spec": {"containers": [{"args": ["--kubernetes", "--mtls=strict", "--egress=deny"]}]}}}});
        let flags = flags(&json!({"items": [deployment]})).expect("one control plane");
        let cluster = Cluster { objects: vec![], flags };
        assert_eq!((cluster.flag("mtls"), cluster.flag("egress"), cluster.flag("m")), (Some("strict"), Some("deny"), None));
        for none in [json!({}), json!({"items": []}), json!({"items": [deployment, deployment]}), json!({"items": [{}]})] {
            assert!(super::flags(&none).is_err(), "{none}");
        }
    }

    #[test]
    fn who_was_not_heard_is_known_and_decides_the_exit_status() {
        let heard = |answers: Vec<anyhow::Result<&str>>| {
            let named = answers.into_iter().enumerate().map(|(i, a)| (format!("a/{i}"), a.map(ToOwned::to_owned)));
            Heard::<u32>::of(named.collect())
        };
        let some = heard(vec![Ok("7"), Err(anyhow!("gone")), Ok("other")]);
        assert_eq!((some.told.as_slice(), some.silent.len(), some.status()), (&[("a/0".to_owned(), 7)][..], 2, 1));
        assert_eq!(
            (heard(vec![Err(anyhow!("gone"))]).status(), heard(vec![Ok("7")]).status(), heard(vec![]).status()),
            (2, 0, 0)
        );
    }

    #[test]
    fn a_command_that_hangs_is_ended_and_a_panic_is_not_hidden() {
        let sh = |line: &str, patience| {
            let mut command = Command::new("sh");
            output(command.args(["-c", line]), patience).expect("a shell starts")
        };
        let told = sh("echo out; echo err >&2; exit 3", PATIENCE).expect("it ends");
        assert_eq!((told.status.code(), &told.stdout[..], &told.stderr[..]), (Some(3), &b"out\n"[..], &b"err\n"[..]));
        assert!(sh("exec sleep 1000", Duration::from_millis(10)).is_none());
        let all: Vec<u32> = (0..20).collect();
        assert_eq!(Fleet::each(&all, |n| n * 2), (0..40).step_by(2).collect::<Vec<_>>());
        let hidden = std::panic::catch_unwind(|| Fleet::each(&all, |n| assert!(*n != 7)));
        assert!(hidden.is_err());
    }

    #[test]
    fn a_sidecar_is_asked_where_its_pod_runs() {
        let pod = |list: &str, phase: &str| json!({"spec": {list: [{"name": SIDECAR_CONTAINER}]}, "status": {"phase": phase}});
        assert!(runs_sidecar(&pod("containers", "Running")) && runs_sidecar(&pod("initContainers", "Running")));
        assert!(!runs_sidecar(&pod("containers", "Pending")) && !runs_sidecar(&json!({"status": {"phase": "Running"}})));
    }
}
