//! The port that the redirect sends the pod's questions to.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use weft_core::egress::{EgressDefault, Host};

use super::{answer, message};
use crate::io::TcpSocket;
use crate::isolation::{self, Called};
use crate::worker::Shared;

/// Questions over UDP that wait at once; more are answered with a failure.
const MAX_UDP_WAITING: usize = 512;
/// Connections that are served at once.
const MAX_TCP: usize = 64;
/// Addresses of one answer that are remembered: more would push out what was learned of other hosts.
const MOST_ADDRESSES: usize = 64;
/// How long a connection may be silent.
const IDLE: Duration = Duration::from_secs(10);
/// What an answer of ours over UDP may have (RFC 1035, section 4.2.1), whatever the question says of itself: who wants more asks over TCP.
const SMALL: usize = 512;
/// What an answer over UDP may have where the question does not say otherwise (RFC 1035, section 4.2.1) is kept by the server that was asked: it has seen the
/// question as it was. This is what a datagram may carry at all.
const MAX_DATAGRAM: usize = 65_507;

/// The sockets, bound before anything is announced as ready.
struct Sockets {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
}

impl Sockets {
    /// On loopback alone, where the redirect leads. IPv6 where the machine has it.
    fn bind(port: u16) -> io::Result<Self> {
        let mut all = Self { udp: vec![], tcp: vec![] };
        for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let at = SocketAddr::new(ip, port);
            let bound = std::net::UdpSocket::bind(at).and_then(|udp| {
                udp.set_nonblocking(true)?;
                Ok((UdpSocket::from_std(udp)?, crate::io::listen(at)?))
            });
            match bound {
                Ok((udp, tcp)) => {
                    all.udp.push(udp);
                    all.tcp.push(tcp);
                }
                Err(_) if ip.is_ipv6() => {}
                Err(e) => return Err(io::Error::new(e.kind(), format!("cannot answer DNS on {at}: {e}"))),
            }
        }
        Ok(all)
    }
}

/// Answers on a thread of its own, so that a flood of questions costs connections nothing, until the process ends.
pub fn serve(shared: &Arc<Shared>) -> io::Result<()> {
    let port = shared.config.net.dns_port;
    if port == 0 {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let sockets = {
        let _guard = runtime.enter();
        Sockets::bind(port)?
    };
    let shared = shared.clone();
    std::thread::Builder::new().name("weft-dns".into()).spawn(move || {
        let local = tokio::task::LocalSet::new();
        runtime.block_on(local.run_until(run(shared, sockets)));
    })?;
    Ok(())
}

async fn run(shared: Arc<Shared>, sockets: Sockets) {
    let waiting = Rc::new(Semaphore::new(MAX_UDP_WAITING));
    for udp in sockets.udp {
        tokio::task::spawn_local(over_udp(shared.clone(), Rc::new(udp), waiting.clone()));
    }
    let slots = Rc::new(Semaphore::new(MAX_TCP));
    for tcp in sockets.tcp {
        tokio::task::spawn_local(over_tcp(shared.clone(), tcp, slots.clone()));
    }
    // The last phase of a drain: whoever still speaks may ask for names until then.
    shared.cut.cancelled().await;
    std::future::pending::<()>().await;
}

async fn over_udp(shared: Arc<Shared>, udp: Rc<UdpSocket>, waiting: Rc<Semaphore>) {
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        // An error here is the echo of an earlier answer to a port that is closed.
        let Ok((n, from)) = udp.recv_from(&mut buffer).await else {
            tokio::task::yield_now().await;
            continue;
        };
        let query = &buffer[..n];
        if !message::is_query(query) {
            continue;
        }
        if waiting.available_permits() == 0 {
            if let Some(failure) = message::failure(query) {
                let _ = udp.send_to(&failure, from).await;
            }
            continue;
        }
        let (shared, udp, waiting, query) = (shared.clone(), udp.clone(), waiting.clone(), query.to_vec());
        tokio::task::spawn_local(async move {
            let Ok(_place) = waiting.try_acquire() else { return };
            let answer = match fixed(&shared, &query) {
                Some(fixed) => Some(fixed).filter(|a| a.len() <= SMALL).or_else(|| message::truncated(&query)),
                None => {
                    let answer = shared.resolver.upstream().over_udp(&query).await;
                    told(&shared, &query, answer, true)
                }
            };
            let answer = answer.filter(|a| a.len() <= MAX_DATAGRAM).or_else(|| message::truncated(&query));
            if let Some(answer) = answer {
                let _ = udp.send_to(&answer, from).await;
            }
        });
    }
}

async fn over_tcp(shared: Arc<Shared>, listener: TcpListener, slots: Rc<Semaphore>) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (shared, slots) = (shared.clone(), slots.clone());
                tokio::task::spawn_local(async move {
                    let Ok(_slot) = slots.try_acquire() else { return };
                    let _ = connection(&shared, stream, peer).await;
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// Questions on one connection, one after another.
async fn connection(shared: &Arc<Shared>, stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
    let meant = TcpSocket::original_of(&stream, peer);
    let mut stream = stream;
    loop {
        let length = tokio::time::timeout(IDLE, stream.read_u16()).await??;
        let mut query = vec![0; usize::from(length)];
        tokio::time::timeout(IDLE, stream.read_exact(&mut query)).await??;
        if !message::is_query(&query) {
            return Ok(());
        }
        let answer = match fixed(shared, &query) {
            Some(fixed) => Some(fixed),
            None => {
                let chosen = meant.filter(|to| may_be_asked(shared, *to));
                let answer = shared.resolver.upstream().over_tcp(&query, chosen).await;
                // What somebody else says of a host is passed on, and not believed.
                let is_believed = chosen.is_none_or(|to| shared.resolver.is_server(to.ip()));
                told(shared, &query, answer, is_believed)
            }
        };
        let Some(answer) = answer else { return Ok(()) };
        let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
        tokio::time::timeout(IDLE, stream.write_all(&[&length.to_be_bytes()[..], &answer].concat())).await??;
    }
}

/// The answer to a question for a name whose addresses an external service fixes.
fn fixed(shared: &Shared, query: &[u8]) -> Option<Vec<u8>> {
    super::fixed::answer(&*shared.mesh.egress()?, query)
}

/// Whether the server that a program has chosen is asked, and not one of the pod's own: where unknown destinations are refused, no other is.
fn may_be_asked(shared: &Shared, to: SocketAddr) -> bool {
    let called = Called { address: to, pod: None, identity: None, is_known: false };
    if shared.mesh.may_call().is_err() || isolation::forbids(shared, &called).is_some() {
        return false;
    }
    let is_open =
        !shared.mesh.in_mesh(to.ip()) && shared.mesh.egress().is_none_or(|table| table.default() == EgressDefault::Allow);
    !to.ip().is_loopback() && (is_open || shared.resolver.is_server(to.ip()))
}

/// What the program is told; what it says of hosts that external services name is remembered.
fn told(shared: &Shared, query: &[u8], answered: io::Result<Vec<u8>>, is_believed: bool) -> Option<Vec<u8>> {
    match answered {
        Ok(found) => {
            if is_believed {
                learn(shared, query, &found);
            }
            Some(found)
        }
        Err(e) => {
            tracing::debug!(error = %e, "a question for a name has no answer");
            message::failure(query)
        }
    }
}

fn learn(shared: &Shared, query: &[u8], found: &[u8]) {
    let Some(table) = shared.mesh.egress() else { return };
    let Some((name, kind)) = message::question_of(query).and_then(message::name_of) else { return };
    if !message::is_standard(query) || !matches!(kind, message::A | message::AAAA) {
        return;
    }
    let Some(host) = Host::read(&name).filter(|host| table.names(host)) else { return };
    for (ip, ttl) in answer::addresses(query, found).unwrap_or_default().into_iter().take(MOST_ADDRESSES) {
        shared.resolver.learned.learn(&host, ip, ttl);
    }
}
