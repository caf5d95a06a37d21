//! The last calls that were denied, with every reason, for the owner of the admin socket; and counts of all of them.
//!
//! A caller is told a reference and nothing else: it is drawn at random and says nothing of the policy.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use weft_core::authorization::Decision;
use weft_core::failure::{Failure, Reason};
use weft_core::metrics::{Family, Labels, Point, Text, Value, table};
use weft_core::network_policy;

use crate::identity::{random, unix_now};
use crate::metrics::tally::Tally;

/// Denials that are kept.
const KEPT: usize = 1_000;
/// Those of one source among them: nobody can drive out what is known of the others.
const OF_ONE_SOURCE: usize = KEPT / 8;
/// Lines that are written in a second, of denials and of what else is told.
const LINES: u32 = 100;
/// Policies and causes that are counted apart; what comes later is counted together.
const MOST_COUNTS: usize = 500;
/// Characters that are kept of a method and of a path.
const LONGEST: usize = 200;

/// What a caller is told instead of reasons: 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reference(pub u64);

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A call that was judged.
#[derive(Clone, Copy)]
pub struct Call<'a> {
    /// The identity that the caller proved, or `plaintext`.
    pub peer: &'a str,
    pub source: IpAddr,
    /// The host outside of the mesh that the pod itself has called; none where it was called.
    pub to: Option<&'a str>,
    pub port: u16,
    pub protocol: &'static str,
    /// Method and path, without the query.
    pub request: Option<(&'a [u8], &'a [u8])>,
}

/// One denial.
#[derive(Clone, Serialize, Debug)]
pub struct Record {
    #[serde(rename = "ref")]
    pub reference: String,
    /// Seconds since 1970.
    pub at: i64,
    pub peer: String,
    pub source: IpAddr,
    /// Of a call out of the mesh: the host.
    pub to: Option<String>,
    pub port: u16,
    /// A call of the pod's own that was refused here: where it went to.
    pub called: Option<String>,
    pub protocol: &'static str,
    pub method: Option<String>,
    pub path: Option<String>,
    pub verdict: String,
    pub cause: &'static str,
    /// The policy that decided, where one did: its namespace and name, what it is attached to, and the rule's place.
    pub policy: Option<String>,
    pub target: Option<String>,
    pub rule: Option<usize>,
    /// The clauses by which that rule matched.
    pub clause: Option<String>,
    /// All of it, as a sentence.
    pub text: String,
    /// What would have allowed it.
    pub remedy: Option<String>,
    /// Its place among all that were ever kept, from 1.
    #[serde(skip)]
    pub place: u64,
}

impl Record {
    fn new(call: &Call<'_>, cause: &'static str, text: String) -> Self {
        let short = |bytes: &[u8]| String::from_utf8_lossy(bytes).chars().take(LONGEST).collect::<String>();
        Self {
            reference: String::new(),
            at: unix_now(),
            peer: call.peer.to_owned(),
            source: call.source.to_canonical(),
            to: call.to.map(|to| short(to.as_bytes())),
            port: call.port,
            called: None,
            protocol: call.protocol,
            method: call.request.map(|(method, _)| short(method)),
            path: call.request.map(|(_, path)| short(path)),
            verdict: "denied".to_owned(),
            cause,
            policy: None,
            target: None,
            rule: None,
            clause: None,
            text,
            remedy: None,
            place: 0,
        }
    }
}

/// A policy, the place of its rule where one decided, and why it denied a call.
type CountKey = (String, Option<u32>, &'static str);

#[derive(Default)]
struct Kept {
    records: VecDeque<Record>,
    /// How many were ever kept.
    ever: u64,
    /// How many of them are of each source.
    sources: BTreeMap<IpAddr, usize>,
    /// The second in which lines were written last, how many, and how many were not since.
    lines: (i64, u32, u64),
    denied: Tally<CountKey, 1>,
}

impl Kept {
    fn push(&mut self, mut record: Record) {
        self.ever += 1;
        record.place = self.ever;
        let of = self.sources.entry(record.source).or_default();
        *of += 1;
        let own = *of > OF_ONE_SOURCE;
        let oldest = if own { self.records.iter().position(|r| r.source == record.source) } else { Some(0) };
        if (own || self.records.len() == KEPT)
            && let Some(gone) = oldest.and_then(|at| self.records.remove(at))
            && let Some(left) = self.sources.get_mut(&gone.source)
        {
            *left -= 1;
            if *left == 0 {
                self.sources.remove(&gone.source);
            }
        }
        self.records.push_back(record);
    }
}

/// What was denied and told, of all workers. Allowed calls that nothing is told of never come here.
#[derive(Default)]
pub struct Denials(Mutex<Kept>);

impl Denials {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a denial; gives what its caller is told.
    pub fn add(&self, call: &Call<'_>, decision: &Decision) -> Reference {
        let matched = decision.cause.matched();
        self.keep(Record {
            verdict: decision.verdict.to_string(),
            policy: matched.map(|m| m.policy.id.to_string()),
            target: matched.map(|m| m.policy.target.to_string()),
            rule: matched.map(|m| m.rule),
            clause: matched.map(weft_core::authorization::Match::clause),
            remedy: decision.remedy(),
            ..Record::new(call, decision.cause.as_str(), decision.to_string())
        })
    }

    /// Keeps a call out of the mesh that no policy has denied, but the default of egress; gives what its caller is told.
    pub fn add_egress(&self, call: &Call<'_>, text: String, remedy: String) -> Reference {
        add(&mut self.kept().denied, ("none".to_owned(), None, "egress"));
        self.keep(Record { remedy: Some(remedy), ..Record::new(call, "egress", text) })
    }

    /// Keeps a call that was refused before any policy about who calls what was asked, and counts it; `called` is where a call of the pod's own went to.
    pub fn add_refused(&self, call: &Call<'_>, called: Option<SocketAddr>, failure: &Failure) -> Reference {
        let (reason, cause) = (failure.reason, failure.reason.as_str());
        add(&mut self.kept().denied, ("none".to_owned(), None, cause));
        let why = failure.detail.as_deref().unwrap_or_else(|| reason.explain());
        let verdict = if reason == Reason::NotReady { "not ready" } else { "denied" };
        self.keep(Record {
            called: called.map(|address| address.to_string()),
            verdict: verdict.to_owned(),
            remedy: remedy(reason, call).map(ToOwned::to_owned),
            ..Record::new(call, cause, format!("{verdict} before any policy is asked: {why}"))
        })
    }

    fn keep(&self, mut record: Record) -> Reference {
        let reference = Reference(random());
        record.reference = reference.to_string();
        self.kept().push(record);
        reference
    }

    /// Keeps a denial by network policies, and counts it; `called` is where a call of the pod's own went to.
    pub fn add_isolated(
        &self,
        call: &Call<'_>,
        called: Option<SocketAddr>,
        text: &str,
        denied: &network_policy::Denied,
    ) -> Reference {
        let policy = denied.policy().map(ToString::to_string);
        add(&mut self.kept().denied, (policy.clone().unwrap_or_else(|| "none".to_owned()), None, "network-policy"));
        self.keep(Record {
            called: called.map(|address| address.to_string()),
            policy,
            rule: denied.nearest.as_ref().and_then(|n| n.rule),
            remedy: Some(denied.remedy()),
            ..Record::new(call, "network-policy", text.to_owned())
        })
    }

    /// Whether a line may be written: so many a second, whoever calls how often. Tells how many were left out.
    pub fn may_log(&self) -> bool {
        let now = unix_now();
        let mut kept = self.kept();
        let (second, written, left_out) = &mut kept.lines;
        if *second != now {
            (*second, *written) = (now, 0);
        }
        let may = *written < LINES;
        if may {
            *written += 1;
        } else {
            *left_out += 1;
        }
        let left_out = if may { std::mem::take(left_out) } else { 0 };
        drop(kept);
        if left_out > 0 {
            tracing::warn!(left_out, "there were too many calls to tell of each: all are counted in weft_denials_total");
        }
        may
    }

    /// Counts a denial. What AUDIT policies and dry runs have to say is counted by each worker (`WorkerMetrics::notices`).
    pub fn count(&self, decision: &Decision) {
        let mut kept = self.kept();
        if !decision.is_allowed() {
            let policy = decision.policy().map_or_else(|| "none".to_owned(), |p| p.id.to_string());
            let rule = decision.cause.matched().map(|m| m.rule as u32);
            add(&mut kept.denied, (policy, rule, decision.cause.as_str()));
        }
    }

    /// Those that are kept, the newest first.
    pub fn all(&self) -> Vec<Record> {
        self.kept().records.iter().rev().cloned().collect()
    }

    /// The newest of those that came after the first `before` ones, `most` at most, the oldest of them first; and how many came altogether.
    pub fn after(&self, before: u64, most: usize) -> (Vec<Record>, u64) {
        let kept = self.kept();
        let mut found: Vec<_> = kept.records.iter().rev().take_while(|r| r.place > before).take(most).cloned().collect();
        found.reverse();
        (found, kept.ever)
    }

    /// The one of a reference, in any case.
    pub fn of(&self, reference: &str) -> Option<Record> {
        self.kept().records.iter().rev().find(|r| r.reference.eq_ignore_ascii_case(reference)).cloned()
    }

    /// As metrics have them.
    pub fn family(&self) -> Family {
        let kept = self.kept();
        let mut family = Family::new(&table::DENIALS);
        for ((policy, rule, what), counted) in kept.denied.iter() {
            let mut labels = Labels::new().and(table::POLICY, policy.clone()).and(table::REASON, *what);
            if let Some(rule) = rule {
                labels.add(table::RULE, Text::Number(*rule));
            }
            family.push(Point { labels, since: counted.since, value: Value::Count(counted.counts[0]) });
        }
        family
    }

    /// Drops counts under which nothing was counted for so long.
    pub fn sweep(&self, unused: Duration) {
        self.kept().denied.sweep(MOST_COUNTS, unused);
    }
}

/// What would have let in a call that was refused before any policy was asked.
fn remedy(reason: Reason, call: &Call<'_>) -> Option<&'static str> {
    Some(match reason {
        Reason::MtlsRequired => {
            "mutual TLS, that is a sidecar for the caller; or an MtlsPolicy that is permissive for the workload or the port (weft explain \
             --unauthenticated says which one is in force)"
        }
        Reason::ProtocolMismatch if call.to.is_none() => {
            "HTTP, or a port that is not declared as HTTP (appProtocol of the Service)"
        }
        Reason::ProtocolMismatch => "the protocol that the ExternalService declares for the port",
        Reason::NotReady => "the first policy from the control plane: weft status says whether the sidecar is connected",
        Reason::Denied => "a sidecar of the control plane's version",
        Reason::EgressDenied => "an ExternalService that names the host and the port, in the pod's namespace or for the mesh",
        _ => return None,
    })
}

fn add(counts: &mut Tally<CountKey, 1>, key: CountKey) {
    let what = key.2;
    let room = counts.has_room(&key, MOST_COUNTS);
    counts.add(if room { key } else { ("other".to_owned(), None, what) }, 0);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use weft_core::authorization::{Authorization, Compiled, Connection, Judge, Posture};

    use super::*;

    #[test]
    fn a_refusal_before_any_policy_is_found_by_its_reference_too() {
        let denials = Denials::default();
        let source = "10.0.0.9".parse().expect("an address");
        let call = Call { peer: "plaintext", source, to: None, port: 80, protocol: "http/1.1", request: Some((b"GET", b"/")) };
        let strict = Failure::mesh(Reason::MtlsRequired).detail("the workload is strict");
        let record = denials.of(&denials.add_refused(&call, None, &strict).to_string()).expect("it is kept");
        assert_eq!((record.cause, &*record.text), ("mtls-required", "denied before any policy is asked: the workload is strict"));
        assert!(record.remedy.is_some_and(|remedy| remedy.contains("mutual TLS") && remedy.contains("MtlsPolicy")));
        let early =
            denials.of(&denials.add_refused(&call, None, &Failure::mesh(Reason::NotReady)).to_string()).expect("it is kept");
        assert_eq!((&*early.verdict, early.remedy.is_some()), ("not ready", true));
        let labels = Labels::new().and(table::POLICY, "none".to_owned()).and(table::REASON, "mtls-required");
        assert!(denials.family().points.iter().any(|point| point.labels == labels));
    }

    #[test]
    fn as_many_are_kept_as_may_be_and_a_reference_finds_its_own() {
        let authorization = Authorization { posture: Posture::Deny, ..Authorization::default() };
        let own = "spiffe://td/ns/shop/sa/cart".parse().expect("an identity");
        let source = "10.0.0.9".parse().expect("an address");
        let decision = Judge::new(Arc::new(Compiled::new(&authorization, own)), Connection::new(80, None, source)).decide(None);
        let denials = Denials::default();
        let path = vec![b'x'; 10_000];
        let call = Call { peer: "plaintext", source, to: None, port: 80, protocol: "tcp", request: Some((b"GET", &path)) };
        let first = denials.add(&call, &decision);
        let found = denials.of(&first.to_string().to_uppercase()).expect("it is kept");
        assert_eq!((found.cause, found.path.map(|p| p.len())), ("default", Some(LONGEST)));
        for _ in 0..KEPT {
            denials.add(&call, &decision);
        }
        assert!(denials.of(&first.to_string()).is_none() && denials.all().len() == OF_ONE_SOURCE);
        for source in 0..2 * KEPT as u32 {
            denials.add(&Call { source: std::net::Ipv4Addr::from_bits(source / 100).into(), ..call }, &decision);
        }
        assert_eq!((denials.all().len(), denials.kept().sources.values().sum::<usize>()), (KEPT, KEPT));
        let last = denials.add(&call, &decision);
        assert_eq!(denials.all()[0].reference, last.to_string());
        denials.count(&decision);
        let denied = denials.family();
        assert_eq!(denied.points[0].labels, Labels::new().and(table::POLICY, "none".to_owned()).and(table::REASON, "default"));
    }

    /// Whoever may write policies cannot make a sidecar keep, and a collector take, ever more.
    #[test]
    fn the_counts_are_bounded_and_lose_none() {
        let denials = Denials::default();
        let more = 70;
        for n in 0..MOST_COUNTS + more {
            add(&mut denials.kept().denied, (format!("shop/policy-{n}"), None, "denied"));
        }
        add(&mut denials.kept().denied, ("shop/policy-0".to_owned(), None, "denied"));
        add(&mut denials.kept().denied, ("shop/one-more".to_owned(), None, "default"));
        let denied = denials.family();
        let of = |policy: &str, cause: &'static str| {
            let labels = Labels::new().and(table::POLICY, policy.to_owned()).and(table::REASON, cause);
            denied.points.iter().find(|point| point.labels == labels).map(|point| point.value.clone())
        };
        // Those, and `other` for each cause: there are a few.
        assert_eq!(denied.points.len(), MOST_COUNTS + 2);
        assert_eq!(of("shop/policy-0", "denied"), Some(Value::Count(2)), "what is there counts on");
        assert_eq!(of("other", "denied"), Some(Value::Count(more as u64)));
        assert_eq!(of("other", "default"), Some(Value::Count(1)));
        let sum: u64 =
            denied.points.iter().filter_map(|point| if let Value::Count(n) = point.value { Some(n) } else { None }).sum();
        assert_eq!(sum, (MOST_COUNTS + more + 2) as u64);
    }
}
