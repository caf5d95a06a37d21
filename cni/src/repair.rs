//! Pods that started before the plugin was there: found by their own proof, and made anew.
//!
//! Nothing of such a pod runs but the init container that fails to prove the redirect. To apply it now would take the pod's network
//! namespace, and so the powers to look into every process of the node. A pod that is made anew takes none, and nothing is lost by
//! it: its app has not started.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::api::{DeleteParams, Preconditions};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::reflector::{self, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use tokio_stream::StreamExt;
use weft_injector::VERIFY_CONTAINER;
use weft_redirect::STATUS_NOT_IN_FORCE;

use crate::agent::said;
use crate::config::{Config, Repair};
use crate::status::Status;

/// How often all pods are looked at without an event, since some were to wait.
const LOOK: Duration = Duration::from_secs(5);
/// How long a controller's new pods wait after an old one was deleted in vain; doubles.
const FIRST_WAIT_SECS: i64 = 10;
const LONGEST_WAIT_SECS: i64 = 300;
/// A controller that had no such pod for this long is forgotten.
const FORGET_SECS: i64 = 3600;

/// Whether a pod has found out that its redirect is not in force.
pub fn is_unredirected(pod: &Pod) -> bool {
    if pod.metadata.deletion_timestamp.is_some() {
        return false;
    }
    let all = pod.status.iter().flat_map(|status| status.init_container_statuses.iter().flatten());
    let found_out = |status: &ContainerStatus| {
        let ended = |state: Option<&k8s_openapi::api::core::v1::ContainerState>| {
            state.and_then(|state| state.terminated.as_ref()).map(|end| end.exit_code)
        };
        let now = status.state.as_ref();
        // While it tries again, the last end is all there is to go by, and may be about to be mended.
        let waits = now.is_some_and(|state| state.waiting.is_some());
        let code = ended(now).or_else(|| if waits { ended(status.last_state.as_ref()) } else { None });
        code == Some(i32::from(STATUS_NOT_IN_FORCE))
    };
    all.into_iter().any(|status| status.name == VERIFY_CONTAINER && found_out(status))
}

/// Who makes a pod anew, by uid.
fn controller(pod: &Pod) -> Option<&str> {
    let owners = pod.metadata.owner_references.iter().flatten();
    owners.into_iter().find(|owner| owner.controller == Some(true)).map(|owner| owner.uid.as_str())
}

/// How fast pods are deleted: the first time at once, and slower and slower where that is of no use.
#[derive(Debug, Default)]
pub struct Pace {
    /// By the uid of a controller: when a pod of it was last deleted, and how long its newer pods wait, in seconds.
    deleted: HashMap<String, (i64, i64)>,
}

impl Pace {
    /// Whether a pod of this controller may be deleted `now`, which started at `started`, both in seconds since 1970; if so, it
    /// counts as deleted.
    pub fn may_delete(&mut self, controller: &str, started: i64, now: i64) -> bool {
        self.deleted.retain(|_, (last, _)| now.saturating_sub(*last) < FORGET_SECS);
        match self.deleted.get_mut(controller) {
            None => {
                self.deleted.insert(controller.to_owned(), (now, FIRST_WAIT_SECS));
                true
            }
            // It was there already when another of them was deleted: it is not what came of that.
            Some((last, _)) if started < *last => true,
            Some((last, wait)) if now >= last.saturating_add(*wait) => {
                *last = now;
                *wait = (*wait * 2).min(LONGEST_WAIT_SECS);
                true
            }
            Some(_) => false,
        }
    }
}

/// Follows the pods of this node, and repairs them while the agent is ready; ends with the process.
pub async fn run(client: Client, config: Config, status: Arc<Status>) {
    let (store, writer) = reflector::store();
    let own = watcher::Config::default().fields(&format!("spec.nodeName={}", config.node_name));
    let events = watcher(Api::<Pod>::all(client.clone()), own).default_backoff().reflect(writer);
    let mut events = std::pin::pin!(events);
    let reporter = Reporter { controller: "weft-cni".to_owned(), instance: Some(config.pod_name.clone()) };
    let recorder = Recorder::new(client.clone(), reporter);
    let mut repairs = Repairs { client, recorder, how: config.repair, status, pace: Pace::default(), done: HashSet::new() };
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some(Ok(_)) => {}
                Some(Err(error)) => {
                    tracing::warn!(error = said(&error), "the pods of this node can't be followed; what is known of them stays");
                    continue;
                }
                None => return,
            },
            _ = look.tick() => {}
        }
        repairs.look(&store).await;
    }
}

struct Repairs {
    client: Client,
    recorder: Recorder,
    how: Repair,
    status: Arc<Status>,
    pace: Pace,
    /// The uids of pods that were deleted or told about.
    done: HashSet<String>,
}

impl Repairs {
    async fn look(&mut self, store: &Store<Pod>) {
        let pods = store.state();
        let there: HashSet<String> = pods.iter().filter_map(|pod| pod.metadata.uid.clone()).collect();
        self.done.retain(|uid| there.contains(uid));
        let unredirected: Vec<&Arc<Pod>> = pods.iter().filter(|pod| is_unredirected(pod)).collect();
        self.status.are_unredirected(unredirected.len());
        // A new pod would be no better off while the plugin is not in the chain.
        if self.status.why_not_ready().is_some() {
            return;
        }
        for pod in unredirected {
            if pod.metadata.uid.as_ref().is_some_and(|uid| !self.done.contains(uid)) {
                self.repair(pod).await;
            }
        }
    }

    async fn repair(&mut self, pod: &Pod) {
        let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref()).map_or(0, |time| time.0.as_second());
        let outcome = match (self.how, controller(pod)) {
            (Repair::Never, _) => {
                Self::log(pod, "it is left as it is");
                Ok("told")
            }
            (Repair::Delete, None) => {
                let what = "nobody would make it anew: delete it and create it again";
                Self::log(pod, what);
                self.publish(pod, what).await.map(|()| "told")
            }
            (Repair::Delete, Some(controller)) => {
                if !self.pace.may_delete(controller, started, now()) {
                    return;
                }
                let what = "it is deleted, so that its controller makes it anew";
                Self::log(pod, what);
                // The reason comes first; without it, the pod would just be gone.
                match self.publish(pod, what).await {
                    Ok(()) => self.delete(pod).await.map(|()| "deleted"),
                    Err(error) => Err(error),
                }
            }
        };
        match outcome {
            Ok(how) => {
                self.done.extend(pod.metadata.uid.clone());
                self.status.repaired(how);
            }
            Err(error) => tracing::warn!(pod = pod.name_any(), error = said(&error), "it can't be repaired; it is tried again"),
        }
    }

    fn log(pod: &Pod, what: &str) {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        tracing::warn!(namespace, name, what, "a pod of the mesh started without its redirect");
    }

    async fn publish(&self, pod: &Pod, what: &str) -> Result<(), kube::Error> {
        let note = format!("the pod was started before weft's CNI plugin was in place, and so without its redirect; {what}");
        let event = Event {
            type_: EventType::Warning,
            reason: "RedirectMissing".to_owned(),
            note: Some(note),
            action: "Repair".to_owned(),
            secondary: None,
        };
        self.recorder.publish(&event, &pod.object_ref(&())).await
    }

    /// Deletes this very pod; one that is gone already is no error.
    async fn delete(&self, pod: &Pod) -> Result<(), kube::Error> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let same = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        match api.delete(&pod.name_any(), &DeleteParams::default().preconditions(same)).await {
            Ok(_) => Ok(()),
            // Not found, or another pod of the same name.
            Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Seconds since 1970.
fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(container: &str, status: &Value) -> Pod {
        let mut status = status.clone();
        status["name"] = json!(container);
        for (field, value) in [("image", json!("")), ("imageID", json!("")), ("ready", json!(false)), ("restartCount", json!(1))]
        {
            status[field] = value;
        }
        serde_json::from_value(json!({"metadata": {"name": "p"}, "status": {"initContainerStatuses": [status]}})).expect("a pod")
    }

    fn ended(code: u8) -> Value {
        json!({"terminated": {"exitCode": code}})
    }

    #[test]
    fn a_pod_without_its_redirect_is_told_by_its_own_proof() {
        let waiting = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        let in_back_off = |code| json!({"state": waiting, "lastState": ended(code)});
        assert!(is_unredirected(&pod(VERIFY_CONTAINER, &json!({"state": ended(3)}))));
        assert!(is_unredirected(&pod(VERIFY_CONTAINER, &in_back_off(3))));
        // Any other failure says nothing about the redirect, nor does that of another container.
        assert!(!is_unredirected(&pod(VERIFY_CONTAINER, &json!({"state": ended(1)}))));
        assert!(!is_unredirected(&pod(VERIFY_CONTAINER, &in_back_off(1))));
        assert!(!is_unredirected(&pod(VERIFY_CONTAINER, &json!({"state": ended(0), "lastState": ended(3)}))));
        assert!(!is_unredirected(&pod("migrate", &json!({"state": ended(3)}))));
        let again = json!({"state": {"running": {}}, "lastState": ended(3)});
        assert!(!is_unredirected(&pod(VERIFY_CONTAINER, &again)), "it tries again");
        let mut going = pod(VERIFY_CONTAINER, &json!({"state": ended(3)}));
        going.metadata.deletion_timestamp = serde_json::from_value(json!("2026-01-01T00:00:00Z")).expect("a time");
        assert!(!is_unredirected(&going));
        assert!(!is_unredirected(&Pod::default()));
    }

    #[test]
    fn the_pods_that_were_there_go_at_once_and_what_comes_of_them_ever_more_slowly() {
        let mut pace = Pace::default();
        assert!(pace.may_delete("a", 50, 100));
        assert!(pace.may_delete("a", 60, 101), "another one that was there before");
        assert!(pace.may_delete("b", 60, 101), "another controller");
        assert!(!pace.may_delete("a", 102, 105), "what came of the first");
        assert!(pace.may_delete("a", 102, 110));
        assert!(!pace.may_delete("a", 112, 129) && pace.may_delete("a", 112, 130));
        let mut at = 130;
        for _ in 0..10 {
            at += LONGEST_WAIT_SECS;
            assert!(pace.may_delete("a", at - 1, at), "never longer than the longest");
        }
        assert!(pace.may_delete("a", at + FORGET_SECS, at + FORGET_SECS));
        assert!(!pace.may_delete("a", at + FORGET_SECS + 1, at + FORGET_SECS + 9), "it began anew");
    }

    #[test]
    fn only_a_controller_makes_a_pod_anew() {
        let owned = |controller: Option<bool>| -> Pod {
            let owner = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "u", "controller": controller});
            serde_json::from_value(json!({"metadata": {"name": "p", "ownerReferences": [owner]}})).expect("a pod")
        };
        assert_eq!(controller(&owned(Some(true))), Some("u"));
        assert_eq!((controller(&owned(None)), controller(&Pod::default())), (None, None));
    }
}
