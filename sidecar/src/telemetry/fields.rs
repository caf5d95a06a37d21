//! The fields of an access-log line and of a tap event: their names, and what they hold. No field holds the value of a header, but for the host
//! and, where it is asked for, the user agent.

use std::borrow::Cow;
use std::str::FromStr;

use weft_core::hex::hex;

use super::record::Record;
use crate::denials::Reference;
use crate::metrics::Direction;

/// What a field holds.
#[derive(Debug, PartialEq)]
pub(super) enum Value<'a> {
    Text(Cow<'a, str>),
    /// As it came from outside: not always text.
    Bytes(&'a [u8]),
    Number(u64),
    /// Milliseconds.
    Millis(f64),
}

/// A record that is told.
pub(super) struct Told<'a> {
    pub(super) record: &'a Record,
}

/// A field that can be asked for by name.
#[derive(Clone, Copy)]
pub(super) struct Named {
    pub(super) name: &'static str,
    /// In a line where nothing is asked for.
    standard: bool,
    pub(super) value: for<'a> fn(&'a Told<'a>) -> Option<Value<'a>>,
}

impl std::fmt::Debug for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl FromStr for Named {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        FIELDS.iter().find(|field| field.name == name).copied().ok_or_else(|| {
            let known: Vec<_> = FIELDS.iter().map(|field| field.name).collect();
            format!("there is no field {name:?}; those that there are: {}", known.join(", "))
        })
    }
}

/// The fields of a line where nothing is asked for.
pub(super) fn standard() -> Vec<Named> {
    FIELDS.iter().filter(|field| field.standard).copied().collect()
}

const fn field(name: &'static str, value: for<'a> fn(&'a Told<'a>) -> Option<Value<'a>>) -> Named {
    Named { name, standard: true, value }
}

const fn asked(name: &'static str, value: for<'a> fn(&'a Told<'a>) -> Option<Value<'a>>) -> Named {
    Named { name, standard: false, value }
}

fn text(text: &str) -> Option<Value<'_>> {
    if text.is_empty() { None } else { Some(Value::Text(text.into())) }
}

fn millis(time: std::time::Duration) -> Value<'static> {
    Value::Millis((time.as_micros() as f64) / 1e3)
}

/// Every field, in the order of a line.
pub(super) const FIELDS: &[Named] = &[
    field("time", |t| Some(Value::Text(rfc3339(t.record.began).into()))),
    field("direction", |t| text(direction(t.record.direction))),
    field("client", |t| Some(Value::Text(t.record.client.to_canonical().to_string().into()))),
    field("peer", |t| text(peer(t.record))),
    field("target", |t| text(&t.record.target)),
    field("port", |t| (t.record.port != 0).then(|| Value::Number(t.record.port.into()))),
    field("endpoint", |t| t.record.attempts.last().map(|a| Value::Text(a.address.to_string().into()))),
    field("protocol", |t| text(if is_grpc(t.record) { "grpc" } else { t.record.protocol })),
    field("method", |t| t.record.request.as_ref().map(|r| Value::Bytes(&r.method))),
    field("path", |t| t.record.request.as_ref().map(|r| Value::Bytes(&r.path))),
    asked("query", |t| t.record.request.as_ref().and_then(|r| r.query.as_deref()).map(Value::Bytes)),
    field("host", |t| t.record.request.as_ref().map(|r| Value::Bytes(&r.host)).filter(|v| *v != Value::Bytes(b""))),
    asked("user_agent", |t| t.record.request.as_ref().and_then(|r| r.user_agent.as_deref()).map(Value::Bytes)),
    field("status", |t| (t.record.status != 0).then(|| Value::Number(t.record.status.into()))),
    field("grpc_status", |t| t.record.grpc_status.map(|s| Value::Number(s.into()))),
    field("reason", |t| t.record.reason.map(|r| Value::Text(r.as_str().into()))),
    asked("detail", |t| t.record.detail.as_deref().and_then(text)),
    field("ref", |t| t.record.reference.map(|r| Value::Text(Reference(r).to_string().into()))),
    field("policy", |t| t.record.policy.as_deref().and_then(text)),
    field("notice", |t| t.record.notice.as_deref().and_then(text)),
    field("duration_ms", |t| Some(millis(t.record.took))),
    field("first_byte_ms", |t| t.record.first.map(millis)),
    field("bytes_received", |t| Some(Value::Number(t.record.received))),
    field("bytes_sent", |t| Some(Value::Number(t.record.sent))),
    field("attempts", |t| Some(Value::Number(t.record.tried.into()))),
    field("trace_id", |t| t.record.told_trace().map(|t| Value::Text(hex(&t.context.trace.to_bytes()).into()))),
    field("span_id", |t| t.record.told_trace().map(|t| Value::Text(hex(&t.span.to_bytes()).into()))),
];

pub(super) fn direction(direction: Direction) -> &'static str {
    if direction == Direction::Inbound { "inbound" } else { "outbound" }
}

/// The other end: who called, or the endpoint that answered.
pub(super) fn peer(record: &Record) -> &str {
    match record.direction {
        Direction::Inbound => &record.caller,
        Direction::Outbound => record.attempts.last().map_or("", |a| &a.peer),
    }
}

pub(super) fn is_grpc(record: &Record) -> bool {
    record.request.as_ref().is_some_and(|r| r.grpc)
}

/// Nanoseconds since 1970 as RFC 3339 has them, to the microsecond.
pub(super) fn rfc3339(nanos: u64) -> String {
    let time = time::OffsetDateTime::from_unix_timestamp_nanos(nanos.into()).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let (date, clock) = (time.date(), time.time());
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        clock.hour(),
        clock.minute(),
        clock.second(),
        clock.microsecond()
    )
}
