//! Whatever comes in, a review comes out, and a patch that fits.

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Map, Value, json};
use weft_injector::{InjectorOptions, admit};

use crate::{apply, options, ordinary_pod, patch_of, review};

/// Keys and texts that injection looks for, so that arbitrary JSON gets past the first check.
const WORDS: [&str; 32] = [
    "apiVersion",
    "admission.k8s.io/v1",
    "kind",
    "AdmissionReview",
    "request",
    "uid",
    "namespace",
    "operation",
    "CREATE",
    "object",
    "Pod",
    "metadata",
    "name",
    "labels",
    "annotations",
    "weft.dev/inject",
    "enabled",
    "disabled",
    "spec",
    "containers",
    "initContainers",
    "volumes",
    "securityContext",
    "runAsUser",
    "capabilities",
    "add",
    "NET_ADMIN",
    "privileged",
    "hostNetwork",
    "weft-sidecar",
    "weft-redirect",
    "weft.dev/skip-subnets",
];

fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => prop::sample::select(WORDS.to_vec()).prop_map(str::to_owned),
        1 => "\\PC{0,8}",
    ]
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        Just(json!(4747)),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 48, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(word(), inner, 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// Every place in `value`, as JSON pointers.
fn places(value: &Value, at: &str, found: &mut Vec<String>) {
    found.push(at.to_owned());
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                let token = key.replace('~', "~0").replace('/', "~1");
                places(member, &format!("{at}/{token}"), found);
            }
        }
        Value::Array(entries) => {
            for (index, entry) in entries.iter().enumerate() {
                places(entry, &format!("{at}/{index}"), found);
            }
        }
        _ => {}
    }
}

/// The answer is well formed; where it patches, the patch fits and a second call has nothing to add.
fn check(asked: &Value, options: &InjectorOptions) {
    let answer = admit(asked, options);
    assert_eq!(answer["kind"], "AdmissionReview");
    let response = &answer["response"];
    assert!(response["uid"].is_string(), "{answer}");
    let allowed = response["allowed"].as_bool().expect("it is decided");
    assert_eq!(allowed, response.get("status").is_none(), "a refusal has a message, and nothing else has: {answer}");
    if response.get("patch").is_some() {
        let mut patched = asked.clone();
        apply::apply(&mut patched["request"]["object"], &patch_of(response)).expect("the patch fits");
        let again = admit(&patched, options);
        assert_eq!(again["response"]["auditAnnotations"]["skipped"], "already-injected", "{again}");
    }
}

proptest! {
    #[test]
    fn any_json_is_answered(asked in any_json(), native_sidecar in any::<bool>()) {
        check(&asked, &InjectorOptions { native_sidecar, ..options() });
    }

    #[test]
    fn any_pod_is_answered(pod in any_json(), native_sidecar in any::<bool>()) {
        check(&review("shop", &pod), &InjectorOptions { native_sidecar, ..options() });
    }

    #[test]
    fn a_good_review_with_one_part_exchanged_is_answered(
        part in any_json(),
        place in any::<Index>(),
        native_sidecar in any::<bool>(),
    ) {
        let mut asked = review("shop", &ordinary_pod());
        let mut found = Vec::new();
        places(&asked, "", &mut found);
        *asked.pointer_mut(&place.get(&found[..])[..]).expect("the place was found there") = part;
        check(&asked, &InjectorOptions { native_sidecar, ..options() });
    }
}
