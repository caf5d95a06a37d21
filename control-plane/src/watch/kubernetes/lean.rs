//! Objects as they come from the API server, read as far as the mesh needs them and no further. One that cannot be read is one
//! such object: it stops neither the list that it stands in nor the watch.

use std::borrow::Cow;
use std::marker::PhantomData;

use kube::core::{DynamicResourceScope, ObjectMeta};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use weft_core::service::ObjectRef;

use crate::objects::{EndpointSliceObject, Kind, NamespaceObject, Object, ObjectKey, PodObject, ServiceObject};
use crate::watch::parse::{Fault, from_json};

/// A kind that is watched.
pub trait Watched: Clone + std::fmt::Debug + Send + Sync + 'static {
    const KIND: Kind;
    /// Empty for the core group.
    const GROUP: &'static str = "";
    const VERSION: &'static str = "v1";
    /// The name of the resource.
    const PLURAL: &'static str;
}

impl Watched for NamespaceObject {
    const KIND: Kind = Kind::Namespace;
    const PLURAL: &'static str = "namespaces";
}

impl Watched for ServiceObject {
    const KIND: Kind = Kind::Service;
    const PLURAL: &'static str = "services";
}

impl Watched for PodObject {
    const KIND: Kind = Kind::Pod;
    const PLURAL: &'static str = "pods";
}

impl Watched for EndpointSliceObject {
    const KIND: Kind = Kind::EndpointSlice;
    const GROUP: &'static str = "discovery.k8s.io";
    const PLURAL: &'static str = "endpointslices";
}

/// An object of kind `T`, or why it is none.
#[derive(Clone, Debug)]
pub struct Lean<T> {
    /// Name, namespace, uid and resource version; nothing else of what the server keeps there.
    metadata: ObjectMeta,
    pub object: Result<Object, Fault>,
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
            Some(namespace) => format!("{:?} {namespace}/{name}", T::KIND),
            None => format!("{:?} {name}", T::KIND),
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
        Ok(Self { metadata, object: from_json(T::KIND, &value), kind: PhantomData })
    }
}

impl<T: Watched> kube::Resource for Lean<T> {
    type DynamicType = ();
    type Scope = DynamicResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        format!("{:?}", T::KIND).into()
    }
    fn group((): &()) -> Cow<'_, str> {
        T::GROUP.into()
    }
    fn version((): &()) -> Cow<'_, str> {
        T::VERSION.into()
    }
    fn plural((): &()) -> Cow<'_, str> {
        T::PLURAL.into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
