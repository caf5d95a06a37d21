//! The redirect of each pod, and the way between pods: sidecars look at each other, and a probe of ours stands in the pod's own network.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;

use super::Mesh;
use crate::check::{Code, Finding};
use crate::exec;
use crate::fleet::Fleet;
use crate::init::{Event, Signals, this_program};

/// Ways that are looked at in one check, and of one sidecar to those that it knows.
const MAX_PATHS: usize = 400;
const MAX_OF_ONE: usize = 2;
/// Where nobody is, inside the ranges of a mesh on this machine: a connection there is caught by the redirect or goes nowhere.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 47, 255, 254)), 65_531);
const CAUGHT_WITHIN: Duration = Duration::from_millis(1_500);

/// A way: from whose sidecar, to whose pod, at which address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) from: String,
    pub(super) to: String,
    pub(super) address: IpAddr,
}

/// What a sidecar saw of the way to an address.
#[derive(Deserialize, Debug, Clone)]
pub(super) struct Seen {
    redirect: String,
    small: Outcome,
    large: Option<Outcome>,
    largest_packet: Option<u32>,
}

#[derive(Deserialize, Debug, Clone)]
struct Outcome {
    error: Option<String>,
}

/// Ways to look at: each pod from its neighbour in the list, so that none is left out, and each sidecar to some that it calls.
pub(super) fn choose(addresses: &BTreeMap<&str, &[IpAddr]>, peers: &[(&str, &[IpAddr])]) -> Vec<Way> {
    let pods: Vec<(&str, IpAddr)> = addresses.iter().filter_map(|(pod, all)| Some((*pod, *all.first()?))).collect();
    let mut ways: Vec<Way> = Vec::new();
    let mut add = |from: &str, to: &str, address: IpAddr| {
        let way = Way { from: from.to_owned(), to: to.to_owned(), address };
        if way.from != way.to && !ways.contains(&way) {
            ways.push(way);
        }
    };
    for (i, (to, address)) in pods.iter().enumerate() {
        let from = pods[(i + pods.len() - 1) % pods.len()].0;
        add(from, to, *address);
    }
    let owner: BTreeMap<IpAddr, &str> = addresses.iter().flat_map(|(pod, all)| all.iter().map(|ip| (*ip, *pod))).collect();
    for (from, known) in peers.iter().filter(|(from, _)| addresses.contains_key(from)) {
        let called = known.iter().filter_map(|ip| Some((*ip, *owner.get(ip)?))).filter(|(_, to)| to != from);
        for (address, to) in called.take(MAX_OF_ONE) {
            add(from, to, address);
        }
    }
    ways.truncate(MAX_PATHS);
    ways
}

/// Has the sidecars look.
pub(super) fn look(fleet: &Fleet, ways: &[Way]) -> Vec<(Way, Result<Seen, String>)> {
    let seen = Fleet::each(ways, |way| {
        let text = fleet.ask_one(&way.from, "GET", &format!("/check/path?to={}", way.address)).map_err(|e| format!("{e:#}"))?;
        serde_json::from_str(&text).map_err(|e| e.to_string())
    });
    ways.iter().cloned().zip(seen).collect()
}

/// Whether what a pod calls is caught: none where that can't be said.
pub(super) fn outbound(run: &Path, pod: &str) -> Option<Result<(), String>> {
    let output = this_program("__reach").arg("--run-dir").arg(run).arg(pod).stdin(Stdio::null()).output().ok()?;
    match (output.status.code(), String::from_utf8_lossy(&output.stderr).trim().trim_start_matches("weft: ")) {
        (Some(0), _) => Some(Ok(())),
        (Some(3), why) => Some(Err(why.to_owned())),
        _ => None,
    }
}

/// `weft __reach`: stands in a pod's network, where what it dials is redirected as the workload's own would be.
#[derive(Args, Debug)]
pub(crate) struct ReachArgs {
    #[arg(long)]
    run_dir: std::path::PathBuf,
    pod: String,
}

/// Ends with 3 where a connection is not caught.
pub(crate) fn reach(args: &ReachArgs) -> anyhow::Result<ExitCode> {
    exec::enter_network(&args.run_dir, &args.pod)?;
    match TcpStream::connect_timeout(&NOWHERE, CAUGHT_WITHIN) {
        Ok(_) => Ok(ExitCode::SUCCESS),
        Err(why) => {
            crate::complain(&why.to_string());
            Ok(ExitCode::from(3))
        }
    }
}

/// The program that captures packets, in a pod's network. A signal that would end this process ends the program first, which writes what it has.
pub(crate) fn in_network(run: &Path, pod: &str, command: &mut Command) -> anyhow::Result<ExitCode> {
    exec::enter_network(run, pod)?;
    let signals = Signals::hold(&[Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP])?;
    let child = command.spawn().with_context(|| format!("{} can't be run", command.get_program().display()))?;
    let child = Pid::from_raw(child.id().cast_signed());
    loop {
        match signals.next(child)? {
            Event::Ended(code) => return Ok(ExitCode::from(code)),
            Event::Signal(_) => {
                let _ = kill(child, Signal::SIGINT);
            }
        }
    }
}

pub(super) fn judge(
    mesh: &Mesh,
    looks: &[(Way, Result<Seen, String>)],
    outbound: &[(&str, Option<Result<(), String>>)],
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let remedy = |pod: &str| {
        format!(
            "start the pod anew, which applies and proves the rules again; until then {pod} is outside of the mesh that way. Something on its node may have flushed its tables (nft flush ruleset, iptables -F)"
        )
    };
    for (pod, why) in outbound.iter().filter_map(|(pod, seen)| Some((*pod, seen.as_ref()?.as_ref().err()?))) {
        let what =
            format!("what {pod} calls is not redirected to its sidecar: it goes out in the clear, past every policy ({why})");
        findings.push(Finding::bad(Code::Outbound, what, remedy(pod)).of(pod));
    }
    let mut told = BTreeSet::new();
    for (way, seen) in looks {
        let Ok(seen) = seen else { continue };
        let (from, to) = (way.from.as_str(), way.to.as_str());
        if let Some(why) = &seen.small.error {
            let is_silent = mesh.sidecars.iter().any(|s| s.pod == to && s.told.is_err());
            if !is_silent && told.insert((Code::Path, to, from)) {
                let what = format!("{from} can't reach the sidecar of {to} at {}: {why}", way.address);
                findings.push(
                    Finding::bad(
                        Code::Path,
                        what,
                        "see what drops packets between them: a NetworkPolicy of the cluster, a firewall, routes of the nodes",
                    )
                    .of(to),
                );
            }
        } else if let Some(why) = seen.large.as_ref().and_then(|l| l.error.as_ref())
            && told.insert((Code::Mtu, to, from))
        {
            let (most, remedy) = match seen.largest_packet {
                Some(most) => (
                    format!("packets of up to {most} bytes arrive, larger ones vanish without a word"),
                    format!(
                        "an MTU on the way is smaller than both ends believe: set the MTU of the pods' network to {most} or less, or have the nodes clamp the MSS (iptables -t mangle -A FORWARD -p tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu)"
                    ),
                ),
                None => (
                    format!("small packets arrive and full ones do not ({why})"),
                    "look for a link on the way with a smaller MTU, or a filter that drops large or fragmented packets"
                        .to_owned(),
                ),
            };
            findings.push(Finding::bad(Code::Mtu, format!("{from} to {to}: {most}"), remedy).of(to));
        }
        if seen.redirect == "refused" && seen.small.error.is_none() && told.insert((Code::Inbound, to, "")) {
            let what = format!(
                "what calls {to} is not redirected to its sidecar (asked from {from}): mutual TLS and policies are not enforced"
            );
            findings.push(Finding::bad(Code::Inbound, what, remedy(to)).of(to));
        }
    }
    let has = |code: Code| findings.iter().any(|f| f.code() == code);
    let looked: usize = looks.iter().filter(|(_, seen)| seen.is_ok()).count();
    let mut good = Vec::new();
    if outbound.iter().any(|(_, seen)| matches!(seen, Some(Ok(())))) && !has(Code::Outbound) {
        good.push(Finding::good(Code::Outbound, "what pods call is redirected, tried in each"));
    }
    if looked > 0 {
        for (code, what) in [
            (Code::Inbound, "what calls pods is redirected"),
            (Code::Path, "sidecars reach each other"),
            (Code::Mtu, "large packets arrive"),
        ] {
            if !has(code) {
                good.push(Finding::good(code, format!("{what}, tried on {looked} ways")));
            }
        }
    }
    findings.extend(good);
    findings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_pod_is_looked_at_and_those_that_are_called_twice() {
        let ip = |n: u8| [IpAddr::from([10, 47, 0, n])];
        let (a, b, c) = (ip(1), ip(2), ip(3));
        let addresses = BTreeMap::from([("x/a", &a[..]), ("x/b", &b[..]), ("x/c", &c[..])]);
        let ways = choose(&addresses, &[("x/a", &c[..]), ("x/b", &b[..]), ("x/gone", &a[..])]);
        let shown: Vec<String> = ways.iter().map(|w| format!("{} {}", w.from, w.to)).collect();
        assert_eq!(shown, ["x/c x/a", "x/a x/b", "x/b x/c", "x/a x/c"]);
        assert!(choose(&BTreeMap::from([("x/a", &a[..])]), &[]).is_empty(), "nobody looks at itself");
    }

    fn judged(seen: serde_json::Value, outbound: Option<Result<(), String>>) -> String {
        let way = Way { from: "x/a".into(), to: "x/b".into(), address: IpAddr::from([10, 47, 0, 2]) };
        let mesh = Mesh { sidecars: Vec::new(), objects: Vec::new(), local: None };
        let seen = serde_json::from_value(seen).map_err(|e| e.to_string());
        let findings = judge(&mesh, &[(way, seen)], &[("x/a", outbound)]);
        findings.iter().map(|f| format!("{} {}", f.code().as_str(), f.shown())).collect()
    }

    #[test]
    fn what_is_seen_is_named() {
        let good = judged(
            json!({"redirect": "caught", "small": {"millis": 1.0}, "large": {"millis": 1.0}, "largest_packet": null}),
            Some(Ok(())),
        );
        assert!(!good.contains('✗') && good.contains("tried in each") && good.contains("large packets arrive"), "{good}");
        let hole = judged(
            json!({"redirect": "caught", "small": {"millis": 1.0}, "large": {"error": "none"}, "largest_packet": 1360}),
            None,
        );
        assert!(hole.contains("WEFT-C033 ✗ x/a to x/b: packets of up to 1360 bytes arrive"), "{hole}");
        let open = judged(
            json!({"redirect": "refused", "small": {"millis": 1.0}, "large": {"millis": 1.0}}),
            Some(Err("No route to host".into())),
        );
        assert!(
            open.contains("WEFT-C030 ✗ what x/a calls is not redirected") && open.contains("WEFT-C031 ✗ what calls x/b"),
            "{open}"
        );
        let cut = judged(json!({"redirect": "silent", "small": {"error": "no answer in 2.5 s"}, "large": null}), None);
        assert!(cut.contains("WEFT-C032 ✗ x/a can't reach the sidecar of x/b at 10.47.0.2: no answer"), "{cut}");
    }
}
