//! Commands with a deadline, and commands that run beside a test. Each is ended by its own id.

use std::ffi::OsStr;
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::POLL;

/// How long a command that was asked to end may take.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// How a command ended, and what it said.
#[derive(Debug)]
pub struct Output {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// What it printed.
    ///
    /// # Panics
    ///
    /// If it did not end well.
    #[track_caller]
    pub fn good(self) -> String {
        assert!(self.status.success(), "it ended with {}\n{}{}", self.status, self.stdout, self.stderr);
        self.stdout
    }

    /// What it printed, as JSON.
    ///
    /// # Panics
    ///
    /// If it did not end well, or printed something else.
    #[track_caller]
    pub fn json(self) -> Value {
        let stderr = self.stderr.clone();
        let text = self.good();
        match serde_json::from_str(&text) {
            Ok(value) => value,
            Err(error) => panic!("it did not print JSON ({error})\n{text}{stderr}"),
        }
    }
}

/// A command that runs beside the test; it is ended when this is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    shown: String,
    stdout: Pipe,
    stderr: Pipe,
}

impl Running {
    /// Starts it, without standard input.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    #[track_caller]
    pub fn start(mut command: Command) -> Self {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let shown = words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ");
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => panic!("`{shown}` cannot be started: {error}"),
        };
        let stdout = Pipe::from(child.stdout.take());
        let stderr = Pipe::from(child.stderr.take());
        Self { child, shown, stdout, stderr }
    }

    /// What it has printed so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What it has complained of so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// How it has ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("it is our own child")
    }

    /// Waits for its end.
    ///
    /// # Panics
    ///
    /// If it takes longer than `limit`.
    #[track_caller]
    pub fn wait(mut self, limit: Duration) -> Output {
        let Some(status) = self.within(limit) else {
            panic!("`{}` did not end within {limit:?}\n{}{}", self.shown, self.stdout(), self.stderr());
        };
        let end = Instant::now() + LAST_WORDS;
        while !(self.stdout.is_complete() && self.stderr.is_complete()) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        Output { status, stdout: self.stdout(), stderr: self.stderr() }
    }

    /// Asks it to end, and waits for what it says last.
    ///
    /// # Panics
    ///
    /// If it takes longer than `limit`.
    #[track_caller]
    pub fn finish(self, limit: Duration) -> Output {
        self.signal(Signal::SIGTERM);
        self.wait(limit)
    }

    /// Its process.
    pub(crate) fn id(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Asks it to end, and sees to it.
    pub fn stop(&mut self) {
        if self.ended().is_none() {
            self.signal(Signal::SIGTERM);
            if self.within(LAST_WORDS).is_none() {
                let _ = self.child.kill();
                let _ = self.child.wait();
            }
        }
    }

    fn signal(&self, signal: Signal) {
        let _ = kill(self.id(), signal);
    }

    fn within(&mut self, limit: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended() {
                return Some(status);
            }
            if Instant::now() >= end {
                return None;
            }
            std::thread::sleep(POLL.min(Duration::from_millis(5)));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Memory of a process in KiB: `VmRSS`, what is resident, or `VmHWM`, the most that ever was (`proc_pid_status(5)`).
#[track_caller]
pub(crate) fn memory(pid: Pid, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("a process has memory");
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().expect("the kernel writes a number")
}

/// What comes out of a pipe, read by a thread so that the writer never waits.
#[derive(Debug)]
struct Pipe {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Pipe {
    fn from<R: Read + Send + 'static>(pipe: Option<R>) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&bytes);
        let reader = pipe.map(|mut pipe| {
            std::thread::spawn(move || {
                let mut buffer = [0; 16 * 1024];
                while let Ok(n @ 1..) = pipe.read(&mut buffer) {
                    into.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..n]);
                }
            })
        });
        Self { bytes, reader }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    fn is_complete(&self) -> bool {
        self.reader.as_ref().is_none_or(JoinHandle::is_finished)
    }
}
