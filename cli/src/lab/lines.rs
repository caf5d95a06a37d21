//! What a process writes, line by line.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt};

use super::protocol::Report;
use crate::console::Source;
use crate::wire::Mailbox;

/// A longer line is passed on in pieces.
const MAX_LINE: usize = 16 * 1024;

/// Bytes to lines.
#[derive(Default)]
pub(super) struct Splitter {
    pending: Vec<u8>,
}

impl Splitter {
    /// The lines that are complete with these bytes.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut lines = Vec::new();
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            self.pending.extend_from_slice(piece);
            if piece.ends_with(b"\n") || self.pending.len() >= MAX_LINE {
                lines.extend(self.take());
            }
        }
        lines
    }

    /// What is left at the end, without an end of line.
    pub(super) fn take(&mut self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.pending);
        let line = text.trim_end_matches(['\n', '\r']).to_owned();
        let any = !self.pending.is_empty();
        self.pending.clear();
        any.then_some(line)
    }
}

/// What a process said last that a person should know if it ends.
#[derive(Clone, Default)]
pub(super) struct LastWords(Arc<Mutex<Option<String>>>);

impl LastWords {
    fn keep(&self, line: &str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(line.to_owned());
    }

    pub(super) fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Reports every line of `output` until its end.
pub(super) async fn forward<R: AsyncRead + Unpin>(mut output: R, source: Source, reports: Mailbox<Report>, last: LastWords) {
    let mut splitter = Splitter::default();
    let mut buffer = vec![0; 8 * 1024];
    loop {
        let n = output.read(&mut buffer).await.unwrap_or(0);
        let lines = if n == 0 { splitter.take().into_iter().collect() } else { splitter.feed(&buffer[..n]) };
        for line in lines {
            last.keep(&line);
            if !reports.bulk(Report::Log { source, line }).await {
                return;
            }
        }
        if n == 0 {
            return;
        }
    }
}

/// Whether a line of a daemon's log is a warning or an error, or no log line at all, as of a panic.
pub(super) fn is_alarming(line: &str) -> bool {
    let level = line.split_whitespace().find(|word| matches!(*word, "TRACE" | "DEBUG" | "INFO" | "WARN" | "ERROR"));
    !matches!(level, Some("TRACE" | "DEBUG" | "INFO"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_lines_wherever_they_are_cut() {
        let mut splitter = Splitter::default();
        assert_eq!(splitter.feed(b"one\ntw"), ["one"]);
        assert_eq!(splitter.feed(b"o\r\n\nthree"), ["two", ""]);
        assert_eq!(splitter.take().as_deref(), Some("three"));
        assert_eq!(splitter.take(), None);
        let long = vec![b'x'; MAX_LINE + 1];
        assert_eq!(splitter.feed(&long).len(), 1);
        assert_eq!(splitter.take(), None);
    }

    #[test]
    fn warnings_errors_and_panics_are_alarming() {
        assert!(!is_alarming("2025-01-01T00:00:00Z  INFO weft_sidecar: ready"));
        assert!(is_alarming("2025-01-01T00:00:00Z  WARN weft_sidecar: the control plane is away"));
        assert!(is_alarming("thread 'main' panicked at src/main.rs:1"));
    }
}
