//! What a connection speaks, without making it wait: the first bytes decide, and silence is raced.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use tokio::time::Instant;
use weft_core::detect::{Detection, detect};

use crate::stream::Stream;

/// How long "the server speaks first" is remembered for a destination.
const REMEMBER: Duration = Duration::from_secs(600);
/// Destinations that are remembered.
const MAX_REMEMBERED: usize = 4096;

/// Destinations whose server was seen to speak first: learned from server bytes only, never from a client's silence.
#[derive(Default)]
pub struct ServerFirst(HashMap<SocketAddr, Instant>);

impl ServerFirst {
    pub fn knows(&self, destination: SocketAddr) -> bool {
        self.0.get(&destination).is_some_and(|until| *until > Instant::now())
    }

    pub fn learn(&mut self, destination: SocketAddr) {
        if self.0.len() < MAX_REMEMBERED || self.0.contains_key(&destination) {
            self.0.insert(destination, Instant::now() + REMEMBER);
        }
    }

    /// A client that spoke first is evidence to the contrary.
    pub fn forget(&mut self, destination: SocketAddr) {
        self.0.remove(&destination);
    }

    pub fn sweep(&mut self) {
        let now = Instant::now();
        self.0.retain(|_, until| *until > now);
    }
}

/// The first bytes of a connection, and what they are.
pub struct FirstBytes {
    pub bytes: BytesMut,
    pub what: Detection,
}

/// Why detection ended without bytes.
pub enum NoBytes {
    /// The client was silent for the quiet time.
    Silent,
    /// The client failed without a byte.
    Gone,
}

/// How a client is listened to.
#[derive(Clone, Copy)]
pub struct Hearing {
    /// One that began to speak is opaque if it takes longer than this until it is clear what it speaks.
    pub patience: Duration,
    /// The port is declared as opaque: only a `ClientHello` is told from the rest.
    pub opaque: bool,
}

/// Reads until it is clear what the client speaks. `quiet` bounds the wait for the first byte; none waits for ever.
pub async fn first_bytes(stream: &Stream, quiet: Option<Duration>, hearing: Hearing) -> Result<FirstBytes, NoBytes> {
    let read = stream.read_some();
    let first = match quiet {
        Some(quiet) => tokio::time::timeout(quiet, read).await.map_err(|_| NoBytes::Silent)?,
        None => read.await,
    };
    classify(stream, first, hearing).await
}

/// The type of a TLS record that carries a handshake (RFC 8446, section 5.1).
const CLIENT_HELLO: u8 = 0x16;

/// Goes on from a first read.
async fn classify(stream: &Stream, first: std::io::Result<BytesMut>, hearing: Hearing) -> Result<FirstBytes, NoBytes> {
    let mut bytes = first.map_err(|_| NoBytes::Gone)?;
    if bytes.is_empty() {
        // It ended its half at once: it may wait for what the server says all the same.
        return Ok(FirstBytes { bytes, what: Detection::Opaque });
    }
    if hearing.opaque && bytes[0] != CLIENT_HELLO {
        return Ok(FirstBytes { bytes, what: Detection::Opaque });
    }
    let deadline = Instant::now() + hearing.patience;
    loop {
        match detect(&bytes) {
            Detection::More => {}
            what => return Ok(FirstBytes { bytes, what }),
        }
        match tokio::time::timeout_at(deadline, stream.read_some()).await {
            Ok(Err(_)) => return Err(NoBytes::Gone),
            // It stalls, or ended its half, after some bytes: they are all that there is, and may be the beginning of HTTP.
            Err(_) => return Ok(FirstBytes { bytes, what: Detection::More }),
            Ok(Ok(more)) if more.is_empty() => return Ok(FirstBytes { bytes, what: Detection::More }),
            Ok(Ok(more)) => bytes.extend_from_slice(&more),
        }
    }
}

/// Who spoke first on a connection whose upstream was opened as opaque.
pub enum Spoke {
    /// The server, if it did not just end; its words are there to be read again.
    Server { greeted: bool },
    /// The client; its words are taken out.
    Client(Result<FirstBytes, NoBytes>),
    /// Neither: the upstream failed.
    UpstreamFailed,
}

/// Waits for the first word from either side.
pub async fn race(client: &Stream, upstream: &Stream, hearing: Hearing) -> Spoke {
    tokio::select! {
        biased;
        read = upstream.read_some() => match read {
            Ok(greeting) => {
                let greeted = !greeting.is_empty();
                if greeted {
                    upstream.unread(greeting.freeze());
                }
                Spoke::Server { greeted }
            }
            Err(_) => Spoke::UpstreamFailed,
        },
        read = client.read_some() => Spoke::Client(classify(client, read, hearing).await),
    }
}
