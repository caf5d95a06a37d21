//! Applications that do as a test says, over HTTP/1 and HTTP/2, and remember what they were asked.

use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{Instant, sleep};
use weft_sidecar::io::{Host, Network, Socket};
use weft_sidecar::pool::Buffers;
use weft_sidecar::stream::{Shared as Peer, Stream};

use crate::peers::Conversation;

/// The port that they listen on.
pub(crate) const PORT: u16 = 8080;

/// A request that arrived whole.
#[derive(Clone)]
pub(crate) struct Asked {
    /// How many came before it, at this backend.
    pub(crate) nth: usize,
    pub(crate) at: Instant,
    pub(crate) method: String,
    pub(crate) target: String,
    /// Names in lower case, in order.
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Asked {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The number that its caller gave it.
    pub(crate) fn id(&self) -> u64 {
        self.field("x-id").and_then(|id| id.parse().ok()).unwrap_or(u64::MAX)
    }
}

/// What a backend does with a request.
#[derive(Clone)]
pub(crate) enum Reply {
    /// Answers after a while. Over HTTP/2, a status of gRPC goes into trailers, and without a body the answer is nothing but them.
    Answer { status: u16, fields: Vec<(&'static str, String)>, body: Vec<u8>, after: Duration },
    /// Resets the connection or the stream.
    Reset,
    /// HTTP/2: refuses the stream.
    Refuse,
    /// Never answers.
    Never,
    /// HTTP/1: resets the connection in the middle of its answer.
    Cut,
    /// HTTP/1: switches protocols, and sends what it hears back.
    Switch,
}

pub(crate) fn status(status: u16) -> Reply {
    Reply::Answer { status, fields: vec![], body: format!("{status}").into_bytes(), after: Duration::ZERO }
}

/// A gRPC answer: with a message if the status is 0, else nothing but trailers.
pub(crate) fn grpc(code: u8) -> Reply {
    let body = if code == 0 { vec![0, 0, 0, 0, 1, 7] } else { vec![] };
    Reply::Answer { status: 200, fields: vec![("grpc-status", code.to_string())], body, after: Duration::ZERO }
}

impl Reply {
    pub(crate) fn after(self, wait: Duration) -> Self {
        match self {
            Self::Answer { status, fields, body, .. } => Self::Answer { status, fields, body, after: wait },
            other => other,
        }
    }

    pub(crate) fn with(mut self, name: &'static str, value: &str) -> Self {
        if let Self::Answer { fields, .. } = &mut self {
            fields.push((name, value.to_owned()));
        }
        self
    }
}

type Script = Rc<dyn Fn(&Asked) -> Reply>;

/// An application.
pub(crate) struct Backend {
    pub(crate) ip: IpAddr,
    host: Host,
    script: RefCell<Script>,
    pub(crate) seen: RefCell<Vec<Asked>>,
    /// Requests that are being answered now.
    pub(crate) busy: Cell<usize>,
    /// When callers went away before they had their answer.
    pub(crate) deserted: RefCell<Vec<Instant>>,
    /// HTTP/2 streams that a connection of its may have at once.
    pub(crate) streams: Cell<u32>,
    listening: RefCell<Option<AbortHandle>>,
}

/// Counts a request as long as it is being answered.
struct Busy<'a>(&'a Cell<usize>);

impl<'a> Busy<'a> {
    fn new(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Backend {
    /// One that listens and answers 200.
    pub(crate) fn new(network: &Network, ip: IpAddr) -> Rc<Self> {
        let backend = Rc::new(Self {
            ip,
            host: network.host(ip),
            script: RefCell::new(Rc::new(|_| status(200))),
            seen: RefCell::default(),
            busy: Cell::default(),
            deserted: RefCell::default(),
            streams: Cell::new(1_000),
            listening: RefCell::default(),
        });
        backend.up();
        backend
    }

    pub(crate) fn does(&self, script: impl Fn(&Asked) -> Reply + 'static) {
        *self.script.borrow_mut() = Rc::new(script);
    }

    /// Connections are refused. Those that are open stay.
    pub(crate) fn down(&self) {
        if let Some(listening) = self.listening.take() {
            listening.abort();
        }
    }

    /// Connections are taken.
    pub(crate) fn up(self: &Rc<Self>) {
        let mut listener = self.host.listen(PORT);
        let this = Rc::clone(self);
        let accepting = spawn_local(async move {
            loop {
                let socket = Socket::Memory(listener.accept().await);
                let peer = Peer(Rc::new(Stream::plain(socket, Buffers::default())));
                spawn_local(Rc::clone(&this).connection(peer));
            }
        });
        *self.listening.borrow_mut() = Some(accepting.abort_handle());
    }

    /// How often a request arrived.
    pub(crate) fn times(&self, id: u64) -> usize {
        self.seen.borrow().iter().filter(|a| a.id() == id).count()
    }

    pub(crate) fn count(&self) -> usize {
        self.seen.borrow().len()
    }

    fn decide(&self, method: &str, target: &str, fields: Vec<(String, String)>, body: Vec<u8>) -> Reply {
        let nth = self.seen.borrow().len();
        let asked = Asked { nth, at: Instant::now(), method: method.into(), target: target.into(), fields, body };
        let script = Rc::clone(&self.script.borrow());
        let reply = script(&asked);
        self.seen.borrow_mut().push(asked);
        reply
    }

    async fn connection(self: Rc<Self>, mut peer: Peer) {
        let mut first = [0; 3];
        if peer.read_exact(&mut first).await.is_err() {
            return;
        }
        peer.0.unread(Bytes::copy_from_slice(&first));
        if &first == b"PRI" {
            self.http2(peer).await;
        } else {
            self.http1(Conversation::new(peer)).await;
        }
    }

    async fn http1(&self, mut client: Conversation) {
        while let Ok(request) = client.message(false).await {
            let fields = request.head.lines().skip(1).filter_map(|l| l.split_once(": "));
            let fields = fields.map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned())).collect();
            let mut words = request.head.split(' ').map(str::to_owned);
            let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            let _busy = Busy::new(&self.busy);
            match self.decide(&method, &target, fields, request.body) {
                Reply::Answer { status, fields, body, after } => {
                    let mut early = [0];
                    tokio::select! {
                        biased;
                        () = sleep(after) => {}
                        read = client.peer.read(&mut early) => {
                            assert!(!matches!(read, Ok(1..)), "a byte behind a request that is not answered yet");
                            self.deserted.borrow_mut().push(Instant::now());
                            return;
                        }
                    }
                    let mut head = format!("HTTP/1.1 {status} Said\r\ncontent-length: {}\r\n", body.len());
                    for (name, value) in fields {
                        head.extend([name, ": ", &*value, "\r\n"]);
                    }
                    client.say(&[head.as_bytes(), b"\r\n", if method == "HEAD" { b"" } else { &body[..] }].concat()).await;
                }
                Reply::Reset | Reply::Refuse => return client.peer.0.reset(),
                Reply::Cut => {
                    client.say(b"HTTP/1.1 200 Said\r\ncontent-length: 10\r\n\r\nhal").await;
                    // Time for what was said to arrive.
                    sleep(Duration::from_millis(50)).await;
                    return client.peer.0.reset();
                }
                Reply::Switch => {
                    client.say(b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await;
                    let mut heard = [0; 64];
                    while let Ok(n @ 1..) = client.peer.read(&mut heard).await {
                        client.say(&heard[..n]).await;
                    }
                    return;
                }
                Reply::Never => {
                    let _ = client.rest().await;
                    self.deserted.borrow_mut().push(Instant::now());
                    return;
                }
            }
        }
        let _ = client.peer.shutdown().await;
    }

    async fn http2(self: Rc<Self>, peer: Peer) {
        let shake = h2::server::Builder::new().max_concurrent_streams(self.streams.get()).handshake(peer);
        let Ok(mut connection) = shake.await else { return };
        while let Some(Ok((request, respond))) = connection.accept().await {
            let this = Rc::clone(&self);
            spawn_local(async move { this.stream(request, respond).await });
        }
    }

    async fn stream(&self, request: http::Request<h2::RecvStream>, mut respond: SendResponse<Bytes>) {
        let (parts, mut stream) = request.into_parts();
        let mut body = Vec::new();
        while let Some(piece) = stream.data().await {
            let Ok(piece) = piece else { return };
            let _ = stream.flow_control().release_capacity(piece.len());
            body.extend_from_slice(&piece);
        }
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let mut fields: Vec<_> = parts.headers.iter().map(|(n, v)| (n.as_str().to_owned(), text(v))).collect();
        fields.extend(parts.uri.authority().map(|a| (":authority".to_owned(), a.to_string())));
        fields.extend(parts.uri.scheme_str().map(|scheme| (":scheme".to_owned(), scheme.to_owned())));
        let target = parts.uri.path_and_query().map_or("", |p| p.as_str()).to_owned();
        let _busy = Busy::new(&self.busy);
        match self.decide(parts.method.as_str(), &target, fields, body) {
            Reply::Answer { status, fields, body, after } => {
                tokio::select! {
                    biased;
                    () = sleep(after) => {}
                    _ = std::future::poll_fn(|cx| respond.poll_reset(cx)) => {
                        return self.deserted.borrow_mut().push(Instant::now());
                    }
                }
                answer(&mut respond, status, &fields, &body);
            }
            Reply::Reset | Reply::Cut | Reply::Switch => respond.send_reset(Reason::INTERNAL_ERROR),
            Reply::Refuse => respond.send_reset(Reason::REFUSED_STREAM),
            Reply::Never => {
                let _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
                self.deserted.borrow_mut().push(Instant::now());
            }
        }
    }
}

fn answer(respond: &mut SendResponse<Bytes>, status: u16, fields: &[(&'static str, String)], body: &[u8]) {
    let (mut head, mut trailers) = (http::Response::new(()), HeaderMap::new());
    *head.status_mut() = http::StatusCode::from_u16(status).expect("a status");
    for (name, value) in fields {
        let last = *name == "grpc-status" && !body.is_empty();
        let map = if last { &mut trailers } else { head.headers_mut() };
        map.append(HeaderName::from_static(name), value.parse().expect("a value"));
    }
    let Ok(mut stream) = respond.send_response(head, body.is_empty()) else { return };
    if !body.is_empty() {
        let _ = stream.send_data(Bytes::copy_from_slice(body), trailers.is_empty());
        if !trailers.is_empty() {
            let _ = stream.send_trailers(trailers);
        }
    }
}
