//! The words of `admission.k8s.io/v1`: a review in, a review out.

use serde_json::{Value, json};
use weft_core::Namespace;

use crate::base64;
use crate::error::InjectError;
use crate::manifest::{Object, as_object, malformed, object_in, text_in};
use crate::options::{InjectorOptions, NamespaceFacts};
use crate::patch::{Outcome, SkipReason, patch_pod};

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

/// Answers an `AdmissionReview` that asks about a pod's creation. Whatever comes in, a review comes out: what
/// cannot be read is refused with the reason, since a pod that slipped by would run outside of the mesh.
pub fn admit(review: &Value, options: &InjectorOptions) -> Value {
    let uid = review.pointer("/request/uid").and_then(Value::as_str).unwrap_or_default();
    let mut response = match decide(review, options) {
        Ok(Outcome::Patch(ops)) => {
            let patch = serde_json::to_vec(&ops).expect("JSON values with text keys can always be written");
            json!({ "allowed": true, "patchType": "JSONPatch", "patch": base64::encode(&patch) })
        }
        Ok(Outcome::Skip(reason)) => json!({ "allowed": true, "auditAnnotations": { "skipped": reason.as_str() } }),
        Err(error) => json!({
            "allowed": false,
            "status": { "code": error.status_code(), "message": format!("weft: {error}") },
        }),
    };
    response["uid"] = json!(uid);
    json!({ "apiVersion": API_VERSION, "kind": KIND, "response": response })
}

fn decide(review: &Value, options: &InjectorOptions) -> Result<Outcome, InjectError> {
    let review = as_object(review, "the body")?;
    for (key, expected) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        if text_in(review, "", key)? != Some(expected) {
            return Err(malformed("", key, expected));
        }
    }
    let request = object_in(review, "", "request")?.ok_or_else(|| malformed("", "request", "an object"))?;
    if text_in(request, "request", "uid")?.unwrap_or_default().is_empty() {
        return Err(malformed("request", "uid", "a text that is not empty"));
    }
    if !is_pod_creation(request)? {
        return Ok(Outcome::Skip(SkipReason::NotAPodCreation));
    }
    let namespace: Namespace = text_in(request, "request", "namespace")?.unwrap_or_default().parse()?;
    let pod = request.get("object").ok_or_else(|| malformed("request", "object", "a pod"))?;
    match options.namespaces.get(&namespace) {
        Some(facts) => patch_pod(pod, facts, options),
        None => patch_pod(pod, &NamespaceFacts::selected(namespace), options),
    }
}

/// Afterwards a pod's containers cannot be changed, but for ephemeral ones.
fn is_pod_creation(request: &Object) -> Result<bool, InjectError> {
    let kind = object_in(request, "request", "kind")?.ok_or_else(|| malformed("request", "kind", "an object"))?;
    let is_pod = text_in(kind, "request.kind", "kind")? == Some("Pod")
        && text_in(kind, "request.kind", "group")?.unwrap_or_default().is_empty();
    let creates = text_in(request, "request", "operation")? == Some("CREATE");
    let itself = text_in(request, "request", "subResource")?.unwrap_or_default().is_empty();
    Ok(is_pod && creates && itself)
}
