//! Removes an installation from a cluster, what the programs made included.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::time::{Instant, sleep};
use weft_core::wellknown::LABEL_INJECT;

use super::MANAGED_BY;
use crate::install::access::{self, TRUST_BUNDLE, WEBHOOK_SECRET};
use crate::install::apply::{POD, say};
use crate::install::cluster::{Cluster, Place};
use crate::install::kinds::{CONFIG_MAP, DEPLOYMENT, KINDS, Kind, LEASE, NAMESPACE, SECRET, WEBHOOK};
use crate::install::namespace::RECORD;
use crate::install::object::{LABEL_PART_OF, PART_OF};
use crate::install::settings::Settings;
use crate::install::{Target, sidecars};

const EVERY: Duration = Duration::from_millis(500);
/// What the programs make at home, and do not label as a part of weft.
const MADE: [(Kind, &str); 2] = [(LEASE, access::LEASE), (SECRET, WEBHOOK_SECRET)];

pub(super) async fn remove(target: &Target, keep_ca: bool, yes: bool) -> anyhow::Result<ExitCode> {
    let deadline = Instant::now() + target.timeout;
    let cluster = Cluster::connect(target.context.as_deref()).await?;
    say(&format!("{} (Kubernetes {})", cluster.server, cluster.version_text));
    let home = Settings::default().namespace;
    let label = format!("{LABEL_PART_OF}={PART_OF}");

    let mut found = find(&cluster, &home, &label).await?;
    let ca = ca(&cluster, &home).await?;
    if keep_ca {
        found.retain(|(kind, object)| *kind != NAMESPACE && (*kind != SECRET || ca.as_deref() != Some(Place::of(object).name)));
    } else if let Some(ca) = &ca
        && !yes
    {
        confirm(ca, &home)?;
    }
    if found.is_empty() {
        say("nothing of weft's is here");
    }

    // Whoever answers the webhook, or would make anew what is removed, goes before it; the namespace, with all that is
    // in it, goes last.
    delete(&cluster, &found, |kind| kind == WEBHOOK).await?;
    delete(&cluster, &found, |kind| kind == DEPLOYMENT).await?;
    gone(&cluster, POD, &home, &label, deadline).await?;
    delete(&cluster, &found, |kind| ![WEBHOOK, DEPLOYMENT, NAMESPACE].contains(&kind)).await?;
    delete(&cluster, &found, |kind| kind == NAMESPACE).await?;
    if keep_ca {
        say(&format!("kept       Namespace {home}, with the Secret {}", ca.as_deref().unwrap_or("(none)")));
    } else {
        gone(&cluster, NAMESPACE, &home, &label, deadline).await?;
    }
    left(&cluster).await?;
    Ok(ExitCode::SUCCESS)
}

/// Everything that is to be removed, each object once.
async fn find(cluster: &Cluster, home: &str, label: &str) -> anyhow::Result<Vec<(Kind, Value)>> {
    let mut found: Vec<(Kind, Value)> = Vec::new();
    for kind in KINDS.into_iter().rev() {
        let labelled = cluster.list(kind, None, label).await?;
        found.extend(labelled.into_iter().filter(|object| is_ours(kind, object, home)).map(|object| (kind, object)));
    }
    let mut more: Vec<(Kind, Value)> =
        cluster.named(CONFIG_MAP, TRUST_BUNDLE).await?.into_iter().map(|object| (CONFIG_MAP, object)).collect();
    more.retain(|(kind, object)| is_ours(*kind, object, home));
    for (kind, name) in MADE {
        more.extend(cluster.get(kind, Some(home), name).await?.map(|object| (kind, object)));
    }
    for (kind, object) in more {
        let uid = |object: &Value| object.pointer("/metadata/uid").cloned();
        if !found.iter().any(|(_, other)| uid(other) == uid(&object)) {
            found.push((kind, object));
        }
    }
    Ok(found)
}

/// Whether an object is weft's to remove. A label alone is not enough: anyone may put it on anything.
fn is_ours(kind: Kind, object: &Value, home: &str) -> bool {
    let place = Place::of(object);
    match place.namespace {
        Some(namespace) => namespace == home || (kind == CONFIG_MAP && place.name == TRUST_BUNDLE && is_made(object)),
        None if kind == NAMESPACE => place.name == home,
        None => place.name.starts_with("weft-"),
    }
}

/// Whether the control plane made an object.
fn is_made(object: &Value) -> bool {
    let label = |name: &str| object.pointer("/metadata/labels")?.get(name)?.as_str();
    label(MANAGED_BY.0) == Some(MANAGED_BY.1) || label(LABEL_PART_OF) == Some(PART_OF)
}

/// The Secret that goes with the namespace and that nobody can make again: the CA's, be it weft's or somebody else's.
async fn ca(cluster: &Cluster, home: &str) -> anyhow::Result<Option<String>> {
    let record = cluster.get(CONFIG_MAP, Some(home), RECORD).await?.unwrap_or_default();
    let named = record.pointer("/data/caSecret").and_then(Value::as_str).unwrap_or(&Settings::default().ca_secret).to_owned();
    let is_there = cluster.get(SECRET, Some(home), &named).await?.is_some();
    Ok(is_there.then_some(named))
}

fn confirm(ca: &str, home: &str) -> anyhow::Result<()> {
    let what = format!("the CA's key (Secret {home}/{ca})");
    if !std::io::stdin().is_terminal() {
        bail!("{what} would be removed, and every certificate of this mesh with it: say --yes, or --keep-ca");
    }
    let mut out = std::io::stdout();
    write!(out, "{what} will be removed; a later installation has other identities. Remove it? [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).context("no answer can be read")?;
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        bail!("nothing has been removed (--keep-ca leaves the CA where it is)");
    }
    Ok(())
}

async fn delete(cluster: &Cluster, found: &[(Kind, Value)], which: impl Fn(Kind) -> bool) -> anyhow::Result<()> {
    for (kind, object) in found.iter().filter(|(kind, _)| which(*kind)) {
        let place = Place::of(object);
        cluster.delete(*kind, place.namespace, place.name).await?;
        say(&format!("removed    {} {place}", kind.kind));
    }
    Ok(())
}

/// Waits until nothing of weft's is left of a kind.
async fn gone(cluster: &Cluster, kind: Kind, home: &str, label: &str, deadline: Instant) -> anyhow::Result<()> {
    loop {
        let left = cluster.list(kind, None, label).await?;
        let Some(first) = left.iter().find(|object| is_ours(kind, object, home)) else { return Ok(()) };
        if Instant::now() >= deadline {
            bail!("{} {} is still there; the cluster may take longer to remove it", kind.kind, Place::of(first));
        }
        sleep(EVERY).await;
    }
}

/// What is the user's: pods that have their sidecar still, and labels that a later installation would heed.
async fn left(cluster: &Cluster) -> anyhow::Result<()> {
    let pods = cluster.list(POD, None, "").await?;
    let meshed = sidecars::by_owner(pods.iter().filter(|pod| sidecars::has_sidecar(pod) && !sidecars::has_ended(pod)));
    if !meshed.is_empty() {
        say("These still have sidecars, which go on with the certificates that they have until those expire:");
    }
    for (owner, count) in &meshed {
        say(&format!("    {count} pods of {} in {}: {}", owner.name, owner.namespace, owner.remedy()));
    }
    for namespace in cluster.list(NAMESPACE, None, LABEL_INJECT).await? {
        let name = Place::of(&namespace).name.to_owned();
        say(&format!("Namespace {name} still has its label: kubectl label namespace {name} {LABEL_INJECT}-"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_label_alone_makes_nothing_ours() {
        let (label, value) = MANAGED_BY;
        let object = |namespace: Option<&str>, name: &str| {
            let labels = json!({label: value});
            json!({"metadata": {"namespace": namespace, "name": name, "labels": labels}})
        };
        let theirs = json!({"metadata": {"namespace": "shop", "name": TRUST_BUNDLE}});
        assert!(!is_ours(CONFIG_MAP, &theirs, "weft-system"));
        for (kind, namespace, name, ours) in [
            (SECRET, Some("weft-system"), "weft-ca", true),
            (SECRET, Some("shop"), "weft-ca", false),
            (CONFIG_MAP, Some("shop"), TRUST_BUNDLE, true),
            (CONFIG_MAP, Some("shop"), "settings", false),
            (DEPLOYMENT, Some("shop"), "weft-control-plane", false),
            (NAMESPACE, None, "weft-system", true),
            (NAMESPACE, None, "weft-demo", false),
            (WEBHOOK, None, "weft-injector", true),
            (WEBHOOK, None, "other", false),
        ] {
            assert_eq!(is_ours(kind, &object(namespace, name), "weft-system"), ours, "{} {name}", kind.kind);
        }
    }
}
