//! weft leaves: it says what is left to do, and the cluster is as it was.

use weft_tests::cluster::{Inventory, must, soon, when};

use crate::traffic::{answers, callers};
use crate::{APPS, Mesh};

pub(crate) fn leaves_nothing(mesh: Mesh<'_>, before: &Inventory) {
    let client = mesh.client();
    let name = mesh.shop.name().to_owned();
    answers(&mesh.shop, &client, "http://echo/name", "200");

    let Mesh { shop, plain, installed, .. } = mesh;
    let said = installed.remove();
    for app in APPS {
        let line = format!("pods of deployment/{app} in {name}: kubectl rollout restart deployment/{app} -n {name}");
        assert!(said.contains(&line), "weft uninstall should say {line:?}:\n{said}");
    }
    assert!(said.contains(&format!("Namespace {name} still has its label")), "{said}");
    assert!(!said.contains(plain.name()), "a namespace that never was in the mesh is none of its business:\n{said}");
    let bundle = must(&["-n", &name, "get", "configmaps", "weft-trust-bundle", "--ignore-not-found", "-o", "name"]);
    assert_eq!(bundle, "", "what the control plane wrote is gone");

    // Who still has a sidecar goes on with what it knows.
    let seen = shop.curl(&client, &["http://echo/seen"]);
    assert_eq!(callers(&seen), [shop.identity("client")], "{seen}");

    shop.begin_to_go();
    plain.begin_to_go();
    drop((shop, plain));
    soon("the cluster is as it was", || {
        let differences = before.differences(&Inventory::take());
        when(differences.is_empty(), || differences.join("\n"))
    });
}
