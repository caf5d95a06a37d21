//! The plugin's program: whether it runs on any node, and whether it is still where it was put.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::node::Node;

/// The program that is to be on the node.
#[derive(Debug)]
pub struct Program {
    source: PathBuf,
    /// Why it must not be there.
    unfit: Option<String>,
    /// As it was when its content was compared last: it is long, and looked at every few seconds.
    seen: Option<Stamp>,
}

/// What another content, another file or another mode would change.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    size: u64,
    mode: u32,
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let is = fs::metadata(path).ok()?;
        let (file, changed) = ((is.dev(), is.ino()), (is.ctime(), is.ctime_nsec()));
        Some(Self { file, size: is.size(), mode: is.mode(), changed })
    }
}

impl Program {
    /// This process's own. The node starts it for every pod, with the node's libraries, which are not to be seen from here: a program
    /// that needs some may run there or not, and if it does not, no pod of the node starts. So it must be `told` that it does.
    pub fn this(told: bool) -> Self {
        Self::at(PathBuf::from("/proc/self/exe"), told)
    }

    fn at(source: PathBuf, told: bool) -> Self {
        let why = match needs_libraries(&source) {
            Ok(false) => None,
            Ok(true) => Some("it needs a C library, which the node may not have in this version or later".to_owned()),
            Err(error) => Some(format!("whether it needs libraries can't be said: {error}")),
        };
        let unfit = match why {
            Some(why) if told => {
                tracing::warn!(why, "the plugin's program is put on the node because it was told that it runs there");
                None
            }
            Some(why) => Some(format!(
                "the plugin's program is not put on the node: {why}; build it with -C target-feature=+crt-static, or say \
                 --runs-on-node=true"
            )),
            None => None,
        };
        Self { source, unfit, seen: None }
    }

    /// Sees to it that the program is on the node; whether something had to be written. Else why it is not, or not in this version.
    pub fn place(&mut self, node: &Node) -> Result<bool, String> {
        if let Some(why) = &self.unfit {
            return Err(why.clone());
        }
        let target = node.program();
        if self.seen.is_some() && self.seen == Stamp::of(&target) {
            return Ok(false);
        }
        let changed = node
            .install_program(&self.source)
            .map_err(|error| format!("the plugin's program can't be put on the node: {error}"))?;
        self.seen = Stamp::of(&target);
        Ok(changed)
    }
}

/// Whether an ELF program asks for a loader, and so for libraries (a program header `PT_INTERP`; see elf(5)). An error for what is no
/// ELF program of 64 bits, little-endian.
fn needs_libraries(path: &Path) -> io::Result<bool> {
    const PT_INTERP: u32 = 3;
    let file = File::open(path)?;
    let mut head = [0; 64];
    file.read_exact_at(&mut head, 0)?;
    if head[..6] != *b"\x7fELF\x02\x01" {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no ELF program of 64 bits"));
    }
    let short = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    let headers = u64::from_le_bytes(head[32..40].try_into().expect("eight bytes"));
    let (size, count) = (short(54), short(56));
    for index in 0..u64::from(count) {
        let mut kind = [0; 4];
        let at = index.checked_mul(u64::from(size)).and_then(|offset| headers.checked_add(offset));
        file.read_exact_at(&mut kind, at.ok_or(io::ErrorKind::InvalidData)?)?;
        if u32::from_le_bytes(kind) == PT_INTERP {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests;
