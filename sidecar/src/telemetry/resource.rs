//! Whose telemetry it is: the resource of OTLP.

use bytes::Bytes;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;
use weft_core::conventions::SCHEMA_URL;

use crate::otlp::Env;
use crate::otlp::wire::Wire;
use crate::worker::Shared;

/// An attribute.
pub(crate) fn attribute(name: &str, value: Value) -> KeyValue {
    KeyValue { key: name.to_owned(), value: Some(AnyValue { value: Some(value) }), key_strindex: 0 }
}

/// What `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_SERVICE_NAME` say, and, where they say nothing of it, who the sidecar is. The service's name is
/// the service account's where nothing is said; the pod is known once there is a certificate.
pub(crate) fn resource(shared: &Shared, env: &Env) -> Resource {
    let mut pairs: Vec<(String, String)> = Vec::new();
    if let Some(name) = env.get("OTEL_SERVICE_NAME") {
        pairs.push(("service.name".to_owned(), name.to_owned()));
    }
    let given = env.get("OTEL_RESOURCE_ATTRIBUTES").map(Env::pairs).unwrap_or_default();
    let mut add = |name: &str, value: String| {
        if pairs.iter().all(|(other, _)| other != name) {
            pairs.push((name.to_owned(), value));
        }
    };
    for (name, value) in given.into_iter().flatten() {
        add(&name, value);
    }
    let asked = &shared.config.identity;
    let identity = shared.mesh.identity.load();
    let pod = identity.as_ref().and_then(|i| i.svid.info().pod.clone());
    let id = identity.as_ref().map_or_else(|| asked.spiffe_id(), |i| i.svid.info().id.clone());
    add("service.name", asked.identity.name.to_string());
    add("service.namespace", asked.identity.namespace.to_string());
    add("k8s.namespace.name", asked.identity.namespace.to_string());
    match pod {
        Some(pod) => {
            add("service.instance.id", pod.to_string());
            add("k8s.pod.name", pod.name.to_string());
        }
        // Until there is a certificate.
        None => add("service.instance.id", shared.config.net.pod_ips.first().map(ToString::to_string).unwrap_or_default()),
    }
    add("service.version", env!("CARGO_PKG_VERSION").to_owned());
    add("weft.identity", id.to_string());
    add("telemetry.sdk.name", "weft".to_owned());
    add("telemetry.sdk.language", "rust".to_owned());
    add("telemetry.sdk.version", env!("CARGO_PKG_VERSION").to_owned());
    let attributes = pairs.into_iter().map(|(name, value)| attribute(&name, Value::StringValue(value))).collect();
    Resource { attributes, dropped_attributes_count: 0, entity_refs: vec![] }
}

/// What stands before `items` bytes of spans or of log records, so that both are a whole message: `ExportTraceServiceRequest` and `ExportLogsServiceRequest` have the same
/// fields for them.
pub(super) fn before(resource: &Resource, items: usize) -> Bytes {
    let schema = |wire: &mut Wire<'_>| wire.text(3, SCHEMA_URL);
    let (mut of_scope, mut of_resource, mut all) = (Vec::new(), Vec::new(), Vec::new());
    let mut wire = Wire::new(&mut of_scope);
    wire.bytes(1, &scope().encode_to_vec());
    schema(&mut wire);
    let scope_len = of_scope.len() + items;
    let mut wire = Wire::new(&mut of_resource);
    wire.bytes(1, &resource.encode_to_vec());
    schema(&mut wire);
    wire.begins(2, scope_len);
    let resource_len = of_resource.len() + scope_len;
    Wire::new(&mut all).begins(1, resource_len);
    all.append(&mut of_resource);
    all.append(&mut of_scope);
    all.into()
}

/// The text of an attribute.
pub(crate) fn text_of<'a>(resource: &'a Resource, name: &str) -> Option<&'a str> {
    let value = resource.attributes.iter().find(|pair| pair.key == name)?.value.as_ref()?;
    if let Some(Value::StringValue(text)) = &value.value { Some(text) } else { None }
}

/// What made it.
pub(crate) fn scope() -> InstrumentationScope {
    let version = env!("CARGO_PKG_VERSION").to_owned();
    InstrumentationScope { name: "weft".to_owned(), version, attributes: vec![], dropped_attributes_count: 0 }
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};

    use super::*;

    #[test]
    fn what_stands_before_items_makes_a_whole_message_of_them() {
        let resource = Resource { attributes: vec![attribute("k", Value::StringValue("v".to_owned()))], ..Resource::default() };
        let url = || SCHEMA_URL.to_owned();
        for count in [0, 1, 100, 10_000] {
            let spans = vec![Span { name: "GET".to_owned(), ..Span::default() }; count];
            let items = ScopeSpans { spans: spans.clone(), ..ScopeSpans::default() }.encode_to_vec();
            let whole = [&before(&resource, items.len()), &*items].concat();
            let scope_spans = vec![ScopeSpans { scope: Some(scope()), spans, schema_url: url() }];
            let expected = ResourceSpans { resource: Some(resource.clone()), scope_spans, schema_url: url() };
            assert_eq!(
                ExportTraceServiceRequest::decode(&*whole),
                Ok(ExportTraceServiceRequest { resource_spans: vec![expected] })
            );

            let log_records = vec![LogRecord { event_name: "weft.access".to_owned(), ..LogRecord::default() }; count];
            let items = ScopeLogs { log_records: log_records.clone(), ..ScopeLogs::default() }.encode_to_vec();
            let whole = [&before(&resource, items.len()), &*items].concat();
            let scope_logs = vec![ScopeLogs { scope: Some(scope()), log_records, schema_url: url() }];
            let expected = ResourceLogs { resource: Some(resource.clone()), scope_logs, schema_url: url() };
            assert_eq!(ExportLogsServiceRequest::decode(&*whole), Ok(ExportLogsServiceRequest { resource_logs: vec![expected] }));
        }
    }
}
