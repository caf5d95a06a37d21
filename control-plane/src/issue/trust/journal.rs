//! What was issued, on disk: one line for each certificate, written durably before the certificate is handed out, so that a control plane that
//! starts again does not believe that nobody holds one.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::write_private;
use super::ledger::{Certificate, Ledger, Unrecorded};

/// Lines beyond those that are needed, after which the file is written anew.
const SLACK: usize = 4096;

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Issued {
        pod: String,
        anchor: String,
        serial: String,
        until: i64,
    },
    /// A gap in the record.
    Unrecorded {
        issued: i64,
        until: i64,
    },
}

/// The file.
pub struct Journal {
    path: PathBuf,
    file: File,
    lines: usize,
}

impl Journal {
    /// Opens the file, or makes it, and writes it anew without what has expired. `Ok` comes with what stood in it; the flag is false where
    /// there was no file, or lines of it cannot be read: then certificates may be out there that nobody knows of.
    ///
    /// # Errors
    ///
    /// Where it cannot be read or written.
    pub fn open(path: &Path, now: i64) -> io::Result<(Self, Ledger, bool)> {
        let mut ledger = Ledger::default();
        let whole = match std::fs::read_to_string(path) {
            Ok(text) => read(&text, &mut ledger),
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            Err(e) if e.kind() == io::ErrorKind::InvalidData => false,
            Err(e) => return Err(e),
        };
        ledger.purge(now);
        let (file, lines) = rewrite(path, &ledger)?;
        Ok((Self { path: path.to_owned(), file, lines }, ledger, whole))
    }

    /// Records a certificate that is about to be handed out; it is on disk when this returns.
    ///
    /// # Errors
    ///
    /// Where it could not be written.
    pub fn issued(&mut self, pod: &str, anchor: &str, certificate: &Certificate) -> io::Result<()> {
        let (serial, until) = (certificate.serial.clone(), certificate.until);
        self.append(&Line::Issued { pod: pod.to_owned(), anchor: anchor.to_owned(), serial, until })
    }

    /// Records that there is a gap.
    ///
    /// # Errors
    ///
    /// Where it could not be written.
    pub fn lost(&mut self, gap: Unrecorded) -> io::Result<()> {
        self.append(&Line::Unrecorded { issued: gap.issued, until: gap.until })
    }

    /// Writes the file anew where most of it is of the past.
    ///
    /// # Errors
    ///
    /// Where it could not be written; the old one stays.
    pub fn compact(&mut self, ledger: &Ledger) -> io::Result<()> {
        if self.lines > 2 * ledger.holders().len() + SLACK {
            (self.file, self.lines) = rewrite(&self.path, ledger)?;
        }
        Ok(())
    }

    fn append(&mut self, line: &Line) -> io::Result<()> {
        let before = self.file.metadata()?.len();
        let mut text = serde_json::to_vec(line)?;
        text.push(b'\n');
        let written = self.file.write_all(&text).and_then(|()| self.file.sync_data());
        if written.is_err() {
            // Half a line would spoil the next one.
            let _ = self.file.set_len(before);
        }
        self.lines += 1;
        written
    }
}

fn rewrite(path: &Path, ledger: &Ledger) -> io::Result<(File, usize)> {
    let (mut text, mut lines) = (Vec::new(), 0);
    let gap = ledger.unrecorded().map(|g| Line::Unrecorded { issued: g.issued, until: g.until });
    let issued = ledger.in_order().into_iter().map(|(pod, anchor, c)| Line::Issued {
        pod: pod.to_string(),
        anchor: anchor.clone(),
        serial: c.serial.clone(),
        until: c.until,
    });
    for line in gap.into_iter().chain(issued) {
        serde_json::to_writer(&mut text, &line)?;
        text.push(b'\n');
        lines += 1;
    }
    write_private(path, &text)?;
    Ok((std::fs::OpenOptions::new().append(true).open(path)?, lines))
}

/// Reads what is there; false where a line cannot be read. The last one may have been cut short by the end of the process: its certificate
/// was never handed out.
fn read(text: &str, ledger: &mut Ledger) -> bool {
    let mut whole = true;
    for line in text.split_inclusive('\n') {
        let Some(line) = line.strip_suffix('\n') else { continue };
        match serde_json::from_str(line) {
            Ok(Line::Issued { pod, anchor, serial, until }) => match pod.parse() {
                Ok(pod) => ledger.issued(pod, anchor, Certificate { serial, until }),
                Err(_) => whole = false,
            },
            Ok(Line::Unrecorded { issued, until }) => ledger.lost(Unrecorded { issued, until }),
            Err(_) => whole = false,
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(serial: &str, until: i64) -> Certificate {
        Certificate { serial: serial.into(), until }
    }

    #[test]
    fn what_was_issued_is_known_after_a_restart_until_it_has_expired() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("issued");
        let (mut journal, ledger, whole) = Journal::open(&path, 0).expect("made");
        assert!(ledger.holders().is_empty() && !whole, "nobody knows what was before");
        journal.issued("shop/a", "old", &certificate("1", 100)).expect("written");
        journal.issued("shop/b", "old", &certificate("2", 200)).expect("written");
        journal.lost(Unrecorded { issued: 5, until: 300 }).expect("written");
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        let (_, ledger, whole) = Journal::open(&path, 150).expect("read");
        assert!(whole);
        assert_eq!(ledger.holders().keys().map(ToString::to_string).collect::<Vec<_>>(), ["shop/b"]);
        assert_eq!(ledger.unrecorded(), Some(Unrecorded { issued: 5, until: 300 }));
        assert_eq!(std::fs::read_to_string(&path).expect("there").lines().count(), 2, "what has expired is gone");
    }

    #[test]
    fn a_line_cut_short_was_never_handed_out_and_any_other_is_a_gap() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("issued");
        let good = r#"{"pod":"shop/a","anchor":"x","serial":"1","until":100}"#;
        for (text, whole, holders) in [
            (format!("{good}\n{{\"pod\":\"shop"), true, 1),
            (format!("nonsense\n{good}\n"), false, 1),
            (format!("{{\"pod\":\"no name\",\"anchor\":\"x\",\"serial\":\"1\",\"until\":100}}\n{good}\n"), false, 1),
            (String::new(), true, 0),
        ] {
            std::fs::write(&path, &text).expect("written");
            let (_, ledger, found) = Journal::open(&path, 0).expect("read");
            assert_eq!((found, ledger.holders().len()), (whole, holders), "{text}");
        }
        std::fs::write(&path, [0xff, b'\n']).expect("written");
        assert!(!Journal::open(&path, 0).expect("read").2, "it is no text");
    }

    #[test]
    fn it_is_written_anew_where_most_of_it_is_of_the_past() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("issued");
        let (mut journal, mut ledger, _) = Journal::open(&path, 0).expect("made");
        journal.lines = SLACK + 2;
        ledger.issued("shop/a".parse().expect("a name"), "x".into(), certificate("1", 100));
        journal.compact(&ledger).expect("written");
        assert_eq!(journal.lines, SLACK + 2, "not yet");
        journal.issued("shop/a", "x", &certificate("1", 100)).expect("written");
        journal.compact(&ledger).expect("written");
        assert_eq!(journal.lines, 1);
        journal.issued("shop/b", "x", &certificate("2", 100)).expect("written to the new file");
        assert_eq!(Journal::open(&path, 0).expect("read").1.holders().len(), 2);
    }
}
