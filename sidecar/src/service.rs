//! What a worker needs of a service: for each port, the endpoints that may be chosen, each with everything that a request asks of it.
//! Made anew by the control thread when the service or its endpoints change; what stays the same is shared with the view before.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use weft_core::balance::{PeakEwma, rendezvous};
use weft_core::failure::{Failure, Reason};
use weft_core::service::{Endpoint, ObjectRef, Reach, Service};

use crate::config::NetConfig;
use crate::connect::Destination;

/// An endpoint with its load, which outlives changes of its facts.
#[derive(Debug)]
pub struct EndpointState {
    pub endpoint: Endpoint,
    pub load: Arc<PeakEwma>,
}

/// An endpoint and how it is dialled for one port.
#[derive(Debug)]
pub struct Candidate {
    pub destination: Arc<Destination>,
    pub load: Arc<PeakEwma>,
    /// What the peer is called in metrics.
    pub peer: Arc<str>,
    /// One of the pod's own addresses: the inbound path is entered in process.
    pub own: bool,
}

impl Candidate {
    /// `target` is what is dialled, as SNI names it; `named_port` its port, `port` the endpoint's.
    pub fn new(endpoint: &EndpointState, port: u16, target: &ObjectRef, named_port: u16, net: &NetConfig) -> Self {
        let address = SocketAddr::new(endpoint.endpoint.address, port);
        let own = net.pod_ips.contains(&address.ip());
        let plain = Destination::Plain { address };
        let (destination, peer) = match &endpoint.endpoint.reach {
            Reach::Mesh(identity) if own => (plain, identity.to_string().into()),
            Reach::Mesh(identity) => {
                let name = server_name(target, named_port);
                (Destination::Mesh { address, identity: identity.clone(), name }, identity.to_string().into())
            }
            Reach::Plain => (plain, "plaintext".into()),
        };
        Self { destination: Arc::new(destination), load: endpoint.load.clone(), peer, own }
    }

    pub fn address(&self) -> IpAddr {
        self.destination.address().ip()
    }
}

/// The name in SNI: `pPORT.NAME.NAMESPACE.weft`.
fn server_name(target: &ObjectRef, port: u16) -> Arc<str> {
    // A pod's name may be longer than a label of DNS (63): it is a hint, and shortened.
    let short = |part: &str, n: usize| part.chars().take(n).collect::<String>().trim_end_matches(['-', '.']).to_owned();
    let labels: Vec<String> = target.name.as_str().split('.').take(3).map(|l| short(l, 50)).collect();
    format!("p{port}.{}.{}.weft", labels.join("."), short(target.namespace.as_str(), 63)).into()
}

/// A service with its endpoints.
#[derive(Debug)]
pub struct ServiceState {
    pub id: ObjectRef,
    /// The same, for metrics.
    pub name: Arc<str>,
    pub view: ArcSwap<ServiceView>,
}

impl ServiceState {
    pub fn new(view: ServiceView) -> Self {
        let id = view.service.id.clone();
        Self { name: id.to_string().into(), id, view: ArcSwap::from_pointee(view) }
    }
}

/// One consistent state of a service.
#[derive(Debug)]
pub struct ServiceView {
    pub service: Service,
    /// All of them, by address.
    pub endpoints: Vec<Arc<EndpointState>>,
    ports: Vec<PortView>,
}

/// The endpoints that one port of a service may use, by address.
#[derive(Debug)]
struct PortView {
    port: u16,
    candidates: Vec<Arc<Candidate>>,
    kept: Arc<Kept>,
}

impl ServiceView {
    /// A view that shares with `before` what has not changed; endpoints that stay keep their load. `now` is of [`crate::mesh::Mesh::now`].
    pub fn new(
        service: Service,
        endpoints: &BTreeMap<IpAddr, Endpoint>,
        before: Option<&Self>,
        net: &NetConfig,
        now: u64,
    ) -> Self {
        let known: HashMap<IpAddr, &Arc<EndpointState>> =
            before.into_iter().flat_map(|b| &b.endpoints).map(|e| (e.endpoint.address, e)).collect();
        let endpoints: Vec<Arc<EndpointState>> = endpoints
            .values()
            .map(|e| match known.get(&e.address) {
                Some(same) if same.endpoint == *e => (*same).clone(),
                Some(other) if other.endpoint.reach == e.reach && other.endpoint.workload == e.workload => {
                    Arc::new(EndpointState { endpoint: e.clone(), load: other.load.clone() })
                }
                _ => Arc::new(EndpointState { endpoint: e.clone(), load: Arc::new(PeakEwma::new(now)) }),
            })
            .collect();
        let ports = service.ports.iter().map(|p| port_view(&service, p.port, &endpoints, before, net)).collect();
        Self { service, endpoints, ports }
    }

    /// The endpoints that are ready for a port; at least one.
    pub fn candidates(&self, port: u16) -> Result<&[Arc<Candidate>], Failure> {
        let id = &self.service.id;
        let Some(view) = self.ports.iter().find(|p| p.port == port) else {
            return Err(Failure::mesh(Reason::NoSuchPort).detail(format!("{id} has no port {port}")));
        };
        if view.candidates.is_empty() {
            let here = if self.service.local_only { " on this node (internalTrafficPolicy: Local)" } else { "" };
            let all = self.endpoints.len();
            let text = format!("{id} has {all} endpoints, none of them ready for port {port}{here}");
            return Err(Failure::mesh(Reason::NoEndpoints).detail(text));
        }
        Ok(&view.candidates)
    }

    /// The endpoint that the pod stays with (`sessionAffinity: ClientIP`): the one that it used last, unless it is gone, in `tried`, or
    /// was used too long ago. None where the service asks for no affinity.
    pub fn stays_with(&self, port: u16, tried: &[IpAddr], client: IpAddr, now: u64) -> Option<&Arc<Candidate>> {
        let timeout = self.service.client_ip_affinity?;
        let view = self.ports.iter().find(|p| p.port == port)?;
        let find = |ip: IpAddr| view.candidates.binary_search_by_key(&ip, |c| c.address()).ok().filter(|_| !tried.contains(&ip));
        let chosen = view.kept.get(timeout, now).and_then(find).or_else(|| {
            let fit: Vec<usize> =
                (0..view.candidates.len()).filter(|i| !tried.contains(&view.candidates[*i].address())).collect();
            rendezvous(client, fit.iter().map(|i| view.candidates[*i].address())).map(|i| fit[i])
        })?;
        let candidate = &view.candidates[chosen];
        view.kept.set(candidate.address(), now);
        Some(candidate)
    }
}

fn port_view(
    service: &Service,
    port: u16,
    endpoints: &[Arc<EndpointState>],
    before: Option<&ServiceView>,
    net: &NetConfig,
) -> PortView {
    let before = before.and_then(|b| b.ports.iter().find(|p| p.port == port));
    let known = |ip| {
        let list = &before?.candidates;
        list.binary_search_by_key(&ip, |c| c.address()).ok().map(|i| &list[i])
    };
    let usable = |e: &Endpoint| e.ready && (!service.local_only || *e.node == *net.node);
    let candidates = endpoints.iter().filter(|e| usable(&e.endpoint)).filter_map(|e| {
        let target = e.endpoint.target_port(port)?;
        let same = |c: &&Arc<Candidate>| {
            c.destination.address().port() == target
                && Arc::ptr_eq(&c.load, &e.load)
                && c.destination.identity() == if c.own { None } else { e.endpoint.reach.identity() }
        };
        Some(match known(e.endpoint.address).filter(same) {
            Some(same) => same.clone(),
            None => Arc::new(Candidate::new(e, target, &service.id, port, net)),
        })
    });
    PortView { port, candidates: candidates.collect(), kept: before.map_or_else(Arc::default, |b| b.kept.clone()) }
}

/// Whom the pod used last. A race between two workers loses one of two choices that were made at once.
#[derive(Debug, Default)]
struct Kept {
    endpoint: ArcSwapOption<IpAddr>,
    used: AtomicU64,
}

impl Kept {
    fn get(&self, timeout: Duration, now: u64) -> Option<IpAddr> {
        let age = now.saturating_sub(self.used.load(Relaxed));
        self.endpoint.load().as_deref().copied().filter(|_| u128::from(age) <= timeout.as_nanos())
    }

    fn set(&self, endpoint: IpAddr, now: u64) {
        if self.endpoint.load().as_deref() != Some(&endpoint) {
            self.endpoint.store(Some(Arc::new(endpoint)));
        }
        self.used.store(now, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use weft_core::protocol::AppProtocol;
    use weft_core::service::ServicePort;

    fn net(node: &str) -> NetConfig {
        let args = ["weft-sidecar", "--control-plane=127.0.0.1:1", "--identity=shop/web", "--pod-ips=10.0.0.1", "--node", node];
        crate::config::Config::parse_from(args).net
    }

    fn service(affinity: Option<Duration>, local_only: bool) -> Service {
        Service {
            id: "shop/web".parse().expect("a name"),
            addresses: vec![],
            ports: vec![ServicePort { port: 80, name: None, protocol: AppProtocol::Detect }],
            client_ip_affinity: affinity,
            local_only,
        }
    }

    fn endpoints(count: u8) -> BTreeMap<IpAddr, Endpoint> {
        (0..count)
            .map(|i| {
                let address = IpAddr::from([10, 0, 0, i]);
                let node = if i % 2 == 0 { "a" } else { "b" };
                let ports = vec![(80, 8080)];
                let endpoint = Endpoint {
                    address,
                    workload: None,
                    reach: Reach::Plain,
                    ready: i != 7,
                    zone: "".into(),
                    node: node.into(),
                    ports,
                };
                (address, endpoint)
            })
            .collect()
    }

    #[test]
    fn what_has_not_changed_is_shared_and_what_is_not_ready_is_left_out() {
        let first = ServiceView::new(service(None, false), &endpoints(9), None, &net("a"), 0);
        let mut fewer = endpoints(9);
        fewer.remove(&IpAddr::from([10, 0, 0, 3]));
        fewer.get_mut(&IpAddr::from([10, 0, 0, 4])).expect("it is there").ports = vec![(80, 9090)];
        let second = ServiceView::new(service(None, false), &fewer, Some(&first), &net("a"), 1);
        let (before, after) = (first.candidates(80).expect("ready"), second.candidates(80).expect("ready"));
        assert_eq!((before.len(), after.len()), (8, 7));
        let shared = after.iter().filter(|c| before.iter().any(|b| Arc::ptr_eq(b, c))).count();
        assert_eq!(shared, 6);
        let moved = after.iter().find(|c| c.destination.address().port() == 9090).expect("its port has changed");
        let same = before.iter().find(|c| c.address() == moved.address()).expect("it was there");
        assert!(Arc::ptr_eq(&moved.load, &same.load));
        assert_eq!(first.candidates(81).expect_err("no such port").reason, Reason::NoSuchPort);
    }

    #[test]
    fn a_local_service_has_the_endpoints_of_its_own_node_alone() {
        let local = ServiceView::new(service(None, true), &endpoints(6), None, &net("a"), 0);
        assert_eq!(local.candidates(80).expect("three of six").len(), 3);
        let elsewhere = ServiceView::new(service(None, true), &endpoints(6), None, &net("c"), 0);
        assert_eq!(elsewhere.candidates(80).expect_err("none is here").reason, Reason::NoEndpoints);
    }

    #[test]
    fn a_client_stays_until_its_endpoint_fails_or_it_was_silent_for_long() {
        const SECOND: u64 = 1_000_000_000;
        let timeout = Duration::from_secs(10);
        let view = ServiceView::new(service(Some(timeout), false), &endpoints(6), None, &net("a"), 0);
        let client = IpAddr::from([10, 9, 9, 9]);
        let at =
            |view: &ServiceView, tried: &[IpAddr], now| view.stays_with(80, tried, client, now).expect("asked for").address();
        let first = at(&view, &[], 0);
        let second = at(&view, &[first], SECOND);
        assert_ne!(first, second);
        // It stays with the one that worked, even when another view comes.
        let next = ServiceView::new(service(Some(timeout), false), &endpoints(7), Some(&view), &net("a"), 0);
        assert_eq!((at(&next, &[], 9 * SECOND), at(&next, &[], 19 * SECOND)), (second, second));
        // Silent for longer than the timeout: chosen anew, and the first choice is the same as ever.
        assert_eq!(at(&view, &[], 40 * SECOND), first);
        assert!(
            ServiceView::new(service(None, false), &endpoints(6), None, &net("a"), 0).stays_with(80, &[], client, 0).is_none()
        );
    }
}
