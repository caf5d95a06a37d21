//! `NetworkPolicy`. Whatever its `spec` is, it is an object: one that cannot be honoured isolates, and so must reach the model.

use std::sync::Arc;

use serde::de::IgnoredAny;

use super::{Document, Fault, Outer, id};
use crate::objects::Object;
use crate::objects::network_policy::{NetworkPolicyObject, NetworkPolicySpec};

pub(super) fn policy(document: &impl Document) -> Result<Object, Fault> {
    let head: Outer<IgnoredAny, IgnoredAny> = document.read()?;
    let id = id(&head.metadata)?;
    let read = document.read().and_then(|whole: Outer<NetworkPolicySpec, IgnoredAny>| {
        let spec = whole.spec.ok_or_else(|| Fault::new("spec", "missing: a NetworkPolicy needs a spec"))?;
        spec.read().map_err(|(field, message)| Fault::new(format!("spec.{field}"), message))
    });
    let content = read.map(Arc::new).map_err(|fault| (fault.field, fault.message));
    Ok(Object::NetworkPolicy(Arc::new(NetworkPolicyObject { id, uid: head.metadata.uid, content })))
}
