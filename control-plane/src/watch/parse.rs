//! Text to objects, or to a problem with place and field: manifests in a file, and what an API server sends.

mod authorization;
mod jwt;
mod mtls;
mod network_policy;
mod traffic;
mod trust;

use std::sync::Arc;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use weft_core::Name;
use weft_core::identity::InvalidName;
use weft_core::service::ObjectRef;

use super::Problem;
use crate::objects::network_policy::LABEL_NAMESPACE_NAME;
use crate::objects::{
    EndpointSliceObject, Kind, LABEL_SERVICE_NAME, Labels, Metadata, NamespaceObject, Object, PodObject, PodSpec, PodStatus,
    ServiceObject, ServiceSpec, ServiceType, SliceEndpoint, SlicePort,
};

/// The largest file that is read, in bytes.
pub const MAX_FILE: u64 = 16 << 20;

/// Reads every document of a YAML or JSON file. `file` is the name that problems carry.
pub fn parse(file: &str, text: &str) -> Result<Vec<Object>, Problem> {
    parse_each(file, text).map(|document| document.object).collect()
}

/// One document of a file.
pub struct Part<'a> {
    /// The line in the file where its content begins, from 1.
    pub line: usize,
    pub text: &'a str,
    pub object: Result<Object, Problem>,
}

/// The same document by document: what is wrong with one hides nothing of the others.
pub fn parse_each<'a>(file: &'a str, text: &'a str) -> impl Iterator<Item = Part<'a>> {
    documents(text).into_iter().filter_map(move |(first_line, text)| {
        let blank = text.lines().position(|l| !l.trim().is_empty() && !l.trim_start().starts_with('#'))?;
        let object = parse_document(&Place { file, first_line }, text);
        Some(Part { line: first_line + blank + 1, text, object })
    })
}

/// Splits at `---` lines, keeping the number of the line before each document's first.
fn documents(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    let (mut start, mut start_line, mut at) = (0, 0, 0);
    for (i, line) in text.split_inclusive('\n').enumerate() {
        let bare = line.trim_end();
        if bare == "---" || bare.starts_with("--- ") || bare == "..." {
            found.push((start_line, &text[start..at]));
            start = at + line.len();
            start_line = i + 1;
        }
        at += line.len();
    }
    found.push((start_line, &text[start..]));
    found
}

struct Place<'a> {
    file: &'a str,
    first_line: usize,
}

impl Place<'_> {
    fn problem(&self, fault: Fault) -> Problem {
        let line = self.first_line + fault.line.unwrap_or(1).max(1) as usize;
        Problem { place: format!("{}:{line}", self.file), field: fault.field, message: fault.message }
    }
}

/// What is wrong with an object, and where in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The line, counted from the object's first, where its text has lines.
    line: Option<u64>,
    /// The field, as a path; empty where no single one is at fault.
    pub field: String,
    pub message: String,
}

impl Fault {
    fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { line: None, field: field.into(), message: message.into() }
    }
}

/// The path of a field; the object itself has none.
fn path(path: &serde_path_to_error::Path) -> String {
    let path = path.to_string();
    if path == "." { String::new() } else { path }
}

/// One object, in whatever form it came.
trait Document {
    fn read<T: DeserializeOwned>(&self) -> Result<T, Fault>;
}

/// A document of a file.
struct Yaml<'a>(&'a str);

impl Document for Yaml<'_> {
    fn read<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        // A path of fields from one crate, line and column from the other.
        let mut field = String::new();
        serde_saphyr::with_deserializer_from_str(self.0, |d| {
            serde_path_to_error::deserialize(d).map_err(|e| {
                field = path(e.path());
                e.into_inner()
            })
        })
        .map_err(|e: serde_saphyr::Error| {
            let line = e.location().map(|l| l.line());
            // The place is said by the problem itself, in terms of the file.
            let text = e.without_snippet().to_string();
            let first = text.lines().next().unwrap_or("not readable");
            Fault { line, field, message: plain(first.split(" at line ").next().unwrap_or(first)) }
        })
    }
}

/// An object as the API server sends it.
struct Json<'a>(&'a serde_json::Value);

impl Document for Json<'_> {
    fn read<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        serde_path_to_error::deserialize(self.0).map_err(|e| Fault {
            line: None,
            field: path(e.path()),
            message: plain(&e.inner().to_string()),
        })
    }
}

/// A parser's words, for people.
fn plain(message: &str) -> String {
    message.replace("invalid u16", "not a whole number from 0 to 65535")
}

/// Reads an object of a kind that its sender has named otherwise.
pub fn from_json(kind: Kind, value: &serde_json::Value) -> Result<Object, Fault> {
    build(kind, &Json(value))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TypeMeta {
    api_version: String,
    kind: String,
}

fn parse_document(place: &Place<'_>, text: &str) -> Result<Object, Problem> {
    let document = Yaml(text);
    let object = document.read().and_then(|meta: TypeMeta| build(meta.known()?, &document));
    object.map_err(|fault| place.problem(fault))
}

impl TypeMeta {
    fn known(&self) -> Result<Kind, Fault> {
        match (self.api_version.as_str(), self.kind.as_str()) {
            ("v1", "Namespace") => Ok(Kind::Namespace),
            ("v1", "Service") => Ok(Kind::Service),
            ("v1", "Pod") => Ok(Kind::Pod),
            ("discovery.k8s.io/v1", "EndpointSlice") => Ok(Kind::EndpointSlice),
            ("v1", "List") => {
                Err(Fault::new("kind", "List is not read: put each object into a document of its own, separated by ---"))
            }
            ("networking.k8s.io/v1", "NetworkPolicy") => Ok(Kind::NetworkPolicy),
            ("weft.dev/v1alpha1", "AuthorizationPolicy") => Ok(Kind::AuthorizationPolicy),
            ("weft.dev/v1alpha1", "FederatedTrustDomain") => Ok(Kind::Federation),
            ("weft.dev/v1alpha1", "IdentityDenial") => Ok(Kind::IdentityDenial),
            ("weft.dev/v1alpha1", "MtlsPolicy") => Ok(Kind::MtlsPolicy),
            ("weft.dev/v1alpha1", "JwtIssuer") => Ok(Kind::JwtIssuer),
            (version, kind) => traffic::known(version, kind).ok_or_else(|| {
                let known = traffic::KNOWN;
                Fault::new(
                    "kind",
                    format!(
                        "{version}/{kind} is not a kind that weft reads; known are v1/Namespace, v1/Service, v1/Pod, \
                         discovery.k8s.io/v1/EndpointSlice, networking.k8s.io/v1/NetworkPolicy, {known}"
                    ),
                )
            }),
        }
    }
}

/// One object of a kind, checked.
fn build(kind: Kind, document: &impl Document) -> Result<Object, Fault> {
    Ok(match kind {
        Kind::Namespace => {
            let m: Outer<IgnoredAny, IgnoredAny> = document.read()?;
            let mut metadata = m.metadata;
            metadata.namespace = Some(metadata.name.clone());
            let id = id(&metadata)?;
            // As the API server has it, whatever somebody wrote.
            metadata.labels.insert(LABEL_NAMESPACE_NAME.to_owned(), metadata.name.clone());
            Object::Namespace(Arc::new(NamespaceObject {
                name: id.namespace.clone(),
                id,
                labels: metadata.labels,
                annotations: ours(metadata.annotations),
                terminating: metadata.deletion_timestamp.is_some(),
            }))
        }
        Kind::Service => {
            let m: Outer<ServiceSpec, IgnoredAny> = document.read()?;
            let id = id(&m.metadata)?;
            let spec = m.spec.ok_or_else(|| Fault::new("spec", "missing: a Service needs a spec"))?;
            check_ports(&spec)?;
            check_alias(&spec)?;
            check_affinity(&spec)?;
            Object::Service(Arc::new(ServiceObject { id, spec }))
        }
        Kind::Pod => {
            let m: Outer<PodSpec, PodStatus> = document.read()?;
            let id = id(&m.metadata)?;
            let spec = m.spec.ok_or_else(|| Fault::new("spec", "missing: a Pod needs a spec"))?;
            if let Some(sa) = &spec.service_account_name {
                sa.parse::<weft_core::ServiceAccount>().map_err(|e| Fault::new("spec.serviceAccountName", e.to_string()))?;
            }
            Object::Pod(Arc::new(PodObject {
                id,
                uid: m.metadata.uid,
                labels: m.metadata.labels,
                annotations: ours(m.metadata.annotations),
                terminating: m.metadata.deletion_timestamp.is_some(),
                spec,
                status: m.status.unwrap_or_default(),
            }))
        }
        Kind::EndpointSlice => Object::EndpointSlice(Arc::new(slice(document)?)),
        Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => traffic::route(kind, document)?,
        Kind::ReferenceGrant => traffic::grant(document)?,
        Kind::BackendTrafficPolicy => traffic::backend_policy(document)?,
        Kind::TrafficPolicy => traffic::policy(document)?,
        Kind::AuthorizationPolicy => authorization::policy(document)?,
        Kind::NetworkPolicy => network_policy::policy(document)?,
        Kind::Federation => trust::federation(document)?,
        Kind::IdentityDenial => trust::denial(document)?,
        Kind::MtlsPolicy => mtls::policy(document)?,
        Kind::JwtIssuer => jwt::issuer(document)?,
    })
}

fn slice(document: &impl Document) -> Result<EndpointSliceObject, Fault> {
    let head: SliceHead = document.read()?;
    let id = id(&head.metadata)?;
    let service = head.metadata.labels.get(LABEL_SERVICE_NAME).map(|name| name.parse::<Name>()).transpose();
    let service =
        service.map_err(|e: InvalidName| Fault::new(format!("metadata.labels[{LABEL_SERVICE_NAME:?}]"), e.to_string()))?;
    // Names instead of addresses: nothing that could be dialled by address.
    if head.address_type.as_deref() == Some("FQDN") {
        return Ok(EndpointSliceObject { id, service, endpoints: vec![], ports: vec![] });
    }
    let m: SliceOuter = document.read()?;
    let endpoints = m.endpoints.unwrap_or_default();
    check_slice(&endpoints)?;
    Ok(EndpointSliceObject { id, service, endpoints, ports: m.ports.unwrap_or_default() })
}

/// Annotations that mean something to weft; others may be long, and change often.
fn ours(mut labels: Labels) -> Labels {
    labels.retain(|name, _| name.starts_with("weft.dev/"));
    labels
}

#[derive(Deserialize)]
#[serde(bound = "S: DeserializeOwned, T: DeserializeOwned")]
struct Outer<S, T> {
    metadata: Metadata,
    spec: Option<S>,
    status: Option<T>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SliceHead {
    metadata: Metadata,
    address_type: Option<String>,
}

#[derive(Deserialize)]
struct SliceOuter {
    endpoints: Option<Vec<SliceEndpoint>>,
    ports: Option<Vec<SlicePort>>,
}

fn id(metadata: &Metadata) -> Result<ObjectRef, Fault> {
    metadata.id().map_err(|e| Fault::new("metadata", e.to_string()))
}

/// What the API server takes in one `EndpointSlice` at most.
const MAX_SLICE: usize = 1_000;

fn check_slice(endpoints: &[SliceEndpoint]) -> Result<(), Fault> {
    if endpoints.len() > MAX_SLICE {
        let count = endpoints.len();
        return Err(Fault::new("endpoints", format!("{count} endpoints; at most {MAX_SLICE} in one slice: make several")));
    }
    Ok(())
}

fn check_affinity(spec: &ServiceSpec) -> Result<(), Fault> {
    let seconds = spec.session_affinity_config.client_ip.timeout_seconds;
    if (1..=86_400).contains(&seconds) {
        return Ok(());
    }
    let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
    Err(Fault::new(field, format!("{seconds} is not from 1 to 86400")))
}

fn check_alias(spec: &ServiceSpec) -> Result<(), Fault> {
    if spec.kind == ServiceType::ExternalName && spec.external_name.as_deref().is_none_or(str::is_empty) {
        return Err(Fault::new("spec.externalName", "missing: a Service of type ExternalName stands for a name"));
    }
    Ok(())
}

fn check_ports(spec: &ServiceSpec) -> Result<(), Fault> {
    for (i, p) in spec.ports.iter().enumerate() {
        let field = |name: &str| format!("spec.ports[{i}].{name}");
        if p.port == 0 {
            return Err(Fault::new(field("port"), "0 is not a port: use 1 to 65535"));
        }
        if spec.ports.len() > 1 && p.name.is_none() {
            return Err(Fault::new(field("name"), "missing: with several ports each needs a name"));
        }
        if spec.ports[..i].iter().any(|q| (q.port, q.protocol) == (p.port, p.protocol)) {
            return Err(Fault::new(field("port"), format!("{} stands twice", p.port)));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec:\n  clusterIP: 10.0.0.1\n  selector: {app: web}\n  ports:\n  - {port: 80, targetPort: http}\n";

    #[test]
    fn several_documents_with_comments_and_fields_we_do_not_read() {
        let text = format!(
            "# head\n---\n{WEB}  externalTrafficPolicy: Local\n---\n\n---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  annotations: {{weft.dev/mtls: strict}}\n"
        );
        let objects = parse("f.yaml", &text).expect("good");
        assert_eq!(objects.len(), 2);
        assert_eq!(objects[0].key().to_string(), "Service shop/web");
        assert_eq!(objects[1].key().to_string(), "Namespace shop");
    }

    #[test]
    fn a_problem_names_file_line_and_field() {
        let table = [
            (WEB.replace("10.0.0.1", "10.0.0.999"), 5, "spec.clusterIP", "not an IP address"),
            (WEB.replace("port: 80", "port: eighty"), 8, "spec.ports[0].port", "65535"),
            (WEB.replace("port: 80", "port: 0"), 1, "spec.ports[0].port", "0 is not a port"),
            (WEB.replace("name: web", "name: Web"), 1, "metadata", "lower-case"),
            (WEB.replace("kind: Service", "kind: Deployment"), 1, "kind", "not a kind that weft reads"),
            ("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {}\nstatus: {podIP: nope}\n".into(), 5, "status.podIP", "IP"),
            (WEB.replace("clusterIP: 10.0.0.1", "type: ExternalName"), 1, "spec.externalName", "missing"),
            ("apiVersion: v1\nkind: [\n".into(), 0, "kind", ""),
        ];
        for (text, line, field, message) in table {
            let p = parse("dir/f.yaml", &format!("---\n{text}")).expect_err(&text);
            if line > 0 {
                assert_eq!(p.place, format!("dir/f.yaml:{}", line + 1), "{p}");
            }
            assert_eq!(p.field, field, "{p}");
            assert!(p.message.contains(message), "{p}");
        }
    }

    #[test]
    fn json_is_read_too() {
        let text = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","namespace":"b"},"spec":{"containers":[]}}"#;
        assert_eq!(parse("f.json", text).expect("good")[0].key().to_string(), "Pod b/a");
    }

    #[test]
    fn what_an_api_server_sends_is_read_by_the_same_rules() {
        let service = serde_json::json!({
            "metadata": {"name": "web", "namespace": "shop", "managedFields": [{"manager": "kubectl"}]},
            "spec": {"clusterIP": "10.0.0.1", "ipFamilies": ["IPv4"], "ports": [{"port": 80, "targetPort": "http"}]},
            "status": {"loadBalancer": {}},
        });
        let Ok(Object::Service(read)) = from_json(Kind::Service, &service) else { panic!("a good one") };
        assert_eq!(read.spec.ip_families, [crate::objects::IpFamily::IPv4]);
        let mut broken = service.clone();
        broken["spec"]["ports"][0]["port"] = "eighty".into();
        let fault = from_json(Kind::Service, &broken).expect_err("no port");
        assert_eq!(fault.field, "spec.ports[0].port");
        broken["spec"]["ports"][0]["port"] = 0.into();
        assert_eq!(from_json(Kind::Service, &broken).expect_err("no port").message, "0 is not a port: use 1 to 65535");
        let namespace = serde_json::json!({
            "metadata": {"name": "shop", "labels": {"weft.dev/inject": "enabled", "other": "label"}},
            "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
        });
        let Ok(Object::Namespace(read)) = from_json(Kind::Namespace, &namespace) else { panic!("a good one") };
        assert!(read.enabled());
        assert_eq!(read.labels.keys().collect::<Vec<_>>(), ["kubernetes.io/metadata.name", "other", "weft.dev/inject"]);
    }

    #[test]
    fn a_slice_of_names_is_read_and_has_no_endpoints() {
        let slice = serde_json::json!({
            "metadata": {"name": "web-a", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "FQDN", "endpoints": [{"addresses": ["db.example.com"]}], "ports": [],
        });
        let Ok(Object::EndpointSlice(read)) = from_json(Kind::EndpointSlice, &slice) else { panic!("a good one") };
        assert!(read.endpoints.is_empty());
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
            let _ = parse("f", &text);
        }
    }
}
