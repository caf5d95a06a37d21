//! What became of routes and policies, as conditions (GEP-1364): for people, and for whoever writes them to a cluster.

use std::sync::Arc;

use crate::objects::ObjectKey;
use crate::objects::traffic::ParentRef;
use crate::watch::Problem;

/// A condition, without the time of its last transition.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Condition {
    /// `Accepted`, `ResolvedRefs`, `PartiallyInvalid` or `Overruled`.
    pub type_: &'static str,
    pub status: bool,
    pub reason: &'static str,
    /// Names the field that is at fault, where one is.
    pub message: String,
    /// The generation of the object that it was made from; 0 where nobody counts.
    pub observed_generation: i64,
}

/// What became of a route, or a policy, where it is attached to one thing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouteStatus {
    /// The route or policy.
    pub route: ObjectKey,
    /// As the object spells it; of a policy its target.
    pub parent: ParentRef,
    pub conditions: Vec<Condition>,
}

/// What became of an object, everywhere that it is attached. An object that is attached to no Service has none: it means nothing to the mesh.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectStatus {
    /// The generation that the model has seen last.
    pub generation: i64,
    /// In the order of the object's references; never empty.
    pub entries: Vec<RouteStatus>,
}

/// All of them; two versions share what is the same, and tell their difference cheaply (`diff`).
pub type Statuses = imbl::OrdMap<ObjectKey, Arc<ObjectStatus>>;

/// Why an object, or a reference of it, is not honoured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Refusal {
    pub reason: &'static str,
    /// Its path; empty where no single one is at fault.
    pub field: String,
    pub message: String,
}

impl Refusal {
    pub(super) fn new(reason: &'static str, field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { reason, field: field.into(), message: message.into() }
    }

    /// For a condition, which has no field of its own for the field.
    pub(super) fn text(&self) -> String {
        if self.field.is_empty() { self.message.clone() } else { format!("{}: {}", self.field, self.message) }
    }

    pub(super) fn problem(&self, key: &ObjectKey) -> Problem {
        Problem { place: key.to_string(), field: self.field.clone(), message: self.message.clone() }
    }
}

pub(super) const ACCEPTED: &str = "Accepted";
pub(super) const RESOLVED: &str = "ResolvedRefs";
pub(super) const PARTIALLY_INVALID: &str = "PartiallyInvalid";
pub(super) const OVERRULED: &str = "Overruled";

/// What the conditions of one entry say, before they are conditions.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Outcome {
    /// Why it is not in force.
    pub refused: Option<Refusal>,
    /// References that lead nowhere.
    pub unresolved: Vec<Refusal>,
    /// Why the version before it is in force, and that version's generation.
    pub fallen_back: Option<(Refusal, i64)>,
    /// Where another object holds in its stead.
    pub overruled: Option<Refusal>,
}

impl Outcome {
    /// `generation` is that of the object as it stands.
    pub(super) fn conditions(&self, generation: i64, has_refs: bool) -> Vec<Condition> {
        let condition = |type_, status, reason, message, observed_generation| Condition {
            type_,
            status,
            reason,
            message,
            observed_generation,
        };
        let seen = self.fallen_back.as_ref().map_or(generation, |(_, before)| *before);
        let mut all = vec![match &self.refused {
            Some(why) => condition(ACCEPTED, false, why.reason, why.text(), generation),
            None => condition(ACCEPTED, true, ACCEPTED, "it is in force".to_owned(), seen),
        }];
        if (has_refs && self.refused.is_none()) || !self.unresolved.is_empty() {
            all.push(match self.unresolved.first() {
                None => condition(RESOLVED, true, RESOLVED, "everything that it refers to is there".to_owned(), seen),
                Some(first) => {
                    let texts: Vec<String> = self.unresolved.iter().take(8).map(Refusal::text).collect();
                    condition(RESOLVED, false, first.reason, texts.join("; "), seen)
                }
            });
        }
        if let (Some((why, _)), None) = (&self.fallen_back, &self.refused) {
            let message = format!("Fall Back: the version before it stays in force, for {}", why.text());
            all.push(condition(PARTIALLY_INVALID, true, "UnsupportedValue", message, generation));
        }
        if let (Some(why), None) = (&self.overruled, &self.refused) {
            all.push(condition(OVERRULED, true, why.reason, why.message.clone(), seen));
        }
        all
    }

    pub(super) fn problems(&self, key: &ObjectKey) -> impl Iterator<Item = Problem> {
        let fallen = self.fallen_back.iter().map(|(why, _)| {
            let message = format!("{}; the version before it stays in force", why.message);
            Problem { message, ..why.problem(key) }
        });
        self.refused.iter().chain(&self.unresolved).chain(&self.overruled).map(|r| r.problem(key)).chain(fallen)
    }
}
