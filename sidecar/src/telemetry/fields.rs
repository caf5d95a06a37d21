//! The fields of an access-log line and of a tap event: their names, and what they hold. No field holds the value of a header, but for the host
//! and, where it is asked for, the user agent.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use super::digits;
use super::line;
use super::record::{Record, Told};
use crate::metrics::Direction;

/// What a field holds.
pub(super) enum Value<'a> {
    /// Among the texts of the record, or a word of ours.
    Text(&'a str),
    /// A text from elsewhere.
    Other(&'a str),
    /// A number.
    Number(u64),
    /// In milliseconds: a number too.
    Millis(Duration),
    /// Nanoseconds since 1970.
    Time(u64),
    Ip(IpAddr),
    Address(SocketAddr),
    Id([u8; 8]),
    LongId([u8; 16]),
}

impl Value<'_> {
    /// Writes what is no text from elsewhere. Nothing of it needs to be escaped.
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "of each field it is known what it holds: one arm is left")]
    pub(super) fn put(self, out: &mut Vec<u8>) {
        match self {
            Self::Text(text) | Self::Other(text) => out.extend_from_slice(text.as_bytes()),
            Self::Number(number) => digits::decimal(out, number),
            Self::Millis(time) => digits::millis(out, time.as_micros() as u64),
            Self::Time(nanos) => digits::time(out, nanos),
            Self::Ip(ip) => digits::ip(out, ip),
            Self::Address(address) => digits::address(out, address),
            Self::Id(bytes) => digits::hex(out, bytes),
            Self::LongId(bytes) => digits::hex(out, bytes),
        }
    }
}

/// A field that can be asked for by name.
#[derive(Clone, Copy)]
pub(super) struct Named {
    pub(super) name: &'static str,
    /// In a line where nothing is asked for.
    standard: bool,
    pub(super) value: for<'a> fn(&'a Told<'a>) -> Option<Value<'a>>,
    /// Adds it to an object of JSON, if it holds anything: [`Self::value`], made for this field alone. Whether all texts of the record stand in a string as they are is said.
    pub(super) json: fn(&mut Vec<u8>, &Told<'_>, bool),
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

macro_rules! named {
    ($standard:literal, $name:literal, $value:expr) => {{
        const VALUE: for<'a> fn(&'a Told<'a>) -> Option<Value<'a>> = $value;
        let json: fn(&mut Vec<u8>, &Told<'_>, bool) = |out, told, stand| {
            if let Some(value) = VALUE(told) {
                line::add(out, concat!(",\"", $name, "\":"), value, stand);
            }
        };
        Named { name: $name, standard: $standard, value: VALUE, json }
    }};
}

macro_rules! field {
    ($name:literal, $value:expr) => {
        named!(true, $name, $value)
    };
}

/// One that is there only where it is asked for.
macro_rules! asked {
    ($name:literal, $value:expr) => {
        named!(false, $name, $value)
    };
}

fn number<'a>(number: impl Into<u64>) -> Value<'a> {
    Value::Number(number.into())
}

fn text(text: &str) -> Option<Value<'_>> {
    if text.is_empty() { None } else { Some(Value::Text(text)) }
}

fn other(text: &str) -> Option<Value<'_>> {
    if text.is_empty() { None } else { Some(Value::Other(text)) }
}

/// Every field, in the order of a line.
pub(super) const FIELDS: &[Named] = &[
    field!("time", |t| Some(Value::Time(t.record.began))),
    field!("direction", |t| text(direction(t.record.direction))),
    field!("client", |t| Some(Value::Ip(t.record.client))),
    field!("peer", |t| text(peer(t))),
    field!("target", |t| text(t.text(t.record.target))),
    field!("port", |t| (t.record.port != 0).then(|| number(t.record.port))),
    field!("endpoint", |t| t.record.attempts.last().map(|a| Value::Address(a.address))),
    field!("protocol", |t| text(if is_grpc(t.record) { "grpc" } else { t.record.protocol })),
    field!("method", |t| t.record.request.as_ref().map(|r| Value::Text(t.text(r.method)))),
    field!("path", |t| t.record.request.as_ref().map(|r| Value::Text(t.text(r.path)))),
    asked!("query", |t| t.record.request.as_ref()?.query.map(|q| Value::Text(t.text(q)))),
    field!("host", |t| t.record.request.as_ref().and_then(|r| text(t.text(r.host)))),
    asked!("user_agent", |t| t.record.request.as_ref()?.user_agent.map(|a| Value::Text(t.text(a)))),
    field!("status", |t| (t.record.status != 0).then(|| number(t.record.status))),
    field!("grpc_status", |t| t.record.grpc_status.map(number)),
    field!("reason", |t| t.record.reason.map(|r| Value::Text(r.as_str()))),
    asked!("detail", |t| t.record.detail.as_deref().and_then(other)),
    field!("ref", |t| t.record.reference.map(|r| Value::Id(r.to_be_bytes()))),
    field!("policy", |t| t.record.policy.as_deref().and_then(other)),
    field!("notice", |t| t.record.notice.as_deref().and_then(other)),
    field!("duration_ms", |t| Some(Value::Millis(t.record.took))),
    field!("first_byte_ms", |t| t.record.first.map(Value::Millis)),
    field!("bytes_received", |t| Some(number(t.record.received))),
    field!("bytes_sent", |t| Some(number(t.record.sent))),
    field!("attempts", |t| Some(number(t.record.tried))),
    field!("trace_id", |t| t.record.told_trace().map(|t| Value::LongId(t.context.trace.to_bytes()))),
    field!("span_id", |t| t.record.told_trace().map(|t| Value::Id(t.span.to_bytes()))),
];

pub(super) fn direction(direction: Direction) -> &'static str {
    if direction == Direction::Inbound { "inbound" } else { "outbound" }
}

/// The other end: who called, or the endpoint that answered.
pub(super) fn peer<'a>(told: &Told<'a>) -> &'a str {
    match told.record.direction {
        Direction::Inbound => told.text(told.record.caller),
        Direction::Outbound => told.record.attempts.last().map_or("", |a| told.text(a.peer)),
    }
}

pub(super) fn is_grpc(record: &Record) -> bool {
    record.request.as_ref().is_some_and(|r| r.grpc)
}
