//! `weft check --strict-ready NS`: who would be refused if the namespace became strict, as its sidecars have seen it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use weft_control_plane::objects::{Object, PodObject, ServiceObject, Transport};
use weft_core::Namespace;

use crate::fleet::{Answer, Fleet};
use crate::output::Output;
use crate::{duration, table};

/// What a sidecar says of plaintext callers.
#[derive(Deserialize, Debug)]
struct Report {
    since: i64,
    callers: Vec<Caller>,
    others: u64,
    others_last: i64,
}

#[derive(Deserialize, Debug)]
struct Caller {
    source: IpAddr,
    port: u16,
    connections: u64,
    refused: u64,
    first: i64,
    last: i64,
}

/// What is known of a namespace.
#[derive(Serialize, Debug, Default)]
#[serde(rename_all = "camelCase")]
struct Readiness {
    namespace: String,
    /// Nobody who is let in today would be refused, as far as was seen by all.
    ready: bool,
    /// Sidecars that answered, and since when each has looked, in seconds since 1970.
    heard: BTreeMap<String, i64>,
    /// Sidecars that did not, and why.
    not_heard: BTreeMap<String, String>,
    /// Pods without a sidecar: strict changes nothing for them.
    without_sidecar: Vec<String>,
    callers: Vec<Row>,
    /// Connections of callers that were too many to be kept apart, by sidecar.
    others: BTreeMap<String, u64>,
}

/// A caller of a port that speaks plaintext, over all pods of the Service.
#[derive(Serialize, Debug, PartialEq, Eq, Clone)]
#[serde(rename_all = "camelCase")]
struct Row {
    /// NAMESPACE/NAME of the Service and the port that callers dial; the pod where none leads to it.
    service: String,
    /// The pods' own.
    port: u16,
    source: IpAddr,
    /// The pod at that address now.
    caller: Option<String>,
    caller_has_sidecar: bool,
    /// Those that were let in, and those that were not, since the port was strict.
    connections: u64,
    refused: u64,
    first: i64,
    last: i64,
}

/// Looks, says what was found, and succeeds where the namespace is ready.
pub(crate) fn main(fleet: &Fleet, namespace: &Namespace, within: Option<Duration>, output: Output) -> anyhow::Result<ExitCode> {
    let answers = fleet.ask(Some(namespace), "GET", "/plaintext")?;
    let after = within.map_or(i64::MIN, |time| duration::now().saturating_sub_unsigned(time.as_secs()));
    let found = Readiness::of(namespace, answers, &fleet.objects()?, after);
    output.print(|_| found.shown(), &found)?;
    Ok(if found.ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Readiness {
    /// `after`: callers that were seen last before that are left out.
    fn of(namespace: &Namespace, answers: Vec<Answer>, objects: &[Object], after: i64) -> Self {
        let pods: Vec<&PodObject> =
            objects.iter().filter_map(|o| if let Object::Pod(p) = o { Some(&**p) } else { None }).collect();
        let services = objects.iter().filter_map(|o| if let Object::Service(s) = o { Some(&**s) } else { None });
        let services: Vec<&ServiceObject> = services.filter(|s| s.id.namespace == *namespace).collect();
        let mut found = Self { namespace: namespace.to_string(), ..Self::default() };
        let mut rows: BTreeMap<(String, u16, IpAddr), Row> = BTreeMap::new();
        for (pod, answer) in answers {
            let read = answer.and_then(|text| serde_json::from_str::<Report>(&text).context("the answer cannot be read"));
            let report = match read {
                Ok(report) => report,
                Err(why) => {
                    found.not_heard.insert(pod, format!("{why:#}"));
                    continue;
                }
            };
            let called = pods.iter().find(|p| p.id.to_string() == pod);
            for caller in report.callers.iter().filter(|c| c.last >= after) {
                let service = called.and_then(|p| service(&services, p, caller.port)).unwrap_or_else(|| format!("Pod {pod}"));
                let who = pods.iter().find(|p| !p.ended() && !p.spec.host_network && p.addresses().contains(&caller.source));
                let row = rows.entry((service.clone(), caller.port, caller.source)).or_insert_with(|| Row {
                    service,
                    port: caller.port,
                    source: caller.source,
                    caller: who.map(|p| p.id.to_string()),
                    caller_has_sidecar: who.is_some_and(|p| p.has_sidecar()),
                    connections: 0,
                    refused: 0,
                    first: caller.first,
                    last: caller.last,
                });
                row.connections += caller.connections;
                row.refused += caller.refused;
                row.first = row.first.min(caller.first);
                row.last = row.last.max(caller.last);
            }
            if report.others > 0 && report.others_last >= after {
                found.others.insert(pod.clone(), report.others);
            }
            found.heard.insert(pod, report.since);
        }
        let bare = pods.iter().filter(|p| p.id.namespace == *namespace && !p.ended() && !p.has_sidecar());
        found.without_sidecar = bare.map(|p| p.id.to_string()).collect();
        found.callers = rows.into_values().collect();
        let is_clear = found.callers.iter().all(|row| row.connections == 0) && found.others.is_empty();
        found.ready = is_clear && found.not_heard.is_empty() && !found.heard.is_empty();
        found
    }

    fn shown(&self) -> String {
        let mut text = String::new();
        let namespace = &self.namespace;
        if let Some(youngest) = self.heard.values().max() {
            let (count, since) = (self.heard.len(), when(*youngest));
            let _ =
                writeln!(text, "{count} sidecars of namespace {namespace} have all looked for plaintext callers since {since}");
        } else {
            let _ = writeln!(text, "no sidecar of namespace {namespace} was heard: nothing is known");
        }
        for (pod, why) in &self.not_heard {
            let _ = writeln!(text, "not heard: {pod}: {why}");
        }
        for pod in &self.without_sidecar {
            let _ = writeln!(text, "without a sidecar, so that strict changes nothing for it: {pod}");
        }
        for (pod, count) in &self.others {
            let _ = writeln!(text, "{pod} had {count} connections of callers that are too many to be kept apart");
        }
        if !self.callers.is_empty() {
            let rows: Vec<Vec<String>> = self.callers.iter().map(Row::cells).collect();
            let header = ["CALLED", "PORT", "CALLER", "CONNECTIONS", "REFUSED", "FIRST", "LAST"];
            let _ = write!(text, "\n{}\n", table::render(&header, &rows));
        }
        let callers = self.callers.iter().filter(|row| row.connections > 0).count();
        let _ = match (self.ready, callers) {
            (true, _) => writeln!(text, "ready: nobody was let in in plaintext"),
            (false, 0) => writeln!(text, "not ready: not all is known"),
            (false, 1) => writeln!(text, "not ready: 1 caller would be refused"),
            (false, _) => writeln!(text, "not ready: {callers} callers would be refused"),
        };
        text
    }
}

impl Row {
    fn cells(&self) -> Vec<String> {
        let caller = match (&self.caller, self.caller_has_sidecar) {
            (Some(pod), true) => format!("{pod} ({}), which has a sidecar", self.source),
            (Some(pod), false) => format!("{pod} ({}), without a sidecar", self.source),
            (None, _) => format!("{}, which is no pod now", self.source),
        };
        vec![
            self.service.clone(),
            self.port.to_string(),
            caller,
            self.connections.to_string(),
            self.refused.to_string(),
            when(self.first),
            when(self.last),
        ]
    }
}

/// The first Service that leads to a pod's port, with the port that callers dial.
fn service(services: &[&ServiceObject], pod: &PodObject, port: u16) -> Option<String> {
    services.iter().filter(|s| s.spec.selects(&pod.labels)).find_map(|s| {
        let tcp = s.spec.ports.iter().filter(|p| p.protocol == Transport::Tcp);
        let lead = tcp.filter(|p| weft_control_plane::model::target_port(p, pod) == Some(port)).map(|p| p.port);
        lead.min().map(|dialled| format!("{}:{dialled}", s.id))
    })
}

/// Seconds since the Unix epoch, as a time in UTC.
fn when(seconds: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(seconds).ok().and_then(|time| time.format(&Rfc3339).ok());
    time.unwrap_or_else(|| seconds.to_string())
}

#[cfg(test)]
mod tests {
    use weft_control_plane::watch::parse::parse;

    use super::*;

    const SHOP: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-0, namespace: shop, labels: {app: web}}
spec: {containers: [{name: weft-sidecar}]}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: old-0, namespace: shop}
spec: {containers: [{name: app}]}
status: {podIP: 10.0.0.2}
";

    fn found(answers: &[(&str, Result<&str, &str>)], after: i64) -> Readiness {
        let answer = |(pod, said): &(&str, Result<&str, &str>)| {
            ((*pod).to_owned(), said.map(str::to_owned).map_err(|why| anyhow::anyhow!(why.to_owned())))
        };
        let objects = parse("test", SHOP).expect("good");
        Readiness::of(&"shop".parse().expect("a namespace"), answers.iter().map(answer).collect(), &objects, after)
    }

    const CALLED: &str = r#"{"since": 1700000000, "others": 0, "others_last": 0, "callers": [
        {"source": "10.0.0.2", "port": 8080, "connections": 3, "refused": 1, "first": 1700000010, "last": 1700000020},
        {"source": "10.9.9.9", "port": 9000, "connections": 0, "refused": 2, "first": 1700000011, "last": 1700000012}]}"#;
    const QUIET: &str = r#"{"since": 1700000100, "others": 0, "others_last": 0, "callers": []}"#;

    #[test]
    fn who_would_be_refused_is_told_by_name() {
        let it = found(&[("shop/web-0", Ok(CALLED)), ("shop/web-1", Ok(QUIET))], i64::MIN);
        assert!(!it.ready);
        let expected = "\
2 sidecars of namespace shop have all looked for plaintext callers since 2023-11-14T22:15:00Z
without a sidecar, so that strict changes nothing for it: shop/old-0

CALLED          PORT  CALLER                                  CONNECTIONS  REFUSED  FIRST                 LAST
Pod shop/web-0  9000  10.9.9.9, which is no pod now           0            2        2023-11-14T22:13:31Z  2023-11-14T22:13:32Z
shop/web:80     8080  shop/old-0 (10.0.0.2), without a sidecar  3            1        2023-11-14T22:13:30Z  2023-11-14T22:13:40Z

not ready: 1 caller would be refused
";
        let one_space = |text: &str| text.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>();
        assert_eq!(one_space(&it.shown()), one_space(expected));
        assert!(found(&[("shop/web-0", Ok(CALLED))], 1_700_000_021).ready, "nobody since then");
    }

    #[test]
    fn what_is_not_known_is_not_ready() {
        assert!(found(&[("shop/web-0", Ok(QUIET))], i64::MIN).ready);
        let it = found(&[("shop/web-0", Ok(QUIET)), ("shop/web-1", Err("it is gone"))], i64::MIN);
        assert!(!it.ready && it.shown().contains("not heard: shop/web-1: it is gone"), "{}", it.shown());
        assert!(!found(&[], i64::MIN).ready);
        let crowd = QUIET.replace(r#""others": 0, "others_last": 0"#, r#""others": 7, "others_last": 1700000200"#);
        assert!(!found(&[("shop/web-0", Ok(&crowd))], i64::MIN).ready);
    }
}
