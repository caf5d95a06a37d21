//! Takes secrets out of what goes into an archive. It rather takes too much: a field that might hold one is removed, and so is what looks like a key or a token
//! wherever it stands.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

use crate::install::yaml;

mod text;

/// What stands where something was removed.
const REMOVED: &str = "[removed]";
/// Words in the names of fields whose contents are secrets, in lower case.
const SECRET_NAMES: [&str; 12] = [
    "token",
    "secret",
    "password",
    "passwd",
    "passphrase",
    "private",
    "credential",
    "authorization",
    "cookie",
    "apikey",
    "api-key",
    "api_key",
];
/// Of names with such a word, those that hold none.
const HARMLESS: [&str; 6] = [
    "secretname",
    "automountserviceaccounttoken",
    "tokenexpirationseconds",
    "imagepullsecrets",
    "serviceaccounttoken",
    "privileged",
];
/// Fields that are removed whole: what else was applied, telemetry's settings (with the collector's key), and queries.
const WHOLE: [&str; 4] = ["kubectl.kubernetes.io/last-applied-configuration", "weft.dev/telemetry", "query", "url.query"];
/// Fields that hold a path or a URL, which may have a query.
const PATHS: [&str; 6] = ["path", "url", "uri", "target", "url.full", "url.path"];

/// A file without secrets: JSON and YAML by their fields, logs line by line. JSON stays JSON, and YAML YAML.
pub(super) fn clean(name: &str, content: &str) -> String {
    match serde_json::from_str::<Value>(content) {
        Ok(mut value) if value.is_object() || value.is_array() => {
            object(&mut value);
            format!("{value:#}\n")
        }
        _ if Path::new(name).extension().is_some_and(|end| end == "yaml" || end == "yml") => documents(content),
        _ => lines(content),
    }
}

/// Manifests. What cannot be read might be anything, and is left out.
fn documents(content: &str) -> String {
    match serde_saphyr::from_multiple::<Value>(content) {
        Ok(mut all) => {
            all.iter_mut().for_each(object);
            yaml::documents(&all)
        }
        Err(_) => format!("# {REMOVED}: it cannot be read as YAML, so that nobody knows what is in it\n"),
    }
}

/// A log: a line may be JSON, behind what kubectl puts before it.
fn lines(content: &str) -> String {
    let mut out = String::with_capacity(content.len());
    let mut rest = String::new();
    for line in content.split_inclusive('\n') {
        let told = line.find('{').and_then(|at| Some((at, serde_json::from_str::<Value>(line[at..].trim_end()).ok()?)));
        if let Some((at, mut value)) = told {
            out += &text::clean(&std::mem::take(&mut rest));
            out += &text::clean(&line[..at]);
            object(&mut value);
            let _ = writeln!(out, "{value}");
        } else {
            // Together, since a key in PEM has many lines.
            rest += line;
        }
    }
    out + &text::clean(&rest)
}

fn object(value: &mut Value) {
    match value {
        Value::Array(all) => all.iter_mut().for_each(object),
        Value::Object(fields) => {
            let is_secret = fields.get("kind").and_then(Value::as_str) == Some("Secret");
            // An environment variable, or a header field: its name says nothing of what it holds.
            let is_named = fields.contains_key("name");
            let is_own = fields.get("name").and_then(Value::as_str).is_some_and(|name| name.starts_with("weft-"));
            let is_claim = is_named || fields.contains_key("path");
            for (name, value) in fields.iter_mut() {
                let lower = name.to_ascii_lowercase();
                let whole = WHOLE.contains(&lower.as_str())
                    || is_secret && ["data", "stringData"].contains(&name.as_str())
                    || is_named && name == "value" && !value.is_object()
                    || is_claim && name == "values" && value.is_array()
                    // A program's own words may have a password in them; those of weft's do not.
                    || !is_own && ["command", "args"].contains(&name.as_str()) && value.is_array()
                    || is_secret_name(&lower) && holds_secret(&lower, value);
                if whole {
                    *value = REMOVED.into();
                } else if let (Some(path), true) = (value.as_str(), PATHS.contains(&lower.as_str())) {
                    *value = text::clean(&without_query(path)).into();
                } else {
                    object(value);
                }
            }
        }
        Value::String(content) => {
            let cleaned = text::clean(content);
            if cleaned != *content {
                *content = cleaned;
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Whether a field or a variable of this name, in lower case, may hold a secret.
fn is_secret_name(name: &str) -> bool {
    SECRET_NAMES.iter().any(|word| name.contains(word)) && !HARMLESS.contains(&name)
}

/// Numbers and flags below such a name count something. What is named authorization may be a policy.
fn holds_secret(name: &str, value: &Value) -> bool {
    let is_deep = |value: &Value| value.is_object() || value.as_array().is_some_and(|all| all.iter().all(Value::is_object));
    match value {
        Value::String(_) => true,
        Value::Object(_) | Value::Array(_) => !(name.contains("authorization") && is_deep(value)),
        Value::Number(_) => name.contains("passw"),
        Value::Null | Value::Bool(_) => false,
    }
}

fn without_query(path: &str) -> String {
    path.split_once('?').map_or_else(|| path.to_owned(), |(before, _)| format!("{before}?{REMOVED}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cleaned(value: &Value) -> Value {
        serde_json::from_str(&clean("a.json", &value.to_string())).expect("JSON stays JSON")
    }

    #[test]
    fn fields_that_hold_secrets_are_removed_and_others_stay() {
        let found = cleaned(&json!({
            "kind": "Pod", "metadata": {"name": "web-0", "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"}},
            "spec": {"containers": [{"name": "app", "env": [{"name": "DB", "value": "postgres://u:p@h"}], "image": "x"}]},
            "authorization": {"default": "allow"}, "secretName": "web-tls", "joinToken": "abc", "password": "hunter2", "requests": 7, "path": "/a?key=v",
        }));
        assert_eq!(found["spec"]["containers"][0]["env"][0]["value"], REMOVED);
        assert_eq!(
            (found["joinToken"].as_str(), found["password"].as_str(), found["path"].as_str()),
            (Some(REMOVED), Some(REMOVED), Some("/a?[removed]"))
        );
        assert_eq!(
            (found["secretName"].as_str(), found["requests"].as_u64(), found["metadata"]["name"].as_str()),
            (Some("web-tls"), Some(7), Some("web-0"))
        );
        assert_eq!(found["authorization"]["default"], "allow", "policies are no secrets");
        let secret = cleaned(&json!({"items": [{"kind": "Secret", "data": {"tls.key": "QUJD"}, "metadata": {"name": "x"}}]}));
        assert!(!secret.to_string().contains("QUJD"), "{secret}");
    }

    #[test]
    fn what_is_annotated_told_in_arguments_or_listed_is_removed() {
        let found = cleaned(&json!({
            "metadata": {"annotations": {"weft.dev/telemetry": "OTEL_EXPORTER_OTLP_HEADERS=api-key=0123", "x": "POSTGRES_PASSWORD=hunter2"}},
            "spec": {"containers": [
                {"name": "app", "image": "x", "args": ["--db-password=hunter2", "postgres://u:p@h"], "command": ["run", "hunter2"],
                    "livenessProbe": {"exec": {"command": ["probe", "hunter2"]}}, "env": [{"name": "A", "value": 7}]},
                {"name": "weft-sidecar", "image": "x", "args": ["--admin-port=15020"]},
            ]},
            "tokens": ["hunter2"], "passwords": [{"of": "hunter2"}], "password": 1234, "tokens_told": 5, "query": "k=hunter2",
            "authorization": [{"default": "allow"}],
        }));
        let text = found.to_string();
        assert!(!text.contains("hunter2") && !text.contains("0123") && !text.contains("u:p") && !text.contains("1234"), "{text}");
        assert_eq!(found["spec"]["containers"][1]["args"][0], "--admin-port=15020");
        assert_eq!((&found["tokens_told"], &found["authorization"][0]["default"]), (&json!(5), &json!("allow")));
        assert_eq!(found["spec"]["containers"][0]["env"][0]["value"], REMOVED);
    }

    #[test]
    fn manifests_lose_values_of_headers_and_claims_and_stay_yaml() {
        let policy = "\
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: web, namespace: shop}
spec:
  rules:
  - from: [{jwt: {issuer: https://id, claims: [{name: plan, values: [hunter2]}, {path: [a, b], values: [hunter2]}]}}]
    to: [{paths: [/books], headers: [{name: x-key, type: Prefix, value: hunter2}]}]
---
kind: HTTPRoute
spec: {rules: [{filters: [{requestHeaderModifier: {set: [{name: x-key, value: hunter2}]}}]}]}
---
kind: Secret
stringData: {a: hunter2}
";
        let cleaned = clean("manifests/policies.yaml", policy);
        assert!(!cleaned.contains("hunter2") && cleaned.contains("/books") && cleaned.contains("x-key"), "{cleaned}");
        assert_eq!(serde_saphyr::from_multiple::<Value>(&cleaned).expect("YAML").len(), 3);
        let broken = clean("a.yaml", "a: [\n  password: hunter2");
        assert!(!broken.contains("hunter2"), "{broken}");
    }

    #[test]
    fn a_line_of_a_log_that_is_json_goes_by_its_fields() {
        let log =
            "[pod/a/b] {\"path\": \"/a\", \"query\": \"k=hunter2\", \"token\": \"hunter2\"}\nplain\n{broken token=hunter2\n";
        let cleaned = clean("logs/a.txt", log);
        assert!(!cleaned.contains("hunter2"), "{cleaned}");
        assert!(cleaned.starts_with("[pod/a/b] {") && cleaned.contains("\nplain\n") && cleaned.lines().count() == 3, "{cleaned}");
    }
}
