//! Files of manifests, and the model that is made of them.

use std::collections::BTreeSet;

use weft_control_plane::model::Model;
use weft_control_plane::snapshot::Entry;
use weft_control_plane::watch::{Change, parse};
use weft_core::policy::MtlsMode;
use weft_proto::v1;
use weft_proto::v1::resource::Body;

const FILE: &str = "fuzz.yaml";

/// A file is read, or refused with its name and a line. What is read goes into the model: a second time without effect, and
/// out of it again without remains.
pub fn manifest(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let objects = match parse::parse(FILE, text) {
        Ok(objects) => objects,
        Err(problem) => {
            let line = problem.place.strip_prefix(FILE).and_then(|p| p.strip_prefix(':')).and_then(|p| p.parse::<usize>().ok());
            assert!(line.is_some_and(|l| l > 0), "no place: {problem:?}");
            assert!(!problem.message.is_empty(), "no message: {problem:?}");
            return;
        }
    };
    // Of objects with one name the first stands, as the directory has it.
    let mut keys = BTreeSet::new();
    let upserts: Vec<Change> = objects.into_iter().filter(|o| keys.insert(o.key())).map(Change::Upsert).collect();

    let mesh = Entry::new(Body::Mesh(v1::Mesh::default()));
    let domain = "cluster.local".parse().expect("a trust domain");
    let mut model = Model::new(domain, MtlsMode::Permissive, mesh.clone(), mesh);
    model.apply(upserts.clone());
    for problem in model.problems() {
        assert!(!problem.place.is_empty() && !problem.message.is_empty(), "{problem:?}");
    }
    let changed = model.apply(upserts);
    assert!(changed.is_empty(), "the same objects again have changed {changed:?}");

    model.apply(keys.into_iter().map(Change::Delete).collect());
    let left = model.snapshot();
    assert!(left.services.is_empty() && left.endpoints.is_empty() && left.dns.is_empty(), "of services: {left:?}");
    assert!(left.inbound.is_empty() && left.outbound.is_empty(), "of pods: {left:?}");
    assert!(left.addresses.is_empty(), "of addresses: {left:?}");
    assert_eq!(model.problems(), []);
}
