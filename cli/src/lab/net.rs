//! The mesh's network: a bridge in the lab, and a cable from it to every replica.

use std::fmt::Write;
use std::path::Path;

use super::protocol::{Failure, ReplicaSpec};
use super::tools;
use crate::plan::{GATEWAY, GATEWAY6, PREFIX, PREFIX6, SERVICE_RANGE};

const BRIDGE: &str = "weft0";
/// Fixed, or else the bridge would change it whenever a cable comes, and neighbours would have to ask again.
const BRIDGE_MAC: &str = "02:00:0a:2f:00:01";
/// What an ordinary user may do in a network namespace of one's own that holds nothing but the workload.
const UNPRIVILEGED_PORT_START: &str = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
const PING_GROUP_RANGE: &str = "/proc/sys/net/ipv4/ping_group_range";

/// Makes the bridge, and says whether it has IPv6 too.
pub(super) async fn bridge(ip: &Path) -> Result<bool, Failure> {
    let doing = "the mesh's network could not be made";
    let script = format!(
        "link set lo up\n\
         link add {BRIDGE} address {BRIDGE_MAC} type bridge\n\
         addr add {GATEWAY}/{PREFIX} dev {BRIDGE}\n\
         link set {BRIDGE} up\n"
    );
    batch(ip, &script).await.map_err(|why| {
        Failure::new(doing, why).remedy("the kernel needs bridges and veth pairs: modprobe -a bridge veth, as root")
    })?;
    if !Path::new("/proc/sys/net/ipv6").exists() {
        return Ok(false);
    }
    Ok(batch(ip, &format!("addr add {GATEWAY6}/{PREFIX6} dev {BRIDGE} nodad\n")).await.is_ok())
}

/// Lays a cable from the bridge into the network namespace of process `pid`, where its end is `eth0`.
pub(super) async fn attach(ip: &Path, index: usize, pid: u32) -> Result<(), Failure> {
    let script = format!(
        "link add w{index} type veth peer name eth0 netns {pid}\n\
         link set w{index} master {BRIDGE}\n\
         link set w{index} up\n"
    );
    batch(ip, &script).await.map_err(|why| Failure::new("the replica could not be connected to the mesh's network", why))
}

/// Gives the replica's end of the cable its addresses. Runs in the replica.
pub(super) async fn configure(spec: &ReplicaSpec) -> Result<(), Failure> {
    let mut script = format!(
        "link set lo up\n\
         addr add {}/{PREFIX} dev eth0\n\
         link set eth0 up\n\
         route add default via {GATEWAY}\n",
        spec.v4
    );
    if let Some(v6) = spec.v6 {
        let _ = write!(script, "addr add {v6}/{PREFIX6} dev eth0 nodad\nroute add ::/0 via {GATEWAY6}\n");
    }
    if !spec.meshed {
        // Only a sidecar knows what is behind a service's address; without one it is better said at once.
        let _ = writeln!(script, "route add unreachable {SERVICE_RANGE}");
    }
    batch(&spec.programs.ip, &script).await.map_err(|why| Failure::new("the replica's address could not be set", why))?;
    // Port 80 for everyone, and ping; a kernel that does not have these switches does without.
    let _ = std::fs::write(UNPRIVILEGED_PORT_START, "0");
    let _ = std::fs::write(PING_GROUP_RANGE, if spec.rootless { "0 0" } else { "0 2147483647" });
    Ok(())
}

async fn batch(ip: &Path, script: &str) -> Result<(), String> {
    tools::run(ip, &["-batch", "-"], script).await.map(drop)
}
