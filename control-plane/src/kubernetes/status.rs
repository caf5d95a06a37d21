//! Status of routes and policies, written by the replica that holds the Lease: what became of each, so that `kubectl get` tells.
//!
//! What stands is known from the watch, so that nothing is read for it and nothing is written twice; a new holder compares before it
//! writes. Nothing waits for a write: objects are marked, and looked at as they are when their turn comes.

pub mod merge;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use imbl::ordmap::DiffItem;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use weft_core::backoff::Backoff;
use weft_core::service::ObjectRef;

use self::merge::{Condition, Entry, List};
use super::uptake::Counts;
use super::{CALL, MANAGER, explain};
use crate::model::status::{ObjectStatus, RouteStatus, Statuses as Outcomes};
use crate::objects::{Kind, ObjectKey};
use crate::server::random;
use crate::watch::kubernetes::resource::resource;
use crate::watch::kubernetes::standing::{Standing, Statuses, Unreadable};

/// Marks are gathered for this long, so that a burst costs one write for each object.
const GATHER: Duration = Duration::from_millis(100);
/// One object is written at most this often.
const APART: Duration = Duration::from_secs(3);
/// What is ours is taken away when it was not wanted for so long.
const DOOMED: Duration = Duration::from_secs(1);
/// After a write that the server does not take, whatever it is that is wrong with the object.
const REFUSED: Duration = Duration::from_secs(60);

/// What is to stand in the status of an object.
#[derive(Clone, PartialEq, Debug)]
pub struct Wanted {
    /// The generation of the object that it was made from. While the model has not seen the latest, nothing is written.
    pub generation: i64,
    pub entries: Vec<Entry>,
    /// Further fields of the status.
    pub more: Map<String, Value>,
}

/// Writes what is wanted where something else stands.
pub struct Statusing {
    pub client: Client,
    /// What stands.
    pub statuses: Arc<Statuses>,
    /// What became of each object.
    pub outcomes: watch::Receiver<Outcomes>,
    /// How far the policy of each service has come.
    pub counts: watch::Receiver<Counts>,
}

/// Objects that are left alone for a while.
type Resting = BTreeMap<ObjectKey, Rest>;

#[derive(Clone, Copy, Debug)]
struct Rest {
    until: Instant,
    /// It is to be looked at then.
    look: bool,
    /// What is ours there is to go then.
    doomed: bool,
}

/// How a write ended.
#[derive(Debug)]
enum End {
    /// It stands as it should, or somebody was faster: the watch tells what stands then.
    Done,
    Written,
    /// Nothing of ours is wanted there any more.
    Doomed,
    /// The server does not take it.
    Refused(String),
    /// The server has trouble, or too much to do: nothing is written for this long, where it says how long.
    Trouble(String, Option<Duration>),
}

impl Statusing {
    /// Runs until `leading` is dropped.
    pub async fn run(mut self, mut leading: watch::Receiver<bool>) {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        let (mut outcomes, mut counts) = (Outcomes::new(), Counts::new());
        let mut resting = Resting::new();
        let mut told = false;
        loop {
            if !*leading.borrow_and_update() {
                if leading.changed().await.is_err() {
                    return;
                }
                // Whoever held the lease before may have written anything.
                self.statuses.mark_all();
                continue;
            }
            let due = resting.values().filter(|r| r.look).map(|r| r.until).min();
            tokio::select! {
                changed = leading.changed() => if changed.is_err() { return } else { continue },
                changed = self.outcomes.changed() => if changed.is_err() { return },
                changed = self.counts.changed() => if changed.is_err() { return },
                () = self.statuses.changed() => {}
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            }
            sleep(GATHER).await;
            self.mark(&mut outcomes, &mut counts);
            let now = Instant::now();
            let mut marked = self.statuses.take_marked();
            resting.retain(|key, rest| {
                if rest.until <= now && rest.look {
                    marked.insert(key.clone());
                }
                // One that is to be emptied is remembered until it was.
                rest.until > now || rest.doomed
            });
            if let Some((why, wait)) = self.write_all(marked, &mut resting, &leading).await {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!("status of routes and policies cannot be written: {why}; it is tried again");
                }
                sleep(wait.unwrap_or_else(|| backoff.next_wait(random()))).await;
            } else {
                backoff.reset();
                told = false;
            }
        }
    }

    /// Has every object looked at of which something else is known than when this was last called.
    fn mark(&mut self, outcomes: &mut Outcomes, counts: &mut Counts) {
        let new = self.outcomes.borrow_and_update().clone();
        for difference in outcomes.diff(&new) {
            let (DiffItem::Add(key, _) | DiffItem::Update { new: (key, _), .. } | DiffItem::Remove(key, _)) = difference;
            self.statuses.mark(key);
        }
        *outcomes = new;
        let new = self.counts.borrow_and_update().clone();
        if new != *counts {
            let is_other = |key: &ObjectKey| new.get(key) != counts.get(key);
            for key in COUNTED.into_iter().flat_map(|kind| self.statuses.keys(kind)) {
                if outcomes.get(&key).and_then(|o| counted(&key, o)).is_some_and(|of| is_other(&of)) {
                    self.statuses.mark(&key);
                }
            }
            *counts = new;
        }
    }

    /// Writes those that need it, as long as the server takes it and this replica may.
    async fn write_all(
        &self,
        marked: BTreeSet<ObjectKey>,
        resting: &mut Resting,
        leading: &watch::Receiver<bool>,
    ) -> Option<(String, Option<Duration>)> {
        let mut trouble = None;
        for key in marked {
            if trouble.is_some() || !*leading.borrow() {
                self.statuses.mark(&key);
                continue;
            }
            let now = Instant::now();
            let mut is_doomed = false;
            if let Some(rest) = resting.get_mut(&key) {
                is_doomed = rest.doomed;
                if rest.until > now {
                    rest.look = true;
                    continue;
                }
                resting.remove(&key);
            }
            let rest = |time, look| Rest { until: Instant::now() + time, look, doomed: false };
            match self.write(&key, is_doomed).await {
                End::Done => {}
                End::Doomed => drop(resting.insert(key, Rest { doomed: true, ..rest(DOOMED, true) })),
                End::Written => drop(resting.insert(key, rest(APART, false))),
                End::Refused(why) => {
                    tracing::warn!(object = %key, "its status cannot be written: {why}");
                    resting.insert(key, rest(REFUSED, true));
                }
                End::Trouble(why, wait) => {
                    self.statuses.mark(&key);
                    trouble = Some((why, wait));
                }
            }
        }
        trouble
    }

    /// What is wanted of an object; none where it is attached to nothing in this mesh, or the model does not have it.
    fn wanted(&self, key: &ObjectKey) -> Option<Wanted> {
        let outcome = self.outcomes.borrow().get(key).cloned()?;
        let mut more = Map::new();
        if COUNTED.contains(&key.kind) {
            let count = counted(key, &outcome).and_then(|of| self.counts.borrow().get(&of).copied());
            let sidecars = count.filter(|_| is_in_force(&outcome)).map(|count| {
                json!({ "subscribed": count.subscribed, "applied": count.applied, "observedGeneration": outcome.generation })
            });
            more.insert("sidecars".into(), sidecars.unwrap_or(Value::Null));
        }
        Some(Wanted { generation: outcome.generation, entries: outcome.entries.iter().map(entry).collect(), more })
    }

    async fn write(&self, key: &ObjectKey, is_doomed: bool) -> End {
        let Some(standing) = self.statuses.get(key) else { return End::Done };
        let Some(version) = self.statuses.version(key.kind) else { return End::Done };
        let wanted = match &standing.unreadable {
            Some(why) => Some(refusal(key.kind, &standing, why)),
            None => self.wanted(key),
        };
        if wanted.as_ref().is_some_and(|w| w.generation != standing.generation) {
            return End::Done;
        }
        let is_wanted = wanted.is_some();
        let Some(body) = patch(&standing, wanted, key, &now()) else { return End::Done };
        // The model may be about to get it: nothing is taken away at first sight.
        if !is_wanted && !is_doomed {
            return End::Doomed;
        }
        let it = resource(key.kind);
        let api_version = format!("{}/{version}", it.group);
        let kind = ApiResource {
            group: it.group.into(),
            version: version.into(),
            api_version,
            kind: key.kind.as_str().into(),
            plural: it.plural.into(),
        };
        let api = Api::<DynamicObject>::namespaced_with(self.client.clone(), key.id.namespace.as_str(), &kind);
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        match timeout(CALL, api.patch_status(key.id.name.as_str(), &params, &Patch::Merge(body))).await {
            Err(_) => End::Trouble(format!("the API server did not answer in {} s", CALL.as_secs()), None),
            Ok(outcome) => ended(outcome.map(drop)),
        }
    }
}

/// Kinds of which it is told how many sidecars have them in force.
const COUNTED: [Kind; 3] = [Kind::TrafficPolicy, Kind::AuthorizationPolicy, Kind::MtlsPolicy];

/// What a policy is counted by: the service that it is for, or itself.
fn counted(key: &ObjectKey, outcome: &ObjectStatus) -> Option<ObjectKey> {
    match key.kind {
        Kind::TrafficPolicy => service(outcome).map(|id| ObjectKey { kind: Kind::Service, id }),
        _ => Some(key.clone()),
    }
}

/// The service that an object is for; the first where it is for several.
fn service(outcome: &ObjectStatus) -> Option<ObjectRef> {
    outcome.entries.iter().find_map(|e| e.parent.service(&e.route.id.namespace))
}

/// What is wanted of an object that the model does not have as it stands: it was refused where it was read.
fn refusal(kind: Kind, standing: &Standing, unreadable: &Unreadable) -> Wanted {
    let condition = Condition {
        kind: "Accepted",
        status: false,
        reason: if kind.route().is_some() { "UnsupportedValue" } else { "Invalid" }.into(),
        message: format!("{}; a version before it that could be read stays in force", unreadable.why),
        generation: standing.generation,
    };
    let entry = |reference: &Value| Entry { reference: reference.clone(), conditions: vec![condition.clone()] };
    Wanted { generation: standing.generation, entries: unreadable.references.iter().map(entry).collect(), more: Map::new() }
}

fn is_in_force(outcome: &ObjectStatus) -> bool {
    outcome.entries.iter().flat_map(|e| &e.conditions).any(|c| c.type_ == "Accepted" && c.status)
}

/// One entry of a status. The reference is as its author spelt it.
fn entry(status: &RouteStatus) -> Entry {
    let parent = &status.parent;
    let mut reference = json!({ "name": parent.name });
    let fields = [
        ("group", &parent.group),
        ("kind", &parent.kind),
        ("namespace", &parent.namespace),
        ("sectionName", &parent.section_name),
    ];
    for (name, value) in fields {
        if let Some(value) = value {
            reference[name] = value.as_str().into();
        }
    }
    if let Some(port) = parent.port {
        reference["port"] = port.into();
    }
    let condition = |c: &crate::model::status::Condition| Condition {
        kind: c.type_,
        status: c.status,
        reason: c.reason.into(),
        message: c.message.clone(),
        generation: c.observed_generation,
    };
    Entry { reference, conditions: status.conditions.iter().map(condition).collect() }
}

/// The patch that makes a status what it should be; none where it is so already.
fn patch(standing: &Standing, wanted: Option<Wanted>, key: &ObjectKey, now: &str) -> Option<Value> {
    let list = match key.kind {
        Kind::BackendTrafficPolicy
        | Kind::TrafficPolicy
        | Kind::AuthorizationPolicy
        | Kind::MtlsPolicy
        | Kind::JwtIssuer
        | Kind::ExternalService => List::Ancestors,
        _ => List::Parents,
    };
    let (entries, more) = wanted.map_or_else(Default::default, |w| (w.entries, w.more));
    let merged = merge::merged(list, &standing.status, &entries, now);
    let is_same = more.iter().all(|(field, value)| standing.status[field] == *value);
    if merged.is_none() && is_same {
        return None;
    }
    let entries = merged.unwrap_or_else(|| standing.status[list.name()].as_array().cloned().unwrap_or_default());
    Some(merge::patch(list, &standing.resource_version, entries, more))
}

fn ended(outcome: kube::Result<()>) -> End {
    match outcome {
        Ok(()) => End::Written,
        Err(kube::Error::Api(status)) => match status.code {
            // The watch brings what somebody else wrote, or that it is gone.
            409 | 404 => End::Done,
            429 | 500.. => {
                let wait = status.details.as_ref().map(|d| d.retry_after_seconds).filter(|secs| *secs > 0);
                let wait = wait.map(|secs| Duration::from_secs(secs.into()).min(Duration::from_secs(60)));
                End::Trouble(explain(&kube::Error::Api(status)), wait)
            }
            _ => End::Refused(explain(&kube::Error::Api(status))),
        },
        Err(e) => End::Trouble(explain(&e), None),
    }
}

/// Now, as the API server writes times.
fn now() -> String {
    let time = serde_json::to_value(Time(Timestamp::now())).ok();
    time.and_then(|t| t.as_str().map(str::to_owned)).unwrap_or_default()
}
