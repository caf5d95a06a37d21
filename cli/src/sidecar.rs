//! `weft sidecar`: what one sidecar knows and has counted, from its own Unix socket, which only the mesh's owner can reach.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;

use crate::lab::door::{self, Listed};
use crate::log;
use crate::output::{Output, plain_json, print};
use crate::rundir::{self, Which};

/// What `weft sidecar` is told.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  weft sidecar shop/web-0
  weft sidecar shop/web-0 /metrics
  weft sidecar shop/web-0 /check -o yaml
  weft sidecar shop/web-0 /denials -o json | jq '.[0].text'")]
pub(crate) struct SidecarArgs {
    /// A replica, as NAMESPACE/NAME
    #[arg(value_name = "NS/REPLICA")]
    target: String,

    /// What to ask for: /config, /check, /held, /edges, /denials, /plaintext, /flows, /traces, /metrics or /ready; or `log`: what it logs
    #[arg(default_value = "/config")]
    path: String,

    /// With `log`: what it is to log from now on, until it starts anew: a level, or TARGET=LEVEL,…
    #[arg(value_name = "FILTER")]
    level: Option<String>,

    #[command(flatten)]
    which: Which,

    #[command(flatten)]
    output: Output,
}

/// What `weft __get` is told: it runs in the lab's namespaces.
#[derive(Args, Debug)]
pub(crate) struct GetArgs {
    socket: PathBuf,
    path: String,
    #[arg(default_value = "GET")]
    method: String,
}

/// How long a sidecar may take to answer: it may have to wait for other pods.
const ANSWER: Duration = Duration::from_secs(12);

pub(crate) fn main(args: &SidecarArgs) -> anyhow::Result<ExitCode> {
    let run = args.which.find()?;
    let text = match (args.path.as_str(), &args.level) {
        ("log", None) => ask(&run, &args.target, "/log")?,
        ("log", Some(filter)) => {
            let filter = log::filter(filter).map_err(anyhow::Error::msg)?;
            tell(&run, &args.target, "POST", &format!("/log?filter={filter}"))?
        }
        (_, Some(_)) => bail!("only log takes a second word"),
        (path, None) => ask(&run, &args.target, path)?,
    };
    // Metrics are no JSON: for programs they are one text.
    let value = serde_json::from_str(&text).unwrap_or_else(|_| serde_json::Value::String(text.clone()));
    if args.output.is_text() {
        // For people it is what the sidecar wrote, and JSON mostly.
        print(&plain_json(&text))?;
    } else {
        args.output.print(|_| String::new(), &value)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The body of one GET on a sidecar's socket.
pub(crate) fn ask(run: &Path, target: &str, path: &str) -> anyhow::Result<String> {
    tell(run, target, "GET", path)
}

/// The body of the answer; `method` is GET or POST.
pub(crate) fn tell(run: &Path, target: &str, method: &str, path: &str) -> anyhow::Result<String> {
    let all = door::list(run)?;
    let index = all.iter().position(|l| l.name() == target).with_context(|| {
        let known: Vec<String> = all.iter().map(Listed::name).collect();
        format!("no replica {target} runs; those that do: {}", known.join(", "))
    })?;
    if !all[index].meshed {
        bail!("{target} has no sidecar");
    }
    tell_one(run, index, target, method, path)
}

/// `index` is the replica's place in the list of all.
fn tell_one(run: &Path, index: usize, target: &str, method: &str, path: &str) -> anyhow::Result<String> {
    let output = lab_get(run, index, path, method)?.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("the sidecar of {target}: {}", said.trim().trim_start_matches("weft: "));
    }
    String::from_utf8(output.stdout).context("the answer is not text")
}

/// The command that asks a replica's sidecar from inside the lab, and prints what it answers.
pub(crate) fn lab_get(run: &Path, index: usize, path: &str, method: &str) -> anyhow::Result<Command> {
    let me = std::env::current_exe().context("this program cannot find itself")?;
    let socket = run.join(rundir::PODS).join(index.to_string()).join("admin.sock");
    let mut command = Command::new(&me);
    command.arg("exec").arg("--run-dir").arg(run).args(["--lab", "--"]);
    command.arg(&me).arg("__get").arg(socket).args([path, method]);
    Ok(command)
}

/// Inside the lab: one question, the answer's body to standard output.
pub(crate) fn get(args: &GetArgs) -> anyhow::Result<ExitCode> {
    let mut stream = UnixStream::connect(&args.socket).with_context(|| format!("{} does not answer", args.socket.display()))?;
    if args.method == "FOLLOW" {
        return follow(stream, &args.path);
    }
    stream.set_read_timeout(Some(ANSWER))?;
    write!(stream, "{} {} HTTP/1.1\r\nHost: sidecar\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", args.method, args.path)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("it does not answer in time")?;
    let body = body(&answer).with_context(|| format!("{} {}", args.method, args.path))?;
    std::io::stdout().write_all(body)?;
    Ok(ExitCode::SUCCESS)
}

/// A tap says that it is there every two seconds: who is silent for longer is gone.
const SILENCE: Duration = Duration::from_secs(15);

/// Passes on an answer for as long as it comes.
fn follow(mut stream: UnixStream, path: &str) -> anyhow::Result<ExitCode> {
    stream.set_read_timeout(Some(SILENCE))?;
    // In this version of HTTP a body without a length ends with the connection.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: sidecar\r\n\r\n")?;
    let mut answer = BufReader::new(stream);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < 16 * 1024 {
        if answer.read_until(b'\n', &mut head)? == 0 {
            break;
        }
    }
    if head.split(|b| *b == b' ').nth(1).is_none_or(|status| status != b"200") {
        answer.by_ref().take(16 * 1024).read_to_end(&mut head)?;
        body(&head)?;
    }
    let mut out = std::io::stdout().lock();
    let mut line = Vec::new();
    while answer.read_until(b'\n', &mut line)? > 0 {
        // Whoever reads this may be gone.
        out.write_all(&line).and_then(|()| out.flush())?;
        line.clear();
    }
    Ok(ExitCode::SUCCESS)
}

/// The body of an answer that is good, or what the sidecar says instead.
fn body(answer: &[u8]) -> anyhow::Result<&[u8]> {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").context("the answer is not HTTP")?;
    let (head, body) = (String::from_utf8_lossy(&answer[..end]), &answer[end + 4..]);
    let status = head.lines().next().unwrap_or_default().split_once(' ').map_or("", |(_, status)| status);
    if !status.starts_with("200") {
        bail!("it answers {}: {}", status.trim(), String::from_utf8_lossy(body).trim());
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_not_good_is_told_with_its_reason() {
        assert_eq!(body(b"HTTP/1.1 200 OK\r\nx: y\r\n\r\n{}\n").expect("good"), b"{}\n");
        let said = body(b"HTTP/1.1 404 Not Found\r\n\r\nthere are /live and /ready\n").expect_err("not good").to_string();
        assert_eq!(said, "it answers 404 Not Found: there are /live and /ready");
        assert!(body(b"what").is_err());
    }
}
