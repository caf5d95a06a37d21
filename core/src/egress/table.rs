//! External services, found by host and port.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::external::{Egress, EgressDefault, External, ExternalPort, ExternalProtocol, Resolution};
use super::host::Host;
use crate::authorization::Compiled;
use crate::authorization::policy::{HostMatch, PostureFrom};
use crate::identity::SpiffeId;
use crate::service::ObjectRef;

/// What one pod may reach outside of the mesh, ready to be asked. Immutable; made anew when a policy changes.
#[derive(Debug)]
pub struct Table {
    default: EgressDefault,
    default_from: PostureFrom,
    /// In the order in which they win.
    all: Vec<Arc<Listed>>,
    /// Places in `all`, ascending, by the host that is named.
    exact: HashMap<Host, Vec<u32>>,
    /// By what stands behind `*.`.
    suffixes: HashMap<Arc<str>, Vec<u32>>,
    /// By the fixed address of a port for bytes.
    addresses: HashMap<IpAddr, Vec<u32>>,
    /// Ports at which the first bytes say which host is meant.
    heard: HashSet<u16>,
    /// Ports at which the address does.
    bytes: HashSet<u16>,
}

/// An external service, with its policies.
#[derive(Debug)]
pub struct Listed {
    /// What it is called in metrics.
    pub name: Arc<str>,
    /// What it says.
    pub external: Arc<External>,
    /// Who may go there; none where everybody may.
    pub compiled: Option<Arc<Compiled>>,
}

/// Addresses of one host that are told.
const MOST_FIXED: usize = 64;

/// What goes before what: whether it is a namespace's, how little its host says, its place.
type Rank = (bool, u32, u32);

impl Table {
    /// Compiles what applies to the pod whose identity is `own`: the principal that its policies are about. What is in `before`, made for the same
    /// pod, and says the same is kept as it is: whoever holds it holds what is in force.
    pub fn new(egress: &Egress, own: &SpiffeId, before: Option<&Self>) -> Self {
        let held: HashMap<&ObjectRef, &Arc<Listed>> =
            before.into_iter().flat_map(|before| &before.all).map(|listed| (&listed.external.id, listed)).collect();
        let mut externals = egress.externals.clone();
        externals.sort_by(|a, b| (!a.is_mesh_wide, &a.id).cmp(&(!b.is_mesh_wide, &b.id)));
        let mut table = Self {
            default: egress.default,
            default_from: egress.default_from.clone(),
            all: Vec::with_capacity(externals.len()),
            exact: HashMap::new(),
            suffixes: HashMap::new(),
            addresses: HashMap::new(),
            heard: HashSet::new(),
            bytes: HashSet::new(),
        };
        for external in externals {
            let same = held.get(&external.id).filter(|listed| listed.external == external);
            let listed = same.map_or_else(|| Arc::new(Listed::new(external, own)), |listed| Arc::clone(listed));
            table.add(listed);
        }
        table
    }

    fn add(&mut self, listed: Arc<Listed>) {
        let external = &listed.external;
        let place = self.all.len() as u32;
        for host in &external.hosts {
            match host {
                HostMatch::Suffix(suffix) => self.suffixes.entry(suffix.clone()).or_default().push(place),
                HostMatch::Exact(name) => {
                    if let Some(host) = Host::read(name) {
                        self.exact.entry(host).or_default().push(place);
                    }
                }
            }
        }
        for port in &external.ports {
            let ports = if port.protocol == ExternalProtocol::Tcp { &mut self.bytes } else { &mut self.heard };
            ports.insert(port.port);
        }
        if external.ports.iter().any(|p| p.protocol == ExternalProtocol::Tcp) {
            for endpoint in external.endpoints() {
                self.addresses.entry(endpoint.address.to_canonical()).or_default().push(place);
            }
        }
        self.all.push(listed);
    }

    /// Whether it has this very one: not one that has replaced it.
    pub fn holds(&self, listed: &Arc<Listed>) -> bool {
        self.all.iter().any(|held| Arc::ptr_eq(held, listed))
    }

    /// Whether nothing is asked: whatever is not known is dialled.
    pub fn is_open(&self) -> bool {
        self.default == EgressDefault::Allow && self.all.is_empty()
    }

    /// What becomes of a destination that no external service names.
    pub fn default(&self) -> EgressDefault {
        self.default
    }

    /// Who has set the default.
    pub fn default_from(&self) -> &PostureFrom {
        &self.default_from
    }

    /// Whether what is said first at a port tells which host is meant.
    pub fn hears(&self, port: u16) -> bool {
        self.heard.contains(&port)
    }

    /// Whether the address tells which host is meant at a port.
    pub fn knows_by_address(&self, port: u16) -> bool {
        self.bytes.contains(&port)
    }

    /// The external service that counts for a host at a port.
    pub fn find(&self, host: &Host, port: u16) -> Option<(&Arc<Listed>, ExternalPort)> {
        let mut best: Option<(Rank, &Arc<Listed>, ExternalPort)> = None;
        let mut offer = |places: Option<&Vec<u32>>, rank: u32| {
            for place in places.into_iter().flatten() {
                let listed = &self.all[*place as usize];
                let Some(at) = listed.external.port(port) else { continue };
                let key = (!listed.external.is_mesh_wide, rank, *place);
                if best.as_ref().is_none_or(|(held, ..)| key < *held) {
                    best = Some((key, listed, *at));
                }
            }
        };
        offer(self.exact.get(host), 0);
        if let Host::Name(name) = host {
            // The more labels are left, the more the wildcard says.
            for (rank, (dot, _)) in name.match_indices('.').enumerate() {
                offer(self.suffixes.get(&name[dot + 1..]), rank as u32 + 1);
            }
        }
        best.map(|(_, listed, at)| (listed, at))
    }

    /// The external service for bytes to an address at a port: the mesh's own first, then one that has the address, else one that names a host that led there. `names` are
    /// such hosts.
    pub fn find_by_address(&self, ip: IpAddr, port: u16, names: &[Host]) -> Option<(&Arc<Listed>, ExternalPort)> {
        let is_bytes = |at: &ExternalPort| at.protocol == ExternalProtocol::Tcp;
        let fixed = self.addresses.get(&ip.to_canonical()).into_iter().flatten().filter_map(|place| {
            let listed = &self.all[*place as usize];
            Some((listed, *listed.external.port(port).filter(|at| is_bytes(at))?))
        });
        let named =
            names.iter().filter_map(|host| self.find(host, port)).filter(|(listed, at)| is_bytes(at) && listed.is_resolved());
        // The mesh's own first, so that no namespace takes an address out of its hands; of equals, the first.
        fixed.chain(named).min_by_key(|(listed, _)| !listed.external.is_mesh_wide)
    }

    /// The addresses that are fixed for a host that is named itself, by what counts for it at each port; empty where the resolver is asked at one of
    /// them. At most 64.
    pub fn fixed(&self, host: &Host) -> Vec<IpAddr> {
        let mut found: Vec<IpAddr> = Vec::new();
        let places = self.exact.get(host).into_iter().flatten();
        for port in places.flat_map(|place| &self.all[*place as usize].external.ports) {
            let Some((listed, _)) = self.find(host, port.port) else { continue };
            if listed.is_resolved() {
                return vec![];
            }
            for endpoint in listed.external.endpoints() {
                let ip = endpoint.address.to_canonical();
                if found.len() < MOST_FIXED && !found.contains(&ip) {
                    found.push(ip);
                }
            }
        }
        found
    }

    /// Whether anything is said of a host, at any port.
    pub fn names(&self, host: &Host) -> bool {
        let by_suffix = |name: &Arc<str>| name.match_indices('.').any(|(dot, _)| self.suffixes.contains_key(&name[dot + 1..]));
        self.exact.contains_key(host) || host.name().is_some_and(by_suffix)
    }
}

impl Listed {
    fn new(external: Arc<External>, own: &SpiffeId) -> Self {
        let compiled = Compiled::new(&external.authorization, own.clone());
        let compiled = (!compiled.is_open()).then(|| Arc::new(compiled));
        Self { name: format!("external {}", external.id).into(), external, compiled }
    }

    /// Whether the resolver says where it is.
    pub fn is_resolved(&self) -> bool {
        self.external.resolution == Resolution::Dns
    }
}
