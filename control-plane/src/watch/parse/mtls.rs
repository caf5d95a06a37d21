//! `MtlsPolicy`. Whatever its `spec` is, it is an object: one that cannot be honoured makes strict, and so must reach the model.

use std::sync::Arc;

use serde::de::IgnoredAny;
use serde_json::Value;

use super::{Document, Fault, Outer, id};
use crate::objects::Object;
use crate::objects::mtls::{MtlsObject, MtlsSpec, Unhonoured};

pub(super) fn policy(document: &impl Document) -> Result<Object, Fault> {
    let head: Outer<IgnoredAny, IgnoredAny> = document.read()?;
    let id = id(&head.metadata)?;
    let read = document.read().and_then(|whole: Outer<MtlsSpec, IgnoredAny>| {
        let spec = whole.spec.ok_or_else(|| Fault::new("spec", "missing: an MtlsPolicy needs a spec"))?;
        spec.read().map_err(|(field, message)| Fault::new(format!("spec.{field}"), message))
    });
    let content = read.map(Arc::new).map_err(|fault| {
        let spec = document.read().ok().and_then(|whole: Outer<Value, IgnoredAny>| whole.spec).unwrap_or_default();
        Unhonoured::new(fault.field, fault.message, &spec)
    });
    Ok(Object::MtlsPolicy(Arc::new(MtlsObject { id, generation: head.metadata.generation.unwrap_or(0), content })))
}
