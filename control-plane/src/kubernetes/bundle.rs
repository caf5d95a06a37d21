//! The anchors by which a pod first knows the control plane: a `ConfigMap` in every namespace that is in the mesh, kept as it
//! should be, and removed when the namespace leaves. Written by the replica that holds the Lease.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use weft_core::Namespace;

use super::{MANAGED_BY, MANAGER, within};
use crate::issue::ca::Ca;

/// The `ConfigMap`'s name.
pub const NAME: &str = "weft-trust-bundle";
/// The file in it: PEM.
pub const FILE: &str = "anchors.pem";
/// All of them are looked at this often, in case somebody changed one.
const SWEEP: Duration = Duration::from_secs(30);
/// After a failure.
const AGAIN: Duration = Duration::from_secs(3);

/// What there is in a namespace.
#[derive(Debug, Clone, Copy)]
struct Found {
    current: bool,
    /// Made by weft: only such a one is removed.
    ours: bool,
}

/// Puts the anchors where they belong, and removes them where they do not.
pub struct Bundles {
    pub client: Client,
    /// Whose anchors they are.
    pub ca: Arc<Ca>,
}

impl Bundles {
    /// Runs until `leading` is dropped.
    pub async fn run(self, mut meshed: watch::Receiver<Arc<BTreeSet<Namespace>>>, mut leading: watch::Receiver<bool>) {
        let mut due = Instant::now();
        let mut standing = self.ca.standing();
        loop {
            tokio::select! {
                changed = standing.changed() => if changed.is_err() { return },
                changed = leading.changed() => if changed.is_err() { return },
                changed = meshed.changed() => if changed.is_err() { return },
                () = sleep_until(due) => {}
            }
            if !*leading.borrow_and_update() {
                due = Instant::now() + SWEEP;
                continue;
            }
            let wanted = meshed.borrow_and_update().clone();
            let outcome = self.sweep(&wanted, &leading).await;
            due = Instant::now() + if outcome.is_ok() { SWEEP } else { AGAIN };
            if let Err(why) = outcome {
                tracing::warn!("the ConfigMaps {NAME} are not all as they should be: {why}; it is tried again");
            }
        }
    }

    /// Makes what there is what there should be. One namespace that cannot be written to does not keep the others from it.
    async fn sweep(&self, wanted: &BTreeSet<Namespace>, leading: &watch::Receiver<bool>) -> Result<(), String> {
        let everywhere = Api::<ConfigMap>::all(self.client.clone());
        let named = ListParams::default().fields(&format!("metadata.name={NAME}"));
        let list = within(everywhere.list(&named)).await?;
        let anchors = self.ca.anchor_pem();
        let found = list.into_iter().filter_map(|c| found(c, &anchors)).collect();
        let (write, remove) = plan(wanted, &found);
        let mut problems = Vec::new();
        for (namespace, write) in write.into_iter().map(|n| (n, true)).chain(remove.into_iter().map(|n| (n, false))) {
            if !*leading.borrow() {
                return Ok(());
            }
            let api = Api::<ConfigMap>::namespaced(self.client.clone(), namespace.as_str());
            let outcome = if write {
                let patch = PatchParams::apply(MANAGER).force();
                within(api.patch(NAME, &patch, &Patch::Apply(config_map(&namespace, &anchors)))).await.map(drop)
            } else {
                within(api.delete(NAME, &DeleteParams::default())).await.map(drop)
            };
            match outcome {
                Ok(()) => tracing::info!(%namespace, present = write, "trust bundle"),
                Err(why) => problems.push(format!("{namespace}: {why}")),
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
    }
}

fn found(map: ConfigMap, anchors: &str) -> Option<(Namespace, Found)> {
    let ours = map.metadata.labels.as_ref().and_then(|l| l.get(MANAGED_BY)).is_some_and(|v| v == MANAGER);
    let current = map.data.as_ref().and_then(|d| d.get(FILE)).is_some_and(|text| text == anchors);
    Some((map.metadata.namespace?.parse().ok()?, Found { current: ours && current, ours }))
}

fn config_map(namespace: &Namespace, anchors: &str) -> serde_json::Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": NAME, "namespace": namespace.as_str(), "labels": { MANAGED_BY: MANAGER } },
        "data": { FILE: anchors },
    })
}

/// Where to write, and where to remove.
fn plan(wanted: &BTreeSet<Namespace>, found: &BTreeMap<Namespace, Found>) -> (Vec<Namespace>, Vec<Namespace>) {
    let write = wanted.iter().filter(|n| !found.get(*n).is_some_and(|f| f.current)).cloned().collect();
    let remove = found.iter().filter(|(n, f)| f.ours && !wanted.contains(*n)).map(|(n, _)| n.clone()).collect();
    (write, remove)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_changed_is_written_and_only_what_is_ours_is_removed() {
        let names = |list: &[&str]| list.iter().map(|n| n.parse::<Namespace>().expect("a name")).collect::<Vec<_>>();
        let found: BTreeMap<Namespace, Found> =
            [("kept", true, true), ("changed", false, true), ("left", true, true), ("theirs", false, false)]
                .map(|(n, current, ours)| (n.parse::<Namespace>().expect("a name"), Found { current, ours }))
                .into();
        let wanted = names(&["changed", "kept", "new"]).into_iter().collect();
        assert_eq!(plan(&wanted, &found), (names(&["changed", "new"]), names(&["left"])));
    }
}
