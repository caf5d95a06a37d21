//! The lab's own socket, for its owner: the way into a replica's namespaces (`weft exec`), and what runs (`weft status`).

use std::fs::{File, Permissions};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Lab, Tasks};
use crate::confine::Place;
use crate::{fds, rundir, wire};

/// The mark on an answer, and on words why there is none.
const ANSWER: u8 = b'+';
/// See [`ANSWER`].
const REFUSAL: u8 = b'-';
/// Longest request, and how long it may take.
const MAX_REQUEST: u64 = 4096;
const PATIENCE: Duration = Duration::from_secs(2);
/// How long an answer may take.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// What the lab is asked; one line of JSON.
#[derive(Serialize, Deserialize, Debug)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Request {
    /// The namespaces of a workload or a replica, as `NS/NAME` or `NAME`.
    Exec(String),
    /// The namespaces of the lab itself.
    Lab,
    /// Every replica.
    List,
}

/// The answer to [`Request::Exec`] and [`Request::Lab`], to the end of the stream. With its mark come, in this order, the namespaces to join: the
/// lab's user namespace where it has one of its own, and then mount, network, host name, IPC and pid.
#[derive(Serialize, Deserialize, Debug)]
pub(crate) struct Grant {
    /// Its name, for what is said.
    pub(crate) replica: String,
    pub(crate) rootless: bool,
    /// As whom a command runs there; in the lab itself, as its root.
    pub(crate) place: Option<Place>,
}

/// One line of the answer to [`Request::List`].
#[derive(Serialize, Deserialize, Debug, Clone)]
pub(crate) struct Listed {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) service_account: String,
    pub(crate) address: String,
    pub(crate) meshed: bool,
    pub(crate) ready: bool,
    pub(crate) why: String,
}

impl Listed {
    /// As commands are told of a replica.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.namespace, self.pod)
    }
}

/// The replicas of the mesh in `run`, in the order of their directories.
pub(crate) fn list(run: &Path) -> anyhow::Result<Vec<Listed>> {
    understood(&ask(run, &Request::List)?.0)
}

/// Reads what the lab answered.
pub(crate) fn understood<T: DeserializeOwned>(text: &str) -> anyhow::Result<T> {
    serde_json::from_str(text).context("the mesh answers what this weft does not understand: is it another version?")
}

/// Asks the lab in `run`, from outside: the text of the answer, and what came with it.
pub(crate) fn ask(run: &Path, request: &Request) -> anyhow::Result<(String, Vec<OwnedFd>)> {
    let path = run.join(rundir::LAB_SOCKET);
    let doing = || format!("the mesh in {} does not answer", run.display());
    let stream = StdStream::connect(&path).with_context(doing)?;
    stream.set_read_timeout(Some(ANSWER_TIME))?;
    write(&stream, &wire::line(request)?).with_context(doing)?;
    let (mark, files) = fds::receive(&stream).with_context(doing)?;
    let mut text = String::new();
    (&stream).read_to_string(&mut text).with_context(doing)?;
    if mark != ANSWER {
        bail!("{text}");
    }
    Ok((text, files))
}

/// Opens the socket; it is served until the lab ends.
pub(super) fn open(lab: &Arc<Lab>, helpers: &mut Tasks) -> anyhow::Result<()> {
    let path = lab.spec.run.join(rundir::LAB_SOCKET);
    let listener = UnixListener::bind(&path).with_context(|| format!("the lab's socket {} cannot be made", path.display()))?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o600)).context("the lab's socket cannot be made private")?;
    helpers.spawn(serve(listener, lab.clone()));
    Ok(())
}

async fn serve(listener: UnixListener, lab: Arc<Lab>) -> anyhow::Result<()> {
    let mut visitors = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    visitors.spawn(visit(stream, lab.clone()));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            Some(_) = visitors.join_next() => {}
        }
    }
}

/// Answers one request. A visitor that goes away early is nobody's problem.
async fn visit(stream: UnixStream, lab: Arc<Lab>) {
    // The directory is private already; this holds even where somebody opened it.
    let owner = stream.peer_cred().is_ok_and(|peer| peer.uid() == nix::unistd::geteuid().as_raw());
    if !owner {
        return;
    }
    let mut reader = BufReader::new(stream.take(MAX_REQUEST));
    let mut line = String::new();
    if !matches!(timeout(PATIENCE, reader.read_line(&mut line)).await, Ok(Ok(1..))) {
        return;
    }
    let answer = match serde_json::from_str(&line) {
        Ok(Request::Exec(target)) => lab.admit(&target),
        Ok(Request::List) => lab.list(),
        Ok(Request::Lab) => lab.admit_to_itself(),
        Err(error) => Err(anyhow::anyhow!("this weft does not understand that one's request: {error}")),
    };
    let Ok(stream) = reader.into_inner().into_inner().into_std() else { return };
    // Descriptors go by a call that blocks, and so the rest does too, where it holds nobody up.
    let _ = tokio::task::spawn_blocking(move || tell(&stream, answer)).await;
}

/// What goes back: a text, and descriptors beside it.
type Answer = (Vec<u8>, Vec<File>);

fn tell(stream: &StdStream, answer: anyhow::Result<Answer>) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    match answer {
        Ok((text, files)) => {
            let borrowed: Vec<_> = files.iter().map(AsFd::as_fd).collect();
            fds::send(stream, ANSWER, &borrowed)?;
            write(stream, &text)
        }
        Err(error) => {
            fds::send(stream, REFUSAL, &[])?;
            write(stream, format!("{error:#}").as_bytes())
        }
    }
}

fn write(mut stream: &StdStream, bytes: &[u8]) -> std::io::Result<()> {
    std::io::Write::write_all(&mut stream, bytes)
}

impl Lab {
    fn admit(&self, target: &str) -> anyhow::Result<Answer> {
        let index = self.resolve(target)?;
        let spec = &self.replicas[index];
        let entry = self.registry.entry(index);
        let pid =
            entry.pod.with_context(|| format!("{}/{} is not there yet: {}", spec.namespace, spec.pod, not_yet(&entry.why)))?;
        let mut files = Vec::new();
        if spec.rootless {
            files.push(namespace("self", "user")?);
        }
        for kind in ["mnt", "net", "uts", "ipc", "pid"] {
            files.push(namespace(&pid.to_string(), kind).with_context(|| format!("{}/{} has gone", spec.namespace, spec.pod))?);
        }
        let grant = Grant {
            replica: format!("{}/{}", spec.namespace, spec.pod),
            rootless: spec.rootless,
            place: Some(spec.pod_spec.place.clone()),
        };
        Ok((serde_json::to_vec(&grant)?, files))
    }

    fn admit_to_itself(&self) -> anyhow::Result<Answer> {
        let rootless = self.spec.rootless;
        let kinds = rootless.then_some("user").into_iter().chain(["mnt", "net", "uts", "ipc", "pid"]);
        let files = kinds.map(|kind| namespace("self", kind)).collect::<anyhow::Result<Vec<File>>>()?;
        let grant = Grant { replica: "the lab".to_owned(), rootless, place: None };
        Ok((serde_json::to_vec(&grant)?, files))
    }

    fn list(&self) -> anyhow::Result<Answer> {
        let listed: Vec<Listed> = self
            .replicas
            .iter()
            .zip(self.registry.all_entries())
            .map(|(spec, entry)| Listed {
                namespace: spec.namespace.clone(),
                pod: spec.pod.clone(),
                service_account: spec.service_account.clone(),
                address: spec.v4.to_string(),
                meshed: spec.meshed,
                ready: entry.ready(),
                why: entry.why.clone(),
            })
            .collect();
        Ok((serde_json::to_vec(&listed)?, Vec::new()))
    }

    /// The replica that is meant: of a workload the first, or one by its own name.
    fn resolve(&self, target: &str) -> anyhow::Result<usize> {
        let names: Vec<(&str, &str, &str)> = self
            .replicas
            .iter()
            .zip(&self.plan.replicas)
            .map(|(spec, planned)| {
                (spec.namespace.as_str(), self.mesh.workloads[planned.workload].name.as_str(), spec.pod.as_str())
            })
            .collect();
        find(target, &names).map_err(|why| anyhow::anyhow!("{why}"))
    }
}

fn not_yet(why: &str) -> &str {
    if why.is_empty() { "it is being started" } else { why }
}

fn namespace(pid: &str, kind: &str) -> anyhow::Result<File> {
    let path = format!("/proc/{pid}/ns/{kind}");
    File::open(&path).with_context(|| format!("{path} cannot be opened"))
}

/// Finds `target` among (namespace, workload, replica).
fn find(target: &str, names: &[(&str, &str, &str)]) -> Result<usize, String> {
    let (namespace, name) = match target.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, target),
    };
    let inside = |entry: &(&str, &str, &str)| namespace.is_none_or(|ns| ns == entry.0);
    let found: Vec<usize> = (0..names.len()).filter(|i| inside(&names[*i]) && names[*i].1 == name).collect();
    let found =
        if found.is_empty() { (0..names.len()).filter(|i| inside(&names[*i]) && names[*i].2 == name).collect() } else { found };
    let Some(first) = found.first() else {
        let mut known: Vec<String> = names.iter().map(|(namespace, workload, _)| format!("{namespace}/{workload}")).collect();
        known.dedup();
        return Err(format!("no workload or replica {target} runs; those that do: {}", known.join(", ")));
    };
    if found.iter().any(|i| names[*i].0 != names[*first].0) {
        let mut several: Vec<&str> = found.iter().map(|i| names[*i].0).collect();
        several.dedup();
        return Err(format!("{name} is in several namespaces ({}): write NAMESPACE/{name}", several.join(", ")));
    }
    Ok(*first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_a_workload_or_a_replica_with_or_without_its_namespace() {
        let names = [
            ("shop", "web", "web-0"),
            ("shop", "web", "web-1"),
            ("blog", "web", "web-0"),
            ("shop", "db", "db-0"),
            ("shop", "db-0", "db-0-0"),
        ];
        assert_eq!(find("shop/web", &names), Ok(0));
        assert_eq!(find("shop/web-1", &names), Ok(1));
        assert_eq!(find("web-1", &names), Ok(1));
        assert_eq!(find("db", &names), Ok(3));
        assert_eq!(find("shop/db-0", &names), Ok(4), "a workload goes before another's replica");
        assert!(find("web", &names).is_err_and(|why| why.contains("several namespaces (shop, blog)")));
        assert!(find("shop/nothing", &names).is_err_and(|why| why.contains("shop/web, blog/web")));
    }
}
