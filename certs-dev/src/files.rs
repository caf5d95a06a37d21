//! Writing the files: keys for their owner alone, and nothing replaced unless asked.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Secrecy {
    Public,
    Secret,
}

impl Secrecy {
    fn mode(self) -> u32 {
        match self {
            Self::Public => 0o644,
            Self::Secret => 0o600,
        }
    }
}

/// A file that is ready to be written. It may hold a key, so it has no `Debug`.
pub(crate) struct PlannedFile {
    name: String,
    contents: String,
    secrecy: Secrecy,
}

impl PlannedFile {
    pub(crate) fn new(name: impl Into<String>, contents: impl Into<String>, secrecy: Secrecy) -> Self {
        Self { name: name.into(), contents: contents.into(), secrecy }
    }
}

/// Writes all of `files` into `directory`, or, unless `force`, none of them if one is there already.
/// Returns the paths in the order given.
pub(crate) fn write_all(directory: &Path, files: &[PlannedFile], force: bool) -> anyhow::Result<Vec<PathBuf>> {
    if !force {
        refuse_to_replace(directory, files)?;
    }
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("cannot make the directory {}", directory.display()))?;
    files
        .iter()
        .map(|file| {
            let path = directory.join(&file.name);
            write_one(&path, file, force).with_context(|| format!("cannot write {}", path.display()))?;
            Ok(path)
        })
        .collect()
}

fn refuse_to_replace(directory: &Path, files: &[PlannedFile]) -> anyhow::Result<()> {
    let there: Vec<&str> =
        files.iter().map(|file| file.name.as_str()).filter(|name| directory.join(name).symlink_metadata().is_ok()).collect();
    if !there.is_empty() {
        bail!(
            "{} already holds {}; nothing was written (--force replaces them, or name another directory)",
            directory.display(),
            there.join(", ")
        );
    }
    Ok(())
}

/// The file is made anew even where one is replaced: an old one's mode, or a link in its place, must not
/// decide where a key ends up and who reads it.
fn write_one(path: &Path, file: &PlannedFile, force: bool) -> std::io::Result<()> {
    if force
        && let Err(error) = fs::remove_file(path)
        && error.kind() != ErrorKind::NotFound
    {
        return Err(error);
    }
    let mut out = OpenOptions::new().write(true).create_new(true).mode(file.secrecy.mode()).open(path)?;
    out.write_all(file.contents.as_bytes())
}
