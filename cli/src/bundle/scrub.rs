//! Takes secrets out of what goes into an archive. It rather takes too much: a field that might hold one is removed, and so is what looks like a key or a token
//! wherever it stands.

use serde_json::Value;

/// What stands where something was removed.
const REMOVED: &str = "[removed]";
/// Words in the names of fields whose texts are secrets, in lower case.
const SECRET_NAMES: [&str; 9] =
    ["token", "secret", "password", "passwd", "private", "credential", "authorization", "cookie", "apikey"];
/// Of names with such a word, those that hold none.
const HARMLESS: [&str; 6] = [
    "secretname",
    "automountserviceaccounttoken",
    "tokenexpirationseconds",
    "imagepullsecrets",
    "serviceaccounttoken",
    "privileged",
];
/// The shortest run of base64 or hexadecimal that is taken for key material, unless it is a hash in hexadecimal.
const LONGEST_WORD: usize = 80;

/// A text without secrets. JSON stays JSON.
pub(super) fn clean(text: &str) -> String {
    match serde_json::from_str::<Value>(text) {
        Ok(mut value) if value.is_object() || value.is_array() => {
            object(&mut value);
            format!("{value:#}\n")
        }
        _ => words(&blocks(text)),
    }
}

fn object(value: &mut Value) {
    match value {
        Value::Array(all) => all.iter_mut().for_each(object),
        Value::Object(fields) => {
            let is_secret = fields.get("kind").and_then(Value::as_str) == Some("Secret");
            // An environment variable: its name says nothing of what it holds.
            let is_variable = fields.contains_key("name") && fields.get("value").is_some_and(Value::is_string);
            for (name, value) in fields.iter_mut() {
                let lower = name.to_ascii_lowercase();
                let named = SECRET_NAMES.iter().any(|word| lower.contains(word)) && !HARMLESS.contains(&lower.as_str());
                let whole = is_secret && ["data", "stringData"].contains(&name.as_str())
                    || lower == "kubectl.kubernetes.io/last-applied-configuration"
                    || is_variable && name == "value"
                    || named && (value.is_string() || value.is_object() && !lower.contains("authorization"));
                if whole {
                    *value = REMOVED.into();
                } else if let (Some(text), "path" | "url" | "uri") = (value.as_str(), lower.as_str()) {
                    *value = words(&blocks(&without_query(text))).into();
                } else {
                    object(value);
                }
            }
        }
        Value::String(text) => {
            let cleaned = words(&blocks(text));
            if cleaned != *text {
                *text = cleaned;
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn without_query(path: &str) -> String {
    path.split_once('?').map_or_else(|| path.to_owned(), |(before, _)| format!("{before}?{REMOVED}"))
}

/// Without PEM blocks of private keys (RFC 7468). One without an end goes to the end of the text.
fn blocks(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(begin) = rest.find("-----BEGIN ") {
        let label = rest[begin + 11..].split("-----").next().unwrap_or_default();
        let end_mark = format!("-----END {label}-----");
        let (end, is_key) =
            (rest[begin..].find(&end_mark).map(|end| begin + end + end_mark.len()), label.contains("PRIVATE KEY"));
        match (is_key, end) {
            (true, end) => {
                out.push_str(&rest[..begin]);
                out.push_str(REMOVED);
                rest = end.map_or("", |end| &rest[end..]);
            }
            (false, Some(end)) => {
                out.push_str(&rest[..end]);
                rest = &rest[end..];
            }
            (false, None) => {
                out.push_str(&rest[..begin + 11]);
                rest = &rest[begin + 11..];
            }
        }
    }
    out.push_str(rest);
    out
}

/// Without words that look like tokens: JSON Web Tokens, what follows `Bearer` or `Basic`, and long runs of base64 outside of certificates.
fn words(text: &str) -> String {
    if text.contains("-----BEGIN CERTIFICATE") {
        // Certificates are public, and made of long runs.
        return text.to_owned();
    }
    let is_part = |c: char| c.is_ascii_alphanumeric() || "-_.+/=~".contains(c);
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut after_scheme = false;
    while let Some(first) = rest.chars().next() {
        let end = rest.find(|c: char| is_part(c) != is_part(first)).unwrap_or(rest.len());
        let (word, left) = rest.split_at(end);
        rest = left;
        if !is_part(first) {
            out.push_str(word);
            continue;
        }
        let remove = (after_scheme && word.len() >= 8) || looks_secret(word);
        after_scheme = ["bearer", "basic"].contains(&word.to_ascii_lowercase().as_str());
        out.push_str(if remove { REMOVED } else { word });
    }
    out
}

fn looks_secret(word: &str) -> bool {
    // A join token (`weft token create`).
    if word.contains("weft1.") {
        return true;
    }
    if word.contains("eyJ") && word.split('.').count() >= 3 {
        return true;
    }
    let longest = word.split(|c: char| "./=~".contains(c)).map(str::len).max().unwrap_or(0);
    let is_name = word.contains('/') && word.split('/').all(|part| part.len() <= 64);
    let is_hash = word.bytes().all(|b| b.is_ascii_hexdigit()) && word.len() <= 128;
    longest >= LONGEST_WORD && !is_name && !is_hash
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cleaned(value: &Value) -> Value {
        serde_json::from_str(&clean(&value.to_string())).expect("JSON stays JSON")
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
    fn keys_and_tokens_are_removed_wherever_they_stand() {
        let key = "-----BEGIN EC PRIVATE KEY-----\nabcd\n-----END EC PRIVATE KEY-----";
        let certificate = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", "A".repeat(64));
        assert_eq!(clean(&format!("a {key} b\n{certificate}")), format!("a {REMOVED} b\n{certificate}"));
        assert_eq!(clean("cut -----BEGIN PRIVATE KEY-----\nabcd"), format!("cut {REMOVED}"));
        assert_eq!(clean("x=eyJhbGciOi.eyJzdWIi.c2ln y"), format!("{REMOVED} y"), "with the name before it");
        assert_eq!(clean(&format!("t weft1.{}.{}.{}", "1".repeat(16), "2".repeat(64), "3".repeat(64))), format!("t {REMOVED}"));
        assert_eq!(clean("Authorization: Bearer abcdefgh12"), format!("Authorization: Bearer {REMOVED}"));
        let long = "Zm9v".repeat(30);
        assert_eq!(clean(&format!("t {long}")), format!("t {REMOVED}"));
        for harmless in [
            "spiffe://cluster.local/ns/shop/sa/web",
            "weft_requests_total{peer=\"x\"} 5",
            &"0af1".repeat(16),
            "/var/lib/weft/pods/0/admin.sock",
        ] {
            assert_eq!(clean(harmless), harmless);
        }
    }
}
