//! What a program gathers when it is asked: series of the metrics of the table, with their values.

use std::fmt::{self, Display, Write};
use std::sync::Arc;

use smallvec::SmallVec;

use super::histogram::{CLASSIC, Reading};
use super::table::Metric;

/// A label's value.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Text {
    /// A word of weft's own.
    Word(&'static str),
    /// A name that others share.
    Name(Arc<str>),
    /// A port or a status.
    Number(u32),
}

impl Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(text) => f.write_str(text),
            Self::Name(text) => f.write_str(text),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

impl From<&'static str> for Text {
    fn from(text: &'static str) -> Self {
        Self::Word(text)
    }
}

impl From<&Arc<str>> for Text {
    fn from(text: &Arc<str>) -> Self {
        Self::Name(text.clone())
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self::Name(text.into())
    }
}

impl From<u16> for Text {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

/// Labels of a series: attribute names, as OpenTelemetry spells them, with their values. An empty value is no label.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Labels(SmallVec<[(&'static str, Text); 12]>);

impl Labels {
    /// No labels.
    pub fn new() -> Self {
        Self::default()
    }

    /// The label of a series that stands for all those that there was no room for (OpenTelemetry, Metrics SDK, "Overflow attribute").
    pub fn overflow() -> Self {
        Self::new().and(super::table::OVERFLOW, "true")
    }

    /// The same, and one more.
    #[must_use]
    pub fn and(mut self, name: &'static str, value: impl Into<Text>) -> Self {
        self.add(name, value);
        self
    }

    /// Adds a label. An empty value is left out: Prometheus takes it for no label, and so does OpenTelemetry where nothing is known.
    pub fn add(&mut self, name: &'static str, value: impl Into<Text>) {
        let value = value.into();
        let empty = match &value {
            Text::Word(text) => text.is_empty(),
            Text::Name(text) => text.is_empty(),
            Text::Number(_) => false,
        };
        if !empty {
            self.0.push((name, value));
        }
    }

    /// Names and values, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Text)> {
        self.0.iter().map(|(name, value)| (*name, value))
    }

    /// The value of a label.
    pub fn value(&self, name: &str) -> Option<&Text> {
        self.iter().find(|(n, _)| *n == name).map(|(_, value)| value)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A request that stands for those of its bucket.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Exemplar {
    /// The trace that it is in.
    pub trace: [u8; 16],
    /// The span that it is.
    pub span: [u8; 8],
    /// How long it took, in seconds.
    pub seconds: f64,
    /// When, in nanoseconds since the Unix epoch.
    pub at: u64,
}

/// One exemplar for each classic bucket.
pub type Exemplars = [Option<Exemplar>; CLASSIC];

/// A histogram as it is told.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Distribution {
    /// Its buckets.
    pub reading: Reading,
    /// Requests that stand for others; none where nothing was sampled.
    pub exemplars: Option<Box<Exemplars>>,
}

/// A series' value.
#[derive(Clone, PartialEq, Debug)]
pub enum Value {
    /// Of a counter.
    Count(u64),
    /// Of a gauge.
    Level(f64),
    /// Of a histogram.
    Distribution(Box<Distribution>),
}

/// One series.
#[derive(Clone, PartialEq, Debug)]
pub struct Point {
    /// Its labels.
    pub labels: Labels,
    /// Since when it is counted, in nanoseconds since the Unix epoch; 0 where that is since the program began.
    pub since: u64,
    /// Its value.
    pub value: Value,
}

/// All series of one metric.
#[derive(Clone, PartialEq, Debug)]
pub struct Family {
    /// Which metric.
    pub metric: &'static Metric,
    /// Its series; may be none.
    pub points: Vec<Point>,
}

impl Family {
    /// Without a series yet.
    pub fn new(metric: &'static Metric) -> Self {
        Self { metric, points: Vec::new() }
    }

    /// A counter, or a gauge that counts, without labels.
    pub fn count(metric: &'static Metric, value: u64) -> Self {
        let mut family = Self::new(metric);
        family.counts(Labels::new(), value);
        family
    }

    /// A gauge without labels.
    pub fn level(metric: &'static Metric, value: f64) -> Self {
        let mut family = Self::new(metric);
        family.levels(Labels::new(), value);
        family
    }

    /// Adds a series with a whole number: a count, or, of a gauge, a level.
    pub fn counts(&mut self, labels: Labels, value: u64) {
        let value = if self.metric.kind.is_gauge() { Value::Level(value as f64) } else { Value::Count(value) };
        self.push(Point { labels, since: 0, value });
    }

    /// Adds a series of a gauge.
    pub fn levels(&mut self, labels: Labels, value: f64) {
        self.push(Point { labels, since: 0, value: Value::Level(value) });
    }

    /// Adds a series of a histogram.
    pub fn distributes(&mut self, labels: Labels, reading: Reading) {
        let distribution = Box::new(Distribution { reading, exemplars: None });
        self.push(Point { labels, since: 0, value: Value::Distribution(distribution) });
    }

    /// Adds a series. Its labels are some of those that the table gives the metric.
    pub fn push(&mut self, point: Point) {
        debug_assert!(
            point.labels.iter().all(|(name, _)| name == super::table::OVERFLOW || self.metric.labels.contains(&name)),
            "{} has no such label: {:?}",
            self.metric.name,
            point.labels
        );
        self.points.push(point);
    }
}

/// A name as Prometheus allows it: what is not a letter, a digit or `_` becomes `_`.
pub fn underscored(name: &str, out: &mut String) {
    for c in name.chars() {
        out.push(if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' });
    }
}

/// Writes a label's value between quotation marks (Prometheus text format, OpenMetrics 1.0, section "Escaping").
pub(super) fn quoted(value: &Text, out: &mut String) {
    let escaped = |text: &str, out: &mut String| {
        out.push('"');
        for c in text.chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                '"' => out.push_str("\\\""),
                '\n' => out.push_str("\\n"),
                c => out.push(c),
            }
        }
        out.push('"');
    };
    match value {
        Text::Word(text) => escaped(text, out),
        Text::Name(text) => escaped(text, out),
        Text::Number(number) => {
            let _ = write!(out, "\"{number}\"");
        }
    }
}
