//! TCP timestamps without offsets.
//!
//! With the redirect, whatever a program calls it reaches at the sidecar's one address and port. A source port that is known there already is another one to the sidecar, which the
//! kernel takes at random: it may be that of a connection that rests in TIME-WAIT, and was to another service. The new one begins at once only if its timestamp is newer (RFC 6191,
//! section 2), which is chance where timestamps have an offset for each destination, or, since Linux 6.18.17, for each connection (`net.ipv4.tcp_timestamps = 1`, the default); else
//! it is held up for a second. Without offsets (2) it is newer.
//!
//! Offsets keep to oneself how long the machine has run and which pods share it, and are part of what hides ports from a guesser off the path. So they are left out only where somebody asks
//! for it: a program that opens thousands of connections a minute to several services notices, and no other.

use std::fs;
use std::io;
use std::path::Path;

const SETTING: &str = "/proc/sys/net/ipv4/tcp_timestamps";
/// With offsets.
const OFFSET: &str = "1";
/// Without.
const PLAIN: &str = "2";

/// Has this thread's network namespace use timestamps without offsets (see the module `timestamps` for the price). Where timestamps are off, they stay so.
///
/// # Errors
///
/// The setting cannot be written, as in a container without privileges. The redirect works without it.
fn plain_timestamps() -> io::Result<()> {
    set(Path::new(SETTING))
}

fn set(setting: &Path) -> io::Result<()> {
    if fs::read_to_string(setting)?.trim() == OFFSET {
        fs::write(setting, PLAIN)?;
    }
    Ok(())
}

/// [`plain_timestamps`]; what the user should know where that is not to be had.
pub(crate) fn plain_or_note() -> Option<String> {
    let error = plain_timestamps().err()?;
    Some(format!(
        "net.ipv4.tcp_timestamps cannot be set to 2 here ({error}): of connections that a program opens in quick succession to different services, some may take a second to open"
    ))
}

#[cfg(test)]
mod tests {
    use std::{env, process};

    use super::*;

    #[test]
    fn offsets_are_left_out_and_what_is_off_stays_off() {
        let setting = env::temp_dir().join(format!("weft-redirect-timestamps-{}", process::id()));
        for (before, after) in [("1\n", "2"), ("2\n", "2\n"), ("0\n", "0\n")] {
            fs::write(&setting, before).expect("the temporary directory is writable");
            set(&setting).expect("the file is there");
            assert_eq!(fs::read_to_string(&setting).expect("the file is there"), after);
        }
        fs::remove_file(&setting).expect("the file was made above");
        assert!(set(&setting).is_err(), "a kernel without it is told");
    }
}
