//! What is told, as it is set: options of the sidecar's own, and the standard `OTEL_*` variables.

use std::ffi::OsString;

use clap::Args;
use weft_core::telemetry;
use weft_core::trace::{Sampler, SamplerError};

use super::fields::{Named, standard};
use super::shown::Show;
use crate::identity::random;
use crate::otlp::Env;

/// Settings of the access log and of traces. Exporters are set by the standard `OTEL_*` variables. What is wrong here is told and left out ([`Telling::read`]):
/// it keeps no sidecar from starting.
#[derive(Args, Debug, Clone, Default)]
pub struct TelemetryConfig {
    /// One line for each request and each opaque connection, to standard output: off, text (name=value) or json [default: off]
    #[arg(long, env = "WEFT_ACCESS_LOG", value_name = "FORM")]
    pub access_log: Option<OsString>,

    /// What a line has, in this order; without it, everything but the query, the user agent and the detail of errors
    #[arg(long, env = "WEFT_ACCESS_LOG_FIELDS", value_name = "FIELD,…")]
    pub access_log_fields: Option<OsString>,

    /// Share of those that went well that get a line, from 0 to 1; those that failed all get one [default: 1]
    #[arg(long, env = "WEFT_ACCESS_LOG_SAMPLE", value_name = "SHARE")]
    pub access_log_sample: Option<OsString>,

    /// What gets a line: all or errors [default: all]
    #[arg(long, env = "WEFT_ACCESS_LOG_ONLY", value_name = "WHICH")]
    pub access_log_only: Option<OsString>,

    /// Exports the spans of every request that failed, sampled or not; what is said to others in the request's head stays as it is: true or false [default: false]
    #[arg(long, env = "WEFT_TRACE_ERRORS", value_name = "BOOL")]
    pub trace_errors: Option<OsString>,

    /// What taps may be shown of requests: names of their fields, headers (values as well, but for those that let somebody in), or bodies (their beginning as well) [default: names]
    #[arg(long, env = "WEFT_TAP", value_name = "WHAT")]
    pub tap: Option<OsString>,
}

/// How the access log is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AccessLog {
    Off,
    /// `name=value`, values quoted where they must be.
    Text,
    /// An object on a line.
    Json,
}

/// What gets a line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    All,
    Errors,
}

/// A share, from 0 to 1.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Share(f64);

impl Share {
    /// Whether a random number falls into it. None is drawn where all do.
    pub(super) fn takes(self, random: impl FnOnce() -> u64) -> bool {
        self.0 >= 1.0 || ((random() >> 11) as f64) < self.0 * (1_u64 << 53) as f64
    }
}

/// The settings, as far as they can be honoured.
#[derive(Clone, Debug)]
pub struct Telling {
    pub(super) form: AccessLog,
    /// What a line has.
    pub(super) fields: Vec<Named>,
    pub(super) share: Share,
    pub(super) which: Which,
    /// See `--trace-errors`.
    pub(super) errors: bool,
    /// What taps are shown at most.
    pub(super) tap: Show,
}

/// As it is where nothing is set.
impl Default for Telling {
    fn default() -> Self {
        Self::read(&TelemetryConfig::default()).0
    }
}

impl Telling {
    /// Whether one gets a line, or a log record, that failed or did not.
    pub(super) fn logs(&self, failed: bool) -> bool {
        failed || (self.which == Which::All && self.share.takes(random))
    }

    /// Reads the settings; says what of them cannot be honoured.
    pub fn read(config: &TelemetryConfig) -> (Self, Vec<String>) {
        let mut wrong = Vec::new();
        let [form, fields, share, which, errors, tap] = [
            ("WEFT_ACCESS_LOG", &config.access_log),
            ("WEFT_ACCESS_LOG_FIELDS", &config.access_log_fields),
            ("WEFT_ACCESS_LOG_SAMPLE", &config.access_log_sample),
            ("WEFT_ACCESS_LOG_ONLY", &config.access_log_only),
            ("WEFT_TRACE_ERRORS", &config.trace_errors),
            ("WEFT_TAP", &config.tap),
        ]
        .map(|(name, value)| {
            let text = value.as_ref()?.to_string_lossy().trim().to_owned();
            match telemetry::check(name, &text) {
                Ok(()) => Some(text).filter(|text| !text.is_empty()),
                Err(known) => {
                    wrong.push(format!("{name} takes {known}, and not {text:?}: it is left out"));
                    None
                }
            }
        });
        let mut asked: Vec<Named> = Vec::new();
        for name in fields.as_deref().into_iter().flat_map(|fields| fields.split(',')) {
            match name.trim().parse() {
                Ok(field) => asked.push(field),
                Err(why) => wrong.push(format!("WEFT_ACCESS_LOG_FIELDS: {why}: it is left out")),
            }
        }
        let telling = Self {
            form: match form.as_deref() {
                Some("json") => AccessLog::Json,
                Some("text") => AccessLog::Text,
                _ => AccessLog::Off,
            },
            fields: if asked.is_empty() { standard() } else { asked },
            share: Share(share.as_deref().and_then(telemetry::share).unwrap_or(1.0)),
            which: if which.as_deref() == Some("errors") { Which::Errors } else { Which::All },
            errors: errors.as_deref() == Some("true"),
            tap: tap.as_deref().and_then(Show::parse).unwrap_or_default(),
        };
        (telling, wrong)
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
