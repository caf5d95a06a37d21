//! What of network policies weft does not enforce, told by events at the policies: they have no status (Kubernetes took it away in 1.28).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::sync::watch;
use weft_core::service::ObjectRef;
use weft_core::version::Version;

use super::{MANAGER, within, won};
use crate::hub::Hub;
use crate::snapshot::NetworkFacts;

/// How often it is looked at what there is to tell; pods of a policy have time to be replaced.
const EVERY: Duration = Duration::from_secs(30);
/// Events in one round.
const MOST: usize = 20;
/// The reason of the events.
pub const REASON: &str = "NotEnforced";
/// Characters of a note that an event may have at most (the API server takes 1,024).
const LONGEST: usize = 1_000;

/// Tells while `leading`, until that is dropped.
pub async fn run(client: Client, hub: Arc<Hub>, mut leading: watch::Receiver<bool>) {
    let mut told = BTreeSet::new();
    loop {
        if let Ok(Err(_)) = tokio::time::timeout(EVERY, leading.changed()).await {
            return;
        }
        if !*leading.borrow_and_update() {
            continue;
        }
        let snapshot = hub.snapshot();
        let events = snapshot.networks.iter().filter(|(_, facts)| !facts.notes.is_empty());
        let events: Vec<(ObjectRef, Event)> = events.map(|(id, facts)| (id.clone(), event(id, facts))).collect();
        let names: BTreeSet<String> = events.iter().filter_map(|(_, e)| e.metadata.name.clone()).collect();
        told.retain(|name| names.contains(name));
        let new = events.into_iter().filter(|(_, e)| e.metadata.name.as_ref().is_some_and(|name| !told.contains(name)));
        for (policy, event) in new.take(MOST).collect::<Vec<_>>() {
            let api = Api::<Event>::namespaced(client.clone(), policy.namespace.as_str());
            match within(async { won(api.create(&PostParams::default(), &event).await) }).await {
                // Whether it was us who told it is the same.
                Ok(_) => drop(told.extend(event.metadata.name)),
                Err(why) => {
                    tracing::warn!(%policy, "what of a NetworkPolicy is not enforced could not be told by an event: {why}");
                    break;
                }
            }
        }
    }
}

/// An event about a policy. Its name follows from what it says, so that one replica makes it, and another text another event.
fn event(policy: &ObjectRef, facts: &NetworkFacts) -> Event {
    let notes: Vec<String> = facts.notes.iter().map(|n| format!("{}: {}", n.field, n.message)).collect();
    let note: String = notes.join("; ").chars().take(LONGEST).collect();
    let uid = facts.uid.clone().unwrap_or_default();
    let version = Version::of(format!("{uid} {note}").as_bytes());
    Event {
        metadata: ObjectMeta {
            name: Some(format!("weft-not-enforced.{version}")),
            namespace: Some(policy.namespace.to_string()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(Timestamp::now())),
        action: Some("Enforce".into()),
        reason: Some(REASON.into()),
        note: Some(note),
        type_: Some("Warning".into()),
        reporting_controller: Some("weft.dev/control-plane".into()),
        reporting_instance: Some(MANAGER.into()),
        regarding: Some(ObjectReference {
            api_version: Some("networking.k8s.io/v1".into()),
            kind: Some("NetworkPolicy".into()),
            namespace: Some(policy.namespace.to_string()),
            name: Some(policy.name.to_string()),
            uid: facts.uid.clone(),
            ..ObjectReference::default()
        }),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watch::Problem;

    #[test]
    fn another_text_is_another_event_and_the_same_text_the_same_one() {
        let policy: ObjectRef = "shop/p".parse().expect("valid");
        let facts = |message: &str| NetworkFacts {
            uid: Some("u-1".into()),
            isolates: (true, false),
            notes: vec![Problem { place: String::new(), field: "spec".into(), message: message.into() }],
        };
        let name = |message: &str| event(&policy, &facts(message)).metadata.name;
        assert_eq!(name("a"), name("a"));
        assert_ne!(name("a"), name("b"));
        let long = event(&policy, &facts(&"x".repeat(5_000)));
        assert_eq!(long.note.map(|n| n.chars().count()), Some(LONGEST));
    }
}
