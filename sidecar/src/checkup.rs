//! What only the sidecar can see of itself and of its pod, for `weft check` and `weft diff`: its clock beside the control plane's, the kernel's room,
//! who listens in the pod, DNS, and the way to other pods. On the owner's socket alone; nothing here is asked or measured unless somebody asks.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::body::Incoming;
use hyper::{Method, Request};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use crate::worker::Shared;

mod kernel;
mod path;

/// How long one question to DNS may take.
const LOOKUP: Duration = Duration::from_secs(3);
/// No offset is known.
const UNKNOWN: i64 = i64::MIN;

/// When the control plane was heard last, and by how much its clock was ahead of this machine's then. Written by the control thread.
#[derive(Debug)]
pub struct Heard {
    /// By [`crate::mesh::Mesh::now`], in nanoseconds; 0: never.
    at: AtomicU64,
    /// In milliseconds; [`UNKNOWN`] before a control plane has told.
    ahead: AtomicI64,
    /// Streams that were opened.
    pub streams: AtomicU64,
    /// Resources that could not be applied.
    pub rejected: AtomicU64,
}

impl Default for Heard {
    fn default() -> Self {
        let none = || AtomicU64::new(0);
        Self { at: none(), ahead: AtomicI64::new(UNKNOWN), streams: none(), rejected: none() }
    }
}

impl Heard {
    /// Something came from the control plane, `now` nanoseconds after the start.
    pub fn note(&self, now: u64) {
        self.at.store(now.max(1), Relaxed);
    }

    /// The control plane's clock said this many milliseconds since the Unix epoch; 0 says nothing.
    pub fn compare(&self, theirs: i64) {
        if theirs > 0 {
            self.ahead.store(theirs.saturating_sub(unix_millis()), Relaxed);
        }
    }

    /// How long it has been silent, in milliseconds; none where it was never heard.
    fn silent_millis(&self, now: u64) -> Option<u64> {
        let at = self.at.load(Relaxed);
        (at > 0).then(|| now.saturating_sub(at) / 1_000_000)
    }

    /// How long it has been silent, in seconds; since the start where it was never heard.
    pub fn staleness(&self, now: u64) -> f64 {
        now.saturating_sub(self.at.load(Relaxed)) as f64 / 1e9
    }

    /// By how many milliseconds its clock was ahead of this one, when it told last.
    fn ahead_millis(&self) -> Option<i64> {
        Some(self.ahead.load(Relaxed)).filter(|ahead| *ahead != UNKNOWN)
    }
}

fn unix_millis() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as i64)
}

/// What is asked.
#[derive(Debug, PartialEq, Eq)]
pub enum Question {
    /// `/check`
    Here,
    /// `/held`
    Held,
    /// `/check/path?to=IP`
    Path(Result<IpAddr, String>),
}

/// What a request asks, if it asks anything of this room.
pub fn asked(request: &Request<Incoming>) -> Option<Question> {
    if request.method() != Method::GET {
        return None;
    }
    question(request.uri().path(), request.uri().query())
}

fn question(path: &str, query: Option<&str>) -> Option<Question> {
    match path {
        "/check" => Some(Question::Here),
        "/held" => Some(Question::Held),
        "/check/path" => {
            let to = query.and_then(|q| q.strip_prefix("to=")).unwrap_or_default();
            Some(Question::Path(to.parse().map_err(|_| format!("{to:?} is no address: ask for /check/path?to=IP"))))
        }
        _ => None,
    }
}

/// The answer, or why there is none. Takes a few seconds at most.
pub async fn answer(question: Question, shared: &Shared) -> Result<Value, String> {
    match question {
        Question::Here => Ok(here(shared).await),
        Question::Held => Ok(held(shared)),
        Question::Path(to) => {
            let to = to?;
            // Nobody has this sidecar look around outside of the mesh.
            if !shared.mesh.in_mesh(to) {
                return Err(format!("{to} is outside of the mesh ranges"));
            }
            Ok(path::look(shared, to).await)
        }
    }
}

async fn here(shared: &Shared) -> Value {
    let (mesh, config) = (&shared.mesh, &shared.config);
    let identity = mesh.identity.load();
    let place = &config.identity.control_plane;
    let dns = lookup(&place.host, place.port).await;
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "now_millis": unix_millis(),
        "ready": mesh.is_ready(),
        "waiting_for": mesh.missing(),
        "pod_ips": config.net.pod_ips,
        "admin_port": config.admin.admin_port,
        "control_plane": {
            "address": place.to_string(),
            "connected": mesh.connected.load(Relaxed),
            "silent_millis": mesh.heard.silent_millis(mesh.now()),
            "ahead_millis": mesh.heard.ahead_millis(),
            "lookup": dns,
        },
        "certificate": identity.as_ref().map(|i| {
            let info = i.svid.info();
            json!({"id": info.id.to_string(), "serial": info.serial, "not_before": info.not_before, "not_after": info.not_after,
                   "anchor": i.anchor, "anchor_ends": i.anchor_ends,
                   "renewal_failing_since": mesh.renewal_failing_since.load(Relaxed)})
        }),
        "connections": {"held": shared.capacity.open(), "limit": shared.capacity.most()},
        "conntrack": kernel::conntrack(),
        "refused": kernel::refused(),
        "listening": kernel::listening(),
        "name_servers": kernel::name_servers(&config.net.resolv_conf),
    })
}

/// How a name is looked up: by the system's own way, which is the sidecar's for its control plane.
async fn lookup(host: &str, port: u16) -> Value {
    let began = Instant::now();
    let found = timeout(LOOKUP, tokio::net::lookup_host((host, port))).await;
    let why = match found {
        Ok(Ok(mut addresses)) => match addresses.next() {
            Some(_) => None,
            None => Some("its name stands for no address".to_owned()),
        },
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(format!("no answer in {} s", LOOKUP.as_secs())),
    };
    json!({"host": host, "is_name": host.parse::<IpAddr>().is_err(), "millis": began.elapsed().as_millis() as u64, "error": why})
}

/// Names with the content hashes of what is held, as the control plane gave them.
fn held(shared: &Shared) -> Value {
    let held = shared.mesh.holding.get().map(|holding| {
        let mut all: Vec<(String, String)> =
            holding.borrow().iter().filter(|r| r.version != 0).map(|r| (r.name.clone(), format!("{:016x}", r.version))).collect();
        all.sort();
        all
    });
    let list = held.unwrap_or_default().into_iter().map(|(name, version)| json!({"name": name, "version": version}));
    json!({
        "connected": shared.mesh.connected.load(Relaxed),
        "silent_millis": shared.mesh.heard.silent_millis(shared.mesh.now()),
        "resources": list.collect::<Vec<_>>(),
    })
}

/// An address with a port.
fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_those_of_this_room() {
        assert_eq!(question("/check", None), Some(Question::Here));
        assert_eq!(question("/held", None), Some(Question::Held));
        assert_eq!(question("/check/path", Some("to=10.0.0.1")), Some(Question::Path(Ok("10.0.0.1".parse().expect("good")))));
        assert!(matches!(question("/check/path", Some("to=localhost")), Some(Question::Path(Err(_)))));
        assert!(matches!(question("/check/path", None), Some(Question::Path(Err(_)))));
        assert_eq!(question("/config", None), None);
    }

    #[test]
    fn silence_and_the_other_clock_are_known_once_something_was_heard() {
        let heard = Heard::default();
        assert_eq!((heard.silent_millis(5_000_000), heard.ahead_millis()), (None, None));
        heard.note(1_000_000);
        heard.compare(0);
        assert_eq!((heard.silent_millis(5_000_000), heard.ahead_millis()), (Some(4), None));
        heard.compare(unix_millis() + 3_600_000);
        assert!(heard.ahead_millis().is_some_and(|ahead| (3_590_000..=3_600_000).contains(&ahead)));
    }
}
