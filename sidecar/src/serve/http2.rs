//! HTTP/2 connections that are served, and the tasks that serve their requests.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use weft_core::failure::{Failure, Reason, Side};
use weft_core::protocol::MeshProtocol;

use super::{Http, end_of_waiting, idles, told};
use crate::http::body::Body;
use crate::http::forward::forward;
use crate::http::sink::ResponseSink;
use crate::http::{RequestHead, h2};
use crate::multiplex::{UNSENT, note, wake};
use crate::placed::placed;
use crate::stream::Stream;
use crate::telemetry;
use crate::worker::Worker;

/// How long a client that was told to leave may take to do so.
const LEAVING: Duration = Duration::from_secs(5);

/// Serves HTTP/2 until the client or a drain ends it.
pub async fn http2(worker: &Rc<Worker>, stream: Rc<Stream>, http: Rc<Http>) {
    // Nobody else is let in by TLS.
    let with = if stream.tls_facts().is_some() { h2::With::Sidecar } else { h2::With::Program };
    if with == h2::With::Sidecar {
        stream.bound_unsent(UNSENT);
    }
    let connection = h2::Connection::serving(with);
    let opened = |request| match request {
        Ok((head, handle)) => serve(Request { worker: Rc::clone(worker), http: Rc::clone(&http), head, handle }),
        Err(h2::Fault::Malformed(why)) => refused(worker, &http, &Failure::downstream(Reason::BadRequest).detail(why)),
        Err(h2::Fault::TooLarge) => refused(worker, &http, &Failure::downstream(Reason::HeadersTooLarge)),
    };
    let mut driven = pin!(connection.drive(&stream, opened));
    let timeouts = &worker.shared.config.timeouts;
    // One that comes while a drain has begun already is served until the second phase: whoever opened it could not know.
    let (drain, fresh) = if worker.is_draining() { (&worker.shared.closing, true) } else { (&worker.shared.draining, false) };
    let drained = async {
        drain.cancelled().await;
        end_of_waiting(std::future::ready(()), fresh && !connection.has_begun()).await;
    };
    let mut leaving = pin!(async {
        tokio::select! {
            () = drained => {}
            () = idles(|| connection.idle(), timeouts.idle) => {}
        }
        connection.leave();
        // Whoever does not answer our word, and asks nothing, has had the time to.
        tokio::time::sleep(LEAVING).await;
        idles(|| connection.idle(), LEAVING).await;
    });
    let ended = tokio::select! {
        biased;
        ended = driven.as_mut() => ended,
        () = connection.silent(timeouts.handshake) => return stream.reset(),
        () = leaving.as_mut() => {
            // What was said last goes out before it ends.
            connection.close();
            driven.await
        }
    };
    match ended {
        Err(e) if h2::is_violation(&e) => refused(worker, &http, &Failure::downstream(Reason::BadRequest).detail(e)),
        Err(e) => tracing::debug!(client = %http.caller.address, error = %e, "HTTP/2 connection ended"),
        Ok(()) => {}
    }
}

/// Tells of what was refused already: HTTP/2 says so by itself.
fn refused(worker: &Worker, http: &Http, failure: &Failure) {
    told(worker, http, failure);
    if let Some(mut note) = telemetry::malformed(worker, &http.caller, http.route.name(), MeshProtocol::Http2) {
        note.fails(failure);
    }
}

/// A request that is to be served.
struct Request {
    worker: Rc<Worker>,
    http: Rc<Http>,
    head: RequestHead,
    handle: h2::Handle,
}

impl Request {
    async fn serve(self) {
        let Self { worker, http, mut head, handle } = self;
        if handle.is_broken() {
            return;
        }
        let connection = handle.clone();
        let mut served = pin!(async {
            let mut body = Body::H2(h2::IncomingBody::new(handle.clone(), Side::Downstream));
            let route = http.route(&worker, &mut head).await;
            // A broken answer drops its stream, which resets it.
            let sink = ResponseSink::H2 { handle, head_only: head.is_head(), has_body: false, note: None };
            pin!(forward(&worker, &route, &http.caller, head, &mut body, sink)).await;
        });
        tokio::select! {
            biased;
            () = served.as_mut() => {}
            () = connection.gone() => {}
        }
    }
}

/// Tasks of one worker, each of which serves one request after the other: what a request needs is large, and is made once for many.
#[derive(Default)]
pub struct Tasks {
    idle: RefCell<Vec<Rc<Desk>>>,
}

/// Tasks that are kept while they have nothing to do: as many as are busy at once where there is much to do on few connections.
const KEPT: usize = 64;

/// Where an idle task is given its next request.
#[derive(Default)]
struct Desk {
    request: RefCell<Option<Request>>,
    waker: RefCell<Option<Waker>>,
}

/// Has a task serve a request.
fn serve(request: Request) {
    let idle = request.worker.tasks.idle.borrow_mut().pop();
    match idle {
        Some(desk) => {
            *desk.request.borrow_mut() = Some(request);
            wake(&mut desk.waker.borrow_mut());
        }
        None => drop(tokio::task::spawn_local(placed(|| attend(request)))),
    }
}

async fn attend(mut request: Request) {
    let desk = Rc::<Desk>::default();
    loop {
        let worker = Rc::clone(&request.worker);
        // Pinned as it is made: what is awaited is copied into its place, all of it.
        pin!(request.serve()).await;
        {
            let mut idle = worker.tasks.idle.borrow_mut();
            if idle.len() >= KEPT {
                return;
            }
            idle.push(Rc::clone(&desk));
        }
        // An idle task holds on to nothing.
        drop(worker);
        request = poll_fn(|cx| match desk.request.borrow_mut().take() {
            Some(request) => Poll::Ready(request),
            None => {
                note(&mut desk.waker.borrow_mut(), cx);
                Poll::Pending
            }
        })
        .await;
    }
}
