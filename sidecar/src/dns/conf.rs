//! The name servers that the pod has (resolv.conf(5)).

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The file is looked at again so often at the most.
const FRESH: Duration = Duration::from_secs(5);
/// Name servers that are asked; more are left out, as by the C library.
const MAX_SERVERS: usize = 3;
/// A larger file is read so far.
const MAX_FILE: usize = 64 << 10;

/// Where the name servers are written, and what was read there last.
pub(super) struct Conf {
    path: PathBuf,
    read: Mutex<Option<(Instant, Arc<[IpAddr]>)>>,
}

impl Conf {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, read: Mutex::default() }
    }

    /// The name servers; the machine itself where none are named.
    pub(super) fn servers(&self) -> Arc<[IpAddr]> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, servers)) = &*read
            && at.elapsed() < FRESH
        {
            return servers.clone();
        }
        let bytes = std::fs::read(&self.path).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_FILE)]);
        let servers: Arc<[IpAddr]> = parse(&text).into();
        *read = Some((Instant::now(), servers.clone()));
        servers
    }
}

pub(super) fn parse(text: &str) -> Vec<IpAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        let is_server = words.next() == Some("nameserver");
        let address = words.next().filter(|_| is_server)?;
        address.split('%').next()?.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
    };
    let found: Vec<IpAddr> = text.lines().filter_map(server).take(MAX_SERVERS).collect();
    if found.is_empty() { vec![IpAddr::V4(Ipv4Addr::LOCALHOST)] } else { found }
}
