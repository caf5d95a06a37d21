//! What the kernel tells of the pod's network namespace, from `/proc`.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use serde_json::{Value, json};

/// `LISTEN` in `/proc/net/tcp` (`include/net/tcp_states.h`).
const LISTEN: &str = "0A";
/// Listening sockets that are told; a pod with more has another fault.
const MAX_LISTENING: usize = 2_000;

/// How many connections the kernel follows here, and how many it may; null where it follows none.
pub(super) fn conntrack() -> Value {
    let number = |name: &str| -> Option<u64> {
        fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}")).ok()?.trim().parse().ok()
    };
    match (number("count"), number("max")) {
        (Some(count), Some(max)) => json!({"count": count, "max": max}),
        _ => Value::Null,
    }
}

/// Packets that connections in TIME-WAIT refused for their old timestamps (`PAWSTimewait`, counted since Linux 6.14), and connections that were accepted, since the network
/// namespace was made; null where timestamps have no offsets, or the kernel does not count.
pub(super) fn refused() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    if read("/proc/sys/net/ipv4/tcp_timestamps").trim() != "1" {
        return Value::Null;
    }
    let refused = counter(&read("/proc/self/net/netstat"), "TcpExt:", "PAWSTimewait");
    match (refused, counter(&read("/proc/self/net/snmp"), "Tcp:", "PassiveOpens")) {
        (Some(refused), Some(accepted)) => json!({"packets": refused, "accepted": accepted}),
        _ => Value::Null,
    }
}

/// A counter of `/proc/net/netstat` or `snmp`, where a line of names goes before each line of numbers.
fn counter(text: &str, group: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with(group));
    let at = lines.next()?.split_whitespace().position(|word| word == name)?;
    lines.next()?.split_whitespace().nth(at)?.parse().ok()
}

/// Where programs of the pod listen, sorted.
pub(super) fn listening() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let mut all = sockets(&read("/proc/self/net/tcp"));
    all.extend(sockets(&read("/proc/self/net/tcp6")));
    all.into_iter().take(MAX_LISTENING).map(|(port, ip)| json!({"address": ip, "port": port})).collect()
}

fn sockets(text: &str) -> BTreeSet<(u16, IpAddr)> {
    text.lines().skip(1).filter_map(socket).collect()
}

/// One line of `/proc/net/tcp` or `tcp6`: `  0: 0100007F:0035 00000000:0000 0A …`.
fn socket(line: &str) -> Option<(u16, IpAddr)> {
    let mut words = line.split_whitespace().skip(1);
    let local = words.next()?;
    if words.nth(1)? != LISTEN {
        return None;
    }
    let (ip, port) = local.split_once(':')?;
    Some((u16::from_str_radix(port, 16).ok()?, address(ip)?))
}

/// Words of 32 bits in the machine's own order, as the kernel prints them.
fn address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(hex.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    match hex.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for i in 0..4 {
                bytes[4 * i..4 * i + 4].copy_from_slice(&word(8 * i)?);
            }
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

/// The name servers that a resolv.conf names.
pub(super) fn name_servers(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|l| l.trim().strip_prefix("nameserver")).map(|l| l.trim().to_owned()).take(16).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn listening_sockets_are_read_and_others_are_not() {
        let v4 = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                  0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1\n   \
                  1: 0100007F:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2\n   \
                  2: 0100007F:0035 0200007F:8000 01 00000000:00000000 00:00000000 00000000     0        0 3\n";
        let v6 = "  sl  local_address\n   0: 00000000000000000000000001000000:1F91 00000000000000000000000000000000:0000 0A\n";
        let found: Vec<_> = sockets(v4).into_iter().chain(sockets(v6)).map(|(port, ip)| format!("{ip} {port}")).collect();
        assert_eq!(found, ["127.0.0.1 53", "0.0.0.0 8080", "::1 8081"]);
    }

    #[test]
    fn a_counter_is_found_by_its_name_in_its_group() {
        let text = "TcpExt: SyncookiesSent PAWSTimewait\nTcpExt: 3 17\nIpExt: PAWSTimewait InNoRoutes\nIpExt: 5 6\n";
        assert_eq!(counter(text, "TcpExt:", "PAWSTimewait"), Some(17));
        for (text, name) in [(text, "InNoRoutes"), ("TcpExt: A B\nTcpExt: 1\n", "B"), ("TcpExt: A\n", "A"), ("", "A")] {
            assert_eq!(counter(text, "TcpExt:", name), None);
        }
    }

    #[test]
    fn what_is_no_such_line_is_passed_over() {
        for line in ["", "x", "0: zz:1F90 0:0 0A", "0: 00000000 0:0 0A", "0: 0000:1F90 0:0 0A", "0: 00000000:1F90"] {
            assert_eq!(socket(line), None, "{line}");
        }
    }
}
