//! `weft why`: what a reference stands for that a refused caller was given, or what was refused last. Only the sidecar that refused knows, and tells the
//! mesh's owner.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use weft_core::Namespace;

use crate::fleet::{Answer, Fleet};
use crate::output::{Output, plain};
use crate::rundir::Which;
use crate::table;

/// What `weft why` is told.
#[derive(Args, Debug)]
#[command(after_help = "\
A call that is denied is answered with 403, or for gRPC with PERMISSION_DENIED, and a reference in the field weft-ref. A connection that is reset can \
carry none: without REF, the last refusals are listed, the newest first. Each sidecar keeps its last 1,000, and at most 125 of one source. A mesh on this \
machine is asked where one runs and no --context is given; else the cluster, by kubectl exec.

Exit status: 0, 1 where no sidecar knows the reference, or one was not heard.

Examples:
  weft why 8c0f3a5512d7e94b
  weft why -o json 8c0f3a5512d7e94b | jq -r .policy
  weft why -n shop --last 5
  weft why -o json | jq -r '.denials[] | select(.protocol == \"tcp\") | .text'
  weft why --context kind-shop 8c0f3a5512d7e94b")]
pub(crate) struct WhyArgs {
    /// The reference: 16 hexadecimal digits [default: the last refusals are listed]
    #[arg(value_name = "REF", value_parser = reference)]
    reference: Option<String>,

    /// Without REF: how many are listed
    #[arg(long, value_name = "N", default_value_t = 20, conflicts_with = "reference")]
    last: usize,

    /// Ask only the sidecars of this namespace
    #[arg(short, long, value_name = "NS")]
    namespace: Option<Namespace>,

    #[command(flatten)]
    which: Which,

    #[arg(long, value_name = "NAME", help = "Context of the kubeconfig: a mesh on that cluster is meant")]
    context: Option<String>,

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
    let fleet = Fleet::find(&args.which, args.context.as_deref())?;
    let ask = |path: &str| fleet.ask(args.namespace.as_ref(), "GET", path);
    let Some(reference) = &args.reference else { return listed(ask("/denials")?, args) };
    let (replica, record) = found(reference, ask(&format!("/denials/{reference}"))?)?;
    let mut whole = record.clone();
    whole["sidecar"] = replica.as_str().into();
    args.output.print(|_| shown(&replica, &record), &whole)?;
    Ok(ExitCode::SUCCESS)
}

/// Lists the last refusals; succeeds where every sidecar was heard.
fn listed(answers: Vec<Answer>, args: &WhyArgs) -> anyhow::Result<ExitCode> {
    let (records, silent) = last(answers, args.last);
    args.output.print(|_| tabled(&records), &json!({ "denials": records, "notHeard": silent }))?;
    if args.output.is_text() {
        for (replica, why) in &silent {
            crate::complain(&format!("not heard: {replica}: {why}"));
        }
    }
    Ok(if silent.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The last refusals of all sidecars, the newest first, each with whose it is; and the sidecars that were not heard, with why.
fn last(answers: Vec<Answer>, most: usize) -> (Vec<Value>, BTreeMap<String, String>) {
    let (mut records, mut silent) = (Vec::new(), BTreeMap::new());
    for (replica, answer) in answers {
        match answer.and_then(|text| Ok(serde_json::from_str::<Vec<Map<String, Value>>>(&text)?)) {
            Ok(found) => records.extend(found.into_iter().map(|mut record| {
                record.insert("sidecar".to_owned(), replica.clone().into());
                Value::Object(record)
            })),
            Err(why) => {
                silent.insert(replica, format!("{why:#}"));
            }
        }
    }
    // Those of one sidecar come the newest first, and stay so within a second.
    records.sort_by_key(|record| Reverse(record["at"].as_i64()));
    records.truncate(most);
    (records, silent)
}

fn tabled(records: &[Value]) -> String {
    if records.is_empty() {
        return "no refusal is kept\n".to_owned();
    }
    let row = |record: &Value| {
        let text = |field: &str| match &record[field] {
            Value::Null => "-".to_owned(),
            Value::String(text) if text.is_empty() => "-".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let called = match (&record["to"], &record["called"]) {
            (Value::String(host), _) => format!("{host}:{}", record["port"]),
            (_, Value::String(address)) => address.clone(),
            _ => format!("port {}", record["port"]),
        };
        let policy = match &record["rule"] {
            Value::Number(rule) => format!("{} rule {rule}", text("policy")),
            _ => text("policy"),
        };
        let time = record["at"].as_i64().and_then(when).unwrap_or_else(|| "-".to_owned());
        vec![time, text("sidecar"), text("source"), text("peer"), called, text("cause"), policy, text("clause"), text("ref")]
    };
    let rows: Vec<_> = records.iter().map(row).collect();
    table::render(&["TIME", "SIDECAR", "SOURCE", "IDENTITY", "CALLED", "CAUSE", "POLICY", "CLAUSE", "REF"], &rows)
}

/// The one sidecar that knows the reference. Where none does, those that did not answer are named: one of them might have.
fn found(reference: &str, answers: Vec<Answer>) -> anyhow::Result<(String, Value)> {
    let asked = answers.len();
    let mut silent = Vec::new();
    for (replica, answer) in answers {
        match answer {
            Ok(text) => {
                let record = serde_json::from_str(&text).with_context(|| format!("what the sidecar of {replica} knows of it"))?;
                return Ok((replica, record));
            }
            Err(error) if error.to_string().contains("it answers 404") => {}
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
        let value = plain(&value);
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
        let hostile = json!({"text": "denied", "method": "GET", "path": "/\u{9b}2J\n\u{202e}", "port": 80});
        assert!(shown("shop/web-0", &hostile).contains("  request: GET /\\u{9b}2J\\u{a}\\u{202e}\n"));
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
    fn the_last_refusals_are_listed_with_who_was_not_heard() {
        let old = r#"[{"ref": "0a", "at": 2, "source": "10.47.0.9", "peer": "plaintext", "port": 6379, "cause": "mtls-required", "policy": null}]"#;
        let new = r#"[{"ref": "0b", "at": 3, "source": "10.47.0.8", "peer": "spiffe://td/ns/a/sa/b", "port": 80, "cause": "matched",
            "policy": "shop/no", "rule": 1, "clause": "to ports 80"}, {"ref": "00", "at": 1}]"#;
        let gone = Err(anyhow::anyhow!("gone"));
        let answers =
            vec![("a/b".to_owned(), Ok(old.to_owned())), ("c/d".to_owned(), Ok(new.to_owned())), ("e/f".to_owned(), gone)];
        let (records, silent) = last(answers, 2);
        assert_eq!(records.iter().map(|r| r["ref"].as_str()).collect::<Vec<_>>(), [Some("0b"), Some("0a")]);
        assert_eq!(silent, BTreeMap::from([("e/f".to_owned(), "gone".to_owned())]));
        let expected = "\
TIME                  SIDECAR  SOURCE     IDENTITY               CALLED     CAUSE          POLICY          CLAUSE       REF
1970-01-01T00:00:03Z  c/d      10.47.0.8  spiffe://td/ns/a/sa/b  port 80    matched        shop/no rule 1  to ports 80  0b
1970-01-01T00:00:02Z  a/b      10.47.0.9  plaintext              port 6379  mtls-required  -               -            0a
";
        assert_eq!(tabled(&records), expected);
        for hostile in ["7", "{}", "[7]"] {
            assert_eq!(last(vec![("a/b".to_owned(), Ok(hostile.to_owned()))], 2).1.len(), 1, "{hostile}");
        }
    }

    #[test]
    fn only_what_can_be_a_reference_is_asked_for() {
        assert_eq!(reference("8C0F3a"), Ok("8c0f3a".into()));
        for bad in ["", "../config", "x", "8c 0f"] {
            assert!(reference(bad).is_err(), "{bad}");
        }
    }
}
