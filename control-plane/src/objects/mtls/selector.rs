//! A selector of pods, as Kubernetes has it: labels, and expressions about labels. All must hold.

use serde::Deserialize;

use super::super::Labels;
use super::super::traffic::Wrong;
use super::{given, wrong};

/// Labels that a pod must have, and expressions that must hold of its labels. Without any it picks every pod.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Selector {
    labels: Labels,
    expressions: Vec<Expression>,
}

/// One of `matchExpressions`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Expression {
    key: String,
    test: Test,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Test {
    In(Vec<String>),
    /// A pod without the label passes.
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

impl Selector {
    pub fn selects(&self, labels: &Labels) -> bool {
        let holds = |e: &Expression| {
            let value = labels.get(&e.key);
            match &e.test {
                Test::In(values) => value.is_some_and(|v| values.contains(v)),
                Test::NotIn(values) => value.is_none_or(|v| !values.contains(v)),
                Test::Exists => value.is_some(),
                Test::DoesNotExist => value.is_none(),
            }
        };
        self.labels.iter().all(|(name, value)| labels.get(name) == Some(value)) && self.expressions.iter().all(holds)
    }
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SelectorSpec {
    #[serde(default, deserialize_with = "given")]
    match_labels: Option<Labels>,
    /// At most 32.
    #[serde(default, deserialize_with = "given")]
    match_expressions: Option<Vec<ExpressionSpec>>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct ExpressionSpec {
    key: String,
    operator: Operator,
    /// At least one for `In` and `NotIn`, at most 64; none for the others.
    #[serde(default, deserialize_with = "given")]
    values: Option<Vec<String>>,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

const MAX_LABELS: usize = 64;
const MAX_EXPRESSIONS: usize = 32;
const MAX_VALUES: usize = 64;

impl SelectorSpec {
    /// What it says, or the first field below `spec` that makes no sense.
    pub(super) fn read(&self) -> Result<Selector, Wrong> {
        let labels = self.match_labels.clone().unwrap_or_default();
        if labels.len() > MAX_LABELS {
            return wrong("selector.matchLabels", format!("{} labels; at most {MAX_LABELS} are taken", labels.len()));
        }
        let listed = self.match_expressions.as_deref().unwrap_or_default();
        if listed.len() > MAX_EXPRESSIONS {
            let message = format!("{} expressions; at most {MAX_EXPRESSIONS} are taken", listed.len());
            return wrong("selector.matchExpressions", message);
        }
        let expressions = listed.iter().enumerate().map(|(i, spec)| spec.read(&format!("selector.matchExpressions[{i}]")));
        Ok(Selector { labels, expressions: expressions.collect::<Result<_, _>>()? })
    }
}

impl ExpressionSpec {
    fn read(&self, field: &str) -> Result<Expression, Wrong> {
        if self.key.is_empty() {
            return wrong(format!("{field}.key"), "is empty: name a label");
        }
        let values = self.values.clone().unwrap_or_default();
        let needs_values = matches!(self.operator, Operator::In | Operator::NotIn);
        if needs_values && values.is_empty() {
            return wrong(format!("{field}.values"), "missing: In and NotIn need at least one value");
        }
        if !needs_values && !values.is_empty() {
            return wrong(format!("{field}.values"), "Exists and DoesNotExist have no values: leave them out");
        }
        if values.len() > MAX_VALUES {
            return wrong(format!("{field}.values"), format!("{} values; at most {MAX_VALUES} are taken", values.len()));
        }
        let test = match self.operator {
            Operator::In => Test::In(values),
            Operator::NotIn => Test::NotIn(values),
            Operator::Exists => Test::Exists,
            Operator::DoesNotExist => Test::DoesNotExist,
        };
        Ok(Expression { key: self.key.clone(), test })
    }
}
