//! The agent's life: listen → be known to the API server → join the chain and stay in it → leave it, or not.

use std::path::Path;
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
use weft_injector::listen::listen;
use weft_log::Levels;

use crate::agent::{Agent, Pods, SocketFile};
use crate::chain;
use crate::config::Config;
use crate::leave::{Verdict, verdict};
use crate::node::{Joined, Node, NodeError};
use crate::program::Program;
use crate::status::{self, Status};
use crate::{agent, repair};

/// The chain is looked at this often, in case an event was lost.
const LOOK: Duration = Duration::from_secs(10);
/// Events come in bursts; and somebody who undoes what we write at once is not to be fought faster.
const GATHER: Duration = Duration::from_millis(100);
/// How often what has failed is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// Runs the agent, whose process logs so, until it is told to stop.
pub async fn run(config: Config, levels: Levels) -> anyhow::Result<()> {
    config.check().map_err(anyhow::Error::msg)?;
    let stop = stop_on_signal()?;
    let status = Arc::new(Status::new(levels));
    tokio::spawn(status::serve(listen(config.status_port).context("--status-port")?, status.clone()));
    let client = match &config.dir {
        Some(_) => None,
        None => Some(Client::try_default().await.context("no cluster can be found: run in a pod, or set KUBECONFIG, or --dir")?),
    };
    let pods = match (&client, &config.dir) {
        (Some(client), _) => Pods::Cluster(client.clone()),
        (None, dir) => Pods::Directory(dir.clone().unwrap_or_default()),
    };
    let listener = agent::listen(&config.socket)?;
    let socket = SocketFile::at(&config.socket)?;

    let working = async {
        // In the chain without an API server, this would keep every pod of the node from starting.
        known(&pods, &config, &status).await;
        let agent = Agent { pods, exempt_mark: config.exempt_mark, status: status.clone() };
        tokio::spawn(agent::serve(listener, Arc::new(agent)));
        if let Some(client) = &client {
            tokio::spawn(repair::run(client.clone(), config.clone(), status.clone()));
        }
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
    // What is on the node is another agent's, once that answers.
    let another = socket.is_anothers();
    if verdict == Verdict::Leave && !another {
        leave(&config.node.node())?;
        socket.remove();
    }
    tracing::info!(?verdict, another, "stopped");
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

/// Keeps the plugin's program on the node and its entry in the chain; ends only with an error.
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
    let mut program = Program::this(config.runs_on_node);
    loop {
        // Again each time: a directory that was replaced is another one.
        let followed = [&config.node.conf_dir, &config.node.bin_dir]
            .map(|directory| watcher.watch(directory, RecursiveMode::NonRecursive).is_ok());
        let joined;
        (program, joined) = join(node.clone(), program, entry.clone()).await?;
        told = tell(&joined, &config.node.conf_dir, &told, status);
        // Without events, it is looked at more often.
        let wait = if followed == [true; 2] && joined.is_ok() { LOOK } else { AGAIN };
        let _ = timeout(wait, changed.recv()).await;
        sleep(GATHER).await;
    }
}

async fn join(node: Node, mut program: Program, entry: Value) -> anyhow::Result<(Program, Result<Joined, String>)> {
    let joining = spawn_blocking(move || {
        let joined = node.join_with(&mut program, &entry);
        (program, joined)
    });
    joining.await.context("the node could not be looked at")
}

/// Logs what is new, and says whether the agent is ready; returns what was said.
fn tell(joined: &Result<Joined, String>, conf_dir: &Path, told: &[String], status: &Status) -> Vec<String> {
    let joined = match joined {
        Ok(joined) => joined,
        Err(why) => {
            status.is_now(Some(why.clone()));
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
