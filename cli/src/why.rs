//! `weft why`: what a reference stands for that a refused caller was given. Only the sidecar that refused knows, and tells the mesh's owner.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::output::Output;
use crate::rundir::Which;
use crate::sidecar;

/// What `weft why` is told.
#[derive(Args, Debug)]
#[command(after_help = "\
A call that is denied is answered with 403, or for gRPC with PERMISSION_DENIED, and a reference in the field weft-ref. Each sidecar keeps its last \
1,000 denials.

Examples:
  weft why 8c0f3a5512d7e94b
  weft why -o json 8c0f3a5512d7e94b | jq -r .policy")]
pub(crate) struct WhyArgs {
    /// The reference: 16 hexadecimal digits
    #[arg(value_name = "REF", value_parser = reference)]
    reference: String,

    #[command(flatten)]
    which: Which,

    #[command(flatten)]
    output: Output,
}

/// It goes into a path.
fn reference(text: &str) -> Result<String, String> {
    if (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("a reference is a row of hexadecimal digits, as the field weft-ref of the answer has it".to_owned())
    }
}

pub(crate) fn main(args: &WhyArgs) -> anyhow::Result<ExitCode> {
    let answers = sidecar::ask_each(&args.which.find()?, &format!("/denials/{}", args.reference))?;
    let (replica, record) = found(&args.reference, answers)?;
    let mut whole = record.clone();
    whole["sidecar"] = replica.as_str().into();
    args.output.print(|_| shown(&replica, &record), &whole)?;
    Ok(ExitCode::SUCCESS)
}

/// The one sidecar that knows the reference. Where none does, those that did not answer are named: one of them might have.
fn found(reference: &str, answers: Vec<(String, anyhow::Result<String>)>) -> anyhow::Result<(String, Value)> {
    let asked = answers.len();
    let mut silent = Vec::new();
    for (replica, answer) in answers {
        match answer {
            Ok(text) => {
                let record = serde_json::from_str(&text).with_context(|| format!("what the sidecar of {replica} knows of it"))?;
                return Ok((replica, record));
            }
            Err(error) if error.to_string().contains("404") => {}
            Err(error) => silent.push(error.to_string()),
        }
    }
    if silent.is_empty() {
        bail!("none of the {asked} sidecars knows the reference {reference}: each keeps its last 1,000 denials, until it ends");
    }
    bail!("no sidecar that answers knows the reference {reference}, and not all do: {}", silent.join("; "))
}

/// For people: the sentence first, then the facts, each where there is one.
fn shown(replica: &str, record: &Value) -> String {
    let text = |field: &str| match &record[field] {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let mut lines = vec![("", text("text").unwrap_or_default())];
    let request = [text("method"), text("path")].into_iter().flatten().collect::<Vec<_>>().join(" ");
    let of_policy = |policy: String| match (text("rule"), text("target")) {
        (Some(rule), Some(target)) => format!("{policy} rule {rule}, for {target}"),
        _ => policy,
    };
    lines.extend(text("remedy").map(|remedy| ("what would allow it", remedy)));
    lines.extend(text("policy").map(|policy| ("policy", of_policy(policy))));
    lines.extend(text("clause").filter(|clause| !clause.is_empty()).map(|clause| ("matched by", clause)));
    let caller = text("peer").unwrap_or_default();
    let port = text("port").unwrap_or_default();
    match text("called") {
        _ if let Some(host) = text("to") => {
            lines.push(("caller", text("source").map_or(caller.clone(), |source| format!("{caller} from {source}"))));
            lines.push(("called", format!("port {port} of {host}, outside of the mesh, by {replica}")));
        }
        // It was refused where it came from.
        Some(called) => {
            lines.push(("caller", replica.to_owned()));
            lines.push(("called", called));
        }
        None => {
            lines.push(("caller", text("source").map_or(caller.clone(), |source| format!("{caller} from {source}"))));
            lines.push(("called", format!("port {port} of {replica}")));
        }
    }
    lines.extend((!request.is_empty()).then_some(("request", request)));
    lines.extend(text("protocol").map(|protocol| ("protocol", protocol)));
    lines.extend(record["at"].as_i64().and_then(when).map(|time| ("at", time)));
    let mut out = String::new();
    for (name, value) in lines {
        let _ = if name.is_empty() { writeln!(out, "{value}") } else { writeln!(out, "  {name}: {value}") };
    }
    out
}

/// Seconds since the Unix epoch, as a time in UTC.
fn when(seconds: i64) -> Option<String> {
    OffsetDateTime::from_unix_timestamp(seconds).ok()?.format(&Rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_denial_is_told_with_all_that_is_known() {
        let record = json!({
            "ref": "8c0f3a5512d7e94b", "at": 1_700_000_000, "peer": "spiffe://cluster.local/ns/front/sa/client", "source": "10.47.0.9", "port": 8080,
            "protocol": "http/1.1", "method": "PUT", "path": "/books", "verdict": "denied", "cause": "matched", "policy": "shop/no-put",
            "target": "the Service shop/web", "rule": 0, "clause": "to methods PUT", "text": "denied by DENY shop/no-put rule 0 (to methods PUT)",
            "remedy": "a call that shop/no-put does not match",
        });
        let expected = "\
denied by DENY shop/no-put rule 0 (to methods PUT)
  what would allow it: a call that shop/no-put does not match
  policy: shop/no-put rule 0, for the Service shop/web
  matched by: to methods PUT
  caller: spiffe://cluster.local/ns/front/sa/client from 10.47.0.9
  called: port 8080 of shop/web-0
  request: PUT /books
  protocol: http/1.1
  at: 2023-11-14T22:13:20Z
";
        assert_eq!(shown("shop/web-0", &record), expected);
    }

    #[test]
    fn what_nobody_knows_is_said_with_who_was_not_heard() {
        let unknown = || Err(anyhow::anyhow!("the sidecar of a/b: GET /denials/12: it answers 404 Not Found: none"));
        let record = || Ok(r#"{"text": "denied"}"#.to_owned());
        let (replica, _) = found("12", vec![("a/b".into(), unknown()), ("c/d".into(), record())]).expect("one knows");
        assert_eq!(replica, "c/d");
        let none = found("12", vec![("a/b".into(), unknown())]).expect_err("nobody").to_string();
        assert!(none.starts_with("none of the 1 sidecars"), "{none}");
        let gone = Err(anyhow::anyhow!("the sidecar of e/f: it does not answer"));
        let some = found("12", vec![("a/b".into(), unknown()), ("e/f".into(), gone)]).expect_err("nobody").to_string();
        assert!(some.contains("e/f"), "{some}");
    }

    #[test]
    fn only_what_can_be_a_reference_is_asked_for() {
        assert_eq!(reference("8C0F3a"), Ok("8c0f3a".into()));
        for bad in ["", "../config", "x", "8c 0f"] {
            assert!(reference(bad).is_err(), "{bad}");
        }
    }
}
