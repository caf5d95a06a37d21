//! A metric's name as Prometheus has it (OpenTelemetry, "Prometheus and OpenMetrics Compatibility").

use super::family::underscored;
use super::table::{Kind, Metric};

impl Metric {
    /// The unit as a word, as names have it; empty where it is none.
    pub fn unit_word(&self) -> &'static str {
        match self.unit {
            "s" => "seconds",
            "By" => "bytes",
            // `1` is a ratio for gauges alone; what stands in braces only says what is counted.
            "1" if self.kind.is_gauge() => "ratio",
            _ => "",
        }
    }

    /// The name of the family in OpenMetrics: with its unit, without `_total`.
    pub fn family_name(&self) -> String {
        let mut name = String::new();
        underscored(self.name, &mut name);
        let unit = self.unit_word();
        if !unit.is_empty() && !name.ends_with(unit) {
            name.push('_');
            name.push_str(unit);
        }
        name
    }

    /// The name in Prometheus: of the series, or, of a histogram, what its series' names begin with.
    pub fn prometheus_name(&self) -> String {
        let mut name = self.family_name();
        match self.kind {
            Kind::Counter if !name.ends_with("_total") => name.push_str("_total"),
            Kind::Info => name.push_str("_info"),
            _ => {}
        }
        name
    }
}
