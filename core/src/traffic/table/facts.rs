//! Whether a match holds for a request, in all that is not looked up by its path.

use smallvec::SmallVec;

use super::{RequestFacts, grpc};
use crate::traffic::route::{Match, PathMatch, StringMatch, ValueMatch};

/// Texts up to so many bytes are put together without an allocation.
type Text = SmallVec<[u8; 512]>;

pub(super) fn holds(m: &Match, request: &impl RequestFacts) -> bool {
    m.method.as_ref().is_none_or(|method| method.as_bytes() == request.method())
        && m.headers.iter().all(|header| header_holds(header, request))
        && m.query.iter().all(|parameter| request.query().is_some_and(|query| parameter_holds(parameter, query)))
        && path_holds(&m.path, request.path())
}

/// What the index does not decide: regular expressions.
fn path_holds(path: &PathMatch, sent: &[u8]) -> bool {
    match path {
        PathMatch::Any | PathMatch::Exact(_) | PathMatch::Prefix(_) => true,
        PathMatch::Regex(pattern) => pattern.is_match(sent),
        PathMatch::Grpc { service: None, method: None } => true,
        PathMatch::Grpc { service, method } => grpc::split(sent).is_some_and(|(sent_service, sent_method)| {
            service.as_ref().is_none_or(|s| value_holds(s, sent_service))
                && method.as_ref().is_none_or(|m| value_holds(m, sent_method))
        }),
    }
}

fn value_holds(value: &StringMatch, sent: &[u8]) -> bool {
    match value {
        StringMatch::Exact(text) => text.as_bytes() == sent,
        StringMatch::Regex(pattern) => pattern.is_match(sent),
    }
}

/// Whether a header field matches: of a route, a rate limit or a fault. Several fields of one name count as one, joined as RFC 9110 (section 5.3) has it, cookies as RFC 9113
/// (section 8.2.3).
pub fn header_holds(header: &ValueMatch, request: &impl RequestFacts) -> bool {
    let mut fields = 0;
    let mut first_holds = false;
    request.header_values(&header.name, &mut |value| {
        fields += 1;
        if fields == 1 {
            first_holds = value_holds(&header.value, value);
        }
    });
    if fields < 2 {
        return first_holds;
    }
    let separator: &[u8] = if &*header.name == "cookie" { b"; " } else { b"," };
    let mut joined = Text::new();
    let mut fields = 0;
    request.header_values(&header.name, &mut |value| {
        if fields > 0 {
            joined.extend_from_slice(separator);
        }
        joined.extend_from_slice(value);
        fields += 1;
    });
    value_holds(&header.value, &joined)
}

/// Whether a header field matches, or any one of several of its name: for what is to hold also where somebody would rather have it not.
pub fn any_field_holds(header: &ValueMatch, request: &impl RequestFacts) -> bool {
    let mut any = false;
    request.header_values(&header.name, &mut |value| any |= value_holds(&header.value, value));
    any || header_holds(header, request)
}

/// Whether the first parameter of the name matches, as sent or with its escapes undone.
fn parameter_holds(parameter: &ValueMatch, query: &[u8]) -> bool {
    let name = parameter.name.as_bytes();
    let value = parameters(query).find(|(sent, _)| *sent == name || unescaped(sent).is_some_and(|sent| sent.as_slice() == name));
    value.is_some_and(|(_, sent)| {
        value_holds(&parameter.value, sent) || unescaped(sent).is_some_and(|sent| value_holds(&parameter.value, &sent))
    })
}

/// The value of the first query parameter of a name, both as sent: a key to hash.
pub fn query_value<'q>(query: &'q [u8], name: &str) -> Option<&'q [u8]> {
    parameters(query).find(|(sent, _)| *sent == name.as_bytes()).map(|(_, value)| value)
}

/// `(name, value)` of `a=b&c`; `c` has an empty value.
fn parameters(query: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    query.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()).map(|pair| {
        match pair.iter().position(|byte| *byte == b'=') {
            Some(at) => (&pair[..at], &pair[at + 1..]),
            None => (pair, &[][..]),
        }
    })
}

/// The text with `%20` and `+` undone; none where there is nothing to undo. What is no escape stays as it is.
fn unescaped(text: &[u8]) -> Option<Text> {
    text.iter().any(|byte| matches!(byte, b'%' | b'+')).then(|| {
        let mut out = Text::new();
        let mut rest = text;
        while let Some((byte, after)) = rest.split_first() {
            let (byte, after) = match (byte, after) {
                (b'+', after) => (b' ', after),
                (b'%', [high, low, after @ ..]) => match (digit(*high), digit(*low)) {
                    (Some(high), Some(low)) => (high << 4 | low, after),
                    _ => (b'%', &rest[1..]),
                },
                (byte, after) => (*byte, after),
            };
            out.push(byte);
            rest = after;
        }
        out
    })
}

fn digit(hex: u8) -> Option<u8> {
    char::from(hex).to_digit(16).map(|digit| digit as u8)
}
