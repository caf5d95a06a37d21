//! The real sidecar alone, in a directory of its own: no redirect in front of it, and a control plane that never answers.

use std::fs::{self, DirBuilder};
use std::io;
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt;
use std::process::Command;

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::Value;
use tempfile::TempDir;

use crate::{Running, admin, eventually, programs};

/// What saved state begins with (`weft/v1/state.proto`).
const MAGIC: &[u8] = b"weft-state/1\n";

/// A sidecar that runs as long as this lives.
#[derive(Debug)]
pub struct Sidecar {
    dir: TempDir,
    process: Running,
    /// Where the control plane would be: connections are taken by the kernel, and by nobody else.
    _control_plane: TcpListener,
}

impl Sidecar {
    /// Starts one for `identity`, written `NS/SERVICE-ACCOUNT`, with a `weft.v1.SavedState` to begin with, and waits until it tells
    /// what it knows.
    ///
    /// # Panics
    ///
    /// If it does not come to that.
    #[track_caller]
    pub fn restored(identity: &str, state: &[u8]) -> Self {
        let dir = tempfile::Builder::new().prefix("weft-lab-").tempdir().expect("a temporary directory");
        let kept = dir.path().join("state");
        DirBuilder::new().mode(0o700).create(&kept).expect("a fresh directory takes another");
        fs::write(kept.join("state"), [MAGIC, digest(&SHA256, state).as_ref(), state].concat())
            .expect("a fresh directory takes a file");

        let control_plane = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = control_plane.local_addr().expect("it is bound");
        let mut command = Command::new(programs::weft("weft-sidecar"));
        programs::without_settings(&mut command);
        command.arg(format!("--control-plane={address}")).arg(format!("--identity={identity}"));
        command.args(["--pod-ips=127.0.0.1", "--workers=1", "--outbound-port=0", "--inbound-port=0", "--admin-port=0"]);
        command.arg("--drain-grace=1ms");
        command.arg("--state").arg(&kept).arg("--admin-socket").arg(dir.path().join("admin.sock"));
        command.env("NO_COLOR", "1");
        let mut sidecar = Self { dir, process: Running::start(command), _control_plane: control_plane };
        eventually("the sidecar tells what it knows", || {
            assert!(sidecar.process.ended().is_none(), "the sidecar ended:\n{}", sidecar.said());
            sidecar.ask("/config").ok().map(drop)
        });
        sidecar
    }

    fn ask(&self, path: &str) -> io::Result<(u16, String)> {
        admin::ask(&self.dir.path().join("admin.sock"), "GET", path)
    }

    /// What it knows.
    #[track_caller]
    pub fn config(&self) -> Value {
        let (_, text) = self.ask("/config").expect("the sidecar answers");
        serde_json::from_str(&text).expect("what it knows is JSON")
    }

    /// What it has logged so far.
    pub fn said(&self) -> String {
        self.process.stderr()
    }
}
