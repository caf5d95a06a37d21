//! Which of the two ways to run: over a directory, or in a cluster. What differs between them is said here, and nothing behind
//! knows which one it was.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, SourceConfig};
use crate::dashboard::others::Others;
use crate::hub::Hub;
use crate::issue::ca::{self, Ca};
use crate::issue::service::Proof;
use crate::issue::token::Tokens;
use crate::issue::trust::{Lives, Rotates, Trust};
#[cfg(feature = "kubernetes")]
use crate::kubernetes::Cluster;
use crate::probe::Health;
use crate::watch::{Batch, directory};

/// Where objects come from, and who vouches for workloads.
pub enum Source {
    Directory(PathBuf),
    Cluster(Cluster),
}

impl Source {
    pub async fn open(config: &SourceConfig) -> anyhow::Result<Self> {
        match &config.dir {
            Some(dir) => Ok(Self::Directory(dir.clone())),
            None => Ok(Self::Cluster(Cluster::connect().await?)),
        }
    }

    /// The CA: given as files, or where this source keeps one.
    pub async fn ca(&self, config: &Config) -> anyhow::Result<Ca> {
        let domain = config.trust_domain.clone();
        match (config.given_ca(), self) {
            (Some(files), _) => Ok(Ca::open(domain, &ca::Source::Given(&files))?),
            (None, Self::Directory(_)) => Ok(Ca::open(domain, &ca::Source::Kept(&config.state.join("ca")))?),
            (None, Self::Cluster(cluster)) => cluster.ca(config).await,
        }
    }

    /// Has what operators deny kept in the state directory, where there is one that lasts: a cluster keeps it as objects.
    pub fn keep_denials(&self, config: &Config, ca: &Ca) -> anyhow::Result<()> {
        match self {
            Self::Directory(_) => {
                crate::issue::private_dir(&config.state)
                    .with_context(|| format!("the state directory {}", config.state.display()))?;
                Ok(ca.denials().keep_in(&config.state.join("denied.json"))?)
            }
            Self::Cluster(_) => Ok(()),
        }
    }

    /// How workloads prove who they are; and join tokens, where they are of use.
    pub fn proof(&self, config: &Config, hub: &Arc<Hub>) -> anyhow::Result<(Proof, Option<Arc<Tokens>>)> {
        match self {
            Self::Directory(_) => {
                let tokens = Tokens::open(&config.state.join("tokens")).context("the state directory's tokens")?;
                let tokens = Arc::new(tokens);
                Ok((Proof::Joining { tokens: tokens.clone() }, Some(tokens)))
            }
            Self::Cluster(cluster) => Ok((Proof::Kubernetes(cluster.pod_tokens(config, hub)), None)),
        }
    }

    /// The rotation of the root. Whether a pod lives, `lives` says where no cluster does.
    pub fn trust(&self, config: &Config, ca: &Arc<Ca>, hub: &Arc<Hub>, lives: Lives) -> anyhow::Result<Arc<dyn Rotates>> {
        match self {
            Self::Cluster(cluster) if config.ca_chain.is_none() => cluster.trust(config, ca, hub),
            _ => Ok(Trust::new(ca.clone(), lives)),
        }
    }

    /// Starts to follow it. The first batch that is complete is everything as it stands.
    pub fn follow(&self) -> anyhow::Result<mpsc::Receiver<Batch>> {
        match self {
            Self::Directory(dir) => Ok(directory::follow(dir)?),
            Self::Cluster(cluster) => Ok(cluster.follow()),
        }
    }

    /// Starts what writes to it, until `stop`.
    pub fn write(
        &self,
        config: &Config,
        ca: &Arc<Ca>,
        hub: &Arc<Hub>,
        health: &Arc<Health>,
        stop: &CancellationToken,
    ) -> JoinSet<()> {
        match self {
            Self::Directory(_) => JoinSet::new(),
            Self::Cluster(cluster) => cluster.write(config, ca, hub, health, stop),
        }
    }

    /// The way to other replicas, where there may be any.
    ///
    /// # Errors
    ///
    /// Where this replica's name is no pod's.
    pub fn others(&self, config: &Config, ca: &Arc<Ca>, hub: &Arc<Hub>) -> anyhow::Result<Option<Others>> {
        match self {
            Self::Directory(_) => Ok(None),
            Self::Cluster(_) => {
                let (hub, ca, port) = (hub.clone(), ca.clone(), config.listen.port());
                Ok(Some(Others::new(hub, ca, config.cluster.pod()?, port)))
            }
        }
    }

    /// How long this replica takes to go: where there is no other, sidecars have nowhere to move to.
    pub fn drain(&self, config: &Config) -> Duration {
        match self {
            Self::Directory(_) => Duration::ZERO,
            Self::Cluster(_) => Duration::from_secs(config.drain.into()),
        }
    }
}

/// Without the feature there is none.
#[cfg(not(feature = "kubernetes"))]
pub enum Cluster {}

#[cfg(not(feature = "kubernetes"))]
#[expect(clippy::unused_async, reason = "the shape of the one that there is with the feature")]
impl Cluster {
    async fn connect() -> anyhow::Result<Self> {
        anyhow::bail!("this program was built without Kubernetes: build it with --features kubernetes, or use --dir")
    }
    async fn ca(&self, _: &Config) -> anyhow::Result<Ca> {
        match *self {}
    }
    fn trust(&self, _: &Config, _: &Arc<Ca>, _: &Arc<Hub>) -> anyhow::Result<Arc<dyn Rotates>> {
        match *self {}
    }
    fn pod_tokens(&self, _: &Config, _: &Arc<Hub>) -> crate::issue::kubernetes::PodTokens {
        match *self {}
    }
    fn follow(&self) -> mpsc::Receiver<Batch> {
        match *self {}
    }
    fn write(&self, _: &Config, _: &Arc<Ca>, _: &Arc<Hub>, _: &Arc<Health>, _: &CancellationToken) -> JoinSet<()> {
        match *self {}
    }
}
