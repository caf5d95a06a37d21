//! `weft explain --what-if FILE --flows FLOWS`: which recorded calls would get another answer.

use std::fmt::Write as _;

use serde::Serialize;
use weft_control_plane::explain::flows::{Flow, Replay, Ruling};
use weft_control_plane::snapshot::Snapshot;

use super::offline::Offline;

/// What became of the recorded calls.
#[derive(Serialize, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub(super) struct Replayed {
    flows: usize,
    calls: u64,
    /// Those that get another answer.
    flips: Vec<Flip>,
    /// Flows of which no answer is known: there is no such pod.
    unknown: usize,
    /// Flows that a policy with header fields or tokens is about: none are recorded, and it is taken that there were none.
    without_fields: usize,
    /// The change is about where pods may go: calls out of the mesh are not recorded, and so in no flow.
    changes_egress: bool,
}

#[derive(Serialize, Debug)]
#[serde(rename_all = "camelCase")]
struct Flip {
    call: String,
    count: u64,
    last: i64,
    before: Ruling,
    after: Ruling,
}

/// Whether a pod may go elsewhere than before: by the default of egress, external services and their policies, or network policies.
fn changes_egress(old: &Snapshot, new: &Snapshot) -> bool {
    old.outbound.iter().any(|(pod, before)| new.outbound.get(pod).is_some_and(|after| after.body != before.body))
}

impl Replayed {
    pub(super) fn of(flows: &[Flow], before: &Offline, after: &Offline) -> Self {
        let (old, new) = (before.snapshot(), after.snapshot());
        let (mut was, mut is) = (Replay::new(&old, before.domain()), Replay::new(&new, after.domain()));
        let mut told = Self { flows: flows.len(), changes_egress: changes_egress(&old, &new), ..Self::default() };
        for flow in flows {
            told.calls += flow.count;
            let (Some(before), Some(after)) = (was.ruling(flow), is.ruling(flow)) else {
                told.unknown += 1;
                continue;
            };
            told.without_fields += usize::from(before.asks_fields || after.asks_fields);
            if before.allowed != after.allowed {
                told.flips.push(Flip { call: flow.told(), count: flow.count, last: flow.last, before, after });
            }
        }
        // Refused anew first, then by how often.
        told.flips.sort_by_key(|flip| (flip.after.allowed, std::cmp::Reverse(flip.count)));
        told
    }

    /// Whether every recorded call gets the answer that it got before.
    pub(super) fn is_same(&self) -> bool {
        self.flips.is_empty() && self.unknown == 0
    }

    pub(super) fn shown(&self) -> String {
        let mut text = format!("{} calls in {} flows replayed\n", self.calls, self.flows);
        if self.unknown > 0 {
            let _ = writeln!(text, "{} flows are to pods of which the manifests know nothing: no answer", self.unknown);
        }
        if self.without_fields > 0 {
            let count = self.without_fields;
            let _ = writeln!(
                text,
                "{count} flows are to pods whose policies ask for header fields or tokens, which are not recorded: judged as if there were none"
            );
        }
        if self.changes_egress {
            text.push_str(
                "calls out of the mesh are not recorded, and the change is about where pods may go: what becomes of such calls is not in this answer \
                 (ask with --to-host)\n",
            );
        }
        if self.flips.is_empty() {
            text.push_str("nothing flips: every recorded call gets the answer that it got before\n");
        }
        for allowed in [false, true] {
            let flips: Vec<&Flip> = self.flips.iter().filter(|flip| flip.after.allowed == allowed).collect();
            if flips.is_empty() {
                continue;
            }
            let calls: u64 = flips.iter().map(|flip| flip.count).sum();
            let calls = if calls == 1 { "1 call".to_owned() } else { format!("{calls} calls") };
            let _ = writeln!(text, "\n{calls} would be {} anew:", if allowed { "allowed" } else { "refused" });
            for flip in flips {
                let _ = writeln!(text, "  {} ({}×)\n    {}", flip.call, flip.count, flip.after.reason);
            }
        }
        text
    }
}
