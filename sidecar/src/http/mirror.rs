//! Copies of requests for somebody else (RequestMirror): sent when the request itself is over, answers thrown away.

use std::rc::Rc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;
use weft_core::protocol::MeshProtocol;
use weft_core::traffic::route::BackendTarget;

use super::attempts::{self, Request};
use super::body::Body;
use super::caller::HttpCaller;
use super::head::RequestHead;
use super::sink::ResponseSink;
use super::treatment::Treatment;
use crate::route::Route;
use crate::worker::Worker;

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

    pub fn any(&self) -> bool {
        !self.0.is_empty()
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
            let under_way = Rc::clone(&worker.copies);
            let (worker, head, copy) = (Rc::clone(worker), head.clone(), copy.clone());
            tokio::task::spawn_local(async move {
                let sent = async {
                    let route = Route::Service { service, port };
                    let caller = HttpCaller::outbound(worker.shared.config.net.pod_ips[0]);
                    let mut body = Body::again(copy);
                    let began = Instant::now();
                    let treatment = Treatment::plain(&worker, &route, &head, &mut body, began);
                    let request = Request {
                        worker: &worker,
                        route: &route,
                        caller: &caller,
                        head: &head,
                        upgrade: None,
                        treatment: &treatment,
                        began,
                    };
                    attempts::run(request, &mut body, ResponseSink::Nowhere { version }).await;
                };
                let _ = tokio::time::timeout(PATIENCE, Box::pin(sent)).await;
                drop(under_way);
            });
        }
    }
}
