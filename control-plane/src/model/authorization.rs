//! Which authorization policies apply to which pod, and what becomes of each.
//!
//! A policy that cannot be honoured is not left out. The last version of it that could be stays in force; where there is none, whatever was to come to what
//! the policy is for is refused, unless the policy would have changed no verdict anyway.

mod targets;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use prost::bytes::Bytes;
use weft_core::Namespace;
use weft_core::authorization::policy::{PostureFrom, Rule};
use weft_core::authorization::{Action, Policy, Posture};
use weft_core::policy::FEATURE_AUTHORIZATION;
use weft_core::service::ObjectRef;
use weft_core::wellknown::{ANNOTATION_DEFAULT_POLICY, CONTROL_PLANE_NAMESPACE};
use weft_proto::{MAX_POLICIES, MAX_POLICY_BYTES, bound, policy_bytes, posture_to, v1};

use super::Model;
use super::modes::MtlsPolicies;
use super::status::{Outcome, Refusal};
use crate::objects::authorization::{AuthorizationObject, Content, Scope, Unhonoured};
use crate::objects::traffic::ParentRef;
use crate::objects::{ObjectKey, PodObject};
use crate::snapshot::AuthorizationFacts;
use crate::watch::Problem;
use targets::Targets;

/// All policies, by what they are for.
pub(super) struct Authorizations {
    /// What holds where neither a namespace nor a policy says anything.
    posture: Posture,
    /// The namespace of the installation: policies for the whole mesh stand there.
    pub(super) home: Namespace,
    held: BTreeMap<ObjectRef, Held>,
    /// Policies that are in force, by what they are for.
    mesh: BTreeSet<ObjectRef>,
    namespaces: HashMap<Namespace, BTreeSet<ObjectRef>>,
    workloads: HashMap<Namespace, BTreeSet<ObjectRef>>,
    services: HashMap<ObjectRef, BTreeSet<ObjectRef>>,
    /// Policies in force that have clauses about tokens.
    about_tokens: BTreeSet<ObjectRef>,
    externals: HashMap<ObjectRef, BTreeSet<ObjectRef>>,
    targets: Targets,
}

impl Default for Authorizations {
    fn default() -> Self {
        let home = CONTROL_PLANE_NAMESPACE.parse().expect("it is a namespace");
        Self::new(Posture::default(), home)
    }
}

/// A version that can be honoured, and its generation.
#[derive(Clone)]
pub(super) struct Good {
    content: Arc<Content>,
    generation: i64,
}

struct Held {
    object: Arc<AuthorizationObject>,
    /// Why it cannot be honoured as it stands.
    refusal: Option<Unhonoured>,
    /// It, or the last one before it that could be honoured.
    good: Option<Good>,
    /// None: nothing, since it would change no verdict.
    in_force: Option<InForce>,
}

/// What pods get.
struct InForce {
    scope: Scope,
    /// Encoded once for all of them.
    bytes: Bytes,
    /// Of an Allow for a Service: the same without its rules, for ports of which it is not known whether they were meant.
    closing: Option<Bytes>,
    /// The issuers that its clauses about tokens name.
    issuers: BTreeSet<Arc<str>>,
}

impl InForce {
    fn new(scope: Scope, policy: &Policy) -> Self {
        let is_closed = matches!(scope, Scope::Service(_)) && policy.action == Action::Allow;
        let closing = is_closed.then(|| policy_bytes(&Policy { rules: vec![], ..policy.clone() }));
        let peers = policy.rules.iter().flat_map(|rule| &rule.from);
        let issuers = peers.flat_map(|peer| peer.jwt.iter().chain(&peer.not_jwt)).map(|token| token.issuer.clone()).collect();
        Self { scope, bytes: policy_bytes(policy), closing, issuers }
    }

    /// Refuses everything in the stead of a policy that cannot be honoured.
    fn refusing(id: &ObjectRef, why: &Unhonoured) -> Self {
        let policy = Policy {
            id: id.clone(),
            target: why.scope.target(),
            action: Action::Deny,
            dry_run: false,
            rules: vec![Rule::default()],
            ports: None,
            broken: Some(told(why).into()),
        };
        Self::new(why.scope.clone(), &policy)
    }
}

/// Why a policy cannot be honoured, not at any length.
fn told(why: &Unhonoured) -> String {
    format!("{}: {}", why.field, why.message).chars().take(300).collect()
}

impl Authorizations {
    pub(super) fn new(posture: Posture, home: Namespace) -> Self {
        Self {
            posture,
            home,
            held: BTreeMap::new(),
            mesh: BTreeSet::new(),
            namespaces: HashMap::new(),
            workloads: HashMap::new(),
            services: HashMap::new(),
            about_tokens: BTreeSet::new(),
            externals: HashMap::new(),
            targets: Targets::default(),
        }
    }

    /// The last version of a policy that could be honoured.
    pub(super) fn last_good(&self, id: &ObjectRef) -> Option<Good> {
        self.held.get(id)?.good.clone()
    }

    /// Takes a policy in. Where it cannot be honoured, `last` stays in force.
    pub(super) fn insert(&mut self, object: Arc<AuthorizationObject>, last: Option<Good>) {
        let id = object.id.clone();
        let refusal = match &object.content {
            Ok(content) => self.out_of_place(&id, content),
            Err(why) => Some(self.at_home(&id, why.clone())),
        };
        let good = match (&refusal, &object.content) {
            (None, Ok(content)) => Some(Good { content: content.clone(), generation: object.generation }),
            _ => last,
        };
        let in_force = match (&good, &refusal) {
            (Some(good), _) => Some(InForce::new(good.content.scope.clone(), &good.content.policy)),
            (None, Some(why)) if !why.is_harmless => Some(InForce::refusing(&id, why)),
            (None, _) => None,
        };
        if let Some(in_force) = &in_force {
            self.index(&in_force.scope).insert(id.clone());
            if !in_force.issuers.is_empty() {
                self.about_tokens.insert(id.clone());
            }
        }
        self.held.insert(id, Held { object, refusal, good, in_force });
    }

    pub(super) fn remove(&mut self, id: &ObjectRef) {
        let Some(in_force) = self.held.remove(id).and_then(|held| held.in_force) else { return };
        self.index(&in_force.scope).remove(id);
        self.about_tokens.remove(id);
        match &in_force.scope {
            Scope::Mesh => {}
            Scope::Namespace(namespace) => drop_empty(&mut self.namespaces, namespace),
            Scope::Workloads(namespace, _) => drop_empty(&mut self.workloads, namespace),
            Scope::Service(service) => drop_empty(&mut self.services, service),
            Scope::External(external) => drop_empty(&mut self.externals, external),
        }
    }

    fn index(&mut self, scope: &Scope) -> &mut BTreeSet<ObjectRef> {
        match scope {
            Scope::Mesh => &mut self.mesh,
            Scope::Namespace(namespace) => self.namespaces.entry(namespace.clone()).or_default(),
            Scope::Workloads(namespace, _) => self.workloads.entry(namespace.clone()).or_default(),
            Scope::Service(service) => self.services.entry(service.clone()).or_default(),
            Scope::External(external) => self.externals.entry(external.clone()).or_default(),
        }
    }

    /// Whether a policy is for the whole mesh and stands where it may not say so.
    fn out_of_place(&self, id: &ObjectRef, content: &Content) -> Option<Unhonoured> {
        let why = Unhonoured {
            field: "spec.targetRef.kind".into(),
            message: format!("a policy for the whole mesh stands in the namespace of the installation, which is {}", self.home),
            scope: content.scope.clone(),
            is_harmless: content.policy.dry_run || content.policy.action == Action::Audit,
        };
        (content.scope == Scope::Mesh && id.namespace != self.home).then(|| self.at_home(id, why))
    }

    /// What stands outside of the home refuses nothing outside of its own namespace.
    fn at_home(&self, id: &ObjectRef, mut why: Unhonoured) -> Unhonoured {
        if why.scope == Scope::Mesh && id.namespace != self.home {
            why.scope = Scope::Namespace(id.namespace.clone());
        }
        why
    }

    /// The namespace of the installation.
    pub(super) fn home(&self) -> &Namespace {
        &self.home
    }

    /// Policies that are for an ExternalService, whether or not it is there.
    pub(super) fn for_external(&self, id: &ObjectRef) -> impl Iterator<Item = &ObjectRef> {
        self.externals.get(id).into_iter().flatten()
    }

    /// The same, as pods get them.
    pub(super) fn of_external(&self, id: &ObjectRef) -> Vec<v1::BoundPolicy> {
        self.for_external(id).filter_map(|id| Some(bound(self.held.get(id)?.in_force.as_ref()?.bytes.clone(), None))).collect()
    }

    /// The ExternalService that a policy is for.
    pub(super) fn external_of(&self, policy: &ObjectRef) -> Option<&ObjectRef> {
        match &self.held.get(policy)?.in_force.as_ref()?.scope {
            Scope::External(id) => Some(id),
            _ => None,
        }
    }

    /// Policies in force that are for a Service.
    pub(super) fn of_service(&self, service: &ObjectRef) -> impl Iterator<Item = &ObjectRef> {
        self.services.get(service).into_iter().flatten()
    }

    /// The issuers that a policy in force names.
    pub(super) fn names(&self, id: &ObjectRef) -> impl Iterator<Item = &Arc<str>> {
        self.held.get(id).and_then(|held| held.in_force.as_ref()).into_iter().flat_map(|it| &it.issuers)
    }

    /// The policies in force that name an issuer.
    pub(super) fn naming(&self, issuer: &Arc<str>) -> Vec<ObjectRef> {
        self.about_tokens.iter().filter(|id| self.names(id).any(|name| name == issuer)).cloned().collect()
    }

    /// The issuers that the policies of a pod name, each with whether one for the whole mesh names it.
    pub(super) fn named_by(&self, policies: &[v1::BoundPolicy]) -> BTreeMap<Arc<str>, bool> {
        let mut named = BTreeMap::new();
        for it in self.about_tokens.iter().filter_map(|id| self.held.get(id)?.in_force.as_ref()) {
            // A policy is encoded once, and its bytes are shared.
            if policies.iter().any(|p| p.policy.as_ptr() == it.bytes.as_ptr()) {
                for issuer in &it.issuers {
                    *named.entry(issuer.clone()).or_default() |= it.scope == Scope::Mesh;
                }
            }
        }
        named
    }

    /// What a policy refuses or allows, and why it is so: for explanations.
    pub(super) fn facts(&self, id: &ObjectRef) -> Option<AuthorizationFacts> {
        let held = self.held.get(id)?;
        let scope = match (&held.in_force, &held.object.content) {
            (Some(in_force), _) => in_force.scope.clone(),
            (None, Ok(content)) => content.scope.clone(),
            (None, Err(why)) => why.scope.clone(),
        };
        let content = held.good.as_ref().map(|good| &good.content).or(held.object.content.as_ref().ok());
        Some(AuthorizationFacts {
            scope,
            action: content.map(|content| content.policy.action),
            dry_run: content.is_some_and(|content| content.policy.dry_run),
            broken: held.refusal.as_ref().map(told),
            is_in_force: held.in_force.is_some(),
            is_last_good: held.good.is_some(),
        })
    }
}

fn drop_empty<K: std::hash::Hash + Eq>(index: &mut HashMap<K, BTreeSet<ObjectRef>>, key: &K) {
    if index.get(key).is_some_and(BTreeSet::is_empty) {
        index.remove(key);
    }
}

impl Model {
    /// What a mesh has by default, and in which namespace policies for the whole of it stand.
    #[must_use]
    pub fn with_authorization(mut self, posture: Posture, home: Namespace) -> Self {
        self.modes = MtlsPolicies::new(home.clone());
        self.authorizations = Authorizations::new(posture, home);
        self
    }

    /// The pods that a policy is for.
    pub(super) fn touched_by_authorization(&self, id: &ObjectRef) -> Vec<ObjectRef> {
        let Some(in_force) = self.authorizations.held.get(id).and_then(|held| held.in_force.as_ref()) else { return vec![] };
        let of = |namespace: &Namespace| self.pods.get(namespace).into_iter().flat_map(BTreeMap::values);
        let ids = |pods: &mut dyn Iterator<Item = &Arc<PodObject>>| pods.map(|pod| pod.id.clone()).collect();
        match &in_force.scope {
            Scope::Mesh => ids(&mut self.pods.values().flat_map(BTreeMap::values)),
            Scope::Namespace(namespace) => ids(&mut of(namespace)),
            Scope::Workloads(namespace, labels) => ids(&mut of(namespace).filter(|pod| selects(labels, pod))),
            Scope::Service(service) => self.targeted(service),
            Scope::External(external) => self.viewers(external),
        }
    }

    /// Writes into a pod's inbound policy who may call the pod. Policies of the mesh come first, then those of its namespace, of selectors, and of
    /// services; each by namespace and name.
    pub(super) fn authorize(&self, pod: &PodObject, inbound: &mut v1::InboundPolicy, problems: &mut Vec<Problem>) {
        let (posture, from) = self.posture_of(&pod.id.namespace, problems);
        let policies = self.policies_of(pod, problems);
        if posture == Posture::AllowAll && policies.is_empty() {
            return;
        }
        let size: usize = policies.iter().map(|p| p.policy.len()).sum();
        if policies.len() > MAX_POLICIES || size > MAX_POLICY_BYTES {
            let count = policies.len();
            problems.push(Problem {
                place: format!("Pod {}", pod.id),
                field: String::new(),
                message: format!(
                    "{count} authorization policies with {size} bytes apply to it; at most {MAX_POLICIES} with {MAX_POLICY_BYTES} bytes are taken, \
                     and everything is refused until then: put several into one, or bind them to fewer pods"
                ),
            });
            // No version has this, so that the pod's sidecar refuses everything, and says why.
            inbound.required_features.push(format!("room for {count} authorization policies with {size} bytes"));
            return;
        }
        inbound.required_features.push(FEATURE_AUTHORIZATION.to_owned());
        inbound.authorization = Some(v1::Authorization { policies, ..posture_to(posture, &from) });
    }

    /// The policies that a pod has, each once.
    pub(super) fn authorizing(&self, pod: &PodObject) -> BTreeSet<&ObjectRef> {
        let (all, namespace) = (&self.authorizations, &pod.id.namespace);
        let selects_it = |id: &&ObjectRef| {
            let in_force = all.held.get(id).and_then(|held| held.in_force.as_ref());
            in_force.is_some_and(|it| matches!(&it.scope, Scope::Workloads(_, labels) if selects(labels, pod)))
        };
        let own = all.namespaces.get(namespace).into_iter().flatten();
        let selecting = all.workloads.get(namespace).into_iter().flatten().filter(selects_it);
        all.mesh.iter().chain(own).chain(selecting).chain(self.targeting(pod)).collect()
    }

    fn policies_of(&self, pod: &PodObject, problems: &mut Vec<Problem>) -> Vec<v1::BoundPolicy> {
        let (all, namespace) = (&self.authorizations, &pod.id.namespace);
        let in_force = |id: &ObjectRef| all.held.get(id)?.in_force.as_ref();
        let whole = |id: &ObjectRef| Some(bound(in_force(id)?.bytes.clone(), None));
        let selects_it = |id: &&ObjectRef| {
            in_force(id).is_some_and(|it| matches!(&it.scope, Scope::Workloads(_, labels) if selects(labels, pod)))
        };
        let mesh = all.mesh.iter().filter_map(whole);
        let own = all.namespaces.get(namespace).into_iter().flatten().filter_map(whole);
        let selecting = all.workloads.get(namespace).into_iter().flatten().filter(selects_it).filter_map(whole);
        let mut found: Vec<v1::BoundPolicy> = mesh.chain(own).chain(selecting).collect();
        self.add_targeted(pod, &mut found, problems);
        found
    }

    /// The namespace's own, or the mesh's. A word that is none denies, and is reported.
    fn posture_of(&self, namespace: &Namespace, problems: &mut Vec<Problem>) -> (Posture, PostureFrom) {
        let word = self.namespaces.get(namespace).and_then(|n| n.annotations.get(ANNOTATION_DEFAULT_POLICY));
        let Some(word) = word else { return (self.authorizations.posture, PostureFrom::Mesh) };
        let posture = word.parse().unwrap_or_else(|e: weft_core::authorization::policy::InvalidClause| {
            problems.push(Problem {
                place: format!("Namespace {namespace}"),
                field: format!("metadata.annotations[{ANNOTATION_DEFAULT_POLICY:?}]"),
                message: format!("{e}; deny is in force until then"),
            });
            Posture::Deny
        });
        (posture, PostureFrom::Namespace(namespace.clone()))
    }

    /// What became of a policy: always one entry, for what it is attached to.
    pub(super) fn authorization_entry(&self, key: &ObjectKey) -> Option<(i64, ParentRef, Outcome)> {
        let held = self.authorizations.held.get(&key.id)?;
        let scope = match (&held.good, &held.object.content, &held.refusal) {
            (Some(good), _, _) => &good.content.scope,
            (None, _, Some(why)) => &why.scope,
            (None, Ok(content), None) => &content.scope,
            (None, Err(why), None) => &why.scope,
        };
        let mut outcome = Outcome::default();
        if let Some(why) = &held.refusal {
            match &held.good {
                Some(good) => {
                    let refusal = Refusal::new("Invalid", why.field.clone(), why.message.clone());
                    outcome.fallen_back = Some((refusal, good.generation));
                }
                None => {
                    let until = match &held.in_force {
                        Some(_) => format!("; until it is mended, nothing gets in to {}", why.scope),
                        None => String::new(),
                    };
                    outcome.refused = Some(Refusal::new("Invalid", why.field.clone(), format!("{}{until}", why.message)));
                }
            }
        }
        match (scope, &outcome.refused) {
            (Scope::Service(id), None) => outcome.refused = self.lost_target(id),
            (Scope::External(id), None) if !self.externals.contains(id) => {
                let message = format!("there is no ExternalService {id}: nothing is enforced until then");
                outcome.refused = Some(Refusal::new("TargetNotFound", "spec.targetRef", message));
            }
            _ => {}
        }
        outcome.unresolved = self.unknown_issuers(&self.authorizations, &key.id, scope);
        Some((held.object.generation, self.attached_to(scope), outcome))
    }

    pub(super) fn attached_to(&self, scope: &Scope) -> ParentRef {
        let core = |kind: &str, namespace: Option<&Namespace>, name: String| ParentRef {
            group: Some(String::new()),
            kind: Some(kind.into()),
            namespace: namespace.map(ToString::to_string),
            name,
            section_name: None,
            port: None,
        };
        match scope {
            Scope::Mesh => ParentRef { group: Some("weft.dev".into()), ..core("Mesh", None, self.trust_domain.to_string()) },
            Scope::Namespace(namespace) | Scope::Workloads(namespace, _) => core("Namespace", None, namespace.to_string()),
            Scope::Service(id) => core("Service", Some(&id.namespace), id.name.to_string()),
            Scope::External(id) => {
                ParentRef { group: Some("weft.dev".into()), ..core("ExternalService", Some(&id.namespace), id.name.to_string()) }
            }
        }
    }
}

fn selects(labels: &BTreeMap<String, String>, pod: &PodObject) -> bool {
    labels.iter().all(|(name, value)| pod.labels.get(name) == Some(value))
}
