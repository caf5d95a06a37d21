//! Reviews that an API server sends, and pods in them.

use serde_json::{Value, json};
use weft_injector::{InjectorOptions, NamespaceFacts};

// JSON patch as the injector's own tests have it.
#[path = "../../../injector/tests/admission/apply.rs"]
mod apply;

/// Any JSON is answered, as a review and as a pod in a good one.
pub fn admission(bytes: &[u8]) {
    let Ok(asked) = serde_json::from_slice::<Value>(bytes) else { return };
    let review = json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "1",
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "namespace": "shop",
            "operation": "CREATE",
            "object": asked,
        },
    });
    for native_sidecar in [true, false] {
        let options = InjectorOptions {
            native_sidecar,
            ..InjectorOptions::new("example.com/weft:0.1.0", "weft-control-plane.weft-system.svc:4700")
        };
        answered(&asked, &options);
        answered(&review, &options);
    }
}

/// The answer is well formed; where it patches, the patch fits, and a second call has nothing to add.
fn answered(asked: &Value, options: &InjectorOptions) {
    let answer = admit(asked, options);
    let response = &answer["response"];
    assert_eq!(answer["kind"], "AdmissionReview", "{answer}");
    assert!(response["uid"].is_string(), "{answer}");
    let allowed = response["allowed"].as_bool().expect("it is decided");
    assert_eq!(allowed, response.get("status").is_none(), "a refusal has a message, and nothing else has: {answer}");
    let Some(patch) = response["patch"].as_str() else { return };
    let patch = apply::from_base64(patch).expect("a patch is in base64");
    let patch: Value = serde_json::from_slice(&patch).expect("a patch is JSON");
    let mut patched = asked.clone();
    apply::apply(&mut patched["request"]["object"], &patch).expect("the patch fits");
    let again = admit(&patched, options);
    assert_eq!(again["response"]["auditAnnotations"]["skipped"], "already-injected", "{again}");
}

fn admit(review: &Value, options: &InjectorOptions) -> Value {
    weft_injector::admit(review, options, |name| Ok(NamespaceFacts::selected(name.clone()))).review
}
