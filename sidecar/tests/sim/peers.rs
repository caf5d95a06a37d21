//! The programs at both ends: strict about where a message ends, so that one that is cut short is never taken for whole.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::spawn_local;
use tokio::time::sleep;
use weft_sidecar::io::{Host, Socket};
use weft_sidecar::pool::Buffers;
use weft_sidecar::stream::{Shared as Peer, Stream};

/// Random numbers of a test's own (xorshift64*).
pub(crate) struct Random(Cell<u64>);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Cell::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1))
    }

    /// A number below `n`, which is not 0.
    pub(crate) fn below(&self, n: u64) -> u64 {
        let mut x = self.0.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.0.set(x);
        (x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % n
    }

    pub(crate) fn one_of<T: Copy>(&self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// The bytes that belong to a number: whoever has it can check them.
pub(crate) fn payload(id: u64, len: u64) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(31) + (i >> 8) + id.wrapping_mul(7)) as u8).collect()
}

/// Serves each connection to a port of a host's with a task of its own.
pub(crate) fn serve<F: Future<Output = ()> + 'static>(host: &Host, port: u16, each: impl Fn(Peer) -> F + 'static) {
    let mut listener = host.listen(port);
    spawn_local(async move {
        loop {
            let socket = Socket::Memory(listener.accept().await);
            spawn_local(each(Peer(Rc::new(Stream::plain(socket, Buffers::default())))));
        }
    });
}

/// What an application was asked.
#[derive(Default)]
pub(crate) struct Seen {
    /// How often each request arrived whole.
    pub(crate) requests: RefCell<BTreeMap<u64, u32>>,
    /// Who called, as the sidecar says.
    pub(crate) callers: RefCell<BTreeSet<String>>,
}

impl Seen {
    fn note(&self, id: u64, caller: &str) {
        *self.requests.borrow_mut().entry(id).or_default() += 1;
        self.callers.borrow_mut().insert(caller.to_owned());
    }

    pub(crate) fn times(&self, id: u64) -> u32 {
        self.requests.borrow().get(&id).copied().unwrap_or_default()
    }
}

/// A request or response, whole.
pub(crate) struct Message {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Message {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let mut fields = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    /// A request's target or a response's status.
    fn second_word(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    pub(crate) fn status(&self) -> u16 {
        self.second_word().parse().expect("a status")
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.field(name).map(|value| value.parse().expect("a number"))
    }
}

/// One end of an HTTP/1 connection.
pub(crate) struct Conversation {
    pub(crate) peer: Peer,
    buf: Vec<u8>,
}

impl Conversation {
    pub(crate) fn new(peer: Peer) -> Self {
        Self { peer, buf: Vec::new() }
    }

    /// Sends; what goes wrong shows in the answer.
    pub(crate) async fn say(&mut self, bytes: &[u8]) {
        let _ = self.peer.write_all(bytes).await;
    }

    /// The next answer, or none if it broke off.
    pub(crate) async fn answer(&mut self) -> Option<Message> {
        self.message(true).await.ok()
    }

    /// Everything up to a proper end.
    pub(crate) async fn rest(&mut self) -> io::Result<Vec<u8>> {
        self.peer.read_to_end(&mut self.buf).await?;
        Ok(std::mem::take(&mut self.buf))
    }

    async fn until(&mut self, mark: &[u8]) -> io::Result<Vec<u8>> {
        loop {
            if let Some(at) = self.buf.windows(mark.len()).position(|w| w == mark) {
                return Ok(self.buf.drain(..at + mark.len()).collect());
            }
            if self.peer.read_buf(&mut self.buf).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn exactly(&mut self, n: usize) -> io::Result<Vec<u8>> {
        while self.buf.len() < n {
            if self.peer.read_buf(&mut self.buf).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.buf.drain(..n).collect())
    }

    async fn chunks(&mut self) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        loop {
            let line = self.until(b"\r\n").await?;
            let size = String::from_utf8_lossy(&line);
            let size = usize::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
            body.extend(self.exactly(size).await?);
            if self.exactly(2).await? != b"\r\n" {
                return Err(io::ErrorKind::InvalidData.into());
            }
            if size == 0 {
                return Ok(body);
            }
        }
    }

    pub(crate) async fn message(&mut self, response: bool) -> io::Result<Message> {
        let head = String::from_utf8(self.until(b"\r\n\r\n").await?).map_err(io::Error::other)?;
        let mut message = Message { head, body: Vec::new() };
        message.body = match (message.number("content-length"), message.field("transfer-encoding").is_some()) {
            (Some(n), _) => self.exactly(n as usize).await?,
            (None, true) => self.chunks().await?,
            (None, false) if response => self.rest().await?,
            (None, false) => Vec::new(),
        };
        Ok(message)
    }
}

/// A request with this request line and number, and as many of the number's bytes as it is to upload.
pub(crate) fn request(line: &str, id: u64, upload: Option<u64>, chunked: bool) -> Vec<u8> {
    let mut out = format!("{line}\r\nhost: api\r\nx-id: {id}\r\n").into_bytes();
    match upload.map(|len| payload(id, len)) {
        None => out.extend(b"\r\n"),
        Some(body) if chunked => {
            out.extend(format!("x-upload: {}\r\ntransfer-encoding: chunked\r\n\r\n", body.len()).bytes());
            for piece in body.chunks(100) {
                out.extend(format!("{:x}\r\n", piece.len()).bytes());
                out.extend(piece);
                out.extend(b"\r\n");
            }
            out.extend(b"0\r\n\r\n");
        }
        Some(body) => {
            out.extend(format!("x-upload: {0}\r\ncontent-length: {0}\r\n\r\n", body.len()).bytes());
            out.extend(body);
        }
    }
    out
}

const UNTIL_CLOSE: &[u8] = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n";

/// An application that speaks HTTP/1.1. The target says how it answers: `/HOW/N`.
pub(crate) async fn http1_application(peer: Peer, seen: Rc<Seen>) {
    let mut client = Conversation::new(peer);
    while let Ok(request) = client.message(false).await {
        let id = request.number("x-id").unwrap_or_default();
        seen.note(id, request.field("weft-client-id").unwrap_or_default());
        let mut path = request.second_word().split('/').skip(1);
        let how = path.next().unwrap_or_default();
        let n = path.next().and_then(|n| n.parse().ok()).unwrap_or_default();
        let body = payload(id, n);
        let sound = request.body == payload(id, request.number("x-upload").unwrap_or_default());
        match how {
            _ if !sound => client.say(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await,
            "slow" => {
                sleep(Duration::from_millis(n)).await;
                client.say(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            }
            "chunked" => {
                client.say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
                for piece in body.chunks(300) {
                    sleep(Duration::from_millis(1)).await;
                    client.say(&[format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat()).await;
                }
                client.say(b"0\r\n\r\n").await;
            }
            // Until it closes: only a proper end says that it is whole.
            "close" => {
                client.say(&[UNTIL_CLOSE, &body[..]].concat()).await;
                return;
            }
            // Half of it, and then a reset.
            "reset" => {
                client.say(&[UNTIL_CLOSE, &body[..body.len() / 2]].concat()).await;
                sleep(Duration::from_millis(1)).await;
                return client.peer.0.reset();
            }
            // Half of it, and then nothing.
            "stuck" => {
                client.say(&[UNTIL_CLOSE, &body[..body.len() / 2]].concat()).await;
                let _ = client.rest().await;
                return;
            }
            _ => {
                client.say(&[format!("HTTP/1.1 200 OK\r\ncontent-length: {n}\r\n\r\n").as_bytes(), &body[..]].concat()).await;
            }
        }
    }
}

/// An application that speaks HTTP/2: each answer comes in pieces, with a trailer.
pub(crate) async fn http2_application(peer: Peer, seen: Rc<Seen>) {
    let Ok(mut connection) = h2::server::handshake(peer).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        let field = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let id = field("x-id").parse().expect("a number");
        seen.note(id, field("weft-client-id"));
        let body = payload(id, request.uri().path().trim_start_matches('/').parse().expect("a number"));
        spawn_local(async move {
            let Ok(mut stream) = respond.send_response(http::Response::new(()), false) else { return };
            for piece in body.chunks(700) {
                sleep(Duration::from_millis(1)).await;
                if stream.send_data(Bytes::copy_from_slice(piece), false).is_err() {
                    return;
                }
            }
            let trailers = [(http::HeaderName::from_static("x-done"), http::HeaderValue::from_static("yes"))];
            let _ = stream.send_trailers(trailers.into_iter().collect());
        });
    }
}

/// One HTTP/2 exchange: status, `weft-error`, body, and whether the trailer came.
pub(crate) async fn http2_call(
    send: SendRequest<Bytes>,
    id: u64,
    n: u64,
) -> Result<(u16, Option<String>, Vec<u8>, bool), h2::Error> {
    let mut send = send.ready().await?;
    let request = http::Request::get(format!("http://api/{n}")).header("x-id", id).body(()).expect("a valid request");
    let response = send.send_request(request, true)?.0.await?;
    let status = response.status().as_u16();
    let error = response.headers().get("weft-error").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let mut stream = response.into_body();
    let mut body = Vec::new();
    while let Some(piece) = stream.data().await {
        let piece = piece?;
        stream.flow_control().release_capacity(piece.len())?;
        body.extend_from_slice(&piece);
    }
    let trailers = stream.trailers().await?;
    Ok((status, error, body, trailers.is_some_and(|t| t.contains_key("x-done"))))
}
