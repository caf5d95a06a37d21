//! A file of manifests to objects, or to a problem with file, line and field.

use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Problem;
use crate::objects::{
    EndpointSliceObject, LABEL_SERVICE_NAME, Metadata, NamespaceObject, Object, PodObject, PodSpec, PodStatus, ServiceObject,
    ServiceSpec, ServiceType, SliceEndpoint, SlicePort,
};

/// The largest file that is read, in bytes.
pub const MAX_FILE: u64 = 16 << 20;

/// Reads every document of a YAML or JSON file. `file` is the name that problems carry.
pub fn parse(file: &str, text: &str) -> Result<Vec<Object>, Problem> {
    let mut objects = Vec::new();
    for (first_line, document) in documents(text) {
        if document.lines().all(|l| l.trim().is_empty() || l.trim_start().starts_with('#')) {
            continue;
        }
        parse_document(&Place { file, first_line }, document, &mut objects)?;
    }
    Ok(objects)
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
    fn problem(&self, line: Option<u64>, field: &str, message: impl Into<String>) -> Problem {
        let line = self.first_line + line.unwrap_or(1).max(1) as usize;
        let field = if field == "." { "" } else { field };
        Problem { place: format!("{}:{line}", self.file), field: field.to_owned(), message: message.into() }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TypeMeta {
    api_version: String,
    kind: String,
}

fn read<T: DeserializeOwned>(place: &Place<'_>, text: &str) -> Result<T, Problem> {
    // A path of fields from one crate, line and column from the other.
    let mut field = String::new();
    serde_saphyr::with_deserializer_from_str(text, |d| {
        serde_path_to_error::deserialize(d).map_err(|e| {
            field = e.path().to_string();
            e.into_inner()
        })
    })
    .map_err(|e: serde_saphyr::Error| {
        let line = e.location().map(|l| l.line());
        // The place is said by the problem itself, in terms of the file.
        let text = e.without_snippet().to_string();
        let first = text.lines().next().unwrap_or("not readable");
        let message =
            first.split(" at line ").next().unwrap_or(first).replace("invalid u16", "not a whole number from 0 to 65535");
        place.problem(line, &field, message)
    })
}

fn parse_document(place: &Place<'_>, text: &str, out: &mut Vec<Object>) -> Result<(), Problem> {
    let meta: TypeMeta = read(place, text)?;
    let object = match (meta.api_version.as_str(), meta.kind.as_str()) {
        ("v1", "Namespace") => {
            let m: Outer<(), ()> = read(place, text)?;
            let mut metadata = m.metadata;
            metadata.namespace = Some(metadata.name.clone());
            let id = id(place, &metadata)?;
            Object::Namespace(Arc::new(NamespaceObject { name: id.namespace.clone(), id, annotations: metadata.annotations }))
        }
        ("v1", "Service") => {
            let m: Outer<ServiceSpec, ()> = read(place, text)?;
            let id = id(place, &m.metadata)?;
            let spec = m.spec.ok_or_else(|| place.problem(None, "spec", "missing: a Service needs a spec"))?;
            check_ports(place, &spec)?;
            check_alias(place, &spec)?;
            Object::Service(Arc::new(ServiceObject { id, spec }))
        }
        ("v1", "Pod") => {
            let m: Outer<PodSpec, PodStatus> = read(place, text)?;
            let id = id(place, &m.metadata)?;
            let spec = m.spec.ok_or_else(|| place.problem(None, "spec", "missing: a Pod needs a spec"))?;
            if let Some(sa) = &spec.service_account_name {
                sa.parse::<weft_core::ServiceAccount>()
                    .map_err(|e| place.problem(None, "spec.serviceAccountName", e.to_string()))?;
            }
            Object::Pod(Arc::new(PodObject {
                id,
                labels: m.metadata.labels,
                annotations: m.metadata.annotations,
                terminating: m.metadata.deletion_timestamp.is_some(),
                spec,
                status: m.status.unwrap_or_default(),
            }))
        }
        ("discovery.k8s.io/v1", "EndpointSlice") => {
            let m: SliceOuter = read(place, text)?;
            let id = id(place, &m.metadata)?;
            let service = match m.metadata.labels.get(LABEL_SERVICE_NAME) {
                Some(name) => Some(
                    name.parse()
                        .map_err(|e: weft_core::identity::InvalidName| place.problem(None, "metadata.labels", e.to_string()))?,
                ),
                None => None,
            };
            let endpoints = m.endpoints.unwrap_or_default();
            check_slice(place, &endpoints)?;
            Object::EndpointSlice(Arc::new(EndpointSliceObject { id, service, endpoints, ports: m.ports.unwrap_or_default() }))
        }
        ("v1", "List") => {
            return Err(place.problem(
                None,
                "kind",
                "List is not read: put each object into a document of its own, separated by ---",
            ));
        }
        (version, kind) => {
            return Err(place.problem(
                None,
                "kind",
                format!(
                    "{version}/{kind} is not a kind that weft reads; known are v1/Namespace, v1/Service, v1/Pod and \
                     discovery.k8s.io/v1/EndpointSlice"
                ),
            ));
        }
    };
    out.push(object);
    Ok(())
}

#[derive(Deserialize)]
#[serde(bound = "S: DeserializeOwned, T: DeserializeOwned")]
struct Outer<S, T> {
    metadata: Metadata,
    spec: Option<S>,
    status: Option<T>,
}

#[derive(Deserialize)]
struct SliceOuter {
    metadata: Metadata,
    endpoints: Option<Vec<SliceEndpoint>>,
    ports: Option<Vec<SlicePort>>,
}

fn id(place: &Place<'_>, metadata: &Metadata) -> Result<weft_core::service::ObjectRef, Problem> {
    metadata.id().map_err(|e| place.problem(None, "metadata", e.to_string()))
}

/// What the API server takes in one `EndpointSlice` at most.
const MAX_SLICE: usize = 1_000;

fn check_slice(place: &Place<'_>, endpoints: &[SliceEndpoint]) -> Result<(), Problem> {
    if endpoints.len() > MAX_SLICE {
        let count = endpoints.len();
        return Err(place.problem(
            None,
            "endpoints",
            format!("{count} endpoints; at most {MAX_SLICE} in one slice: make several"),
        ));
    }
    Ok(())
}

fn check_alias(place: &Place<'_>, spec: &ServiceSpec) -> Result<(), Problem> {
    if spec.kind == ServiceType::ExternalName && spec.external_name.as_deref().is_none_or(str::is_empty) {
        return Err(place.problem(None, "spec.externalName", "missing: a Service of type ExternalName stands for a name"));
    }
    Ok(())
}

fn check_ports(place: &Place<'_>, spec: &ServiceSpec) -> Result<(), Problem> {
    for (i, p) in spec.ports.iter().enumerate() {
        let field = || format!("spec.ports[{i}]");
        if p.port == 0 {
            return Err(place.problem(None, &format!("{}.port", field()), "0 is not a port: use 1 to 65535"));
        }
        if spec.ports.len() > 1 && p.name.is_none() {
            return Err(place.problem(None, &format!("{}.name", field()), "missing: with several ports each needs a name"));
        }
        if spec.ports[..i].iter().any(|q| (q.port, q.protocol) == (p.port, p.protocol)) {
            return Err(place.problem(None, &format!("{}.port", field()), format!("{} stands twice", p.port)));
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

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,200}") {
            let _ = parse("f", &text);
        }
    }
}
