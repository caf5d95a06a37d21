//! Removes an installation from a cluster, what the programs made included.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::time::{Instant, sleep};
use weft_core::wellknown::LABEL_INJECT;

use super::{MANAGED_BY, UninstallArgs, on_one_line};
use crate::install::access::{self, TRUST_BUNDLE, WEBHOOK_SECRET};
use crate::install::apply::{POD, say};
use crate::install::cluster::{Cluster, Place};
use crate::install::kinds::{CONFIG_MAP, CRD, DAEMON_SET, DEFINED, DEPLOYMENT, KINDS, Kind, LEASE, NAMESPACE, SECRET, WEBHOOK};
use crate::install::namespace::RECORD;
use crate::install::object::{LABEL_PART_OF, PART_OF};
use crate::install::settings::Settings;
use crate::install::{KubeVersion, Target, sidecars};

const EVERY: Duration = Duration::from_millis(500);
/// How long may be looked around before it is printed what is to be deleted.
const LOOK: Duration = Duration::from_secs(15);
/// How long what follows a deleted object, as its Endpoints do, may take to go with it.
const FOLLOWS: Duration = Duration::from_secs(15);
/// How many objects of others are named.
const SHOWN: usize = 20;
/// What the programs make at home, and do not label as a part of weft.
const MADE: [(Kind, &str); 3] = [(LEASE, access::LEASE), (SECRET, WEBHOOK_SECRET), (CONFIG_MAP, access::UPTAKE)];

pub(super) async fn remove(args: &UninstallArgs) -> anyhow::Result<ExitCode> {
    let cluster = Cluster::connect(args.target.context.as_deref()).await?;
    say(&format!("{} (Kubernetes {})", cluster.server, cluster.version_text));
    remove_from(&cluster, args).await?;
    Ok(ExitCode::SUCCESS)
}

async fn remove_from(cluster: &Cluster, args: &UninstallArgs) -> anyhow::Result<()> {
    let UninstallArgs { target, keep_ca, delete_crds, yes } = args;
    let deadline = Instant::now() + target.timeout;
    let home = Settings::default().namespace;
    let label = format!("{LABEL_PART_OF}={PART_OF}");

    let found = find(cluster, &home, &label).await?;
    let ca = ca(cluster, &home).await?;
    // Somebody else's is not removed, and so needs no leave.
    if let Some((name, true)) = &ca
        && !*keep_ca
        && !*yes
    {
        confirm(name, &home)?;
    }
    if found.is_empty() {
        say("nothing of weft's is here");
    }

    // Whoever answers the webhook, or would make anew what is removed, goes before it; the namespace goes last. The CNI
    // plugin's agents take it off their nodes while they may still ask what has become of them.
    delete(cluster, &found, |kind| kind == WEBHOOK).await?;
    delete(cluster, &found, |kind| [DEPLOYMENT, DAEMON_SET].contains(&kind)).await?;
    gone(cluster, POD, &home, &label, deadline).await?;
    // Looked for again: the control plane wrote until its end.
    let mut found = find(cluster, &home, &label).await?;
    if *keep_ca && let Some((name, _)) = &ca {
        found.retain(|(kind, object)| *kind != SECRET || !is_of_ca(Place::of(object).name, name));
    }
    delete(cluster, &found, |kind| ![WEBHOOK, DEPLOYMENT, DAEMON_SET, NAMESPACE, CRD].contains(&kind)).await?;
    for one in found.iter().filter(|(kind, _)| *kind == CRD) {
        let name = Place::of(&one.1).name;
        // Asked only now: pods took their time to end, and whatever is made of a kind meanwhile goes with it.
        if !*delete_crds && let Some(why) = kept(cluster, name).await {
            say(&format!("kept       {} {name}: {why}; with --delete-crds it goes, and they with it", CRD.kind));
            continue;
        }
        delete(cluster, std::slice::from_ref(one), |_| true).await?;
        undefined(cluster, name, deadline).await?;
    }
    if *keep_ca {
        let name = ca.as_ref().map_or("(none)", |(name, _)| name.as_str());
        say(&format!("kept       Namespace {home}, with the Secret {name}"));
    } else {
        for line in namespace(cluster, &found, &home, &label, deadline).await? {
            say(&line);
        }
    }
    for line in left(cluster).await? {
        say(&on_one_line(&line));
    }
    Ok(())
}

/// What stays when all that is weft's is deleted, and the cluster's version; changes nothing.
pub(super) async fn look(target: &Target) -> anyhow::Result<(Vec<String>, KubeVersion)> {
    let seen = async {
        let cluster = Cluster::connect(target.context.as_deref()).await?;
        let mut lines = left(&cluster).await?;
        let home = Settings::default().namespace;
        if cluster.get(NAMESPACE, None, &home).await?.is_some() {
            let others = foreign(&cluster.everything_in(&home).await?);
            lines.extend(stays(&home, &others));
        }
        Ok((lines, cluster.version))
    };
    tokio::time::timeout(LOOK, seen).await.with_context(|| format!("no answer in {} s", LOOK.as_secs()))?
}

/// Removes the namespace, if it is weft's and nothing of anybody else's is in it. Says why it stays.
async fn namespace(
    cluster: &Cluster,
    found: &[(Kind, Value)],
    home: &str,
    label: &str,
    deadline: Instant,
) -> anyhow::Result<Vec<String>> {
    if !found.iter().any(|(kind, _)| *kind == NAMESPACE) {
        let there = cluster.get(NAMESPACE, None, home).await?.is_some();
        return Ok(there.then(|| format!("Namespace {home} stays: it lacks the label {label}")).into_iter().collect());
    }
    let patience = deadline.min(Instant::now() + FOLLOWS);
    loop {
        let late = Instant::now() >= patience;
        match cluster.everything_in(home).await.map(|objects| foreign(&objects)) {
            Ok(others) if others.is_empty() => break,
            Ok(others) if late => return Ok(stays(home, &others)),
            // A kind that was just removed is listed among those that are served for a moment longer.
            Err(why) if late => {
                return Ok(vec![format!("Namespace {home} stays: what else is in it can't be said: {why:#}")]);
            }
            Ok(_) | Err(_) => {}
        }
        sleep(EVERY).await;
    }
    delete(cluster, found, |kind| kind == NAMESPACE).await?;
    gone(cluster, NAMESPACE, home, label, deadline).await?;
    Ok(Vec::new())
}

/// Why the namespace stays, line by line; none where nothing of others' is in it.
fn stays(home: &str, others: &[String]) -> Vec<String> {
    if others.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![format!("Namespace {home} stays, since this in it is not weft's:")];
    lines.extend(others.iter().take(SHOWN).map(|name| format!("    {name}")));
    if others.len() > SHOWN {
        lines.push(format!("    and {} more", others.len() - SHOWN));
    }
    lines.push(format!("When none of it is needed: kubectl delete namespace {home}"));
    lines
}

/// What of a namespace's objects is somebody else's. What is on its way out is not, nor what has an owner, which is named
/// itself, nor what the cluster puts into every namespace.
fn foreign(objects: &[Value]) -> Vec<String> {
    let is = |object: &&Value| {
        let (kind, place) = (object["kind"].as_str().unwrap_or_default(), Place::of(object));
        let owned = object.pointer("/metadata/ownerReferences").and_then(Value::as_array).is_some_and(|all| !all.is_empty());
        let of_cluster = match kind {
            "ServiceAccount" => place.name == "default",
            "ConfigMap" => ["kube-root-ca.crt", "openshift-service-ca.crt"].contains(&place.name),
            // It goes with its account.
            "Secret" => object["type"] == "kubernetes.io/service-account-token",
            _ => false,
        };
        let made = MADE.iter().any(|(of, name)| of.kind == kind && *name == place.name);
        !(owned || of_cluster || made || is_made(object) || object.pointer("/metadata/deletionTimestamp").is_some())
    };
    let name = |object: &Value| format!("{} {}", object["kind"].as_str().unwrap_or("?"), Place::of(object).name);
    let mut names: Vec<String> = objects.iter().filter(is).map(name).collect();
    // The same objects under two groups, as Ingresses once were.
    names.sort();
    names.dedup();
    names
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
    let made = format!("{}={}", MANAGED_BY.0, MANAGED_BY.1);
    for kind in [SECRET, CONFIG_MAP] {
        more.extend(cluster.list(kind, Some(home), &made).await?.into_iter().map(|object| (kind, object)));
    }
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

/// Why one of weft's kinds stays, by the name of its definition: whoever removed one that is in use would remove what users wrote.
async fn kept(cluster: &Cluster, name: &str) -> Option<String> {
    let known = DEFINED.into_iter().find(|kind| name == format!("{}.{}", kind.plural, kind.group()));
    let Some(kind) = known else { return Some("it is another version's, which knows what it is for".to_owned()) };
    match cluster.list(kind, None, "").await {
        Ok(left) => left.first().map(|first| format!("{} objects of it are left, {} first", left.len(), Place::of(first))),
        Err(why) => Some(format!("whether objects of it are left can't be said: {why:#}")),
    }
}

/// Waits until a kind is gone, so that it can be installed again.
async fn undefined(cluster: &Cluster, name: &str, deadline: Instant) -> anyhow::Result<()> {
    while cluster.get(CRD, None, name).await?.is_some() {
        if Instant::now() >= deadline {
            bail!("{} {name} is still there: something keeps an object of it", CRD.kind);
        }
        sleep(EVERY).await;
    }
    Ok(())
}

/// Whether an object is weft's to remove. A label alone is not enough: anyone may put it on anything.
fn is_ours(kind: Kind, object: &Value, home: &str) -> bool {
    let place = Place::of(object);
    match place.namespace {
        Some(namespace) => namespace == home || (kind == CONFIG_MAP && place.name == TRUST_BUNDLE && is_made(object)),
        None if kind == NAMESPACE => place.name == home,
        None if kind == CRD => place.name.ends_with(".weft.dev"),
        None => place.name.starts_with("weft-"),
    }
}

/// Whether the control plane made an object.
fn is_made(object: &Value) -> bool {
    let label = |name: &str| object.pointer("/metadata/labels")?.get(name)?.as_str();
    label(MANAGED_BY.0) == Some(MANAGED_BY.1) || label(LABEL_PART_OF) == Some(PART_OF)
}

/// The CA's Secret, and whether weft made it: nobody can make it again.
async fn ca(cluster: &Cluster, home: &str) -> anyhow::Result<Option<(String, bool)>> {
    let record = cluster.get(CONFIG_MAP, Some(home), RECORD).await?.unwrap_or_default();
    let named = record.pointer("/data/caSecret").and_then(Value::as_str).unwrap_or(&Settings::default().ca_secret).to_owned();
    let found = cluster.get(SECRET, Some(home), &named).await?;
    Ok(found.map(|secret| (named, is_made(&secret))))
}

/// Whether a Secret's name is that of the CA, or of the key of a root of it: `-root` of the first, `-root-HASH` of one that a rotation made.
fn is_of_ca(name: &str, ca: &str) -> bool {
    let root = name.strip_prefix(ca).and_then(|rest| rest.strip_prefix("-root"));
    name == ca || root.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
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
async fn left(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let mut lines = Vec::new();
    let pods = cluster.list(POD, None, "").await?;
    let meshed = sidecars::by_owner(pods.iter().filter(|pod| sidecars::has_sidecar(pod) && !sidecars::has_ended(pod)));
    if !meshed.is_empty() {
        lines.push("These still have sidecars, which go on with the certificates that they have until those expire:".to_owned());
    }
    for (owner, count) in &meshed {
        lines.push(format!("    {count} pods of {} in {}: {}", owner.name, owner.namespace, owner.remedy()));
    }
    for namespace in cluster.list(NAMESPACE, None, LABEL_INJECT).await? {
        if is_made(&namespace) {
            continue;
        }
        let name = Place::of(&namespace).name;
        lines.push(format!("Namespace {name} still has its label: kubectl label namespace {name} {LABEL_INJECT}-"));
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex};

    use ::http::Method;
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
            (CRD, None, "trafficpolicies.weft.dev", true),
            (CRD, None, "weft-things.example.com", false),
        ] {
            assert_eq!(is_ours(kind, &object(namespace, name), "weft-system"), ours, "{} {name}", kind.kind);
        }
    }

    #[test]
    fn a_namespace_is_empty_when_only_ours_and_the_clusters_own_is_in_it() {
        let object = |kind: &str, name: &str| json!({"kind": kind, "metadata": {"name": name, "namespace": "weft-system"}});
        let with = |mut object: Value, pointer: &str, value: Value| {
            let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
            object.pointer_mut(parent).expect("a parent")[key] = value;
            object
        };
        let (label, value) = MANAGED_BY;
        let ours = [
            object("ServiceAccount", "default"),
            object("ConfigMap", "kube-root-ca.crt"),
            object("Lease", "weft-control-plane"),
            with(object("Secret", "weft-ca-root"), "/metadata/labels", json!({label: value})),
            with(object("ReplicaSet", "weft-injector-5d4"), "/metadata/labels", json!({LABEL_PART_OF: PART_OF})),
            with(object("Secret", "default-token-x"), "/type", "kubernetes.io/service-account-token".into()),
            with(object("Pod", "other-x"), "/metadata/ownerReferences", json!([{"kind": "ReplicaSet", "name": "other"}])),
            with(object("Job", "going"), "/metadata/deletionTimestamp", "2026-01-01T00:00:00Z".into()),
        ];
        assert_eq!(foreign(&ours), Vec::<String>::new());
        let theirs = [object("Secret", "weft-ca"), object("ServiceAccount", "builder"), object("Certificate", "weft-ca")];
        let names = foreign(&[&ours[..], &theirs[..]].concat());
        assert_eq!(names, ["Certificate weft-ca", "Secret weft-ca", "ServiceAccount builder"]);
        let lines = stays("weft-system", &names);
        assert_eq!((lines.len(), lines[1].as_str()), (5, "    Certificate weft-ca"));
        assert_eq!(stays("weft-system", &vec!["x".to_owned(); 25]).len(), 23);
        assert_eq!(stays("weft-system", &[]), Vec::<String>::new());
    }

    /// A cluster with weft's kind, of which somebody makes an object while the last pods are waited for; what was deleted.
    fn with_a_kind_that_is_used_meanwhile() -> (Cluster, Arc<Mutex<Vec<String>>>) {
        let (waited, deleted) = (AtomicBool::new(false), Arc::<Mutex<Vec<String>>>::default());
        let told = deleted.clone();
        let cluster = Cluster::scripted(move |method, path| {
            let (path, query) = path.split_once('?').unwrap_or((path, ""));
            if method == Method::DELETE {
                told.lock().expect("no one panicked").push(path.to_owned());
            } else if path.ends_with("/pods") {
                waited.store(true, Ordering::Relaxed);
            }
            let named = |name: &str| json!([{"metadata": {"name": name, "labels": {LABEL_PART_OF: PART_OF}}}]);
            let items = if path.ends_with("/customresourcedefinitions") {
                named("trafficpolicies.weft.dev")
            } else if path.ends_with("/trafficpolicies") && waited.load(Ordering::Relaxed) {
                named("mine")
            } else {
                json!([])
            };
            // What is asked for by its name is not there.
            (method == Method::DELETE || !query.is_empty()).then(|| json!({"metadata": {}, "items": items}))
        });
        (cluster, deleted)
    }

    #[tokio::test]
    async fn a_kind_that_came_into_use_while_pods_ended_is_kept() {
        let target = || Target { apply: true, dry_run: false, context: None, timeout: Duration::from_secs(60), force: false };
        for delete_crds in [false, true] {
            let (cluster, deleted) = with_a_kind_that_is_used_meanwhile();
            let args = UninstallArgs { target: target(), keep_ca: false, delete_crds, yes: true };
            remove_from(&cluster, &args).await.expect("it is removed");
            let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/trafficpolicies.weft.dev";
            let expected: &[&str] = if delete_crds { &[path] } else { &[] };
            assert_eq!(*deleted.lock().expect("no one panicked"), expected);
        }
    }

    #[test]
    fn the_root_is_kept_with_its_ca() {
        assert!(is_of_ca("weft-ca", "weft-ca") && is_of_ca("weft-ca-root", "weft-ca"));
        assert!(is_of_ca("weft-ca-root-0123abcd", "weft-ca") && !is_of_ca("weft-ca-rooted", "weft-ca"));
        assert!(!is_of_ca("weft-ca-other", "weft-ca") && !is_of_ca("weft-injector-tls", "weft-ca"));
    }
}
