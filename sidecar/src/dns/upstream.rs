//! One question to the name servers, over UDP, and over TCP where that is asked for.
//!
//! Each question goes out under a random id and from a socket of its own, whose port the kernel draws; only what comes from the server that was asked,
//! under that id, and about that question is an answer.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UdpSocket;
use tokio::time::Instant;

use super::message;
use crate::identity::random;
use crate::io::Dialer;

/// How long one server may take before the next one is asked as well.
const TRY: Duration = Duration::from_millis(1500);
/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(4);
/// The largest answer over UDP that is read, in bytes: no client says that it takes more (RFC 6891, section 6.2.5).
const MAX_UDP: usize = 8192;

/// The name servers, and how they are reached.
pub(super) struct Upstream {
    pub(super) servers: Arc<[IpAddr]>,
    pub(super) mark: u32,
}

impl Upstream {
    /// The whole answer to a query of our own: over TCP where it does not fit.
    pub(super) async fn ask(&self, query: &[u8]) -> io::Result<Vec<u8>> {
        let answer = self.over_udp(query).await?;
        if message::is_truncated(&answer) { self.over_tcp(query, None).await } else { Ok(answer) }
    }

    /// The answer as the server gives it over UDP, under the query's own id.
    pub(super) async fn over_udp(&self, query: &[u8]) -> io::Result<Vec<u8>> {
        let one = async |server| tokio::time::timeout(TRY, self.udp(server, query)).await.unwrap_or_else(|_| Err(silent()));
        self.each(one).await
    }

    /// The same over TCP; `to` is asked first, where somebody meant it.
    pub(super) async fn over_tcp(&self, query: &[u8], to: Option<SocketAddr>) -> io::Result<Vec<u8>> {
        let one = async |server| tokio::time::timeout(TRY, self.tcp(server, query)).await.unwrap_or_else(|_| Err(silent()));
        match to {
            Some(to) => one(to).await,
            None => self.each(one).await,
        }
    }

    /// Asks one server after another, and again from the first while there is time.
    async fn each(&self, one: impl AsyncFn(SocketAddr) -> io::Result<Vec<u8>>) -> io::Result<Vec<u8>> {
        let end = Instant::now() + PATIENCE;
        let mut last = silent();
        for server in self.servers.iter().chain(self.servers.iter()) {
            match tokio::time::timeout_at(end, one(SocketAddr::new(*server, 53))).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(e)) => last = e,
                Err(_) => break,
            }
        }
        Err(last)
    }

    async fn udp(&self, server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
        let raw = Socket::new(Domain::for_address(server), Type::DGRAM, Some(Protocol::UDP))?;
        raw.set_nonblocking(true)?;
        if self.mark != 0 {
            raw.set_mark(self.mark)?;
        }
        // Connected, so that the kernel drops what comes from anybody else.
        raw.connect(&server.into())?;
        let socket = UdpSocket::from_std(raw.into())?;
        let asked = message::with_id(query, random() as u16);
        socket.send(&asked).await?;
        let mut buffer = vec![0; MAX_UDP];
        loop {
            let n = socket.recv(&mut buffer).await?;
            if message::answers(&asked, &buffer[..n]) && n < MAX_UDP {
                return Ok(restored(query, &buffer[..n]));
            }
        }
    }

    async fn tcp(&self, server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
        let mut stream = Dialer { mark: self.mark }.connect(server).await?;
        let asked = message::with_id(query, random() as u16);
        let length = u16::try_from(asked.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes()[..], &asked].concat()).await?;
        let length = stream.read_u16().await?;
        let mut answer = vec![0; usize::from(length)];
        stream.read_exact(&mut answer).await?;
        if !message::answers(&asked, &answer) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{server} answers another question")));
        }
        Ok(restored(query, &answer))
    }
}

/// An answer under the id that the query has.
fn restored(query: &[u8], answer: &[u8]) -> Vec<u8> {
    message::with_id(answer, message::id(query).unwrap_or_default())
}

fn silent() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no name server answers")
}
