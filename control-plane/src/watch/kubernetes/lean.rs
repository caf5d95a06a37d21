//! Objects as they come from the API server, read as far as the mesh needs them and no further. One that cannot be read is one
//! such object: it stops neither the list that it stands in nor the watch.

use std::borrow::Cow;
use std::marker::PhantomData;

use kube::core::{DynamicResourceScope, ObjectMeta};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use weft_core::service::ObjectRef;

use super::resource::{Watched, resource};
use super::standing::{Standing, Unreadable};
use crate::objects::{Kind, Object, ObjectKey};
use crate::watch::parse::{Fault, from_json};

/// An object of kind `T`, or why it is none.
#[derive(Clone, Debug)]
pub struct Lean<T> {
    /// Name, namespace, uid and resource version; nothing else of what the server keeps there.
    metadata: ObjectMeta,
    pub object: Result<Object, Fault>,
    /// Its status, where that is ours to write.
    pub standing: Option<Standing>,
    kind: PhantomData<T>,
}

impl<T: Watched> Lean<T> {
    /// Its key; none where its name is none.
    pub fn key(&self) -> Option<ObjectKey> {
        let name = self.metadata.name.as_deref()?;
        let namespace = self.metadata.namespace.as_deref().unwrap_or(name);
        Some(ObjectKey { kind: T::KIND, id: ObjectRef { namespace: namespace.parse().ok()?, name: name.parse().ok()? } })
    }

    /// What it is called, for people.
    pub fn place(&self) -> String {
        let name = self.metadata.name.as_deref().unwrap_or("without a name");
        match &self.metadata.namespace {
            Some(namespace) => format!("{} {namespace}/{name}", T::KIND.as_str()),
            None => format!("{} {name}", T::KIND.as_str()),
        }
    }
}

impl<'de, T: Watched> Deserialize<'de> for Lean<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // One object at a time is held whole, and dropped but for what is needed of it.
        let value = Value::deserialize(deserializer)?;
        let text = |field: &str| value["metadata"][field].as_str().map(str::to_owned);
        let metadata = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            uid: text("uid"),
            resource_version: text("resourceVersion"),
            ..ObjectMeta::default()
        };
        let object = from_json(T::KIND, &value);
        let standing = has_status(T::KIND).then(|| Standing {
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
            generation: value["metadata"]["generation"].as_i64().unwrap_or(0),
            status: value["status"].clone(),
            unreadable: object.as_ref().err().map(|fault| Unreadable::of(&value, fault)),
        });
        Ok(Self { metadata, object, standing, kind: PhantomData })
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
        | Kind::JwtIssuer => true,
    }
}

impl<T: Watched> kube::Resource for Lean<T> {
    /// The version that it is read in.
    type DynamicType = &'static str;
    type Scope = DynamicResourceScope;

    fn kind(_: &&'static str) -> Cow<'static, str> {
        T::KIND.as_str().into()
    }
    fn group(_: &&'static str) -> Cow<'static, str> {
        resource(T::KIND).group.into()
    }
    fn version(version: &&'static str) -> Cow<'static, str> {
        (*version).into()
    }
    fn plural(_: &&'static str) -> Cow<'static, str> {
        resource(T::KIND).plural.into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
