//! An answer, as it is printed.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;
use weft_proto::v1;
use weft_proto::v1::ExplainedVerdict;

use crate::table;

/// An answer.
#[derive(Serialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(super) struct Told {
    /// What was asked, for people.
    question: String,
    /// The caller's identity; none: it proves none.
    caller: Option<String>,
    /// The address that it calls from, where one is known.
    source: Option<String>,
    answers: Vec<Answer>,
    /// With manifests laid over: the pods that answer otherwise than without them.
    #[serde(skip_serializing_if = "Option::is_none")]
    flips: Option<Vec<Flip>>,
}

/// What some pods of the service answer.
#[derive(Serialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct Answer {
    pods: Vec<String>,
    /// Their own.
    port: u32,
    verdict: &'static str,
    reason: String,
    /// The policy that decided.
    policy: Option<String>,
    would_allow: Option<String>,
    notes: Vec<String>,
    considered: Vec<Considered>,
    /// The mTLS mode at that port, and who set it; none where there is no sidecar.
    mtls: Option<String>,
    /// Nobody but the mesh's default set it.
    #[serde(skip)]
    mtls_is_default: bool,
}

#[derive(Serialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct Considered {
    policy: String,
    action: String,
    dry_run: bool,
    target: String,
    applies: bool,
    matches: bool,
    why: String,
}

#[derive(Serialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
struct Flip {
    pod: String,
    /// None: it did not answer.
    before: Option<&'static str>,
    after: &'static str,
}

fn word(verdict: ExplainedVerdict) -> &'static str {
    match verdict {
        ExplainedVerdict::Allowed => "allowed",
        ExplainedVerdict::ByRequest => "depends on the request",
        ExplainedVerdict::Denied | ExplainedVerdict::Unspecified => "denied",
    }
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// The verdict of each pod.
pub(super) fn verdicts(answer: &v1::ExplainResponse) -> BTreeMap<String, &'static str> {
    answer.answers.iter().flat_map(|a| a.pods.iter().map(|pod| (pod.clone(), word(a.verdict())))).collect()
}

/// A caller and a service whose answer is another one.
#[derive(Serialize, Debug, Clone, PartialEq, Eq)]
pub(super) struct PairFlip {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) before: String,
    pub(super) after: String,
}

impl PairFlip {
    pub(super) fn shown(flips: &[Self]) -> String {
        if flips.is_empty() {
            return "nothing flips: every caller gets the answer that it got before\n".to_owned();
        }
        let row = |flip: &Self| vec![flip.from.clone(), flip.to.clone(), flip.before.clone(), flip.after.clone()];
        table::render(&["FROM", "TO", "BEFORE", "AFTER"], &flips.iter().map(row).collect::<Vec<_>>())
    }
}

impl Told {
    pub(super) fn new(question: &v1::ExplainRequest, answer: &v1::ExplainResponse) -> Self {
        let considered = |c: &v1::ConsideredPolicy| Considered {
            policy: c.policy.clone(),
            action: c.action.clone(),
            dry_run: c.dry_run,
            target: c.target.clone(),
            applies: c.applies,
            matches: c.matches,
            why: c.why.clone(),
        };
        let one = |a: &v1::Explanation| Answer {
            pods: a.pods.clone(),
            port: a.port,
            verdict: word(a.verdict()),
            reason: a.reason.clone(),
            policy: some(&a.policy),
            would_allow: some(&a.remedy),
            notes: a.notes.clone(),
            considered: a.considered.iter().map(considered).collect(),
            mtls: some(&a.mtls),
            mtls_is_default: a.mtls_is_default,
        };
        Self {
            question: asked(question),
            caller: some(&answer.caller),
            source: some(&answer.source),
            answers: answer.answers.iter().map(one).collect(),
            flips: None,
        }
    }

    /// Says which pods answered otherwise before.
    pub(super) fn flipped(mut self, before: Option<&v1::ExplainResponse>) -> Self {
        let before = before.map(verdicts).unwrap_or_default();
        let mut flips = Vec::new();
        for answer in &self.answers {
            for pod in &answer.pods {
                let was = before.get(pod.as_str()).copied();
                if was != Some(answer.verdict) {
                    flips.push(Flip { pod: pod.clone(), before: was, after: answer.verdict });
                }
            }
        }
        flips.sort_by(|a, b| a.pod.cmp(&b.pod));
        self.flips = Some(flips);
        self
    }

    /// Whether every pod lets it in, whatever is asked for.
    pub(super) fn is_allowed(&self) -> bool {
        self.answers.iter().all(|a| a.verdict == word(ExplainedVerdict::Allowed))
    }

    pub(super) fn shown(&self) -> String {
        let caller = self.caller.as_deref().unwrap_or("no identity");
        let source = self.source.as_ref().map_or_else(
            || "an unknown address (clauses about networks are judged by 0.0.0.0)".to_owned(),
            |source| format!("address {source}"),
        );
        let mut text = format!("{}\n{caller} from {source}\n", self.question);
        for answer in &self.answers {
            answer.show(&mut text);
        }
        if let Some(flips) = &self.flips {
            text.push_str("\nWith these manifests, ");
            if flips.is_empty() {
                text.push_str("nothing flips: every pod answers as before\n");
            } else {
                text.push_str("this flips:\n");
            }
            for Flip { pod, before, after } in flips {
                let _ = writeln!(text, "  {pod}: {} → {after}", before.unwrap_or("no answer"));
            }
        }
        text
    }
}

impl Answer {
    fn show(&self, text: &mut String) {
        let (verdict, port, pods) = (self.verdict.to_uppercase(), self.port, self.pods.join(", "));
        let _ = writeln!(text, "\n{verdict} at port {port} of {pods}\n  {}", self.reason);
        if let Some(would_allow) = &self.would_allow {
            let _ = writeln!(text, "  what would allow it: {would_allow}");
        }
        if let (Some(mtls), false) = (&self.mtls, self.mtls_is_default) {
            let _ = writeln!(text, "  mTLS: {mtls}");
        }
        for note in &self.notes {
            let _ = writeln!(text, "  {note}");
        }
        if self.considered.is_empty() {
            text.push_str("  no policy is about these pods\n");
            return;
        }
        let rows: Vec<Vec<String>> = self.considered.iter().map(Considered::row).collect();
        for line in table::render(&["POLICY", "ACTION", "FOR", "", "WHY"], &rows).lines() {
            let _ = writeln!(text, "  {line}");
        }
    }
}

impl Considered {
    fn row(&self) -> Vec<String> {
        let outcome = match (self.applies, self.matches) {
            (false, _) => "not asked",
            (true, true) => "matches",
            (true, false) => "no match",
        };
        let action = if self.dry_run { format!("{} (dry run)", self.action) } else { self.action.clone() };
        vec![self.policy.clone(), action, self.target.clone(), outcome.to_owned(), self.why.clone()]
    }
}

/// A question, as its asker would write it.
fn asked(question: &v1::ExplainRequest) -> String {
    let id = |id: &Option<v1::ObjectRef>| id.as_ref().map(|id| format!("{}/{}", id.namespace, id.name)).unwrap_or_default();
    let from = match (question.unauthenticated, &question.from) {
        (true, _) => "anyone without an identity".to_owned(),
        (false, Some(_)) => id(&question.from),
        (false, None) => id(&question.from_pod),
    };
    let to = if question.to_host.is_empty() { id(&question.to) } else { question.to_host.clone() };
    let mut text = format!("{from} → {to}:{}", question.port);
    if let Some(call) = &question.call {
        let or = |text: &str, default: &str| if text.is_empty() { default.to_owned() } else { text.to_owned() };
        let _ = write!(text, " {} {}", or(&call.method, "GET"), or(&call.path, "/"));
        if !call.host.is_empty() {
            let _ = write!(text, " host {}", call.host);
        }
        for header in &call.headers {
            let _ = write!(text, " {}: {}", header.name, header.value);
        }
    }
    text
}
