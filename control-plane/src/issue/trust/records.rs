//! The ledger as everybody shares it, with its journal where there is a disk.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak, mpsc};
use std::{io, iter};

use tokio::sync::{Notify, oneshot};
use weft_core::service::ObjectRef;
use weft_core::wellknown::LEAF_LIFETIME_SECS;
use weft_proto::v1;
use weft_tls::LeafInfo;

use super::journal::{Entry, Journal, Opened};
use super::ledger::{Certificate, Ledger, Report, Unrecorded};
use crate::server::unix_now;

/// Anchors that a sidecar may say that it trusts; there are two while the root is rotated.
const MAX_TRUSTED: usize = 16;
/// The longest text that is taken of what a sidecar says: hashes have 64 characters, serial numbers 40 at most.
const MAX_TEXT: usize = 64;

/// Certificates that are written together, at the most.
const TOGETHER: usize = 256;

/// Who holds what, for every task.
pub struct Records {
    inner: Mutex<Inner>,
    /// What is on disk, where there is one. Whoever needs both locks this first.
    disk: Option<Mutex<Disk>>,
    /// Something is another.
    pub changed: Notify,
}

struct Inner {
    ledger: Ledger,
    /// To the thread that writes to the disk.
    writer: Option<mpsc::Sender<Pending>>,
    /// Whether what a sidecar has said counts while it is connected alone: it may say something else to another replica.
    forgets: bool,
}

struct Disk {
    journal: Journal,
    /// A gap that is not in the journal yet.
    untold: Option<Unrecorded>,
}

/// A certificate that is not on disk yet, and who waits for that.
struct Pending {
    entry: Entry,
    done: oneshot::Sender<()>,
}

/// That a certificate was issued is being recorded.
pub struct Recorded(Option<oneshot::Receiver<()>>);

impl Recorded {
    /// Resolves when it is, as well as it can be.
    ///
    /// # Errors
    ///
    /// Where nobody writes any more.
    pub async fn waited(self) -> Result<(), oneshot::error::RecvError> {
        match self.0 {
            Some(done) => done.await,
            None => Ok(()),
        }
    }

    #[cfg(test)]
    pub fn blocked(self) {
        if let Some(done) = self.0 {
            done.blocking_recv().expect("somebody writes");
        }
    }
}

impl Records {
    /// In memory alone.
    pub fn new() -> Arc<Self> {
        Self::in_memory(false)
    }

    /// In memory, of one replica among several.
    pub fn shared() -> Arc<Self> {
        Self::in_memory(true)
    }

    fn in_memory(forgets: bool) -> Arc<Self> {
        let inner = Mutex::new(Inner { ledger: Ledger::default(), writer: None, forgets });
        Arc::new(Self { inner, disk: None, changed: Notify::new() })
    }

    /// With a journal, and a thread that writes it. `fresh` says that the CA was made just now, so that nothing can have been issued before.
    ///
    /// # Errors
    ///
    /// Where there is a journal that cannot be read, or no thread.
    pub fn kept(path: &Path, fresh: bool, now: i64) -> io::Result<Arc<Self>> {
        let Opened { journal, ledger, untold } = Journal::open(path, fresh, now)?;
        let (writer, pending) = mpsc::channel();
        let inner = Mutex::new(Inner { ledger, writer: Some(writer), forgets: false });
        let disk = Some(Mutex::new(Disk { journal, untold }));
        let records = Arc::new(Self { inner, disk, changed: Notify::new() });
        let written = Arc::downgrade(&records);
        // A panic costs those who wait just then their certificates, and nobody else.
        let writes = move || while catch_unwind(AssertUnwindSafe(|| write(&written, &pending))).is_err() {};
        std::thread::Builder::new().name("weft-journal".to_owned()).spawn(writes)?;
        Ok(records)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing that holds the lock can leave it half changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known now. `read` must not block.
    pub fn read<T>(&self, read: impl FnOnce(&Ledger) -> T) -> T {
        read(&self.lock().ledger)
    }

    fn disk(&self) -> Option<MutexGuard<'_, Disk>> {
        self.disk.as_ref().map(|disk| disk.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Records a certificate that is about to be handed out: at once for everybody who asks here, and durably, where there is a journal, when what
    /// is given says so. One that cannot be written is handed out all the same, since a mesh without certificates ends: until it
    /// expires, a rotation waits for "unrecorded certificates".
    pub fn issued(&self, pod: &ObjectRef, anchor: &str, leaf: &LeafInfo) -> Recorded {
        let certificate = Certificate { serial: leaf.serial.clone(), until: leaf.not_after };
        let mut inner = self.lock();
        let recorded = inner.writer.as_ref().map(|writer| {
            let (done, recorded) = oneshot::channel();
            let entry = Entry { pod: pod.to_string(), anchor: anchor.to_owned(), certificate: certificate.clone() };
            // Where the thread is gone, whoever waits is told so. They are written in the order in which the ledger has them.
            let _ = writer.send(Pending { entry, done });
            recorded
        });
        inner.ledger.issued(pod.clone(), anchor.to_owned(), certificate);
        drop(inner);
        self.changed.notify_one();
        Recorded(recorded)
    }

    /// Writes entries down, or that there is a gap in their place.
    fn write(&self, entries: Vec<Entry>) {
        let Some(mut disk) = self.disk() else { return };
        let gap = Unrecorded {
            issued: unix_now(),
            until: entries.iter().map(|entry| entry.certificate.until).max().unwrap_or(i64::MIN),
        };
        let Err(e) = self.tell(&mut disk).and_then(|()| disk.journal.issued(entries)) else { return };
        if disk.untold.is_none() {
            tracing::warn!(error = %e, "certificates are issued without a record, and a rotation of the root waits for their end: mend the state directory");
        }
        disk.untold = Some(gap.and(disk.untold));
        self.lock().ledger.lost(gap);
        self.changed.notify_one();
    }

    /// Has everything on disk that could not be written before.
    fn tell(&self, disk: &mut Disk) -> io::Result<()> {
        disk.journal.mend(&self.lock().ledger)?;
        if let Some(gap) = disk.untold {
            disk.journal.lost(gap)?;
            disk.untold = None;
        }
        Ok(())
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
        let mut disk = match self.disk.as_ref().map(Mutex::try_lock) {
            Some(Ok(disk)) => disk,
            Some(Err(TryLockError::Poisoned(disk))) => disk.into_inner(),
            // Whoever has it writes such a gap first; this is no place to wait for a disk.
            Some(Err(TryLockError::WouldBlock)) | None => return,
        };
        if disk.untold.is_some() && self.tell(&mut disk).is_ok() {
            tracing::info!("that certificates were issued without a record is on disk now");
        }
    }

    /// Forgets what has long expired.
    pub fn purge(&self, now: i64) {
        let disk = self.disk();
        let mut inner = self.lock();
        inner.ledger.purge(now);
        if let Some(mut disk) = disk
            && let Err(e) = disk.journal.compact(&inner.ledger)
        {
            tracing::warn!(error = %e, "the record of what was issued cannot be written anew: mend the state directory");
        }
    }
}

/// Writes what comes, all that has come meanwhile together, until nobody issues any more.
fn write(records: &Weak<Records>, pending: &mpsc::Receiver<Pending>) {
    while let Ok(first) = pending.recv() {
        let Some(records) = records.upgrade() else { return };
        let others = pending.try_iter().take(TOGETHER - 1);
        let (entries, waiting): (Vec<_>, Vec<_>) = iter::once(first).chain(others).map(|p| (p.entry, p.done)).unzip();
        records.write(entries);
        for done in waiting {
            // Whoever asked may be gone.
            let _ = done.send(());
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(serial: u32) -> LeafInfo {
        LeafInfo {
            id: "spiffe://cluster.local/ns/shop/sa/web".parse().expect("valid"),
            serial: serial.to_string(),
            not_before: 0,
            not_after: 100,
            pod: None,
        }
    }

    fn pod(i: u32) -> ObjectRef {
        format!("shop/web-{i}").parse().expect("a name")
    }

    fn issue(records: &Records, many: u32) -> Vec<Recorded> {
        (0..many).map(|i| records.issued(&pod(i), "x", &leaf(i))).collect()
    }

    #[test]
    fn who_asks_waits_until_it_is_on_disk_and_many_go_there_together() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("issued");
        let records = Records::kept(&path, true, 0).expect("made");
        let lines = || std::fs::read_to_string(&path).expect("there").lines().count();
        let before = lines();
        let disk = records.disk().expect("there is one");
        let mut all = issue(&records, 100);
        assert_eq!(records.read(|ledger| ledger.holders().len()), 100, "a rotation knows of them at once");
        // Time for a thread that does not wait; with one that does, nothing here depends on it.
        std::thread::sleep(std::time::Duration::from_millis(50));
        for one in &mut all {
            let told = one.0.as_mut().expect("there is a disk").try_recv();
            assert_eq!(told, Err(oneshot::error::TryRecvError::Empty));
        }
        assert_eq!(lines(), before);
        drop(disk);
        all.remove(99).blocked();
        assert_eq!(lines(), before + 100, "they were written in their order");
        all.into_iter().for_each(Recorded::blocked);
        let again = Journal::open(&path, false, 0).expect("it can be read");
        assert_eq!(again.ledger.holders().len(), 100);
        assert_eq!((again.ledger.unrecorded(), records.read(Ledger::unrecorded)), (None, None));
    }

    #[test]
    fn what_cannot_be_written_is_handed_out_and_is_a_gap() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("issued");
        let records = Records::kept(&path, true, 0).expect("made");
        // Nothing can be appended to it, and nothing can take its place.
        let obstacle = path.with_file_name(format!(".issued.{}", std::process::id()));
        std::fs::create_dir(&obstacle).expect("made");
        records.disk().expect("there is one").journal.loses_file();
        issue(&records, 10).into_iter().for_each(Recorded::blocked);
        let gap = records.read(Ledger::unrecorded).expect("a gap");
        assert_eq!(gap.until, 100);
        assert_eq!(records.read(|ledger| ledger.holders().len()), 10, "whoever asks this process knows of them");
        std::fs::remove_dir(obstacle).expect("removed");
        records.mend();
        let again = Journal::open(&path, false, 0).expect("it can be read");
        assert_eq!((again.ledger.unrecorded(), again.ledger.holders().len()), (Some(gap), 10));
    }
}
