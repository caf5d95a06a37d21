//! The other replicas of the control plane, of which each knows of the sidecars that are connected to it.
//!
//! They are the pods of this one's service account, in its namespace, as the watch has them: a page that is drawn anew every two seconds asks nothing of the API server.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use weft_core::service::ObjectRef;
use weft_proto::v1;
use weft_proto::v1::replicas_client::ReplicasClient;

use crate::hub::Hub;
use crate::issue::ca::Ca;
use crate::issue::trust::replicas::Unheard;
use crate::replicas;
use crate::snapshot::PodFacts;

/// A page waits for the slowest replica: this long.
const PATIENCE: Duration = Duration::from_secs(2);
/// A certificate of this replica's own is shown for so long: a page asks every few seconds. Roots that change meanwhile are known by then.
const SHOWN: Duration = Duration::from_secs(30);

/// The way to them.
pub struct Others {
    hub: Arc<Hub>,
    ca: Arc<Ca>,
    /// This replica's pod.
    me: ObjectRef,
    /// Where replicas listen.
    port: u16,
    /// What is shown to them, and since when.
    tls: Mutex<Option<(Instant, Arc<rustls::ClientConfig>)>>,
}

/// Another replica, and what it says.
pub struct Told {
    pub replica: String,
    /// Or why nothing.
    pub said: Result<v1::ReplicaTrafficResponse, String>,
}

impl Others {
    /// Those besides `me`, a pod of this control plane, which listen on the same port.
    pub fn new(hub: Arc<Hub>, ca: Arc<Ca>, me: ObjectRef, port: u16) -> Self {
        Self { hub, ca, me, port, tls: Mutex::default() }
    }

    fn tls(&self) -> Result<Arc<rustls::ClientConfig>, String> {
        let mut kept = self.tls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, tls)) = kept.as_ref().filter(|(since, _)| since.elapsed() < SHOWN) {
            return Ok(tls.clone());
        }
        let tls = replicas::tls(&self.ca)?;
        *kept = Some((Instant::now(), tls.clone()));
        Ok(tls)
    }

    /// Asks all of them at once, for the last `window`.
    ///
    /// # Errors
    ///
    /// Where it cannot be said who they are, or nothing can be shown to them.
    pub async fn ask(&self, window: Duration) -> Result<Vec<Told>, String> {
        let others = all(&self.hub.snapshot().pods, &self.me)?;
        if others.is_empty() {
            return Ok(Vec::new());
        }
        let (tls, window_seconds) = (self.tls()?, u32::try_from(window.as_secs()).unwrap_or(u32::MAX));
        let mut asked = JoinSet::new();
        for (replica, ip) in others {
            let (tls, address) = (tls.clone(), SocketAddr::new(ip, self.port));
            asked.spawn(async move {
                let asks = v1::ReplicaTrafficRequest { window_seconds };
                let question = |mut client: ReplicasClient<_>| async move { client.traffic(asks).await };
                let said = replicas::ask(address, tls, PATIENCE, question).await.map_err(|unheard| match unheard {
                    Unheard::Silent(why) => why,
                    Unheard::Older => "its version does not tell others of traffic".to_owned(),
                });
                Told { replica, said }
            });
        }
        let mut told = asked.join_all().await;
        told.sort_by(|a, b| a.replica.cmp(&b.replica));
        Ok(told)
    }
}

/// The pods besides `me` of its namespace and service account, with an address of each. One without has not begun.
fn all(pods: &imbl::HashMap<ObjectRef, Arc<PodFacts>>, me: &ObjectRef) -> Result<Vec<(String, IpAddr)>, String> {
    let own = pods.get(me).ok_or_else(|| format!("this replica's pod {me} is not known"))?;
    let others = pods
        .iter()
        .filter(|(pod, facts)| pod.namespace == me.namespace && *pod != me && facts.service_account == own.service_account);
    Ok(others.filter_map(|(pod, facts)| Some((pod.name.to_string(), *facts.addresses.first()?))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_pods_of_the_same_account_in_the_same_namespace() {
        let pod = |name: &str, account: &str, address: Option<&str>| {
            let facts = PodFacts {
                uid: None,
                service_account: account.to_owned(),
                addresses: address.iter().map(|a| a.parse().expect("an address")).collect(),
                host_network: false,
                has_sidecar: false,
                place: crate::snapshot::Place::default(),
            };
            (name.parse::<ObjectRef>().expect("a name"), Arc::new(facts))
        };
        let pods = [
            pod("weft/cp-0", "cp", Some("10.0.0.1")),
            pod("weft/cp-1", "cp", Some("10.0.0.2")),
            pod("weft/cp-2", "cp", None),
            pod("weft/injector", "injector", Some("10.0.0.3")),
            pod("shop/cp-1", "cp", Some("10.0.0.4")),
        ];
        let pods = pods.into_iter().collect();
        let me = "weft/cp-0".parse().expect("a name");
        assert_eq!(all(&pods, &me), Ok(vec![("cp-1".to_owned(), IpAddr::from([10, 0, 0, 2]))]));
        assert!(all(&pods, &"weft/gone".parse().expect("a name")).is_err_and(|why| why.contains("weft/gone")));
    }
}
