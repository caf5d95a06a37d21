//! Documents that say who may call what: what the control plane makes of them is what sidecars can read.

use std::sync::Arc;

use weft_control_plane::model::Model;
use weft_control_plane::objects::Object;
use weft_control_plane::snapshot::Entry;
use weft_control_plane::watch::{Change, parse};
use weft_core::SpiffeId;
use weft_core::authorization::{Compiled, Connection, Judge};
use weft_core::egress::Table;
use weft_core::policy::{FEATURES, InboundPolicy, MtlsMode, OutboundPolicy};
use weft_core::service::ObjectRef;
use weft_proto::v1;
use weft_proto::v1::resource::Body;

const OWN: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// A pod under those policies gets something that its sidecar reads and can enforce; it comes out the same in any order of the documents, and a sidecar
/// that sends it on as it read it sends the same. What is read twice is read alike.
pub fn policy(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let read = || parse::parse_each("fuzz.yaml", text).filter_map(|part| part.object.ok()).filter(is_policy);
    let objects: Vec<Object> = read().take(20).collect();
    if objects.is_empty() {
        return;
    }
    let mut keys = std::collections::BTreeSet::new();
    let objects: Vec<Object> = objects.into_iter().filter(|o| keys.insert(o.key())).collect();
    let forth = enforced(objects.iter().cloned());
    assert_eq!(forth, enforced(objects.into_iter().rev()), "the order of documents says nothing");
}

fn is_policy(object: &Object) -> bool {
    matches!(
        object,
        Object::AuthorizationPolicy(_)
            | Object::NetworkPolicy(_)
            | Object::ExternalService(_)
            | Object::MtlsPolicy(_)
            | Object::IdentityDenial(_)
            | Object::JwtIssuer(_)
    )
}

/// What is in force at the pod, as text.
fn enforced(objects: impl Iterator<Item = Object>) -> String {
    let mesh = Entry::new(Body::Mesh(v1::Mesh::default()));
    let domain = "cluster.local".parse().expect("a trust domain");
    let mut model = Model::new(domain, MtlsMode::Permissive, mesh.clone(), mesh);
    let shop = parse::parse("shop.yaml", include_str!("../../seeds/manifest/shop.yaml")).expect("good manifests");
    model.apply(shop.into_iter().chain(objects).map(Change::Upsert).collect());
    let pod: ObjectRef = "shop/web-0".parse().expect("a pod");
    let own: SpiffeId = OWN.parse().expect("an identity");

    let entry = model.snapshot().inbound.get(&pod).expect("the pod has one");
    let Body::Inbound(sent) = &entry.body else { panic!("another body") };
    let inbound = InboundPolicy::try_from(sent).unwrap_or_else(|e| panic!("a sidecar cannot read {sent:?}: {e}"));
    assert!(
        inbound.required_features.iter().all(|feature| FEATURES.contains(&feature.as_str())),
        "{:?}",
        inbound.required_features
    );
    assert_eq!(
        InboundPolicy::try_from(&v1::InboundPolicy::from(&inbound)).as_ref().ok(),
        Some(&inbound),
        "it is another on its way"
    );
    let compiled = Arc::new(Compiled::new(&inbound.authorization, own.clone()));
    let source = "10.244.0.9".parse().expect("an address");
    for (port, caller) in [(80, None), (8080, None), (8080, Some(own.clone()))] {
        // Judged before there is a request, as opaque bytes are.
        let decision = Judge::new(compiled.clone(), Connection::new(port, caller, source)).decide(None);
        assert!(decision.is_allowed() || !compiled.is_open(), "where nothing is said nobody is refused: {decision:?}");
    }

    let entry = model.snapshot().outbound.get(&pod).expect("the pod has one");
    let Body::Outbound(sent) = &entry.body else { panic!("another body") };
    let outbound = OutboundPolicy::try_from(sent).unwrap_or_else(|e| panic!("a sidecar cannot read {sent:?}: {e}"));
    assert_eq!(
        OutboundPolicy::try_from(&v1::OutboundPolicy::from(&outbound)).as_ref().ok(),
        Some(&outbound),
        "it is another on its way"
    );
    let _ = Table::new(&outbound.egress, &own, None);

    let said = model.said();
    for denial in &said.denials {
        assert!(
            denial.identities.iter().all(|id| !id.is_control_plane()),
            "a mesh that denies its control plane hears of nothing any more"
        );
    }
    for problem in model.problems() {
        assert!(!problem.place.is_empty() && !problem.message.is_empty(), "{problem:?}");
    }
    format!("{:?} {:?} {:?} {inbound:?} {outbound:?}", said.denials, model.statuses(), model.problems())
}
