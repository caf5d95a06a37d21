//! What addresses stand for: names that led to them, as the pod's programs were told.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use weft_core::egress::Host;

/// Addresses that are remembered.
const MAX_ADDRESSES: usize = 8192;
/// Names of one address.
const MAX_NAMES: usize = 8;
/// Programs use what they were told for longer than it lives: it is remembered for so long at least.
const SHORTEST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3600);

type Names = Vec<(Host, Instant)>;

/// Written where the pod's questions are answered, and read where its connections are.
#[derive(Default)]
pub struct Learned(Mutex<HashMap<IpAddr, Names>>);

impl Learned {
    /// A name led to an address, for `ttl` seconds. Where there is no room, what was learned first to end goes.
    pub fn learn(&self, host: &Host, ip: IpAddr, ttl: u32) {
        let now = Instant::now();
        let until = now + Duration::from_secs(u64::from(ttl)).clamp(SHORTEST, LONGEST);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ip = ip.to_canonical();
        if all.len() >= MAX_ADDRESSES && !all.contains_key(&ip) {
            all.retain(|_, names| names.iter().any(|(_, until)| *until > now));
            if all.len() >= MAX_ADDRESSES {
                // Seldom, and only where very many names are asked for.
                let first = all.iter().min_by_key(|(_, names)| names.iter().map(|(_, until)| *until).max()).map(|(ip, _)| *ip);
                first.map(|ip| all.remove(&ip));
            }
        }
        let names = all.entry(ip).or_default();
        names.retain(|(known, until)| known != host && *until > now);
        if names.len() >= MAX_NAMES {
            names.remove(0);
        }
        names.push((host.clone(), until));
    }

    /// The names that led to an address, the last one first.
    pub fn names(&self, ip: IpAddr) -> Vec<Host> {
        let now = Instant::now();
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let names = all.get(&ip.to_canonical()).into_iter().flatten().rev();
        names.filter(|(_, until)| *until > now).map(|(host, _)| host.clone()).collect()
    }
}
