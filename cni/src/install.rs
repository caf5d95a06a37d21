//! The agent's life: listen → be known to the API server → join the chain and stay in it → leave it, or not.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use kube::Client;
use notify::{RecursiveMode, Watcher};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use weft_core::Name;

use crate::agent::{Agent, Pods};
use crate::chain;
use crate::config::Config;
use crate::leave::{Verdict, verdict};
use crate::node::{Joined, Node, NodeError};
use crate::status::{self, Status};
use crate::{agent, repair};

/// The chain is looked at this often, in case an event was lost.
const LOOK: Duration = Duration::from_secs(10);
/// Events come in bursts; and somebody who undoes what we write at once is not to be fought faster.
const GATHER: Duration = Duration::from_millis(100);
/// How often what has failed is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// Runs the agent until it is told to stop.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let stop = stop_on_signal()?;
    let status = Arc::new(Status::default());
    tokio::spawn(status::serve(status::listen(config.status_port).await.context("--status-port")?, status.clone()));
    let client = match &config.dir {
        Some(_) => None,
        None => Some(Client::try_default().await.context("no cluster can be found: run in a pod, or set KUBECONFIG, or --dir")?),
    };
    let pods = match (&client, &config.dir) {
        (Some(client), _) => Pods::Cluster(client.clone()),
        (None, dir) => Pods::Directory(dir.clone().unwrap_or_default()),
    };
    let listener = agent::listen(&config.socket)?;

    let working = async {
        // In the chain without an API server, this would keep every pod of the node from starting.
        known(&pods, &config, &status).await;
        let agent = Agent { pods, exempt_mark: config.exempt_mark, status: status.clone() };
        tokio::spawn(agent::serve(listener, Arc::new(agent)));
        if let Some(client) = &client {
            tokio::spawn(repair::run(client.clone(), config.clone(), status.clone()));
        }
        installed(&config.node.node(), &status).await;
        stay_in_chain(&config, &status).await
    };
    match stop.run_until_cancelled(working).await {
        Some(ended) => ended?,
        None => status.is_now(Some("stopping".to_owned())),
    }
    let verdict = match &client {
        Some(client) => verdict(client, config.namespace.as_str(), &config.daemon_set).await,
        None => Verdict::Leave,
    };
    if verdict == Verdict::Leave {
        leave(&config.node.node())?;
        let _ = std::fs::remove_file(&config.socket);
    }
    tracing::info!(?verdict, "stopped");
    Ok(())
}

/// Takes the plugin off the node, and says what was changed.
pub fn leave(node: &Node) -> Result<(), NodeError> {
    for path in node.leave()? {
        tracing::info!(path = %path.display(), "without weft's plugin");
    }
    Ok(())
}

/// Waits until the API server tells of the agent's own pod, as it will have to tell of others.
async fn known(pods: &Pods, config: &Config, status: &Status) {
    let Ok(name) = config.pod_name.parse::<Name>() else { return };
    loop {
        match pods.find(&config.namespace, &name).await {
            Ok(_) => return,
            Err(why) => status.is_now(Some(why)),
        }
        sleep(AGAIN).await;
    }
}

/// Puts this program where the runtime starts plugins.
async fn installed(node: &Node, status: &Status) {
    loop {
        let node = node.clone();
        let outcome = spawn_blocking(move || {
            let program =
                std::env::current_exe().map_err(|source| NodeError { path: PathBuf::from("/proc/self/exe"), source })?;
            node.install_program(&program)
        });
        match outcome.await {
            Ok(Ok(changed)) => {
                tracing::info!(changed, "the plugin's program is on the node");
                if is_dynamic() {
                    tracing::warn!(
                        "the plugin's program is linked to a C library, which the node must have in this version or later"
                    );
                }
                return;
            }
            Ok(Err(error)) => status.is_now(Some(format!("the plugin's program can't be put on the node: {error}"))),
            Err(error) => status.is_now(Some(format!("the plugin's program can't be put on the node: {error}"))),
        }
        sleep(AGAIN).await;
    }
}

/// Whether this program, and so the plugin, needs libraries of the node.
fn is_dynamic() -> bool {
    std::fs::read_to_string("/proc/self/maps").is_ok_and(|maps| maps.lines().any(|line| line.contains("/libc.")))
}

/// Keeps the plugin in the chain; ends only with an error.
async fn stay_in_chain(config: &Config, status: &Arc<Status>) -> anyhow::Result<()> {
    let node = config.node.node();
    let entry = chain::entry(&config.socket.to_string_lossy(), &config.exempt());
    let (events, mut changed) = mpsc::channel(1);
    let mut watcher = notify::recommended_watcher(move |_| {
        // One that waits stands for all that come.
        let _ = events.try_send(());
    })
    .context("no directory can be followed: raise fs.inotify.max_user_instances")?;
    let mut told = Vec::new();
    loop {
        // Again each time: a directory that was replaced is another one.
        let followed = watcher.watch(&config.node.conf_dir, RecursiveMode::NonRecursive);
        let joined = join(node.clone(), entry.clone()).await;
        told = tell(&joined, &config.node.conf_dir, &told, status);
        // Without events, it is looked at more often.
        let wait = if followed.is_ok() { LOOK } else { AGAIN };
        let _ = timeout(wait, changed.recv()).await;
        sleep(GATHER).await;
    }
}

async fn join(node: Node, entry: Value) -> Result<Joined, String> {
    match spawn_blocking(move || node.join(&entry)).await {
        Ok(joined) => joined.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// Logs what is new, and says whether the agent is ready; returns what was said.
fn tell(joined: &Result<Joined, String>, conf_dir: &Path, told: &[String], status: &Status) -> Vec<String> {
    let joined = match joined {
        Ok(joined) => joined,
        Err(why) => {
            status.is_now(Some(format!("the chain can't be joined: {why}")));
            return told.to_vec();
        }
    };
    for path in &joined.changed {
        tracing::info!(path = %path.display(), "written, so that weft's plugin is in the chain");
        status.chained();
    }
    for note in joined.notes.iter().filter(|note| !told.contains(note)) {
        tracing::warn!("{note}");
    }
    let missing = format!("there is no network configuration in {} yet that a plugin can join", conf_dir.display());
    status.is_now(joined.file.is_none().then_some(missing));
    joined.notes.clone()
}

/// Cancelled when the process is told to stop.
fn stop_on_signal() -> anyhow::Result<CancellationToken> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let told = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        told.cancel();
    });
    Ok(stop)
}
