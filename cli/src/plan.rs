//! Who gets which address. Pure: the same file always gives the same plan.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::mesh_file::Mesh;

/// The lab's end of the network: the control plane and the DNS server listen here.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 47, 0, 1);
/// See [`GATEWAY`].
pub(crate) const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd47, 0, 0, 0, 0, 0, 0, 1);
/// Inside these, an address that discovery does not know is never dialled in plaintext.
pub(crate) const MESH_RANGES: &str = "10.47.0.0/16,fd47::/64";
/// Where services have their addresses; nobody ever listens on one.
pub(crate) const SERVICE_RANGE: &str = "10.47.240.0/20";
/// Bits of the network that every replica is on.
pub(crate) const PREFIX: u8 = 16;
/// See [`PREFIX`].
pub(crate) const PREFIX6: u8 = 64;
/// Addresses of one third byte, .1 to .250.
const PER_BLOCK: usize = 250;
const FIRST_REPLICA_BLOCK: usize = 1;
const FIRST_SERVICE_BLOCK: usize = 240;
const LAST_SERVICE_BLOCK: usize = 254;
/// Services for which there are addresses.
pub(crate) const MAX_SERVICES: usize = (LAST_SERVICE_BLOCK - FIRST_SERVICE_BLOCK + 1) * PER_BLOCK;

/// A place for everything.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) replicas: Vec<Replica>,
    /// By the order of [`Mesh::services`]; none for a headless one.
    pub(crate) services: Vec<Option<Ipv4Addr>>,
}

/// One replica of a workload.
#[derive(Debug)]
pub(crate) struct Replica {
    /// Its place in [`Mesh::workloads`].
    pub(crate) workload: usize,
    /// Its pod's name, and its host name.
    pub(crate) pod: String,
    pub(crate) v4: Ipv4Addr,
    /// Used where the kernel has IPv6.
    pub(crate) v6: Ipv6Addr,
}

impl Plan {
    /// Replicas get addresses in the order of the file. A service keeps the address that it states, and the others get
    /// the next free ones.
    pub(crate) fn new(mesh: &Mesh) -> Self {
        let numbered = mesh.workloads.iter().enumerate().flat_map(|(i, w)| (0..w.replicas).map(move |n| (i, w.pod(n))));
        let replicas = numbered
            .enumerate()
            .map(|(n, (workload, pod))| {
                let (block, last) = (FIRST_REPLICA_BLOCK + n / PER_BLOCK, 1 + n % PER_BLOCK);
                let v4 = Ipv4Addr::new(10, 47, block as u8, last as u8);
                let v6 = Ipv6Addr::new(0xfd47, 0, 0, 0, 0, 0, block as u16, last as u16);
                Replica { workload, pod, v4, v6 }
            })
            .collect();

        let stated: BTreeSet<Ipv4Addr> = mesh.services.iter().filter_map(|s| s.address).collect();
        let mut free = (0..MAX_SERVICES)
            .map(|n| Ipv4Addr::new(10, 47, (FIRST_SERVICE_BLOCK + n / PER_BLOCK) as u8, (1 + n % PER_BLOCK) as u8))
            .filter(|address| !stated.contains(address));
        let services = mesh.services.iter().map(|s| if s.headless { None } else { s.address.or_else(|| free.next()) }).collect();
        Self { replicas, services }
    }
}

/// Whether an address is in [`SERVICE_RANGE`] and usable.
pub(crate) fn is_service_address(address: Ipv4Addr) -> bool {
    let [a, b, block, last] = address.octets();
    (a, b) == (10, 47) && block >= 240 && last != 0 && last != 255
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn replicas_and_services_get_addresses_in_the_order_of_the_file() {
        let text = "
workloads:
- {name: a, command: [x], replicas: 200, ports: [{port: 80}]}
- {name: b, command: [x], replicas: 60, ports: [{port: 80}]}
services:
- {name: a, ports: [{port: 80}]}
- {name: b, ports: [{port: 80}], headless: true}
- {name: b2, selector: {app: b}, ports: [{port: 80}], address: 10.47.240.2}
- {name: a2, selector: {app: a}, ports: [{port: 80}]}
";
        let mesh = Mesh::read("f", Path::new("/"), text).expect("a good file");
        let plan = Plan::new(&mesh);
        assert_eq!(plan.replicas.len(), 260);
        let shown = |n: usize| (plan.replicas[n].pod.as_str(), plan.replicas[n].v4.to_string(), plan.replicas[n].v6.to_string());
        assert_eq!(shown(0), ("a-0", "10.47.1.1".to_owned(), "fd47::1:1".to_owned()));
        assert_eq!(shown(200), ("b-0", "10.47.1.201".to_owned(), "fd47::1:c9".to_owned()));
        assert_eq!(shown(250), ("b-50", "10.47.2.1".to_owned(), "fd47::2:1".to_owned()));
        let services: Vec<_> = plan.services.iter().map(|a| a.map(|a| a.to_string())).collect();
        assert_eq!(
            services,
            [Some("10.47.240.1".to_owned()), None, Some("10.47.240.2".to_owned()), Some("10.47.240.3".to_owned())]
        );
    }

    #[test]
    fn addresses_for_services_are_a_range_of_their_own() {
        let inside = |text: &str| is_service_address(text.parse().expect("a literal"));
        assert!(inside("10.47.240.1") && inside("10.47.255.9"));
        assert!(!inside("10.47.1.1") && !inside("10.47.240.0") && !inside("10.48.240.1"));
    }
}
