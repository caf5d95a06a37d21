//! What was issued, on disk: one line for each certificate, written durably before the certificate is handed out, so that a control plane that
//! starts again does not believe that nobody holds one. Those that come while the disk is busy are written together.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use weft_core::wellknown::LEAF_LIFETIME_SECS;

use super::super::write_private;
use super::ledger::{Anchor, Certificate, Ledger, Unrecorded};

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

/// A certificate that is about to be handed out to a pod.
pub struct Entry {
    /// Its namespace and name, with a slash between them.
    pub pod: String,
    pub anchor: Anchor,
    pub certificate: Certificate,
}

impl From<Entry> for Line {
    fn from(Entry { pod, anchor, certificate: Certificate { serial, until } }: Entry) -> Self {
        Self::Issued { pod, anchor, serial, until }
    }
}

impl From<Unrecorded> for Line {
    fn from(Unrecorded { issued, until }: Unrecorded) -> Self {
        Self::Unrecorded { issued, until }
    }
}

/// The file.
pub struct Journal {
    path: PathBuf,
    /// None where it cannot be appended to as it stands: it is written anew first.
    file: Option<File>,
    lines: usize,
}

/// What a start begins with.
pub struct Opened {
    pub journal: Journal,
    pub ledger: Ledger,
    /// A gap that could not be written down yet.
    pub untold: Option<Unrecorded>,
}

impl Journal {
    /// Reads the file. It is made where there is none, and written anew where something in it is of no use any more. Where that cannot be done
    /// (the disk is full, or may be read alone), the start goes on, and it is tried again with what is recorded next.
    ///
    /// There is a gap, as long as a certificate lives, where certificates may be out there that nobody knows of: there was no file, though the
    /// CA is not `fresh`, or lines of it cannot be read, or everything in it has expired, since the clock may have jumped.
    ///
    /// # Errors
    ///
    /// Where there is a file that cannot be read.
    pub fn open(path: &Path, fresh: bool, now: i64) -> io::Result<Opened> {
        let mut ledger = Ledger::default();
        let found = match std::fs::read_to_string(path) {
            Ok(text) => Some(read(&text, &mut ledger)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) if e.kind() == io::ErrorKind::InvalidData => Some(Found::default()),
            Err(e) => return Err(e),
        };
        let over = !ledger.holders().is_empty() && !ledger.holders().values().any(|h| h.holds(now));
        let lost = over || found.map_or(!fresh, |f| !f.whole);
        let gap = lost.then_some(Unrecorded { issued: now, until: now.saturating_add(LEAF_LIFETIME_SECS) });
        // In the ledger first, so that no file without it takes the place of the old one.
        if let Some(gap) = gap {
            ledger.lost(gap);
        }
        let dropped = ledger.purge(now);
        let appendable = found.is_some_and(|f| f.whole && !f.cut);
        let mut journal = Self { path: path.to_owned(), file: None, lines: found.map_or(0, |f| f.lines) };
        let rewritten = if dropped || gap.is_some() || !appendable { journal.rewrite(&ledger) } else { Ok(()) };
        let mut untold = None;
        if let Err(e) = rewritten {
            tracing::warn!(path = %path.display(), error = %e, "the record of what was issued cannot be written: mend the state directory");
            untold = gap;
        }
        if journal.file.is_none() && appendable {
            journal.file = appending(path).ok();
        }
        Ok(Opened { journal, ledger, untold })
    }

    /// Makes the file fit to be appended to, where it is not. Everything in the ledger is in it then.
    ///
    /// # Errors
    ///
    /// Where it cannot be written.
    pub fn mend(&mut self, ledger: &Ledger) -> io::Result<()> {
        if self.file.is_none() { self.rewrite(ledger) } else { Ok(()) }
    }

    /// Records certificates that are about to be handed out; they are on disk when this returns.
    ///
    /// # Errors
    ///
    /// Where they could not be written: none of them is recorded then.
    pub fn issued(&mut self, entries: impl IntoIterator<Item = Entry>) -> io::Result<()> {
        self.append(entries.into_iter().map(Line::from))
    }

    /// Records that there is a gap.
    ///
    /// # Errors
    ///
    /// Where it could not be written.
    pub fn lost(&mut self, gap: Unrecorded) -> io::Result<()> {
        self.append([Line::from(gap)])
    }

    /// Writes the file anew where most of it is of the past.
    ///
    /// # Errors
    ///
    /// Where it could not be written; the old one stays.
    pub fn compact(&mut self, ledger: &Ledger) -> io::Result<()> {
        if self.lines > 2 * ledger.holders().len() + SLACK {
            self.rewrite(ledger)?;
        }
        Ok(())
    }

    #[cfg(test)]
    pub fn loses_file(&mut self) {
        self.file = None;
    }

    fn rewrite(&mut self, ledger: &Ledger) -> io::Result<()> {
        let was_fit = self.file.take().is_some();
        let written = rewrite(&self.path, ledger);
        // Whichever is at this path now: it may have been replaced, though its directory could not be synced.
        if was_fit || written.is_ok() {
            self.file = Some(appending(&self.path)?);
        }
        self.lines = written?;
        Ok(())
    }

    fn append(&mut self, all: impl IntoIterator<Item = Line>) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Err(io::Error::other("the file cannot be appended to")) };
        let before = file.metadata()?.len();
        let (text, lines) = text(all)?;
        let written = file.write_all(&text).and_then(|()| file.sync_data());
        // Half a line would spoil the next one.
        if written.is_err() && file.set_len(before).is_err() {
            self.file = None;
        }
        self.lines += lines;
        written
    }
}

fn appending(path: &Path) -> io::Result<File> {
    std::fs::OpenOptions::new().append(true).open(path)
}

/// Gives the number of lines.
fn rewrite(path: &Path, ledger: &Ledger) -> io::Result<usize> {
    let issued = ledger.in_order().into_iter().map(|(pod, anchor, certificate)| Entry {
        pod: pod.to_string(),
        anchor: anchor.clone(),
        certificate: certificate.clone(),
    });
    let (text, lines) = text(ledger.unrecorded().map(Line::from).into_iter().chain(issued.map(Line::from)))?;
    write_private(path, &text)?;
    Ok(lines)
}

/// Lines as they stand in the file, and how many they are.
fn text(all: impl IntoIterator<Item = Line>) -> io::Result<(Vec<u8>, usize)> {
    let (mut text, mut lines) = (Vec::new(), 0);
    for line in all {
        serde_json::to_writer(&mut text, &line)?;
        text.push(b'\n');
        lines += 1;
    }
    Ok((text, lines))
}

/// What was found in a file.
#[derive(Clone, Copy, Default)]
struct Found {
    lines: usize,
    /// Every line could be read.
    whole: bool,
    /// The last line has no end.
    cut: bool,
}

/// Reads what is there. The last line may have been cut short by the end of the process: its certificate was never handed out.
fn read(text: &str, ledger: &mut Ledger) -> Found {
    let mut found = Found { lines: 0, whole: true, cut: false };
    for line in text.split_inclusive('\n') {
        let Some(line) = line.strip_suffix('\n') else {
            found.cut = true;
            continue;
        };
        found.lines += 1;
        match serde_json::from_str(line) {
            Ok(Line::Issued { pod, anchor, serial, until }) => match pod.parse() {
                Ok(pod) => ledger.issued(pod, anchor, Certificate { serial, until }),
                Err(_) => found.whole = false,
            },
            Ok(Line::Unrecorded { issued, until }) => ledger.lost(Unrecorded { issued, until }),
            Err(_) => found.whole = false,
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(serial: &str, until: i64) -> Certificate {
        Certificate { serial: serial.into(), until }
    }

    fn entry(pod: &str, anchor: &str, serial: &str, until: i64) -> Entry {
        Entry { pod: pod.into(), anchor: anchor.into(), certificate: certificate(serial, until) }
    }

    fn open(path: &Path, now: i64) -> Opened {
        Journal::open(path, false, now).expect("it can be read")
    }

    fn lines(path: &Path) -> usize {
        std::fs::read_to_string(path).expect("there").lines().count()
    }

    const DAY: i64 = 24 * 3600;

    #[test]
    fn what_was_issued_is_known_after_a_restart_until_it_has_long_expired() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("issued");
        let mut journal = Journal::open(&path, true, 0).expect("made").journal;
        journal.issued([entry("shop/a", "old", "1", 100)]).expect("written");
        journal.issued([entry("shop/b", "old", "2", DAY)]).expect("written");
        journal.lost(Unrecorded { issued: 5, until: DAY }).expect("written");
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        let opened = open(&path, 150);
        assert_eq!(opened.ledger.holders().len(), 2, "the clock may go back");
        let opened = open(&path, DAY + 1);
        assert_eq!(opened.ledger.unrecorded(), Some(Unrecorded { issued: 5, until: DAY }));
        let opened = open(&path, DAY + 121);
        assert_eq!(opened.ledger.holders().keys().map(ToString::to_string).collect::<Vec<_>>(), ["shop/b"]);
        assert_eq!(lines(&path), 2, "what has long expired is gone");
    }

    #[test]
    fn a_file_that_is_not_there_is_a_gap_unless_the_ca_is_new() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("issued");
        let gap = Some(Unrecorded { issued: 7, until: 7 + LEAF_LIFETIME_SECS });
        assert_eq!(Journal::open(&dir.path().join("new"), true, 7).expect("made").ledger.unrecorded(), None);
        let opened = open(&path, 7);
        assert_eq!((opened.ledger.unrecorded(), opened.untold), (gap, None));
        assert_eq!(open(&path, 8).ledger.unrecorded(), gap, "it is in the file that was made");
    }

    #[test]
    fn a_clock_that_jumped_over_everything_leaves_a_gap() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("issued");
        let mut journal = Journal::open(&path, true, 0).expect("made").journal;
        journal.issued([entry("shop/a", "old", "1", 100)]).expect("written");
        assert_eq!(open(&path, 100).ledger.unrecorded(), None);
        assert_eq!(open(&path, 10 * DAY).ledger.unrecorded().map(|gap| gap.issued), Some(10 * DAY));
        assert_eq!(lines(&path), 1, "the gap");
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
            let opened = open(&path, 0);
            assert_eq!((opened.ledger.unrecorded().is_none(), opened.ledger.holders().len()), (whole, holders), "{text}");
            assert_eq!(open(&path, 0).ledger, opened.ledger, "what was written anew says the same");
        }
        std::fs::write(&path, [0xff, b'\n']).expect("written");
        assert!(open(&path, 0).ledger.unrecorded().is_some(), "it is no text");
    }

    /// Has the file not be replaced: there is a directory at the name of the temporary one.
    fn obstruct(path: &Path) -> PathBuf {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let obstacle = path.with_file_name(format!(".{name}.{}", std::process::id()));
        std::fs::create_dir(&obstacle).expect("made");
        obstacle
    }

    #[test]
    fn a_disk_that_cannot_be_written_hinders_no_start() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("issued");
        let good = r#"{"pod":"shop/a","anchor":"x","serial":"1","until":100}"#;
        std::fs::write(&path, format!("{good}\n")).expect("written");
        let obstacle = obstruct(&path);
        let mut opened = open(&path, 50);
        opened.journal.issued([entry("shop/b", "x", "2", 200)]).expect("nothing had to be written anew");
        assert_eq!(opened.untold, None);

        std::fs::write(&path, format!("{good}\nnonsense\n{good}")).expect("written");
        let mut opened = open(&path, 50);
        assert_eq!((opened.untold, opened.ledger.holders().len()), (opened.ledger.unrecorded(), 1));
        assert!(opened.untold.is_some() && opened.journal.issued([entry("shop/b", "x", "2", 200)]).is_err());
        assert!(opened.journal.mend(&opened.ledger).is_err());
        std::fs::remove_dir(obstacle).expect("removed");
        opened.journal.mend(&opened.ledger).expect("there is room again");
        opened.journal.issued([entry("shop/b", "x", "2", 200)]).expect("written");
        let again = open(&path, 50).ledger;
        assert_eq!((again.unrecorded(), again.holders().len()), (opened.untold, 2));
    }

    #[test]
    fn it_is_written_anew_where_most_of_it_is_of_the_past() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("issued");
        let Opened { mut journal, mut ledger, .. } = Journal::open(&path, true, 0).expect("made");
        journal.lines = SLACK + 2;
        ledger.issued("shop/a".parse().expect("a name"), "x".into(), certificate("1", 100));
        journal.compact(&ledger).expect("written");
        assert_eq!(journal.lines, SLACK + 2, "not yet");
        journal.issued([entry("shop/a", "x", "1", 100)]).expect("written");
        journal.compact(&ledger).expect("written");
        assert_eq!(journal.lines, 1);
        journal.issued([entry("shop/b", "x", "2", 100)]).expect("written to the new file");
        assert_eq!(open(&path, 0).ledger.holders().len(), 2);
    }
}
