//! The access log of sidecars as flows: what came in, of whoever has lines and no recording.
//!
//! A line does not say whose it is. That is said by the line itself where whoever gathered it has added a field `pod` (NAMESPACE/NAME), by what
//! `kubectl logs --prefix` puts before it, or by the name of the file: `NAMESPACE_POD.log`, or a directory `NAMESPACE_POD_UID` as the kubelet has them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, bail};
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use weft_control_plane::explain::flows::Flow;
use weft_core::failure::Reason;
use weft_core::service::ObjectRef;
use weft_core::{Namespace, SpiffeId};

use super::Header;

/// A path and a host that are as long as the log keeps them may have been longer: a part of one is another call. In bytes.
const LONGEST: [usize; 2] = [1_024, 256];
/// Reasons by which a call was refused by policy.
const REFUSED: [Reason; 3] = [Reason::Denied, Reason::NetworkPolicy, Reason::MtlsRequired];
/// Reasons by which a request ends before a policy is asked.
const NOT_JUDGED: [Reason; 10] = [
    Reason::BadRequest,
    Reason::UriTooLong,
    Reason::HeadersTooLarge,
    Reason::RequestTimeout,
    Reason::ProtocolMismatch,
    Reason::Overloaded,
    Reason::Draining,
    Reason::NotReady,
    Reason::NotRedirected,
    Reason::ForbiddenDestination,
];

/// A line, as far as it is wanted.
#[derive(Deserialize)]
struct Line {
    direction: String,
    time: String,
    client: IpAddr,
    peer: String,
    port: u16,
    protocol: String,
    method: Option<String>,
    path: Option<String>,
    host: Option<String>,
    reason: Option<String>,
    pod: Option<String>,
}

/// Who answers for lines.
pub(crate) struct Whose<'a> {
    /// The namespace of pods that are known by their names alone.
    pub(crate) namespace: Option<&'a Namespace>,
    /// The identity of a pod.
    pub(crate) identity: &'a dyn Fn(&ObjectRef) -> Option<SpiffeId>,
}

/// Reads a log. Lines of calls that went out, and what is no line of it, are passed over; calls that cannot be judged anew are counted.
///
/// # Errors
///
/// Where there is no line of a call that came in, or nobody knows whose one is.
pub(super) fn read(path: &Path, text: &str, whose: &Whose<'_>) -> anyhow::Result<(Header, Vec<Flow>)> {
    let mut header = Header { weft_flows: 1, since: i64::MAX, until: i64::MIN, sidecars: vec![], not_heard: vec![], left_out: 0 };
    let mut flows: BTreeMap<String, Flow> = BTreeMap::new();
    let mut unknown: BTreeMap<String, u64> = BTreeMap::new();
    let file_of = of_file(path);
    let mut lines = 0_u64;
    for (i, text) in text.lines().enumerate() {
        let Some((before, line)) = text.find('{').and_then(|at| Some((&text[..at], inbound(&text[at..])?))) else { continue };
        lines += 1;
        let place = || format!("{}:{}", path.display(), i + 1);
        let pod = pod(&line, before, file_of.as_ref(), whose.namespace).with_context(place)?;
        let Some(identity) = (whose.identity)(&pod) else {
            *unknown.entry(pod.to_string()).or_default() += 1;
            continue;
        };
        let Some(flow) = flow(line, pod, identity).with_context(place)? else {
            header.left_out += 1;
            continue;
        };
        (header.since, header.until) = (header.since.min(flow.first), header.until.max(flow.last));
        header.sidecars.push(flow.pod.to_string());
        // One call is another's equal in everything but when it came.
        let key = serde_json::to_string(&Flow { first: 0, last: 0, ..flow.clone() })?;
        match flows.get_mut(&key) {
            Some(same) => {
                same.count += 1;
                (same.first, same.last) = (same.first.min(flow.first), same.last.max(flow.last));
            }
            None => drop(flows.insert(key, flow)),
        }
    }
    if lines == 0 {
        bail!(
            "{}: it is neither a file that weft record has written, nor a log with calls that came in (WEFT_ACCESS_LOG=json)",
            path.display()
        );
    }
    header.sidecars.sort_unstable();
    header.sidecars.dedup();
    let gone =
        |(pod, n)| (pod, format!("{n} lines of it are left out: there is no such pod, so that its service account is not known"));
    header.not_heard = unknown.into_iter().map(gone).collect();
    if flows.is_empty() {
        (header.since, header.until) = (0, 0);
    }
    let mut flows: Vec<Flow> = flows.into_values().collect();
    flows.sort_by(|a, b| (&a.pod, a.first).cmp(&(&b.pod, b.first)));
    Ok((header, flows))
}

/// A line of a call that came in.
fn inbound(text: &str) -> Option<Line> {
    serde_json::from_str::<Line>(text).ok().filter(|line| line.direction == "inbound")
}

/// Whose line it is.
fn pod(line: &Line, before: &str, file: Option<&ObjectRef>, namespace: Option<&Namespace>) -> anyhow::Result<ObjectRef> {
    if let Some(pod) = &line.pod {
        return pod.parse().with_context(|| format!("the field pod is {pod:?}, and no NAMESPACE/NAME"));
    }
    // [pod/NAME/CONTAINER]
    let named = before.trim_start().strip_prefix("[pod/").and_then(|rest| Some(rest.split_once('/')?.0));
    match (named, namespace, file) {
        (Some(name), Some(namespace), _) => format!("{namespace}/{name}").parse().with_context(|| format!("{name:?} is no pod")),
        (Some(name), None, _) => bail!("the line is of the pod {name}, and of which namespace is not said: give -n NS"),
        (None, _, Some(pod)) => Ok(pod.clone()),
        (None, _, None) => bail!(
            "nobody knows whose line it is: name the file NAMESPACE_POD.log, or write it by kubectl logs --prefix and give -n NS"
        ),
    }
}

/// The pod that a file is named after: its own name, or its directories' as the kubelet has them (`NAMESPACE_POD_UID/CONTAINER/0.log`).
fn of_file(path: &Path) -> Option<ObjectRef> {
    let own = path.file_stem().and_then(|name| name.to_str());
    let above = path.ancestors().skip(1).filter_map(|dir| dir.file_name()?.to_str());
    own.into_iter().chain(above.take(2)).find_map(|name| {
        let mut parts = name.split('_');
        let (namespace, pod) = (parts.next()?, parts.next()?);
        format!("{namespace}/{pod}").parse().ok()
    })
}

/// The call; none where it was not judged, or is not known whole.
fn flow(line: Line, pod: ObjectRef, identity: SpiffeId) -> anyhow::Result<Option<Flow>> {
    let at =
        OffsetDateTime::parse(&line.time, &Rfc3339).with_context(|| format!("its time is {:?}", line.time))?.unix_timestamp();
    let caller = match line.peer.as_str() {
        "plaintext" => None,
        id => Some(id.parse::<SpiffeId>().with_context(|| format!("its peer is {id:?}, and no identity"))?),
    };
    let is = |reasons: &[Reason]| reasons.iter().any(|r| line.reason.as_deref() == Some(r.as_str()));
    // What was no text stands in the log with this sign in it.
    let cut = |text: &Option<String>, most: usize| text.as_ref().is_some_and(|t| t.len() >= most || t.contains('\u{fffd}'));
    let is_whole = line.method.is_some() == line.path.is_some();
    if is(&NOT_JUDGED) || !is_whole || cut(&line.path, LONGEST[0]) || cut(&line.host, LONGEST[1]) || cut(&line.method, LONGEST[1])
    {
        return Ok(None);
    }
    let (grpc, refused) = (line.protocol == "grpc", is(&REFUSED));
    Ok(Some(Flow {
        pod,
        identity,
        caller,
        source: line.client,
        port: line.port,
        // gRPC is told in the place of what carries it.
        protocol: if grpc { "http/2".to_owned() } else { line.protocol },
        // A request without a host has an empty one.
        host: line.method.is_some().then(|| line.host.unwrap_or_default()),
        method: line.method,
        path: line.path,
        grpc,
        allowed: !refused,
        reason: line.reason.filter(|_| refused),
        count: 1,
        first: at,
        last: at,
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(change: &serde_json::Value) -> String {
        let mut line = json!({"time": "2026-11-22T01:02:03.456789Z", "direction": "inbound", "client": "10.47.0.9", "peer": "spiffe://td/ns/a/sa/b",
            "target": "8080", "port": 8080, "protocol": "http/1.1", "method": "GET", "path": "/x", "host": "web.shop", "status": 200, "duration_ms": 1.5});
        for (name, value) in change.as_object().into_iter().flatten() {
            line[name] = value.clone();
        }
        line.to_string()
    }

    fn read_of(path: &str, text: &str, namespace: Option<&str>) -> anyhow::Result<(Header, Vec<Flow>)> {
        let namespace: Option<Namespace> = namespace.map(|n| n.parse().expect("a namespace"));
        let known = |pod: &ObjectRef| {
            (pod.to_string() == "shop/web-0").then(|| "spiffe://td/ns/shop/sa/web".parse().expect("an identity"))
        };
        read(Path::new(path), text, &Whose { namespace: namespace.as_ref(), identity: &known })
    }

    #[test]
    fn equal_calls_are_one_flow_and_others_are_passed_over() {
        let log = [
            line(&json!({})),
            "2026 INFO ready".to_owned(),
            line(&json!({"time": "2026-11-22T01:02:09Z"})),
            line(&json!({"direction": "outbound"})),
            line(&json!({"reason": "denied", "peer": "plaintext"})),
            line(&json!({"reason": "upstream-reset", "protocol": "grpc"})),
            line(&json!({"protocol": "tcp", "method": null, "path": null, "host": null})),
            line(&json!({"reason": "overloaded"})),
            line(&json!({"path": "/".repeat(1_024)})),
        ];
        let (header, flows) = read_of("shop_web-0.log", &log.join("\n"), None).expect("good");
        assert_eq!((header.left_out, header.until - header.since, header.sidecars.len()), (2, 6, 1));
        let told: Vec<_> =
            flows.iter().map(|f| (f.count, f.allowed, f.grpc, f.caller.is_some(), f.method.is_some(), &*f.protocol)).collect();
        assert_eq!(told.len(), 4, "{told:?}");
        for wanted in [
            (2, true, false, true, true, "http/1.1"),
            (1, false, false, false, true, "http/1.1"),
            (1, true, true, true, true, "http/2"),
            (1, true, false, true, false, "tcp"),
        ] {
            assert!(told.contains(&wanted), "{wanted:?} is not in {told:?}");
        }
        let refused = flows.iter().find(|f| !f.allowed).expect("one");
        assert_eq!((refused.reason.as_deref(), refused.pod.to_string().as_str()), (Some("denied"), "shop/web-0"));
    }

    #[test]
    fn whose_a_line_is_is_said_by_itself_its_prefix_or_its_file() {
        let (plain, with_pod) = (line(&json!({})), line(&json!({"pod": "shop/web-0"})));
        let prefixed = format!("[pod/web-0/weft-sidecar] {plain}");
        for (path, text, namespace) in [
            ("x.log", &with_pod, None),
            ("x.log", &prefixed, Some("shop")),
            ("/tmp/shop_web-0.jsonl", &plain, None),
            ("/var/log/pods/shop_web-0_1234-ab/weft-sidecar/0.log", &format!("2026-11-22T01:02:03Z stdout F {plain}"), None),
        ] {
            let (_, flows) = read_of(path, text, namespace).unwrap_or_else(|e| panic!("{path}: {e:#}"));
            assert_eq!(flows[0].pod.to_string(), "shop/web-0", "{path}");
        }
        for (path, text, why) in [
            ("x.log", &plain, "x.log:1: nobody knows whose line it is"),
            ("x.log", &prefixed, "x.log:1: the line is of the pod web-0"),
            ("x.log", &"{}\nno\n".to_owned(), "neither a file that weft record has written"),
        ] {
            let said = format!("{:#}", read_of(path, text, None).expect_err(why));
            assert!(said.contains(why), "{said}");
        }
        let (header, flows) = read_of("shop_gone-0.log", &plain, None).expect("read");
        assert!(flows.is_empty() && header.not_heard[0].1.starts_with("1 lines of it are left out"), "{header:?}");
    }
}
