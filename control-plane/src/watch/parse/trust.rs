//! `FederatedTrustDomain` and `IdentityDenial`.

use std::sync::Arc;

use serde::de::IgnoredAny;

use super::{Document, Fault, Outer, id};
use crate::objects::Object;
use crate::objects::trust::{DenialSpec, FederationSpec};

fn fault((field, message): (String, String)) -> Fault {
    Fault::new(format!("spec.{field}"), message)
}

pub(super) fn federation(document: &impl Document) -> Result<Object, Fault> {
    let whole: Outer<FederationSpec, IgnoredAny> = document.read()?;
    let spec = whole.spec.ok_or_else(|| Fault::new("spec", "missing: a FederatedTrustDomain needs a spec"))?;
    Ok(Object::Federation(Arc::new(spec.read(id(&whole.metadata)?).map_err(fault)?)))
}

pub(super) fn denial(document: &impl Document) -> Result<Object, Fault> {
    let whole: Outer<DenialSpec, IgnoredAny> = document.read()?;
    let spec = whole.spec.ok_or_else(|| Fault::new("spec", "missing: an IdentityDenial needs a spec"))?;
    Ok(Object::IdentityDenial(Arc::new(spec.read(id(&whole.metadata)?).map_err(fault)?)))
}
