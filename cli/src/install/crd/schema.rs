//! The words of an OpenAPI schema as a CRD has it: structural, with bounds and a text for each field.

use serde_json::{Map, Value, json};

/// A length of time as Gateway API writes it (GEP-2257).
const DURATION: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";

/// A field under construction.
#[derive(Clone)]
pub(super) struct Field {
    name: &'static str,
    schema: Value,
    is_required: bool,
}

impl Field {
    fn new(name: &'static str, kind: &str, text: &str) -> Self {
        Self { name, schema: json!({ "type": kind, "description": text }), is_required: false }
    }

    /// `metadata`, which the API server knows by itself.
    pub(super) fn metadata() -> Self {
        Self { name: "metadata", schema: json!({ "type": "object" }), is_required: false }
    }

    fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.schema[key] = value.into();
        self
    }

    pub(super) fn required(mut self) -> Self {
        self.is_required = true;
        self
    }

    /// What the API server writes where the user writes nothing.
    pub(super) fn default(self, value: impl Into<Value>) -> Self {
        self.with("default", value)
    }

    pub(super) fn pattern(self, pattern: &str) -> Self {
        self.with("pattern", pattern)
    }

    /// At most so long a text.
    pub(super) fn longest(self, characters: u32) -> Self {
        self.with("maxLength", characters)
    }

    /// A point in time (RFC 3339).
    pub(super) fn date_time(self) -> Self {
        self.with("format", "date-time")
    }

    /// A rule in CEL that must hold, and what is said where it does not.
    pub(super) fn rule(mut self, rule: &str, message: &str) -> Self {
        let rule = json!({ "rule": rule, "message": message });
        match self.schema["x-kubernetes-validations"].as_array_mut() {
            Some(rules) => rules.push(rule),
            None => self.schema["x-kubernetes-validations"] = json!([rule]),
        }
        self
    }

    /// Exactly one of these fields of an object is there.
    pub(super) fn one_of(self, fields: &[&str]) -> Self {
        let all: Vec<String> = fields.iter().map(|field| format!("has(self.{field})")).collect();
        let sum = format!("[{}].filter(x, x).size() == 1", all.join(", "));
        self.rule(&sum, &format!("exactly one of {} must be set", fields.join(", ")))
    }
}

pub(super) fn text(name: &'static str, text: &str) -> Field {
    Field::new(name, "string", text).with("minLength", 1)
}

/// A text that may be empty.
pub(super) fn any_text(name: &'static str, text: &str) -> Field {
    Field::new(name, "string", text)
}

pub(super) fn word(name: &'static str, words: &[&str], text: &str) -> Field {
    Field::new(name, "string", text).with("enum", words)
}

pub(super) fn flag(name: &'static str, text: &str) -> Field {
    Field::new(name, "boolean", text)
}

/// A whole number from `least` to `most`.
pub(super) fn number(name: &'static str, least: i64, most: i64, text: &str) -> Field {
    let format = if most > i64::from(i32::MAX) { "int64" } else { "int32" };
    Field::new(name, "integer", text).with("format", format).with("minimum", least).with("maximum", most)
}

pub(super) fn duration(name: &'static str, text: &str) -> Field {
    Field::new(name, "string", text).pattern(DURATION)
}

pub(super) fn object(name: &'static str, text: &str, fields: Vec<Field>) -> Field {
    Field { name, schema: properties(text, fields), is_required: false }
}

/// A list of what `item` describes; its name says nothing.
pub(super) fn list(name: &'static str, most: u32, text: &str, item: Field) -> Field {
    Field::new(name, "array", text).with("maxItems", most).with("items", item.schema)
}

/// A list whose elements are told apart by these fields.
pub(super) fn map(name: &'static str, keys: &[&str], most: u32, text: &str, item: Field) -> Field {
    list(name, most, text, item).with("x-kubernetes-list-type", "map").with("x-kubernetes-list-map-keys", keys)
}

/// The schema of an object.
pub(super) fn properties(text: &str, fields: Vec<Field>) -> Value {
    let required: Vec<&str> = fields.iter().filter(|f| f.is_required).map(|f| f.name).collect();
    let mut schema = json!({ "type": "object", "description": text });
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    let all: Map<String, Value> = fields.into_iter().map(|f| (f.name.to_owned(), f.schema)).collect();
    schema["properties"] = all.into();
    schema
}

/// Takes the rules out, for a server that does not know them.
pub(super) fn without_rules(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            fields.remove("x-kubernetes-validations");
            fields.values_mut().for_each(without_rules);
        }
        Value::Array(all) => all.iter_mut().for_each(without_rules),
        _ => {}
    }
}
