//! Connections of the pod's own that are open, by where they lead: what network policies that come later forbid is cut. So no request on a connection
//! that was asked about when it was opened is asked about again.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use weft_core::failure::Failure;
use weft_core::network_policy::Denied;

use super::{Called, forbids, is_isolated, may_call, tell_outgoing};
use crate::io::Socket;
use crate::stream::Stream;
use crate::worker::Worker;

/// One worker's connections to others.
#[derive(Default)]
pub struct Opened {
    open: RefCell<Vec<(Called, Weak<Socket>)>>,
    /// When there are more, those that have ended are looked for.
    most: Cell<usize>,
    /// The generation of the policies at which all of them were asked about last.
    asked: Cell<u64>,
}

/// Fewer than these are not looked through.
const FEW: usize = 64;

impl Opened {
    /// Notes a connection that was asked about at generation `asked` of the policies.
    ///
    /// # Errors
    ///
    /// Where the policies have changed meanwhile, and forbid it: then it is reset.
    pub fn note(&self, worker: &Worker, called: Called, stream: &Stream, asked: u64) -> Result<(), Failure> {
        if worker.mesh().generation() != asked
            && let Err(failure) = may_call(worker, &called)
        {
            stream.reset();
            return Err(failure);
        }
        let mut open = self.open.borrow_mut();
        // As many are looked at as were added since: each addition costs the same.
        if open.len() >= self.most.get().max(FEW) {
            open.retain(|(_, socket)| socket.strong_count() > 0);
            self.most.set(open.len() * 2);
        }
        open.push((called, stream.socket()));
        Ok(())
    }

    /// Cuts what the network policies in force forbid; looks once for each generation of them.
    pub fn ask_again(&self, worker: &Worker) {
        let generation = worker.mesh().generation();
        if self.asked.replace(generation) == generation || !is_isolated(worker.mesh()) {
            return;
        }
        let mut cut: Vec<(Called, Rc<Socket>, Box<Denied>)> = Vec::new();
        self.open.borrow_mut().retain(|(called, socket)| {
            let Some(socket) = socket.upgrade() else { return false };
            let Some(denied) = forbids(&worker.shared, called) else { return true };
            cut.push((called.clone(), socket, denied));
            false
        });
        for (called, socket, denied) in cut {
            let failure = tell_outgoing(worker, called.address, &denied);
            tracing::info!(to = %called.address, "connection cut, for the policy has changed: {failure}");
            worker.metrics.refused(failure.reason);
            socket.cut();
        }
    }
}
