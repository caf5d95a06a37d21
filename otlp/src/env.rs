//! The standard `OTEL_*` variables, as they were when the sidecar began.

use std::collections::HashMap;
use std::time::Duration;

/// What is exported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    Traces,
    Metrics,
    Logs,
}

impl Signal {
    /// As it stands in the names of variables.
    pub fn upper(self) -> &'static str {
        match self {
            Self::Traces => "TRACES",
            Self::Metrics => "METRICS",
            Self::Logs => "LOGS",
        }
    }

    /// The path of OTLP over HTTP, below the endpoint.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Traces => "v1/traces",
            Self::Metrics => "v1/metrics",
            Self::Logs => "v1/logs",
        }
    }

    /// The method of OTLP over gRPC.
    pub(super) fn rpc(self) -> &'static str {
        match self {
            Self::Traces => "/opentelemetry.proto.collector.trace.v1.TraceService/Export",
            Self::Metrics => "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export",
            Self::Logs => "/opentelemetry.proto.collector.logs.v1.LogsService/Export",
        }
    }
}

/// Variables by name. An empty one counts as one that is not there, as OpenTelemetry's specification asks.
#[derive(Clone, Default)]
pub struct Env(HashMap<String, String>);

impl Env {
    /// Those of this process whose names begin with `OTEL_`, and those that `WEFT_TELEMETRY` has for the whole mesh (NAME=VALUE, joined by semicolons).
    pub fn of_process() -> Self {
        let of_mesh = std::env::var("WEFT_TELEMETRY").unwrap_or_default();
        let own = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
        Self::of(&of_mesh, own)
    }

    /// A process's own variables are the last word.
    fn of(of_mesh: &str, own: impl Iterator<Item = (String, String)>) -> Self {
        let pairs = of_mesh.split([';', '\n']).filter_map(|part| part.trim().split_once('='));
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        pairs.chain(own).filter(|(name, _)| name.starts_with("OTEL_")).collect()
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// `OTEL_EXPORTER_OTLP_{SIGNAL}_{NAME}`, or else `OTEL_EXPORTER_OTLP_{NAME}`; with the name of the one that it is.
    pub(super) fn exporter(&self, signal: Signal, name: &str) -> Option<(String, &str)> {
        let names = [format!("OTEL_EXPORTER_OTLP_{}_{name}", signal.upper()), format!("OTEL_EXPORTER_OTLP_{name}")];
        names.into_iter().find_map(|name| self.get(&name).map(|value| (name.clone(), value)))
    }

    /// Whether `OTEL_SDK_DISABLED` turns everything off.
    pub fn is_disabled(&self) -> bool {
        self.is_true("OTEL_SDK_DISABLED")
    }

    /// `true`, in any case; anything else is false.
    pub fn is_true(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    /// A whole number; what is none is told in the log, and the default taken, as the specification asks.
    pub fn number(&self, name: &str, default: u64) -> u64 {
        let Some(value) = self.get(name) else { return default };
        value.parse().unwrap_or_else(|_| {
            tracing::warn!("{name}={value:?} is not a whole number: {default} is taken");
            default
        })
    }

    /// So many milliseconds.
    pub fn millis(&self, name: &str, default: Duration) -> Duration {
        Duration::from_millis(self.number(name, default.as_millis() as u64))
    }

    /// Pairs of `OTEL_RESOURCE_ATTRIBUTES`, `OTEL_EXPORTER_OTLP_HEADERS` and their like: `name=value` joined by commas, values percent-encoded. What is
    /// no pair is given as an error, without its value.
    pub fn pairs(text: &str) -> Vec<Result<(String, String), String>> {
        let pair = |part: &str| {
            let (name, value) = part.split_once('=').ok_or_else(|| "a part has no =".to_owned())?;
            let name = name.trim();
            if name.is_empty() {
                return Err("a part has no name before its =".to_owned());
            }
            let value =
                percent_decoded(value.trim()).ok_or_else(|| format!("the value of {name} is not percent-encoded UTF-8"))?;
            Ok((name.to_owned(), value))
        };
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(pair).collect()
    }
}

impl FromIterator<(String, String)> for Env {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect())
    }
}

/// None where an escape is not two digits, or what comes out is no UTF-8.
pub fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%' {
            let digits = std::str::from_utf8(after.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_for_the_whole_mesh_holds_where_a_process_says_nothing() {
        let own = [("OTEL_A", "own"), ("PATH", "/bin")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let env = Env::of("OTEL_A=mesh;OTEL_B=x=y; WEFT_ACCESS_LOG=json", own.into_iter());
        assert_eq!((env.get("OTEL_A"), env.get("OTEL_B"), env.get("PATH")), (Some("own"), Some("x=y"), None));
        assert_eq!(env.get("WEFT_ACCESS_LOG"), None);
    }
}
