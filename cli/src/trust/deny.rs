//! `weft trust deny`: whom nobody is to believe, though its certificate is good.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use weft_proto::v1::{TrustDenialsResponse, TrustDenyRequest};

use super::StatusArgs;
use crate::operator::Operator;
use crate::output::print;
use crate::{duration, table};

/// What `weft trust deny` can do.
#[derive(Subcommand, Debug)]
pub(crate) enum DenyCommand {
    /// Deny identities or certificates: nobody lets them in or calls them, what is open is cut, and nothing is issued to them
    #[command(
        after_help = "Examples:\n  weft trust deny add spiffe://cluster.local/ns/shop/sa/web --reason stolen\n  weft trust deny add 4f21c0 --until 24h\n  weft trust deny add spiffe://cluster.local/ns/shop/sa/web --manifest | kubectl apply -f -"
    )]
    Add(AddArgs),
    /// Show who is denied, by whom and until when
    #[command(after_help = "Examples:\n  weft trust deny list\n  weft trust deny list -o json")]
    List(StatusArgs),
    /// Take entries off the control plane's own list
    #[command(after_help = "Examples:\n  weft trust deny remove spiffe://cluster.local/ns/shop/sa/web")]
    Remove(RemoveArgs),
}

#[derive(Args, Debug)]
pub(crate) struct AddArgs {
    /// SPIFFE IDs and serial numbers (hexadecimal, as `weft status -o json` tells them)
    #[arg(required = true, value_name = "SPIFFE-ID|SERIAL")]
    subjects: Vec<String>,

    /// Why, for people
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,

    /// For how long. Default: an identity for ever, a serial number for as long as its certificate can be good
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    until: Option<Duration>,

    /// Print an `IdentityDenial` to apply instead: on Kubernetes the cluster keeps who is denied
    #[arg(long)]
    manifest: bool,

    #[command(flatten)]
    status: StatusArgs,
}

#[derive(Args, Debug)]
pub(crate) struct RemoveArgs {
    /// As `weft trust deny list` shows them
    #[arg(required = true, value_name = "SPIFFE-ID|SERIAL")]
    subjects: Vec<String>,

    #[command(flatten)]
    status: StatusArgs,
}

pub(super) async fn run(command: &DenyCommand) -> anyhow::Result<ExitCode> {
    let now = duration::now();
    let (args, denials) = match command {
        DenyCommand::Add(args) if args.manifest => {
            print(&manifest(args, now)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        DenyCommand::Add(args) => {
            let until = args.until.map_or(0, |d| now.saturating_add_unsigned(d.as_secs()));
            let request = TrustDenyRequest { subjects: args.subjects.clone(), reason: args.reason.clone(), until };
            (&args.status, connect(&args.status).await?.trust_deny(request).await?)
        }
        DenyCommand::List(args) => (args, connect(args).await?.trust_denials().await?),
        DenyCommand::Remove(args) => (&args.status, connect(&args.status).await?.trust_permit(args.subjects.clone()).await?),
    };
    args.output.print(|_| as_text(&denials, now), &as_json(&denials))?;
    Ok(ExitCode::SUCCESS)
}

async fn connect(args: &StatusArgs) -> anyhow::Result<Operator> {
    Operator::connect(&args.meant.socket()?).await
}

fn manifest(args: &AddArgs, now: i64) -> anyhow::Result<String> {
    let (identities, serials): (Vec<&String>, Vec<&String>) = args.subjects.iter().partition(|s| s.contains('/'));
    let mut spec = json!({});
    for (field, values) in [("identities", &identities), ("serials", &serials)] {
        if !values.is_empty() {
            spec[field] = json!(values);
        }
    }
    if !args.reason.is_empty() {
        spec["reason"] = json!(args.reason);
    }
    if let Some(until) = args.until {
        let at = OffsetDateTime::from_unix_timestamp(now.saturating_add_unsigned(until.as_secs()))?;
        spec["expires"] = json!(at.format(&Rfc3339)?);
    }
    let object = json!({
        "apiVersion": "weft.dev/v1alpha1",
        "kind": "IdentityDenial",
        "metadata": { "name": format!("denied-{now}"), "namespace": weft_core::wellknown::CONTROL_PLANE_NAMESPACE },
        "spec": spec,
    });
    Ok(format!("{object:#}\n"))
}

fn as_text(denials: &TrustDenialsResponse, now: i64) -> String {
    if denials.entries.is_empty() {
        return "nobody is denied\n".to_owned();
    }
    let rows: Vec<Vec<String>> = denials
        .entries
        .iter()
        .map(|e| {
            let until = if e.until == 0 { "-".to_owned() } else { duration::brief(e.until.saturating_sub(now)) };
            let source = if e.source.is_empty() { "weft trust deny" } else { &e.source };
            vec![e.subject.clone(), until, source.to_owned(), e.reason.clone()]
        })
        .collect();
    let mut text = table::render(&["DENIED", "FOR", "SAID-BY", "REASON"], &rows);
    if !denials.unaware.is_empty() {
        let names: Vec<&str> = denials.unaware.iter().take(5).map(String::as_str).collect();
        let more = denials.unaware.len().saturating_sub(names.len());
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        let _ = write!(
            text,
            "\n{} connected sidecars are too old to refuse them: {}{more}: give these pods the present sidecar\n",
            denials.unaware.len(),
            names.join(", ")
        );
    }
    text
}

fn as_json(denials: &TrustDenialsResponse) -> Value {
    json!({
        "entries": denials.entries.iter().map(|e| json!({
            "subject": e.subject, "reason": e.reason, "until": e.until, "source": e.source,
        })).collect::<Vec<_>>(),
        "unaware": denials.unaware,
    })
}

#[cfg(test)]
mod tests {
    use weft_control_plane::objects::Object;
    use weft_control_plane::watch::parse::parse;
    use weft_proto::v1::DeniedEntry;

    use super::*;

    fn add(args: &[&str]) -> AddArgs {
        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            add: AddArgs,
        }
        <Cli as clap::Parser>::try_parse_from(["x"].iter().chain(args)).expect("good").add
    }

    #[test]
    fn the_manifest_that_is_printed_is_one_that_is_read() {
        let args = add(&["--manifest", "--reason", "stolen", "--until", "1h", "spiffe://cluster.local/ns/shop/sa/web", "00:AB"]);
        let text = manifest(&args, 1_000_000).expect("printed");
        let objects = parse("printed", &text).expect("read");
        let [Object::IdentityDenial(denial)] = &objects[..] else { panic!("{objects:?}") };
        assert_eq!((denial.identities.len(), denial.serials[0].as_str()), (1, "ab"));
        assert_eq!((denial.reason.as_str(), denial.expires), ("stolen", Some(1_003_600)));
    }

    #[test]
    fn people_see_who_is_denied_and_who_does_not_refuse_them() {
        let entry = |subject: &str, until, source: &str| DeniedEntry {
            subject: subject.into(),
            reason: "stolen".into(),
            until,
            source: source.into(),
        };
        let denials = TrustDenialsResponse {
            entries: vec![entry("ab", 1_060, ""), entry("spiffe://cluster.local/ns/shop/sa/web", 0, "weft-system/stolen")],
            unaware: vec!["shop/old-0".into()],
        };
        let text = as_text(&denials, 1_000);
        assert!(text.contains("ab ") && text.contains("1m") && text.contains("weft-system/stolen"), "{text}");
        assert!(text.contains("1 connected sidecars are too old to refuse them: shop/old-0"), "{text}");
        assert_eq!(as_json(&denials)["entries"][0]["until"], 1_060);
        assert_eq!(as_text(&TrustDenialsResponse::default(), 0), "nobody is denied\n");
    }
}
