//! From the file as written to a mesh that can run, or to every reason why it cannot.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use serde_saphyr::Spanned;
use weft_core::authorization::Posture;
use weft_core::identity::InvalidName;
use weft_core::policy::MtlsMode;
use weft_core::protocol::AppProtocol;
use weft_core::{Name, Namespace, ServiceAccount, telemetry, wellknown};

use super::raw::{RawHealth, RawMesh, RawPort, RawService, RawServicePort, RawWorkload};
use super::{
    Health, MAX_REPLICAS, MAX_TOTAL, Mesh, NamespaceDefaults, Pairs, Port, Probe, Problem, Restart, Service, ServicePort,
    TargetPort, Workload,
};
use crate::plan;

/// Beside the standard ones: see `weft-sidecar --help`.
const SIDECAR_VARIABLES: [&str; 6] = [
    "WEFT_ACCESS_LOG",
    "WEFT_ACCESS_LOG_FIELDS",
    "WEFT_ACCESS_LOG_ONLY",
    "WEFT_ACCESS_LOG_SAMPLE",
    "WEFT_LOG",
    "WEFT_TRACE_ERRORS",
];
const DEFAULT_MESH: &str = "default";
const DEFAULT_NAMESPACE: &str = "default";
const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
/// A host name has 63 characters, and a replica's number is behind the name.
const MAX_NAME: usize = 59;
/// As Kubernetes has it (RFC 6335, section 5.1).
const MAX_PORT_NAME: usize = 15;

/// Checks a file. `file` is the name that problems carry; `dir` is where its paths begin.
pub(super) fn check(file: &str, dir: &Path, raw: RawMesh) -> Result<Mesh, Vec<Problem>> {
    let mut c = Checker { file, dir, problems: Vec::new() };
    let top = At { line: 1, field: String::new() };

    let name = raw.name.unwrap_or_else(|| DEFAULT_MESH.to_owned());
    c.label(&top, "name", &name);
    let mtls = raw.mtls.map_or(MtlsMode::Permissive, |mode| mode.0);
    let default_policy = raw.default_policy.map_or(Posture::AllowAll, |posture| posture.0);
    let egress = raw.egress.map(|egress| egress.0).unwrap_or_default();
    let dns_capture = raw.dns_capture.unwrap_or_default();
    c.telemetry(&top, &raw.telemetry);
    let telemetry = raw.telemetry;
    let mut namespaces = BTreeMap::new();
    for (name, entry) in raw.namespaces {
        if let Some(namespace) = c.parsed::<Namespace>(&top, &format!("namespaces.{name}"), &name) {
            let (mtls, default_policy, egress) = entry.map(|e| (e.mtls, e.default_policy, e.egress)).unwrap_or_default();
            let own = NamespaceDefaults {
                mtls: mtls.map(|m| m.0),
                default_policy: default_policy.map(|posture| posture.0),
                egress: egress.map(|egress| egress.0),
            };
            namespaces.insert(namespace, own);
        }
    }
    let workloads: Vec<Workload> = raw
        .workloads
        .into_iter()
        .enumerate()
        .filter_map(|(i, entry)| c.workload(&At::element("workloads", i, &entry), entry.value))
        .collect();
    let stated = raw.services.is_some();
    let mut services: Vec<Service> = raw
        .services
        .unwrap_or_default()
        .into_iter()
        .enumerate()
        .filter_map(|(i, entry)| c.service(&At::element("services", i, &entry), entry.value))
        .collect();
    if !stated {
        services = workloads.iter().filter(|w| !w.ports.is_empty()).map(service_of).collect();
    }
    let manifests = raw.manifests.iter().map(|path| dir.join(&path.value)).collect();

    let used = workloads.iter().map(|w| &w.namespace).chain(services.iter().map(|s| &s.namespace));
    for namespace in used {
        namespaces.entry(namespace.clone()).or_default();
    }
    let mesh = Mesh { name, mtls, default_policy, egress, dns_capture, telemetry, namespaces, workloads, services, manifests };
    // What fits together is only worth saying of parts that are right by themselves.
    if c.problems.is_empty() {
        c.whole(&mesh);
    }
    if c.problems.is_empty() { Ok(mesh) } else { Err(c.problems) }
}

/// The service that a workload gets where the file has no list of services.
fn service_of(workload: &Workload) -> Service {
    let several = workload.ports.len() > 1;
    let port = |p: &Port| ServicePort {
        // With several ports Kubernetes asks for a name each; this prefix declares no protocol.
        name: p.name.clone().or_else(|| several.then(|| format!("p{}", p.port))),
        port: p.port,
        target: TargetPort::Number(p.port),
        protocol: p.protocol.clone(),
    };
    Service {
        namespace: workload.namespace.clone(),
        name: workload.name.clone(),
        selector: workload.labels.clone(),
        ports: workload.ports.iter().map(port).collect(),
        headless: false,
        address: None,
    }
}

/// A place in the file: the line of the nearest list element, and its path.
struct At {
    line: u64,
    field: String,
}

impl At {
    fn element<T>(list: &str, index: usize, entry: &Spanned<T>) -> Self {
        Self { line: entry.referenced.line(), field: format!("{list}[{index}]") }
    }

    /// An element of a list of this element's.
    fn inner<T>(&self, list: &str, index: usize, entry: &Spanned<T>) -> Self {
        Self { line: entry.referenced.line(), field: self.path(&format!("{list}[{index}]")) }
    }

    fn path(&self, field: &str) -> String {
        match (self.field.is_empty(), field.is_empty()) {
            (true, _) => field.to_owned(),
            (false, true) => self.field.clone(),
            (false, false) => format!("{}.{field}", self.field),
        }
    }
}

struct Checker<'a> {
    file: &'a str,
    dir: &'a Path,
    problems: Vec<Problem>,
}

impl Checker<'_> {
    fn wrong(&mut self, at: &At, field: &str, message: impl Into<String>) {
        let place = format!("{}:{}", self.file, at.line.max(1));
        self.problems.push(Problem { place, field: at.path(field), message: message.into() });
    }

    fn parsed<T: FromStr<Err = InvalidName>>(&mut self, at: &At, field: &str, text: &str) -> Option<T> {
        text.parse().map_err(|e: InvalidName| self.wrong(at, field, e.to_string())).ok()
    }

    /// A name that is also a host name or the name of a directory.
    fn label(&mut self, at: &At, field: &str, text: &str) -> Option<Name> {
        let name: Name = self.parsed(at, field, text)?;
        if text.contains('.') {
            self.wrong(at, field, format!("{text:?} must not contain a dot: it becomes part of a host name"));
            return None;
        }
        if text.len() > MAX_NAME {
            self.wrong(at, field, format!("{text:?} has {} characters; at most {MAX_NAME} fit into a host name", text.len()));
            return None;
        }
        Some(name)
    }

    fn namespace(&mut self, at: &At, text: Option<&str>) -> Option<Namespace> {
        self.parsed(at, "namespace", text.unwrap_or(DEFAULT_NAMESPACE))
    }

    fn workload(&mut self, at: &At, raw: RawWorkload) -> Option<Workload> {
        let name = self.label(at, "name", &raw.name);
        let namespace = self.namespace(at, raw.namespace.as_deref());
        let service_account: Option<ServiceAccount> = match &raw.service_account {
            Some(account) => self.parsed(at, "serviceAccount", account),
            // A name that is no service account is no name either, and said already.
            None => raw.name.parse().ok(),
        };
        let replicas = raw.replicas.unwrap_or(1);
        if replicas > MAX_REPLICAS {
            self.wrong(
                at,
                "replicas",
                format!("{replicas} are more than {MAX_REPLICAS}, which is the most that a workload has here"),
            );
        }
        let command = raw.command.0;
        self.words(at, "command", &command);
        self.environment(at, &raw.env);
        let sidecar = raw.sidecar.unwrap_or(true);
        let mtls = raw.mtls.map(|mode| mode.0);
        if !sidecar && mtls.is_some() {
            self.wrong(at, "mtls", "has no effect on a workload without a sidecar: remove it, or `sidecar: false`");
        }
        if !sidecar && raw.workload_api {
            self.wrong(at, "workloadApi", "is offered by the sidecar: remove it, or `sidecar: false`");
        }
        self.tap(at, sidecar, raw.tap.as_deref());
        let ports = self.ports(at, &raw.ports, sidecar);
        let health = self.health(at, raw.health, &ports);
        if raw.labels.as_ref().is_some_and(Pairs::is_empty) {
            self.wrong(at, "labels", "are empty, so that no service can select the workload: leave them out to get app: NAME");
        }
        let labels = raw.labels.unwrap_or_else(|| app_label(&raw.name));
        if let (Some(namespace), Some(account)) = (&namespace, &service_account) {
            self.reserved(at, namespace, account);
        }
        Some(Workload {
            namespace: namespace?,
            name: name?,
            service_account: service_account?,
            replicas,
            command,
            workdir: raw.workdir.map(|path| self.dir.join(path)),
            env: raw.env,
            ports,
            labels,
            mtls,
            sidecar,
            workload_api: raw.workload_api,
            tap: raw.tap,
            health,
            restart: raw.restart.unwrap_or(Restart::Always),
            user: raw.user,
        })
    }

    fn reserved(&mut self, at: &At, namespace: &Namespace, account: &ServiceAccount) {
        if namespace.as_str() == wellknown::CONTROL_PLANE_NAMESPACE
            && account.as_str() == wellknown::CONTROL_PLANE_SERVICE_ACCOUNT
        {
            self.wrong(
                at,
                "serviceAccount",
                format!("{namespace}/{account} is the control plane's own identity: choose another"),
            );
        }
    }

    fn words(&mut self, at: &At, field: &str, words: &[String]) {
        if words.first().is_none_or(String::is_empty) {
            self.wrong(at, field, "is empty: name a program, as [sleep, infinity] or as a text that sh runs");
        }
        if words.iter().any(|word| word.contains('\0')) {
            self.wrong(at, field, "contains a zero byte, which no argument can");
        }
    }

    fn tap(&mut self, at: &At, sidecar: bool, tap: Option<&str>) {
        let Some(tap) = tap else { return };
        if !telemetry::TAP_LEVELS.contains(&tap) {
            self.wrong(at, "tap", format!("{tap:?} cannot be shown: write {}", telemetry::TAP_LEVELS.join(", ")));
        } else if !sidecar {
            self.wrong(at, "tap", "is of the sidecar: remove it, or `sidecar: false`");
        }
    }

    /// A sidecar is told nothing else by the file.
    fn telemetry(&mut self, at: &At, variables: &Pairs) {
        for (name, value) in variables {
            let field = format!("telemetry.{name}");
            if name == telemetry::TAP {
                self.wrong(at, &field, "is for each workload to allow: write `tap:` there".to_owned());
            } else if !(name.starts_with("OTEL_") || SIDECAR_VARIABLES.contains(&name.as_str())) {
                let known = SIDECAR_VARIABLES.join(", ");
                self.wrong(at, &field, format!("it is no variable of a sidecar's telemetry: those are OTEL_…, {known}"));
            }
            if value.contains('\0') {
                self.wrong(at, &field, "it has a NUL byte in it".to_owned());
            }
        }
    }

    fn environment(&mut self, at: &At, env: &Pairs) {
        for (name, value) in env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                self.wrong(at, &format!("env.{name}"), "is no environment variable: a name is not empty and has no `=` in it");
            }
        }
    }

    fn ports(&mut self, at: &At, raw: &[Spanned<RawPort>], sidecar: bool) -> Vec<Port> {
        let mut ports: Vec<Port> = Vec::new();
        for (i, entry) in raw.iter().enumerate() {
            let at = at.inner("ports", i, entry);
            let port = &entry.value;
            self.port(&at, "port", port.port);
            if sidecar && wellknown::SIDECAR_PORTS.contains(&port.port) {
                self.wrong(&at, "port", format!("{} is a port of the sidecar's own: choose another", port.port));
            }
            if ports.iter().any(|p| p.port == port.port) {
                self.wrong(&at, "port", format!("{} stands twice", port.port));
            }
            self.port_name(&at, port.name.as_deref());
            if port.name.is_some() && ports.iter().any(|p| p.name == port.name) {
                self.wrong(&at, "name", "stands twice: each port has a name of its own");
            }
            self.protocol(&at, port.protocol.as_deref());
            ports.push(Port { name: port.name.clone(), port: port.port, protocol: port.protocol.clone() });
        }
        ports
    }

    fn port(&mut self, at: &At, field: &str, port: u16) {
        if port == 0 {
            self.wrong(at, field, "0 is not a port: use 1 to 65535");
        }
    }

    fn port_name(&mut self, at: &At, name: Option<&str>) {
        let Some(name) = name else { return };
        let letters = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        let some_letter = name.bytes().any(|b| b.is_ascii_lowercase());
        let edges = !name.starts_with('-') && !name.ends_with('-');
        if name.len() > MAX_PORT_NAME || !letters || !some_letter || !edges {
            self.wrong(
                at,
                "name",
                format!(
                    "{name:?} is not a port's name: 1 to {MAX_PORT_NAME} of a-z, 0-9 and '-', with a letter, and no '-' at an end"
                ),
            );
        }
    }

    fn protocol(&mut self, at: &At, protocol: Option<&str>) {
        let Some(word) = protocol else { return };
        if AppProtocol::from_declaration(Some(word), None) == AppProtocol::Detect {
            self.wrong(
                at,
                "protocol",
                format!("{word:?} is not known here: write http, http2, grpc or tcp (or leave it out, and it is detected)"),
            );
        }
    }

    fn health(&mut self, at: &At, raw: Option<RawHealth>, ports: &[Port]) -> Health {
        let first = ports.first().map(|p| p.port);
        let Some(raw) = raw else {
            let probe = first.map_or(Probe::Started, Probe::Tcp);
            return Health { probe, interval: DEFAULT_INTERVAL, timeout: DEFAULT_TIMEOUT };
        };
        let interval = raw.interval.map_or(DEFAULT_INTERVAL, |t| t.0);
        let timeout = raw.timeout.map_or(DEFAULT_TIMEOUT, |t| t.0);
        for (field, time) in [("health.interval", interval), ("health.timeout", timeout)] {
            if time.is_zero() {
                self.wrong(at, field, "is zero: write 1s, say");
            }
        }
        if raw.port.is_some() && raw.http.is_none() {
            self.wrong(at, "health.port", "goes with `http`; for a plain connection write `tcp: PORT`");
        }
        let probe = match (raw.http, raw.tcp, raw.command) {
            (Some(path), None, None) => {
                if !path.starts_with('/') || path.contains(|c: char| c.is_whitespace() || c.is_control()) {
                    self.wrong(at, "health.http", format!("{path:?} is not a path: it begins with / and has no space in it"));
                }
                let port = raw.port.or(first).unwrap_or_else(|| {
                    self.wrong(at, "health.port", "missing: the workload has no ports to take the first of");
                    1
                });
                self.port(at, "health.port", port);
                Probe::Http { port, path }
            }
            (None, Some(port), None) => {
                self.port(at, "health.tcp", port);
                Probe::Tcp(port)
            }
            (None, None, Some(command)) => {
                self.words(at, "health.command", &command.0);
                Probe::Command(command.0)
            }
            (None, None, None) => first.map_or(Probe::Started, Probe::Tcp),
            _ => {
                self.wrong(at, "health", "has more than one of http, tcp and command: keep one");
                Probe::Started
            }
        };
        Health { probe, interval, timeout }
    }

    fn service(&mut self, at: &At, raw: RawService) -> Option<Service> {
        let name = self.label(at, "name", &raw.name);
        let namespace = self.namespace(at, raw.namespace.as_deref());
        if raw.selector.as_ref().is_some_and(Pairs::is_empty) {
            self.wrong(at, "selector", "is empty and selects nothing: leave it out to get app: NAME");
        }
        if raw.ports.is_empty() && !raw.headless {
            self.wrong(at, "ports", "missing: a service has at least one port, unless it is headless");
        }
        if raw.headless && raw.address.is_some() {
            self.wrong(at, "address", "a headless service has none: remove it, or `headless: true`");
        }
        if let Some(address) = raw.address.filter(|address| !plan::is_service_address(*address)) {
            self.wrong(at, "address", format!("{address} is not an address for services: {}", plan::SERVICE_RANGE));
        }
        let ports = self.service_ports(at, &raw.ports);
        Some(Service {
            namespace: namespace?,
            name: name?,
            selector: raw.selector.unwrap_or_else(|| app_label(&raw.name)),
            ports,
            headless: raw.headless,
            address: raw.address,
        })
    }

    fn service_ports(&mut self, at: &At, raw: &[Spanned<RawServicePort>]) -> Vec<ServicePort> {
        let mut ports: Vec<ServicePort> = Vec::new();
        for (i, entry) in raw.iter().enumerate() {
            let at = at.inner("ports", i, entry);
            let port = &entry.value;
            self.port(&at, "port", port.port);
            self.port_name(&at, port.name.as_deref());
            self.protocol(&at, port.protocol.as_deref());
            if raw.len() > 1 && port.name.is_none() {
                self.wrong(&at, "name", "missing: with several ports each needs a name");
            }
            if port.name.is_some() && ports.iter().any(|p| p.name == port.name) {
                self.wrong(&at, "name", "stands twice: each port has a name of its own");
            }
            if ports.iter().any(|p| p.port == port.port) {
                self.wrong(&at, "port", format!("{} stands twice", port.port));
            }
            let target = port.target_port.clone().unwrap_or(TargetPort::Number(port.port));
            match &target {
                TargetPort::Number(number) => self.port(&at, "targetPort", *number),
                TargetPort::Name(_) => {}
            }
            ports.push(ServicePort { name: port.name.clone(), port: port.port, target, protocol: port.protocol.clone() });
        }
        ports
    }

    /// What can only be wrong between parts.
    fn whole(&mut self, mesh: &Mesh) {
        let top = At { line: 1, field: String::new() };
        let total: usize = mesh.workloads.iter().map(|w| usize::from(w.replicas)).sum();
        if total > MAX_TOTAL {
            self.wrong(
                &top,
                "workloads",
                format!("{total} replicas are more than {MAX_TOTAL}, which is the most that one network here has"),
            );
        }
        let mut seen = BTreeSet::new();
        for (i, w) in mesh.workloads.iter().enumerate() {
            if !seen.insert((&w.namespace, &w.name)) {
                self.wrong(&top, &format!("workloads[{i}].name"), format!("{}/{} stands twice", w.namespace, w.name));
            }
        }
        let mut seen = BTreeSet::new();
        let mut addresses: BTreeSet<Ipv4Addr> = BTreeSet::new();
        for (i, s) in mesh.services.iter().enumerate() {
            if !seen.insert((&s.namespace, &s.name)) {
                self.wrong(&top, &format!("services[{i}].name"), format!("{}/{} stands twice", s.namespace, s.name));
            }
            if s.address.is_some_and(|address| !addresses.insert(address)) {
                self.wrong(
                    &top,
                    &format!("services[{i}].address"),
                    "is another service's as well: choose another, or leave it out",
                );
            }
            // The pods may be in a manifest that is not read here.
            if mesh.manifests.is_empty() {
                self.selection(&top, i, s, mesh);
            }
        }
        if mesh.services.len() > plan::MAX_SERVICES {
            self.wrong(&top, "services", format!("are more than {}, for which there are addresses", plan::MAX_SERVICES));
        }
    }

    fn selection(&mut self, top: &At, index: usize, service: &Service, mesh: &Mesh) {
        let selected: Vec<&Workload> = mesh.workloads.iter().filter(|w| service.selects(w)).collect();
        if selected.is_empty() {
            let labels: Vec<String> = service.selector.iter().map(|(key, value)| format!("{key}: {value}")).collect();
            self.wrong(
                top,
                &format!("services[{index}].selector"),
                format!(
                    "no workload of namespace {} has the labels {{{}}}: a workload's are app: NAME unless it says otherwise",
                    service.namespace,
                    labels.join(", ")
                ),
            );
        }
        for (p, port) in service.ports.iter().enumerate() {
            let TargetPort::Name(name) = &port.target else { continue };
            if !selected.iter().any(|w| w.ports.iter().any(|q| q.name.as_ref() == Some(name))) {
                self.wrong(
                    top,
                    &format!("services[{index}].ports[{p}].targetPort"),
                    format!("no port of the workloads that the service selects is named {name:?}"),
                );
            }
        }
    }
}

fn app_label(name: &str) -> Pairs {
    Pairs::from([("app".to_owned(), name.to_owned())])
}
