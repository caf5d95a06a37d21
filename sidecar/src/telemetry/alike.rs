//! What requests between the same two ends have in common is written once, and copied for those that follow: it is more than half of a span and of a line.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use super::fields::Named;
use super::record::{Attempt, Told};
use super::{line, span};
use crate::metrics::Direction;

/// Kinds of requests that are kept: one that comes in the place of another takes it.
const KEPT: usize = 64;

/// Those of one worker.
pub(super) struct Alike {
    /// None as long as nothing was written.
    kept: Vec<Option<Written>>,
    /// Which of a line's fields they have in common.
    range: Range<usize>,
}

/// Of one kind: what every one of them is, and how that is written.
#[derive(Debug)]
pub(super) struct Written {
    of: Kind,
    /// The caller, the target, the method, the host and the endpoint's identity.
    texts: [Box<str>; 5],
    /// Attributes of a span.
    pub(super) span: Vec<u8>,
    /// Fields of a line of JSON: those of [`Alike::range`].
    pub(super) line: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Kind {
    direction: Direction,
    client: IpAddr,
    port: u16,
    protocol: &'static str,
    is_grpc: bool,
    endpoint: Option<SocketAddr>,
}

impl Alike {
    /// None so far. `fields` are those of a line.
    pub(super) fn new(fields: &[Named]) -> Self {
        Self { kept: Vec::new(), range: range(fields) }
    }

    /// Which of a line's fields stand in [`Written::line`].
    pub(super) fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// What this one has in common with others, if it is one that may: `fields` are those of a line.
    pub(super) fn of(&mut self, told: &Told<'_>, fields: &[Named]) -> Option<&Written> {
        let record = told.record;
        let request = record.request.as_ref()?;
        let (endpoint, peer) = match &record.attempts[..] {
            [] => (None, ""),
            [Attempt { address, peer, .. }] => (Some(*address), told.text(*peer)),
            // Few are tried again.
            _ => return None,
        };
        let of = Kind {
            direction: record.direction,
            client: record.client,
            port: record.port,
            protocol: record.protocol,
            is_grpc: request.grpc,
            endpoint,
        };
        let texts = [record.caller, record.target, request.method, request.host].map(|piece| told.text(piece));
        let texts = [texts[0], texts[1], texts[2], texts[3], peer];
        if self.kept.is_empty() {
            self.kept.resize_with(KEPT, || None);
        }
        let kept = &mut self.kept[of.place(&texts)];
        let is_same = |kept: &Written| kept.of == of && kept.texts.iter().zip(texts).all(|(kept, text)| **kept == *text);
        if !kept.as_ref().is_some_and(is_same) {
            let mut written = Written { of, texts: texts.map(Into::into), span: Vec::new(), line: Vec::new() };
            span::common(&mut written.span, told, request);
            line::common(&mut written.line, &fields[self.range.clone()], told);
            *kept = Some(written);
        }
        kept.as_ref()
    }
}

impl Kind {
    fn place(&self, texts: &[&str; 5]) -> usize {
        let folded = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => u64::from(ip.to_bits()),
            IpAddr::V6(ip) => ip.to_bits() as u64 ^ (ip.to_bits() >> 64) as u64,
        };
        let endpoint = self.endpoint.map_or(0, |to| folded(to.ip()).rotate_left(24) ^ u64::from(to.port()));
        // A look at the ends of the texts tells most of them apart.
        let ends = |text: &str| {
            text.len() as u64
                + u64::from(*text.as_bytes().first().unwrap_or(&0)) * 7
                + u64::from(*text.as_bytes().last().unwrap_or(&0)) * 13
        };
        let texts = texts.iter().fold(0, |all: u64, text| all.wrapping_mul(31).wrapping_add(ends(text)));
        let own = u64::from(self.port) << 2 | u64::from(self.is_grpc) << 1 | self.direction as u64;
        let all = folded(self.client) ^ endpoint ^ texts.rotate_left(40) ^ own.rotate_left(20);
        (all.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - KEPT.ilog2())) as usize
    }
}

/// Which of a line's fields are the same for all of a kind: those that stand together, the most of them.
fn range(fields: &[Named]) -> Range<usize> {
    let mut longest = 0..0;
    let mut begins = 0;
    for (i, field) in fields.iter().enumerate() {
        let is_common = matches!(
            field.name,
            "direction" | "client" | "peer" | "target" | "port" | "endpoint" | "protocol" | "method" | "host"
        );
        if !is_common {
            begins = i + 1;
        } else if i + 1 - begins > longest.len() {
            longest = begins..i + 1;
        }
    }
    longest
}
