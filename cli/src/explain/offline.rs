//! A mesh as its manifests have it, asked as if it ran.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use anyhow::{anyhow, bail};
use serde_json::{Value, json};
use weft_control_plane::explain::explain;
use weft_control_plane::model::Model;
use weft_control_plane::objects::{Object, ObjectKey, Transport};
use weft_control_plane::snapshot::{Entry, Snapshot};
use weft_control_plane::watch::Change;
use weft_control_plane::watch::parse::{parse, parse_each};
use weft_core::authorization::Posture;
use weft_core::egress::EgressDefault;
use weft_core::policy::MtlsMode;
use weft_core::service::ObjectRef;
use weft_core::wellknown::{CONTROL_PLANE_NAMESPACE, DEFAULT_TRUST_DOMAIN, LABEL_INJECT, SIDECAR_CONTAINER};
use weft_core::{Namespace, SpiffeId, TrustDomain};
use weft_proto::v1;
use weft_proto::v1::resource::Body;

use super::told::{PairFlip, verdicts};
use crate::fleet::Cluster;
use crate::record;
use crate::validate::{self, File};

/// Objects, and what the mesh has by default.
#[derive(Debug, Clone)]
pub(super) struct Offline {
    objects: BTreeMap<ObjectKey, Object>,
    trust_domain: TrustDomain,
    mtls: MtlsMode,
    default_policy: Posture,
    egress: EgressDefault,
    /// The namespace of the installation.
    system: Namespace,
}

impl Offline {
    /// What a cluster's control plane goes by.
    pub(super) fn of_cluster(cluster: Cluster) -> anyhow::Result<Self> {
        let said =
            |flag| cluster.flag(flag).ok_or_else(|| anyhow!("the control plane's Deployment does not say --{flag}: upgrade it"));
        Ok(Self {
            trust_domain: said("trust-domain")?.parse()?,
            mtls: said("mtls")?.parse()?,
            default_policy: said("default-policy")?.parse()?,
            // One of an older version lets everything out.
            egress: cluster.flag("egress").map_or(Ok(EgressDefault::Allow), str::parse)?,
            system: cluster.flag("kube-namespace").unwrap_or(CONTROL_PLANE_NAMESPACE).parse()?,
            objects: cluster.objects.into_iter().map(|object| (object.key(), object)).collect(),
        })
    }

    pub(super) fn of(named: &[PathBuf]) -> anyhow::Result<Self> {
        let read = validate::read(named, true)?;
        let usual = (MtlsMode::Permissive, Posture::AllowAll, EgressDefault::Allow);
        let (mtls, default_policy, egress) = read.defaults.unwrap_or(usual);
        let (trust_domain, system) = (DEFAULT_TRUST_DOMAIN.parse()?, CONTROL_PLANE_NAMESPACE.parse()?);
        Ok(Self { objects: objects(&read.files)?, trust_domain, mtls, default_policy, egress, system })
    }

    /// With what the command line says.
    pub(super) fn with_defaults(mut self, mtls: Option<MtlsMode>, default_policy: Option<Posture>) -> Self {
        self.mtls = mtls.unwrap_or(self.mtls);
        self.default_policy = default_policy.unwrap_or(self.default_policy);
        self
    }

    /// With what the command line says of destinations outside.
    pub(super) fn with_egress(mut self, egress: Option<EgressDefault>) -> Self {
        self.egress = egress.unwrap_or(self.egress);
        self
    }

    /// With what a mesh that runs says of itself.
    pub(super) fn of_mesh(
        self,
        trust_domain: TrustDomain,
        mtls: MtlsMode,
        default_policy: Posture,
        egress: EgressDefault,
    ) -> Self {
        Self { trust_domain, mtls, default_policy, egress, ..self }
    }

    /// With further manifests, each in the place of one with its name.
    pub(super) fn with(mut self, named: &[PathBuf]) -> anyhow::Result<Self> {
        self.objects.extend(objects(&validate::read(named, true)?.files)?);
        Ok(self)
    }

    pub(super) fn explain(&self, question: &v1::ExplainRequest) -> anyhow::Result<v1::ExplainResponse> {
        Ok(explain(&self.snapshot(), &self.trust_domain, question)?)
    }

    /// The identity of a pod, by its service account.
    pub(super) fn identity(&self, pod: &ObjectRef) -> Option<SpiffeId> {
        record::identity(self.objects.values(), &self.trust_domain, pod)
    }

    pub(super) fn domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// What the control plane makes of it.
    pub(super) fn snapshot(&self) -> Snapshot {
        let trust = Entry::new(Body::Trust(v1::TrustBundle::default()));
        let mesh = Entry::new(Body::Mesh(v1::Mesh::default()));
        let mut model = Model::new(self.trust_domain.clone(), self.mtls, trust, mesh)
            .with_authorization(self.default_policy, self.system.clone())
            .with_egress(self.egress);
        model.apply(self.objects.values().cloned().map(Change::Upsert).collect());
        model.snapshot().clone()
    }

    /// Every pair of a caller and a service's port of which another answer is given with `after`, as far as it is known before any request. Callers are the
    /// service accounts that have pods, and whoever has none.
    pub(super) fn flips(
        &self,
        after: &Self,
        from: Option<&Caller>,
        to: Option<&(ObjectRef, u16)>,
    ) -> anyhow::Result<Vec<PairFlip>> {
        let (old, new) = (self.snapshot(), after.snapshot());
        let accounts = old.pods.iter().chain(&new.pods);
        let accounts = accounts.map(|(pod, facts)| Caller::Account(pod.namespace.to_string(), facts.service_account.clone()));
        let callers: BTreeSet<Caller> = match from {
            Some(caller) => BTreeSet::from([caller.clone()]),
            None => accounts.chain([Caller::Nobody]).collect(),
        };
        let services: BTreeSet<(ObjectRef, u16)> = match to {
            Some(to) => BTreeSet::from([to.clone()]),
            None => self.objects.values().chain(after.objects.values()).flat_map(ports).collect(),
        };
        let pairs = callers.len() * services.len();
        if pairs > MAX_PAIRS {
            bail!("{pairs} pairs of callers and services; at most {MAX_PAIRS} are compared: name one with --from or --to");
        }
        let mut flips = Vec::new();
        for caller in &callers {
            for (service, port) in &services {
                let question = caller.asks(service, *port);
                let answer = |snapshot, domain| explain(snapshot, domain, &question).map(|r| verdicts(&r)).unwrap_or_default();
                let (before, now) = (answer(&old, &self.trust_domain), answer(&new, &after.trust_domain));
                if before != now {
                    let to = format!("{service}:{port}");
                    flips.push(PairFlip { from: caller.to_string(), to, before: joined(&before), after: joined(&now) });
                }
            }
        }
        Ok(flips)
    }
}

/// The most pairs of a caller and a service's port that are compared.
const MAX_PAIRS: usize = 100_000;

/// Who calls: nobody in particular comes first.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Caller {
    Nobody,
    /// Namespace and service account.
    Account(String, String),
}

impl Caller {
    fn asks(&self, service: &ObjectRef, port: u16) -> v1::ExplainRequest {
        let from = match self {
            Self::Account(namespace, name) => Some(v1::ObjectRef { namespace: namespace.clone(), name: name.clone() }),
            Self::Nobody => None,
        };
        v1::ExplainRequest {
            unauthenticated: from.is_none(),
            from,
            to: Some(service.into()),
            port: port.into(),
            ..Default::default()
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Account(namespace, name) => write!(f, "{namespace}/{name}"),
            Self::Nobody => f.write_str("unauthenticated"),
        }
    }
}

/// The TCP ports of a Service.
fn ports(object: &Object) -> Vec<(ObjectRef, u16)> {
    let Object::Service(service) = object else { return vec![] };
    let tcp = service.spec.ports.iter().filter(|p| p.protocol == Transport::Tcp);
    tcp.map(|p| (service.id.clone(), p.port)).collect()
}

/// The different verdicts of a service's pods; none where nobody answers.
fn joined(verdicts: &BTreeMap<String, &'static str>) -> String {
    let different: BTreeSet<&str> = verdicts.values().copied().collect();
    if different.is_empty() { "no answer".to_owned() } else { different.into_iter().collect::<Vec<_>>().join(", ") }
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
