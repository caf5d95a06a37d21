//! One `weft up`, and everything that a test asks of it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::process::{Output, Running};
use crate::{POLL, eventually, programs};

mod look;

/// How long a world may take until every workload of it is ready.
const START: Duration = Duration::from_secs(90);
/// How long it may take to end in order.
const END: Duration = Duration::from_secs(10);
/// How long a command in a workload's place may take.
const COMMAND: Duration = Duration::from_secs(60);
/// Of the log of a world in which a test failed, so much is shown.
const SHOWN_LOG: usize = 64 * 1024;
/// What would have a peer ask somebody else than the mesh.
const PROXIES: [&str; 8] =
    ["http_proxy", "https_proxy", "all_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"];

/// A mesh that runs as long as this lives.
#[derive(Debug)]
pub struct World {
    weft: PathBuf,
    dir: TempDir,
    up: Child,
    /// Workloads and services with their addresses, as `weft up` tells them once all is ready.
    summary: Value,
}

impl World {
    /// Brings a mesh up and waits until all of it is ready. In the file, `@PEERS@` stands for the directory of the peers' own
    /// files, `@PYTHON@` for the interpreter that runs them, and `@WORK@` for a directory that workloads may write to.
    ///
    /// # Panics
    ///
    /// If it does not come up; the log is shown.
    #[track_caller]
    pub fn up(yaml: &str) -> Self {
        Self::up_with(yaml, |_| {})
    }

    /// The same, after `prepare` has put files into `@WORK@`.
    #[track_caller]
    pub fn up_with(yaml: &str, prepare: impl FnOnce(&Path)) -> Self {
        Self::launch(yaml, None, prepare)
    }

    /// The same, with a shell script in the place of the control plane, which becomes that in the end: `exec @CONTROL_PLANE@ "$@"`.
    #[track_caller]
    pub fn up_with_control_plane(yaml: &str, script: &str, prepare: impl FnOnce(&Path)) -> Self {
        Self::launch(yaml, Some(("weft-control-plane", script)), prepare)
    }

    /// The same, with a shell script in the place of every sidecar. It is run in the replica's private directory with the
    /// arguments that the sidecar would have, and becomes that in the end: `exec @SIDECAR@ "$@"`.
    #[track_caller]
    pub fn up_with_sidecar(yaml: &str, script: &str, prepare: impl FnOnce(&Path)) -> Self {
        Self::launch(yaml, Some(("weft-sidecar", script)), prepare)
    }

    /// The same, with a shell script in the place of the redirect, which becomes that in the end: `exec @REDIRECT@ "$@"`.
    #[track_caller]
    pub fn up_with_redirect(yaml: &str, script: &str) -> Self {
        Self::launch(yaml, Some(("weft-redirect", script)), |_| {})
    }

    #[track_caller]
    fn launch(yaml: &str, script: Option<(&str, &str)>, prepare: impl FnOnce(&Path)) -> Self {
        programs::require(&["curl"]);
        let mut weft = programs::weft("weft");
        for sibling in ["weft-control-plane", "weft-redirect", "weft-sidecar"] {
            programs::weft(sibling);
        }
        let dir = tempfile::Builder::new().prefix("weft-lab-").tempdir().expect("a temporary directory");
        let work = dir.path().join("work");
        fs::create_dir(&work).expect("a fresh directory takes another");
        prepare(&work);
        let here = |text: &str| {
            text.replace("@PEERS@", &programs::peers().to_string_lossy())
                .replace("@PYTHON@", &programs::python().to_string_lossy())
                .replace("@WORK@", &work.to_string_lossy())
        };
        let file = dir.path().join("mesh.yaml");
        fs::write(&file, here(yaml)).expect("a fresh directory takes a file");
        if let Some((program, script)) = script {
            weft = programs::with_script(&dir.path().join("bin"), program, &here(script));
        }

        let log = File::create(dir.path().join("log")).expect("a fresh directory takes a file");
        let mut command = weft_command(&weft);
        command.args(["up", "--rootless", "--run-dir"]).arg(dir.path().join("run")).arg(&file);
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a file is shared")).stderr(log);
        let up = command.spawn().expect("weft starts");
        let mut world = Self { weft, dir, up, summary: Value::Null };
        world.wait_until_ready();
        world
    }

    #[track_caller]
    fn wait_until_ready(&mut self) {
        let (ready, end) = (self.run().join("ready"), Instant::now() + START);
        loop {
            if let Ok(text) = fs::read_to_string(&ready) {
                self.summary = serde_json::from_str(&text).expect("`ready` is JSON and written whole");
                return;
            }
            if let Some(status) = self.up.try_wait().expect("it is our own child") {
                panic!("weft up ended ({status}) before all was ready");
            }
            assert!(Instant::now() < end, "not all was ready within {START:?}");
            std::thread::sleep(POLL);
        }
    }

    /// The directory that workloads may write to.
    pub fn work(&self) -> PathBuf {
        self.dir.path().join("work")
    }

    /// What `weft up` has said so far; warnings of sidecars and of the control plane are in it.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.path().join("log")).unwrap_or_default()).into_owned()
    }

    /// The state directory of the control plane.
    pub fn state(&self) -> PathBuf {
        self.run().join("state")
    }

    fn run(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    fn weft(&self) -> Command {
        weft_command(&self.weft)
    }

    /// Runs a command in a workload's place: `NAMESPACE/NAME` of a workload or of a replica.
    #[track_caller]
    pub fn exec(&self, place: &str, command: &[&str]) -> Output {
        self.spawn(place, command).wait(COMMAND)
    }

    /// Starts a command in a workload's place.
    #[track_caller]
    pub fn spawn(&self, place: &str, command: &[&str]) -> Running {
        let mut exec = self.weft();
        exec.args(["exec", "--run-dir"]).arg(self.run()).arg(place).arg("--").args(command);
        Running::start(exec)
    }

    /// Starts one of the Python peers in a workload's place; the first word is its file.
    #[track_caller]
    pub fn spawn_peer(&self, place: &str, words: &[&str]) -> Running {
        let (python, script) = (programs::python(), programs::peers().join(words[0]));
        let (python, script) = (python.to_string_lossy(), script.to_string_lossy());
        let mut command = vec![&*python, &*script];
        command.extend(&words[1..]);
        self.spawn(place, &command)
    }

    /// What a Python peer answers in a workload's place.
    #[track_caller]
    pub fn peer(&self, place: &str, words: &[&str]) -> Value {
        self.spawn_peer(place, words).wait(COMMAND).json()
    }

    /// What curl prints in a workload's place.
    #[track_caller]
    pub fn curl(&self, place: &str, arguments: &[&str]) -> String {
        let mut command = vec!["curl", "-sS", "--max-time", "30"];
        command.extend(arguments);
        self.exec(place, &command).good()
    }

    /// The status of a GET with weft's own reason behind it, if weft gave one: `200`, `403 mtls-required`; `none` if there is no
    /// answer.
    #[track_caller]
    pub fn status(&self, place: &str, url: &str) -> String {
        let said = "%{http_code} %header{weft-error}";
        let output = self.exec(place, &["curl", "-sS", "--max-time", "10", "-o", "/dev/null", "-w", said, url]);
        if output.status.success() { output.stdout.trim().to_owned() } else { "none".to_owned() }
    }

    /// A line of shell as a user would type it, with `weft` in the search path and this mesh as the one that is meant; not started.
    pub fn shell(&self, line: &str) -> Command {
        let mut shell = weft_command(Path::new("sh"));
        let mut path = self.weft.parent().map(|dir| dir.as_os_str().to_owned()).unwrap_or_default();
        path.push(":");
        path.push(programs::search_path());
        shell.env("PATH", path).env("WEFT_RUN_DIR", self.run()).args(["-c", line]);
        shell
    }

    /// Starts a command on the mesh's own network, as its root.
    #[track_caller]
    pub fn lab(&self, command: &[&str]) -> Running {
        let mut exec = self.weft();
        exec.args(["exec", "--run-dir"]).arg(self.run()).args(["--lab", "--"]).args(command);
        Running::start(exec)
    }

    /// Starts a Python peer on the mesh's own network, as its root.
    #[track_caller]
    pub fn lab_peer(&self, words: &[&str]) -> Running {
        let (python, script) = (programs::python(), programs::peers().join(words[0]));
        let (python, script) = (python.to_string_lossy(), script.to_string_lossy());
        let mut command = vec![&*python, &*script];
        command.extend(&words[1..]);
        self.lab(&command)
    }

    /// Captures what goes over the mesh's own network, into a file that is readable at any time.
    #[track_caller]
    pub fn capture(&self) -> (Running, PathBuf) {
        let file = self.work().join("bridge.pcap");
        let mut capture = self.lab_peer(&["capture.py", "weft0", &file.to_string_lossy()]);
        eventually("the capture begins", || {
            assert!(capture.ended().is_none(), "the capture ended: {}", capture.stderr());
            fs::metadata(&file).ok().filter(|found| found.len() >= 24)
        });
        (capture, file)
    }

    /// Changes a manifest that the control plane follows, as a tool should: a new file, renamed over the old one.
    #[track_caller]
    pub fn edit_manifest(&self, file: &str, edit: impl FnOnce(&mut Value)) {
        let path = self.run().join("manifests").join(file);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) => panic!("the manifest {} cannot be read: {error}", path.display()),
        };
        let mut object: Value = serde_json::from_str(&text).expect("weft up writes JSON");
        edit(&mut object);
        let temporary = path.with_file_name(format!(".{file}.test"));
        fs::write(&temporary, object.to_string()).expect("the directory is ours");
        fs::rename(&temporary, &path).expect("the directory is ours");
    }
}

fn weft_command(weft: &Path) -> Command {
    let mut command = Command::new(weft);
    command.env("PATH", programs::search_path()).env("PYTHONDONTWRITEBYTECODE", "1").env("NO_COLOR", "1");
    for name in PROXIES {
        command.env_remove(name);
    }
    command
}

impl Drop for World {
    fn drop(&mut self) {
        if !matches!(self.up.try_wait(), Ok(Some(_))) {
            let _ = kill(Pid::from_raw(self.up.id().cast_signed()), Signal::SIGINT);
            let end = Instant::now() + END;
            while matches!(self.up.try_wait(), Ok(None)) && Instant::now() < end {
                std::thread::sleep(POLL);
            }
            // Nothing happens to one that has ended.
            let _ = self.up.kill();
            let _ = self.up.wait();
        }
        if std::thread::panicking() {
            let log = fs::read(self.dir.path().join("log")).unwrap_or_default();
            let from = log.len().saturating_sub(SHOWN_LOG);
            eprintln!("--- what weft up said:\n{}---", String::from_utf8_lossy(&log[from..]));
        }
    }
}
