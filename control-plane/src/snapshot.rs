//! The mesh as sidecars may see it: immutable, encoded once, shared by every stream.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use weft_core::service::{AddressKind, Endpoint, ObjectRef};
use weft_core::version::Version;
use weft_proto::v1::resource::Body;
use weft_proto::{ResourceName, v1};

/// A resource with its version.
#[derive(Debug)]
pub struct Entry {
    pub version: Version,
    pub body: Body,
}

impl Entry {
    /// Encodes a body once, for its version.
    pub fn new(body: Body) -> Arc<Self> {
        let mut bytes = Vec::new();
        body.encode(&mut bytes);
        Arc::new(Self { version: Version::of(&bytes), body })
    }
}

/// A service's endpoints, by address.
#[derive(Debug)]
pub struct EndpointsEntry {
    pub version: Version,
    pub list: BTreeMap<IpAddr, Endpoint>,
}

impl EndpointsEntry {
    pub fn new(list: BTreeMap<IpAddr, Endpoint>) -> Arc<Self> {
        let body = full(&list);
        let mut bytes = Vec::new();
        body.encode(&mut bytes);
        Arc::new(Self { version: Version::of(&bytes), list })
    }

    /// Everything, for a sidecar that holds nothing.
    pub fn full(&self) -> Body {
        full(&self.list)
    }

    /// The change from `base`, or everything where that is less.
    pub fn since(&self, base: &Self) -> Body {
        let upserted: Vec<_> = self.list.iter().filter(|(a, e)| base.list.get(a) != Some(e)).map(|(_, e)| e.into()).collect();
        let removed: Vec<_> =
            base.list.keys().filter(|a| !self.list.contains_key(a)).map(|a| weft_proto::address_bytes(*a).into()).collect();
        if upserted.len() + removed.len() >= self.list.len() {
            return self.full();
        }
        Body::EndpointsDelta(v1::EndpointsDelta { base: base.version.0, upserted, removed })
    }
}

fn full(list: &BTreeMap<IpAddr, Endpoint>) -> Body {
    Body::Endpoints(v1::Endpoints { endpoints: list.values().map(Into::into).collect() })
}

/// One generation of the mesh. Cloning shares structure, so that a change costs what it touches.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub generation: u64,
    pub trust: Arc<Entry>,
    pub mesh: Arc<Entry>,
    pub inbound: imbl::HashMap<ObjectRef, Arc<Entry>>,
    pub addresses: imbl::HashMap<IpAddr, Arc<Entry>>,
    pub services: imbl::HashMap<ObjectRef, Arc<Entry>>,
    pub endpoints: imbl::HashMap<ObjectRef, Arc<EndpointsEntry>>,
    /// Names that DNS answers for.
    pub dns: imbl::HashMap<ObjectRef, Arc<DnsEntry>>,
    /// The service account of every pod that lives.
    pub accounts: imbl::HashMap<ObjectRef, Arc<String>>,
    unknown: Arc<Entry>,
}

/// What DNS says of a service.
#[derive(Debug, PartialEq, Eq)]
pub enum DnsEntry {
    /// Its cluster IPs.
    Addresses(Vec<IpAddr>),
    /// Headless: its ready endpoints, and each pod by name.
    Endpoints(Vec<(Option<String>, IpAddr)>),
    /// `ExternalName`.
    Alias(String),
}

/// A resource as one stream sees it.
pub enum View {
    Plain(Arc<Entry>),
    Endpoints(Arc<EndpointsEntry>),
    Absent,
}

impl View {
    pub fn version(&self) -> Version {
        match self {
            Self::Plain(e) => e.version,
            Self::Endpoints(e) => e.version,
            Self::Absent => Version::default(),
        }
    }
}

impl Snapshot {
    pub fn new(trust: Arc<Entry>, mesh: Arc<Entry>) -> Self {
        Self {
            generation: 0,
            trust,
            mesh,
            inbound: imbl::HashMap::new(),
            addresses: imbl::HashMap::new(),
            services: imbl::HashMap::new(),
            endpoints: imbl::HashMap::new(),
            dns: imbl::HashMap::new(),
            accounts: imbl::HashMap::new(),
            unknown: Entry::new(Body::Address((&AddressKind::Unknown).into())),
        }
    }

    /// Whether a pod of this service account lives under this name: only such a one may renew.
    pub fn has_pod(&self, pod: &ObjectRef, service_account: &str) -> bool {
        self.accounts.get(pod).is_some_and(|a| **a == service_account)
    }

    /// What `name` is for the sidecar of `pod`. Every address has an answer: "unknown" is one.
    pub fn view(&self, name: &ResourceName, pod: Option<&ObjectRef>) -> View {
        let plain = |e: Option<&Arc<Entry>>| e.map_or(View::Absent, |e| View::Plain(e.clone()));
        match name {
            ResourceName::Trust => View::Plain(self.trust.clone()),
            ResourceName::Mesh => View::Plain(self.mesh.clone()),
            ResourceName::Inbound => plain(pod.and_then(|p| self.inbound.get(p))),
            ResourceName::Address(ip) => View::Plain(self.addresses.get(ip).unwrap_or(&self.unknown).clone()),
            ResourceName::Service(id) => plain(self.services.get(id)),
            ResourceName::Endpoints(id) => self.endpoints.get(id).map_or(View::Absent, |e| View::Endpoints(e.clone())),
        }
    }
}
