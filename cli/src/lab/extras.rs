//! `manifests:` of the mesh's file: copied into the directory that the control plane follows, and again when they change.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};

use crate::console::Console;
use crate::manifests::ManifestDir;

/// Where they go, in the followed directory.
const DIR: &str = "extra";
/// How often they are looked at. A poll, so that an editor may replace, move or rewrite them.
const LOOK: Duration = Duration::from_millis(500);

/// The files, and what of them has been copied.
pub(super) struct Extras {
    patterns: Vec<PathBuf>,
    to: ManifestDir,
    /// By the name of the copy.
    copied: BTreeMap<String, Stamp>,
}

/// What changes when a file does.
#[derive(PartialEq, Eq, Debug)]
struct Stamp {
    path: PathBuf,
    len: u64,
    modified: Option<SystemTime>,
}

impl Extras {
    pub(super) fn new(patterns: &[PathBuf], to: ManifestDir) -> Self {
        Self { patterns: patterns.to_vec(), to, copied: BTreeMap::new() }
    }

    /// The first copy. A pattern that fits nothing is an error now, and none later.
    pub(super) fn begin(&mut self) -> anyhow::Result<()> {
        if self.patterns.is_empty() {
            return Ok(());
        }
        let dir = self.to.path().join(DIR);
        std::fs::create_dir_all(&dir).with_context(|| format!("{} cannot be made", dir.display()))?;
        for pattern in &self.patterns {
            if expand(pattern).with_context(|| format!("manifests: {}", pattern.display()))?.is_empty() {
                bail!("manifests: {} fits no file: a file ends in .yaml, .yml or .json", pattern.display());
            }
        }
        self.copy()
    }

    /// Copies again whenever something changes.
    pub(super) async fn follow(mut self, console: Console) -> anyhow::Result<()> {
        if self.patterns.is_empty() {
            return std::future::pending().await;
        }
        let mut said = String::new();
        loop {
            tokio::time::sleep(LOOK).await;
            let problem = self.copy().err().map(|e| format!("{e:#}")).unwrap_or_default();
            if !problem.is_empty() && problem != said {
                console.warn(format!("{problem}; what was read before stays")).await;
            }
            said = problem;
        }
    }

    fn copy(&mut self) -> anyhow::Result<()> {
        let mut now = BTreeMap::new();
        for path in self.patterns.iter().filter_map(|pattern| expand(pattern).ok()).flatten() {
            let Ok(meta) = path.metadata() else { continue };
            let name = free_name(&path, &now);
            now.insert(name, Stamp { len: meta.len(), modified: meta.modified().ok(), path });
        }
        for (name, stamp) in &now {
            if self.copied.get(name) != Some(stamp) {
                let text =
                    std::fs::read_to_string(&stamp.path).with_context(|| format!("{} cannot be read", stamp.path.display()))?;
                self.to.put_text(&Path::new(DIR).join(name), &text).context("a manifest cannot be copied")?;
            }
        }
        for gone in self.copied.keys().filter(|name| !now.contains_key(*name)) {
            let _ = self.to.remove(&Path::new(DIR).join(gone));
        }
        self.copied = now;
        Ok(())
    }
}

/// The file's own name, so that the control plane's words about it say which it is; numbered where several have it.
fn free_name(path: &Path, taken: &BTreeMap<String, Stamp>) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut free = name.clone();
    let mut number = 2;
    while taken.contains_key(&free) {
        free = format!("{number}-{name}");
        number += 1;
    }
    free
}

/// Which names in a directory are meant.
type Fits = Box<dyn Fn(&str) -> bool>;

/// The files that a path means: itself, the manifests in a directory, or what fits a `*` in its last part.
pub(crate) fn expand(pattern: &Path) -> std::io::Result<Vec<PathBuf>> {
    let last = pattern.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (dir, fits): (&Path, Fits) = if last.contains('*') {
        (pattern.parent().unwrap_or(Path::new("/")), Box::new(move |name: &str| matches_star(&last, name)))
    } else if pattern.is_dir() {
        (pattern, Box::new(|_: &str| true))
    } else {
        pattern.metadata()?;
        return Ok(vec![pattern.to_owned()]);
    };
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)?
        .flatten()
        .filter(|entry| fits(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .filter(|path| path.is_file() && is_manifest(path))
        .collect();
    files.sort();
    Ok(files)
}

fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
    !hidden && path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
}

/// Whether `name` fits `pattern`, in which each `*` stands for any text.
fn matches_star(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(first) else { return false };
    name.char_indices().map(|(at, _)| at).chain([name.len()]).any(|at| matches_star(rest, &name[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, name, fits) in [
            ("*.yaml", "a.yaml", true),
            ("*.yaml", "a.json", false),
            ("a*b*.yaml", "axxb.yaml", true),
            ("a*b*.yaml", "b.yaml", false),
            ("*", "", true),
            ("a.yaml", "a.yaml", true),
        ] {
            assert_eq!(matches_star(pattern, name), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn files_are_copied_again_when_they_change_and_removed_with_their_original() {
        let (from, to) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        let original = from.path().join("a.yaml");
        std::fs::write(&original, "one").expect("written");
        let mut extras = Extras::new(&[from.path().join("*.yaml")], ManifestDir::new(to.path().to_owned()));
        extras.begin().expect("copied");
        let copy = to.path().join(DIR).join("a.yaml");
        assert_eq!(std::fs::read_to_string(&copy).expect("there"), "one");

        std::fs::write(&original, "other").expect("written");
        extras.copy().expect("copied");
        assert_eq!(std::fs::read_to_string(&copy).expect("there"), "other");

        std::fs::remove_file(&original).expect("removed");
        extras.copy().expect("copied");
        assert!(!copy.exists());
        assert!(Extras::new(&[from.path().join("*.yaml")], ManifestDir::new(to.path().to_owned())).begin().is_err());
    }
}
