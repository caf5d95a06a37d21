//! What an upgrade would change: the fields that differ between two states of an object.
#![cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "only a client has two states to compare"))]

use std::collections::BTreeSet;

use serde_json::Value;

/// What the API server keeps about an object, and nobody chooses.
const KEPT_BY_SERVER: [&str; 6] = [
    "metadata.creationTimestamp",
    "metadata.generation",
    "metadata.managedFields",
    "metadata.resourceVersion",
    "metadata.uid",
    "status",
];
/// As much of a value as a line should show.
const LONGEST: usize = 60;

/// One line for each field that differs, as `spec.replicas: 2 → 3`.
pub(crate) fn differences(old: &Value, new: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    compare("", Some(old), Some(new), &mut lines);
    lines
}

fn compare(path: &str, old: Option<&Value>, new: Option<&Value>, lines: &mut Vec<String>) {
    if old == new || KEPT_BY_SERVER.contains(&path) {
        return;
    }
    match (old, new) {
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                // A key with dots in it, as labels have, is no path.
                let step = if key.contains('.') { format!("[{key}]") } else { key.clone() };
                let joined =
                    if path.is_empty() || step.starts_with('[') { format!("{path}{step}") } else { format!("{path}.{step}") };
                compare(&joined, a.get(key), b.get(key), lines);
            }
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) => {
            for index in 0..a.len().max(b.len()) {
                compare(&format!("{path}[{index}]"), a.get(index), b.get(index), lines);
            }
        }
        _ => lines.push(format!("{path}: {} → {}", shown(old), shown(new))),
    }
}

fn shown(value: Option<&Value>) -> String {
    let Some(value) = value else { return "(nothing)".to_owned() };
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    if text.chars().count() <= LONGEST {
        return text;
    }
    text.chars().take(LONGEST).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_differs_is_told_with_its_place() {
        let old = json!({
            "metadata": {"resourceVersion": "1", "labels": {"app.kubernetes.io/version": "1"}, "uid": "u"},
            "spec": {"replicas": 2, "args": ["a", "b"], "gone": true},
            "status": {"x": 1},
        });
        let new = json!({
            "metadata": {"resourceVersion": "2", "labels": {"app.kubernetes.io/version": "2"}},
            "spec": {"replicas": 3, "args": ["a", "c", "d"], "long": "x".repeat(100)},
        });
        assert_eq!(
            differences(&old, &new),
            [
                "metadata.labels[app.kubernetes.io/version]: 1 → 2".to_owned(),
                "spec.args[1]: b → c".to_owned(),
                "spec.args[2]: (nothing) → d".to_owned(),
                "spec.gone: true → (nothing)".to_owned(),
                format!("spec.long: (nothing) → {}…", "x".repeat(60)),
                "spec.replicas: 2 → 3".to_owned(),
            ]
        );
        assert!(differences(&old, &old).is_empty());
    }
}
