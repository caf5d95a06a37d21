//! The last step before a workload's own program: an ordinary user, no capability, and no way to get one.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::str::FromStr;

use anyhow::Context;
use clap::Args;
use nix::sys::prctl::set_no_new_privs;
use nix::unistd::{Gid, Uid, setgid, setgroups, setuid};
use serde::{Deserialize, Serialize};

use crate::mesh_file::Pairs;
use crate::{complain, init, userns};

/// What a shell says of a program that is there and cannot be run, and of one that is not there.
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Who a workload's program runs as.
#[derive(Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Identity {
    /// In a user namespace below the lab's, as the user who runs the mesh; without rights over the network around it.
    Mapped { uid: u32, gid: u32 },
    /// As another user of the machine, where the mesh runs as root.
    User { uid: u32, gid: u32, name: String, home: PathBuf },
}

/// Where and as whom a workload's program runs.
#[derive(Serialize, Deserialize, Debug, Clone)]
pub(crate) struct Place {
    pub(crate) identity: Identity,
    pub(crate) workdir: Option<PathBuf>,
    /// The directory of the file: where it runs without a `workdir`, if its user may enter it.
    pub(crate) default_dir: PathBuf,
    pub(crate) env: Pairs,
}

impl Place {
    /// The command that runs `words` here, as [`main`] takes it.
    pub(crate) fn command<I>(&self, words: I) -> Command
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let mut command = init::this_program("__exec");
        match &self.identity {
            Identity::Mapped { uid, gid } => {
                command.arg(format!("--map={uid}:{gid}"));
            }
            Identity::User { uid, gid, name, home } => {
                command.arg(format!("--user={uid}:{gid}")).env("HOME", home).env("USER", name).env("LOGNAME", name);
            }
        }
        if let Some(dir) = &self.workdir {
            command.arg("--workdir").arg(dir);
        }
        command.arg("--default-dir").arg(&self.default_dir);
        command.envs(&self.env).arg("--").args(words);
        command
    }
}

/// `weft __exec`: gives up every right and becomes the command.
#[derive(Args, Debug)]
pub(crate) struct ConfinedArgs {
    /// User and group to be in a user namespace below
    #[arg(long, value_name = "UID:GID")]
    map: Option<Ids>,
    /// User and group to become
    #[arg(long, value_name = "UID:GID", conflicts_with = "map")]
    user: Option<Ids>,
    /// Directory to run in
    #[arg(long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// Directory to run in without --workdir, where it can be entered
    #[arg(long, value_name = "DIR")]
    default_dir: Option<PathBuf>,
    /// Program and arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// `UID:GID`
#[derive(Debug, Clone, Copy)]
struct Ids {
    uid: u32,
    gid: u32,
}

impl FromStr for Ids {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not UID:GID");
        let (uid, gid) = text.split_once(':').ok_or_else(wrong)?;
        Ok(Self { uid: uid.parse().map_err(|_| wrong())?, gid: gid.parse().map_err(|_| wrong())? })
    }
}

/// Becomes the command; comes back only with what went wrong.
#[expect(clippy::unnecessary_wraps, reason = "every subcommand has this shape")]
pub(crate) fn main(args: &ConfinedArgs) -> anyhow::Result<ExitCode> {
    let program = args.command[0].display();
    if let Err(error) = prepare(args) {
        complain(&format!("{program} was not started: {error:#}"));
        return Ok(ExitCode::from(CANNOT_RUN));
    }
    let error = Command::new(&args.command[0]).args(&args.command[1..]).exec();
    // A directory of PATH that may not be looked into makes the system say so of a program that is nowhere.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let closed = if error.kind() == ErrorKind::PermissionDenied { closed(&args.command[0], &path) } else { Vec::new() };
    if !closed.is_empty() {
        let closed: Vec<String> = closed.iter().map(|dir| dir.display().to_string()).collect();
        complain(&format!(
            "{program} was not started: it is not in PATH ({}), as far as user {} may look: not into {}",
            path_variable(),
            nix::unistd::geteuid(),
            closed.join(", ")
        ));
        return Ok(ExitCode::from(NOT_FOUND));
    }
    if error.kind() == ErrorKind::NotFound {
        complain(&format!(
            "{program} was not started: it (or what its first line names) is not there; PATH is {}",
            path_variable()
        ));
        return Ok(ExitCode::from(NOT_FOUND));
    }
    let hint = match error.kind() {
        ErrorKind::PermissionDenied => format!(": user {} must be able to read and run it", nix::unistd::geteuid()),
        _ => String::new(),
    };
    complain(&format!("{program} was not started: {error}{hint}"));
    Ok(ExitCode::from(CANNOT_RUN))
}

/// The directories of `path` that this user may not look into, where `program` is looked for and found in none of them.
fn closed(program: &OsStr, path: &OsStr) -> Vec<PathBuf> {
    let mut closed = Vec::new();
    if program.as_encoded_bytes().contains(&b'/') {
        return closed;
    }
    for dir in std::env::split_paths(path) {
        match dir.join(program).metadata() {
            // It is there, and may not be run.
            Ok(_) => return Vec::new(),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => closed.push(dir),
            Err(_) => {}
        }
    }
    closed
}

fn path_variable() -> String {
    std::env::var("PATH").unwrap_or_else(|_| "not set".to_owned())
}

fn prepare(args: &ConfinedArgs) -> anyhow::Result<()> {
    init::unblock_signals()?;
    if let Some(Ids { uid, gid }) = args.map {
        // From here on it has every capability in a namespace that owns nothing; exec as a user other than 0 takes even those.
        userns::enter_below(uid, gid)?;
    }
    if let Some(Ids { uid, gid }) = args.user {
        let gid = Gid::from_raw(gid);
        setgroups(&[gid]).context("its groups could not be set")?;
        setgid(gid).context("its group could not be set")?;
        setuid(Uid::from_raw(uid)).context("its user could not be set")?;
    }
    set_no_new_privs().context("new privileges could not be ruled out")?;
    match (&args.workdir, &args.default_dir) {
        (Some(dir), _) => enter(dir).with_context(|| format!("its workdir {} cannot be entered", dir.display())),
        (None, Some(dir)) => enter(dir).or_else(|_| enter(Path::new("/"))).context("/ cannot be entered"),
        (None, None) => Ok(()),
    }
}

fn enter(dir: &Path) -> std::io::Result<()> {
    std::env::set_current_dir(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_two_numbers() {
        assert_eq!("1000:100".parse::<Ids>().map(|i| (i.uid, i.gid)), Ok((1000, 100)));
        for bad in ["", "1000", "a:b", "1:", "-1:1"] {
            assert!(bad.parse::<Ids>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_program_that_is_there_is_not_said_to_be_missing() {
        // As root every directory is open; what matters is that nothing is made up.
        for (program, path) in
            [("sh", "/bin:/usr/bin"), ("/nowhere/sh", "/bin"), ("no-such-program", "/bin:/nowhere"), ("sh", "")]
        {
            assert_eq!(closed(OsStr::new(program), OsStr::new(path)), Vec::<PathBuf>::new(), "{program}");
        }
        let home = tempfile::tempdir().expect("a directory");
        let (shut, open) = (home.path().join("shut"), home.path().join("open"));
        for dir in [&shut, &open] {
            std::fs::create_dir(dir).expect("made");
        }
        std::fs::write(open.join("tool"), "").expect("written");
        std::fs::set_permissions(&shut, std::os::unix::fs::PermissionsExt::from_mode(0o000)).expect("shut");
        let path = std::env::join_paths([&shut, &open]).expect("a path");
        assert_eq!(closed(OsStr::new("tool"), &path), Vec::<PathBuf>::new(), "it is found in the second");
        if !nix::unistd::geteuid().is_root() {
            assert_eq!(closed(OsStr::new("other"), &path), [shut]);
        }
    }

    #[test]
    fn a_place_is_told_by_flags_that_are_read_back() {
        let place = Place {
            identity: Identity::Mapped { uid: 1000, gid: 100 },
            workdir: None,
            default_dir: PathBuf::from("/srv"),
            env: Pairs::new(),
        };
        let command = place.command(["sleep", "--help"]);
        let args: Vec<&OsStr> = command.get_args().collect();
        assert_eq!(args, ["__exec", "--map=1000:100", "--default-dir", "/srv", "--", "sleep", "--help"]);
    }
}
