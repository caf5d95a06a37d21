//! Programs of the system's that the lab runs to their end.

use std::path::Path;
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Runs a program with `input` on its standard input, and gives what it printed; or what it said is wrong.
pub(super) async fn run(program: &Path, args: &[&str], input: &str) -> Result<String, String> {
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    let mut child = Command::new(program)
        .args(args)
        .env("LC_ALL", "C")
        // Where legacy iptables has its lock, an ordinary user cannot make a file.
        .env("XTABLES_LOCKFILE", "xtables.lock")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| format!("{name} could not be started: {e}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that gave up early has closed its end; its words say why.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(|e| format!("{name} could not be waited for: {e}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr).split_whitespace().collect::<Vec<_>>().join(" ");
    Err(if words.is_empty() { format!("{name}: {}", output.status) } else { format!("{name} says: {words}") })
}
