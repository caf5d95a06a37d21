//! JSON values as YAML, in an order that does not depend on how a map is kept.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use crate::output::is_sign;

/// Keys that stand first, as people write manifests; the others follow by name.
const FIRST: [&str; 5] = ["apiVersion", "kind", "metadata", "name", "namespace"];

/// Texts that some reader of YAML takes for something else. Version 1.1 had more of them, and `kubectl` knows them all.
const RESERVED: [&str; 12] = ["true", "false", "yes", "no", "on", "off", "y", "n", "null", "nan", "inf", "infinity"];

/// One document, without a marker before it.
pub(crate) fn document(value: &Value) -> String {
    write(value, None)
}

/// Documents, each behind its marker.
pub(crate) fn documents(values: &[Value]) -> String {
    values.iter().map(|value| format!("---\n{}", document(value))).collect()
}

/// One document of a template: texts with `{{` in them stay as they are, in quotes, but for those in `verbatim`,
/// which have none.
pub(crate) fn template(value: &Value, verbatim: &[&str]) -> String {
    write(value, Some(verbatim))
}

fn write(value: &Value, placeholders: Option<&[&str]>) -> String {
    let mut out = String::new();
    Writer { placeholders, out: &mut out }.value(value, 0, Place::Line);
    out
}

/// Where a value begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// At the start of a line.
    Line,
    /// Behind `key:`.
    Key,
    /// Behind `- `.
    Item,
}

struct Writer<'a> {
    /// In a template, those that stand without quotes.
    placeholders: Option<&'a [&'a str]>,
    out: &'a mut String,
}

impl Writer<'_> {
    /// Writes `value` and the end of its last line; its own lines are indented by `indent`.
    fn value(&mut self, value: &Value, indent: usize, place: Place) {
        match value {
            Value::Object(map) if !map.is_empty() => self.map(map, indent, place),
            Value::Array(list) if !list.is_empty() => self.list(list, indent, place),
            _ => {
                if place == Place::Key {
                    self.out.push(' ');
                }
                let text = match value {
                    Value::Object(_) => "{}".to_owned(),
                    Value::Array(_) => "[]".to_owned(),
                    Value::String(text) => self.text(text, indent),
                    scalar => scalar.to_string(),
                };
                self.out.push_str(&text);
                self.out.push('\n');
            }
        }
    }

    fn map(&mut self, map: &Map<String, Value>, indent: usize, place: Place) {
        let mut entries: Vec<(&String, &Value)> = map.iter().collect();
        entries.sort_by_key(|(key, _)| (FIRST.iter().position(|first| first == key).unwrap_or(FIRST.len()), *key));
        if place == Place::Key {
            self.out.push('\n');
        }
        for (index, (key, value)) in entries.into_iter().enumerate() {
            if index > 0 || place != Place::Item {
                self.indent(indent);
            }
            self.out.push_str(&if is_plain(key) { key.clone() } else { quoted(key) });
            self.out.push(':');
            // A list stands at the level of its key.
            let deeper = if value.is_array() { indent } else { indent + 2 };
            self.value(value, deeper, Place::Key);
        }
    }

    fn list(&mut self, list: &[Value], indent: usize, place: Place) {
        if place == Place::Key {
            self.out.push('\n');
        }
        for (index, value) in list.iter().enumerate() {
            if index > 0 || place != Place::Item {
                self.indent(indent);
            }
            self.out.push_str("- ");
            self.value(value, indent + 2, Place::Item);
        }
    }

    fn indent(&mut self, indent: usize) {
        self.out.extend(std::iter::repeat_n(' ', indent));
    }

    fn text(&self, text: &str, indent: usize) -> String {
        match self.placeholders {
            Some(bare) if bare.contains(&text) => text.to_owned(),
            Some(_) if text.contains("{{") => format!("\"{text}\""),
            _ if is_plain(text) => text.to_owned(),
            _ => block(text, indent).unwrap_or_else(|| quoted(text)),
        }
    }
}

/// Whether a text means itself without quotes, to every reader.
fn is_plain(text: &str) -> bool {
    let begins = text.trim_start_matches('-').starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    let dashes = text.len() - text.trim_start_matches('-').len();
    begins
        && matches!(dashes, 0 | 2)
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_./@+=,-:()$".contains(c))
        && !text.ends_with(':')
        && !RESERVED.contains(&text.to_ascii_lowercase().as_str())
}

/// A text of several lines as a literal block, if it is one that a block can hold.
fn block(text: &str, indent: usize) -> Option<String> {
    let body = text.strip_suffix('\n').unwrap_or(text);
    // Blanks at the end of a line, or alone in one, are lost on some readers.
    let fits = |line: &str| line.chars().all(|c| c == '\t' || is_sign(c)) && !line.ends_with([' ', '\t']);
    if !text.contains('\n')
        || body.is_empty()
        || body.ends_with('\n')
        || body.starts_with([' ', '\n', '\t'])
        || !body.split('\n').all(fits)
    {
        return None;
    }
    let mut out = if body.len() < text.len() { "|".to_owned() } else { "|-".to_owned() };
    for line in body.split('\n') {
        out.push('\n');
        if !line.is_empty() {
            out.extend(std::iter::repeat_n(' ', indent.max(2)));
            out.push_str(line);
        }
    }
    Some(out)
}

/// In double quotes, with the escapes that JSON and YAML share.
fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if !is_sign(c) && u32::from(c) > 0xffff => {
                let _ = write!(out, "\\U{:08x}", u32::from(c));
            }
            c if !is_sign(c) => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(text: &str) -> Value {
        serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    #[test]
    fn manifests_read_as_people_write_them() {
        let pod = json!({
            "kind": "Pod",
            "apiVersion": "v1",
            "spec": {
                "volumes": [],
                "containers": [{"image": "a:1", "name": "app", "args": ["--port=80", "-v", "true"]}, {"name": "b"}],
                "nodeSelector": {},
            },
            "metadata": {"annotations": {"weft.dev/x": "8080=strict", "note": "it's"}, "name": "p"},
        });
        let expected = "\
apiVersion: v1
kind: Pod
metadata:
  name: p
  annotations:
    note: \"it's\"
    weft.dev/x: \"8080=strict\"
spec:
  containers:
  - name: app
    args:
    - --port=80
    - \"-v\"
    - \"true\"
    image: a:1
  - name: b
  nodeSelector: {}
  volumes: []
";
        assert_eq!(document(&pod), expected);
        assert_eq!(documents(&[json!({"a": 1}), json!({"b": null})]), "---\na: 1\n---\nb: null\n");
    }

    #[test]
    fn scripts_stay_readable() {
        let value = json!({"command": ["sh", "-c", "set -e\necho hello\n"], "last": "a\n\n  b"});
        let text = document(&value);
        assert_eq!(text, "command:\n- sh\n- \"-c\"\n- |\n  set -e\n  echo hello\nlast: |-\n  a\n\n    b\n");
        assert_eq!(read(&text), value);
    }

    #[test]
    fn a_templates_placeholders_are_left_alone() {
        let value = json!({"replicas": "{{ .Values.replicas }}", "args": ["--mtls={{ .Values.mtls }}"]});
        let text = template(&value, &["{{ .Values.replicas }}"]);
        assert_eq!(text, "args:\n- \"--mtls={{ .Values.mtls }}\"\nreplicas: {{ .Values.replicas }}\n");
    }

    fn any_text() -> impl Strategy<Value = String> {
        prop_oneof![
            "\\PC{0,12}",
            "[ \\n\\t:#\"'\\\\{}\\[\\]|>&*!%@`,?a-z0-9.-]{0,16}",
            proptest::sample::select(vec![
                "yes",
                "No",
                "~",
                "1e3",
                "0x1f",
                "0o7",
                "017",
                "-",
                "---",
                "...",
                ".5",
                "<<",
                "=",
                "\u{2028}",
                "\u{85}",
                "\u{feff}x"
            ])
            .prop_map(str::to_owned),
        ]
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any_text().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map("[a-zA-Z0-9./_-]{1,8}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(value in any_value()) {
            // A document that is a bare scalar is no manifest.
            let value = json!({"value": value});
            prop_assert_eq!(read(&document(&value)), value);
        }
    }
}
