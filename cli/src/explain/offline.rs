//! A mesh as its manifests have it, asked as if it ran.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{anyhow, bail};
use serde_json::{Value, json};
use weft_control_plane::explain::explain;
use weft_control_plane::model::Model;
use weft_control_plane::objects::{Object, ObjectKey};
use weft_control_plane::snapshot::Entry;
use weft_control_plane::watch::Change;
use weft_control_plane::watch::parse::{parse, parse_each};
use weft_core::TrustDomain;
use weft_core::authorization::Posture;
use weft_core::policy::MtlsMode;
use weft_core::wellknown::{CONTROL_PLANE_NAMESPACE, DEFAULT_TRUST_DOMAIN, LABEL_INJECT, SIDECAR_CONTAINER};
use weft_proto::v1;
use weft_proto::v1::resource::Body;

use crate::validate::{self, File};

/// Objects, and what the mesh has by default.
#[derive(Debug, Clone)]
pub(super) struct Offline {
    objects: BTreeMap<ObjectKey, Object>,
    trust_domain: TrustDomain,
    mtls: MtlsMode,
    default_policy: Posture,
}

impl Offline {
    pub(super) fn of(named: &[PathBuf]) -> anyhow::Result<Self> {
        let read = validate::read(named, true)?;
        let (mtls, default_policy) = read.defaults.unwrap_or((MtlsMode::Permissive, Posture::AllowAll));
        let trust_domain = DEFAULT_TRUST_DOMAIN.parse()?;
        Ok(Self { objects: objects(&read.files)?, trust_domain, mtls, default_policy })
    }

    /// With what the command line says.
    pub(super) fn with_defaults(mut self, mtls: Option<MtlsMode>, default_policy: Option<Posture>) -> Self {
        self.mtls = mtls.unwrap_or(self.mtls);
        self.default_policy = default_policy.unwrap_or(self.default_policy);
        self
    }

    /// With what a mesh that runs says of itself.
    pub(super) fn of_mesh(self, trust_domain: TrustDomain, mtls: MtlsMode, default_policy: Posture) -> Self {
        Self { trust_domain, mtls, default_policy, ..self }
    }

    /// With further manifests, each in the place of one with its name.
    pub(super) fn with(mut self, named: &[PathBuf]) -> anyhow::Result<Self> {
        self.objects.extend(objects(&validate::read(named, true)?.files)?);
        Ok(self)
    }

    pub(super) fn explain(&self, question: &v1::ExplainRequest) -> anyhow::Result<v1::ExplainResponse> {
        let trust = Entry::new(Body::Trust(v1::TrustBundle::default()));
        let mesh = Entry::new(Body::Mesh(v1::Mesh::default()));
        let mut model = Model::new(self.trust_domain.clone(), self.mtls, trust, mesh)
            .with_authorization(self.default_policy, CONTROL_PLANE_NAMESPACE.parse()?);
        model.apply(self.objects.values().cloned().map(Change::Upsert).collect());
        Ok(explain(model.snapshot(), &self.trust_domain, question)?)
    }
}

/// Every object. One that cannot be read might be what decides: there is no answer then.
fn objects(files: &[File]) -> anyhow::Result<BTreeMap<ObjectKey, Object>> {
    let mut all = BTreeMap::new();
    let mut workloads = 0;
    for (file, text) in files {
        for part in parse_each(file, text) {
            let object = match part.object {
                Ok(object) => object,
                Err(problem) if validate::is_others(part.text) => match pod(part.text, workloads) {
                    Some(text) => {
                        workloads += 1;
                        let mut read =
                            parse(file, &text.to_string()).map_err(|_| anyhow!("{problem}: its template makes no pod"))?;
                        read.remove(0)
                    }
                    None => continue,
                },
                Err(problem) => bail!("{problem}"),
            };
            let key = object.key();
            if all.insert(key.clone(), object).is_some() {
                bail!("{file}:{}: {key} stands twice: remove one of them", part.line);
            }
        }
    }
    Ok(all)
}

/// The pod that a controller's template would make, with a sidecar unless its label says otherwise; none for what has no template. Its address is of a range
/// for benchmarks (RFC 2544), and differs for each.
fn pod(text: &str, index: usize) -> Option<Value> {
    let object: Value = serde_saphyr::from_str(text).ok()?;
    let template = ["/spec/template", "/spec/jobTemplate/spec/template"].iter().find_map(|path| object.pointer(path))?;
    let name = object.pointer("/metadata/name")?.as_str()?;
    let mut spec = template.get("spec")?.clone();
    let injected = template.pointer("/metadata/labels").and_then(|labels| labels.get(LABEL_INJECT)) != Some(&json!("disabled"));
    if injected && let Some(containers) = spec.get_mut("containers").and_then(Value::as_array_mut) {
        containers.push(json!({ "name": SIDECAR_CONTAINER }));
    }
    let address = std::net::Ipv4Addr::from(u32::from(std::net::Ipv4Addr::new(198, 18, 0, 1)) + u32::try_from(index).ok()?);
    Some(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": object.pointer("/metadata/namespace").cloned().unwrap_or_else(|| "default".into()),
            "labels": template.pointer("/metadata/labels").cloned().unwrap_or_else(|| json!({})),
            "annotations": template.pointer("/metadata/annotations").cloned().unwrap_or_else(|| json!({})),
        },
        "spec": spec,
        "status": { "phase": "Running", "podIP": address.to_string() },
    }))
}
