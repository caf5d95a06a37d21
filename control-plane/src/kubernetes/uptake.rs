//! How many sidecars have which policy in force, over all replicas: each knows its own streams alone.
//!
//! Every replica keeps one key of one `ConfigMap` with its own counts, and the holder of the Lease sums them up. Nothing is written or
//! read while there is no such policy.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::{MANAGED_BY, MANAGER, within};
use crate::hub::Hub;
pub use crate::hub::counts::{Count, Counts};
use crate::objects::{Kind, ObjectKey};

/// The `ConfigMap`'s name.
pub const NAME: &str = "weft-uptake";
/// Counts are told this often, if they are others.
const TICK: Duration = Duration::from_secs(5);
/// They are told this often in any case: whoever is silent for longer than [`SILENCE`] is gone.
const BEAT: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_secs(100);
/// Services in one replica's counts; the API server takes a `ConfigMap` of 1 MiB.
const MAX_SERVICES: usize = 2_000;

/// What a replica tells.
#[derive(Serialize, Deserialize, PartialEq, Debug, Default)]
struct Told {
    /// Another one each time, so that it is seen that the replica lives.
    beat: u64,
    /// By service, as `NAMESPACE/NAME`, and by policy, as `KIND NAMESPACE/NAME`.
    counts: BTreeMap<String, Count>,
}

/// Tells this replica's counts, and sums up everybody's while it leads.
pub struct Uptake {
    pub client: Client,
    /// weft's own namespace.
    pub namespace: String,
    /// This replica, as no other is called.
    pub me: String,
    pub hub: Arc<Hub>,
}

impl Uptake {
    /// Runs until `stop`. The sums go to `totals`.
    pub async fn run(self, leading: watch::Receiver<bool>, totals: watch::Sender<Counts>, stop: CancellationToken) {
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), &self.namespace);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut told, mut told_at, mut seen) = (Told::default(), None::<Instant>, Seen::default());
        let mut failing = false;
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            let counts = self.hub.policy_counts(MAX_SERVICES);
            if counts.is_empty() && told.counts.is_empty() {
                continue;
            }
            let now = Instant::now();
            let own: BTreeMap<String, Count> = counts.iter().map(|(key, count)| (named(key), *count)).collect();
            let mut outcome = Ok(());
            if own != told.counts || told_at.is_none_or(|at| now.duration_since(at) >= BEAT) {
                told = Told { beat: told.beat + 1, counts: own };
                outcome = self.tell(&api, Some(&told)).await;
                told_at = outcome.is_ok().then_some(now);
            }
            if outcome.is_ok() && *leading.borrow() {
                outcome = self.sum(&api, counts, &mut seen, &totals).await;
            }
            if let Err(why) = &outcome
                && !failing
            {
                tracing::warn!("the ConfigMap {}/{NAME} cannot be kept: {why}; it is tried again", self.namespace);
            }
            failing = outcome.is_err();
        }
        if told_at.is_some() {
            let _ = self.tell(&api, None).await;
        }
    }

    /// Tells counts, or takes them away.
    async fn tell(&self, api: &Api<ConfigMap>, told: Option<&Told>) -> Result<(), String> {
        let data = match told.map(serde_json::to_string) {
            Some(text) => json!({ &self.me: text.map_err(|e| e.to_string())? }),
            None => json!({}),
        };
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": NAME, "namespace": self.namespace, "labels": { MANAGED_BY: MANAGER } },
            "data": data,
        });
        // A manager of its own: what another replica told stays.
        let params = PatchParams::apply(&format!("{MANAGER}-{}", self.me)).force();
        within(api.patch(NAME, &params, &Patch::Apply(map))).await.map(drop)
    }

    /// Reads what all have told, and forgets who is gone.
    async fn sum(
        &self,
        api: &Api<ConfigMap>,
        counts: Counts,
        seen: &mut Seen,
        totals: &watch::Sender<Counts>,
    ) -> Result<(), String> {
        let Some(map) = within(api.get_opt(NAME)).await? else { return Ok(()) };
        let data = map.data.unwrap_or_default();
        let gone = seen.look(&data, Instant::now());
        let others = data.iter().filter(|(who, _)| **who != self.me && !gone.contains(who));
        let sums = summed(counts, others.map(|(_, text)| text.as_str()));
        totals.send_if_modified(|before| {
            let is_other = *before != sums;
            *before = sums;
            is_other
        });
        if gone.is_empty() {
            return Ok(());
        }
        let removed: serde_json::Map<String, serde_json::Value> = gone.iter().map(|who| ((*who).clone(), json!(null))).collect();
        within(api.patch(NAME, &PatchParams::default(), &Patch::Merge(json!({ "data": removed })))).await.map(drop)
    }
}

/// What a count is told by: a service by its name alone.
fn named(key: &ObjectKey) -> String {
    if key.kind == Kind::Service { key.id.to_string() } else { key.to_string() }
}

/// Since when each replica's text has not changed, by this replica's own clock.
#[derive(Default)]
struct Seen(HashMap<String, (String, Instant)>);

impl Seen {
    /// Those that were silent for too long.
    fn look<'a>(&mut self, data: &'a BTreeMap<String, String>, now: Instant) -> Vec<&'a String> {
        self.0.retain(|who, _| data.contains_key(who));
        let mut gone = Vec::new();
        for (who, text) in data {
            let (last, since) = self.0.entry(who.clone()).or_insert_with(|| (text.clone(), now));
            if last != text {
                (*last, *since) = (text.clone(), now);
            } else if now.duration_since(*since) >= SILENCE {
                gone.push(who);
            }
        }
        gone
    }
}

/// One replica's own counts, and what the others tell of the same services. Who means another version has not applied this one.
fn summed<'a>(mut counts: Counts, others: impl Iterator<Item = &'a str>) -> Counts {
    for told in others.filter_map(|text| serde_json::from_str::<Told>(text).ok()) {
        for (key, count) in &mut counts {
            let Some(theirs) = told.counts.get(&named(key)) else { continue };
            count.subscribed = count.subscribed.saturating_add(theirs.subscribed);
            if theirs.version == count.version {
                count.applied = count.applied.saturating_add(theirs.applied);
            }
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ObjectKey {
        ObjectKey { kind: Kind::Service, id: text.parse().expect("valid") }
    }

    fn told(beat: u64, version: u64, subscribed: u32, applied: u32) -> String {
        let counts = BTreeMap::from([("shop/web".to_owned(), Count { version, subscribed, applied })]);
        serde_json::to_string(&Told { beat, counts }).expect("plain JSON")
    }

    #[test]
    fn replicas_add_up_as_far_as_they_mean_the_same() {
        let own = Counts::from([
            (id("shop/web"), Count { version: 7, subscribed: 2, applied: 1 }),
            (id("shop/api"), Count { version: 1, subscribed: 1, applied: 1 }),
        ]);
        let others = [told(1, 7, 3, 3), told(1, 6, 4, 4), "not JSON".to_owned()];
        let sums = summed(own, others.iter().map(String::as_str));
        assert_eq!(sums[&id("shop/web")], Count { version: 7, subscribed: 9, applied: 4 });
        assert_eq!(sums[&id("shop/api")], Count { version: 1, subscribed: 1, applied: 1 });
    }

    #[test]
    fn a_replica_that_is_silent_is_gone_whatever_clocks_say() {
        let (mut seen, start) = (Seen::default(), Instant::now());
        let data = |beat: u64| BTreeMap::from([("a".to_owned(), told(beat, 1, 1, 1)), ("b".to_owned(), told(1, 1, 1, 1))]);
        assert!(seen.look(&data(1), start).is_empty());
        assert!(seen.look(&data(2), start + SILENCE / 2).is_empty());
        let last = data(2);
        assert_eq!(seen.look(&last, start + SILENCE), ["b"]);
        let only = BTreeMap::from([("a".to_owned(), told(3, 1, 1, 1))]);
        assert!(seen.look(&only, start + SILENCE).is_empty());
        assert_eq!(seen.0.len(), 1);
    }
}
