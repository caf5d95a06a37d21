//! Brings manifests to a cluster: look first, apply in order, wait until it works.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::cluster::{Cluster, FIELD_MANAGER, How, Place};
use super::kinds::{CONFIG_MAP, CRD, DAEMON_SET, DEPLOYMENT, KINDS, Kind, NAMESPACE, WEBHOOK};
use super::namespace::RECORD;
use super::object::{LABEL_NAME, LABEL_PART_OF, LABEL_VERSION, PART_OF, Part};
use super::settings::{Flags, Settings};
use super::{Target, VERSION, diff, objects, ready, webhook};
use crate::check::{self, Code, Finding};

/// How often a cluster is looked at while it is waited for.
const EVERY: Duration = Duration::from_secs(1);
/// Pods, only to say why one does not run.
pub(crate) const POD: Kind = Kind { api_version: "v1", kind: "Pod", plural: "pods", namespaced: true };

pub(super) async fn install(settings: &Settings, target: &Target) -> anyhow::Result<ExitCode> {
    let deadline = Instant::now() + target.timeout;
    let cluster = Cluster::connect(target.context.as_deref()).await?;
    say(&format!("{} (Kubernetes {})", cluster.server, cluster.version_text));
    let mut findings = check::before(&cluster, settings).await?;
    findings.extend(installed(&cluster, settings).await?);
    if !check::tell_problems(&findings) {
        bail!("nothing has been changed");
    }
    apply(&cluster, &objects(settings, cluster.version), target.force).await?;
    wait(&cluster, settings, deadline).await?;
    say("weft is installed. Mesh a namespace and restart what runs in it:");
    say(&format!("    kubectl label namespace NAME {}=enabled", weft_core::wellknown::LABEL_INJECT));
    say("    kubectl rollout restart deployment -n NAME");
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn upgrade(flags: &Flags, target: &Target) -> anyhow::Result<ExitCode> {
    let deadline = Instant::now() + target.timeout;
    let cluster = Cluster::connect(target.context.as_deref()).await?;
    let home = Settings::default().namespace;
    let record = cluster.get(CONFIG_MAP, Some(&home), RECORD).await?;
    let record = record.with_context(|| {
        format!("{} has no installation of weft (no ConfigMap {home}/{RECORD}): weft install makes one", cluster.server)
    })?;
    if let Some(release) = helm_release(&record) {
        bail!("Helm installed this weft, as {release}: upgrade it with helm upgrade");
    }
    let settings = Settings::recorded(&record["data"])
        .map_err(|why| anyhow::anyhow!("the ConfigMap {home}/{RECORD} can't be understood: {why}; mend it there"))?
        .with(flags);
    let findings = check::before(&cluster, &settings).await?;
    let fit = check::tell_problems(&findings);

    let wanted = objects(&settings, cluster.version);
    let superfluous = superfluous(&cluster, &wanted).await?;
    let mut changes = 0;
    for object in &wanted {
        changes += differences(&cluster, object).await?;
    }
    for object in &superfluous {
        say(&format!("- {} {}", object["kind"].as_str().unwrap_or_default(), Place::of(object)));
        changes += 1;
    }
    if changes == 0 {
        say(&format!("weft {VERSION} is installed with these settings: there is nothing to change"));
    }
    if !fit {
        bail!("nothing has been changed");
    }
    if !target.applies() {
        if changes > 0 {
            say("nothing has been changed: weft upgrade --apply does it");
        }
        return Ok(ExitCode::SUCCESS);
    }
    apply(&cluster, &wanted, target.force).await?;
    // What runs goes before the rights that it has.
    for object in superfluous.iter().rev() {
        let kind = Kind::of(object).context("a list has what it was asked for")?;
        let place = Place::of(object);
        cluster.delete(kind, place.namespace, place.name).await?;
    }
    wait(&cluster, &settings, deadline).await?;
    say(&format!(
        "weft {VERSION} is installed; pods get its sidecar when they are next created (weft check lists those with another)"
    ));
    Ok(ExitCode::SUCCESS)
}

/// Another installation, or one that is not ours to change.
async fn installed(cluster: &Cluster, settings: &Settings) -> anyhow::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let ours = format!("{LABEL_PART_OF}={PART_OF},{LABEL_NAME}={}", Part::ControlPlane.name());
    for deployment in cluster.list(DEPLOYMENT, None, &ours).await? {
        let place = Place::of(&deployment);
        let version = deployment.pointer("/metadata/labels").and_then(|labels| labels[LABEL_VERSION].as_str()).unwrap_or("?");
        if place.namespace != Some(settings.namespace.as_str()) {
            findings.push(Finding::bad(
                Code::Installed,
                format!("another weft {version} is installed: Deployment {place}"),
                "a cluster has one mesh: remove that one first (weft uninstall, of its version)",
            ));
        } else if let Some(release) = helm_release(&deployment) {
            findings.push(Finding::bad(
                Code::Installed,
                format!("Helm installed this weft, as {release}"),
                "change it with helm upgrade",
            ));
        } else if version != VERSION {
            findings.push(Finding::bad(
                Code::Installed,
                format!("weft {version} is installed already"),
                "weft upgrade brings it to this version",
            ));
        }
    }
    Ok(findings)
}

/// The release whose object this is, if it is one of Helm's.
fn helm_release(object: &Value) -> Option<&str> {
    object.pointer("/metadata/annotations")?.get("meta.helm.sh/release-name")?.as_str()
}

async fn apply(cluster: &Cluster, objects: &[Value], force: bool) -> anyhow::Result<()> {
    for object in objects {
        let (kind, place) = (Kind::of(object).context("what is rendered is of a known kind")?, Place::of(object));
        let before = cluster.get(kind, place.namespace, place.name).await?;
        let after = cluster.apply(object, How { dry_run: false, force }).await?;
        let version = |object: &Value| object.pointer("/metadata/resourceVersion").cloned();
        let outcome = match &before {
            None => "made",
            Some(before) if version(before) == version(&after) => "unchanged",
            Some(_) => "changed",
        };
        say(&format!("{outcome:<9}  {} {place}", kind.kind));
    }
    Ok(())
}

/// Tells what applying `object` would change, and counts it.
async fn differences(cluster: &Cluster, object: &Value) -> anyhow::Result<usize> {
    let (kind, place) = (Kind::of(object).context("what is rendered is of a known kind")?, Place::of(object));
    let Some(before) = cluster.get(kind, place.namespace, place.name).await? else {
        say(&format!("+ {} {place}", kind.kind));
        return Ok(1);
    };
    let after = cluster.apply(object, How { dry_run: true, force: true }).await?;
    let lines = diff::differences(&before, &after);
    if !lines.is_empty() {
        say(&format!("~ {} {place}", kind.kind));
    }
    for line in &lines {
        say(&format!("    {line}"));
    }
    Ok(lines.len())
}

/// What an earlier version applied and this one does not have. What the programs made themselves was not applied; a kind goes with
/// all that is of it, which is not ours to decide.
async fn superfluous(cluster: &Cluster, wanted: &[Value]) -> anyhow::Result<Vec<Value>> {
    let mut found = Vec::new();
    for kind in KINDS.into_iter().filter(|kind| ![NAMESPACE, CRD].contains(kind)) {
        for object in cluster.list(kind, None, &format!("{LABEL_PART_OF}={PART_OF}")).await? {
            let same = |other: &Value| {
                let (a, b) = (Place::of(&object), Place::of(other));
                // A kind that is served in two versions is still one.
                other["kind"] == kind.kind && (a.namespace, a.name) == (b.namespace, b.name)
            };
            if was_applied(&object) && !wanted.iter().any(same) {
                found.push(object);
            }
        }
    }
    Ok(found)
}

fn was_applied(object: &Value) -> bool {
    let managers = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    managers.is_some_and(|all| all.iter().any(|one| one["manager"] == FIELD_MANAGER && one["operation"] == "Apply"))
}

/// Waits until all programs run and the webhook can be called.
async fn wait(cluster: &Cluster, settings: &Settings, deadline: Instant) -> anyhow::Result<()> {
    let mut told = String::new();
    loop {
        let missing = missing(cluster, settings).await?;
        let Some((what, why)) = missing.first() else { return Ok(()) };
        let line = format!("waiting    {what}: {why}");
        if line != told {
            say(&line);
            told = line;
        }
        if Instant::now() >= deadline {
            let pods = cluster.list(POD, Some(&settings.namespace), &format!("{LABEL_PART_OF}={PART_OF}")).await?;
            for pod in &pods {
                if let Some(trouble) = ready::trouble(pod) {
                    say(&format!("    Pod {}: {trouble}", Place::of(pod)));
                }
            }
            bail!(
                "{what} is not ready in time: {why}; what was applied stays (weft check looks again, weft uninstall removes it)"
            );
        }
        sleep(EVERY).await;
    }
}

async fn missing(cluster: &Cluster, settings: &Settings) -> anyhow::Result<Vec<(String, String)>> {
    let mut missing = Vec::new();
    for part in Part::PROGRAMS {
        let deployment = cluster.get(DEPLOYMENT, Some(&settings.namespace), part.name()).await?;
        if let Some(why) = ready::missing(&deployment.unwrap_or_default()) {
            missing.push((part.name().to_owned(), why));
        }
    }
    if settings.has_cni() {
        let daemon_set = cluster.get(DAEMON_SET, Some(&settings.namespace), Part::Cni.name()).await?;
        if let Some(why) = ready::missing_on_nodes(&daemon_set.unwrap_or_default()) {
            missing.push((Part::Cni.name().to_owned(), why));
        }
    }
    let configuration = cluster.get(WEBHOOK, None, webhook::NAME).await?.unwrap_or_default();
    let hooks = configuration["webhooks"].as_array().cloned().unwrap_or_default();
    let bundled =
        |hook: &Value| hook.pointer("/clientConfig/caBundle").and_then(Value::as_str).is_some_and(|text| !text.is_empty());
    if hooks.is_empty() || !hooks.iter().all(bundled) {
        missing.push(("the webhook".to_owned(), "the injector has not put its certificate there yet".to_owned()));
    }
    Ok(missing)
}

/// A step that is done, for people.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
