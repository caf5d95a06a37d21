//! What a worker needs of a service: for each port, the endpoints that may be chosen, each with everything that a request asks of it.
//! Made anew by the control thread when the service or its endpoints change; what stays the same is shared with the view before.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use weft_core::balance::{Chooser, rendezvous};
use weft_core::breaker::State;
use weft_core::failure::{Failure, Reason};
use weft_core::protocol::AppProtocol;
use weft_core::service::{Endpoint, ObjectRef, Reach, Service};
use weft_core::traffic::TrafficPolicy;
use weft_core::traffic::route::Route;
use weft_core::traffic::table::Verdict;

use crate::config::NetConfig;
use crate::connect::{Destination, DialOptions, DialPolicy};
use crate::isolation::{Egress, Memory};
use crate::standing::{Health, Standing};
use crate::traffic::ServiceTraffic;

pub mod choice;

/// An endpoint with how it does, which outlives changes of its facts.
#[derive(Debug)]
pub struct EndpointState {
    pub endpoint: Endpoint,
    pub health: Arc<Health>,
}

/// An endpoint and how it is dialled for one port.
#[derive(Debug)]
pub struct Candidate {
    pub destination: Arc<Destination>,
    pub health: Arc<Health>,
    pub zone: Arc<str>,
    /// What the peer is called in metrics.
    pub peer: Arc<str>,
    /// One of the pod's own addresses: the inbound path is entered in process.
    pub own: bool,
    /// Of a pod that is dialled by its own address: what network policies say of it.
    pub memory: Memory,
}

impl Candidate {
    /// `target` is what is dialled, as SNI names it; `named_port` its port, `port` the endpoint's.
    pub fn new(
        endpoint: &EndpointState,
        port: u16,
        target: &ObjectRef,
        named_port: u16,
        net: &NetConfig,
        dial: &DialPolicy,
    ) -> Self {
        let address = SocketAddr::new(endpoint.endpoint.address, port);
        let own = net.pod_ips.contains(&address.ip());
        let plain = Destination::Plain { address, dial: dial.clone() };
        let (destination, peer) = match &endpoint.endpoint.reach {
            Reach::Mesh(identity) if own => (plain, identity.to_string().into()),
            Reach::Mesh(identity) => {
                let name = server_name(target, named_port);
                (Destination::Mesh { address, identity: identity.clone(), name, dial: dial.clone() }, identity.to_string().into())
            }
            Reach::Plain => (plain, "plaintext".into()),
        };
        let (health, zone) = (endpoint.health.clone(), endpoint.endpoint.zone.clone());
        Self { destination: Arc::new(destination), health, zone, peer, own, memory: Memory::default() }
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

/// What a view of a service is made of.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    pub service: &'a Service,
    /// Several may share an address, on other ports.
    pub endpoints: &'a [Endpoint],
    pub routes: &'a [Arc<Route>],
    pub policy: &'a Arc<TrafficPolicy>,
    /// The zone that the pod runs in; empty if unknown.
    pub zone: &'a str,
    /// What the pod may call; none where no network policy isolates it.
    pub egress: Option<Egress<'a>>,
}

/// One consistent state of a service.
#[derive(Debug)]
pub struct ServiceView {
    pub service: Service,
    /// All of them, by address.
    pub endpoints: Vec<Arc<EndpointState>>,
    /// What its routes and its policy say; none where there is nothing to say.
    pub traffic: Option<Arc<ServiceTraffic>>,
    pub standing: Arc<Standing>,
    ports: Vec<PortView>,
}

/// The endpoints that one port of a service may use, by address.
#[derive(Debug)]
struct PortView {
    port: u16,
    candidates: Vec<Arc<Candidate>>,
    /// Endpoints that network policies keep the pod from calling.
    forbidden: usize,
    chooser: Arc<Chooser>,
    /// Those of the pod's own zone, and how to choose among them; none where the policy does not ask for it.
    local: Option<(Vec<Arc<Candidate>>, Arc<Chooser>)>,
    kept: Arc<Kept>,
}

impl PortView {
    /// The endpoint at an address and port of its own.
    fn find(&self, at: SocketAddr) -> Option<&Arc<Candidate>> {
        let i = self.candidates.binary_search_by_key(&at, |c| c.destination.address()).ok()?;
        Some(&self.candidates[i])
    }
}

impl ServiceView {
    /// A view that shares with `before` what has not changed; endpoints that stay keep their health. `now` is of [`crate::mesh::Mesh::now`].
    pub fn new(facts: Facts<'_>, before: Option<&Self>, net: &NetConfig, now: u64) -> Self {
        let Facts { service, policy, .. } = facts;
        let standing = match before {
            Some(b) if b.policy() == **policy => b.standing.clone(),
            _ => Arc::new(Standing::new(policy, before.map(|b| &*b.standing))),
        };
        let known: HashMap<_, &Arc<EndpointState>> =
            before.into_iter().flat_map(|b| &b.endpoints).map(|e| (key(&e.endpoint), e)).collect();
        let endpoints: Vec<Arc<EndpointState>> = facts
            .endpoints
            .iter()
            .map(|e| match known.get(&key(e)) {
                Some(same) if same.endpoint == *e => (*same).clone(),
                // It comes back, or was told of before it could serve: it has its slow start now. What is ejected stays so.
                Some(other)
                    if policy.slow_start.is_some()
                        && e.ready
                        && !other.endpoint.ready
                        && other.endpoint.reach == e.reach
                        && other.endpoint.workload == e.workload
                        && other.health.breaker.state(now) == State::Closed =>
                {
                    let health = Arc::new(Health::new(now, now, &standing.ejections));
                    Arc::new(EndpointState { endpoint: e.clone(), health })
                }
                Some(other) if other.endpoint.reach == e.reach && other.endpoint.workload == e.workload => {
                    Arc::new(EndpointState { endpoint: e.clone(), health: other.health.clone() })
                }
                // What is there at first is not new: only what comes later starts slowly.
                _ => {
                    let since = if before.is_some() { now } else { 0 };
                    let health = Arc::new(Health::new(now, since, &standing.ejections));
                    Arc::new(EndpointState { endpoint: e.clone(), health })
                }
            })
            .collect();
        let ready = endpoints.iter().filter(|e| e.endpoint.ready).count();
        standing.ejections.set_endpoints(u32::try_from(ready).unwrap_or(u32::MAX));
        let dial = dial_policy(policy);
        let ports = service.ports.iter().map(|p| port_view(facts, p.port, &endpoints, before, (net, &dial))).collect();
        let traffic = ServiceTraffic::new(policy, facts.routes, service.ports.iter().map(|p| p.port));
        Self { service: service.clone(), endpoints, traffic, standing, ports }
    }

    /// The policy in force.
    fn policy(&self) -> TrafficPolicy {
        self.traffic.as_ref().map_or_else(TrafficPolicy::default, |t| (*t.policy).clone())
    }

    /// What a port is declared to speak: by the service, or by its routes.
    pub fn protocol(&self, port: u16) -> AppProtocol {
        let declared = self.service.port(port).map_or(AppProtocol::Detect, |p| p.protocol);
        let Some(table) = self.traffic.as_ref().and_then(|t| t.table(port)) else { return declared };
        match declared {
            AppProtocol::Detect if table.needs_requests() => AppProtocol::Http,
            // The server name must be seen.
            AppProtocol::Opaque if !matches!(table.tls(None), Verdict::NoRoutes) => AppProtocol::Detect,
            _ => declared,
        }
    }

    fn port(&self, port: u16) -> Result<&PortView, Failure> {
        let id = &self.service.id;
        let Some(view) = self.ports.iter().find(|p| p.port == port) else {
            return Err(Failure::mesh(Reason::NoSuchPort).detail(format!("{id} has no port {port}")));
        };
        if view.candidates.is_empty() && view.forbidden > 0 {
            let text = format!("network policies keep the pod from all {} endpoints of {id}", view.forbidden);
            return Err(Failure::mesh(Reason::NetworkPolicy).detail(text));
        }
        if view.candidates.is_empty() {
            let here = if self.service.local_only { ", on this node (internalTrafficPolicy: Local)" } else { "" };
            let all = self.endpoints.len();
            let text = format!("{id} has {all} endpoints, none of them ready for port {port}{here}");
            return Err(Failure::mesh(Reason::NoEndpoints).detail(text));
        }
        Ok(view)
    }

    /// The endpoints that are ready for a port; at least one.
    pub fn candidates(&self, port: u16) -> Result<&[Arc<Candidate>], Failure> {
        self.port(port).map(|view| &*view.candidates)
    }

    /// The endpoint that the pod stays with (`sessionAffinity: ClientIP`): the one that it used last, unless it is gone, in `tried`, or
    /// was used too long ago. None where the service asks for no affinity.
    pub fn stays_with(&self, port: u16, tried: &[IpAddr], client: IpAddr, now: u64) -> Option<&Arc<Candidate>> {
        let timeout = self.service.client_ip_affinity?;
        let view = self.ports.iter().find(|p| p.port == port)?;
        // Of several on one address, any: affinity is to a pod, and they are one host's.
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

fn dial_policy(policy: &TrafficPolicy) -> DialPolicy {
    let options = DialOptions { connect: policy.timeouts.connect, tcp: policy.tcp.clone() };
    (options != DialOptions::default()).then(|| Arc::new(options))
}

/// What an endpoint is known by from one list to the next: its address, and the port behind the service's first.
fn key(e: &Endpoint) -> (IpAddr, Option<u16>) {
    (e.address, e.ports.first().map(|(_, port)| *port))
}

fn port_view(
    facts: Facts<'_>,
    port: u16,
    endpoints: &[Arc<EndpointState>],
    before: Option<&ServiceView>,
    (net, dial): (&NetConfig, &DialPolicy),
) -> PortView {
    let same_balancer = before.is_some_and(|b| b.policy().balancer == facts.policy.balancer);
    let before = before.and_then(|b| b.ports.iter().find(|p| p.port == port));
    let known = |at: SocketAddr| {
        let list = &before?.candidates;
        list.binary_search_by_key(&at, |c| c.destination.address()).ok().map(|i| &list[i])
    };
    let mut forbidden = 0;
    let candidates = endpoints.iter().filter(|e| e.endpoint.ready).filter_map(|e| {
        let target = e.endpoint.target_port(port)?;
        let is_own = || net.pod_ips.contains(&e.endpoint.address);
        if facts.egress.is_some_and(|egress| !is_own() && !egress.permits(&e.endpoint, target)) {
            forbidden += 1;
            return None;
        }
        let same = |c: &&Arc<Candidate>| {
            Arc::ptr_eq(&c.health, &e.health)
                && c.destination.identity() == if c.own { None } else { e.endpoint.reach.identity() }
                && c.destination.dial() == dial.as_deref()
                && c.zone == e.endpoint.zone
        };
        Some(match known(SocketAddr::new(e.endpoint.address, target)).filter(same) {
            Some(same) => same.clone(),
            None => Arc::new(Candidate::new(e, target, &facts.service.id, port, net, dial)),
        })
    });
    let mut candidates: Vec<_> = candidates.collect();
    candidates.sort_by_key(|c| c.destination.address());
    let addresses = |list: &[Arc<Candidate>]| list.iter().map(|c| c.destination.address()).collect::<Vec<_>>();
    let chooser = |list: &[Arc<Candidate>], before: Option<(&[Arc<Candidate>], &Arc<Chooser>)>| match before {
        Some((old, chooser)) if same_balancer && addresses(old) == addresses(list) => chooser.clone(),
        _ => Arc::new(Chooser::new(&facts.policy.balancer, &addresses(list), crate::identity::random())),
    };
    let local = (facts.policy.zone.prefer && !facts.zone.is_empty()).then(|| {
        let list: Vec<_> = candidates.iter().filter(|c| *c.zone == *facts.zone).cloned().collect();
        let old = before.and_then(|b| b.local.as_ref()).map(|(list, chooser)| (&**list, chooser));
        let chooser = chooser(&list, old);
        (list, chooser)
    });
    PortView {
        port,
        chooser: chooser(&candidates, before.map(|b| (&*b.candidates, &b.chooser))),
        candidates,
        forbidden,
        local,
        kept: before.map_or_else(Arc::default, |b| b.kept.clone()),
    }
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
    use weft_core::service::ServicePort;

    fn net() -> NetConfig {
        let args = ["weft-sidecar", "--control-plane=127.0.0.1:1", "--identity=shop/web", "--pod-ips=10.0.0.1"];
        crate::config::Config::parse_from(args).net
    }

    fn service(affinity: Option<Duration>) -> Service {
        Service {
            id: "shop/web".parse().expect("a name"),
            addresses: vec![],
            ports: vec![ServicePort { port: 80, name: None, protocol: AppProtocol::Detect }],
            client_ip_affinity: affinity,
            local_only: false,
        }
    }

    fn endpoint(i: u8, port: u16) -> Endpoint {
        let address = IpAddr::from([10, 0, 0, i]);
        let ports = vec![(80, port)];
        Endpoint { address, workload: None, reach: Reach::Plain, ready: i != 7, zone: "".into(), node: "".into(), ports }
    }

    fn endpoints(count: u8) -> Vec<Endpoint> {
        (0..count).map(|i| endpoint(i, 8080)).collect()
    }

    #[expect(clippy::needless_pass_by_value, reason = "made for it")]
    fn view(service: Service, endpoints: &[Endpoint], before: Option<&ServiceView>) -> ServiceView {
        let policy = Arc::new(TrafficPolicy::default());
        let facts = Facts { service: &service, endpoints, routes: &[], policy: &policy, zone: "", egress: None };
        ServiceView::new(facts, before, &net(), 0)
    }

    #[test]
    fn what_has_not_changed_is_shared_and_what_is_not_ready_is_left_out() {
        let first = view(service(None), &endpoints(9), None);
        let mut fewer = endpoints(9);
        fewer[4].node = "b".into();
        fewer.remove(3);
        let second = view(service(None), &fewer, Some(&first));
        let (before, after) = (first.candidates(80).expect("ready"), second.candidates(80).expect("ready"));
        assert_eq!((before.len(), after.len()), (8, 7));
        assert!(after.iter().all(|c| before.iter().any(|b| Arc::ptr_eq(b, c))));
        assert_eq!(first.candidates(81).expect_err("no such port").reason, Reason::NoSuchPort);
    }

    #[test]
    fn endpoints_of_one_address_are_told_apart_by_their_ports() {
        let shared = [endpoint(1, 8080), endpoint(1, 9090), endpoint(2, 8080)];
        let first = view(service(None), &shared, None);
        let second = view(service(None), &shared[1..], Some(&first));
        let (before, after) = (first.candidates(80).expect("ready"), second.candidates(80).expect("ready"));
        assert_eq!((before.len(), after.len()), (3, 2));
        assert!(Arc::ptr_eq(&before[1], &after[0]) && Arc::ptr_eq(&before[2], &after[1]));
    }

    #[test]
    fn a_client_stays_until_its_endpoint_fails_or_it_was_silent_for_long() {
        const SECOND: u64 = 1_000_000_000;
        let timeout = Duration::from_secs(10);
        let held = view(service(Some(timeout)), &endpoints(6), None);
        let client = IpAddr::from([10, 9, 9, 9]);
        let at =
            |view: &ServiceView, tried: &[IpAddr], now| view.stays_with(80, tried, client, now).expect("asked for").address();
        let first = at(&held, &[], 0);
        let second = at(&held, &[first], SECOND);
        assert_ne!(first, second);
        // It stays with the one that worked, even when another view comes.
        let next = view(service(Some(timeout)), &endpoints(7), Some(&held));
        assert_eq!((at(&next, &[], 9 * SECOND), at(&next, &[], 19 * SECOND)), (second, second));
        // Silent for longer than the timeout: chosen anew, and the first choice is the same as ever.
        assert_eq!(at(&held, &[], 40 * SECOND), first);
        assert!(view(service(None), &endpoints(6), None).stays_with(80, &[], client, 0).is_none());
    }
}
