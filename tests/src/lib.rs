//! The lab: worlds in which real peers run through real sidecars, the real control plane on loopback, and a real cluster.
//!
//! A [`World`] is one `weft up`: namespaces, cables, redirect, sidecars and programs as a user would have them. Nothing here
//! reaches into weft's own rooms; what a test learns, it learns from programs, from sockets and from the wire.

mod admin;
mod browser;
pub mod cluster;
mod control_plane;
mod process;
mod programs;
mod sidecar;
mod watch;
mod world;

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use browser::{Dashboard, browse};
pub use control_plane::{ControlPlane, issue};
pub use process::{Output, Running};
pub use programs::{require, require_modules, weft};
pub use sidecar::Sidecar;
pub use watch::{Heard, Watch};
pub use world::World;

/// How long something may take that is bound to happen.
pub const PATIENCE: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// Asks until there is an answer.
///
/// # Panics
///
/// If there is none in time; `what` says what was waited for.
#[track_caller]
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "within {PATIENCE:?} it did not happen that {what}");
        std::thread::sleep(POLL);
    }
}

/// Whether `needle` stands somewhere in `hay`.
pub fn contains(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|window| window == needle)
}

/// Fills the file system that a directory is on until nothing more goes in; removing the file gives the room back.
///
/// # Panics
///
/// If it is not for want of room that nothing more goes in.
#[track_caller]
pub fn fill(directory: &Path) -> PathBuf {
    let path = directory.join("fill");
    let mut file = File::create(&path).expect("a name takes no room");
    let error = loop {
        if let Err(error) = file.write_all(&[0; 4096]) {
            break error;
        }
    };
    assert_eq!(error.kind(), ErrorKind::StorageFull, "{} was not filled: {error}", directory.display());
    path
}
