//! How an installation is.

use anyhow::anyhow;
use serde_json::Value;

use super::certificate::{Validity, validity};
use super::{Code, Finding, gateway, judge};
use crate::duration;
use crate::install::access::{TRUST_BUNDLE, WEBHOOK_SECRET};
use crate::install::apply::POD;
use crate::install::cluster::{Cluster, Place};
use crate::install::kinds::{CONFIG_MAP, DAEMON_SET, DEPLOYMENT, NAMESPACE, SECRET, WEBHOOK};
use crate::install::namespace::RECORD;
use crate::install::object::{LABEL_PART_OF, LABEL_VERSION, PART_OF, Part};
use crate::install::settings::Settings;
use crate::install::{VERSION, ready, webhook};

/// A CA is told about this long before it ends: whoever keeps it by hand needs the time.
const CA_NOTICE_SECS: i64 = 30 * 24 * 3600;

pub(super) async fn after(cluster: &Cluster) -> anyhow::Result<Vec<Finding>> {
    let home = Settings::default().namespace;
    let Some(record) = cluster.get(CONFIG_MAP, Some(&home), RECORD).await? else {
        return Ok(vec![Finding::bad(
            Code::Installed,
            format!("{} has no installation of weft (no ConfigMap {home}/{RECORD})", cluster.server),
            "weft install --apply makes one; weft check --pre tells whether it can",
        )]);
    };
    let settings = Settings::recorded(&record["data"])
        .map_err(|why| anyhow!("the ConfigMap {home}/{RECORD} can't be understood: {why}; mend it there"))?;
    let installed = record["data"][crate::install::settings::VERSION_KEY].as_str().unwrap_or("?").to_owned();

    let mut findings = vec![version(&installed)];
    findings.extend(programs(cluster, &home, &installed).await?);
    if settings.has_cni() {
        findings.push(plugin(cluster, &home).await?);
    }
    findings.extend(gateway::kinds(cluster).await?);
    let ca = certificate(cluster, &home, &settings.ca_secret, "the CA", CA_NOTICE_SECS, "tls.crt", &mut findings).await;
    if ca.is_some() {
        // Its own certificate ends with the root at the latest, but the root may be somebody else's and end first.
        certificate(cluster, &home, &settings.ca_secret, "the root", CA_NOTICE_SECS, "ca.crt", &mut findings).await;
    }
    let tls = certificate(cluster, &home, WEBHOOK_SECRET, "the webhook's certificate", 0, "tls.crt", &mut findings).await;
    let configuration = cluster.get(WEBHOOK, None, webhook::NAME).await?.unwrap_or_default();
    findings.extend(judge::webhook(&configuration, tls.as_ref().and_then(|secret| secret["data"]["ca.crt"].as_str())));

    let excluded = webhook::excluded(&settings);
    let namespaces = cluster.list(NAMESPACE, None, "").await?;
    let bundles = cluster.named(CONFIG_MAP, TRUST_BUNDLE).await?;
    let pods = cluster.list(POD, None, "").await?;
    findings.extend(judge::namespaces(&namespaces));
    findings.extend(judge::bundles(&namespaces, &bundles, &excluded));
    findings.extend(judge::pods(&namespaces, &pods, &installed, &excluded));
    Ok(findings)
}

fn version(installed: &str) -> Finding {
    if installed == VERSION {
        return Finding::good(Code::Version, format!("weft {installed} is installed"));
    }
    Finding::warning(
        Code::Version,
        format!("weft {installed} is installed, and this is weft {VERSION}"),
        format!("weft upgrade --apply brings it to {VERSION}, or use the weft of {installed}"),
    )
}

/// The Deployments and what keeps their pods from running.
async fn programs(cluster: &Cluster, home: &str, installed: &str) -> anyhow::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for part in Part::PROGRAMS {
        let name = part.name();
        let Some(deployment) = cluster.get(DEPLOYMENT, Some(home), name).await? else {
            findings.push(Finding::bad(
                Code::Programs,
                format!("there is no Deployment {home}/{name}"),
                "weft upgrade --apply makes it",
            ));
            continue;
        };
        match ready::missing(&deployment) {
            Some(why) => findings.push(Finding::bad(
                Code::Programs,
                format!("{name} is not as it should be: {why}"),
                format!("kubectl logs -n {home} deployment/{name}"),
            )),
            None => findings.push(Finding::good(Code::Programs, format!("{name} runs"))),
        }
        let theirs = deployment.pointer("/metadata/labels").and_then(|labels| labels[LABEL_VERSION].as_str()).unwrap_or("?");
        if theirs != installed {
            findings.push(Finding::warning(
                Code::Version,
                format!("{name} is of version {theirs}, while {installed} was installed"),
                "an upgrade was broken off: weft upgrade --apply ends it",
            ));
        }
    }
    for pod in cluster.list(POD, Some(home), &format!("{LABEL_PART_OF}={PART_OF}")).await? {
        if let Some(trouble) = ready::trouble(&pod) {
            findings.push(Finding::bad(
                Code::Programs,
                format!("Pod {}: {trouble}", Place::of(&pod)),
                format!("kubectl describe pod -n {home} {}", Place::of(&pod).name),
            ));
        }
    }
    Ok(findings)
}

/// The CNI plugin's agents: on a node without, no pod of the mesh starts.
async fn plugin(cluster: &Cluster, home: &str) -> anyhow::Result<Finding> {
    let name = Part::Cni.name();
    let Some(daemon_set) = cluster.get(DAEMON_SET, Some(home), name).await? else {
        return Ok(Finding::bad(Code::Programs, format!("there is no DaemonSet {home}/{name}"), "weft upgrade --apply makes it"));
    };
    Ok(match ready::missing_on_nodes(&daemon_set) {
        Some(why) => Finding::bad(
            Code::Programs,
            format!("{name} is not as it should be: {why}"),
            format!("kubectl logs -n {home} daemonset/{name}; a pod of the mesh waits on a node without it"),
        ),
        None => Finding::good(Code::Programs, format!("{name} runs on every node")),
    })
}

/// Looks at the certificate in one file of a Secret, and returns the Secret. That one must not read Secrets is no fault of
/// the installation's.
async fn certificate(
    cluster: &Cluster,
    home: &str,
    name: &str,
    what: &str,
    notice: i64,
    file: &str,
    findings: &mut Vec<Finding>,
) -> Option<Value> {
    let secret = match cluster.get(SECRET, Some(home), name).await {
        Ok(Some(secret)) => secret,
        Ok(None) => {
            findings.push(Finding::bad(
                Code::CaCertificate,
                format!("{what} is missing: there is no Secret {home}/{name}"),
                format!("kubectl logs -n {home} deployment/{}", Part::ControlPlane.name()),
            ));
            return None;
        }
        Err(error) => {
            findings.push(Finding::warning(
                Code::CaCertificate,
                format!("{what} can't be looked at: {error:#}"),
                "ask somebody who may read Secrets",
            ));
            return None;
        }
    };
    let pem: Option<k8s_openapi::ByteString> =
        secret.pointer("/data").and_then(|data| data.get(file)).and_then(|text| serde_json::from_value(text.clone()).ok());
    let read = pem.ok_or_else(|| anyhow!("it has no {file}")).and_then(|pem| validity(&pem.0));
    findings.push(match read {
        Ok(validity) => ends(what, &validity, duration::now(), notice),
        Err(error) => Finding::bad(
            Code::CaCertificate,
            format!("{what} (Secret {home}/{name}) can't be read: {error:#}"),
            "put a certificate in PEM there",
        ),
    });
    Some(secret)
}

/// What is to be said of a certificate, `notice` seconds before it ends or when nine tenths of its life are over.
fn ends(what: &str, validity: &Validity, now: i64, notice: i64) -> Finding {
    let left = validity.not_after - now;
    let brief = duration::brief(left.abs());
    let notice = notice.max((validity.not_after - validity.not_before) / 10);
    if left <= 0 {
        Finding::bad(
            Code::CaCertificate,
            format!("{what} ended {brief} ago"),
            "the injector renews its own, and its logs say why it does not; a CA is yours to renew: replace its Secret, then restart weft-control-plane",
        )
    } else if validity.not_before > now {
        Finding::bad(
            Code::CaCertificate,
            format!("{what} is not valid yet"),
            "the clocks of the cluster and of this machine differ: set them right",
        )
    } else if left < notice {
        Finding::warning(
            Code::CaCertificate,
            format!("{what} ends in {brief}"),
            "the injector renews its own, and its logs say why it does not; a CA is yours to renew: replace its Secret, then restart weft-control-plane",
        )
    } else {
        Finding::good(Code::CaCertificate, format!("{what} ends in {brief}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_told_about_before_it_ends() {
        let day = 86_400;
        let of = |now: i64, notice: i64| ends("it", &Validity { not_before: 0, not_after: 100 * day }, now, notice).shown();
        assert_eq!(of(0, 0), "✓ it ends in 100d0h\n");
        assert!(of(91 * day, 0).starts_with("! it ends in 9d0h\n"));
        assert!(of(75 * day, 30 * day).starts_with("! it ends in 25d0h\n"));
        assert!(of(101 * day, 0).starts_with("✗ it ended 1d0h ago\n"));
        assert!(of(-day, 0).starts_with("✗ it is not valid yet\n"));
    }
}
