//! `weft tap`: requests and connections of a workload, live, as its sidecars see them.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitCode};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::Value;

use crate::fleet::Fleet;
use crate::fleet::reach::Reached;
use crate::http::escaped;
use crate::output::{self, Output, plain, print_on};
use crate::rundir::Which;

/// What `weft tap` is told.
#[derive(Args, Debug)]
#[command(after_help = "\
An event is written when a request is answered, or a connection ends. Of header fields the names are told, of paths never the query. Values of header fields, and the first KiB of both \
bodies, are shown where it is asked for and the workload's own configuration allows it (WEFT_TAP=headers or bodies in the annotation weft.dev/telemetry, tap: in mesh.yaml); values that let \
somebody in, as those of authorization and cookie, never. Who may do this is who may use the sidecars' admin sockets: the mesh's owner, or, on Kubernetes, whoever may exec into the pods. It costs a sidecar \
nothing while nobody taps. A sidecar tells --rate events a second; how many more there were is said.

Examples:
  weft tap shop/web
  weft tap shop/cart --from sa/web --errors
  weft tap shop/cart --path /buy --headers --max 1
  weft tap shop/web --direction outbound --to shop/cart --status 5xx --max 10 -o json | jq .reason")]
pub(crate) struct TapArgs {
    /// A workload or one of its pods
    #[arg(value_name = "NS/NAME")]
    target: String,

    /// Only of callers whose identity has this in it, or with this address
    #[arg(long, value_name = "TEXT")]
    from: Option<String>,

    /// Only to a service, workload or identity that has this in it, or an endpoint whose address begins so
    #[arg(long, value_name = "TEXT")]
    to: Option<String>,

    /// Only paths that begin so
    #[arg(long, value_name = "PREFIX")]
    path: Option<String>,

    /// Only this method
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,

    /// Only this status, or class of statuses
    #[arg(long, value_name = "503|5xx")]
    status: Option<String>,

    /// Only what failed
    #[arg(long)]
    errors: bool,

    /// Only calls that come in, or that go out
    #[arg(long, value_name = "inbound|outbound", value_parser = ["inbound", "outbound"])]
    direction: Option<String>,

    /// Shows the values of header fields, where the workload allows it
    #[arg(long)]
    headers: bool,

    /// Shows the beginning of both bodies as well, where the workload allows it
    #[arg(long)]
    bodies: bool,

    /// Ends after so many events
    #[arg(long, value_name = "N")]
    max: Option<u64>,

    /// Events a second of each sidecar, from 1 to 1000
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,

    #[command(flatten)]
    which: Which,

    #[arg(long, value_name = "NAME", help = "Context of the kubeconfig: a mesh on that cluster is meant")]
    context: Option<String>,

    #[command(flatten)]
    output: Output,
}

/// What a sidecar's follower says.
enum Said {
    /// A line of the tap's.
    Line(usize, String),
    /// It ended, and why if it says so.
    Ended(usize, String),
}

/// The longest line that is taken, in bytes.
const LONGEST: u64 = 256 * 1024;
/// How often it is looked whether somebody reads.
const LOOK: Duration = Duration::from_millis(500);

pub(crate) fn main(args: &TapArgs) -> anyhow::Result<ExitCode> {
    let fleet = Fleet::find(&args.which, args.context.as_deref())?;
    let sidecars = fleet.reach(&args.target)?;
    let path = format!("/tap?{}", query(args));
    let (tell, said) = channel();
    let mut children = Vec::new();
    for (i, sidecar) in sidecars.iter().enumerate() {
        children.push(follow(i, sidecar.follow(&path)?, &tell)?);
    }
    let (mut left, mut running) = (args.max.unwrap_or(u64::MAX), sidecars.len());
    let mut heard = vec![false; sidecars.len()];
    while left > 0 && running > 0 {
        match said.recv_timeout(LOOK) {
            Ok(Said::Line(i, line)) => {
                heard[i] = true;
                if let Some(text) = shown(&sidecars[i], &line, args.output, &mut left)
                    && !print_on(&text)?
                {
                    return Ok(ExitCode::SUCCESS);
                }
            }
            // A sidecar ends a tap after an hour: whoever looks still begins another.
            Ok(Said::Ended(i, why)) if why.is_empty() && std::mem::take(&mut heard[i]) => {
                children[i] = follow(i, sidecars[i].follow(&path)?, &tell)?;
            }
            Ok(Said::Ended(i, why)) => {
                running -= 1;
                let why = if why.is_empty() { "the tap ended" } else { &why };
                crate::complain(&format!("{} is not heard: {why}", sidecars[i].name()));
            }
            // Nothing happens, and nobody waits for it: so does the tap end in the sidecars.
            Err(RecvTimeoutError::Timeout) if !output::is_read() => return Ok(ExitCode::SUCCESS),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    drop(children);
    if left > 0 {
        bail!("no sidecar is heard any more");
    }
    Ok(ExitCode::SUCCESS)
}

/// A process that ends when it is dropped.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a follower; a thread passes on what it prints.
fn follow(i: usize, mut command: Command, tell: &Sender<Said>) -> anyhow::Result<Ending> {
    let mut child = command.spawn()?;
    let (stdout, stderr, tell) = (child.stdout.take().context("it has no output")?, child.stderr.take(), tell.clone());
    std::thread::spawn(move || {
        let mut lines = BufReader::new(stdout);
        let mut line = String::new();
        while lines.by_ref().take(LONGEST).read_line(&mut line).is_ok_and(|n| n > 0) {
            if tell.send(Said::Line(i, std::mem::take(&mut line))).is_err() {
                return;
            }
        }
        let mut why = String::new();
        let _ = stderr.map(|stderr| stderr.take(LONGEST).read_to_string(&mut why));
        let _ = tell.send(Said::Ended(i, why.trim().trim_start_matches("weft: ").to_owned()));
    });
    Ok(Ending(child))
}

fn query(args: &TapArgs) -> String {
    let mut query = format!("rate={}", args.rate);
    for (name, value) in [
        ("from", &args.from),
        ("to", &args.to),
        ("path", &args.path),
        ("method", &args.method),
        ("status", &args.status),
        ("direction", &args.direction),
    ] {
        if let Some(value) = value {
            let _ = write!(query, "&{name}={}", escaped(value));
        }
    }
    if args.errors {
        query.push_str("&errors=true");
    }
    // Sidecars of before know no such thing, and are not asked for what they tell anyway.
    if args.headers || args.bodies {
        query.push_str(if args.bodies { "&show=bodies" } else { "&show=headers" });
    }
    query
}

/// An event as it is printed; none for a line that says only that the tap is there.
fn shown(sidecar: &Reached, line: &str, output: Output, left: &mut u64) -> Option<String> {
    let mut event: Value = serde_json::from_str(line.trim()).ok()?;
    if let Some(dropped) = event["dropped"].as_u64() {
        crate::complain(&format!("{}: {dropped} events are not told: more than --rate a second", sidecar.name()));
        return None;
    }
    *left -= 1;
    if output.is_text() {
        return Some(text(&sidecar.name(), &event));
    }
    event["sidecar"] = sidecar.name().into();
    Some(output.line(&event))
}

/// One line for people: when, where, which way, who, what, and how it ended.
fn text(sidecar: &str, event: &Value) -> String {
    let of = |field: &str| match &event[field] {
        Value::Null => String::new(),
        Value::String(text) => plain(text),
        other => other.to_string(),
    };
    let time = of("time");
    let time = time.split_once('T').map_or(&*time, |(_, clock)| clock.get(..12).unwrap_or(clock));
    let (arrow, end) = if event["direction"] == "inbound" { ("<-", "from") } else { ("->", "to") };
    let what = match (&*of("method"), &*of("status")) {
        ("", _) => format!("{} {} B in, {} B out", of("protocol"), of("bytes_received"), of("bytes_sent")),
        (method, status) => format!("{method} {}{} {}", of("host"), of("path"), if status.is_empty() { "-" } else { status }),
    };
    // What goes out and was refused before anybody was chosen has no peer: what was dialled says more.
    let other = if event["direction"] == "outbound" && of("peer").is_empty() { of("target") } else { of("peer") };
    let mut line = format!("{time} {sidecar} {arrow} {what} {} ms {end} {other}", of("duration_ms"));
    for (name, field) in
        [("grpc", "grpc_status"), ("reason", "reason"), ("policy", "policy"), ("ref", "ref"), ("trace", "trace_id")]
    {
        if !event[field].is_null() {
            let _ = write!(line, " {name}={}", of(field));
        }
    }
    if let Some(attempts) = event["attempts"].as_array().filter(|a| a.len() > 1) {
        let _ = write!(line, " attempts={}", attempts.len());
    }
    line.push('\n');
    for (arrow, fields, body) in [('>', "request_headers", "request_body"), ('<', "response_headers", "response_body")] {
        for field in event[fields].as_array().into_iter().flatten() {
            let part = |i: usize| plain(field[i].as_str().unwrap_or_default());
            let _ = writeln!(line, "    {arrow} {}: {}", part(0), part(1));
        }
        if let Some(begins) = event[body]["begins"].as_str().filter(|begins| !begins.is_empty()) {
            let _ = writeln!(line, "    {arrow} {} bytes: {}", event[body]["bytes"], plain(begins));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_one_line_that_does_nothing_to_a_terminal() {
        let event = json!({"time": "2026-11-22T01:02:03.456789Z", "direction": "outbound", "peer": "spiffe://td/ns/shop/sa/cart", "method": "GET",
            "host": "cart.shop", "path": "/a\u{1b}[31m\n", "status": 503, "duration_ms": 1.5, "reason": "no-endpoints",
            "attempts": [{}, {}]});
        assert_eq!(
            text("shop/web-0", &event),
            "01:02:03.456 shop/web-0 -> GET cart.shop/a\\u{1b}[31m\\u{a} 503 1.5 ms to spiffe://td/ns/shop/sa/cart reason=no-endpoints attempts=2\n"
        );
        let bytes = json!({"time": "2026-11-22T01:02:03.456789Z", "direction": "inbound", "peer": "plaintext", "protocol": "tcp",
            "bytes_received": 3, "bytes_sent": 4, "duration_ms": 2});
        assert_eq!(text("a/b", &bytes), "01:02:03.456 a/b <- tcp 3 B in, 4 B out 2 ms from plaintext\n");
        let refused = json!({"time": "2026-11-22T01:02:03.456789Z", "direction": "outbound", "target": "10.0.0.9:81", "protocol": "tcp",
            "bytes_received": 0, "bytes_sent": 0, "duration_ms": 5000, "reason": "upstream-connect-timeout"});
        assert_eq!(
            text("a/b", &refused),
            "01:02:03.456 a/b -> tcp 0 B in, 0 B out 5000 ms to 10.0.0.9:81 reason=upstream-connect-timeout\n"
        );
    }

    #[test]
    fn what_is_shown_stands_below_its_event() {
        let event = json!({"time": "2026-11-22T01:02:03.456789Z", "direction": "inbound", "peer": "plaintext", "method": "POST", "host": "h", "path": "/",
            "status": 200, "duration_ms": 1, "request_headers": [["accept", "*/*"], ["cookie", "(not shown: 9 bytes)"]],
            "response_headers": [["x-a", "b\u{1b}[1m"]], "request_body": {"begins": "a\nb", "bytes": 3000}, "response_body": {"begins": "", "bytes": 0}});
        let shown = text("a/b", &event);
        let lines: Vec<&str> = shown.lines().skip(1).map(str::trim).collect();
        assert_eq!(lines, ["> accept: */*", "> cookie: (not shown: 9 bytes)", "> 3000 bytes: a\\u{a}b", "< x-a: b\\u{1b}[1m"]);
    }
}
