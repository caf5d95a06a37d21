//! What a cluster's API server is asked and told, beside being watched as a source: tokens are reviewed, the CA is shared, a lease
//! is held, and the anchors are put where pods find them. Which rights this needs is in ARCHITECTURE.md.

pub mod bundle;
pub mod ca;
pub mod lease;
pub mod review;
pub mod shared;
pub mod status;
pub mod strays;
pub mod unenforced;
pub mod uptake;

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use kube::{Client, Config};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use weft_core::failure::chain;

use crate::config;
use crate::hub::Hub;
use crate::issue::ca::Ca;
use crate::issue::kubernetes::PodTokens;
use crate::issue::trust::Rotates;
use crate::issue::trust::shared::Shared;
use crate::probe::Health;
use crate::server::random;
use crate::watch::Batch;
use crate::watch::kubernetes::standing::Statuses;

/// The name under which fields are owned.
const MANAGER: &str = "weft-control-plane";
/// The label on what weft makes, so that nothing of somebody else's is ever removed.
const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// One call, the watches aside.
const CALL: Duration = Duration::from_secs(5);

/// The cluster that this control plane serves.
pub struct Cluster {
    client: Client,
    /// What stands of the status of objects, from the watch.
    statuses: Arc<Statuses>,
    strays: Arc<strays::Strays>,
}

impl Cluster {
    /// The cluster that KUBECONFIG (or its usual file) names, else the one that this pod runs in. Nothing is asked of it yet.
    pub async fn connect() -> anyhow::Result<Self> {
        let config = Config::infer().await.map_err(|e| {
            anyhow::anyhow!("no cluster is known: {}: run in a pod with a service account, or set KUBECONFIG", chain(&e))
        })?;
        Ok(Self { client: client(config)?, statuses: Arc::default(), strays: Arc::default() })
    }

    /// The CA that all replicas share.
    pub async fn ca(&self, config: &config::Config) -> anyhow::Result<Ca> {
        let (namespace, name) = (config.cluster.namespace.as_str(), &config.cluster.ca_secret);
        Ok(ca::open(self.client.clone(), namespace, name, &config.trust_domain).await?)
    }

    /// The rotation of the root that all replicas share.
    pub fn trust(&self, config: &config::Config, ca: &Arc<Ca>, hub: &Arc<Hub>) -> anyhow::Result<Arc<dyn Rotates>> {
        let cluster = shared::ApiServer::new(self.client.clone(), config, ca.clone(), hub.clone())?;
        Ok(Shared::new(ca.clone(), Arc::new(cluster)))
    }

    pub fn pod_tokens(&self, config: &config::Config, hub: &Arc<Hub>) -> PodTokens {
        let witness = Arc::new(review::ApiServer::new(self.client.clone()));
        PodTokens::new(witness, hub.clone(), config.trust_domain.clone(), config.cluster.audience.clone())
    }

    pub fn follow(&self) -> mpsc::Receiver<Batch> {
        let mut batches = crate::watch::kubernetes::follow(&self.client, &self.statuses);
        let (tx, rx) = mpsc::channel(1);
        let strays = self.strays.clone();
        tokio::spawn(async move {
            while let Some(batch) = batches.recv().await {
                strays.note(&batch);
                if tx.send(batch).await.is_err() {
                    return;
                }
            }
        });
        rx
    }

    /// Starts what writes to it, until `stop`.
    pub fn write(
        &self,
        config: &config::Config,
        ca: &Arc<Ca>,
        hub: &Arc<Hub>,
        health: &Arc<Health>,
        stop: &CancellationToken,
    ) -> JoinSet<()> {
        let (leading, led) = watch::channel(false);
        let me = format!("{}-{:08x}", config.cluster.replica, random() as u32);
        let mut tasks = JoinSet::new();
        let namespace = config.cluster.namespace.to_string();
        tasks.spawn(lease::hold(self.client.clone(), namespace.clone(), me.clone(), leading, stop.clone()));
        let bundles = bundle::Bundles { client: self.client.clone(), ca: ca.clone() };
        tasks.spawn(bundles.run(hub.meshed(), led.clone()));
        let (totals, counts) = watch::channel(uptake::Counts::new());
        let uptake = uptake::Uptake { client: self.client.clone(), namespace, me, hub: hub.clone() };
        tasks.spawn(uptake.run(led.clone(), totals, stop.clone()));
        let statuses = self.statuses.clone();
        let statusing = status::Statusing { client: self.client.clone(), statuses, outcomes: hub.route_statuses(), counts };
        tasks.spawn(statusing.run(led.clone()));
        let home = config.cluster.namespace.clone();
        tasks.spawn(strays::run(self.client.clone(), self.strays.clone(), home, led.clone(), health.clone()));
        tasks.spawn(unenforced::run(self.client.clone(), hub.clone(), led.clone()));
        tasks.spawn(tell(led, health.clone()));
        tasks
    }
}

/// Tells whether this replica holds the lease.
async fn tell(mut led: watch::Receiver<bool>, health: Arc<Health>) {
    while led.changed().await.is_ok() {
        let leads = *led.borrow_and_update();
        health.leading.store(leads, Relaxed);
        tracing::info!(leads, "lease");
    }
}

/// A client that says at once what is wrong, instead of trying again by itself.
pub fn client(mut config: Config) -> kube::Result<Client> {
    config.connect_timeout = Some(CALL);
    // Longer than a watch is quiet: what is dead is noticed, what is idle is left alone.
    config.read_timeout = Some(Duration::from_secs(300));
    config.default_retry = false;
    Client::try_from(config)
}

/// An error of a call, for people: what the server says, or why it could not be asked.
pub(crate) fn explain(e: &kube::Error) -> String {
    match e {
        kube::Error::Api(status) => format!("{} {}: {}", status.code, status.reason, status.message),
        other => chain(other),
    }
}

/// The call's outcome in a bounded time, or why there is none.
async fn within<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(CALL, call).await {
        Ok(outcome) => outcome.map_err(|e| explain(&e)),
        Err(_) => Err(format!("the API server did not answer in {} s", CALL.as_secs())),
    }
}

/// Somebody else was faster: that is an answer, not an error.
fn won<T>(outcome: kube::Result<T>) -> kube::Result<bool> {
    match outcome {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(e) => Err(e),
    }
}
