//! `MtlsPolicy` (`weft.dev/v1alpha1`): the mTLS mode of pods and ports. One that cannot be honoured is an object all the same: the pods that it may
//! be for are strict.

mod selector;

use std::sync::Arc;

use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use weft_core::policy::MtlsMode;
use weft_core::service::ObjectRef;

use super::traffic::Wrong;
pub use selector::Selector;
use selector::SelectorSpec;

/// A policy as it was read.
#[derive(Clone, PartialEq, Debug)]
pub struct MtlsObject {
    pub id: ObjectRef,
    /// 0 where nobody counts.
    pub generation: i64,
    pub content: Result<Arc<Modes>, Unhonoured>,
}

/// What a policy says: at least one of `mode` and `ports`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Modes {
    /// None: all pods of the namespace, or of the mesh where the policy stands in the namespace of the installation.
    pub selector: Option<Selector>,
    pub mode: Option<MtlsMode>,
    /// Modes of single ports of the pods, by port; each stands once.
    pub ports: Vec<(u16, MtlsMode)>,
}

/// A policy that cannot be honoured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unhonoured {
    /// Of the object, as a path.
    pub field: String,
    pub message: String,
    pub pods: Meant,
}

/// Which pods a policy may be for that cannot be honoured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Meant {
    /// It has no selector: those of its namespace, or of the mesh.
    All,
    Selected(Selector),
    /// Its selector cannot be read: any of its namespace.
    Unknown,
}

/// `spec` of an `MtlsPolicy`. A field that is not known is an error.
#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
pub struct MtlsSpec {
    /// The pods of its namespace that it is for. Default: all of them.
    #[serde(default, deserialize_with = "given")]
    selector: Option<SelectorSpec>,
    /// `strict` or `permissive`. Default: what is less near says it.
    #[serde(default, deserialize_with = "given")]
    mode: Option<String>,
    /// At most 64.
    #[serde(default, deserialize_with = "given")]
    ports: Option<Vec<PortSpec>>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct PortSpec {
    /// The pod's own, 1 to 65535.
    port: u16,
    mode: String,
}

/// The most ports of one policy.
const MAX_PORTS: usize = 64;

/// What is there: `null` is somebody's mistake, and does not mean the same as to leave the field out.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(field: D) -> Result<Option<T>, D::Error> {
    let value = Option::<T>::deserialize(field)?;
    value.map(Some).ok_or_else(|| D::Error::custom("is null: leave it out, or give it a value"))
}

fn wrong<T>(field: impl Into<String>, message: impl Into<String>) -> Result<T, Wrong> {
    Err((field.into(), message.into()))
}

impl MtlsSpec {
    /// What it says, or the first field below `spec` that cannot be honoured.
    pub fn read(&self) -> Result<Modes, Wrong> {
        let selector = self.selector.as_ref().map(SelectorSpec::read).transpose()?;
        let mode = self.mode.as_ref().map(|word| mode(word, "mode")).transpose()?;
        let listed = self.ports.as_deref().unwrap_or_default();
        if listed.len() > MAX_PORTS {
            return wrong("ports", format!("{} of them; at most {MAX_PORTS} are taken: make several policies", listed.len()));
        }
        let mut ports: Vec<(u16, MtlsMode)> = Vec::new();
        for (i, spec) in listed.iter().enumerate() {
            if spec.port == 0 {
                return wrong(format!("ports[{i}].port"), "0 is not a port: use 1 to 65535");
            }
            if ports.iter().any(|(port, _)| *port == spec.port) {
                return wrong(format!("ports[{i}].port"), format!("{} stands twice: remove one of them", spec.port));
            }
            ports.push((spec.port, self::mode(&spec.mode, &format!("ports[{i}].mode"))?));
        }
        ports.sort_by_key(|(port, _)| *port);
        if mode.is_none() && ports.is_empty() {
            return wrong("mode", "missing: say strict or permissive, or give ports with a mode each");
        }
        Ok(Modes { selector, mode, ports })
    }
}

fn mode(word: &str, field: &str) -> Result<MtlsMode, Wrong> {
    word.parse().map_err(|e: weft_core::policy::InvalidMode| (field.to_owned(), e.to_string()))
}

impl Unhonoured {
    /// Of a `spec` that may be anything: how far it can be read decides which pods are strict.
    pub fn new(field: String, message: String, spec: &Value) -> Self {
        let read = |part: &Value| serde_json::from_value::<SelectorSpec>(part.clone()).ok()?.read().ok();
        let pods = match spec.get("selector") {
            None if spec.is_object() => Meant::All,
            None => Meant::Unknown,
            Some(part) => read(part).map_or(Meant::Unknown, Meant::Selected),
        };
        Self { field, message, pods }
    }
}

#[cfg(test)]
mod tests;
