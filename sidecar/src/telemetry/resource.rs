//! Whose telemetry it is: the resource of OTLP.

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;

use crate::otlp::Env;
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
