//! DNS for a mesh without a cluster: service names to addresses, from the snapshot. It answers for its own domain alone and
//! forwards nothing.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use weft_core::service::ObjectRef;

use crate::hub::Hub;
use crate::snapshot::{DnsEntry, Snapshot};

/// Short, since endpoints come and go.
const TTL: u32 = 5;
/// The answer to a plain UDP query (RFC 1035, section 4.2.1); EDNS raises it.
const MAX_UDP: usize = 512;
const TCP_IDLE: Duration = Duration::from_secs(10);
const MAX_TCP: usize = 128;

/// Serves both transports on `addr` until the task is dropped.
pub async fn serve(addr: SocketAddr, domain: &str, hub: Arc<Hub>) -> anyhow::Result<()> {
    let zone = Arc::new(Zone::new(domain, hub));
    let context = |e: std::io::Error| anyhow::anyhow!("cannot serve DNS on {addr}: {e}");
    let udp = UdpSocket::bind(addr).await.map_err(context)?;
    let tcp = TcpListener::bind(addr).await.map_err(context)?;
    let for_tcp = zone.clone();
    tokio::spawn(async move {
        let slots = Arc::new(tokio::sync::Semaphore::new(MAX_TCP));
        while let Ok(slot) = slots.clone().acquire_owned().await {
            match tcp.accept().await {
                Ok((socket, _)) => {
                    let zone = for_tcp.clone();
                    tokio::spawn(async move {
                        let _ = serve_tcp(socket, &zone).await;
                        drop(slot);
                    });
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    });
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            // An error here is the echo of an earlier send to a port that is closed.
            let Ok((n, from)) = udp.recv_from(&mut buffer).await else { continue };
            if let Some(answer) = zone.answer(&buffer[..n], Some(MAX_UDP)) {
                let _ = udp.send_to(&answer, from).await;
            }
        }
    });
    Ok(())
}

async fn serve_tcp(mut socket: TcpStream, zone: &Zone) -> std::io::Result<()> {
    loop {
        let length = tokio::time::timeout(TCP_IDLE, socket.read_u16()).await??;
        let mut query = vec![0; usize::from(length)];
        tokio::time::timeout(TCP_IDLE, socket.read_exact(&mut query)).await??;
        let Some(answer) = zone.answer(&query, None) else { return Ok(()) };
        let Ok(length) = u16::try_from(answer.len()) else { return Ok(()) };
        socket.write_all(&[&length.to_be_bytes()[..], &answer].concat()).await?;
    }
}

/// Aliases of aliases that are followed.
const MAX_ALIASES: usize = 8;

/// The domain that is answered for.
pub struct Zone {
    domain: String,
    hub: Arc<Hub>,
}

impl Zone {
    pub fn new(domain: &str, hub: Arc<Hub>) -> Self {
        Self { domain: domain.trim_matches('.').to_ascii_lowercase(), hub }
    }

    /// The answer to a query, cut to `limit` bytes with the truncation bit set; none for what is no query.
    pub fn answer(&self, query: &[u8], limit: Option<usize>) -> Option<Vec<u8>> {
        let query = Message::from_vec(query).ok()?;
        let meta = &query.metadata;
        if meta.message_type != hickory_proto::op::MessageType::Query {
            return None;
        }
        let mut answer = Message::response(meta.id, meta.op_code);
        answer.metadata.recursion_desired = meta.recursion_desired;
        answer.metadata.authoritative = true;
        answer.queries.clone_from(&query.queries);
        answer.metadata.response_code = match &query.queries[..] {
            [q] if meta.op_code == OpCode::Query => match self.look_up(q.name()) {
                Answer::NotOurs => ResponseCode::Refused,
                Answer::NoSuchName => ResponseCode::NXDomain,
                Answer::Addresses(list) => {
                    answer.answers = records(q.name(), q.query_type(), &list);
                    ResponseCode::NoError
                }
                Answer::Alias(target) => {
                    answer.answers = self.chase(q.name(), q.query_type(), target);
                    ResponseCode::NoError
                }
            },
            _ => ResponseCode::NotImp,
        };
        let limit = limit.map(|l| l.max(query.edns.as_ref().map_or(0, |e| usize::from(e.max_payload()))));
        let bytes = answer.to_vec().ok()?;
        if limit.is_some_and(|l| bytes.len() > l) {
            answer.answers.clear();
            answer.metadata.truncation = true;
            return answer.to_vec().ok();
        }
        Some(bytes)
    }

    /// An alias with what it leads to, as far as that is ours: a stub resolver does not ask again (RFC 1034, section 3.6.2).
    fn chase(&self, name: &Name, kind: RecordType, target: Name) -> Vec<Record> {
        let (mut name, mut target) = (name.clone(), target);
        let mut found = Vec::new();
        for _ in 0..MAX_ALIASES {
            found.push(Record::from_rdata(name, TTL, RData::CNAME(CNAME(target.clone()))));
            match self.look_up(&target) {
                Answer::Alias(next) => name = std::mem::replace(&mut target, next),
                Answer::Addresses(list) => {
                    found.extend(records(&target, kind, &list));
                    break;
                }
                Answer::NotOurs | Answer::NoSuchName => break,
            }
        }
        found
    }

    fn look_up(&self, name: &Name) -> Answer {
        let text = name.to_ascii().trim_end_matches('.').to_ascii_lowercase();
        let Some(rest) = text.strip_suffix(&self.domain).and_then(|r| r.strip_suffix('.')) else { return Answer::NotOurs };
        let Some(rest) = rest.strip_suffix(".svc") else { return Answer::NoSuchName };
        let parts: Vec<&str> = rest.split('.').collect();
        let (pod, service, namespace) = match parts[..] {
            [service, namespace] => (None, service, namespace),
            [pod, service, namespace] => (Some(pod), service, namespace),
            _ => return Answer::NoSuchName,
        };
        let Ok(id) = format!("{namespace}/{service}").parse::<ObjectRef>() else { return Answer::NoSuchName };
        let snapshot: Arc<Snapshot> = self.hub.snapshot();
        match (snapshot.dns.get(&id).map(|e| &**e), pod) {
            (Some(DnsEntry::Addresses(list)), None) => Answer::Addresses(list.clone()),
            (Some(DnsEntry::Endpoints(list)), None) => Answer::Addresses(list.iter().map(|(_, ip)| *ip).collect()),
            (Some(DnsEntry::Endpoints(list)), Some(pod)) => {
                let of_pod: Vec<_> = list.iter().filter(|(name, _)| name.as_deref() == Some(pod)).map(|(_, ip)| *ip).collect();
                if of_pod.is_empty() { Answer::NoSuchName } else { Answer::Addresses(of_pod) }
            }
            (Some(DnsEntry::Alias(target)), None) => Name::from_ascii(target).map_or(Answer::NoSuchName, |mut n| {
                n.set_fqdn(true);
                Answer::Alias(n)
            }),
            _ => Answer::NoSuchName,
        }
    }
}

enum Answer {
    NotOurs,
    NoSuchName,
    Addresses(Vec<IpAddr>),
    Alias(Name),
}

fn records(name: &Name, kind: RecordType, list: &[IpAddr]) -> Vec<Record> {
    let data = |ip: &IpAddr| match (ip, kind) {
        (IpAddr::V4(a), RecordType::A) => Some(RData::A(A(*a))),
        (IpAddr::V6(a), RecordType::AAAA) => Some(RData::AAAA(AAAA(*a))),
        _ => None,
    };
    list.iter().filter_map(data).map(|d| Record::from_rdata(name.clone(), TTL, d)).collect()
}
