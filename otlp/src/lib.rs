//! OTLP: how telemetry leaves weft's programs. Settings from the standard `OTEL_*` variables, gRPC and HTTP/protobuf, TLS, compression, retries.
//!
//! It takes whole messages and sends them; it knows nothing of spans, metrics or logs. Nothing here runs on a worker.

use std::time::Duration;

use base64::Engine as _;
use prost::Message;

pub mod batch;
pub mod env;
mod parts;
pub mod points;
pub mod push;
mod retry;
mod settings;
#[cfg(test)]
mod tests;
mod transport;
pub mod wire;

pub use env::{Env, Signal};
pub use parts::Parts;
pub use settings::{Protocol, SettingError, Settings};

use transport::{Answer, Connection};

/// The first pause before something is sent again; it doubles each time.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// The longest of them.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Drawn from for jitter.
pub fn random() -> u64 {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random number generator works");
    u64::from_le_bytes(bytes)
}

/// What a collector took.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Items that it refused of those that it was sent.
    pub rejected: u64,
    /// Why, or a warning, in its own words.
    pub message: String,
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Nobody answered.
    #[error("{place} cannot be reached: {why}")]
    Unreachable { place: String, why: String },
    /// It was refused.
    #[error("{place} refused it: {why}")]
    Refused { place: String, why: String },
    /// It took longer than `OTEL_EXPORTER_OTLP_TIMEOUT`.
    #[error("{place} did not take it in {within:?}: {last}")]
    TimedOut { place: String, within: Duration, last: String },
}

/// Sends the batches of one signal to a collector, over one connection that is kept.
pub struct Exporter {
    settings: Settings,
    /// See `--mark`.
    mark: u32,
    connection: Option<Connection>,
}

impl Exporter {
    /// An exporter by what the variables say; none if they name no collector, or say that there is to be none. `mark` is put on its sockets (0: none),
    /// so that the redirect lets them by.
    pub fn new(signal: Signal, env: &Env, mark: u32) -> Result<Option<Self>, SettingError> {
        Ok(Settings::read(signal, env)?.map(|settings| Self { settings, mark, connection: None }))
    }

    /// Where it sends to, for people.
    pub fn place(&self) -> &str {
        &self.settings.place
    }

    /// Sends one message: an encoded `ExportTraceServiceRequest`, `ExportMetricsServiceRequest` or `ExportLogsServiceRequest`. What may be sent
    /// again is, until `OTEL_EXPORTER_OTLP_TIMEOUT` is over. `random` is drawn from for jitter.
    pub async fn export(&mut self, message: impl Into<Parts>, random: impl Fn() -> u64) -> Result<Taken, ExportError> {
        let within = self.settings.timeout;
        let mut last = "no answer".to_owned();
        let sent = tokio::time::timeout(within, self.repeatedly(message.into(), random, &mut last)).await;
        sent.unwrap_or_else(|_| {
            // Whatever is under way on it is lost.
            self.connection = None;
            Err(ExportError::TimedOut { place: self.settings.place.clone(), within, last })
        })
    }

    async fn repeatedly(&mut self, message: Parts, random: impl Fn() -> u64, last: &mut String) -> Result<Taken, ExportError> {
        let body = transport::framed(&self.settings, message);
        for attempt in 0.. {
            let (why, asked) = match self.once(body.clone()).await {
                Ok(Answer::Taken(body)) => return Ok(taken(&body)),
                Ok(Answer::Again { why, after }) => (why, after),
                Ok(Answer::Refused(why)) => {
                    return Err(ExportError::Refused { place: self.settings.place.clone(), why });
                }
                Err(why) => {
                    self.connection = None;
                    (why, None)
                }
            };
            *last = why;
            let pause = asked.unwrap_or_else(|| retry::pause(attempt, FIRST_PAUSE, LONGEST_PAUSE, random()));
            // Said now rather than when the time is over: nothing would be sent any more.
            if pause >= self.settings.timeout {
                let (place, why) = (self.settings.place.clone(), std::mem::take(last));
                return Err(ExportError::Unreachable { place, why });
            }
            tokio::time::sleep(pause).await;
        }
        unreachable!("the loop ends by returning")
    }

    async fn once(&mut self, body: Parts) -> Result<Answer, String> {
        let connection = match self.connection.take().filter(Connection::is_open) {
            Some(connection) => self.connection.insert(connection),
            None => self.connection.insert(Connection::open(&self.settings, self.mark).await?),
        };
        connection.send(&self.settings, body).await
    }
}

/// Every signal's answer has the same form: `partial_success` is field 1, with the number of those refused, and a message.
fn taken(body: &[u8]) -> Taken {
    let Ok(answer) = AnyResponse::decode(body) else { return Taken::default() };
    answer.partial_success.map_or_else(Taken::default, |partial| Taken {
        rejected: partial.rejected.max(0) as u64,
        message: printable(&partial.error_message),
    })
}

/// What a collector says is printed as far as it is harmless.
fn printable(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// `Export…ServiceResponse`, of any signal.
#[derive(Clone, PartialEq, Message)]
struct AnyResponse {
    #[prost(message, optional, tag = "1")]
    partial_success: Option<AnyPartialSuccess>,
}

/// `Export…PartialSuccess`, of any signal.
#[derive(Clone, PartialEq, Message)]
struct AnyPartialSuccess {
    #[prost(int64, tag = "1")]
    rejected: i64,
    #[prost(string, tag = "2")]
    error_message: String,
}

/// `google.rpc.Status`, as it stands in `grpc-status-details-bin`.
#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(message, repeated, tag = "3")]
    details: Vec<Detail>,
}

/// `google.protobuf.Any`.
#[derive(Clone, PartialEq, Message)]
struct Detail {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<Span>,
}

/// `google.protobuf.Duration`.
#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

/// The pause that a gRPC server asks for (`RetryInfo` in `grpc-status-details-bin`, base64).
fn retry_info(details: &[u8]) -> Option<Duration> {
    let engine = base64::engine::general_purpose::STANDARD_NO_PAD;
    let end = details.iter().rposition(|b| *b != b'=').map_or(0, |at| at + 1);
    let status = RpcStatus::decode(&*engine.decode(&details[..end]).ok()?).ok()?;
    let info = status.details.iter().find(|d| d.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let delay = RetryInfo::decode(&*info.value).ok()?.retry_delay.unwrap_or_default();
    Some(Duration::new(u64::try_from(delay.seconds).ok()?, u32::try_from(delay.nanos).ok().filter(|n| *n < 1_000_000_000)?))
}
