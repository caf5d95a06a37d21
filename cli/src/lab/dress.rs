//! What a replica sees instead of the machine's own: host name, resolver, hosts.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::unistd::sethostname;

use super::protocol::{Failure, ReplicaSpec};
use crate::mounts;
use crate::plan::GATEWAY;

const RESOLV: &str = "/etc/resolv.conf";
const HOSTS: &str = "/etc/hosts";
const NSSWITCH: &str = "/etc/nsswitch.conf";
/// Where a cache of names may listen, which would answer with what the machine knows.
const NAME_CACHES: [&str; 2] = ["/run/nscd", "/var/run/nscd"];

/// Dresses the namespaces that this process has just made.
pub(super) fn dress(spec: &ReplicaSpec) -> Result<(), Failure> {
    let doing = "the replica's own files could not be put in place";
    sethostname(&spec.pod).map_err(|e| Failure::new("the host name could not be set", e))?;
    let etc = spec.dir.join("etc");
    fs::create_dir(&etc).map_err(|e| Failure::new(doing, format!("{}: {e}", etc.display())))?;

    replace(&etc.join("resolv.conf"), RESOLV, &resolv_conf(&spec.namespace)).map_err(|e| {
        Failure::new(doing, format!("{RESOLV}: {e}")).remedy("it must be there, and not be a link to nowhere: as root, make it")
    })?;
    optional(replace(&etc.join("hosts"), HOSTS, &hosts(spec))).map_err(|e| Failure::new(doing, format!("{HOSTS}: {e}")))?;
    let nsswitch = fs::read_to_string(NSSWITCH).unwrap_or_default();
    optional(replace(&etc.join("nsswitch.conf"), NSSWITCH, &names_from_files_and_dns(&nsswitch)))
        .map_err(|e| Failure::new(doing, format!("{NSSWITCH}: {e}")))?;
    for cache in NAME_CACHES.iter().map(Path::new).filter(|path| path.is_dir()) {
        mounts::cover(cache).map_err(|e| Failure::new(doing, format!("{}: {e}", cache.display())))?;
    }
    Ok(())
}

/// Writes `text` to `from`, and shows that at `at`.
fn replace(from: &Path, at: &str, text: &str) -> std::io::Result<()> {
    fs::write(from, text)?;
    // Whatever the umask: the workload may be another user.
    fs::set_permissions(from, fs::Permissions::from_mode(0o644))?;
    mounts::bind(from, Path::new(at))?;
    Ok(())
}

/// A file that the machine does not have needs no other in its place.
fn optional(outcome: std::io::Result<()>) -> std::io::Result<()> {
    match outcome {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn resolv_conf(namespace: &str) -> String {
    format!(
        "nameserver {GATEWAY}\nsearch {namespace}.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5 timeout:2\n"
    )
}

fn hosts(spec: &ReplicaSpec) -> String {
    let own: String = spec.addresses().iter().map(|ip| format!("{ip} {}\n", spec.pod)).collect();
    format!("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n{own}")
}

/// The machine's file, but for where the names of hosts come from.
fn names_from_files_and_dns(text: &str) -> String {
    let others = text.lines().filter(|line| !line.trim_start().starts_with("hosts:"));
    others.chain(["hosts: files dns"]).map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_source_of_host_names_changes() {
        let text = "passwd: files systemd\nhosts: files mdns4_minimal [NOTFOUND=return] resolve dns\n# end\n";
        assert_eq!(names_from_files_and_dns(text), "passwd: files systemd\n# end\nhosts: files dns\n");
        assert_eq!(names_from_files_and_dns(""), "hosts: files dns\n");
    }

    #[test]
    fn short_names_are_looked_for_in_the_own_namespace_first() {
        assert!(resolv_conf("shop").contains("\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\n"));
    }
}
