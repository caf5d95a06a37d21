//! `ExternalService`. Whatever its `spec` is, it is an object: what becomes of one that cannot be honoured is the model's to say.

use std::sync::Arc;

use serde::de::IgnoredAny;

use super::{Document, Fault, Outer, id};
use crate::objects::Object;
use crate::objects::external::{ExternalObject, ExternalSpec, Remains};

pub(super) fn service(document: &impl Document) -> Result<Object, Fault> {
    let head: Outer<IgnoredAny, IgnoredAny> = document.read()?;
    let id = id(&head.metadata)?;
    let read = document.read().and_then(|whole: Outer<ExternalSpec, IgnoredAny>| {
        let spec = whole.spec.ok_or_else(|| Fault::new("spec", "missing: an ExternalService needs a spec"))?;
        spec.read(&id).map_err(|(field, message)| Fault::new(format!("spec.{field}"), message))
    });
    let content = read.map(Arc::new).map_err(|fault| (fault.field, fault.message));
    let remains = || document.read().ok().and_then(|whole: Outer<Remains, IgnoredAny>| whole.spec);
    let shut = if content.is_ok() { None } else { remains().and_then(|remains| remains.shut(&id)).map(Arc::new) };
    let generation = head.metadata.generation.unwrap_or(0);
    Ok(Object::ExternalService(Arc::new(ExternalObject { id, generation, content, shut })))
}
