//! Copies of requests for somebody else (RequestMirror): sent when the request itself is over, answers thrown away.

use std::rc::Rc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;
use weft_core::protocol::MeshProtocol;
use weft_core::traffic::route::BackendTarget;

use super::attempts::{self, Request};
use super::body::{Body, Whole};
use super::caller::HttpCaller;
use super::head::RequestHead;
use super::sink::ResponseSink;
use super::treatment::Treatment;
use crate::route::Route;
use crate::worker::{self, Worker};

/// Copies that a worker has under way at the most; more are dropped.
const MOST: usize = 256;
/// How long a copy may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// Who gets a copy of one request.
#[derive(Default)]
pub struct Copies(SmallVec<[BackendTarget; 1]>);

impl Copies {
    pub fn add(&mut self, target: &BackendTarget) {
        self.0.push(target.clone());
    }

    /// Sends them. A body that was too long to keep, or did not arrive whole, is not copied: half a request is no copy.
    pub fn send(self, worker: &Rc<Worker>, version: MeshProtocol, head: &RequestHead, body: &mut Body<'_>) {
        if self.0.is_empty() {
            return;
        }
        let Some(copy) = body.copy() else {
            return worker.metrics.copies_dropped(self.0.len() as u64);
        };
        for target in self.0 {
            let BackendTarget::Service { id, port } = target else { continue };
            let service = worker.mesh().service(&id);
            let (Some(service), true) = (service, Rc::strong_count(&worker.copies) <= MOST) else {
                worker.metrics.copies_dropped(1);
                continue;
            };
            let sent = one(Rc::clone(worker), Route::Service { service, port }, version, head.clone(), copy.clone());
            let (under_way, closing) = (Rc::clone(&worker.copies), worker.shared.closing.clone());
            worker::spawn(worker, async move {
                // Nobody waits for a copy: neither does a drain.
                tokio::select! {
                    biased;
                    _ = tokio::time::timeout(PATIENCE, Box::pin(sent)) => {}
                    () = closing.cancelled() => {}
                }
                drop(under_way);
            });
        }
    }
}

/// Sends one copy, within the limits of the service that it goes to.
async fn one(worker: Rc<Worker>, route: Route, version: MeshProtocol, head: RequestHead, copy: Whole) {
    let caller = HttpCaller::outbound(worker.shared.config.net.pod_ips[0]);
    let mut body = Body::again(copy);
    let began = Instant::now();
    let treatment = Treatment::plain(&worker, &route, &head, &mut body, began);
    let Some(_place) = treatment.take_place() else { return worker.metrics.copies_dropped(1) };
    let (worker, route, caller, head, treatment) = (&worker, &route, &caller, &head, &treatment);
    let request = Request { worker, route, caller, head, upgrade: None, treatment, began };
    attempts::run(request, &mut body, &mut ResponseSink::Nowhere { version }).await;
}
