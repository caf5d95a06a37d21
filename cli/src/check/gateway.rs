//! Whether the cluster has Gateway API's kinds, which are not weft's to install, and weft's own.

use anyhow::Result;
use serde_json::Value;

use super::{Code, Finding};
use crate::install::cluster::{Cluster, Place};
use crate::install::kinds::{CRD, DEFINED};

/// The kinds of Gateway API that weft reads, with versions that it can read.
const READ: [(&str, &[&str]); 6] = [
    ("httproutes.gateway.networking.k8s.io", &["v1", "v1beta1"]),
    ("grpcroutes.gateway.networking.k8s.io", &["v1", "v1alpha2"]),
    ("tlsroutes.gateway.networking.k8s.io", &["v1", "v1alpha3", "v1alpha2"]),
    ("tcproutes.gateway.networking.k8s.io", &["v1", "v1alpha2"]),
    ("referencegrants.gateway.networking.k8s.io", &["v1", "v1beta1"]),
    ("xbackendtrafficpolicies.gateway.networking.x-k8s.io", &["v1alpha1"]),
];
const VERSION: &str = "gateway.networking.k8s.io/bundle-version";
const CHANNEL: &str = "gateway.networking.k8s.io/channel";

/// Looks at the definitions of all of them.
pub(super) async fn kinds(cluster: &Cluster) -> Result<Vec<Finding>> {
    if !cluster.may("get", CRD, None).await? {
        return Ok(vec![Finding::warning(
            Code::Kinds,
            "you may not look at CustomResourceDefinitions",
            "ask somebody who may whether Gateway API and weft's kinds are there",
        )]);
    }
    let mut definitions = Vec::new();
    for (name, _) in READ {
        definitions.extend(cluster.get(CRD, None, name).await?);
    }
    let mut findings = gateway(&definitions);
    for kind in DEFINED {
        let name = format!("{}.{}", kind.plural, kind.group());
        findings.push(if cluster.get(CRD, None, &name).await?.is_some() {
            Finding::good(Code::Kinds, format!("{} is defined", kind.kind))
        } else {
            Finding::bad(Code::Kinds, format!("there is no CustomResourceDefinition {name}"), "weft upgrade --apply makes it")
        });
    }
    Ok(findings)
}

/// What the definitions of Gateway API mean for routes.
fn gateway(definitions: &[Value]) -> Vec<Finding> {
    if definitions.is_empty() {
        return vec![Finding::good(Code::Kinds, "Gateway API is not installed: there are no routes, and nothing else needs it")];
    }
    let annotation = |definition: &Value, name: &str| -> String {
        let annotations = definition.pointer("/metadata/annotations");
        annotations.and_then(|all| all.get(name)).and_then(Value::as_str).unwrap_or("?").to_owned()
    };
    let mut findings = Vec::new();
    let (mut read, mut bundles) = (Vec::new(), Vec::new());
    for definition in definitions {
        let (name, kind) = (Place::of(definition).name, definition.pointer("/spec/names/kind").and_then(Value::as_str));
        let kind = kind.unwrap_or(name);
        let bundle = format!("{} ({})", annotation(definition, VERSION), annotation(definition, CHANNEL));
        if !bundles.contains(&bundle) {
            bundles.push(bundle);
        }
        let known = READ.iter().find(|(known, _)| *known == name).map_or(&[] as &[&str], |(_, versions)| versions);
        let served = served(definition);
        if served.iter().any(|version| known.contains(version)) {
            read.push(kind);
        } else {
            findings.push(Finding::warning(
                Code::Kinds,
                format!("{kind} is served as {}, of which weft reads none: it has no effect", served.join(", ")),
                format!("install a version of Gateway API that serves {}", known.join(" or ")),
            ));
        }
    }
    if bundles.len() > 1 {
        findings.push(Finding::warning(
            Code::Kinds,
            format!("Gateway API is installed in several versions: {}", bundles.join(", ")),
            "install all of it from one release and one channel",
        ));
    }
    if !read.is_empty() {
        findings.push(Finding::good(Code::Kinds, format!("Gateway API {}: weft reads {}", bundles.join(", "), read.join(", "))));
    }
    findings
}

/// The versions that a kind is served in.
fn served(definition: &Value) -> Vec<&str> {
    let versions = definition.pointer("/spec/versions").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    versions.iter().filter(|v| v["served"] == true).filter_map(|v| v["name"].as_str()).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn definition(plural: &str, kind: &str, served: &str, bundle: &str) -> Value {
        json!({
            "metadata": {
                "name": format!("{plural}.gateway.networking.k8s.io"),
                "annotations": {VERSION: bundle, CHANNEL: "standard"},
            },
            "spec": {
                "names": {"kind": kind},
                "versions": [{"name": "v1alpha0", "served": false}, {"name": served, "served": true}],
            },
        })
    }

    fn shown(findings: &[Finding]) -> Vec<String> {
        findings.iter().map(|f| f.shown().trim_end().to_owned()).collect()
    }

    #[test]
    fn what_is_there_and_read_is_told_with_its_version() {
        assert!(shown(&gateway(&[]))[0].starts_with("✓ Gateway API is not installed"));
        let http = definition("httproutes", "HTTPRoute", "v1", "v1.5.1");
        let grants = definition("referencegrants", "ReferenceGrant", "v1beta1", "v1.5.1");
        assert_eq!(
            shown(&gateway(&[http.clone(), grants])),
            ["✓ Gateway API v1.5.1 (standard): weft reads HTTPRoute, ReferenceGrant"]
        );
        let tls = definition("tlsroutes", "TLSRoute", "v2", "v9.0.0");
        let told = shown(&gateway(&[http, tls]));
        assert!(told[0].starts_with("! TLSRoute is served as v2, of which weft reads none"), "{told:?}");
        assert!(told[1].starts_with("! Gateway API is installed in several versions"), "{told:?}");
        assert_eq!(told.len(), 3);
    }
}
