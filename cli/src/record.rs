//! `weft record`: who called what, as the sidecars of the called pods saw it, for a while. Nothing is recorded but while somebody asks.

use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use weft_control_plane::explain::flows::Flow;
use weft_control_plane::objects::Object;
use weft_core::service::ObjectRef;
use weft_core::wellknown::RECORDED_ALREADY;
use weft_core::{Namespace, SpiffeId, TrustDomain};

use crate::duration;
use crate::fleet::Fleet;
use crate::output::print;
use crate::rundir::Which;

mod access;
pub(crate) use access::Whose;

/// What `weft record` is told.
#[derive(Args, Debug)]
#[command(after_help = "\
Each distinct call is written once, with how often and when it came: caller, called pod and port, method, path and host, and whether it was let in. \
Nothing of queries, header fields and bodies is recorded. A sidecar keeps 5,000 distinct calls a worker; what comes beyond that is counted and told.

Exit status: 0, 1 where the command failed, or a sidecar was not heard: then the file does not have everything.

Examples:
  weft record --for 1h -o flows.jsonl
  weft record -n shop -o flows.jsonl -- ./integration-tests
  weft explain --what-if new-policy.yaml --flows flows.jsonl
  weft suggest --flows flows.jsonl > policies.yaml")]
pub(crate) struct RecordArgs {
    /// For how long, at most 1h
    #[arg(long = "for", value_name = "DURATION", value_parser = duration::parse, default_value = "1m", conflicts_with = "command")]
    time: Duration,

    /// Only calls of pods in this namespace
    #[arg(short, long, value_name = "NS")]
    namespace: Option<Namespace>,

    /// Where it is written, line by line; - is standard output
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,

    #[command(flatten)]
    which: Which,

    #[arg(long, value_name = "NAME", help = "Context of the kubeconfig: a mesh on that cluster is meant")]
    context: Option<String>,

    /// End what another weft record has begun and not ended; nothing is written
    #[arg(long, conflicts_with_all = ["time", "output", "command"])]
    stop: bool,

    /// Runs this, and records for as long as it runs (at most 1h)
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// A sidecar records for as long at most.
const MOST: Duration = Duration::from_secs(3_600);
/// What is added to the time, so that it does not end before it is read.
const MARGIN: u64 = 60;

/// The first line of a file of flows.
#[derive(Serialize, Deserialize, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Header {
    /// The version of this form: 1.
    pub(crate) weft_flows: u32,
    /// Seconds since 1970.
    pub(crate) since: i64,
    pub(crate) until: i64,
    /// Sidecars whose calls are in it.
    pub(crate) sidecars: Vec<String>,
    /// Those that were not heard, and why.
    pub(crate) not_heard: Vec<(String, String)>,
    /// Calls that are in no flow, of all sidecars.
    pub(crate) left_out: u64,
}

pub(crate) fn main(args: &RecordArgs) -> anyhow::Result<ExitCode> {
    if args.time > MOST || args.time < Duration::from_secs(1) {
        bail!("--for is from 1s to 1h: record several times for longer, since a file that grows for days is nobody's");
    }
    let fleet = Fleet::find(&args.which, args.context.as_deref())?;
    let namespace = args.namespace.as_ref();
    let seconds = if args.command.is_empty() { (args.time.as_secs() + MARGIN).min(MOST.as_secs()) } else { MOST.as_secs() };
    if args.stop {
        return stop(&fleet, namespace);
    }
    // Whose it is: of two at once, one would end the other's.
    let by = format!("by={:x}", RandomState::new().hash_one(std::process::id()));
    let begun = fleet.ask(namespace, "POST", &format!("/record?seconds={seconds}&{by}"))?;
    if begun.is_empty() {
        bail!("there is no sidecar to ask");
    }
    let refused = begun.iter().find_map(|(pod, answer)| {
        let why = format!("{:#}", answer.as_ref().err()?);
        why.contains(RECORDED_ALREADY).then(|| format!("{pod}: {why}"))
    });
    if let Some(why) = refused {
        drop(fleet.ask(namespace, "POST", &format!("/record?seconds=0&{by}"))?);
        bail!("another weft record is at work, and nothing was recorded: {why}");
    }
    let since = duration::now();
    let mut ran = true;
    match args.command.split_first() {
        None => std::thread::sleep(args.time),
        Some((program, words)) => {
            // What it prints is not what is printed here.
            let status = Command::new(program).args(words).stdout(std::io::stderr()).status();
            let status = status.with_context(|| format!("{program:?} cannot be run"))?;
            ran = status.success();
            if !ran {
                crate::complain(&format!("the command ended with {status}"));
            }
        }
    }
    let answers = fleet.ask(namespace, "GET", "/flows")?;
    // Whoever does not hear this stops by itself when the time is over.
    drop(fleet.ask(namespace, "POST", &format!("/record?seconds=0&{by}"))?);
    let mut header = Header { weft_flows: 1, since, until: duration::now(), sidecars: vec![], not_heard: vec![], left_out: 0 };
    for (pod, answer) in begun {
        if let (Err(why), None) = (&answer, answers.iter().find(|(other, said)| *other == pod && said.is_ok())) {
            header.not_heard.push((pod, format!("{why:#}")));
        }
    }
    let mut flows = Vec::new();
    for (pod, answer) in answers {
        match answer.and_then(|text| of_sidecar(&text)) {
            Ok((mut found, left_out)) => {
                header.sidecars.push(pod);
                header.left_out += left_out;
                flows.append(&mut found);
            }
            Err(why) if !header.not_heard.iter().any(|(name, _)| *name == pod) => {
                header.not_heard.push((pod, format!("{why:#}")));
            }
            Err(_) => {}
        }
    }
    write(&args.output, &header, &flows)?;
    let (count, calls) = (flows.len(), flows.iter().map(|flow| flow.count).sum::<u64>());
    crate::complain(&format!("{calls} calls in {count} flows, of {} sidecars", header.sidecars.len()));
    tell(&header);
    Ok(if ran && header.not_heard.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Ends it at every sidecar, whoever began it.
fn stop(fleet: &Fleet, namespace: Option<&Namespace>) -> anyhow::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for (pod, answer) in fleet.ask(namespace, "POST", "/record?seconds=0")? {
        if let Err(why) = answer {
            crate::complain(&format!("not heard: {pod}: {why:#}"));
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

/// Says what a file of flows does not have.
pub(crate) fn tell(header: &Header) {
    for (pod, why) in &header.not_heard {
        crate::complain(&format!("not heard: {pod}: {why}"));
    }
    if header.left_out > 0 {
        crate::complain(&format!(
            "{} calls are in no flow: there were too many distinct ones, or too long ones",
            header.left_out
        ));
    }
}

/// The flows that one sidecar tells, and how many calls are in none.
fn of_sidecar(text: &str) -> anyhow::Result<(Vec<Flow>, u64)> {
    let mut told: Value = serde_json::from_str(text).context("the answer is not JSON")?;
    let Some(Value::Array(listed)) = told.get_mut("flows").map(Value::take) else { bail!("the answer has no flows") };
    let flows = listed.into_iter().map(|mut flow| {
        // What is no object has no room for them, and is no flow.
        if let Some(fields) = flow.as_object_mut() {
            fields.insert("pod".into(), told["pod"].clone());
            fields.insert("identity".into(), told["identity"].clone());
        }
        serde_json::from_value(flow).context("a flow cannot be read")
    });
    Ok((flows.collect::<anyhow::Result<_>>()?, told["left_out"].as_u64().unwrap_or(0)))
}

fn write(path: &Path, header: &Header, flows: &[Flow]) -> anyhow::Result<()> {
    let mut text = format!("{}\n", serde_json::to_string(header)?);
    for flow in flows {
        text.push_str(&serde_json::to_string(flow)?);
        text.push('\n');
    }
    if path == Path::new("-") {
        return print(&text);
    }
    std::fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))
}

/// The identity of a pod, by its service account; none where there is no such pod.
pub(crate) fn identity<'a>(
    objects: impl IntoIterator<Item = &'a Object>,
    domain: &TrustDomain,
    pod: &ObjectRef,
) -> Option<SpiffeId> {
    let account = objects.into_iter().find_map(|object| match object {
        Object::Pod(found) if found.id == *pod => Some(found.service_account()),
        _ => None,
    })?;
    Some(SpiffeId::new(domain.clone(), pod.namespace.clone(), account.parse().ok()?))
}

/// The most bytes of a file of flows.
const MAX_FILE: u64 = 1 << 30;

/// Reads what [`main`] has written, or an access log.
pub(crate) fn read(path: &Path, whose: &Whose<'_>) -> anyhow::Result<(Header, Vec<Flow>)> {
    let place = path.display();
    let size = std::fs::metadata(path).with_context(|| format!("{place} cannot be read"))?.len();
    if size > MAX_FILE {
        bail!("{place} has {size} bytes; at most {MAX_FILE} are read: split it by lines, and keep the first line in each part");
    }
    let text = std::fs::read_to_string(path).with_context(|| format!("{place} cannot be read"))?;
    let mut lines = text.lines().enumerate();
    let first: Option<Value> = lines.next().and_then(|(_, line)| serde_json::from_str(line).ok());
    let Some(first) = first.filter(|first| !first["weftFlows"].is_null()) else { return access::read(path, &text, whose) };
    let header: Header = serde_json::from_value(first)
        .ok()
        .filter(|header: &Header| header.weft_flows == 1)
        .with_context(|| format!("{place}:1: it is no file that this weft record has written"))?;
    let flow = |(i, line): (usize, &str)| serde_json::from_str(line).with_context(|| format!("{place}:{}: it is no flow", i + 1));
    let flows = lines.filter(|(_, line)| !line.is_empty()).map(flow).collect::<anyhow::Result<_>>()?;
    Ok((header, flows))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLD: &str = r#"{"recording": true, "since": 1, "until": 2, "left_out": 3, "pod": "shop/web-0",
        "identity": "spiffe://td/ns/shop/sa/web", "flows": [
        {"caller": "spiffe://td/ns/a/sa/b", "source": "10.0.0.1", "port": 80, "protocol": "http/1.1", "method": "GET", "path": "/é", "host": "web",
         "grpc": false, "allowed": true, "reason": null, "count": 2, "first": 5, "last": 6},
        {"caller": null, "source": "10.0.0.2", "port": 81, "protocol": "tcp", "method": null, "path": null, "host": null, "grpc": false,
         "allowed": false, "reason": "denied", "count": 1, "first": 5, "last": 5}]}"#;

    #[test]
    fn what_is_written_is_read() {
        let (flows, left_out) = of_sidecar(TOLD).expect("good");
        assert_eq!((flows.len(), left_out), (2, 3));
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("flows");
        let header = Header {
            weft_flows: 1,
            since: 1,
            until: 2,
            sidecars: vec!["shop/web-0".into()],
            not_heard: vec![("shop/web-1".into(), "gone".into())],
            left_out,
        };
        write(&file, &header, &flows).expect("written");
        let whose = Whose { namespace: None, identity: &|_| None };
        assert_eq!(read(&file, &whose).expect("read"), (header, flows));
        for (text, why) in [("", "it is neither"), ("{}\n", "it is neither"), ("{\"weftFlows\": 2}\n", ":1: ")] {
            std::fs::write(&file, text).expect("written");
            let said = format!("{:#}", read(&file, &whose).expect_err(text));
            assert!(said.contains(why), "{said}");
        }
        for hostile in ["{}", "7", "[]", r#"{"flows": 7}"#, r#"{"flows": [7]}"#, r#"{"flows": [{}]}"#] {
            assert!(of_sidecar(hostile).is_err(), "{hostile}");
        }
    }
}
