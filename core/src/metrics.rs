//! What weft's programs measure: one table of every metric, and the formats that a scraper asks for.
//!
//! [`table`] names each metric once, by OpenTelemetry's semantic conventions where they have a name. A program gathers [`Family`]s of it and hands
//! them to [`expose`], so that nothing is told that is not in the table. The same families go out over OTLP.

pub mod family;
pub mod histogram;
pub mod negotiate;
mod prometheus;
mod protobuf;
pub mod reference;
pub mod table;
pub mod telemetry;
mod text;

#[cfg(test)]
mod tests;

pub use family::{Exemplar, Family, Labels, Point, Text, Value};
pub use histogram::{Reading, Recorder};
pub use negotiate::Format;
pub use table::{Kind, Metric, Program};

/// Writes families in a format. `constant` are labels that every series has, before its own.
pub fn expose(format: Format, families: &[Family], constant: &Labels) -> Vec<u8> {
    match format {
        Format::Text => text::write(families, constant, false),
        Format::OpenMetrics => text::write(families, constant, true),
        Format::Protobuf => protobuf::write(families, constant),
    }
}
