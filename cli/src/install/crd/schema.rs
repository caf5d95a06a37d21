//! The words of an OpenAPI schema as a CRD has it: structural, with bounds and a text for each field.

use serde_json::{Map, Value, json};

/// A length of time as Gateway API writes it (GEP-2257).
const DURATION: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";
/// A field name of HTTP, or a cookie's (RFC 9110, section 5.6.2).
pub(super) const TOKEN: &str = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$";
pub(super) const DNS_LABEL: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";
/// More than an object will ever see, and a bound that is exact as a floating-point number.
pub(super) const GENERATIONS: i64 = 1 << 53;

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

    /// Labels, by their names.
    pub(super) fn labels(name: &'static str, most: u32, what: &str) -> Self {
        let value = json!({ "type": "string", "maxLength": 63 });
        Self::new(name, "object", what).with("additionalProperties", value).with("minProperties", 1).with("maxProperties", most)
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

    /// At least so long a list.
    pub(super) fn shortest(self, items: u32) -> Self {
        self.with("minItems", items)
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

/// The schema of a kind: what is wanted, and what became of it, where there is something to tell.
pub(super) fn whole(what: &str, spec: Field, status: Vec<Field>) -> Value {
    let mut fields = vec![
        any_text("apiVersion", "The group and version of this kind."),
        any_text("kind", "The name of this kind."),
        Field::metadata(),
        spec.required(),
    ];
    if !status.is_empty() {
        fields.push(object("status", "What became of it.", status));
    }
    properties(what, fields)
}

/// What became of a policy, as the control plane writes it (GEP-713).
pub(super) fn ancestors() -> Field {
    let reference = object(
        "ancestorRef",
        "What the policy is attached to.",
        vec![
            any_text("group", "Its API group.").longest(253),
            text("kind", "Its kind.").longest(63),
            text("namespace", "Its namespace.").longest(63),
            text("name", "Its name.").longest(253).required(),
        ],
    );
    let condition = object(
        "",
        "What is so.",
        vec![
            text("type", "What it is about.").longest(316).required(),
            word("status", &["True", "False", "Unknown"], "Whether it is so.").required(),
            text("reason", "Why, in a word.").longest(1_024).required(),
            any_text("message", "Why, for people.").longest(32_768).required(),
            number("observedGeneration", 0, GENERATIONS, "The generation of the policy that it was made from."),
            any_text("lastTransitionTime", "When the status changed last.").date_time().required(),
        ],
    );
    let ancestor = object(
        "",
        "What became of the policy where it is attached.",
        vec![
            reference.required(),
            text("controllerName", "Who says so.").longest(253).required(),
            map("conditions", &["type"], 8, "What is so.", condition).required(),
        ],
    );
    list("ancestors", 16, "What became of it, for each thing that it is attached to.", ancestor)
}

/// How many of the pods that a policy is for have it in force, as the control plane writes it.
pub(super) fn sidecars() -> Field {
    object(
        "sidecars",
        "How far it has come. Counted by all replicas of the control plane, and a few seconds old.",
        vec![
            number("subscribed", 0, i64::from(i32::MAX), "Sidecars of the pods that it is for."),
            number("applied", 0, i64::from(i32::MAX), "Those of them that have the latest one in force."),
            number("observedGeneration", 0, GENERATIONS, "The generation of the policy that they were counted for."),
        ],
    )
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
