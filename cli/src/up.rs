//! `weft up`: read the file → check the machine → take the run directory → enter namespaces → start the lab → wait.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, User};
use weft_core::wellknown::SIDECAR_UID;

use crate::confine::Identity;
use crate::console::{Event, Style, millis};
use crate::init::Signals;
use crate::lab::protocol::LabSpec;
use crate::mesh_file::{MAX_FILE, Mesh, Workload};
use crate::plan::Plan;
use crate::rundir::{Location, RunDir};
use crate::{complain, init, preflight, userns, wire};

/// The user and group that a workload appears as where the real ones are root's.
const NOBODY: u32 = 65534;

/// What `weft up` is told.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  weft up
  weft up examples/shop/mesh.yaml --sidecar-logs
  weft up --json mesh.yaml | jq -r .event")]
pub(crate) struct UpArgs {
    /// File of workloads, services and manifests
    #[arg(value_name = "FILE", default_value = "mesh.yaml")]
    file: PathBuf,

    #[arg(
        long,
        value_name = "DIR",
        help = "Directory for sockets and state [default: $XDG_RUNTIME_DIR/weft/NAME, or /tmp/weft-UID/NAME]"
    )]
    run_dir: Option<PathBuf>,

    /// Work inside a user namespace even as root
    #[arg(long)]
    rootless: bool,

    /// Say everything as one JSON object a line
    #[arg(long)]
    json: bool,

    /// Show every line that sidecars and the control plane log, not only warnings and errors
    #[arg(long)]
    sidecar_logs: bool,
}

pub(crate) fn main(args: &UpArgs) -> anyhow::Result<ExitCode> {
    let begun = Instant::now();
    let style = Style::for_stdout(args.json);
    let (shown, dir, text) = read(&args.file)?;
    let mesh = match Mesh::read(&shown, &dir, &text) {
        Ok(mesh) => mesh,
        Err(problems) => return Ok(refuse(style, &problems)),
    };
    let plan = Plan::new(&mesh);
    let rootless = args.rootless || !Uid::effective().is_root();
    let identities = match identities(&mesh, rootless) {
        Ok(identities) => identities,
        Err(problems) => return Ok(refuse(style, &problems)),
    };
    let location = Location::of(args.run_dir.as_deref(), &mesh.name)?;
    if dir.starts_with(&location.cover) {
        bail!("{shown} is inside {}, which workloads do not see: choose another --run-dir", location.cover.display());
    }
    let run = RunDir::claim(&location, &mesh.name)?;
    let programs = match preflight::check(&mesh, &plan, rootless, &location.path) {
        Ok(programs) => programs,
        Err(lacking) => {
            run.remove()?;
            return Ok(refuse(style, &lacking));
        }
    };
    style.say(&Event::Step { what: "file and machine checked".to_owned(), millis: millis(begun.elapsed()) });

    let spec = LabSpec {
        shown,
        dir,
        text,
        run: location.path,
        cover: location.cover,
        programs,
        rootless,
        identities,
        style,
        sidecar_logs: args.sidecar_logs,
    };
    let outcome = start(&spec, style);
    let removed = run.remove();
    let code = outcome?;
    removed?;
    Ok(ExitCode::from(code))
}

/// The name that problems carry, the directory where the file's paths begin, and its text.
fn read(file: &Path) -> anyhow::Result<(String, PathBuf, String)> {
    let shown = file.display().to_string();
    let path = file.canonicalize().with_context(|| format!("{shown} cannot be read"))?;
    let opened = std::fs::File::open(&path).with_context(|| format!("{shown} cannot be read"))?;
    let mut text = String::new();
    opened.take(MAX_FILE + 1).read_to_string(&mut text).with_context(|| format!("{shown} cannot be read"))?;
    if text.len() as u64 > MAX_FILE {
        bail!("{shown} has more than {MAX_FILE} bytes: is it the right file?");
    }
    let dir = path.parent().context("the file is in no directory")?.to_owned();
    Ok((shown, dir, text))
}

/// Says every problem. Nothing has been started.
fn refuse<T: ToString>(style: Style, problems: &[T]) -> ExitCode {
    for problem in problems {
        let message = problem.to_string();
        complain(&message);
        if style.json {
            style.say(&Event::Error { message });
        }
    }
    let count = if problems.len() == 1 { "one problem".to_owned() } else { format!("{} problems", problems.len()) };
    complain(&format!("nothing was started: {count}"));
    ExitCode::FAILURE
}

/// Who each workload runs as, by its place in the file.
fn identities(mesh: &Mesh, rootless: bool) -> Result<Vec<Identity>, Vec<String>> {
    let mut identities = Vec::new();
    let mut problems = Vec::new();
    for workload in &mesh.workloads {
        match identity(workload, rootless) {
            Ok(identity) => identities.push(identity),
            Err(error) => problems.push(format!("workload {}/{}: user: {error:#}", workload.namespace, workload.name)),
        }
    }
    if problems.is_empty() { Ok(identities) } else { Err(problems) }
}

fn identity(workload: &Workload, rootless: bool) -> anyhow::Result<Identity> {
    if rootless {
        if let Some(user) = &workload.user {
            bail!("only root can run a workload as {user}: run weft with sudo, or leave `user` out");
        }
        // Inside, root would have capabilities again; outside, the files are the same user's whatever the number here.
        let ordinary = |id: u32| if id == 0 { NOBODY } else { id };
        return Ok(Identity::Mapped { uid: ordinary(Uid::effective().as_raw()), gid: ordinary(Gid::effective().as_raw()) });
    }
    let user = match &workload.user {
        Some(name) => User::from_name(name)?.with_context(|| format!("{name} is no user of this machine"))?,
        None => default_user()?,
    };
    if user.uid.is_root() || user.uid.as_raw() == SIDECAR_UID {
        bail!(
            "a workload does not run as {} ({}): it could step over its own sidecar; name an ordinary user",
            user.name,
            user.uid
        );
    }
    Ok(Identity::User { uid: user.uid.as_raw(), gid: user.gid.as_raw(), name: user.name, home: user.dir })
}

/// Who called sudo; else nobody.
fn default_user() -> anyhow::Result<User> {
    let called: Option<u32> = std::env::var("SUDO_UID").ok().and_then(|uid| uid.parse().ok());
    if let Some(uid) = called.filter(|uid| *uid != 0)
        && let Some(user) = User::from_uid(Uid::from_raw(uid))?
    {
        return Ok(user);
    }
    User::from_name("nobody")?.context("there is no user nobody: name one with `user:`")
}

/// Starts the lab and waits for its end. A signal asks it to end; a second one leaves it no choice.
fn start(spec: &LabSpec, style: Style) -> anyhow::Result<u8> {
    let signals = Signals::hold(&[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]).context("signals cannot be held")?;
    let message = wire::line(spec).context("a path in the mesh is not UTF-8")?;
    userns::enter_lab(spec.rootless)?;
    let (mut ours, theirs) = UnixStream::pair().context("no socket pair")?;
    let mut command = init::this_program("__init");
    // The daemons read their flags from such variables too; only what is logged is for the user to say.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name != "WEFT_LOG" && name.as_encoded_bytes().starts_with(b"WEFT_")) {
        command.env_remove(name);
    }
    let child = command.stdin(Stdio::from(OwnedFd::from(theirs))).spawn().context("the lab cannot be started")?;
    drop(command);
    let lab = Pid::from_raw(child.id().cast_signed());
    // A lab that cannot read this has said why and ended. While our end is open, it knows that we live.
    let _ = ours.write_all(&message);
    let mut asked = false;
    loop {
        match signals.next(lab)? {
            init::Event::Ended(code) => return Ok(code),
            init::Event::Signal(_) if asked => kill(lab, Signal::SIGKILL)?,
            init::Event::Signal(_) => {
                asked = true;
                style.say(&Event::Note { message: "ending; once more cuts it off".to_owned() });
                kill(lab, Signal::SIGTERM)?;
            }
        }
    }
}
