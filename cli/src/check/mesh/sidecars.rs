//! What sidecars tell of themselves: clocks, certificates, the control plane, DNS, and room in the kernel.

use weft_core::wellknown::CLOCK_SKEW_SECS;

use super::{Certificate, Mesh, Sidecar, Told};
use crate::check::{Code, Finding};
use crate::duration::{self, brief};
use crate::install::VERSION;

/// Clocks that differ by less than this, in milliseconds, are told to be together.
const CLOCK_NOTICE: i64 = 5_000;
/// How long a connected control plane may be silent, in milliseconds: three heartbeats of 10 s.
const SILENT: u64 = 30_000;
/// What is left of a certificate when it should have been renewed long since, in seconds.
const CERTIFICATE_NOTICE: i64 = 4 * 3600;
/// A CA is told about this long before it ends, in seconds.
const ANCHOR_NOTICE: i64 = 30 * 24 * 3600;
/// Percent of a limit from which it is told.
const ROOM_NOTICE: u64 = 75;
const ROOM_BAD: u64 = 95;
/// A name that takes this long to be looked up is told, in milliseconds.
const SLOW_LOOKUP: u64 = 1_000;

pub(super) fn judge(mesh: &Mesh) -> Vec<Finding> {
    let mut findings = Vec::new();
    for sidecar in &mesh.sidecars {
        if let Err(why) = &sidecar.told {
            findings.push(
                Finding::bad(
                    Code::Silent,
                    format!("the sidecar of {} can't be asked: {why}", sidecar.pod),
                    "see its logs; a sidecar that hangs or has ended is started again with its pod",
                )
                .of(&sidecar.pod),
            );
        }
    }
    findings.extend(readiness(mesh));
    let (clocks, skewed) = clocks(mesh);
    findings.extend(clocks);
    let now = duration::now() + skewed.of_mesh / 1000;
    let together = end_together(mesh);
    for (sidecar, told) in mesh.sidecars.iter().filter_map(|s| Some((s, s.told()?))) {
        let is_skewed = skewed.pods.contains(&sidecar.pod);
        findings.extend(certificate(sidecar, told, mesh, now, (is_skewed, together)));
        findings.extend(control_plane(sidecar, told, is_skewed));
        findings.extend(dns(sidecar, told));
        findings.extend(room(sidecar, told));
    }
    findings.extend(versions(mesh));
    if let Some(status) = mesh.status() {
        findings.extend(status.problems.iter().map(|p| {
            let field = if p.field.is_empty() { String::new() } else { format!("{}: ", p.field) };
            Finding::warning(
                Code::Problems,
                format!("{}: {field}{}", p.place, p.message),
                "what was in force before stays so; mend the manifest, and look at it with weft validate",
            )
        }));
        for s in status.sidecars.iter().filter(|s| !s.rejected.is_empty()) {
            let pod = format!("{}/{}", s.namespace, s.pod);
            let all: Vec<String> = s.rejected.iter().map(|p| format!("{}: {}", p.place, p.message)).collect();
            findings.push(
                Finding::bad(
                    Code::Stale,
                    format!("{pod} rejects what the control plane sends: {}", all.join("; ")),
                    format!("weft diff {pod} tells what it lacks; bring both to one version"),
                )
                .of(&pod),
            );
        }
    }
    let told = mesh.sidecars.iter().filter(|s| s.told.is_ok()).count();
    let of = |code: Code| findings.iter().any(|f| f.code() == code);
    let mut good = Vec::new();
    if told > 0 {
        for (code, what) in [
            (Code::Clock, "clocks are together"),
            (Code::Certificate, "certificates are good"),
            (Code::ControlPlane, "every sidecar is connected to its control plane"),
            (Code::Stale, "every sidecar has heard its control plane lately"),
            (Code::Dns, "names are looked up"),
            (Code::Conntrack, "the kernel has room for connections"),
        ] {
            if !of(code) {
                good.push(Finding::good(code, format!("{what} ({told} sidecars)")));
            }
        }
    }
    findings.extend(good);
    findings
}

fn readiness(mesh: &Mesh) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (sidecar, told) in mesh.sidecars.iter().filter_map(|s| Some((s, s.told()?))).filter(|(_, told)| !told.ready) {
        findings.push(
            Finding::bad(
                Code::NotReady,
                format!("the sidecar of {} is not ready: it waits for: {}", sidecar.pod, told.waiting_for.join(", ")),
                format!("it gets them from its control plane at {}: see the sidecar's log", told.control_plane.address),
            )
            .of(&sidecar.pod),
        );
    }
    let listed = mesh.local.iter().flat_map(|local| &local.listed);
    for l in listed.filter(|l| !l.ready && !l.why.is_empty()) {
        findings.push(
            Finding::bad(Code::NotReady, format!("{} is not ready: {}", l.name(), l.why), "see what it prints: weft up shows it")
                .of(&l.name()),
        );
    }
    findings
}

/// Whose clocks are wrong.
struct Skewed {
    /// By how much the mesh's clocks are ahead of this machine's, in milliseconds.
    of_mesh: i64,
    pods: Vec<String>,
}

/// By how much a clock that said `now` at some time between two readings of this machine's is ahead of it, at least.
fn ahead(now: i64, (before, after): (i64, i64)) -> i64 {
    if now > after {
        now - after
    } else if now < before {
        now - before
    } else {
        0
    }
}

fn clocks(mesh: &Mesh) -> (Vec<Finding>, Skewed) {
    let mut offsets: Vec<(&str, i64)> = mesh
        .sidecars
        .iter()
        .filter_map(|s| Some((s, s.told()?.now_millis)))
        .filter(|(_, now)| *now > 0)
        .map(|(s, now)| (s.pod.as_str(), ahead(now, s.asked)))
        .collect();
    let control_plane = mesh.local.as_ref().and_then(|local| local.status.as_ref());
    let control_plane =
        control_plane.filter(|(status, _)| status.now_millis > 0).map(|(status, asked)| ahead(status.now_millis, *asked));
    let mut all: Vec<i64> = offsets.iter().map(|(_, by)| *by).chain(control_plane).collect();
    all.sort_unstable();
    let middle = all.get(all.len() / 2).copied().unwrap_or(0);
    let mut findings = Vec::new();
    let remedy = "set the clock of its machine right, and let NTP or PTP keep it (timedatectl status; chronyc tracking)";
    let limit = CLOCK_SKEW_SECS * 1000;
    let said = |by: i64| format!("{} {}", duration::brief((by / 1000).abs()), if by > 0 { "ahead" } else { "behind" });
    let of_mesh = if middle.abs() >= CLOCK_NOTICE { middle } else { 0 };
    if of_mesh != 0 {
        findings.push(Finding::warning(
            Code::Clock,
            format!("the mesh's clocks are {} of this machine's", said(of_mesh)),
            "set this machine's clock right",
        ));
    }
    let mut pods = Vec::new();
    offsets.sort_unstable();
    for (pod, by) in offsets {
        let by = by - of_mesh;
        if by.abs() < CLOCK_NOTICE {
            continue;
        }
        let sidecar = mesh.sidecars.iter().find(|s| s.pod == pod);
        let told = sidecar.and_then(Sidecar::told);
        let mut what = format!("the clock of {pod} is {}", said(by));
        if let Some(c) = told.and_then(|t| t.certificate.as_ref()) {
            let theirs = told.map_or(0, |t| t.now_millis / 1000);
            if theirs >= c.not_after {
                what += ": by it every certificate of the mesh has expired, so that it calls nobody";
            } else if theirs < c.not_before {
                what += ": by it its certificate is not valid yet, nor are those of others";
            }
        }
        findings.push(
            if by.abs() >= limit { Finding::bad(Code::Clock, what, remedy) } else { Finding::warning(Code::Clock, what, remedy) }
                .of(pod),
        );
        pods.push(pod.to_owned());
    }
    if let Some(by) = control_plane.map(|by| by - of_mesh).filter(|by| by.abs() >= CLOCK_NOTICE) {
        findings.push(Finding::bad(Code::Clock, format!("the control plane's clock is {}", said(by)), remedy));
    }
    // On a cluster the control plane's clock is known by what sidecars hear of it.
    for (sidecar, by) in mesh.sidecars.iter().filter_map(|s| Some((s, s.told()?.control_plane.ahead_millis?))) {
        if mesh.local.is_none() && by.abs() >= limit && !pods.contains(&sidecar.pod) {
            findings.push(
                Finding::bad(
                    Code::Clock,
                    format!("the control plane's clock is {} of that of {}", said(by), sidecar.pod),
                    remedy,
                )
                .of(&sidecar.pod),
            );
        }
    }
    (findings, Skewed { of_mesh, pods })
}

/// Whether all certificates end at one time: they are cut to the end of the CA that issued them.
fn end_together(mesh: &Mesh) -> bool {
    let ends: Vec<i64> = mesh.sidecars.iter().filter_map(|s| Some(s.told()?.certificate.as_ref()?.not_after)).collect();
    ends.len() > 1 && ends.iter().max().zip(ends.iter().min()).is_some_and(|(last, first)| last - first <= 2)
}

fn certificate(sidecar: &Sidecar, told: &Told, mesh: &Mesh, now: i64, (is_skewed, together): (bool, bool)) -> Vec<Finding> {
    let Some(c) = &told.certificate else { return Vec::new() };
    let pod = &sidecar.pod;
    let mut findings = Vec::new();
    let since = |c: &Certificate| match c.renewal_failing_since {
        0 => String::new(),
        _ if is_skewed => ", and it can't be renewed".to_owned(),
        since => format!(", and it can't be renewed for {}", brief(now - since)),
    };
    let remedy = |c: &Certificate| {
        if together || c.anchor_ends != 0 && c.anchor_ends <= c.not_after + 1 {
            "the CA ends then, too, as every certificate of the mesh does: replace it (on Kubernetes its Secret; else --ca-chain and --ca-key), then restart the control plane".to_owned()
        } else if told.control_plane.connected {
            "see the sidecar's log, which says why it can't be renewed".to_owned()
        } else {
            format!(
                "it is renewed by the control plane at {}, which it does not reach: mend that first",
                told.control_plane.address
            )
        }
    };
    let left = c.not_after - now;
    if left <= 0 {
        findings.push(
            Finding::bad(
                Code::Certificate,
                format!("the certificate of {pod} ({}) expired {} ago{}", c.id, brief(-left), since(c)),
                remedy(c),
            )
            .of(pod),
        );
    } else if c.not_before > now + CLOCK_SKEW_SECS {
        findings.push(
            Finding::bad(
                Code::Certificate,
                format!("the certificate of {pod} ({}) is not valid before {} from now", c.id, brief(c.not_before - now)),
                "the control plane's clock was ahead when it issued it: set that right, and restart the pod",
            )
            .of(pod),
        );
    } else if c.renewal_failing_since != 0 || left <= CERTIFICATE_NOTICE.min((c.not_after - c.not_before) / 6) {
        findings.push(
            Finding::warning(
                Code::Certificate,
                format!("the certificate of {pod} ends in {}{}", brief(left), since(c)),
                remedy(c),
            )
            .of(pod),
        );
    }
    if let Some(status) = mesh.status()
        && !c.anchor.is_empty()
        && !status.anchors.is_empty()
        && !status.anchors.contains(&c.anchor)
    {
        findings.push(
            Finding::bad(
                Code::Anchor,
                format!(
                    "the certificate of {pod} leads to an anchor that the control plane does not have ({})",
                    c.anchor.get(..12).unwrap_or(&c.anchor)
                ),
                "it was issued under another root: have the sidecar join anew (restart its pod)",
            )
            .of(pod),
        );
    } else if c.anchor_ends != 0 && (0..ANCHOR_NOTICE).contains(&(c.anchor_ends - now)) && left > 0 {
        findings.push(
            Finding::warning(
                Code::Anchor,
                format!("the anchor of {pod} ends in {}", brief(c.anchor_ends - now)),
                "replace the root: weft trust rotate --wait, or your own CA's way",
            )
            .of(pod),
        );
    }
    findings
}

fn control_plane(sidecar: &Sidecar, told: &Told, is_skewed: bool) -> Vec<Finding> {
    let (pod, cp) = (&sidecar.pod, &told.control_plane);
    let silent = cp.silent_millis.map(|millis| brief(i64::try_from(millis / 1000).unwrap_or(i64::MAX)));
    if !cp.connected {
        let heard = silent.map_or_else(|| "it never heard it".to_owned(), |silent| format!("it heard it {silent} ago"));
        let why = if is_skewed {
            "its clock is wrong, so that neither believes the other's certificate: set the clock right"
        } else if told.certificate.as_ref().is_some_and(|c| c.not_after <= duration::now()) {
            "its certificate has expired: the control plane refuses it, and it has to be issued anew"
        } else {
            "it goes on with what it knows; see that the control plane runs, and that nothing between them drops TCP to that port"
        };
        return vec![
            Finding::bad(
                Code::ControlPlane,
                format!("{pod} is not connected to its control plane at {}: {heard}", cp.address),
                why,
            )
            .of(pod),
        ];
    }
    match (cp.silent_millis, silent) {
        (Some(millis), Some(silent)) if millis > SILENT => {
            let what = format!("{pod} has heard nothing from its control plane for {silent}, though it is connected");
            vec![
                Finding::warning(
                    Code::Stale,
                    what,
                    format!("weft diff {pod} tells what it lacks; see the control plane's load and log"),
                )
                .of(pod),
            ]
        }
        _ => Vec::new(),
    }
}

fn dns(sidecar: &Sidecar, told: &Told) -> Vec<Finding> {
    let pod = &sidecar.pod;
    let Some(lookup) = told.control_plane.lookup.as_ref().filter(|l| l.is_name) else { return Vec::new() };
    let servers = told.name_servers.join(", ");
    match &lookup.error {
        Some(why) => vec![
            Finding::bad(Code::Dns, format!("{pod} can't look up {}: {why} (name servers: {servers})", lookup.host), "see that the cluster's DNS runs, and that UDP and TCP port 53 of it are reachable from the pod")
                .of(pod),
        ],
        None if lookup.millis >= SLOW_LOOKUP => vec![
            Finding::warning(Code::Dns, format!("{pod} takes {} ms to look up {} (name servers: {servers})", lookup.millis, lookup.host), "DNS that loses packets answers after its time for a repetition: see the load and the reachability of its servers")
                .of(pod),
        ],
        None => Vec::new(),
    }
}

/// One connection of so many that is held up is told, and not before there are [`A_FEW`].
const HELD_UP: u64 = 1_000;
const A_FEW: u64 = 10;

fn room(sidecar: &Sidecar, told: &Told) -> Vec<Finding> {
    let pod = &sidecar.pod;
    let mut findings = Vec::new();
    let percent = |used: u64, most: u64| used.saturating_mul(100).checked_div(most).unwrap_or(0);
    let judged = |code: Code, percent: u64, what: String, remedy: &str| match percent {
        ROOM_BAD.. => Some(Finding::bad(code, what, remedy).of(pod)),
        ROOM_NOTICE.. => Some(Finding::warning(code, what, remedy).of(pod)),
        _ => None,
    };
    if let Some(c) = &told.conntrack {
        let what = format!(
            "the kernel follows {} connections for {pod}, of {} that it may: beyond that it drops packets",
            c.count, c.max
        );
        findings.extend(judged(Code::Conntrack, percent(c.count, c.max), what, "raise it on the node (sysctl net.netfilter.nf_conntrack_max), or find who opens so many connections: weft edges -o wide"));
    }
    if let Some(r) = &told.refused
        && r.packets >= A_FEW
        && r.packets.saturating_mul(HELD_UP) > r.accepted
    {
        let (packets, accepted) = (r.packets, r.accepted);
        let what = format!(
            "{pod}: beside {accepted} connections that began, {packets} packets were refused by others that had ended: a program that opens many may wait a second for some"
        );
        let remedy = "have the program keep its connections, or set net.ipv4.tcp_timestamps=2 in the pod: docs/checks.md says how, and what it costs";
        findings.push(Finding::warning(Code::HeldUp, what, remedy).of(pod));
    }
    if let Some(r) = &told.connections {
        let what = format!("the sidecar of {pod} holds {} connections, of {} that it may: beyond that it sheds", r.held, r.limit);
        findings.extend(judged(
            Code::Room,
            percent(r.held, r.limit),
            what,
            "raise --max-connections and the limit of open files of the sidecar",
        ));
    }
    findings
}

fn versions(mesh: &Mesh) -> Vec<Finding> {
    let mut findings = Vec::new();
    let other: Vec<&Sidecar> = mesh.sidecars.iter().filter(|s| s.told().is_some_and(|t| t.version != VERSION)).collect();
    if let Some((first, told)) = other.first().and_then(|s| Some((s, s.told()?))) {
        findings.push(Finding::warning(
            Code::Version,
            format!(
                "{} sidecars are of another version than this weft ({VERSION}): {} has {}",
                other.len(),
                first.pod,
                told.version
            ),
            "restart their pods after an upgrade, or use the weft of their version",
        ));
    }
    if let Some(status) = mesh.status().filter(|status| status.version != VERSION) {
        findings.push(Finding::warning(
            Code::Version,
            format!("the control plane is of version {}, and this is weft {VERSION}", status.version),
            "use the weft of its version",
        ));
    }
    findings
}

#[cfg(test)]
mod tests;
