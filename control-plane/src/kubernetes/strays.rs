//! Pods that slipped by: they, or their namespace for all of its pods, ask for a sidecar, and they have none. They were there before
//! the label, or were created while no injector answered and the webhook lets pods by then. Each is told about by an event; how many
//! there are, every replica counts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::sync::watch;
use weft_core::Namespace;
use weft_core::service::ObjectRef;
use weft_core::wellknown::LABEL_INJECT;

use super::{MANAGER, within, won};
use crate::objects::{Kind, Object, ObjectKey, PodObject};
use crate::probe::Health;
use crate::watch::{Batch, Change};

/// How often those that stand are told about; a pod has time to be replaced.
const EVERY: Duration = Duration::from_secs(10);
/// Events in one round: a namespace that was labelled may have thousands of pods.
const MOST: usize = 50;
/// The reason of the events.
pub const REASON: &str = "NotInMesh";
/// Where no pod is ever asked for, besides weft's own namespace.
const SYSTEM: [&str; 3] = ["kube-node-lease", "kube-public", "kube-system"];
/// Why a pod has no sidecar, where the injector knows.
const EXCUSED: &str = "weft.dev/not-injected";

/// A pod without a sidecar.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Bare {
    uid: String,
    /// Its own label asks for one.
    asks: bool,
}

/// Everything that matters of pods and namespaces for this: of a pod that is in order, nothing.
#[derive(Default)]
pub struct Strays(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    /// What the labels of namespaces say: true for enabled, false for disabled. Others are not here.
    namespaces: BTreeMap<Namespace, bool>,
    bare: BTreeMap<ObjectRef, Bare>,
}

impl Strays {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing that holds it can leave it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of what a source tells.
    pub fn note(&self, batch: &Batch) {
        let mut inner = self.lock();
        for change in &batch.changes {
            match change {
                Change::Upsert(Object::Namespace(namespace)) => {
                    let word = namespace.labels.get(LABEL_INJECT).map(String::as_str).filter(|_| !namespace.terminating);
                    match word {
                        Some("enabled") => drop(inner.namespaces.insert(namespace.name.clone(), true)),
                        Some("disabled") => drop(inner.namespaces.insert(namespace.name.clone(), false)),
                        _ => drop(inner.namespaces.remove(&namespace.name)),
                    }
                }
                Change::Upsert(Object::Pod(pod)) => match bare(pod) {
                    Some(bare) => drop(inner.bare.insert(pod.id.clone(), bare)),
                    None => drop(inner.bare.remove(&pod.id)),
                },
                Change::Delete(ObjectKey { kind: Kind::Namespace, id }) => drop(inner.namespaces.remove(&id.namespace)),
                Change::Delete(ObjectKey { kind: Kind::Pod, id }) => drop(inner.bare.remove(id)),
                _ => {}
            }
        }
    }

    /// Those that stand, with their uids; none of weft's own namespace.
    fn all(&self, home: &Namespace) -> Vec<(ObjectRef, String)> {
        let inner = self.lock();
        let is_stray = |id: &ObjectRef, bare: &Bare| {
            let never = id.namespace == *home || SYSTEM.contains(&id.namespace.as_str());
            !never && inner.namespaces.get(&id.namespace).copied().unwrap_or(bare.asks)
        };
        let strays = inner.bare.iter().filter(|(id, bare)| is_stray(id, bare));
        strays.map(|(id, bare)| (id.clone(), bare.uid.clone())).collect()
    }
}

/// What matters of a pod without a sidecar that could have one and does not refuse it.
fn bare(pod: &PodObject) -> Option<Bare> {
    let label = pod.labels.get(LABEL_INJECT).map(String::as_str);
    let out = pod.ended()
        || pod.terminating
        || pod.spec.host_network
        || pod.has_sidecar()
        || label == Some("disabled")
        || pod.annotations.contains_key(EXCUSED);
    (!out).then(|| Bare { uid: pod.uid.clone().unwrap_or_default(), asks: label == Some("enabled") })
}

/// Tells about them while `leading`, and counts them, until the former is dropped.
pub async fn run(client: Client, strays: Arc<Strays>, home: Namespace, mut leading: watch::Receiver<bool>, health: Arc<Health>) {
    let mut told = BTreeSet::new();
    loop {
        if let Ok(Err(_)) = tokio::time::timeout(EVERY, leading.changed()).await {
            return;
        }
        let all = strays.all(&home);
        health.strays.store(all.len(), Relaxed);
        told.retain(|uid| all.iter().any(|(_, other)| other == uid));
        if !*leading.borrow_and_update() {
            continue;
        }
        for (pod, uid) in all.into_iter().filter(|(_, uid)| !told.contains(uid)).take(MOST).collect::<Vec<_>>() {
            let api = Api::<Event>::namespaced(client.clone(), pod.namespace.as_str());
            match within(async { won(api.create(&PostParams::default(), &event(&pod, &uid)).await) }).await {
                // Whether it was us who told it is the same.
                Ok(_) => drop(told.insert(uid)),
                Err(why) => {
                    tracing::warn!(%pod, "a pod has no sidecar although it should, which could not be told by an event: {why}");
                    break;
                }
            }
        }
    }
}

/// An event about a pod. Its name is the same from all replicas, so that one of them makes it.
fn event(pod: &ObjectRef, uid: &str) -> Event {
    let note = "this pod has no sidecar, although it or its namespace asks for one: it was created before that was said, or while no \
                injector answered. Make it anew (kubectl rollout restart); weft check names all of them";
    Event {
        metadata: ObjectMeta {
            name: Some(format!("weft-not-in-mesh.{uid}")),
            namespace: Some(pod.namespace.to_string()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(Timestamp::now())),
        action: Some("Look".into()),
        reason: Some(REASON.into()),
        note: Some(note.into()),
        type_: Some("Warning".into()),
        reporting_controller: Some("weft.dev/control-plane".into()),
        reporting_instance: Some(MANAGER.into()),
        regarding: Some(ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: Some(pod.namespace.to_string()),
            name: Some(pod.name.to_string()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        }),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::watch::parse::from_json;

    fn namespace(name: &str, label: &str) -> Change {
        Change::Upsert(
            from_json(Kind::Namespace, &json!({"metadata": {"name": name, "labels": {LABEL_INJECT: label}}})).expect("good"),
        )
    }

    fn pod(namespace: &str, name: &str, change: &Value) -> Change {
        let mut pod = json!({
            "metadata": {"name": name, "namespace": namespace, "uid": format!("{name}-uid")},
            "spec": {"containers": [{"name": "app"}]},
        });
        for (part, members) in change.as_object().expect("an object") {
            let into = pod.as_object_mut().expect("an object").entry(part.clone()).or_insert_with(|| json!({}));
            into.as_object_mut().expect("an object").extend(members.as_object().expect("an object").clone());
        }
        Change::Upsert(from_json(Kind::Pod, &pod).expect("good"))
    }

    fn names(strays: &Strays) -> Vec<String> {
        let home = "weft-system".parse().expect("valid");
        strays.all(&home).into_iter().map(|(id, _)| id.to_string()).collect()
    }

    #[test]
    fn a_pod_slipped_by_if_it_or_its_namespace_asks_and_neither_refuses() {
        let label = |word: &str| json!({"metadata": {"labels": {LABEL_INJECT: word}}});
        let strays = Strays::default();
        let changes = vec![
            pod("shop", "bare", &json!({})),
            pod("shop", "opted-out", &label("disabled")),
            pod("shop", "excused", &json!({"metadata": {"annotations": {EXCUSED: "windows"}}})),
            pod("shop", "host", &json!({"spec": {"hostNetwork": true}})),
            pod("shop", "done", &json!({"status": {"phase": "Succeeded"}})),
            pod("shop", "meshed", &json!({"spec": {"initContainers": [{"name": "weft-sidecar"}]}})),
            pod("plain", "bare", &json!({})),
            pod("plain", "asks", &label("enabled")),
            pod("off", "asks", &label("enabled")),
            pod("kube-system", "asks", &label("enabled")),
            pod("weft-system", "asks", &label("enabled")),
            namespace("shop", "enabled"),
            namespace("off", "disabled"),
        ];
        strays.note(&Batch { changes, ..Batch::default() });
        assert_eq!(names(&strays), ["plain/asks", "shop/bare"]);

        let gone = |kind, id: &str| Change::Delete(ObjectKey { kind, id: id.parse().expect("valid") });
        let changes = vec![namespace("shop", "perhaps"), gone(Kind::Namespace, "off/off"), gone(Kind::Pod, "plain/asks")];
        strays.note(&Batch { changes, ..Batch::default() });
        assert_eq!(names(&strays), ["off/asks"]);
        let changes = vec![pod("off", "asks", &json!({"spec": {"initContainers": [{"name": "weft-sidecar"}]}}))];
        strays.note(&Batch { changes, ..Batch::default() });
        assert!(names(&strays).is_empty());
    }

    #[test]
    fn an_event_is_named_after_its_pod_alone() {
        let id: ObjectRef = "shop/web-0".parse().expect("valid");
        let event = event(&id, "u-1");
        assert_eq!(event.metadata.name.as_deref(), Some("weft-not-in-mesh.u-1"));
        // The API server takes no longer one.
        assert!(event.note.is_some_and(|note| note.len() <= 1024));
    }
}
