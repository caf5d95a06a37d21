//! The plugin's place on the node: its program in the runtime's directory, and its entry in the chain that the runtime uses.
//!
//! Runtimes use the first network configuration of their directory, by the order of names. If that is a list, the entry is put into
//! it. If it is a single configuration, a list is made of it beside it, whose name comes first: `10-net.conf` gives
//! `10-net-weft.conflist`. Files are replaced whole, so that a runtime never reads half of one.

use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::PLUGIN;
use crate::chain::{self, ChainError};
use crate::program::Program;

/// What a list that was made of a single configuration is named behind the stem of that one: it sorts before any extension.
const DERIVED: &str = "-weft.conflist";
/// Anybody may start it, as with others' plugins.
const PROGRAM_MODE: u32 = 0o755;
/// The largest configuration that is read, in bytes.
const MAX_CONFIGURATION: u64 = 1 << 20;

/// Where the runtime has its plugins and their configuration, as this process sees it.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its directory of plugins, mostly `/opt/cni/bin`.
    pub bin_dir: PathBuf,
    /// Its directory of configurations, mostly `/etc/cni/net.d`.
    pub conf_dir: PathBuf,
}

/// What became of joining the chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Joined {
    /// The file by which the plugin is in the chain; None where there is no configuration yet.
    pub file: Option<PathBuf>,
    /// The files that had to be written or removed for it.
    pub changed: Vec<PathBuf>,
    /// What could not be used, and why.
    pub notes: Vec<String>,
}

/// Why the node cannot be changed.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}", path = .path.display())]
pub struct NodeError {
    /// The file or directory.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> NodeError {
    let path = path.to_owned();
    move |source| NodeError { path, source }
}

/// One network configuration of the directory.
struct Configuration {
    path: PathBuf,
    text: Result<String, String>,
}

impl Configuration {
    fn is_list(&self) -> bool {
        self.path.extension().is_some_and(|extension| extension == "conflist")
    }

    /// Whether it was made of a single one, by us. The name alone says nothing: others have names, too.
    fn is_derived(&self) -> bool {
        self.path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(DERIVED))
            && self.text.as_ref().is_ok_and(|text| chain::is_made(text))
    }

    /// The list that is made of it, if it is a single one.
    fn derived(&self) -> PathBuf {
        let mut name: OsString = self.path.file_stem().unwrap_or_default().to_owned();
        name.push(DERIVED);
        self.path.with_file_name(name)
    }

    /// The file that is to be there so that the plugin is in the chain by this configuration; None for a text that is right already.
    fn chained(&self, entry: &Value) -> Result<(PathBuf, Option<String>), String> {
        let text = self.text.as_ref().map_err(Clone::clone)?;
        let said = |error: ChainError| error.to_string();
        if self.is_list() {
            return Ok((self.path.clone(), chain::with_entry(text, entry).map_err(said)?));
        }
        let path = self.derived();
        let list = chain::list_of(text, entry).map_err(said)?;
        let there = Self { text: read(&path), path: path.clone() };
        if path.exists() && !there.is_derived() {
            return Err(format!("{} has the name of the list that would be made of it, and is somebody else's", path.display()));
        }
        let is_there = there.text.is_ok_and(|there| there == list);
        Ok((path, (!is_there).then_some(list)))
    }
}

impl Node {
    /// Where the plugin's program is to be.
    pub fn program(&self) -> PathBuf {
        self.bin_dir.join(PLUGIN)
    }

    /// Puts the program at `source` into the directory of plugins; whether that was needed.
    pub fn install_program(&self, source: &Path) -> Result<bool, NodeError> {
        let target = self.program();
        if mode_of(&target).mode() & 0o777 == PROGRAM_MODE && same_content(source, &target) {
            return Ok(false);
        }
        let mut program = File::open(source).map_err(at(source))?;
        replace(&target, Permissions::from_mode(PROGRAM_MODE), |file| io::copy(&mut program, file).map(drop))
            .map_err(at(&target))?;
        Ok(true)
    }

    /// Puts the program in its place, and then [joins](Self::join): a chain that names a plugin which is not there lets no pod start. So
    /// the entry is taken out again where no program can be put there.
    pub fn join_with(&self, program: &mut Program, entry: &Value) -> Result<Joined, String> {
        let said = |error: NodeError| format!("the chain can't be changed: {error}");
        match program.place(self) {
            Ok(changed) => {
                if changed {
                    tracing::info!(path = %self.program().display(), "the plugin's program was put on the node");
                }
                self.join(entry).map_err(said)
            }
            Err(why) => {
                if !self.program().exists() {
                    self.unchain().map_err(said)?;
                }
                Err(why)
            }
        }
    }

    /// Sees to it that the plugin is in the chain that the runtime uses, with this entry, and in no other. Changes nothing where
    /// that is so already.
    pub fn join(&self, entry: &Value) -> Result<Joined, NodeError> {
        let all = self.configurations()?;
        let mut joined = Joined::default();
        for configuration in all.iter().filter(|configuration| !configuration.is_derived()) {
            match configuration.chained(entry) {
                Ok((path, text)) => {
                    if let Some(text) = text {
                        let like = mode_of(&configuration.path);
                        replace(&path, like, |file| file.write_all(text.as_bytes())).map_err(at(&path))?;
                        joined.changed.push(path.clone());
                    }
                    joined.file = Some(path);
                    break;
                }
                Err(why) => joined.notes.push(format!("{} can't be used: {why}", configuration.path.display())),
            }
        }
        let others = all.iter().filter(|configuration| joined.file.as_ref() != Some(&configuration.path));
        let cleaned: Vec<PathBuf> = others.map(clean).collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect();
        joined.changed.extend(cleaned);
        Ok(joined)
    }

    /// Takes the plugin out of every chain, and then its program away; the files that were changed or removed.
    pub fn leave(&self) -> Result<Vec<PathBuf>, NodeError> {
        // The program goes last: a chain that names a plugin which is not there lets no pod start.
        let mut changed = self.unchain()?;
        let program = self.program();
        match fs::remove_file(&program) {
            Ok(()) => changed.push(program),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(at(&program)(error)),
        }
        Ok(changed)
    }

    fn unchain(&self) -> Result<Vec<PathBuf>, NodeError> {
        Ok(self.configurations()?.iter().map(clean).collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
    }

    /// Every file that a runtime takes for a configuration, in the order in which it looks at them.
    fn configurations(&self) -> Result<Vec<Configuration>, NodeError> {
        let mut paths = Vec::new();
        for file in fs::read_dir(&self.conf_dir).map_err(at(&self.conf_dir))? {
            let path = file.map_err(at(&self.conf_dir))?.path();
            let extension = path.extension().unwrap_or_default();
            if ["conf", "conflist", "json"].iter().any(|known| extension == *known) {
                paths.push(path);
            }
        }
        paths.sort();
        Ok(paths.into_iter().map(|path| Configuration { text: read(&path), path }).collect())
    }
}

/// Removes what is ours of a configuration, which may be all of it; the file, if it was changed.
fn clean(configuration: &Configuration) -> Result<Option<PathBuf>, NodeError> {
    let path = &configuration.path;
    if configuration.is_derived() {
        fs::remove_file(path).map_err(at(path))?;
        return Ok(Some(path.clone()));
    }
    // What cannot be read has nothing of ours that a runtime could read, and a single configuration has room for one plugin.
    let Ok(text) = &configuration.text else { return Ok(None) };
    if !configuration.is_list() {
        return Ok(None);
    }
    let Ok(Some(cleaned)) = chain::without_entry(text) else { return Ok(None) };
    replace(path, mode_of(path), |file| file.write_all(cleaned.as_bytes())).map_err(at(path))?;
    Ok(Some(path.clone()))
}

fn read(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    let length = File::open(path).and_then(|file| file.take(MAX_CONFIGURATION + 1).read_to_string(&mut text));
    match length {
        Ok(length) if length as u64 > MAX_CONFIGURATION => Err(format!("it has more than {MAX_CONFIGURATION} bytes")),
        Ok(_) => Ok(text),
        Err(error) => Err(error.to_string()),
    }
}

/// The mode of a file; for one that cannot be asked, that of a secret: configurations may hold some.
fn mode_of(path: &Path) -> Permissions {
    fs::metadata(path).map_or(Permissions::from_mode(0o600), |file| file.permissions())
}

/// Writes a file beside `path` and puts it in its place. Behind a symbolic link, what it points to is replaced.
fn replace(path: &Path, mode: Permissions, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let directory = target.parent().unwrap_or(Path::new("/"));
    // Its name has none of the extensions that runtimes look for.
    let mut file = tempfile::Builder::new().prefix(".weft-cni-").tempfile_in(directory)?;
    write(file.as_file_mut())?;
    file.as_file().set_permissions(mode)?;
    file.as_file().sync_all()?;
    file.persist(&target).map_err(|error| error.error)?;
    File::open(directory)?.sync_all()
}

fn same_content(a: &Path, b: &Path) -> bool {
    let (Ok(a), Ok(b)) = (File::open(a), File::open(b)) else { return false };
    let length = |file: &File| file.metadata().map(|file| file.len()).ok();
    if length(&a) != length(&b) {
        return false;
    }
    let (mut a, mut b) = (io::BufReader::with_capacity(1 << 16, a).bytes(), io::BufReader::with_capacity(1 << 16, b).bytes());
    loop {
        match (a.next(), b.next()) {
            (None, None) => return true,
            (Some(Ok(x)), Some(Ok(y))) if x == y => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests;
