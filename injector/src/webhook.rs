//! The webhook over HTTPS: `POST /inject` with an `AdmissionReview`, and nothing else.
//!
//! Everything that a caller can make last or grow has a bound: connections, handshake, head, body, request.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use weft_core::Namespace;
use weft_core::admission;

use crate::listen::{Gate, Guest, accept};
use crate::namespaces::Namespaces;
use crate::status::{Status, plain, reply};
use crate::{Answer, InjectError, InjectorOptions, NamespaceFacts, SkipReason, Verdict, admit, namespace_of};

/// An object in etcd has at most 1.5 MiB; a review of a change holds the pod twice, and little else.
const MAX_BODY: usize = 4 << 20;
/// Values in one review at most: each may take some hundred bytes of memory, however few it has on the wire.
const MAX_VALUES: usize = 100_000;
const TOO_LARGE: (StatusCode, &str) = (StatusCode::PAYLOAD_TOO_LARGE, "a review has at most 4 MiB and 100000 values");
/// Where the webhook is.
const PATH: &str = "/inject";

/// How much a caller may ask for.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at once. A single source may have all but a quarter of them: the API server calls from one address.
    pub connections: usize,
    /// Time for a TLS handshake.
    pub handshake: Duration,
    /// Time for the head of a request, idling before it included.
    pub head: Duration,
    /// Time for the body of a request.
    pub body: Duration,
    /// Time for what is under way when the webhook stops.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 512,
            handshake: Duration::from_secs(5),
            head: Duration::from_secs(30),
            body: Duration::from_secs(10),
            drain: Duration::from_secs(10),
        }
    }
}

/// Answers reviews.
pub struct Webhook {
    /// How pods are injected.
    pub options: InjectorOptions,
    /// What is known of their namespaces.
    pub namespaces: Namespaces,
    /// Where it is counted.
    pub status: Arc<Status>,
    /// How much a caller may ask for.
    pub limits: Limits,
}

/// Serves until `stop`, then ends what is under way.
pub async fn serve(listener: TcpListener, tls: TlsAcceptor, webhook: Arc<Webhook>, stop: CancellationToken) {
    let gate = Gate::new("webhook", admission::Limits::all_but_a_quarter(webhook.limits.connections));
    webhook.status.tells_of(&gate);
    accept(listener, &gate, &stop, |stream, guest| connection(stream, guest, tls.clone(), webhook.clone(), stop.clone())).await;
}

async fn connection(stream: TcpStream, guest: Arc<Guest>, tls: TlsAcceptor, webhook: Arc<Webhook>, stop: CancellationToken) {
    let limits = webhook.limits;
    let Ok(Ok(stream)) = tokio::time::timeout(limits.handshake, tls.accept(stream)).await else {
        webhook.status.bad_handshake();
        return;
    };
    let service = service_fn(move |request| {
        let (webhook, guest) = (webhook.clone(), guest.clone());
        async move { Ok::<_, Infallible>(webhook.answer(request, &guest).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        biased;
        // A caller that breaks off, or sends what is no HTTP, is no concern of ours.
        _ = serving.as_mut() => return,
        () = stop.cancelled() => serving.as_mut().graceful_shutdown(),
    }
    let _ = tokio::time::timeout(limits.drain, serving).await;
}

impl Webhook {
    async fn answer(&self, request: Request<Incoming>, guest: &Guest) -> Response<Full<Bytes>> {
        let since = Instant::now();
        let review = match self.read(request).await {
            Ok(review) => review,
            Err((status, why)) => {
                self.status.bad_request(status);
                return plain(status, why);
            }
        };
        // Until now it was the caller who was waited for.
        let _working = guest.works();
        let name = namespace_of(&review).filter(|name| !self.options.protected.contains(name));
        let answer = match &name {
            Some(name) => self.admit(&review, name).await,
            None => admit(&review, &self.options, unasked),
        };
        self.status.reviewed(&answer.verdict, since.elapsed());
        let (verdict, reason) = answer.verdict.words();
        tracing::debug!(namespace = name.as_ref().map(ToString::to_string), verdict, reason, "review answered");
        reply(StatusCode::OK, "application/json", answer.review.to_string())
    }

    /// Decides by what is known of the namespace. The API server asks only about pods that its selectors match: where
    /// what is known says otherwise, it is older than what the API server goes by, and is asked for anew.
    async fn admit(&self, review: &Value, name: &Namespace) -> Answer {
        let known = self.namespaces.find(name).await;
        let answer = admit(review, &self.options, |_| known);
        match answer.verdict {
            Verdict::Skipped(SkipReason::NotEnabled | SkipReason::NamespaceDisabled) => {
                let now = self.namespaces.ask(name).await;
                admit(review, &self.options, |_| now)
            }
            _ => answer,
        }
    }

    /// The review that a request carries, or what is wrong with the request.
    async fn read(&self, request: Request<Incoming>) -> Result<Value, (StatusCode, &'static str)> {
        if request.uri().path() != PATH {
            return Err((StatusCode::NOT_FOUND, "there is POST /inject"));
        }
        if request.method() != Method::POST {
            return Err((StatusCode::METHOD_NOT_ALLOWED, "use POST"));
        }
        let kind = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        if !kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case("application/json") {
            return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "send application/json"));
        }
        if request.body().size_hint().lower() > MAX_BODY as u64 {
            return Err(TOO_LARGE);
        }
        let body = Limited::new(request.into_body(), MAX_BODY).collect();
        let body = match tokio::time::timeout(self.limits.body, body).await {
            Err(_) => return Err((StatusCode::REQUEST_TIMEOUT, "the body took too long")),
            Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(TOO_LARGE),
            Ok(Err(_)) => return Err((StatusCode::BAD_REQUEST, "the body broke off")),
            Ok(Ok(body)) => body.to_bytes(),
        };
        if body.iter().filter(|b| matches!(b, b'{' | b'[' | b',')).count() > MAX_VALUES {
            return Err(TOO_LARGE);
        }
        serde_json::from_slice(&body).map_err(|_| (StatusCode::BAD_REQUEST, "the body is no JSON"))
    }
}

/// For reviews whose namespace is not looked at: [`admit`] answers them without.
fn unasked(name: &Namespace) -> Result<NamespaceFacts, InjectError> {
    Err(InjectError::NamespaceUnknown { namespace: name.clone(), why: "it was not looked at".to_owned() })
}
