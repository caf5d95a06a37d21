//! `weft trust`: the roots that the mesh trusts, and how one follows another while everything runs.

mod deny;

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use weft_proto::v1::{TrustMissing, TrustPhase, TrustStatusResponse};

use crate::operator::{Meant, Operator};
use crate::output::Output;
use crate::{duration, table};

/// What `weft trust` can do.
#[derive(Subcommand, Debug)]
pub(crate) enum TrustCommand {
    /// Show the anchors, how far a rotation is, and who is missing
    #[command(after_help = "Examples:\n  weft trust status\n  weft trust status -o json")]
    Status(StatusArgs),
    /// Make a new root and move the mesh to it; again with --give-up while that is under way
    ///
    /// First every sidecar that has a certificate is to say that it trusts both anchors, then the new root issues and every sidecar
    /// renews. Each step waits for that evidence. `weft trust finish` then removes the old anchor; `weft trust abort` goes back.
    #[command(after_help = "Examples:\n  weft trust rotate --wait\n  weft trust rotate --give-up shop/old-0")]
    Rotate(StepArgs),
    /// Remove the old anchor, once no certificate that leads to it is served
    #[command(after_help = "Examples:\n  weft trust finish\n  weft trust finish --wait --timeout 1h")]
    Finish(StepArgs),
    /// Go back to the old root; the new anchor is removed once no certificate that leads to it is served
    #[command(after_help = "Examples:\n  weft trust abort --wait")]
    Abort(StepArgs),
    /// Deny identities and certificates, and show who is denied
    #[command(subcommand)]
    Deny(deny::DenyCommand),
}

/// Which control plane is meant, and how it is printed.
#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    meant: Meant,

    #[command(flatten)]
    output: Output,
}

/// What a step is told.
#[derive(Args, Debug)]
pub(crate) struct StepArgs {
    /// Do not wait for this sidecar, which is missing, until the rotation is over: if it comes back later, it has to join anew, with a new
    /// join token. `unrecorded` stands for certificates of which the control plane has no record. Give it again for each
    #[arg(long, value_name = "NS/POD")]
    give_up: Vec<String>,

    /// Wait until the step is done: for `rotate`, until the old anchor can be removed
    #[arg(long)]
    wait: bool,

    /// How long --wait waits
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration::parse, requires = "wait")]
    timeout: Duration,

    #[command(flatten)]
    status: StatusArgs,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Rotate,
    Finish,
    Abort,
}

/// How often --wait looks.
const LOOK: Duration = Duration::from_millis(250);

pub(crate) fn main(command: &TrustCommand) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let (args, status) = match command {
            TrustCommand::Status(args) => (args, connect(args).await?.trust_status().await?),
            TrustCommand::Rotate(args) => (&args.status, step(Step::Rotate, args).await?),
            TrustCommand::Finish(args) => (&args.status, step(Step::Finish, args).await?),
            TrustCommand::Abort(args) => (&args.status, step(Step::Abort, args).await?),
            TrustCommand::Deny(command) => return deny::run(command).await,
        };
        args.output.print(|_| as_text(&status, duration::now()), &as_json(&status))?;
        Ok(ExitCode::SUCCESS)
    })
}

async fn connect(args: &StatusArgs) -> anyhow::Result<Operator> {
    Operator::connect(&args.meant.socket()?).await
}

/// Takes a step, and waits for its end where that is asked for.
async fn step(step: Step, args: &StepArgs) -> anyhow::Result<TrustStatusResponse> {
    let end = Instant::now() + args.timeout;
    let mut operator = connect(&args.status).await?;
    let given_up = args.give_up.clone();
    if step == Step::Finish && args.wait {
        return finish(args, operator, end).await;
    }
    let mut status = match step {
        Step::Rotate if args.wait && given_up.is_empty() => match operator.trust_status().await? {
            under_way if matches!(under_way.phase(), TrustPhase::Spreading | TrustPhase::Reissuing) => under_way,
            _ => operator.trust_rotate(given_up).await?,
        },
        Step::Rotate => operator.trust_rotate(given_up).await?,
        Step::Finish => operator.trust_finish(given_up).await?,
        Step::Abort => operator.trust_abort(given_up).await?,
    };
    let new = new_anchor(&status).map(str::to_owned);
    while args.wait && !is_done(step, &status, new.as_deref())? {
        patience(&status, end).await?;
        status = ask(args, end).await?;
    }
    Ok(status)
}

/// Removes the old anchor as soon as that can be done.
async fn finish(args: &StepArgs, mut operator: Operator, end: Instant) -> anyhow::Result<TrustStatusResponse> {
    if !args.give_up.is_empty() {
        match operator.trust_finish(args.give_up.clone()).await {
            Ok(done) => return Ok(done),
            // Either because of a name, or because others are missing yet.
            Err(e) => {
                let status = ask(args, end).await?;
                if !args.give_up.iter().all(|name| status.given_up.contains(name)) {
                    return Err(e);
                }
            }
        }
    }
    let mut new: Option<String> = None;
    loop {
        let status = ask(args, end).await?;
        let phase = status.phase();
        // The answer to an earlier call may have been lost.
        if phase == TrustPhase::Settled && new.as_deref().is_some_and(|new| trusts(&status, new)) {
            return Ok(status);
        }
        new = new.or_else(|| new_anchor(&status).map(str::to_owned));
        let cannot_be_waited_for = matches!(phase, TrustPhase::Settled | TrustPhase::Returning);
        if cannot_be_waited_for || phase == TrustPhase::Reissuing && status.missing_total == 0 {
            let finished = async { connect(&args.status).await?.trust_finish(vec![]).await }.await;
            match finished {
                Ok(done) => return Ok(done),
                Err(e) if cannot_be_waited_for => return Err(e),
                Err(_) => {}
            }
        }
        patience(&status, end).await?;
    }
}

/// How far it is. A control plane that is away may come back, and may be another process then.
async fn ask(args: &StepArgs, end: Instant) -> anyhow::Result<TrustStatusResponse> {
    loop {
        let answer = async { connect(&args.status).await?.trust_status().await }.await;
        match answer {
            Ok(status) => return Ok(status),
            Err(e) if Instant::now() >= end => {
                return Err(e.context("the control plane does not answer in the time that --timeout gives"));
            }
            Err(_) => sleep(LOOK).await,
        }
    }
}

fn new_anchor(status: &TrustStatusResponse) -> Option<&str> {
    status.anchors.iter().find(|a| a.new).map(|a| a.hash.as_str())
}

fn trusts(status: &TrustStatusResponse, anchor: &str) -> bool {
    status.anchors.iter().any(|a| a.hash == anchor)
}

/// Whether a step is done; `new` is the root that it is about. An error where it will never be.
fn is_done(step: Step, status: &TrustStatusResponse, new: Option<&str>) -> anyhow::Result<bool> {
    if step != Step::Rotate {
        return Ok(status.phase() != TrustPhase::Returning);
    }
    if status.phase() == TrustPhase::Returning || new.is_some_and(|new| !trusts(status, new)) {
        bail!("the rotation was aborted meanwhile: see `weft trust status`");
    }
    Ok(status.phase() == TrustPhase::Settled || status.phase() == TrustPhase::Reissuing && status.missing_total == 0)
}

/// Waits a little, or says who was waited for in vain.
async fn patience(status: &TrustStatusResponse, end: Instant) -> anyhow::Result<()> {
    if Instant::now() >= end {
        let names: Vec<String> = status.missing.iter().take(5).map(|m| format!("{} ({})", name(m), m.why)).collect();
        let problem = if status.problem.is_empty() { String::new() } else { format!(" {};", status.problem) };
        bail!(
            "it is not done in the time that --timeout gives: {} missing: {};{problem} nothing is lost: see `weft trust status`",
            status.missing_total,
            names.join("; ")
        );
    }
    sleep(LOOK).await;
    Ok(())
}

fn name(missing: &TrustMissing) -> String {
    if missing.pod.is_empty() { "unrecorded".to_owned() } else { format!("{}/{}", missing.namespace, missing.pod) }
}

/// Until when it is waited for; a replica of the control plane always is.
fn until(missing: &TrustMissing, now: i64) -> String {
    if missing.until == 0 { "-".to_owned() } else { duration::brief(missing.until.saturating_sub(now)) }
}

fn phase(status: &TrustStatusResponse) -> (&'static str, &'static str) {
    let none_missing = status.missing_total == 0;
    match status.phase() {
        TrustPhase::Unspecified => ("unknown", "this version of weft does not know the phase: use the control plane's"),
        TrustPhase::Settled => ("settled", "nothing is under way"),
        TrustPhase::Spreading => ("spreading", "the old root issues until every sidecar has said that it trusts both anchors"),
        TrustPhase::Reissuing if none_missing => {
            ("reissuing", "every certificate that is served leads to the new root: `weft trust finish` removes the old anchor")
        }
        TrustPhase::Reissuing => ("reissuing", "the new root issues, and sidecars that serve a certificate of the old one renew"),
        TrustPhase::Returning => {
            ("returning", "the old root issues again, and sidecars that serve a certificate of the new one renew")
        }
    }
}

fn as_text(status: &TrustStatusResponse, now: i64) -> String {
    let (name_of_phase, means) = phase(status);
    let since = if status.phase_since == 0 {
        String::new()
    } else {
        format!(", for {}", duration::brief(now.saturating_sub(status.phase_since)))
    };
    let mut text = format!("phase: {name_of_phase}{since}: {means}\n\n");
    let rows: Vec<Vec<String>> = status
        .anchors
        .iter()
        .map(|a| {
            let role = match (a.new, status.anchors.len()) {
                (true, _) => "new",
                (false, 1) => "current",
                (false, _) => "old",
            };
            vec![
                a.hash.clone(),
                role.to_owned(),
                if a.issuing { "yes" } else { "no" }.to_owned(),
                a.served_by.to_string(),
                duration::brief(a.not_after.saturating_sub(now)),
            ]
        })
        .collect();
    text.push_str(&table::render(&["ANCHOR", "ROLE", "ISSUES", "SERVED-BY", "EXPIRES"], &rows));
    let _ = writeln!(
        text,
        "\n{} sidecars hold a certificate: {} are connected, {} trust all of these anchors",
        status.holders, status.connected, status.trusting
    );
    if !status.given_up.is_empty() {
        let _ = writeln!(text, "given up: {}", status.given_up.join(", "));
    }
    if !status.missing.is_empty() {
        let rows: Vec<Vec<String>> = status.missing.iter().map(|m| vec![name(m), until(m, now), m.why.clone()]).collect();
        let _ = write!(text, "\nMISSING ({})\n{}", status.missing_total, table::render(&["POD", "UNTIL", "WHY"], &rows));
    }
    for domain in &status.federated {
        let ends = duration::brief(domain.not_after.saturating_sub(now));
        let _ =
            writeln!(text, "foreign domain {}: {} anchors, the first ends in {ends}", domain.trust_domain, domain.anchors.len());
    }
    if status.denied > 0 {
        let _ = writeln!(text, "{} identities or certificates are denied: see `weft trust deny list`", status.denied);
    }
    if !status.problem.is_empty() {
        let what =
            if status.fixed.is_empty() { "The next step can't be taken" } else { "The CA that is given now is not in use" };
        let _ = writeln!(text, "\n{what}, and is tried again: {}", status.problem);
    }
    if !status.fixed.is_empty() {
        let _ = writeln!(text, "\nThe root can't be rotated here: {}", status.fixed);
    }
    text
}

pub(crate) fn as_json(status: &TrustStatusResponse) -> Value {
    json!({
        "phase": phase(status).0,
        "phaseSince": status.phase_since,
        "anchors": status.anchors.iter().map(|a| json!({
            "hash": a.hash, "notAfter": a.not_after, "issuing": a.issuing, "servedBy": a.served_by, "new": a.new,
        })).collect::<Vec<_>>(),
        "holders": status.holders,
        "connected": status.connected,
        "trusting": status.trusting,
        "missing": status.missing.iter().map(|m| json!({
            "name": name(m), "why": m.why, "until": m.until, "connected": m.connected,
        })).collect::<Vec<_>>(),
        "missingTotal": status.missing_total,
        "givenUp": status.given_up,
        "spreadSeconds": status.spread_seconds,
        "fixed": status.fixed,
        "problem": status.problem,
        "federated": status.federated.iter().map(|d| json!({
            "trustDomain": d.trust_domain, "anchors": d.anchors, "notAfter": d.not_after,
        })).collect::<Vec<_>>(),
        "denied": status.denied,
    })
}

#[cfg(test)]
mod tests {
    use weft_proto::v1::TrustAnchorStatus;

    use super::*;

    fn status() -> TrustStatusResponse {
        let anchor = |hash: &str, new: bool| TrustAnchorStatus {
            hash: hash.to_owned(),
            not_after: 1000 + 90_000,
            issuing: !new,
            served_by: if new { 0 } else { 2 },
            new,
        };
        TrustStatusResponse {
            phase: TrustPhase::Spreading.into(),
            phase_since: 930,
            anchors: vec![anchor("aaaa", false), anchor("bbbb", true)],
            holders: 3,
            connected: 2,
            trusting: 1,
            missing: vec![
                TrustMissing {
                    namespace: "shop".to_owned(),
                    pod: "web-0".to_owned(),
                    why: "it is not connected".to_owned(),
                    until: 1000 + 3_660,
                    connected: false,
                },
                TrustMissing { why: "no record".to_owned(), until: 1007, ..Default::default() },
            ],
            missing_total: 2,
            given_up: vec!["shop/old-0".to_owned()],
            ..Default::default()
        }
    }

    #[test]
    fn people_see_the_phase_the_anchors_and_who_is_missing() {
        let text = as_text(&status(), 1000);
        let wanted = "phase: spreading, for 1m10s: the old root issues until every sidecar has said that it trusts both anchors\n\n\
                      ANCHOR  ROLE  ISSUES  SERVED-BY  EXPIRES\n\
                      aaaa    old   yes     2          1d1h\n\
                      bbbb    new   no      0          1d1h\n\n\
                      3 sidecars hold a certificate: 2 are connected, 1 trust all of these anchors\n\
                      given up: shop/old-0\n\n\
                      MISSING (2)\n\
                      POD         UNTIL  WHY\n\
                      shop/web-0  1h1m   it is not connected\n\
                      unrecorded  7s     no record\n";
        assert_eq!(text, wanted);
    }

    #[test]
    fn programs_see_the_same() {
        let json = as_json(&status());
        assert_eq!(
            (&json["phase"], &json["anchors"][1]["new"], &json["missingTotal"]),
            (&json!("spreading"), &json!(true), &json!(2))
        );
        assert_eq!(json["missing"][1]["name"], "unrecorded");
    }

    #[test]
    fn a_step_is_done_when_its_evidence_is_there() {
        let with =
            |phase: TrustPhase, missing_total| TrustStatusResponse { phase: phase.into(), missing_total, ..Default::default() };
        let done = |step, status: &TrustStatusResponse| is_done(step, status, None).expect("it can be");
        assert!(!done(Step::Rotate, &with(TrustPhase::Spreading, 0)));
        assert!(!done(Step::Rotate, &with(TrustPhase::Reissuing, 1)));
        assert!(done(Step::Rotate, &with(TrustPhase::Reissuing, 0)));
        assert!(!done(Step::Abort, &with(TrustPhase::Returning, 0)) && done(Step::Abort, &with(TrustPhase::Settled, 0)));
    }

    #[test]
    fn a_rotation_that_was_aborted_is_no_success() {
        let mut status = status();
        assert!(!is_done(Step::Rotate, &status, Some("bbbb")).expect("it is under way"));
        status.phase = TrustPhase::Returning.into();
        assert!(is_done(Step::Rotate, &status, Some("bbbb")).is_err());
        status.phase = TrustPhase::Settled.into();
        assert!(is_done(Step::Rotate, &status, Some("bbbb")).expect("somebody finished it"));
        status.anchors.pop();
        let e = is_done(Step::Rotate, &status, Some("bbbb")).expect_err("its root is gone");
        assert!(e.to_string().contains("aborted meanwhile"), "{e}");
    }

    #[test]
    fn what_keeps_a_step_from_being_taken_is_shown_and_no_time_overflows() {
        let status = TrustStatusResponse { problem: "no room".to_owned(), phase_since: i64::MIN, ..status() };
        assert!(as_text(&status, i64::MAX).contains("tried again: no room"));
        assert_eq!(as_json(&status)["problem"], "no room");
    }
}
