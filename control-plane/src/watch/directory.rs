//! A directory of manifests, followed live.
//!
//! Files are read whole, so an editor or tool should write a new file and rename it over the old one; a file that is
//! caught half-written fails to parse and is read again at its next event. A broken file keeps the last good version of its objects.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use notify::{RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::{Batch, Change, Problem, parse};
use crate::objects::{Object, ObjectKey};

/// Why the directory cannot be followed at all.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    #[error("{path} is not a directory that can be read: {why}: create it, or name another with --dir")]
    Unreadable { path: PathBuf, why: std::io::Error },
    #[error("{path} cannot be followed: {why}: raise fs.inotify.max_user_watches or max_user_instances")]
    Inotify { path: PathBuf, why: notify::Error },
}

/// Events are gathered for this long before files are read again, so that a burst costs one pass.
const GATHER: Duration = Duration::from_millis(2);
/// Everything is read again this often, in case an event was lost.
const RESCAN: Duration = Duration::from_secs(30);

/// Follows `dir` until the receiver is dropped. The first batch is the directory as it stands.
pub fn follow(dir: &Path) -> Result<mpsc::Receiver<Batch>, WatchError> {
    let unreadable = |why| WatchError::Unreadable { path: dir.to_owned(), why };
    let dir = dir.canonicalize().map_err(unreadable)?;
    std::fs::read_dir(&dir).map_err(unreadable)?;
    let (event_tx, event_rx) = std::sync::mpsc::channel();
    let mut watcher = notify::recommended_watcher(move |e: notify::Result<notify::Event>| {
        let _ = event_tx.send(e);
    })
    .and_then(|mut w| w.watch(&dir, RecursiveMode::Recursive).map(|()| w))
    .map_err(|why| WatchError::Inotify { path: dir.clone(), why })?;

    let (tx, rx) = mpsc::channel(4);
    // A thread of its own: reading files blocks.
    std::thread::Builder::new()
        .name("weft-watch".into())
        .spawn(move || {
            let mut files = Files::new(dir.clone());
            let mut batch = files.scan_all();
            let mut last_full = Instant::now();
            loop {
                if (!batch.changes.is_empty() || files.problems_changed()) && tx.blocking_send(batch).is_err() {
                    return;
                }
                batch = match next_events(&event_rx, RESCAN.saturating_sub(last_full.elapsed())) {
                    Next::Paths(paths) => files.scan(&paths),
                    Next::Everything => {
                        last_full = Instant::now();
                        // A directory that was replaced has a new inode: watch it again.
                        let _ = watcher.watch(&dir, RecursiveMode::Recursive);
                        files.scan_all()
                    }
                    Next::Gone => return,
                };
                if tx.is_closed() {
                    return;
                }
            }
        })
        .map_err(unreadable_thread)?;
    Ok(rx)
}

fn unreadable_thread(why: std::io::Error) -> WatchError {
    WatchError::Unreadable { path: PathBuf::new(), why }
}

enum Next {
    Paths(BTreeSet<PathBuf>),
    Everything,
    Gone,
}

fn next_events(events: &std::sync::mpsc::Receiver<notify::Result<notify::Event>>, wait: Duration) -> Next {
    use std::sync::mpsc::RecvTimeoutError;
    let mut paths = BTreeSet::new();
    let mut everything = false;
    let mut take = |e: notify::Result<notify::Event>, paths: &mut BTreeSet<PathBuf>| match e {
        Ok(e) if e.need_rescan() => everything = true,
        Ok(e) if e.kind.is_access() => {}
        Ok(e) => paths.extend(e.paths),
        Err(_) => everything = true,
    };
    match events.recv_timeout(wait) {
        Ok(e) => take(e, &mut paths),
        Err(RecvTimeoutError::Timeout) => return Next::Everything,
        Err(RecvTimeoutError::Disconnected) => return Next::Gone,
    }
    let deadline = Instant::now() + GATHER;
    while let Ok(e) = events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        take(e, &mut paths);
    }
    if everything { Next::Everything } else { Next::Paths(paths) }
}

/// What was read from each file. Pure but for the reading.
struct Files {
    root: PathBuf,
    by_path: BTreeMap<PathBuf, File>,
    /// What the model was told stands.
    told: BTreeMap<ObjectKey, Object>,
    problems: Vec<Problem>,
    problems_told: Option<Vec<Problem>>,
}

#[derive(Default)]
struct File {
    text: String,
    /// Those that can be read, and where some cannot, those that were read before.
    objects: Vec<Object>,
    problems: Vec<Problem>,
    /// Why nothing of its present text is known.
    unread: Option<Problem>,
}

impl Files {
    fn new(root: PathBuf) -> Self {
        Self { root, by_path: BTreeMap::new(), told: BTreeMap::new(), problems: vec![], problems_told: None }
    }

    fn problems_changed(&mut self) -> bool {
        let changed = self.problems_told.as_ref() != Some(&self.problems);
        self.problems_told = Some(self.problems.clone());
        changed
    }

    fn scan_all(&mut self) -> Batch {
        let (found, unreadable) = manifests(&self.root);
        self.by_path.retain(|path, _| found.contains(path));
        for path in &found {
            self.read(path);
        }
        self.batch(unreadable)
    }

    fn scan(&mut self, paths: &BTreeSet<PathBuf>) -> Batch {
        if paths.iter().any(|p| p.is_dir() || (!p.exists() && !self.by_path.contains_key(p) && !is_manifest(p))) {
            return self.scan_all();
        }
        for path in paths.iter().filter(|p| is_manifest(p)) {
            if path.exists() {
                self.read(path);
            } else {
                self.by_path.remove(path);
            }
        }
        self.batch(vec![])
    }

    fn read(&mut self, path: &Path) {
        let shown = path.strip_prefix(&self.root).unwrap_or(path).display().to_string();
        let problem = |message: String| Some(Problem { place: shown.clone(), field: String::new(), message });
        let entry = self.by_path.entry(path.to_owned()).or_default();
        match std::fs::metadata(path) {
            Ok(m) if m.len() > parse::MAX_FILE => {
                entry.unread = problem(format!("the file has {} bytes; at most {} are read: split it", m.len(), parse::MAX_FILE));
                return;
            }
            Ok(_) => {}
            // It went away between the event and now: the next event says so.
            Err(_) => return,
        }
        match std::fs::read_to_string(path) {
            Err(e) => entry.unread = problem(format!("cannot be read: {e}")),
            Ok(text) if text == entry.text && entry.unread.is_none() => {}
            Ok(text) => {
                let (mut objects, mut problems) = (Vec::new(), Vec::new());
                for part in parse::parse_each(&shown, &text) {
                    match part.object {
                        Ok(object) => objects.push(object),
                        Err(problem) => problems.push(problem),
                    }
                }
                // What cannot be read may be any of those that were here.
                if !problems.is_empty() {
                    let named: BTreeSet<ObjectKey> = objects.iter().map(Object::key).collect();
                    objects.extend(entry.objects.drain(..).filter(|before| !named.contains(&before.key())));
                }
                *entry = File { text, objects, problems, unread: None };
            }
        }
    }

    /// The difference between what stands in the files and what the model was told.
    fn batch(&mut self, mut problems: Vec<Problem>) -> Batch {
        let mut now: BTreeMap<ObjectKey, &Object> = BTreeMap::new();
        for (path, file) in &self.by_path {
            problems.extend(file.problems.iter().chain(&file.unread).cloned());
            for object in &file.objects {
                match now.entry(object.key()) {
                    Entry::Vacant(free) => {
                        free.insert(object);
                    }
                    Entry::Occupied(held) => problems.push(Problem {
                        place: path.strip_prefix(&self.root).unwrap_or(path).display().to_string(),
                        field: "metadata.name".into(),
                        message: format!(
                            "{} stands in an earlier file as well; this one is ignored: remove one of them",
                            held.key()
                        ),
                    }),
                }
            }
        }
        let mut changes: Vec<Change> = self.told.keys().filter(|k| !now.contains_key(k)).cloned().map(Change::Delete).collect();
        changes.extend(now.iter().filter(|(k, o)| self.told.get(k) != Some(o)).map(|(_, o)| Change::Upsert((*o).clone())));
        for change in &changes {
            match change {
                Change::Upsert(o) => self.told.insert(o.key(), o.clone()),
                Change::Delete(k) => self.told.remove(k),
            };
        }
        problems.sort();
        self.problems.clone_from(&problems);
        Batch { changes, problems, complete: true }
    }
}

/// The files that are read of a directory and of those in it, and what of it cannot be read.
pub fn manifests(dir: &Path) -> (BTreeSet<PathBuf>, Vec<Problem>) {
    let (mut found, mut problems) = (BTreeSet::new(), Vec::new());
    collect(dir, &mut found, &mut problems, 0);
    (found, problems)
}

fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().and_then(|n| n.to_str()).is_none_or(|n| n.starts_with('.') || n.ends_with('~'));
    !hidden && path.extension().and_then(|e| e.to_str()).is_some_and(|e| matches!(e, "yaml" | "yml" | "json"))
}

fn collect(dir: &Path, found: &mut BTreeSet<PathBuf>, problems: &mut Vec<Problem>, depth: u8) {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) => {
            problems.push(Problem {
                place: dir.display().to_string(),
                field: String::new(),
                message: format!("cannot be read: {e}"),
            });
            return;
        }
    };
    for path in entries.flatten().map(|e| e.path()) {
        let hidden = path.file_name().and_then(|n| n.to_str()).is_none_or(|n| n.starts_with('.'));
        if path.is_dir() && !hidden && depth < 8 {
            collect(&path, found, problems, depth + 1);
        } else if path.is_file() && is_manifest(&path) {
            found.insert(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str) -> String {
        format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{ports: [{{port: 80}}]}}\n")
    }

    #[test]
    fn a_broken_file_keeps_its_last_good_objects_and_is_reported() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a.yaml");
        std::fs::write(&path, service("web")).expect("write");
        let mut files = Files::new(dir.path().to_owned());
        assert_eq!(files.scan_all().changes.len(), 1);

        std::fs::write(&path, "apiVersion: v1\nkind: Service\n").expect("write");
        let batch = files.scan(&[path.clone()].into());
        assert_eq!(batch.changes, []);
        assert_eq!(batch.problems.len(), 1);
        assert!(batch.problems[0].place.starts_with("a.yaml:"), "{}", batch.problems[0]);

        std::fs::write(&path, service("shop-window")).expect("write");
        let batch = files.scan(&[path.clone()].into());
        assert_eq!((batch.changes.len(), batch.problems.len()), (2, 0));

        std::fs::remove_file(&path).expect("remove");
        let batch = files.scan(&[path].into());
        assert!(matches!(batch.changes[..], [Change::Delete(_)]));
    }

    #[test]
    fn what_is_wrong_with_one_document_holds_up_no_other() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("a.yaml");
        let broken = "apiVersion: v1\nkind: Service\nmetadata: {name: till, namespace: shop}\nspec: 5\n";
        let mut files = Files::new(dir.path().to_owned());
        std::fs::write(&path, format!("{}---\n{broken}---\n{}", service("web"), service("book"))).expect("write");
        let batch = files.scan_all();
        assert_eq!((batch.changes.len(), batch.problems.len()), (2, 1), "{batch:?}");
        assert_eq!((batch.problems[0].place.as_str(), batch.problems[0].field.as_str()), ("a.yaml:9", "spec"));

        // The broken one may be any that was there: it stays, and what is new comes.
        std::fs::write(&path, format!("{}---\n{broken}", service("desk"))).expect("write");
        let batch = files.scan(&[path.clone()].into());
        assert!(matches!(&batch.changes[..], [Change::Upsert(o)] if o.key().id.name.as_str() == "desk"), "{batch:?}");

        std::fs::write(&path, service("desk")).expect("write");
        let batch = files.scan(&[path].into());
        assert_eq!((batch.changes.len(), batch.problems.len()), (2, 0), "{batch:?}");
    }

    #[test]
    fn the_same_object_in_two_files_is_taken_from_the_first() {
        let dir = tempfile::tempdir().expect("temporary directory");
        for name in ["a.yaml", "b.yaml"] {
            std::fs::write(dir.path().join(name), service("web")).expect("write");
        }
        let batch = Files::new(dir.path().to_owned()).scan_all();
        assert_eq!(batch.changes.len(), 1);
        assert_eq!(batch.problems[0].place, "b.yaml");
    }

    #[tokio::test]
    async fn a_rename_over_a_file_is_seen() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut batches = follow(dir.path()).expect("a directory");
        assert!(batches.recv().await.expect("the first batch").changes.is_empty());
        let temporary = dir.path().join(".new");
        std::fs::write(&temporary, service("web")).expect("write");
        std::fs::rename(&temporary, dir.path().join("web.yaml")).expect("rename");
        let batch = batches.recv().await.expect("a change");
        assert!(matches!(batch.changes[..], [Change::Upsert(_)]), "{batch:?}");
    }
}
