//! Whether a cluster can have weft, asked before anything is changed.

use anyhow::Context;

use super::{Code, Finding};
use crate::install::apply::POD;
use crate::install::cluster::{Cluster, Place};
use crate::install::kinds::{CONFIG_MAP, DISRUPTION_BUDGET, Kind, LEASE, NAMESPACE, SECRET, WEBHOOK};
use crate::install::settings::Settings;
use crate::install::{KubeVersion, objects};

/// What the programs use besides what is installed.
const RESOURCES: [(&str, &str); 6] = [
    ("admissionregistration.k8s.io/v1", "mutatingwebhookconfigurations"),
    ("authentication.k8s.io/v1", "tokenreviews"),
    ("coordination.k8s.io/v1", "leases"),
    ("discovery.k8s.io/v1", "endpointslices"),
    ("apps/v1", "deployments"),
    ("networking.k8s.io/v1", "networkpolicies"),
];
/// Webhooks that put another mesh's proxy into pods.
const OTHER_MESHES: [(&str, &str); 4] = [
    ("istio-sidecar-injector", "Istio"),
    ("linkerd-proxy-injector", "Linkerd"),
    ("consul-connect-injector", "Consul"),
    ("kuma-admission-mutating", "Kuma"),
];

/// Looks at the server's version, its interfaces, the rights that an installation takes, and what may stand in its way.
pub(crate) async fn before(cluster: &Cluster, settings: &Settings) -> anyhow::Result<Vec<Finding>> {
    let mut findings = version(cluster, settings);
    findings.extend(interfaces(cluster).await?);
    findings.extend(rights(cluster, settings).await?);
    findings.extend(neighbours(cluster).await?);
    findings.extend(ca(cluster, settings).await?);
    Ok(findings)
}

fn version(cluster: &Cluster, settings: &Settings) -> Vec<Finding> {
    let version = cluster.version;
    if version < KubeVersion::OLDEST {
        return vec![Finding::bad(
            Code::KubernetesVersion,
            format!("the server's version is {version}"),
            format!("weft needs Kubernetes {} or later", KubeVersion::OLDEST),
        )];
    }
    let mut findings = vec![Finding::good(Code::KubernetesVersion, format!("Kubernetes {}", cluster.version_text))];
    if settings.native_sidecars == "auto" && version < KubeVersion::NATIVE_SIDECARS {
        findings.push(Finding::warning(
            Code::KubernetesVersion,
            format!(
                "Kubernetes {version} has no native sidecars: an app may start before its sidecar, and a Job in the mesh does \
                 not end by itself"
            ),
            format!(
                "upgrade to {} or later; if this server has them all the same, say --native-sidecars always",
                KubeVersion::NATIVE_SIDECARS
            ),
        ));
    }
    findings
}

async fn interfaces(cluster: &Cluster) -> anyhow::Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for (api_version, plural) in RESOURCES {
        if !cluster.serves(api_version, plural).await? {
            findings.push(Finding::bad(
                Code::Interfaces,
                format!("the server has no {plural} of {api_version}"),
                "switch it on at the API server (--runtime-config), or upgrade the cluster",
            ));
        }
    }
    let budgets = DISRUPTION_BUDGET;
    if cluster.version >= KubeVersion::POLICY_V1 && !cluster.serves(budgets.api_version, budgets.plural).await? {
        findings.push(Finding::bad(
            Code::Interfaces,
            format!("the server has no {} of {}", budgets.plural, budgets.api_version),
            "upgrade the cluster",
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::good(Code::Interfaces, "the server has every interface that weft uses"));
    }
    Ok(findings)
}

/// Every right that applying takes, and those that removing takes, each asked for once.
async fn rights(cluster: &Cluster, settings: &Settings) -> anyhow::Result<Vec<Finding>> {
    let mut kinds: Vec<Kind> = Vec::new();
    for object in objects(settings, cluster.version) {
        let kind = Kind::of(&object).context("what is rendered is of a known kind")?;
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    let home = Some(settings.namespace.as_str());
    let mut lacking = Vec::new();
    let mut later = Vec::new();
    for kind in kinds {
        for verb in ["get", "create", "patch"] {
            if !cluster.may(verb, kind, home).await? {
                lacking.push(format!("{verb} {}", kind.plural));
            }
        }
        // What the control plane writes into other namespaces goes too.
        for (verb, namespace) in [("list", None), ("delete", home.filter(|_| kind != CONFIG_MAP))] {
            if !cluster.may(verb, kind, namespace).await? {
                later.push(format!("{verb} {}", kind.plural));
            }
        }
    }
    // What the programs make, and what is looked at while they start.
    for (verb, kind, namespace) in
        [("delete", SECRET, home), ("list", SECRET, home), ("delete", LEASE, home), ("list", POD, None)]
    {
        if !cluster.may(verb, kind, namespace).await? {
            later.push(format!("{verb} {}", kind.plural));
        }
    }
    let remedy = "install as an administrator of the cluster (ClusterRole cluster-admin)";
    if !lacking.is_empty() {
        lacking.extend(later);
        return Ok(vec![Finding::bad(Code::Rights, format!("you may not: {}", lacking.join(", ")), remedy)]);
    }
    let mut findings = vec![Finding::good(Code::Rights, "you may install it")];
    if !later.is_empty() {
        findings.push(Finding::warning(
            Code::Rights,
            format!("you may not check or remove it later: {}", later.join(", ")),
            format!("have who may run weft check and weft uninstall, or {remedy}"),
        ));
    }
    Ok(findings)
}

async fn neighbours(cluster: &Cluster) -> anyhow::Result<Vec<Finding>> {
    let all = cluster.list(WEBHOOK, None, "").await?;
    let found = OTHER_MESHES.iter().filter_map(|(begins, mesh)| {
        let name = all.iter().map(|one| Place::of(one).name).find(|name| name.starts_with(*begins))?;
        Some(Finding::warning(
            Code::OtherMesh,
            format!("{mesh} is installed (MutatingWebhookConfiguration {name})"),
            "a pod can be in one mesh only: do not enable both in one namespace",
        ))
    });
    Ok(found.collect())
}

/// A CA that is the user's own must be there before the control plane looks for it.
async fn ca(cluster: &Cluster, settings: &Settings) -> anyhow::Result<Vec<Finding>> {
    let (home, name) = (settings.namespace.as_str(), settings.ca_secret.as_str());
    if name == Settings::default().ca_secret || !cluster.may("get", SECRET, Some(home)).await? {
        return Ok(Vec::new());
    }
    let is_there = cluster.get(NAMESPACE, None, home).await?.is_some() && cluster.get(SECRET, Some(home), name).await?.is_some();
    if is_there {
        return Ok(vec![Finding::good(Code::OwnCa, format!("the CA is there: Secret {home}/{name}"))]);
    }
    Ok(vec![Finding::bad(
        Code::OwnCa,
        format!("there is no Secret {home}/{name}, which is to hold the CA"),
        "make it first, with tls.crt, tls.key and ca.crt (a Certificate of cert-manager with isCA makes one), or leave out \
         --ca-secret",
    )])
}
