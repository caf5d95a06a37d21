//! What manifests say of trust: foreign domains, and who is denied. Both stand in the namespace of the installation alone.

use std::collections::{BTreeMap, HashSet};
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
    pub(super) denials: BTreeMap<ObjectRef, Standing>,
}

/// A denial as it stands.
pub(super) struct Standing {
    said: Arc<DenialObject>,
    /// Where that could not be read whole: what the last version that could be denied besides.
    kept: Option<Arc<DenialObject>>,
    /// That version.
    whole: Option<Arc<DenialObject>>,
}

impl Standing {
    /// Nobody is let in by a slip: of a list that cannot be read whole, who was denied before stays denied.
    fn after(before: Option<Self>, said: Arc<DenialObject>) -> Self {
        if said.unread.is_empty() {
            return Self { whole: Some(said.clone()), kept: None, said };
        }
        let whole = before.and_then(|standing| standing.whole);
        let kept = whole.as_deref().map(|whole| {
            let mut kept = whole.clone();
            let (identities, serials): (HashSet<_>, HashSet<_>) =
                (said.identities.iter().collect(), said.serials.iter().collect());
            kept.identities.retain(|id| !identities.contains(id));
            kept.serials.retain(|serial| !serials.contains(serial));
            Arc::new(kept)
        });
        Self { said, kept, whole }
    }
}

impl Trusting {
    pub(super) fn deny(&mut self, object: Arc<DenialObject>) {
        let before = self.denials.remove(&object.id);
        self.denials.insert(object.id.clone(), Standing::after(before, object));
    }

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
        let denials: Vec<_> = self.denials.values().filter(|o| at_home(Kind::IdentityDenial, &o.said.id)).collect();
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
        for Standing { said: object, kept, .. } in denials {
            said.denials.extend([object].into_iter().chain(kept).cloned());
            let rest = match kept {
                Some(_) => "the other entries are in force, and so is what the last version denied that could be read",
                None => "the other entries are in force",
            };
            for (field, why) in &object.unread {
                problems.push(problem(Kind::IdentityDenial, &object.id, &format!("spec.{field}"), format!("{why}; {rest}")));
            }
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

    fn denial(id: &str, serials: &[&str], unread: &[&str]) -> Arc<DenialObject> {
        Arc::new(DenialObject {
            id: id.parse().expect("valid"),
            identities: vec![],
            serials: serials.iter().map(|&s| s.into()).collect(),
            reason: String::new(),
            expires: None,
            unread: unread.iter().map(|&field| (field.into(), "no serial number".into())).collect(),
        })
    }

    #[test]
    fn a_list_with_a_slip_in_it_denies_no_less_than_before() {
        let (own, home): (TrustDomain, Namespace) =
            ("cluster.local".parse().expect("valid"), "weft-system".parse().expect("valid"));
        let mut trusting = Trusting::default();
        let mut after = |serials: &[&str], unread: &[&str]| {
            trusting.deny(denial("weft-system/stolen", serials, unread));
            let (said, problems) = trusting.said(&own, &home);
            let denied: Vec<String> = said.denials.iter().flat_map(|d| d.serials.clone()).collect();
            (
                denied.join(" "),
                problems.into_iter().map(|p| format!("{} {}: {}", p.place, p.field, p.message)).collect::<Vec<_>>(),
            )
        };
        assert_eq!(after(&["a", "b"], &["serials[2]"]).0, "a b", "it was never whole");
        assert_eq!(after(&["a", "b", "c"], &[]), ("a b c".into(), vec![]));
        let (denied, problems) = after(&["a", "d"], &["serials[1]"]);
        assert_eq!(denied, "a d b c");
        assert_eq!(
            problems,
            [
                "IdentityDenial weft-system/stolen spec.serials[1]: no serial number; the other entries are in force, and so is what the last version \
                 denied that could be read"
            ]
        );
        assert_eq!(after(&["e"], &["serials[0]"]).0, "e a b c", "what a broken version added goes with it");
        assert_eq!(after(&["d"], &[]), ("d".into(), vec![]));
    }

    #[test]
    fn foreign_domains_and_denials_hold_in_the_installation_s_namespace_alone() {
        let foreign: TrustDomain = "east.example".parse().expect("valid");
        let own: TrustDomain = "cluster.local".parse().expect("valid");
        let home: Namespace = "weft-system".parse().expect("valid");
        let federation = |id: &str, domain: &TrustDomain| {
            let id: ObjectRef = id.parse().expect("valid");
            (id.clone(), Arc::new(FederationObject { id, domain: domain.clone(), anchors: vec![] }))
        };
        let mut trusting = Trusting {
            federations: [
                federation("weft-system/east", &foreign),
                federation("weft-system/east-too", &foreign),
                federation("weft-system/ours", &own),
                federation("shop/east", &foreign),
            ]
            .into(),
            denials: BTreeMap::new(),
        };
        trusting.deny(denial("weft-system/stolen", &[], &[]));
        trusting.deny(denial("shop/stolen", &[], &[]));
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
