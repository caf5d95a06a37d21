//! What manifests say of trust: foreign domains, and who is denied. Both stand in the namespace of the installation alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use weft_core::service::ObjectRef;
use weft_core::{Namespace, TrustDomain};

use crate::issue::deny::Said;
use crate::objects::trust::{DenialObject, FederationObject};
use crate::objects::{Kind, ObjectKey};
use crate::watch::Problem;

/// The objects, wherever they stand.
#[derive(Default)]
pub(super) struct Trusting {
    pub(super) federations: BTreeMap<ObjectRef, Arc<FederationObject>>,
    pub(super) denials: BTreeMap<ObjectRef, Arc<DenialObject>>,
}

impl Trusting {
    /// What is in force of them, and what cannot be.
    pub(super) fn said(&self, own: &TrustDomain, home: &Namespace) -> (Said, Vec<Problem>) {
        let mut said = Said::default();
        let mut problems = Vec::new();
        let mut at_home = |kind: Kind, id: &ObjectRef| {
            if id.namespace != *home {
                let message = format!("it stands in the namespace of the installation, {home}, or has no effect");
                problems.push(problem(kind, id, "metadata.namespace", message));
            }
            id.namespace == *home
        };
        let denials = self.denials.values().filter(|o| at_home(Kind::IdentityDenial, &o.id)).cloned();
        said.denials = denials.collect();
        let federations: Vec<_> = self.federations.values().filter(|o| at_home(Kind::Federation, &o.id)).collect();
        for object in federations {
            let message = if object.domain == *own {
                "it is the mesh's own trust domain, whose anchors are those of its CA".to_owned()
            } else if said.foreign.contains_key(&object.domain) {
                "another FederatedTrustDomain, whose name comes first, is for the same domain: put all anchors into one"
                    .to_owned()
            } else {
                said.foreign.insert(object.domain.clone(), object.anchors.clone());
                continue;
            };
            problems.push(problem(Kind::Federation, &object.id, "spec.trustDomain", message));
        }
        (said, problems)
    }
}

fn problem(kind: Kind, id: &ObjectRef, field: &str, message: String) -> Problem {
    Problem { place: ObjectKey { kind, id: id.clone() }.to_string(), field: field.into(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_domains_and_denials_hold_in_the_installation_s_namespace_alone() {
        let foreign: TrustDomain = "east.example".parse().expect("valid");
        let own: TrustDomain = "cluster.local".parse().expect("valid");
        let home: Namespace = "weft-system".parse().expect("valid");
        let federation = |id: &str, domain: &TrustDomain| {
            let id: ObjectRef = id.parse().expect("valid");
            (id.clone(), Arc::new(FederationObject { id, domain: domain.clone(), anchors: vec![] }))
        };
        let denial = |id: &str| {
            let id: ObjectRef = id.parse().expect("valid");
            let object =
                DenialObject { id: id.clone(), identities: vec![], serials: vec![], reason: String::new(), expires: None };
            (id, Arc::new(object))
        };
        let trusting = Trusting {
            federations: [
                federation("weft-system/east", &foreign),
                federation("weft-system/east-too", &foreign),
                federation("weft-system/ours", &own),
                federation("shop/east", &foreign),
            ]
            .into(),
            denials: [denial("weft-system/stolen"), denial("shop/stolen")].into(),
        };
        let (said, problems) = trusting.said(&own, &home);
        assert_eq!((said.foreign.keys().collect::<Vec<_>>(), said.denials.len()), (vec![&foreign], 1));
        let told: Vec<_> = problems.iter().map(|p| (p.place.as_str(), p.field.as_str())).collect();
        assert_eq!(
            told,
            [
                ("IdentityDenial shop/stolen", "metadata.namespace"),
                ("FederatedTrustDomain shop/east", "metadata.namespace"),
                ("FederatedTrustDomain weft-system/east-too", "spec.trustDomain"),
                ("FederatedTrustDomain weft-system/ours", "spec.trustDomain"),
            ]
        );
    }
}
