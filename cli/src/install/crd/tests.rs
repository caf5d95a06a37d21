use std::collections::BTreeSet;

use weft_control_plane::objects::Object;

use super::*;

/// Every schema in a schema, with its path.
fn each(path: &str, schema: &Value, look: &mut impl FnMut(&str, &Value)) {
    look(path, schema);
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        each(&format!("{path}.{name}"), inner, look);
    }
    if let Some(items) = schema.get("items") {
        each(&format!("{path}[]"), items, look);
    }
}

/// The schema of each kind, by its name.
fn schemas() -> Vec<(String, Value)> {
    let of = |definition: Value| {
        let kind = definition["spec"]["names"]["kind"].as_str().expect("a kind").to_owned();
        (kind, definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone())
    };
    definitions(KubeVersion::CURRENT).into_iter().map(of).collect()
}

/// What the API server wants of a structural schema, and what people want of it.
#[test]
fn every_field_is_typed_bounded_and_explained() {
    for (kind, schema) in schemas() {
        each(&kind, &schema, &mut |path, schema| is_sound(path, schema));
    }
}

fn is_sound(path: &str, schema: &Value) {
    if path.ends_with(".metadata") && path.matches('.').count() == 1 {
        return;
    }
    assert!(schema["description"].as_str().is_some_and(|text| text.ends_with('.') || text.contains("://")), "{path}: {schema}");
    match schema["type"].as_str() {
        Some("object") => {
            let is_map = schema["additionalProperties"]["type"] == "string" && schema["maxProperties"].is_u64();
            assert!(schema["properties"].is_object() || is_map, "{path}");
        }
        Some("array") => assert!(schema["maxItems"].is_u64() && schema["items"].is_object(), "{path}"),
        Some("integer") => assert!(schema["minimum"].is_i64() && schema["maximum"].is_i64(), "{path}"),
        Some("string" | "boolean") => {}
        other => panic!("{path}: {other:?}"),
    }
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        assert!(schema["properties"].get(name).is_some(), "{path}: {name} is required and is not there");
    }
    // The keys of a map must be there, or have a default.
    for key in schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        let required = schema["items"]["required"].as_array().into_iter().flatten().any(|name| name == key);
        assert!(required, "{path}: {key}");
    }
    // A server of old that was built with a newer Go takes an empty default for null, and refuses the whole definition.
    assert_ne!(schema["default"], "", "{path}");
    if let (Some(default), Some(least)) = (schema["default"].as_i64(), schema["minimum"].as_i64()) {
        assert!(default >= least && default <= schema["maximum"].as_i64().unwrap_or(i64::MAX), "{path}");
    }
}

#[test]
fn an_old_server_gets_no_rules() {
    let of = |kube: &str| Value::from(definitions(kube.parse().expect("a version"))).to_string();
    for old in ["1.20", "1.24"] {
        assert!(!of(old).contains("x-kubernetes-validations"), "{old}");
    }
    assert!(of("1.25").contains("x-kubernetes-validations"));
    assert_eq!(of("1.25"), Value::from(definitions(KubeVersion::CURRENT)).to_string());
}

/// The fields of a value, as paths; the elements of a list are one.
fn fields(path: &str, value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(all) => {
            for (name, inner) in all {
                let path = format!("{path}.{name}");
                fields(&path, inner, found);
                found.insert(path);
            }
        }
        Value::Array(all) => all.iter().for_each(|inner| fields(&format!("{path}[]"), inner, found)),
        _ => {}
    }
}

/// The API server drops what the schema does not have, and the control plane refuses what it does not know.
#[test]
fn the_schema_has_what_the_control_plane_reads() {
    for (kind, text) in [
        ("TrafficPolicy", include_str!("traffic/examples.yaml")),
        ("AuthorizationPolicy", include_str!("authorization/examples.yaml")),
        ("IdentityDenial", include_str!("trust/denials.yaml")),
        ("MtlsPolicy", include_str!("mtls/examples.yaml")),
        ("JwtIssuer", include_str!("jwt/examples.yaml")),
        ("ExternalService", include_str!("external/examples.yaml")),
    ] {
        let objects =
            weft_control_plane::watch::parse::parse("examples.yaml", text).unwrap_or_else(|problem| panic!("{problem}"));
        let values: Vec<Value> = serde_saphyr::from_multiple(text).expect("YAML");
        assert_eq!(objects.len(), values.len());
        for object in objects {
            if let Object::AuthorizationPolicy(policy) = &object {
                assert!(policy.content.is_ok(), "{:?}", policy.content);
            }
            if let Object::MtlsPolicy(policy) = &object {
                assert!(policy.content.is_ok(), "{:?}", policy.content);
            }
            if let Object::JwtIssuer(issuer) = &object {
                assert!(issuer.content.is_ok(), "{:?}", issuer.content);
            }
            if let Object::ExternalService(external) = &object {
                assert!(external.content.is_ok(), "{:?}", external.content);
            }
        }
        let mut used = BTreeSet::new();
        for value in &values {
            fields("", &value["spec"], &mut used);
        }
        // The names of labels are their author's.
        used.retain(|path| !path.contains(".matchLabels."));
        let (_, schema) = schemas().into_iter().find(|(name, _)| name == kind).expect("it is defined");
        let mut known = BTreeSet::new();
        each("", &schema["properties"]["spec"], &mut |path, _| {
            known.insert(path.to_owned());
        });
        known.retain(|path| !path.is_empty() && !path.ends_with("[]"));
        assert_eq!(used, known, "{kind}");
    }
}
