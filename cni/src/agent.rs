//! The agent: answers the plugin's questions, by what the API server says of the pod.

use std::fmt::Display;
use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use nix::unistd::geteuid;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use weft_core::{Name, Namespace};
use weft_redirect::{Backend, Directions, Exempt, PeerProgram, RedirectConfig, RedirectError, VerifyError};

use crate::pod::{Decision, decide};
use crate::status::Status;
use crate::wire::{self, Answer, Question, Task};

/// Questions that are worked on at once: a node that starts asks about all of its pods, and each takes a few processes.
const AT_ONCE: usize = 8;
/// How long the API server may take over one pod.
const LOOK_UP: Duration = Duration::from_secs(5);
/// How long the plugin may take to say what it wants.
const LISTEN: Duration = Duration::from_secs(2);
/// How long to wait where a connection cannot be taken, as when there are no file descriptors left.
const PAUSE: Duration = Duration::from_millis(50);

/// Where pods are looked up.
#[derive(Clone)]
pub enum Pods {
    /// At the API server.
    Cluster(Client),
    /// In the files `NAMESPACE/NAME.json` of a directory.
    Directory(PathBuf),
}

impl Pods {
    /// The pod of that name as it is now; None where there is none.
    pub async fn find(&self, namespace: &Namespace, name: &Name) -> Result<Option<Pod>, String> {
        match self {
            Self::Cluster(client) => {
                let api: Api<Pod> = Api::namespaced(client.clone(), namespace.as_str());
                match tokio::time::timeout(LOOK_UP, api.get_opt(name.as_str())).await {
                    Ok(found) => found.map_err(|error| format!("the API server does not tell of it: {}", said(&error))),
                    Err(_) => Err(format!("the API server has not told of it in {} s", LOOK_UP.as_secs())),
                }
            }
            Self::Directory(dir) => {
                let path = dir.join(namespace.as_str()).join(format!("{name}.json"));
                match fs::read(&path) {
                    Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|error| format!("{}: {error}", path.display())),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(format!("{}: {error}", path.display())),
                }
            }
        }
    }
}

/// Who answers.
pub struct Agent {
    /// Where pods are looked up.
    pub pods: Pods,
    /// The mark of the sidecar's sockets, where it has no user of its own.
    pub exempt_mark: Option<u32>,
    /// What is counted.
    pub status: Arc<Status>,
}

/// Listens at `path`, in a directory and by a socket that are the owner's alone.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{} can't be listened on: {error}", path.display()));
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).map_err(named)?;
        fs::set_permissions(directory, Permissions::from_mode(0o700)).map_err(named)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(named(error)),
        _ => {}
    }
    let listener = UnixListener::bind(path).map_err(named)?;
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(named)?;
    Ok(listener)
}

/// The socket's file as it was made, by device and inode.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    id: (u64, u64),
}

impl SocketFile {
    /// The file at `path`, which [`listen`] has just made.
    pub fn at(path: &Path) -> io::Result<Self> {
        let id = file_id(path)?;
        Ok(Self { path: path.to_owned(), id })
    }

    /// Whether another agent has made one in its place since, and answers the plugin from now on.
    pub fn is_anothers(&self) -> bool {
        file_id(&self.path).is_ok_and(|id| id != self.id)
    }

    /// Takes the file away, unless it is another agent's.
    pub fn remove(&self) {
        if !self.is_anothers() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn file_id(path: &Path) -> io::Result<(u64, u64)> {
    let is = fs::symlink_metadata(path)?;
    Ok((is.dev(), is.ino()))
}

/// Answers until it is dropped.
pub async fn serve(listener: UnixListener, agent: Arc<Agent>) {
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        // The semaphore is never closed.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let agent = agent.clone();
                tokio::spawn(async move {
                    if let Err(error) = agent.talk(stream).await {
                        tracing::warn!(%error, "a question could not be taken or answered");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "no question can be taken");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

impl Agent {
    async fn talk(&self, stream: UnixStream) -> io::Result<()> {
        // The directory lets nobody else in. Should it ever: the agent has powers to lend.
        let uid = stream.peer_cred()?.uid();
        if uid != geteuid().as_raw() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("user {uid} is not this agent's own")));
        }
        let stream = stream.into_std()?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(LISTEN))?;
        stream.set_write_timeout(Some(LISTEN))?;
        let (stream, asked) = blocking(move || (wire::receive(&stream), stream)).await.map(|(asked, stream)| (stream, asked))?;
        let (question, netns) = asked?;
        let answer = self.answer(&question, netns).await;
        self.tell(&question, &answer);
        blocking(move || give(&stream, &answer)).await?
    }

    fn tell(&self, question: &Question, answer: &Answer) {
        let (namespace, name, task) = (&question.namespace, &question.name, question.task);
        match answer {
            Answer::InForce => tracing::info!(namespace, name, ?task, "redirected"),
            Answer::Left { why } => tracing::debug!(namespace, name, ?task, why, "left alone"),
            Answer::Later { why } => tracing::warn!(namespace, name, ?task, why, "to be tried again"),
            Answer::Refused { why } => tracing::warn!(namespace, name, ?task, why, "refused"),
        }
        self.status.answered(question.task, answer);
    }

    async fn answer(&self, question: &Question, netns: OwnedFd) -> Answer {
        // They become part of a path.
        let (Ok(namespace), Ok(name)) = (question.namespace.parse::<Namespace>(), question.name.parse::<Name>()) else {
            return Answer::Refused { why: "no pod has such a name".to_owned() };
        };
        let pod = match self.pods.find(&namespace, &name).await {
            Ok(Some(pod)) => pod,
            Ok(None) => return Answer::Later { why: "the API server has no such pod".to_owned() },
            Err(why) => return Answer::Later { why },
        };
        let mut config = match decide(&pod, question.uid.as_deref()) {
            Decision::Redirect(config) => *config,
            Decision::Leave(why) => return Answer::Left { why: why.to_owned() },
            Decision::Stale => return Answer::Later { why: "the API server has another pod by that name".to_owned() },
            Decision::Refuse(why) => return Answer::Refused { why },
        };
        if let Some(mark) = self.exempt_mark {
            config.exempt = vec![Exempt::Mark(mark)];
        }
        let task = question.task;
        match blocking(move || redirect(task, &netns, &config)).await {
            Ok(answer) => answer,
            Err(error) => Answer::Later { why: error.to_string() },
        }
    }
}

fn give(stream: &StdUnixStream, answer: &Answer) -> io::Result<()> {
    // An iptables that complains at length must not make the answer longer than the plugin reads.
    let cut = |why: &String| why.chars().take(wire::MAX_LINE / 8).collect();
    let short = match answer {
        Answer::InForce => Answer::InForce,
        Answer::Left { why } => Answer::Left { why: cut(why) },
        Answer::Later { why } => Answer::Later { why: cut(why) },
        Answer::Refused { why } => Answer::Refused { why: cut(why) },
    };
    wire::answer(stream, &short)
}

/// Applies the redirect in a network namespace and proves it, or looks whether it is there.
fn redirect(task: Task, netns: &OwnedFd, config: &RedirectConfig) -> Answer {
    let peer = match PeerProgram::this_program() {
        Ok(peer) => peer,
        Err(error) => return Answer::Later { why: format!("the agent's program is not to be found for the proof: {error}") },
    };
    let outcome = weft_redirect::within(netns.as_fd(), || match task {
        Task::Add => {
            let (applied, _) = weft_redirect::apply_verified(config, Backend::Auto, Directions::Outbound, &peer)?;
            Ok(!applied.families.is_empty())
        }
        // The sidecar listens by now where a probe would, so that no proof is to be had.
        Task::Check => weft_redirect::show(Backend::Auto).map(|rules| !rules.is_empty()),
    });
    match outcome.and_then(|inner| inner) {
        Ok(true) => Answer::InForce,
        Ok(false) => Answer::Refused { why: "its redirect is not in place".to_owned() },
        Err(error) if is_for_good(&error) => Answer::Refused { why: said(&error) },
        Err(error) => Answer::Later { why: said(&error) },
    }
}

/// Whether it is what the pod asks for that cannot be had.
fn is_for_good(error: &RedirectError) -> bool {
    match error {
        RedirectError::Invalid(_) | RedirectError::Verify(VerifyError::NothingToCatch(_)) => true,
        RedirectError::RolledBack { source } => is_for_good(source),
        _ => false,
    }
}

/// Work that waits, off the threads that must not.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    spawn_blocking(work).await.map_err(io::Error::other)
}

/// An error with its causes, on one line.
pub(crate) fn said<E: std::error::Error + Display>(error: &E) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_that_another_agent_has_made_is_left_to_it() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let path = root.path().join("run/agent.sock");
        let _old = listen(&path).expect("it is writable");
        let file = SocketFile::at(&path).expect("it is there");
        assert!(!file.is_anothers());
        let _new = listen(&path).expect("it is writable");
        let others = SocketFile::at(&path).expect("it is there");
        assert!(file.is_anothers() && !others.is_anothers());
        file.remove();
        assert!(path.exists(), "the plugin would find nobody");
        others.remove();
        assert!(!path.exists() && !others.is_anothers());
    }
}
