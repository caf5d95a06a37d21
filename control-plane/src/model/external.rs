//! External services: which pods see which, with the policies that are for them, and what a namespace has by default.
//!
//! One that cannot be honoured is as the last version of it that could be; without such a version nobody may go to those of its hosts and ports that can
//! be read: it may have been to say how they are dialled, or who may.

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::bytes::Bytes;
use weft_core::authorization::Posture;
use weft_core::authorization::policy::{Action, Policy, PostureFrom, Rule, Target};
use weft_core::egress::{EgressDefault, External, FEATURE_EGRESS, FEATURE_EGRESS_PEER, InvalidEgress, Origination};
use weft_core::service::ObjectRef;
use weft_core::wellknown::ANNOTATION_EGRESS;
use weft_core::{Namespace, TrustDomain};
use weft_proto::{
    MAX_EXTERNAL_BYTES, MAX_EXTERNALS, MAX_POLICIES, MAX_POLICY_BYTES, egress_to, external_bytes, policy_bytes, posture_to, v1,
};

use super::Model;
use super::status::{Outcome, Refusal};
use crate::objects::external::ExternalObject;
use crate::objects::traffic::ParentRef;
use crate::objects::{ObjectKey, PodObject};
use crate::watch::Problem;

/// All external services, by namespace and name.
#[derive(Default)]
pub(super) struct Externals {
    /// What holds where a namespace says nothing.
    otherwise: EgressDefault,
    held: BTreeMap<ObjectRef, Held>,
}

/// A version that can be honoured, and its generation.
#[derive(Clone)]
pub(super) struct Good {
    external: Arc<External>,
    generation: i64,
}

struct Held {
    object: Arc<ExternalObject>,
    /// It, or the last one before it that could be honoured.
    good: Option<Good>,
    /// As pods get it, with its policies; none where nothing is in force.
    bytes: Option<Bytes>,
    /// Whether the TLS of what pods get is mutual.
    is_mutual: bool,
}

impl Externals {
    /// The last version of one that could be honoured.
    pub(super) fn last_good(&self, id: &ObjectRef) -> Option<Good> {
        self.held.get(id)?.good.clone()
    }

    /// Takes one in. Where it cannot be honoured, `last` stays in force.
    pub(super) fn insert(&mut self, object: Arc<ExternalObject>, last: Option<Good>) {
        let good = match &object.content {
            Ok(external) => Some(Good { external: external.clone(), generation: object.generation }),
            Err(_) => last,
        };
        self.held.insert(object.id.clone(), Held { object, good, bytes: None, is_mutual: false });
    }

    pub(super) fn remove(&mut self, id: &ObjectRef) {
        self.held.remove(id);
    }

    pub(super) fn contains(&self, id: &ObjectRef) -> bool {
        self.held.contains_key(id)
    }
}

impl Held {
    /// What pods get, and, where it stands for one that cannot be honoured and refuses everybody, why.
    fn said(&self, domain: &TrustDomain) -> Option<(External, Option<String>)> {
        if let Some(good) = &self.good {
            let external = External::clone(&good.external);
            // Called by an identity of its own, the mesh is called from inside.
            return Some(if is_own(domain, good) {
                (External { origination: None, ..external }, Some(format!("tls.identities: {}", own(domain))))
            } else {
                (external, None)
            });
        }
        let (Err((field, message)), Some(shut)) = (&self.object.content, &self.object.shut) else { return None };
        Some((External::clone(shut), Some(format!("{field}: {message}"))))
    }
}

/// Refuses everybody in the stead of what cannot be honoured.
fn shutting(id: &ObjectRef, why: &str) -> Policy {
    Policy {
        id: id.clone(),
        target: Target::External(id.clone()),
        action: Action::Deny,
        dry_run: false,
        rules: vec![Rule::default()],
        ports: None,
        broken: Some(why.chars().take(300).collect::<String>().into()),
    }
}

/// What is wrong with peers of the mesh's own.
fn own(domain: &TrustDomain) -> String {
    format!("they are of the mesh's own trust domain, {domain}, which is called inside of the mesh")
}

/// Whether it expects peers of the mesh's own trust domain.
fn is_own(own: &TrustDomain, good: &Good) -> bool {
    good.external.origination.as_ref().and_then(Origination::peer).is_some_and(|peer| peer.domain() == own)
}

impl Model {
    /// What becomes of destinations that nobody knows, where a namespace says nothing.
    #[must_use]
    pub fn with_egress(mut self, otherwise: EgressDefault) -> Self {
        self.externals.otherwise = otherwise;
        self
    }

    fn is_home(&self, namespace: &Namespace) -> bool {
        self.authorizations.home() == namespace
    }

    /// The pods that see an external service.
    pub(super) fn viewers(&self, id: &ObjectRef) -> Vec<ObjectRef> {
        if self.is_home(&id.namespace) {
            return self.pods.values().flat_map(BTreeMap::keys).cloned().collect();
        }
        self.pods.get(&id.namespace).into_iter().flat_map(BTreeMap::keys).cloned().collect()
    }

    /// Encodes one anew, after it or a policy for it is another.
    pub(super) fn refresh_external(&mut self, id: &ObjectRef) {
        let is_mesh_wide = self.is_home(&id.namespace);
        let policies = self.authorizations.of_external(id);
        let Some(held) = self.externals.held.get_mut(id) else { return };
        let said = held.said(&self.trust_domain);
        held.is_mutual = said.as_ref().is_some_and(|(external, _)| external.is_mutual());
        held.bytes = said.map(|(external, broken)| {
            let mut wire = v1::ExternalService { mesh_wide: is_mesh_wide, ..(&external).into() };
            let size: usize = policies.iter().map(|p| p.policy.len()).sum();
            wire.authorization = Some(if let Some(why) = broken {
                let policies = vec![v1::BoundPolicy { policy: policy_bytes(&shutting(id, &why)), ..Default::default() }];
                v1::Authorization { policies, ..posture_to(Posture::AllowAll, &PostureFrom::Mesh) }
            } else if policies.len() > MAX_POLICIES || size > MAX_POLICY_BYTES {
                // The status says it: see `external_entry`.
                posture_to(Posture::Deny, &PostureFrom::Mesh)
            } else {
                v1::Authorization { policies, ..posture_to(Posture::AllowAll, &PostureFrom::Mesh) }
            });
            external_bytes(&wire)
        });
    }

    /// Where a pod may go outside of the mesh; none where nothing is said of it. With what a sidecar must have to enforce it.
    pub(super) fn egress_of(&self, pod: &PodObject, problems: &mut Vec<Problem>) -> (Option<v1::Egress>, Vec<String>) {
        let (otherwise, from) = self.egress_default_of(&pod.id.namespace, problems);
        let home = self.authorizations.home();
        let of = |namespace: &Namespace| {
            let namespace = namespace.clone();
            let held = self.externals.held.iter().filter(move |(id, _)| id.namespace == namespace);
            held.filter_map(|(_, held)| Some((held.bytes.clone()?, held.is_mutual)))
        };
        let mut seen: Vec<(Bytes, bool)> = of(home).collect();
        if pod.id.namespace != *home {
            seen.extend(of(&pod.id.namespace));
        }
        let is_mutual = seen.iter().any(|(_, is_mutual)| *is_mutual);
        let externals: Vec<Bytes> = seen.into_iter().map(|(bytes, _)| bytes).collect();
        if otherwise == EgressDefault::Allow && externals.is_empty() {
            return (None, vec![]);
        }
        let (count, size) = (externals.len(), externals.iter().map(Bytes::len).sum::<usize>());
        if count > MAX_EXTERNALS || size > MAX_EXTERNAL_BYTES {
            problems.push(Problem {
                place: format!("Pod {}", pod.id),
                field: String::new(),
                message: format!(
                    "it sees {count} external services with {size} bytes; at most {MAX_EXTERNALS} with {MAX_EXTERNAL_BYTES} bytes are taken, and it may \
                     call nothing until then: put hosts together, or spread them over namespaces"
                ),
            });
            // No version has this, so that the pod's sidecar refuses everything, and says why.
            return (None, vec![format!("room for {count} external services with {size} bytes")]);
        }
        // A version that does not know peers would take their servers for ones that are known by their names.
        let required = std::iter::once(FEATURE_EGRESS).chain(is_mutual.then_some(FEATURE_EGRESS_PEER));
        (Some(v1::Egress { externals, ..egress_to(otherwise, &from) }), required.map(str::to_owned).collect())
    }

    /// The namespace's own, or the mesh's. A word that is none denies, and is reported.
    fn egress_default_of(&self, namespace: &Namespace, problems: &mut Vec<Problem>) -> (EgressDefault, PostureFrom) {
        let word = self.namespaces.get(namespace).and_then(|n| n.annotations.get(ANNOTATION_EGRESS));
        let Some(word) = word else { return (self.externals.otherwise, PostureFrom::Mesh) };
        let otherwise = word.parse().unwrap_or_else(|e: InvalidEgress| {
            problems.push(Problem {
                place: format!("Namespace {namespace}"),
                field: format!("metadata.annotations[{ANNOTATION_EGRESS:?}]"),
                message: format!("{e}; deny is in force until then"),
            });
            EgressDefault::Deny
        });
        (otherwise, PostureFrom::Namespace(namespace.clone()))
    }

    /// What became of an external service: always one entry, for who sees it.
    pub(super) fn external_entry(&self, key: &ObjectKey) -> Option<(i64, ParentRef, Outcome)> {
        let held = self.externals.held.get(&key.id)?;
        let mut outcome = Outcome::default();
        if let Err((field, message)) = &held.object.content {
            let refusal = |message: String| Refusal::new("Invalid", field.clone(), message);
            match &held.good {
                Some(good) => outcome.fallen_back = Some((refusal(message.clone()), good.generation)),
                None => {
                    outcome.refused = Some(refusal(match held.object.shut {
                        Some(_) => format!("{message}; until it is mended, nobody may go to its hosts at its ports"),
                        None => format!("{message}; its hosts or its ports cannot be read, so that the default decides of them"),
                    }));
                }
            }
        }
        if outcome.refused.is_none() && held.good.as_ref().is_some_and(|good| is_own(&self.trust_domain, good)) {
            let message = format!("{}; until it is mended, nobody may go to its hosts at its ports", own(&self.trust_domain));
            outcome.refused = Some(Refusal::new("Invalid", "tls.identities", message));
            outcome.fallen_back = None;
        }
        let policies = self.authorizations.of_external(&key.id);
        let size: usize = policies.iter().map(|p| p.policy.len()).sum();
        if outcome.refused.is_none() && (policies.len() > MAX_POLICIES || size > MAX_POLICY_BYTES) {
            let message = format!(
                "{} authorization policies with {size} bytes are for it; at most {MAX_POLICIES} with {MAX_POLICY_BYTES} bytes are taken, and nobody \
                 may go there until then: put several into one",
                policies.len()
            );
            outcome.refused = Some(Refusal::new("Invalid", "", message));
        }
        let (group, kind, name) = if self.is_home(&key.id.namespace) {
            ("weft.dev", "Mesh", self.trust_domain.to_string())
        } else {
            ("", "Namespace", key.id.namespace.to_string())
        };
        let parent = ParentRef {
            group: Some(group.into()),
            kind: Some(kind.into()),
            namespace: None,
            name,
            section_name: None,
            port: None,
        };
        Some((held.object.generation, parent, outcome))
    }
}
