//! A real browser, and the page that `weft dashboard` brings to it.

use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::process::Running;
use crate::{eventually, programs};

/// How long a browser may take for all that it is asked.
const BROWSING: Duration = Duration::from_secs(150);

/// A `weft dashboard --no-open` that runs as long as this lives.
#[derive(Debug)]
pub struct Dashboard {
    process: Running,
    /// The address that is good once.
    pub address: String,
}

impl Dashboard {
    /// Starts it.
    ///
    /// # Panics
    ///
    /// If it prints no address.
    #[track_caller]
    pub fn open(command: Command) -> Self {
        let mut process = Running::start(command);
        let address = eventually("it prints the page's address", || {
            assert!(process.ended().is_none(), "it ended: {}", process.stderr());
            process.stdout().lines().next().map(ToOwned::to_owned)
        });
        Self { process, address }
    }

    /// Without the token.
    pub fn origin(&self) -> &str {
        self.address.split_once("/open").map_or(&self.address, |(origin, _)| origin)
    }

    /// What it complains of.
    pub fn stderr(&self) -> String {
        self.process.stderr()
    }
}

/// What came of steps in Chromium (`tests/peers/browser.py` has them): `results`, one for each, all `requests` and all `complaints` of its console.
#[track_caller]
pub fn browse(steps: &Value) -> Value {
    programs::require(&["chromium"]);
    programs::require_modules(&["websockets"]);
    let mut command = Command::new(programs::python());
    command.arg(programs::peers().join("browser.py")).arg(steps.to_string()).env("PYTHONDONTWRITEBYTECODE", "1");
    Running::start(command).wait(BROWSING).json()
}
