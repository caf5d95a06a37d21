//! Which `JwtIssuer` counts for which pod, and what becomes of each.
//!
//! One in the namespace of the installation is for the whole mesh, any other for its own namespace. Where both are for one issuer, the mesh's counts, so that no
//! namespace can put keys of its own under a policy of the mesh's; within a namespace, the first by name. Of one that cannot be honoured, the last version
//! that could be stays in force; without one the issuer is unknown, and what asks for its tokens refuses.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use prost::bytes::Bytes;
use weft_core::Namespace;
use weft_core::jwt::Issuer;
use weft_core::policy::FEATURE_JWT;
use weft_core::service::ObjectRef;
use weft_proto::{MAX_ISSUERS, issuer_bytes, v1};

use super::Model;
use super::authorization::Authorizations;
use super::status::{Outcome, Refusal};
use crate::objects::authorization::Scope;
use crate::objects::jwt::IssuerObject;
use crate::objects::traffic::ParentRef;
use crate::objects::{Kind, ObjectKey, PodObject};
use crate::watch::Problem;

/// All issuers.
#[derive(Default)]
pub(super) struct Issuers {
    held: BTreeMap<ObjectRef, Held>,
    /// Those that are in force, by namespace and what they are for.
    by_name: BTreeMap<(Namespace, Arc<str>), BTreeSet<ObjectRef>>,
}

/// A version that can be honoured, and its generation.
pub(super) type Good = (Arc<Issuer>, i64);

struct Held {
    object: Arc<IssuerObject>,
    good: Option<Good>,
    /// Encoded once for all pods.
    bytes: Bytes,
}

impl Issuers {
    /// The last version of one that could be honoured.
    pub(super) fn last_good(&self, id: &ObjectRef) -> Option<Good> {
        self.held.get(id)?.good.clone()
    }

    pub(super) fn insert(&mut self, object: Arc<IssuerObject>, last: Option<Good>) {
        let id = object.id.clone();
        let good = object.content.as_ref().ok().map(|issuer| (issuer.clone(), object.generation)).or(last);
        let bytes = good.as_ref().map(|(issuer, _)| issuer_bytes(issuer)).unwrap_or_default();
        if let Some((issuer, _)) = &good {
            self.by_name.entry((id.namespace.clone(), issuer.issuer.clone())).or_default().insert(id.clone());
        }
        self.held.insert(id, Held { object, good, bytes });
    }

    pub(super) fn remove(&mut self, id: &ObjectRef) {
        let Some((issuer, _)) = self.held.remove(id).and_then(|held| held.good) else { return };
        let key = (id.namespace.clone(), issuer.issuer.clone());
        if let Some(ids) = self.by_name.get_mut(&key) {
            ids.remove(id);
            if ids.is_empty() {
                self.by_name.remove(&key);
            }
        }
    }

    /// What an object that is held is for.
    fn name(&self, id: &ObjectRef) -> Option<Arc<str>> {
        Some(self.held.get(id)?.good.as_ref()?.0.issuer.clone())
    }

    /// The one that counts in a namespace.
    fn of(&self, home: &Namespace, namespace: &Namespace, name: &Arc<str>) -> Option<&ObjectRef> {
        self.in_namespace(home, name).or_else(|| self.in_namespace(namespace, name))
    }

    /// The one that stands in a namespace.
    fn in_namespace(&self, namespace: &Namespace, name: &Arc<str>) -> Option<&ObjectRef> {
        self.by_name.get(&(namespace.clone(), name.clone()))?.first()
    }
}

impl Model {
    /// Everything whose outcome depends on an issuer as it stands: policies, pods, and other issuers of the same name.
    pub(super) fn touched_by_issuer(&self, key: &ObjectKey) -> (Vec<ObjectKey>, Vec<ObjectRef>) {
        let Some(name) = self.issuers.name(&key.id) else { return (vec![key.clone()], vec![]) };
        let of_kind = |kind| move |id: &ObjectRef| ObjectKey { kind, id: id.clone() };
        let named = self.authorizations.naming(&name);
        let pods = named.iter().flat_map(|id| self.touched_by_authorization(id)).collect();
        let same = self.issuers.held.keys().filter(|id| self.issuers.name(id).as_ref() == Some(&name));
        let policies = named.iter().map(of_kind(Kind::AuthorizationPolicy));
        (policies.chain(same.map(of_kind(Kind::JwtIssuer))).chain([key.clone()]).collect(), pods)
    }

    /// Writes into a pod's inbound policy whose tokens its policies go by.
    pub(super) fn add_issuers(&self, pod: &PodObject, inbound: &mut v1::InboundPolicy, problems: &mut Vec<Problem>) {
        let Some(authorization) = &inbound.authorization else { return };
        let names = self.authorizations.named_by(&authorization.policies);
        if names.is_empty() {
            return;
        }
        let home = &self.authorizations.home;
        // Under a policy of the mesh's no namespace puts keys of its own, not even where the mesh's issuer is missing.
        let ids = names.iter().filter_map(|(name, is_of_mesh)| {
            if *is_of_mesh { self.issuers.in_namespace(home, name) } else { self.issuers.of(home, &pod.id.namespace, name) }
        });
        inbound.jwt_issuers = ids.filter_map(|id| self.issuers.held.get(id)).map(|held| held.bytes.clone()).collect();
        inbound.required_features.push(FEATURE_JWT.to_owned());
        let count = inbound.jwt_issuers.len();
        if count > MAX_ISSUERS {
            problems.push(Problem {
                place: format!("Pod {}", pod.id),
                field: String::new(),
                message: format!(
                    "its authorization policies name {count} JwtIssuers; at most {MAX_ISSUERS} are taken, and everything is refused until then: \
                     bind policies to fewer pods"
                ),
            });
            inbound.jwt_issuers.clear();
            // No version has this.
            inbound.required_features.push(format!("room for {count} JwtIssuers"));
        }
    }

    /// The issuers that a policy names and nobody knows.
    pub(super) fn unknown_issuers(&self, all: &Authorizations, id: &ObjectRef, scope: &Scope) -> Vec<Refusal> {
        let namespace = if *scope == Scope::Mesh { &all.home } else { &id.namespace };
        let unknown = all.names(id).filter(|name| self.issuers.of(&all.home, namespace, name).is_none());
        let refusal = |name: &Arc<str>| {
            let message = format!(
                "no JwtIssuer of namespace {namespace}, or of {} for the whole mesh, is for the issuer {name}: until one is, an Allow matches no token of \
                 it, and what a Deny may be about is refused",
                all.home
            );
            Refusal::new("IssuerNotFound", "spec.rules", message)
        };
        unknown.map(refusal).collect()
    }

    /// What became of an issuer: always one entry, for its namespace or the mesh.
    pub(super) fn issuer_entry(&self, key: &ObjectKey) -> Option<(i64, ParentRef, Outcome)> {
        let held = self.issuers.held.get(&key.id)?;
        let home = &self.authorizations.home;
        let mut outcome = Outcome::default();
        if let Err((field, message)) = &held.object.content {
            let refusal = Refusal::new("Invalid", field.clone(), message.clone());
            match &held.good {
                Some((_, generation)) => outcome.fallen_back = Some((refusal, *generation)),
                None => outcome.refused = Some(refusal),
            }
        }
        if let Some((issuer, _)) = &held.good
            && let Some(other) = self.issuers.of(home, &key.id.namespace, &issuer.issuer).filter(|other| **other != key.id)
        {
            let message = format!("JwtIssuer {other} is for the same issuer, and counts here: remove one of them");
            outcome.refused = Some(Refusal::new("Conflicted", "spec.issuer", message));
        }
        let scope = if key.id.namespace == *home { Scope::Mesh } else { Scope::Namespace(key.id.namespace.clone()) };
        Some((held.object.generation, self.attached_to(&scope), outcome))
    }
}
