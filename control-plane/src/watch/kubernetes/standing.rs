//! The status of objects as the API server has it, kept beside the model: who writes a status compares with this first, and so
//! needs no right to read, and writes nothing that stands already.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::objects::{Kind, ObjectKey};
use crate::watch::parse::Fault;

/// An object's status, and what writing another one takes.
#[derive(Clone, PartialEq, Debug)]
pub struct Standing {
    /// A write names it, so that nothing is overwritten that was not seen.
    pub resource_version: String,
    /// Of its `spec`; 0 where the server counts none.
    pub generation: i64,
    /// `status`, whole; null where there is none.
    pub status: Value,
    /// Where it cannot be read, so that the model does not have it as it stands.
    pub unreadable: Option<Unreadable>,
}

/// An object that cannot be read.
#[derive(Clone, PartialEq, Debug)]
pub struct Unreadable {
    /// The Services that it is for, as it spells them.
    pub references: Vec<Value>,
    pub why: String,
}

impl Unreadable {
    /// Of an object as the API server sent it.
    pub(super) fn of(object: &Value, fault: &Fault) -> Self {
        let spec = &object["spec"];
        let many = [&spec["parentRefs"], &spec["targetRefs"]].into_iter().filter_map(Value::as_array).flatten();
        // A TrafficPolicy has one, which means a Service where it does not say.
        let one = Some(&spec["targetRef"]).filter(|target| target.is_object()).map(|target| {
            let mut service = json!({ "group": "", "kind": "Service", "namespace": object["metadata"]["namespace"] });
            if let (Some(all), Some(said)) = (service.as_object_mut(), target.as_object()) {
                all.extend(said.clone());
            }
            service
        });
        let references = many.cloned().chain(one).filter(|r| r["group"] == "" && r["kind"] == "Service" && r["name"].is_string());
        let why = if fault.field.is_empty() { fault.message.clone() } else { format!("{}: {}", fault.field, fault.message) };
        Self { references: references.take(32).collect(), why }
    }
}

/// What stands of every object whose status is written.
#[derive(Default)]
pub struct Statuses {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    /// The version that each kind is read in, and so written.
    versions: BTreeMap<Kind, &'static str>,
    objects: BTreeMap<ObjectKey, Standing>,
    /// Those that are to be looked at; no more than there are objects.
    marked: BTreeSet<ObjectKey>,
}

impl Statuses {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing that holds it can leave it half changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A kind is read in this version from now on.
    pub fn served(&self, kind: Kind, version: &'static str) {
        self.lock().versions.insert(kind, version);
    }

    /// The version that a kind is read in.
    pub fn version(&self, kind: Kind) -> Option<&'static str> {
        self.lock().versions.get(&kind).copied()
    }

    pub fn put(&self, key: ObjectKey, standing: Standing) {
        let mut inner = self.lock();
        inner.marked.insert(key.clone());
        inner.objects.insert(key, standing);
        self.changed.notify_one();
    }

    pub fn remove(&self, key: &ObjectKey) {
        let mut inner = self.lock();
        inner.marked.remove(key);
        inner.objects.remove(key);
    }

    pub fn get(&self, key: &ObjectKey) -> Option<Standing> {
        self.lock().objects.get(key).cloned()
    }

    /// Every object that there is of a kind.
    pub fn keys(&self, kind: Kind) -> Vec<ObjectKey> {
        self.lock().objects.keys().filter(|k| k.kind == kind).cloned().collect()
    }

    /// Has an object looked at, if it is there.
    pub fn mark(&self, key: &ObjectKey) {
        let mut inner = self.lock();
        if inner.objects.contains_key(key) {
            inner.marked.insert(key.clone());
            self.changed.notify_one();
        }
    }

    /// Has every object looked at.
    pub fn mark_all(&self) {
        let mut inner = self.lock();
        inner.marked = inner.objects.keys().cloned().collect();
        self.changed.notify_one();
    }

    /// Those that are to be looked at, which are not any more.
    pub fn take_marked(&self) -> BTreeSet<ObjectKey> {
        std::mem::take(&mut self.lock().marked)
    }

    /// Waits until an object was marked. Cancel-safe; for one waiter.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::parse::from_json;

    #[test]
    fn of_what_cannot_be_read_the_services_are_known() {
        let policy = json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"targetRef": {"name": "web"}, "zone": {"spillBelow": 0}},
        });
        let fault = from_json(Kind::TrafficPolicy, &policy).expect_err("it is none");
        let it = Unreadable::of(&policy, &fault);
        assert_eq!(it.references, [json!({"group": "", "kind": "Service", "namespace": "shop", "name": "web"})]);
        assert!(it.why.starts_with("spec.zone.spillBelow: "), "{}", it.why);

        let route = json!({"spec": {"parentRefs": [{"name": "edge"}, {"group": "", "kind": "Service", "name": "web"}, 7]}});
        let it = Unreadable::of(&route, &fault);
        assert_eq!(it.references, [json!({"group": "", "kind": "Service", "name": "web"})]);
    }
}
