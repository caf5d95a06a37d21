//! `JwtIssuer`. Whatever its `spec` is, it is an object, so that the model can tell of it and fall back to the version before.

use std::sync::Arc;

use serde::de::IgnoredAny;

use super::{Document, Fault, Outer, id};
use crate::objects::Object;
use crate::objects::jwt::{IssuerObject, IssuerSpec};

pub(super) fn issuer(document: &impl Document) -> Result<Object, Fault> {
    let head: Outer<IgnoredAny, IgnoredAny> = document.read()?;
    let id = id(&head.metadata)?;
    let read = document.read().and_then(|whole: Outer<IssuerSpec, IgnoredAny>| {
        let spec = whole.spec.ok_or_else(|| Fault::new("spec", "missing: a JwtIssuer needs a spec"))?;
        spec.read(&id).map_err(|(field, message)| Fault::new(format!("spec.{field}"), message))
    });
    let content = read.map(Arc::new).map_err(|fault| (fault.field, fault.message));
    Ok(Object::JwtIssuer(Arc::new(IssuerObject { id, generation: head.metadata.generation.unwrap_or(0), content })))
}
