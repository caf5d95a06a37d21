//! `weft diff`: what the control plane has for a sidecar against what the sidecar holds, by names and content hashes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::Args;
use serde::{Deserialize, Serialize};
use weft_core::service::ObjectRef;
use weft_proto::v1;

use crate::fleet::Fleet;
use crate::operator::{self, Meant, Way};
use crate::output::{Look, Output, Tint};
use crate::{rundir, table};

/// What `weft diff` is told.
#[derive(Args, Debug)]
#[command(after_help = "\
Resources are those of discovery: trust, mesh, inbound, outbound, and by name address/, service/, endpoints/, routes/, policy/ and peers/. missing: the control plane has \
it and the sidecar does not; extra: the other way round; stale: both have it, with another content. What changes while it is looked at may stand here for a moment. Of a cluster's \
replicas of the control plane, the one that the sidecar hears is meant.

Exit status: 0 where both have the same, 1 where they differ or the sidecar is not connected, 2 where one of them does not answer.

Examples:
  weft diff shop/web-0
  weft diff shop/web-0 -o wide
  weft diff shop/web-7d9c5b4f6-x2x4k --context prod
  weft diff shop/web-0 -o json | jq '.missing'")]
pub(crate) struct DiffArgs {
    /// A replica, as NAMESPACE/NAME
    #[arg(value_name = "NS/POD")]
    pod: ObjectRef,

    #[command(flatten)]
    meant: Meant,

    #[arg(long, value_name = "NAME", help = "Context of the kubeconfig: a mesh on that cluster is meant")]
    context: Option<String>,

    #[command(flatten)]
    output: Output,
}

/// What a sidecar answers at `/held`.
#[derive(Deserialize, Debug)]
struct Held {
    connected: bool,
    silent_millis: Option<u64>,
    resources: Vec<One>,
}

#[derive(Deserialize, Debug)]
struct One {
    name: String,
    version: String,
}

/// How both compare.
#[derive(Serialize, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct Difference {
    pod: String,
    /// As the sidecar has it, and as the control plane has it.
    connected: bool,
    seen_by_control_plane: bool,
    silent_millis: Option<u64>,
    same: usize,
    missing: Vec<Named>,
    extra: Vec<Named>,
    stale: Vec<Named>,
}

#[derive(Serialize, Debug, Default, PartialEq, Eq, Clone)]
#[serde(rename_all = "camelCase")]
struct Named {
    name: String,
    /// Content hashes, in hexadecimal; none where it is not there.
    control_plane: Option<String>,
    sidecar: Option<String>,
}

pub(crate) fn main(args: &DiffArgs) -> anyhow::Result<ExitCode> {
    // That they differ is one thing, and that nobody answers another.
    run(args).or_else(|error| {
        crate::complain(&format!("{error:#}"));
        Ok(ExitCode::from(2))
    })
}

fn run(args: &DiffArgs) -> anyhow::Result<ExitCode> {
    let fleet = Fleet::find(&args.meant.which, args.context.as_deref())?;
    let pod = args.pod.to_string();
    let told = fleet.ask_one(&pod, "GET", "/held")?;
    let held: Held = serde_json::from_str(&told).with_context(|| format!("what the sidecar of {pod} holds"))?;
    let names = held.resources.iter().map(|r| r.name.clone()).collect();
    let request = v1::ViewRequest { namespace: args.pod.namespace.to_string(), pod: args.pod.name.to_string(), names };
    let ways = match (&fleet, args.meant.named()) {
        (_, Some(socket)) => vec![Way::Socket(socket.to_owned())],
        (Fleet::Run(run), None) => vec![Way::Socket(run.join(rundir::OPERATOR_SOCKET))],
        (Fleet::Cluster(context), None) => Way::every(context.as_deref())?,
    };
    let views =
        Fleet::each(&ways, |way| operator::ask_by(way.clone(), async |mut operator| operator.view(request.clone()).await));
    let view = best(views)?;
    let found = compare(&pod, &held, &view);
    args.output.print(|look| found.shown(look), &found)?;
    Ok(ExitCode::from(u8::from(!found.is_same())))
}

/// What the replica tells that the sidecar hears: it alone knows what was asked of it. Where none says that it does, what any of them has.
fn best(views: Vec<anyhow::Result<v1::ViewResponse>>) -> anyhow::Result<v1::ViewResponse> {
    let (told, failed): (Vec<_>, Vec<_>) = views.into_iter().partition(Result::is_ok);
    let mut told: Vec<v1::ViewResponse> = told.into_iter().flatten().collect();
    if let Some(at) = told.iter().position(|view| view.connected) {
        return Ok(told.swap_remove(at));
    }
    // The one that did not answer may be the one that the sidecar hears.
    match (failed.into_iter().find_map(Result::err), told.pop()) {
        (Some(why), _) => Err(why),
        (None, Some(view)) => Ok(view),
        (None, None) => Err(anyhow!("no control plane was asked")),
    }
}

fn compare(pod: &str, held: &Held, view: &v1::ViewResponse) -> Difference {
    let theirs: BTreeMap<&str, String> =
        view.resources.iter().map(|r| (r.name.as_str(), format!("{:016x}", r.version))).collect();
    let ours: BTreeMap<&str, &str> = held.resources.iter().map(|r| (r.name.as_str(), r.version.as_str())).collect();
    let mut found = Difference {
        pod: pod.to_owned(),
        connected: held.connected,
        seen_by_control_plane: view.connected,
        silent_millis: held.silent_millis,
        ..Difference::default()
    };
    let names: BTreeSet<&str> = theirs.keys().copied().chain(ours.keys().copied()).collect();
    for name in names {
        let (control_plane, sidecar) = (theirs.get(name).cloned(), ours.get(name).map(|v| (*v).to_owned()));
        let named = Named { name: name.to_owned(), control_plane, sidecar };
        match (&named.control_plane, &named.sidecar) {
            (Some(a), Some(b)) if a == b => found.same += 1,
            (Some(_), Some(_)) => found.stale.push(named),
            (Some(_), None) => found.missing.push(named),
            _ => found.extra.push(named),
        }
    }
    found
}

impl Difference {
    fn is_same(&self) -> bool {
        self.connected && self.seen_by_control_plane && self.missing.is_empty() && self.extra.is_empty() && self.stale.is_empty()
    }

    fn shown(&self, look: Look) -> String {
        let mut text = String::new();
        let heard =
            self.silent_millis.map_or_else(|| "never".to_owned(), |millis| format!("{:.1} s ago", millis as f64 / 1000.0));
        let state = match (self.connected, self.seen_by_control_plane) {
            (true, true) => "connected".to_owned(),
            (true, false) => "connected, though not to this replica of the control plane".to_owned(),
            (false, _) => look.paint(Tint::Bad, "not connected: it goes on with what it holds"),
        };
        let (pod, same) = (&self.pod, self.same);
        let _ = writeln!(text, "{pod}: {state}; it heard its control plane {heard}; {same} resources are the same");
        let rows: Vec<Vec<String>> = [("missing", &self.missing), ("stale", &self.stale), ("extra", &self.extra)]
            .into_iter()
            .flat_map(|(what, all)| {
                all.iter().map(move |one| {
                    let hash = |hash: &Option<String>| hash.clone().unwrap_or_else(|| "–".to_owned());
                    let mut row = vec![what.to_owned(), one.name.clone()];
                    if look.wide {
                        row.extend([hash(&one.control_plane), hash(&one.sidecar)]);
                    }
                    row
                })
            })
            .collect();
        if !rows.is_empty() {
            let header: &[&str] = if look.wide { &["WHAT", "NAME", "CONTROL PLANE", "SIDECAR"] } else { &["WHAT", "NAME"] };
            text.push('\n');
            text += &table::dressed(header, &rows, look);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_replicas_the_one_that_the_sidecar_hears_counts() {
        let view = |connected, version| v1::ViewResponse {
            connected,
            resources: vec![v1::Viewed { name: "trust".into(), version }],
            unsubscribed: vec![],
        };
        let found = best(vec![Ok(view(false, 1)), Err(anyhow!("gone")), Ok(view(true, 2))]).expect("two answer");
        assert!(found.connected && found.resources[0].version == 2);
        assert!(!best(vec![Ok(view(false, 2)), Ok(view(false, 1))]).expect("both answer").connected);
        let unknown = best(vec![Err(anyhow!("gone")), Ok(view(false, 1))]);
        assert_eq!(unknown.expect_err("it may hear the other").to_string(), "gone");
        assert_eq!(best(vec![Err(anyhow!("gone"))]).expect_err("none answers").to_string(), "gone");
    }

    #[test]
    fn what_differs_is_told_by_name() {
        let one = |name: &str, version: &str| One { name: name.into(), version: version.into() };
        let held = Held {
            connected: true,
            silent_millis: Some(1500),
            resources: vec![
                one("inbound", "000000000000000a"),
                one("service/shop/old", "0000000000000001"),
                one("trust", "0000000000000003"),
            ],
        };
        let seen = |name: &str, version| v1::Viewed { name: name.into(), version };
        let view = v1::ViewResponse {
            connected: true,
            resources: vec![seen("inbound", 10), seen("policy/shop/web", 4), seen("trust", 9)],
            unsubscribed: vec![],
        };
        let found = compare("shop/web-0", &held, &view);
        assert!(!found.is_same());
        let text = found.shown(Look { wide: true, colour: false });
        let expected = "\
shop/web-0: connected; it heard its control plane 1.5 s ago; 1 resources are the same

WHAT     NAME              CONTROL PLANE     SIDECAR
missing  policy/shop/web   0000000000000004  –
stale    trust             0000000000000009  0000000000000003
extra    service/shop/old  –                 0000000000000001
";
        assert_eq!(text, expected);
    }
}
