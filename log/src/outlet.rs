//! A way out for lines whose reader may be slow or gone: a thread of its own writes them, and what does not fit into the room before it is dropped and counted. Nobody who
//! has a line to tell ever waits.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

/// Whole lines, and how many they are.
type Piece = (Vec<u8>, u64);

/// What a piece costs beside its bytes.
const OF_ONE: usize = 64;

/// Bytes that wait, and lines that were dropped.
#[derive(Debug, Default)]
struct Room {
    waiting: AtomicUsize,
    dropped: AtomicU64,
    /// Memory of pieces that were written.
    empty: Mutex<Vec<Vec<u8>>>,
}

/// Empty pieces that are kept, and the least and the most that such a one has room for: memory that is new to the process costs as much as what is done with it, where it is much.
const EMPTY: usize = 2;
const KEPT: std::ops::RangeInclusive<usize> = 4 * 1024..=1024 * 1024;

impl Room {
    fn empty(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.empty.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, mut piece: Vec<u8>) {
        let mut empty = self.empty();
        if empty.len() < EMPTY && KEPT.contains(&piece.capacity()) {
            piece.clear();
            empty.push(piece);
        }
    }
}

/// See above. Clones lead to the same thread.
#[derive(Clone, Debug)]
pub struct Outlet {
    room: Arc<Room>,
    /// None once it was closed. Held for as long as it takes to put a piece into a queue that is never full.
    way: Arc<Mutex<Option<Sender<Piece>>>>,
    ended: Arc<Mutex<Receiver<()>>>,
    most: usize,
}

impl Outlet {
    /// One that writes to `out`, by a thread of this name, and keeps `most` bytes that wait. With `tells`, it says how many lines were dropped once there is room again.
    pub fn new(name: &str, most: usize, tells: bool, mut out: impl Write + Send + 'static) -> io::Result<Self> {
        let (way, pieces) = channel::<Piece>();
        let (living, ended) = channel::<()>();
        let room = Arc::new(Room::default());
        let writer = room.clone();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _living = living;
            let mut told = 0;
            for (bytes, lines) in pieces {
                if out.write_all(&bytes).and_then(|()| out.flush()).is_err() {
                    writer.dropped.fetch_add(lines, Relaxed);
                    told += lines;
                }
                writer.waiting.fetch_sub(bytes.len() + OF_ONE, Relaxed);
                writer.keep(bytes);
                let dropped = writer.dropped.load(Relaxed);
                if tells && dropped > told {
                    let _ = writeln!(out, "lines that were dropped here, for nobody read them in time: {}", dropped - told);
                    told = dropped;
                }
            }
        })?;
        Ok(Self { room, way: Arc::new(Mutex::new(Some(way))), ended: Arc::new(Mutex::new(ended)), most })
    }

    /// Gives whole lines to the thread, or drops and counts them where there is no room.
    pub fn send(&self, bytes: Vec<u8>, lines: u64) {
        let size = bytes.len() + OF_ONE;
        let fits = self.room.waiting.fetch_add(size, Relaxed) + size <= self.most;
        let sent = fits && {
            let way = self.way.lock().unwrap_or_else(PoisonError::into_inner);
            way.as_ref().is_some_and(|way| way.send((bytes, lines)).is_ok())
        };
        if !sent {
            self.room.waiting.fetch_sub(size, Relaxed);
            self.room.dropped.fetch_add(lines, Relaxed);
        }
    }

    /// An empty piece, for who sends many lines at once.
    pub fn empty(&self) -> Vec<u8> {
        self.room.empty().pop().unwrap_or_default()
    }

    /// Lines that were dropped.
    pub fn dropped(&self) -> u64 {
        self.room.dropped.load(Relaxed)
    }

    /// Takes nothing more, and waits until all is written, but no longer than this. Says whether it was.
    pub fn close(&self, within: Duration) -> bool {
        drop(self.way.lock().unwrap_or_else(PoisonError::into_inner).take());
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        !matches!(ended.recv_timeout(within), Err(RecvTimeoutError::Timeout))
    }
}

/// One line of the log in the making: it is sent when it is dropped.
pub struct Line {
    outlet: Outlet,
    bytes: Vec<u8>,
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            self.outlet.send(std::mem::take(&mut self.bytes), 1);
        }
    }
}

impl<'a> MakeWriter<'a> for Outlet {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { outlet: self.clone(), bytes: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};

    use super::*;

    const MOST: usize = 256 * 1024;

    /// A pipe holds 64 KiB; after that, a write waits for a reader.
    #[test]
    fn a_pipe_that_nobody_reads_holds_nobody_up() {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let outlet = Outlet::new("test-outlet", MOST, true, writer).expect("a thread");
        let line = format!("{}\n", "x".repeat(999));
        // Ten times as much as there is room for.
        for _ in 0..10 * MOST / line.len() {
            outlet.make_writer().write_all(line.as_bytes()).expect("it takes everything");
        }
        assert!(outlet.dropped() > 0 && outlet.room.waiting.load(Relaxed) <= MOST);
        assert!(!outlet.close(Duration::ZERO), "there is something left, and it does not wait for it");
        let lines: Vec<String> = BufReader::new(reader).lines().map(|line| line.expect("text")).collect();
        let (told, written): (Vec<&String>, Vec<&String>) = lines.iter().partition(|line| line.starts_with("lines that"));
        assert!(told.iter().any(|line| line.ends_with(char::is_numeric)), "{told:?}");
        assert_eq!(written.len() as u64 + outlet.dropped(), 10 * MOST as u64 / line.len() as u64);
        assert!(written.iter().all(|line| line.len() == 999), "lines stay whole");
    }

    #[test]
    fn what_was_said_last_is_written_before_the_end() {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        let outlet = Outlet::new("test-outlet", MOST, false, writer).expect("a thread");
        outlet.send(b"one\n".to_vec(), 1);
        outlet.send(b"two\n".to_vec(), 1);
        assert!(outlet.close(Duration::from_secs(60)));
        outlet.send(b"three\n".to_vec(), 1);
        assert_eq!(outlet.dropped(), 1);
        let lines: Vec<String> = BufReader::new(reader).lines().map(|line| line.expect("text")).collect();
        assert_eq!(lines, ["one", "two"]);
    }
}
