//! Names outside of the mesh: a stub resolver that asks the pod's own name servers, and the port that answers the pod's programs where the redirect
//! captures what they ask.
//!
//! What is captured is passed on and back byte for byte, but for the id; but for names whose addresses an external service fixes, which are answered here.
//! Of answers about hosts that an external service names, the addresses are
//! remembered, so that bytes to them are known by the host that was meant.

pub mod answer;
mod conf;
mod fixed;
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
use weft_core::failure::Reason;

pub use learned::Learned;
pub use server::serve;

use answer::NoAnswer;
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
    /// The name servers say that there is no such name (NXDOMAIN).
    #[error("the name servers say that {0} does not exist")]
    NotFound(Box<str>),
    /// The name is there, without addresses.
    #[error("{0} exists, and has no address")]
    NoAddress(Box<str>),
    /// It has addresses that the pod cannot dial.
    #[error("{name} has {has} addresses alone, and the pod has none of {has}")]
    OtherFamily { name: Box<str>, has: &'static str },
    /// No name server answers.
    #[error("no name server answered for {0} in time")]
    Silent(Box<str>),
    /// No name server is in its right mind, or none wants to say.
    #[error("{name} cannot be resolved: {why}")]
    Failed { name: Box<str>, why: Box<str> },
    /// Too many questions wait.
    #[error("too many names are being resolved")]
    Overloaded,
}

impl ResolveError {
    /// What the caller is told.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NotFound(_) => Reason::NameNotFound,
            Self::NoAddress(_) | Self::OtherFamily { .. } => Reason::NameWithoutAddress,
            Self::Silent(_) => Reason::NameServerSilent,
            Self::Failed { .. } => Reason::NameServerFailed,
            Self::Overloaded => Reason::Overloaded,
        }
    }
}

/// Addresses of one family, with their times to live in seconds.
type Found = Vec<(IpAddr, u32)>;

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
        // One of both that fails takes nothing from the other.
        let is_whole = v4.is_ok() && v6.is_ok();
        let (addresses, ttl) = match settled(name, v4, v6) {
            Ok(found) => {
                let found: Found = found.into_iter().take(MAX_ADDRESSES).collect();
                let ttl = found.iter().map(|(_, ttl)| Duration::from_secs(u64::from(*ttl))).min().unwrap_or_default();
                let addresses: Arc<[IpAddr]> = found.into_iter().map(|(ip, _)| ip).collect();
                (Ok(addresses), if is_whole { ttl.clamp(SHORTEST, LONGEST) } else { SHORTEST })
            }
            Err(ResolveError::NoAddress(_)) => (Err(self.without(name).await), NEGATIVE),
            Err(why) => (Err(why), NEGATIVE),
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

    /// Why a name has no address of a family that the pod has: the other one is asked for, only to tell.
    async fn without(&self, name: &str) -> ResolveError {
        let (kind, has) = if self.families.v4 { (message::AAAA, "IPv6") } else { (message::A, "IPv4") };
        let is_other = !(self.families.v4 && self.families.v6);
        match self.ask(name, kind, is_other).await {
            Ok(found) if !found.is_empty() => ResolveError::OtherFamily { name: name.into(), has },
            _ => ResolveError::NoAddress(name.into()),
        }
    }

    async fn ask(&self, name: &str, kind: u16, is_wanted: bool) -> Result<Found, NoAnswer> {
        if !is_wanted {
            return Ok(vec![]);
        }
        let failed = |why: &str| NoAnswer::Failed(why.to_owned());
        let query = message::question(name, kind).ok_or_else(|| failed("it is no name that can be asked for"))?;
        let upstream = Upstream { servers: self.conf.servers(), mark: self.mark };
        let answer = upstream.ask(&query).await.map_err(|e| match e.kind() {
            std::io::ErrorKind::TimedOut => NoAnswer::Silent,
            _ => failed(&e.to_string()),
        })?;
        answer::addresses(&query, &answer)
    }

    fn upstream(&self) -> Upstream {
        Upstream { servers: self.conf.servers(), mark: self.mark }
    }
}

/// What both families say together. That a name does not exist holds for both; where one has nothing and the other one no answer, nothing is known.
fn settled(name: &str, v4: Result<Found, NoAnswer>, v6: Result<Found, NoAnswer>) -> Result<Found, ResolveError> {
    let (mut found, mut why) = (Vec::new(), None);
    for each in [v4, v6] {
        match (each, &why) {
            (Ok(some), _) => found.extend(some),
            (Err(no), None | Some(NoAnswer::Silent | NoAnswer::Failed(_))) => why = Some(no),
            (Err(_), Some(NoAnswer::NotFound)) => {}
        }
    }
    if !found.is_empty() {
        return Ok(found);
    }
    Err(match why {
        None => ResolveError::NoAddress(name.into()),
        Some(NoAnswer::NotFound) => ResolveError::NotFound(name.into()),
        Some(NoAnswer::Silent) => ResolveError::Silent(name.into()),
        Some(NoAnswer::Failed(why)) => ResolveError::Failed { name: name.into(), why: why.into() },
    })
}

#[cfg(test)]
mod tests;
