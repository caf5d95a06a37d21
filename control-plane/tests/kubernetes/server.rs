//! An API server that plays a script: lists are answered in turn, watches are handed to the test.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::UnboundedReceiverStream;

type Answer = (u16, String);
/// Of a method, a path without its query, and a body.
type Other = Box<dyn Fn(&str, &str, &Value) -> Answer + Send + Sync>;

#[derive(Default)]
struct Script {
    /// Answers to lists, by resource: each once, then the last again and again.
    lists: HashMap<String, VecDeque<Answer>>,
    last: HashMap<String, Answer>,
    /// Watches that are refused, each answer once.
    refusals: HashMap<String, VecDeque<Answer>>,
    /// Watches that were opened and that the test has not taken.
    watches: HashMap<String, VecDeque<Watch>>,
    other: Option<Other>,
    asked: Vec<(String, String)>,
}

/// A watch that is open as long as this lives.
pub(crate) struct Watch {
    pub(crate) query: String,
    lines: mpsc::UnboundedSender<String>,
}

impl Watch {
    pub(crate) fn tell(&self, kind: &str, object: &Value) {
        self.lines.send(format!("{}\n", json!({"type": kind, "object": object}))).expect("the client watches");
    }
}

pub(crate) struct Server {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
    something: Arc<Notify>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (script, something) = (Arc::new(Mutex::new(Script::default())), Arc::new(Notify::new()));
        let (for_all, notify) = (script.clone(), something.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (script, notify) = (for_all.clone(), notify.clone());
                let service = service_fn(move |request| {
                    let (script, notify) = (script.clone(), notify.clone());
                    async move { Ok::<_, Infallible>(serve(request, &script, &notify).await) }
                });
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { address, script, something }
    }

    pub(crate) fn client(&self) -> kube::Client {
        let mut config = kube::Config::new(format!("http://{}", self.address).parse().expect("an address"));
        // Nothing of the machine's own trust is asked for.
        config.root_cert = Some(vec![]);
        weft_control_plane::kubernetes::client(config).expect("nothing is asked yet")
    }

    /// What the next list of a resource is answered with; where nothing was said, it is empty.
    pub(crate) fn list(&self, resource: &str, status: u16, body: String) {
        self.with(|s| s.lists.entry(resource.into()).or_default().push_back((status, body)));
    }

    /// Has the next watch of a resource refused.
    pub(crate) fn refuse(&self, resource: &str, status: u16, body: String) {
        self.with(|s| s.refusals.entry(resource.into()).or_default().push_back((status, body)));
    }

    /// Answers everything that is no list and no watch of a kind that is followed.
    pub(crate) fn answer(&self, other: impl Fn(&str, &str, &Value) -> Answer + Send + Sync + 'static) {
        self.with(|s| s.other = Some(Box::new(other)));
    }

    /// Waits for the next watch of a resource.
    pub(crate) async fn watch(&self, resource: &str) -> Watch {
        self.eventually(|s| s.watches.get_mut(resource)?.pop_front()).await
    }

    /// Waits until a method was used that often on paths that contain `part`.
    pub(crate) async fn waited_for(&self, method: &str, part: &str, times: usize) {
        let often = |s: &mut Script| s.asked.iter().filter(|(m, path)| m == method && path.contains(part)).count() >= times;
        self.eventually(|s| often(s).then_some(())).await;
    }

    /// Paths with queries that were asked for, as far as they begin so.
    pub(crate) fn asked(&self, begin: &str) -> Vec<String> {
        self.with(|s| {
            s.asked.iter().map(|(_, path)| path).filter(|p| p.starts_with(begin) && !p.contains("watch=true")).cloned().collect()
        })
    }

    fn with<T>(&self, f: impl FnOnce(&mut Script) -> T) -> T {
        f(&mut self.script.lock().expect("no one panicked"))
    }

    async fn eventually<T>(&self, mut f: impl FnMut(&mut Script) -> Option<T>) -> T {
        let found = async {
            loop {
                let changed = self.something.notified();
                if let Some(found) = self.with(&mut f) {
                    return found;
                }
                changed.await;
            }
        };
        timeout(Duration::from_secs(30), found).await.expect("in time")
    }
}

async fn serve(
    request: Request<Incoming>,
    script: &Mutex<Script>,
    something: &Notify,
) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.expect("a whole request").to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    let (path, query) = (head.uri.path().to_owned(), head.uri.query().unwrap_or_default().to_owned());
    let mut script = script.lock().expect("no one panicked");
    script.asked.push((head.method.to_string(), format!("{path}?{query}")));
    something.notify_one();
    let resource = path.rsplit('/').next().unwrap_or_default().to_owned();
    if let Some(other) = &script.other {
        return whole(other(head.method.as_str(), &path, &body));
    }
    if !query.contains("watch=true") {
        if let Some(next) = script.lists.get_mut(&resource).and_then(VecDeque::pop_front) {
            script.last.insert(resource.clone(), next);
        }
        let empty = || (200, json!({"metadata": {"resourceVersion": "1"}, "items": []}).to_string());
        return whole(script.last.get(&resource).cloned().unwrap_or_else(empty));
    }
    if let Some(refusal) = script.refusals.get_mut(&resource).and_then(VecDeque::pop_front) {
        return whole(refusal);
    }
    let (lines, told) = mpsc::unbounded_channel::<String>();
    script.watches.entry(resource).or_default().push_back(Watch { query, lines });
    let frames = UnboundedReceiverStream::new(told).map(|line| Ok(Frame::data(Bytes::from(line))));
    Response::new(StreamBody::new(frames).boxed_unsync())
}

fn whole((status, body): Answer) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    let mut response = Response::new(Full::new(Bytes::from(body)).boxed_unsync());
    *response.status_mut() = status.try_into().expect("a status");
    response
}

/// Objects by path, with versions that must be the last where one is replaced.
#[derive(Default)]
pub(crate) struct Store {
    objects: Mutex<HashMap<String, Value>>,
}

impl Store {
    pub(crate) fn answer(&self, method: &str, path: &str, body: &Value) -> Answer {
        let refusal = |code: u16, reason: &str| {
            (
                code,
                json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": "", "code": code})
                    .to_string(),
            )
        };
        let mut objects = self.objects.lock().expect("no one panicked");
        let name = body["metadata"]["name"].as_str().unwrap_or_default();
        let path = if method == "POST" { format!("{path}/{name}") } else { path.to_owned() };
        let held = objects.get(&path);
        let version = |o: &Value| o["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse::<u32>().ok()).unwrap_or(0);
        let next = match (method, held) {
            ("GET", Some(held)) => return (200, held.to_string()),
            ("GET" | "PUT", None) => return refusal(404, "NotFound"),
            ("POST", Some(_)) => return refusal(409, "AlreadyExists"),
            ("PUT", Some(held)) if version(held) != version(body) => return refusal(409, "Conflict"),
            (_, held) => held.map_or(1, |h| version(h) + 1),
        };
        let mut object = body.clone();
        object["metadata"]["resourceVersion"] = next.to_string().into();
        let answer = (if method == "POST" { 201 } else { 200 }, object.to_string());
        objects.insert(path, object);
        answer
    }
}
