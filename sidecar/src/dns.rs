//! Names outside of the mesh: a stub resolver that asks the pod's own name servers, and the port that answers the pod's programs where the redirect
//! captures what they ask.
//!
//! What is captured is passed on and back byte for byte, but for the id. Of answers about hosts that an external service names, the addresses are
//! remembered, so that bytes to them are known by the host that was meant.

pub mod answer;
mod conf;
mod learned;
pub mod message;
mod server;
mod upstream;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

pub use learned::Learned;
pub use server::serve;

use conf::Conf;
use upstream::Upstream;

/// Names that are kept.
const MAX_NAMES: usize = 4096;
/// Questions that wait for an answer at once; more are refused.
const MAX_WAITING: usize = 512;
/// An answer is used for so long at least and at most, whatever it says of itself.
const SHORTEST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(300);
/// That there is no address is believed for so long.
const NEGATIVE: Duration = Duration::from_secs(5);
/// Addresses of one name that are used.
const MAX_ADDRESSES: usize = 16;

/// Why a name leads nowhere.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ResolveError {
    /// The name servers say that there is none.
    #[error("{0} has no address")]
    NoAddress(Box<str>),
    /// No name server answers, or none in its right mind.
    #[error("{name} cannot be resolved: {why}")]
    Failed { name: Box<str>, why: Box<str> },
    /// Too many questions wait.
    #[error("too many names are being resolved")]
    Overloaded,
}

#[derive(Clone)]
struct Known {
    until: Instant,
    addresses: Result<Arc<[IpAddr]>, ResolveError>,
}

/// Asks the pod's name servers. Shared by all workers; a question is asked on the runtime of whoever asks it.
pub struct Resolver {
    conf: Conf,
    /// On the sockets that ask; see `--mark`.
    mark: u32,
    /// The families that the pod has addresses of.
    families: Families,
    known: Mutex<HashMap<Box<str>, Known>>,
    waiting: Arc<Semaphore>,
    /// What addresses stand for, by what the pod's programs were answered.
    pub learned: Learned,
}

#[derive(Clone, Copy)]
struct Families {
    v4: bool,
    v6: bool,
}

impl Resolver {
    pub fn new(conf: PathBuf, mark: u32, pod_ips: &[IpAddr]) -> Self {
        Self {
            conf: Conf::new(conf),
            mark,
            families: Families { v4: pod_ips.iter().any(IpAddr::is_ipv4), v6: pod_ips.iter().any(IpAddr::is_ipv6) },
            known: Mutex::default(),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
            learned: Learned::default(),
        }
    }

    /// The addresses of a name (in lower case, without a dot at its end), as the name servers give them; never empty.
    pub async fn resolve(&self, name: &str) -> Result<Arc<[IpAddr]>, ResolveError> {
        if let Some(known) = self.known(name) {
            return known;
        }
        let Ok(_place) = self.waiting.try_acquire() else { return Err(ResolveError::Overloaded) };
        let (v4, v6) =
            tokio::join!(self.ask(name, message::A, self.families.v4), self.ask(name, message::AAAA, self.families.v6));
        let (addresses, ttl) = match (v4, v6) {
            (Err(why), Err(_)) => (Err(ResolveError::Failed { name: name.into(), why: why.into() }), NEGATIVE),
            (v4, v6) => {
                // One of both that fails takes nothing from the other.
                let is_whole = v4.is_ok() && v6.is_ok();
                let found: Vec<(IpAddr, u32)> = [v4, v6].into_iter().flatten().flatten().take(MAX_ADDRESSES).collect();
                let ttl = found.iter().map(|(_, ttl)| Duration::from_secs(u64::from(*ttl))).min();
                let addresses: Arc<[IpAddr]> = found.into_iter().map(|(ip, _)| ip).collect();
                match ttl {
                    Some(ttl) => (Ok(addresses), if is_whole { ttl.clamp(SHORTEST, LONGEST) } else { SHORTEST }),
                    None => (Err(ResolveError::NoAddress(name.into())), NEGATIVE),
                }
            }
        };
        self.keep(name, Known { until: Instant::now() + ttl, addresses: addresses.clone() });
        addresses
    }

    /// Whether an address at port 53 is one of the pod's name servers.
    pub fn is_server(&self, ip: IpAddr) -> bool {
        self.conf.servers().contains(&ip.to_canonical())
    }

    fn known(&self, name: &str) -> Option<Result<Arc<[IpAddr]>, ResolveError>> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(name).filter(|k| k.until > Instant::now()).map(|k| k.addresses.clone())
    }

    fn keep(&self, name: &str, known: Known) {
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_NAMES && !all.contains_key(name) {
            let now = Instant::now();
            all.retain(|_, k| k.until > now);
            if all.len() >= MAX_NAMES {
                all.clear();
            }
        }
        all.insert(name.into(), known);
    }

    /// The addresses of one family, with their times to live in seconds.
    async fn ask(&self, name: &str, kind: u16, is_wanted: bool) -> Result<Vec<(IpAddr, u32)>, String> {
        if !is_wanted {
            return Ok(vec![]);
        }
        let query = message::question(name, kind).ok_or("it is no name that can be asked for")?;
        let upstream = Upstream { servers: self.conf.servers(), mark: self.mark };
        let answer = upstream.ask(&query).await.map_err(|e| e.to_string())?;
        answer::addresses(&query, &answer)
    }

    fn upstream(&self) -> Upstream {
        Upstream { servers: self.conf.servers(), mark: self.mark }
    }
}

#[cfg(test)]
mod tests;
