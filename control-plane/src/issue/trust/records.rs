//! The ledger as everybody shares it, with its journal where there is a disk.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use weft_core::service::ObjectRef;
use weft_core::wellknown::LEAF_LIFETIME_SECS;
use weft_proto::v1;
use weft_tls::LeafInfo;

use super::journal::{Journal, Opened};
use super::ledger::{Certificate, Ledger, Report, Unrecorded};
use crate::server::unix_now;

/// Anchors that a sidecar may say that it trusts; there are two while the root is rotated.
const MAX_TRUSTED: usize = 16;
/// The longest text that is taken of what a sidecar says: hashes have 64 characters, serial numbers 40 at most.
const MAX_TEXT: usize = 64;

/// Who holds what, for every task.
pub struct Records {
    inner: Mutex<Inner>,
    /// Something is another.
    pub changed: Notify,
}

struct Inner {
    ledger: Ledger,
    journal: Option<Journal>,
    /// A gap that is not in the journal yet.
    untold: Option<Unrecorded>,
    /// Whether what a sidecar has said counts while it is connected alone: it may say something else to another replica.
    forgets: bool,
}

impl Records {
    /// In memory alone.
    pub fn new() -> Arc<Self> {
        Self::of(Inner { ledger: Ledger::default(), journal: None, untold: None, forgets: false })
    }

    /// In memory, of one replica among several.
    pub fn shared() -> Arc<Self> {
        Self::of(Inner { ledger: Ledger::default(), journal: None, untold: None, forgets: true })
    }

    fn of(inner: Inner) -> Arc<Self> {
        Arc::new(Self { inner: Mutex::new(inner), changed: Notify::new() })
    }

    /// With a journal. `fresh` says that the CA was made just now, so that nothing can have been issued before.
    ///
    /// # Errors
    ///
    /// Where there is a journal that cannot be read.
    pub fn kept(path: &Path, fresh: bool, now: i64) -> io::Result<Arc<Self>> {
        let Opened { journal, ledger, untold } = Journal::open(path, fresh, now)?;
        Ok(Self::of(Inner { ledger, journal: Some(journal), untold, forgets: false }))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing that holds the lock can leave it half changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known now. `read` must not block.
    pub fn read<T>(&self, read: impl FnOnce(&Ledger) -> T) -> T {
        read(&self.lock().ledger)
    }

    /// Records a certificate that is about to be handed out, durably where there is a journal. One that cannot be recorded is handed out all
    /// the same, since a mesh without certificates ends: until it expires, a rotation waits for "unrecorded certificates".
    pub fn issued(&self, pod: &ObjectRef, anchor: &str, leaf: &LeafInfo, now: i64) {
        let mut inner = self.lock();
        let Inner { ledger, journal, untold, .. } = &mut *inner;
        let certificate = Certificate { serial: leaf.serial.clone(), until: leaf.not_after };
        if let Some(journal) = journal {
            let told = tell(journal, ledger, untold);
            let written = told.and_then(|()| journal.issued(&pod.to_string(), anchor, &certificate));
            if let Err(e) = written {
                let gap = Unrecorded { issued: now, until: certificate.until };
                if untold.is_none() {
                    tracing::warn!(error = %e, "a certificate is issued without a record, and a rotation of the root waits for its end: mend the state directory");
                }
                *untold = Some(gap.and(*untold));
                ledger.lost(gap);
            }
        }
        ledger.issued(pod.clone(), anchor.to_owned(), certificate);
        drop(inner);
        self.changed.notify_one();
    }

    /// A sidecar opened a stream; it is over when the guard is dropped. A certificate without a pod in it counts for nobody.
    pub fn joined(self: &Arc<Self>, leaf: &LeafInfo) -> Option<Seat> {
        let pod = leaf.pod.clone()?;
        self.lock().ledger.joined(&pod, Certificate { serial: leaf.serial.clone(), until: leaf.not_after });
        self.changed.notify_one();
        Some(Seat { records: self.clone(), pod, said: None })
    }

    /// Writes a gap down that could not be written before, if there is one. To be called again and again: otherwise the end of the process would
    /// lose it.
    pub fn mend(&self) {
        let mut inner = self.lock();
        let Inner { ledger, journal: Some(journal), untold, .. } = &mut *inner else { return };
        if untold.is_some() && tell(journal, ledger, untold).is_ok() {
            tracing::info!("that certificates were issued without a record is on disk now");
        }
    }

    /// Forgets what has long expired.
    pub fn purge(&self, now: i64) {
        let mut inner = self.lock();
        let Inner { ledger, journal, .. } = &mut *inner;
        ledger.purge(now);
        if let Some(journal) = journal
            && let Err(e) = journal.compact(ledger)
        {
            tracing::warn!(error = %e, "the record of what was issued cannot be written anew: mend the state directory");
        }
    }
}

/// Has everything that is known on disk.
fn tell(journal: &mut Journal, ledger: &Ledger, untold: &mut Option<Unrecorded>) -> io::Result<()> {
    journal.mend(ledger)?;
    if let Some(gap) = *untold {
        journal.lost(gap)?;
        *untold = None;
    }
    Ok(())
}

/// A sidecar's place in the records, while its stream is open.
pub struct Seat {
    records: Arc<Records>,
    pod: ObjectRef,
    said: Option<v1::ServedCertificate>,
}

impl Seat {
    /// The sidecar said what it serves and trusts.
    pub fn says(&mut self, serving: &v1::ServedCertificate) {
        if self.said.as_ref() == Some(serving) {
            return;
        }
        self.said = Some(serving.clone());
        let short = |text: &str| text.chars().take(MAX_TEXT).collect::<String>();
        let report = Report {
            serial: short(&serving.serial),
            // Nobody has a certificate that is longer good than one that is issued now.
            until: serving.not_after.clamp(0, unix_now().saturating_add(LEAF_LIFETIME_SECS)),
            anchor: short(&serving.anchor),
            trusted: serving.trusted.iter().take(MAX_TRUSTED).map(|a| short(a)).collect(),
            unsaved: serving.unsaved,
        };
        self.records.lock().ledger.reported(&self.pod, report);
        self.records.changed.notify_one();
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut inner = self.records.lock();
        inner.ledger.left(&self.pod);
        if inner.forgets && inner.ledger.holders().get(&self.pod).is_some_and(|h| h.streams == 0) {
            inner.ledger.silenced(&self.pod);
        }
        drop(inner);
        self.records.changed.notify_one();
    }
}
