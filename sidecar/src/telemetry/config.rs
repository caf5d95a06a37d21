//! What is told, as it is set: options of the sidecar's own, and the standard `OTEL_*` variables.

use std::str::FromStr;

use clap::{Args, ValueEnum};
use weft_core::trace::{Sampler, SamplerError};

use super::fields::Named;
use crate::otlp::Env;

/// Settings of the access log and of traces. Exporters are set by the standard `OTEL_*` variables.
#[derive(Args, Debug, Clone)]
pub struct TelemetryConfig {
    /// One line for each request and each opaque connection, to standard output
    #[arg(long, env = "WEFT_ACCESS_LOG", value_name = "FORM", default_value = "off")]
    pub access_log: AccessLog,

    /// What a line has, in this order; without it, everything but the query, the user agent and the detail of errors
    #[arg(long, env = "WEFT_ACCESS_LOG_FIELDS", value_name = "FIELD,…", value_delimiter = ',')]
    pub access_log_fields: Vec<Named>,

    /// Share of those that went well that get a line, from 0 to 1; those that failed all get one
    #[arg(long, env = "WEFT_ACCESS_LOG_SAMPLE", value_name = "SHARE", default_value = "1")]
    pub access_log_sample: Share,

    /// Whether what went well gets a line at all
    #[arg(long, env = "WEFT_ACCESS_LOG_ONLY", value_name = "WHICH", default_value = "all")]
    pub access_log_only: Which,

    /// Exports the spans of every request that failed, sampled or not; what is said to others in the request's head stays as it is
    #[arg(long, env = "WEFT_TRACE_ERRORS", value_name = "BOOL", action = clap::ArgAction::Set, default_value_t = false)]
    pub trace_errors: bool,
}

/// How the access log is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum AccessLog {
    Off,
    /// `name=value`, values quoted where they must be.
    Text,
    /// An object on a line.
    Json,
}

/// What gets a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Which {
    All,
    Errors,
}

/// A share, from 0 to 1.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Share(f64);

impl FromStr for Share {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
        share.map(Self).ok_or_else(|| format!("{text:?} is not a number from 0 to 1, as in 0.1"))
    }
}

impl Share {
    /// Whether a random number falls into it.
    pub(super) fn takes(self, random: u64) -> bool {
        ((random >> 11) as f64) < self.0 * (1_u64 << 53) as f64
    }
}

/// Which requests get spans.
#[derive(Clone, Copy, Debug)]
pub struct Tracing {
    pub(super) sampler: Sampler,
    /// Those that failed too, whatever the sampler says.
    pub(super) errors: bool,
}

impl Tracing {
    /// None where nothing is traced: no exporter, and no sampler that is asked for by name. With a sampler alone, the last spans are kept
    /// in memory for who asks the admin socket.
    pub fn read(env: &Env, has_exporter: bool, errors: bool) -> Result<Option<Self>, SamplerError> {
        let name = env.get("OTEL_TRACES_SAMPLER");
        if env.is_disabled() || env.get("OTEL_TRACES_EXPORTER") == Some("none") || !(has_exporter || name.is_some()) {
            return Ok(None);
        }
        let sampler = Sampler::parse(name, env.get("OTEL_TRACES_SAMPLER_ARG"))?;
        Ok(Some(Self { sampler, errors }))
    }
}
