//! What there is to say about manifests.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;
use serde_json::Value;
use weft_control_plane::model::{Model, status};
use weft_control_plane::objects::traffic::ParentRef;
use weft_control_plane::snapshot::Entry;
use weft_control_plane::watch::parse::parse_each;
use weft_control_plane::watch::{Change, Problem};
use weft_core::policy::MtlsMode;
use weft_core::wellknown::DEFAULT_TRUST_DOMAIN;
use weft_proto::v1;
use weft_proto::v1::resource::Body;

use super::File;

/// Groups of which weft reads every kind, or should say that it does not.
const OURS: [&str; 3] = ["gateway.networking.k8s.io", "gateway.networking.x-k8s.io", "weft.dev"];
/// Kinds of Gateway API that are others' business: gateways are not weft's, and what belongs to them neither.
const OTHERS: [&str; 5] = ["Gateway", "GatewayClass", "ListenerSet", "BackendTLSPolicy", "UDPRoute"];

/// What was found.
#[derive(Serialize, Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    /// Objects that weft reads.
    read: usize,
    /// Documents of other kinds.
    passed_over: usize,
    problems: Vec<Found>,
    /// What is no fault of the manifests, and yet will not be as they say: parts of network policies that weft does not enforce.
    notes: Vec<Found>,
    /// What would become of each route and policy, at each thing that it is attached to.
    outcomes: Vec<Outcome>,
}

/// What would become of a route or policy at one thing that it is attached to.
#[derive(Serialize, Debug, Clone, PartialEq, Eq)]
struct Outcome {
    file: String,
    line: usize,
    object: String,
    parent: String,
    conditions: Vec<Condition>,
}

#[derive(Serialize, Debug, Clone, PartialEq, Eq)]
struct Condition {
    #[serde(rename = "type")]
    kind: &'static str,
    status: bool,
    reason: &'static str,
    message: String,
}

/// Something that is wrong.
#[derive(Serialize, Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Found {
    file: String,
    line: usize,
    /// Kind, namespace and name; empty where they cannot be read.
    object: String,
    /// The field, as a path; empty where no single one is at fault.
    field: String,
    message: String,
}

/// Where an object stands.
#[derive(Debug, Clone)]
struct At {
    file: String,
    line: usize,
}

impl Report {
    pub(super) fn of(files: &[File]) -> Self {
        let mut report = Self::default();
        let mut places: BTreeMap<String, At> = BTreeMap::new();
        let mut changes = Vec::new();
        for (file, text) in files {
            for part in parse_each(file, text) {
                let at = At { file: file.clone(), line: part.line };
                match part.object {
                    Ok(object) => {
                        report.read += 1;
                        let name = object.key().to_string();
                        if let Some(first) = places.get(&name) {
                            let message = format!("it stands in {}:{} as well: remove one of them", first.file, first.line);
                            report.problems.push(found(&at, &name, "metadata.name", &message));
                            continue;
                        }
                        places.insert(name, at);
                        changes.push(Change::Upsert(object));
                    }
                    Err(problem) => match Head::of(part.text) {
                        Some(head) if head.is_others() => report.passed_over += 1,
                        head => report.problems.push(broken(at, head, &problem)),
                    },
                }
            }
        }
        let mut model = model();
        model.apply(changes);
        for problem in model.problems() {
            // The model knows no files.
            let at = places.get(&problem.place).cloned().unwrap_or(At { file: String::new(), line: 0 });
            report.problems.push(found(&at, &problem.place, &problem.field, &problem.message));
        }
        report.problems.sort();
        for note in model.notes() {
            let at = places.get(&note.place).cloned().unwrap_or(At { file: String::new(), line: 0 });
            report.notes.push(found(&at, &note.place, &note.field, &format!("note: {}", note.message)));
        }
        for (key, status) in model.statuses() {
            let object = key.to_string();
            let At { file, line } = places.get(&object).cloned().unwrap_or(At { file: String::new(), line: 0 });
            report.outcomes.extend(status.entries.iter().map(|entry| Outcome {
                file: file.clone(),
                line,
                object: object.clone(),
                parent: parent(&entry.parent),
                conditions: entry.conditions.iter().map(condition).collect(),
            }));
        }
        report
    }

    pub(super) fn is_good(&self) -> bool {
        self.problems.is_empty()
    }

    /// For people: a line for each problem, as compilers write them, and one to end with.
    pub(super) fn shown(&self) -> String {
        let mut text = String::new();
        for Found { file, line, object, field, message } in self.problems.iter().chain(&self.notes) {
            let _ = write!(text, "{file}:{line}: ");
            for part in [object, field].into_iter().filter(|part| !part.is_empty()) {
                let _ = write!(text, "{part}: ");
            }
            let _ = writeln!(text, "{message}");
        }
        for Outcome { file, line, object, parent, conditions } in &self.outcomes {
            let told =
                conditions.iter().map(|c| if c.status { c.kind.to_owned() } else { format!("not {} ({})", c.kind, c.reason) });
            let _ = writeln!(text, "{file}:{line}: {object} at {parent}: {}", told.collect::<Vec<_>>().join(", "));
        }
        let others = match self.passed_over {
            0 => String::new(),
            n => format!(", {n} of kinds that weft does not read"),
        };
        let _ = writeln!(text, "{} objects{others}: {} problems", self.read, self.problems.len());
        text
    }
}

fn condition(c: &status::Condition) -> Condition {
    Condition { kind: c.type_, status: c.status, reason: c.reason, message: c.message.clone() }
}

/// What something is attached to, for people.
fn parent(parent: &ParentRef) -> String {
    let kind = parent.kind.as_deref().unwrap_or("Gateway");
    let namespace = parent.namespace.as_ref().map(|n| format!("{n}/")).unwrap_or_default();
    let port = parent.port.map(|p| format!(":{p}")).unwrap_or_default();
    let section = parent.section_name.as_ref().map(|s| format!(" ({s})")).unwrap_or_default();
    format!("{kind} {namespace}{}{port}{section}", parent.name)
}

/// Whether a document is of a kind that weft has nothing to do with.
pub(super) fn is_others(text: &str) -> bool {
    Head::of(text).is_some_and(|head| head.is_others())
}

/// What a document says of itself, as far as it does.
struct Head {
    api_version: String,
    kind: String,
    /// Kind, namespace and name.
    object: String,
}

impl Head {
    fn of(text: &str) -> Option<Self> {
        let value: Value = serde_saphyr::from_str(text).ok()?;
        let field = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        let (api_version, kind) = (field("/apiVersion")?, field("/kind")?);
        let name = field("/metadata/name").unwrap_or_else(|| "without a name".into());
        let namespace = field("/metadata/namespace").unwrap_or_else(|| "default".into());
        let object = if kind == "Namespace" { format!("{kind} {name}") } else { format!("{kind} {namespace}/{name}") };
        Some(Self { api_version, kind, object })
    }

    /// Whether it is of a kind that weft has nothing to do with.
    fn is_others(&self) -> bool {
        let (group, _) = self.api_version.split_once('/').unwrap_or(("", &self.api_version));
        match (group, self.kind.as_str()) {
            ("", "Namespace" | "Service" | "Pod" | "List")
            | ("discovery.k8s.io", "EndpointSlice")
            | ("networking.k8s.io", "NetworkPolicy") => false,
            (group, kind) if OURS.contains(&group) => OTHERS.contains(&kind),
            _ => true,
        }
    }
}

/// A document that could not be read. The reader has put file and line into one text.
fn broken(mut at: At, head: Option<Head>, problem: &Problem) -> Found {
    if let Some(line) = problem.place.rsplit(':').next().and_then(|line| line.parse().ok()) {
        at.line = line;
    }
    found(&at, &head.map(|h| h.object).unwrap_or_default(), &problem.field, &problem.message)
}

fn found(at: &At, object: &str, field: &str, message: &str) -> Found {
    Found { file: at.file.clone(), line: at.line, object: object.into(), field: field.into(), message: message.into() }
}

/// A mesh without anything in it.
fn model() -> Model {
    let domain = DEFAULT_TRUST_DOMAIN.parse().expect("the default is a trust domain");
    let trust = Entry::new(Body::Trust(v1::TrustBundle::default()));
    let mesh = Entry::new(Body::Mesh(v1::Mesh::default()));
    Model::new(domain, MtlsMode::Permissive, trust, mesh)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(files: &[(&str, &str)]) -> Report {
        let files: Vec<File> = files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        Report::of(&files)
    }

    const SERVICE: &str = "\
# The shop.
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}
";

    #[test]
    fn what_is_good_is_counted_and_what_is_others_passed_over() {
        let others = "kind: Deployment\napiVersion: apps/v1\nmetadata: {name: web}\n---\n\
                      kind: Gateway\napiVersion: gateway.networking.k8s.io/v1\nmetadata: {name: edge}\n";
        let report = of(&[("a.yaml", SERVICE), ("b.yaml", others)]);
        assert!(report.is_good(), "{report:?}");
        assert_eq!(report.shown(), "1 objects, 2 of kinds that weft does not read: 0 problems\n");
    }

    #[test]
    fn each_problem_has_its_place_and_hides_no_other() {
        let broken = SERVICE.replace("80", "eighty");
        let again = SERVICE.replace("name: web", "name: other");
        let text =
            format!("{broken}---\n{SERVICE}---\n{SERVICE}---\n{again}---\nkind: TrafficPolice\napiVersion: weft.dev/v1\n---\n[");
        let report = of(&[("a.yaml", &text)]);
        let shown = report.shown();
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[0].starts_with("a.yaml:5: Service shop/web: spec.ports[0].port: "), "{shown}");
        // The model's own: two services with one address. Who keeps it is decided by name.
        assert!(lines[1].contains("spec.clusterIP: 10.0.0.1 belongs to Service shop/other already"), "{shown}");
        assert_eq!(lines[2], "a.yaml:14: Service shop/web: metadata.name: it stands in a.yaml:8 as well: remove one of them");
        assert!(lines[3].starts_with("a.yaml:2") && lines[3].contains("TrafficPolice"), "{shown}");
        assert!(lines[4].starts_with("a.yaml:28: "), "{shown}");
        assert_eq!(lines.len(), 6, "{shown}");
        assert!(!report.is_good());
        let json = serde_json::to_value(&report).expect("plain JSON");
        assert_eq!((json["read"].as_u64(), json["problems"][0]["line"].as_u64()), (Some(3), Some(5)));
    }

    #[test]
    fn what_of_a_network_policy_is_not_enforced_is_a_note_and_no_problem() {
        let policy = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: dns, namespace: shop}\n\
                      spec: {podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}]}]}\n";
        let report = of(&[("p.yaml", policy)]);
        assert!(report.is_good(), "{report:?}");
        let shown = report.shown();
        assert!(shown.starts_with("p.yaml:1: NetworkPolicy shop/dns: spec.egress[0].ports: note: UDP and SCTP"), "{shown}");
        assert!(shown.ends_with("1 objects: 0 problems\n"), "{shown}");
        let report = of(&[("p.yaml", &policy.replace("egress:", "egres:"))]);
        assert!(!report.is_good() && report.shown().contains("NetworkPolicy shop/dns"), "{}", report.shown());
    }

    const ROUTE: &str = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: canary, namespace: shop}
spec:
  parentRefs: [{group: \"\", kind: Service, name: web, port: 80}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
";

    #[test]
    fn what_becomes_of_a_route_is_told() {
        let report = of(&[("s.yaml", SERVICE), ("r.yaml", ROUTE)]);
        assert_eq!(
            report.shown(),
            "r.yaml:1: HTTPRoute shop/canary at Service web:80: Accepted, ResolvedRefs\n2 objects: 0 problems\n"
        );
        // Its service is not among them.
        let report = of(&[("r.yaml", ROUTE)]);
        assert!(!report.is_good(), "{report:?}");
        assert!(
            report.shown().contains("r.yaml:1: HTTPRoute shop/canary at Service web:80: not Accepted ("),
            "{}",
            report.shown()
        );
        let json = serde_json::to_value(&report).expect("plain JSON");
        assert_eq!(json["outcomes"][0]["conditions"][0]["type"], "Accepted");
    }
}
