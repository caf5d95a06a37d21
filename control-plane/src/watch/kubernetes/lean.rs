//! Objects as they come from the API server, read as far as the mesh needs them and no further. One that cannot be read is one
//! such object: it stops neither the list that it stands in nor the watch.

use std::borrow::Cow;

use kube::core::{DynamicResourceScope, ObjectMeta};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use weft_core::service::ObjectRef;

use super::resource::resource;
use super::standing::{Standing, Unreadable};
use crate::objects::{Kind, Object, ObjectKey};
use crate::watch::parse::{Fault, from_json};

/// What is read, and in which version.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ReadIn {
    pub kind: Kind,
    pub version: &'static str,
}

/// An object of some kind, as it came; without what the server notes of who wrote which field, which is most of many an object. One type for all kinds,
/// because what follows them is code of a library's that is compiled for each type anew.
#[derive(Clone, Debug)]
pub struct Lean {
    /// Name, namespace, uid and resource version; nothing else of what the server keeps there.
    metadata: ObjectMeta,
    value: Value,
}

impl Lean {
    /// What of it is needed, for an object of this kind.
    pub fn read(&self, kind: Kind) -> Received {
        let object = from_json(kind, &self.value);
        let standing = has_status(kind).then(|| Standing {
            resource_version: self.metadata.resource_version.clone().unwrap_or_default(),
            generation: self.value["metadata"]["generation"].as_i64().unwrap_or(0),
            status: self.value["status"].clone(),
            unreadable: object.as_ref().err().map(|fault| Unreadable::of(&self.value, fault)),
        });
        Received { key: self.key(kind), place: self.place(kind), object, standing }
    }

    fn key(&self, kind: Kind) -> Option<ObjectKey> {
        let name = self.metadata.name.as_deref()?;
        let namespace = self.metadata.namespace.as_deref().unwrap_or(name);
        Some(ObjectKey { kind, id: ObjectRef { namespace: namespace.parse().ok()?, name: name.parse().ok()? } })
    }

    fn place(&self, kind: Kind) -> String {
        let name = self.metadata.name.as_deref().unwrap_or("without a name");
        match &self.metadata.namespace {
            Some(namespace) => format!("{} {namespace}/{name}", kind.as_str()),
            None => format!("{} {name}", kind.as_str()),
        }
    }
}

/// An object that was read as far as it is needed.
#[derive(Clone, Debug)]
pub struct Received {
    /// None where its name is none.
    pub key: Option<ObjectKey>,
    /// What it is called, for people.
    pub place: String,
    pub object: Result<Object, Fault>,
    /// Its status, where that is ours to write.
    pub standing: Option<Standing>,
}

impl<'de> Deserialize<'de> for Lean {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
        let text = |field: &str| value["metadata"][field].as_str().map(str::to_owned);
        let metadata = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            uid: text("uid"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        Ok(Self { metadata, value })
    }
}

/// Whether the control plane writes the status of a kind.
const fn has_status(kind: Kind) -> bool {
    match kind {
        Kind::Namespace | Kind::Service | Kind::Pod | Kind::EndpointSlice | Kind::ReferenceGrant | Kind::NetworkPolicy => false,
        // What cannot be honoured of them is in `weft status`.
        Kind::Federation | Kind::IdentityDenial => false,
        Kind::HttpRoute
        | Kind::GrpcRoute
        | Kind::TlsRoute
        | Kind::TcpRoute
        | Kind::BackendTrafficPolicy
        | Kind::TrafficPolicy
        | Kind::AuthorizationPolicy
        | Kind::MtlsPolicy
        | Kind::JwtIssuer
        | Kind::ExternalService => true,
    }
}

impl kube::Resource for Lean {
    type DynamicType = ReadIn;
    type Scope = DynamicResourceScope;

    fn kind(read: &ReadIn) -> Cow<'_, str> {
        read.kind.as_str().into()
    }
    fn group(read: &ReadIn) -> Cow<'_, str> {
        resource(read.kind).group.into()
    }
    fn version(read: &ReadIn) -> Cow<'_, str> {
        read.version.into()
    }
    fn plural(read: &ReadIn) -> Cow<'_, str> {
        resource(read.kind).plural.into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
