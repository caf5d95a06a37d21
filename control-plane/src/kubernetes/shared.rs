//! What replicas share and who they are, as the API server has it.
//!
//! A replica is a pod of this pod's own service account: nothing else may read the CA's Secret, or have tokens reviewed, without which no certificate is issued. A pod that
//! the API server does not list has no token that it would take, so that it issues nothing either.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::api::{ListParams, PartialObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::task::JoinSet;
use weft_core::Namespace;
use weft_core::service::ObjectRef;
use weft_proto::v1;
use weft_proto::v1::replicas_client::ReplicasClient;

use super::bundle::{self, FILE};
use super::{ca, within};
use crate::config::Config;
use crate::hub::Hub;
use crate::issue::ca::Ca;
use crate::issue::trust::replicas::{Told, Unheard};
use crate::issue::trust::shared::{Cluster, Stored};
use crate::issue::trust::telling;
use crate::replicas;

/// The injector's mark on a pod that has a sidecar.
const INJECTED: &str = "weft.dev/injected";
/// Pods that may hold a certificate: one that has no address yet cannot have asked for any.
const MAY_HOLD: &str = "status.phase!=Succeeded,status.phase!=Failed,status.podIP!=";
/// One question to another replica, the way there included. It asks the API server meanwhile.
const PATIENCE: Duration = Duration::from_secs(6);
/// Objects of one answer.
const PAGE: u32 = 500;

/// The cluster, as one replica sees it.
pub struct ApiServer {
    client: Client,
    /// weft's own namespace.
    home: Namespace,
    /// The CA's Secret.
    name: String,
    me: ObjectRef,
    /// Where replicas listen.
    port: u16,
    ca: Arc<Ca>,
    hub: Arc<Hub>,
}

impl ApiServer {
    /// Nothing is asked of it yet.
    ///
    /// # Errors
    ///
    /// Where the replica's name is no pod's.
    pub fn new(client: Client, config: &Config, ca: Arc<Ca>, hub: Arc<Hub>) -> anyhow::Result<Self> {
        let (home, me) = (config.cluster.namespace.clone(), config.cluster.pod()?);
        Ok(Self { client, home, name: config.cluster.ca_secret.clone(), me, port: config.listen.port(), ca, hub })
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), self.home.as_str())
    }

    fn place(&self) -> String {
        format!("{}/{}", self.home, self.name)
    }

    fn stored(&self, secret: Secret) -> Result<Stored, String> {
        ca::stored(&self.place(), secret).map_err(|e| e.to_string())
    }
}

#[tonic::async_trait]
impl Cluster for ApiServer {
    async fn read(&self) -> Result<Stored, String> {
        let failed = |why| format!("Secret {} cannot be read: {why}", self.place());
        // Without a version named, the API server answers with what is in force, not with what it has cached.
        let secret = within(self.secrets().get_opt(&self.name)).await.map_err(failed)?;
        self.stored(secret.ok_or_else(|| format!("Secret {} is not there: put it back", self.place()))?)
    }

    async fn swap(&self, stored: &Stored) -> Result<Option<Stored>, String> {
        let api = self.secrets();
        let failed = |why| format!("Secret {} cannot be changed: {why}", self.place());
        // What others have written into its metadata stays.
        let Some(mut wanted) = within(api.get_opt(&self.name)).await.map_err(failed)? else { return Ok(None) };
        let fresh = ca::secret(&self.name, &stored.parts, Some(&stored.version));
        wanted.data = fresh.data;
        wanted.metadata.resource_version = fresh.metadata.resource_version;
        let replaced = within(async {
            match api.replace(&self.name, &PostParams::default(), &wanted).await {
                Ok(secret) => Ok(Some(secret)),
                Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
                Err(e) => Err(e),
            }
        });
        replaced.await.map_err(failed)?.map(|secret| self.stored(secret)).transpose()
    }

    async fn keep_root_key(&self, anchor: &str, key: &str) -> Result<(), String> {
        let name = format!("{}-root-{}", self.name, anchor.get(..8).unwrap_or(anchor));
        ca::keep_root(&self.secrets(), &name, key).await
    }

    fn me(&self) -> ObjectRef {
        self.me.clone()
    }

    async fn others(&self) -> Result<Vec<Told>, String> {
        let api = Api::<Pod>::namespaced(self.client.clone(), self.home.as_str());
        let pods = within(api.list(&ListParams::default()))
            .await
            .map_err(|why| format!("pods of {} cannot be listed: {why}", self.home))?;
        let account = |pod: &Pod| pod.spec.as_ref().and_then(|s| s.service_account_name.clone());
        let own = pods.items.iter().find(|pod| pod.metadata.name.as_deref() == Some(self.me.name.as_str())).and_then(account);
        let own = own.ok_or_else(|| {
            format!("this replica's pod {} is not there: the root is rotated by replicas that run in pods, each named by --kube-replica", self.me)
        })?;
        let mut asked = JoinSet::new();
        let mut told = Vec::new();
        let tls = replicas::tls(&self.ca)?;
        for pod in pods.items.iter().filter(|pod| account(pod).as_ref() == Some(&own)) {
            let Some(name) = pod.metadata.name.as_deref().filter(|name| *name != self.me.name.as_str()) else { continue };
            let replica = ObjectRef { namespace: self.home.clone(), name: name.parse().map_err(|e| format!("pod {name}: {e}"))? };
            let status = pod.status.clone().unwrap_or_default();
            if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
                continue;
            }
            // One without an address has not begun: it reads the Secret when it does.
            let Some(ip) = status.pod_ip.filter(|ip| !ip.is_empty()) else { continue };
            match ip.parse::<IpAddr>() {
                Ok(ip) => {
                    let (address, tls) = (SocketAddr::new(ip, self.port), tls.clone());
                    asked.spawn(async move {
                        let question =
                            |mut client: ReplicasClient<_>| async move { client.trust(v1::ReplicaTrustRequest {}).await };
                        let answer = replicas::ask(address, tls, PATIENCE, question).await;
                        let said = answer.and_then(|answer| telling::from_wire(&answer).map_err(Unheard::Silent));
                        Told { replica, said }
                    });
                }
                Err(e) => told.push(Told { replica, said: Err(Unheard::Silent(format!("its address is {ip:?}: {e}"))) }),
            }
        }
        told.extend(asked.join_all().await);
        Ok(told)
    }

    async fn pods(&self) -> Result<BTreeSet<ObjectRef>, String> {
        let api = Api::<Pod>::all(self.client.clone());
        let mut params = ListParams::default().fields(MAY_HOLD).limit(PAGE);
        let mut found = BTreeSet::new();
        loop {
            let page = within(api.list_metadata(&params)).await.map_err(|why| format!("pods cannot be listed: {why}"))?;
            found.extend(page.items.iter().filter_map(injected));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(found),
            }
        }
    }

    fn known_pods(&self) -> BTreeSet<ObjectRef> {
        let snapshot = self.hub.snapshot();
        let counts = snapshot.pods.iter().filter(|(_, facts)| facts.has_sidecar && !facts.addresses.is_empty());
        counts.map(|(pod, _)| pod.clone()).collect()
    }

    async fn unspread(&self) -> Result<Vec<ObjectRef>, String> {
        let meshed = self.hub.meshed().borrow().clone();
        let api = Api::<ConfigMap>::all(self.client.clone());
        let named = ListParams::default().fields(&format!("metadata.name={}", bundle::NAME));
        let maps =
            within(api.list(&named)).await.map_err(|why| format!("the ConfigMaps {} cannot be listed: {why}", bundle::NAME))?;
        let anchors = self.ca.anchor_pem();
        let has_all = |map: &ConfigMap| map.data.as_ref().and_then(|d| d.get(FILE)).is_some_and(|text| *text == anchors);
        let good: BTreeSet<String> =
            maps.items.iter().filter(|map| has_all(map)).filter_map(|map| map.metadata.namespace.clone()).collect();
        let name = bundle::NAME.parse::<weft_core::identity::Name>().map_err(|e| e.to_string())?;
        let missing = meshed.iter().filter(|namespace| !good.contains(namespace.as_str()));
        Ok(missing.map(|namespace| ObjectRef { namespace: namespace.clone(), name: name.clone() }).collect())
    }
}

/// A pod with a sidecar.
fn injected(pod: &PartialObjectMeta<Pod>) -> Option<ObjectRef> {
    pod.metadata.annotations.as_ref()?.get(INJECTED)?;
    let (namespace, name) = (pod.metadata.namespace.as_deref()?, pod.metadata.name.as_deref()?);
    Some(ObjectRef { namespace: namespace.parse().ok()?, name: name.parse().ok()? })
}
