//! The lab: worlds in which real peers run through real sidecars, and the real control plane on loopback.
//!
//! A [`World`] is one `weft up`: namespaces, cables, redirect, sidecars and programs as a user would have them. Nothing here
//! reaches into weft's own rooms; what a test learns, it learns from programs, from sockets and from the wire.

mod control_plane;
mod process;
mod programs;
mod watch;
mod world;

use std::time::{Duration, Instant};

pub use control_plane::{ControlPlane, issue};
pub use process::{Output, Running};
pub use programs::{require, require_modules};
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
