//! A host outside of the mesh as a destination: its addresses, and TLS where the sidecar opens it.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use weft_core::egress::{ExternalPort, Host, Listed, Resolution, Table, forbidden};
use weft_core::failure::{Failure, Reason, Retryable};
use weft_core::protocol::MeshProtocol;

use super::{Aim, tls};
use crate::connect::connect_failure;
use crate::isolation::{self, Called};
use crate::stream::Stream;
use crate::worker::Worker;

/// How long it may take to get there: to look the name up, to connect to one of its addresses, and to open TLS.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long one address may take to accept.
const CONNECT: Duration = Duration::from_secs(3);

/// A host of an external service.
#[derive(Debug)]
pub struct Outside {
    listed: Arc<Listed>,
    at: ExternalPort,
    /// The host that was named; none where the address says which is meant.
    host: Option<Host>,
    /// Where it is, if nobody else says so.
    dialled: Option<SocketAddr>,
}

// What was opened for one host is used for no other, and not once the external service is another.
impl PartialEq for Outside {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.listed, &other.listed) && (self.at, &self.host, self.dialled) == (other.at, &other.host, other.dialled)
    }
}

impl Eq for Outside {}

impl Hash for Outside {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.host, self.dialled, self.at.port).hash(state);
    }
}

impl Outside {
    /// A host that was named.
    pub fn named(listed: &Arc<Listed>, at: ExternalPort, aim: &Aim) -> Self {
        let host = if let Aim::Host(host) = aim { Some(host.clone()) } else { None };
        Self { listed: listed.clone(), at, host, dialled: None }
    }

    /// What was dialled, of which the address says what is meant.
    pub fn at(worker: &Worker, listed: &Arc<Listed>, at: ExternalPort, dialled: SocketAddr) -> Result<Self, Failure> {
        let ip = dialled.ip();
        let fixed = listed.external.endpoints().iter().find(|e| e.address.to_canonical() == ip.to_canonical());
        if fixed.is_none() {
            refuse_forbidden(worker, ip, &listed.external.id.to_string())?;
        }
        let port = fixed.and_then(|e| e.port).unwrap_or(at.target);
        Ok(Self { listed: listed.clone(), at, host: None, dialled: Some(SocketAddr::new(ip, port)) })
    }

    /// The external service by which it is reached.
    pub fn listed(&self) -> &Arc<Listed> {
        &self.listed
    }

    /// The external service, for metrics.
    pub fn name(&self) -> &Arc<str> {
        &self.listed.name
    }

    /// The host that was named, if one was.
    pub fn host(&self) -> Option<&Host> {
        self.host.as_ref()
    }

    /// Whether its TLS is mutual, with SPIFFE peers: then it rests on the sidecar's own certificate, and on the trust bundle.
    pub fn is_mutual(&self) -> bool {
        self.listed.external.is_mutual()
    }

    /// Whether the external service is the one in force.
    pub fn is_in(&self, table: Option<&Table>) -> bool {
        table.is_some_and(|table| table.holds(&self.listed))
    }

    /// For logs; a host's address is known only when it is dialled.
    pub fn address(&self) -> SocketAddr {
        self.dialled.unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), self.at.port))
    }

    /// Where it can be dialled, in the order in which that is tried; never empty.
    async fn addresses(&self, worker: &Worker) -> Result<Vec<SocketAddr>, Failure> {
        if let Some(dialled) = self.dialled {
            return Ok(vec![dialled]);
        }
        if let Resolution::Static(endpoints) = &self.listed.external.resolution {
            let is_meant = |ip: IpAddr| !matches!(&self.host, Some(Host::Address(host)) if *host != ip.to_canonical());
            let meant = endpoints.iter().filter(|e| is_meant(e.address));
            return Ok(meant.map(|e| SocketAddr::new(e.address, e.port.unwrap_or(self.at.target))).collect());
        }
        let Some(name) = self.host.as_ref().and_then(Host::name) else {
            return Err(Failure::mesh(Reason::NameUnresolved).detail("no host was named"));
        };
        let found = worker.shared.resolver.resolve(name).await.map_err(|e| Failure::mesh(e.reason()).detail(e))?;
        let (mut good, mut bad) = (Vec::new(), None);
        for ip in found.iter() {
            match refuse_forbidden(worker, *ip, name) {
                Ok(()) => good.push(SocketAddr::new(*ip, self.at.target)),
                Err(failure) => bad = Some(failure),
            }
        }
        match (good.is_empty(), bad) {
            (false, _) => Ok(good),
            (true, Some(failure)) => Err(failure),
            (true, None) => Err(Failure::mesh(Reason::NameWithoutAddress).detail(format_args!("{name} has no address"))),
        }
    }
}

/// A name that leads into the pod or the mesh would open what is closed there.
fn refuse_forbidden(worker: &Worker, ip: IpAddr, name: &str) -> Result<(), Failure> {
    let ranges = worker.mesh().ranges.load();
    match forbidden(ip, &worker.shared.config.net.pod_ips, ranges.as_ref().map(|r| r.as_slice())) {
        None => Ok(()),
        Some(why) => Err(Failure::mesh(Reason::NameUnresolved)
            .detail(format_args!("{name} leads to {ip}, which is {why}: only fixed endpoints may lead there"))),
    }
}

/// Opens a connection: to the first of the addresses that accepts, and with TLS where the external service says so, never without.
pub async fn open(worker: &Worker, outside: &Outside, protocol: MeshProtocol) -> Result<Stream, Failure> {
    // Before anything is dialled: whoever is refused anyway learns nothing.
    let opens = tls::opens(worker, outside, protocol)?;
    let mut last = None;
    for address in outside.addresses(worker).await? {
        let asked = worker.mesh().generation();
        let called = Called { address, pod: None, identity: None, is_known: false };
        if let Err(failure) = isolation::may_call(worker, &called) {
            last = Some(failure);
            continue;
        }
        let socket = match tokio::time::timeout(CONNECT, worker.connect(address, None)).await {
            Ok(Ok(socket)) => socket,
            Ok(Err(e)) => {
                last = Some(connect_failure(&e, address));
                continue;
            }
            Err(_) => {
                let failure = Failure::upstream(Reason::UpstreamConnectTimeout, Retryable::Unprocessed);
                last = Some(failure.detail(format_args!("{address} took longer than {CONNECT:?}")));
                continue;
            }
        };
        let stream = Stream::plain(socket, worker.buffers.clone());
        worker.opened.note(worker, called, &stream, asked)?;
        return match opens {
            None => Ok(stream),
            Some(opens) => opens.over(worker, stream, address).await,
        };
    }
    Err(last.unwrap_or_else(|| Failure::mesh(Reason::NameUnresolved).detail("there is no endpoint for the host")))
}
