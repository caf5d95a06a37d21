//! Routes and policy of one service, made ready for requests.

use std::net::IpAddr;
use std::sync::Arc;

use weft_core::balance::hash64;
use weft_core::traffic::policy::{Balancer, HashKey, TrafficPolicy};
use weft_core::traffic::route::Route;
use weft_core::traffic::session::cookie_value;
use weft_core::traffic::table::{RouteTable, query_value};

use crate::http::{Known, RequestHead};

/// Routes and policy of one service. A service that has neither has none of this, and costs nothing.
#[derive(Debug)]
pub struct ServiceTraffic {
    pub policy: Arc<TrafficPolicy>,
    /// By port.
    tables: Vec<(u16, RouteTable)>,
}

impl ServiceTraffic {
    /// None where there is nothing that a request would have to be asked about.
    pub fn new(policy: &Arc<TrafficPolicy>, routes: &[Arc<Route>], ports: impl Iterator<Item = u16>) -> Option<Arc<Self>> {
        if routes.is_empty() && **policy == TrafficPolicy::default() {
            return None;
        }
        let tables = if routes.is_empty() { vec![] } else { ports.map(|port| (port, RouteTable::new(routes, port))).collect() };
        Some(Arc::new(Self { policy: policy.clone(), tables }))
    }

    /// The routes of a port.
    pub fn table(&self, port: u16) -> Option<&RouteTable> {
        self.tables.iter().find(|(p, _)| *p == port).map(|(_, table)| table)
    }

    /// What is in force, for people: each port's routes, and the policy.
    pub fn describe(&self) -> serde_json::Value {
        let rules = |table: &RouteTable| {
            let rules = table.rules().iter().map(|r| format!("{} {} rule {}", r.route.kind.as_str(), r.route.id, r.index));
            rules.collect::<Vec<_>>()
        };
        let ports: Vec<_> = self.tables.iter().map(|(port, t)| serde_json::json!({"port": port, "rules": rules(t)})).collect();
        serde_json::json!({"routes": ports, "policy": format!("{:?}", self.policy)})
    }

    /// What a hashing balancer goes by; none if the request does not have it, or the balancer does not hash.
    pub fn hash_key(&self, head: &RequestHead, source: IpAddr) -> Option<u64> {
        let (Balancer::RingHash(key) | Balancer::Maglev(key)) = &self.policy.balancer else { return None };
        match key {
            HashKey::Header(name) => head.fields.named(name).next().map(hash_text),
            HashKey::Cookie { name, .. } => head.fields.all(Known::Cookie).find_map(|c| cookie_value(c, name)).map(hash_text),
            HashKey::Query(name) => head.query().and_then(|q| query_value(q, name)).map(hash_text),
            HashKey::Source => Some(source_key(source)),
        }
    }

    /// What a hashing balancer goes by for an opaque connection, of which only the source is known.
    pub fn connection_key(&self, source: IpAddr) -> Option<u64> {
        let (Balancer::RingHash(HashKey::Source) | Balancer::Maglev(HashKey::Source)) = &self.policy.balancer else {
            return None;
        };
        Some(source_key(source))
    }
}

/// The key of a text.
pub fn hash_text(text: &[u8]) -> u64 {
    hash64(text, 0)
}

fn source_key(source: IpAddr) -> u64 {
    match source {
        IpAddr::V4(ip) => hash_text(&ip.octets()),
        IpAddr::V6(ip) => hash_text(&ip.octets()),
    }
}
