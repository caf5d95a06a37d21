//! The words of `admission.k8s.io/v1`: a review in, a review out.

use serde_json::{Value, json};
use weft_core::Namespace;

use crate::base64;
use crate::error::InjectError;
use crate::manifest::{Object, as_object, malformed, object_in, text_in};
use crate::options::{InjectorOptions, NamespaceFacts};
use crate::patch::{Decision, SkipReason, left_alone, patch_pod};
use crate::update;

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";

/// What is answered to a review.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The `AdmissionReview` with the response.
    pub review: Value,
    /// The same in a word.
    pub verdict: Verdict,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The pod gets its sidecar.
    Injected,
    /// The pod gets none.
    Skipped(SkipReason),
    /// The pod is not admitted.
    Refused(InjectError),
}

impl Verdict {
    /// The verdict and its reason in kebab case, as metrics have them.
    pub fn words(&self) -> (&'static str, &'static str) {
        match self {
            Self::Injected => ("injected", ""),
            Self::Skipped(reason) => ("skipped", reason.as_str()),
            Self::Refused(error) => ("refused", error.reason()),
        }
    }
}

/// The namespace of the pod that a review is about, for looking it up before [`admit`].
pub fn namespace_of(review: &Value) -> Option<Namespace> {
    review.pointer("/request/namespace")?.as_str()?.parse().ok()
}

/// Answers an `AdmissionReview` that asks about a pod's creation, or about a change of its containers; `find` says what is known of its namespace.
/// Whatever comes in, a review comes out: what cannot be read is refused with the reason, since a pod that slipped by
/// would run outside of the mesh. Nothing is done but answered, so that a dry run is as any other.
pub fn admit(
    review: &Value,
    options: &InjectorOptions,
    find: impl FnOnce(&Namespace) -> Result<NamespaceFacts, InjectError>,
) -> Answer {
    let uid = review.pointer("/request/uid").and_then(Value::as_str).unwrap_or_default();
    let (mut response, verdict) = match decide(review, options, find) {
        Ok(Decision { skipped, ops, warnings }) => {
            let mut response = json!({ "allowed": true });
            if !ops.is_empty() {
                let patch = serde_json::to_vec(&ops).expect("JSON values with text keys can always be written");
                response["patchType"] = json!("JSONPatch");
                response["patch"] = json!(base64::encode(&patch));
            }
            if let Some(reason) = skipped {
                response["auditAnnotations"] = json!({ "skipped": reason.as_str() });
            }
            if !warnings.is_empty() {
                let said: Vec<String> = warnings.iter().map(|warning| format!("weft: {warning}")).collect();
                response["warnings"] = json!(said);
            }
            (response, skipped.map_or(Verdict::Injected, Verdict::Skipped))
        }
        Err(error) => {
            let status = json!({ "code": error.status_code(), "message": format!("weft: {error}") });
            (json!({ "allowed": false, "status": status }), Verdict::Refused(error))
        }
    };
    response["uid"] = json!(uid);
    Answer { review: json!({ "apiVersion": API_VERSION, "kind": KIND, "response": response }), verdict }
}

fn decide(
    review: &Value,
    options: &InjectorOptions,
    find: impl FnOnce(&Namespace) -> Result<NamespaceFacts, InjectError>,
) -> Result<Decision, InjectError> {
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
    let Some(step) = step(request)? else { return Ok(left_alone(SkipReason::NotAPodCreation)) };
    let namespace: Namespace = text_in(request, "request", "namespace")?.unwrap_or_default().parse()?;
    // Before the namespace is looked at: what goes wrong with that must not concern these.
    if options.protected.contains(&namespace) {
        return Ok(left_alone(SkipReason::ProtectedNamespace));
    }
    if step == Step::Update {
        let (old, new) = update::both(request)?;
        update::check(old, new, options, || find(&namespace))?;
        return Ok(left_alone(SkipReason::Update));
    }
    let pod = request.get("object").ok_or_else(|| malformed("request", "object", "a pod"))?;
    patch_pod(pod, &find(&namespace)?, options)
}

/// In a pod's life, what the injector has a say in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Creation,
    /// Of the pod itself, or of its ephemeral containers. Its status, its binding and all else are others' business.
    Update,
}

fn step(request: &Object) -> Result<Option<Step>, InjectError> {
    let kind = object_in(request, "request", "kind")?.ok_or_else(|| malformed("request", "kind", "an object"))?;
    let is_pod = text_in(kind, "request.kind", "kind")? == Some("Pod")
        && text_in(kind, "request.kind", "group")?.unwrap_or_default().is_empty();
    let part = text_in(request, "request", "subResource")?.unwrap_or_default();
    Ok(match (text_in(request, "request", "operation")?, part) {
        (Some("CREATE"), "") if is_pod => Some(Step::Creation),
        (Some("UPDATE"), "" | "ephemeralcontainers") if is_pod => Some(Step::Update),
        _ => None,
    })
}
