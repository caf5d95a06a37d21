//! What must be known of a DNS message to pass it on (RFC 1035, section 4): the header and the one question. Pure.

use std::net::IpAddr;

/// Types of records.
pub const A: u16 = 1;
pub const AAAA: u16 = 28;

pub const HEADER: usize = 12;
const IS_RESPONSE: u8 = 0x80;
const OPCODE: u8 = 0x78;
const IS_TRUNCATED: u8 = 0x02;
const RECURSION_DESIRED: u8 = 0x01;
const RECURSION_AVAILABLE: u8 = 0x80;
const SERVER_FAILURE: u8 = 2;

pub fn id(message: &[u8]) -> Option<u16> {
    message.first_chunk::<2>().map(|b| u16::from_be_bytes(*b))
}

/// The same message under another id.
pub fn with_id(message: &[u8], id: u16) -> Vec<u8> {
    let mut out = message.to_vec();
    if let Some(first) = out.first_chunk_mut::<2>() {
        *first = id.to_be_bytes();
    }
    out
}

/// Whether it is a query that can be passed on: a header and one question.
pub fn is_query(message: &[u8]) -> bool {
    message.len() >= HEADER && message[2] & IS_RESPONSE == 0 && question_of(message).is_some()
}

/// Whether its question is of the Internet's class, as all are that programs ask.
pub(super) fn is_internet(message: &[u8]) -> bool {
    question_of(message).is_some_and(|question| question.ends_with(&[0, 1]))
}

/// Whether it is an ordinary question, of which the answer can be learned from.
pub fn is_standard(message: &[u8]) -> bool {
    message.len() >= HEADER && message[2] & OPCODE == 0
}

pub fn is_truncated(message: &[u8]) -> bool {
    message.get(2).is_some_and(|flags| flags & IS_TRUNCATED != 0)
}

/// The bytes of the one question: name, type and class. None where there are several, or what is there is none.
pub fn question_of(message: &[u8]) -> Option<&[u8]> {
    if message.get(4..6)? != [0, 1] {
        return None;
    }
    let mut at = HEADER;
    loop {
        let length = usize::from(*message.get(at)?);
        // A pointer has nothing before it to point to.
        if length > 63 || at + length - HEADER > 255 {
            return None;
        }
        at += 1 + length;
        if length == 0 {
            break;
        }
    }
    message.get(HEADER..at + 4)
}

/// The name of a question in lower case without a dot at its end, and the type; none for a name that is no host's.
pub fn name_of(question: &[u8]) -> Option<(String, u16)> {
    let (mut name, mut at) = (String::new(), 0);
    loop {
        let length = usize::from(*question.get(at)?);
        let label = question.get(at + 1..at + 1 + length)?;
        at += 1 + length;
        if length == 0 {
            break;
        }
        if !label.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')) {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
    }
    let kind = question.get(at..at + 2)?;
    Some((name, u16::from_be_bytes([kind[0], kind[1]])))
}

/// Whether a message answers a query: by its id, its kind and the question that it repeats. A server may leave the question out of a refusal that it could
/// not read.
pub fn answers(query: &[u8], message: &[u8]) -> bool {
    message.len() >= HEADER
        && message[2] & IS_RESPONSE != 0
        && id(query) == id(message)
        && match (question_of(query), question_of(message)) {
            (Some(asked), Some(told)) => asked.eq_ignore_ascii_case(told),
            _ => false,
        }
}

/// A query of our own for a host's addresses, with recursion; its id is set when it is sent.
pub fn question(name: &str, kind: u16) -> Option<Vec<u8>> {
    let mut out = vec![0, 0, RECURSION_DESIRED, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        if label.is_empty() || label.len() > 63 {
            return None;
        }
        out.push(label.len() as u8);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out.extend(kind.to_be_bytes());
    out.extend([0, 1]);
    (out.len() <= HEADER + 255 + 4).then_some(out)
}

/// The answer to a query that nobody answers.
pub fn failure(query: &[u8]) -> Option<Vec<u8>> {
    let question = question_of(query)?;
    let mut out = query.get(..HEADER)?.to_vec();
    out[2] = IS_RESPONSE | out[2] & (OPCODE | RECURSION_DESIRED);
    out[3] = RECURSION_AVAILABLE | SERVER_FAILURE;
    out[4..].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    out.extend_from_slice(question);
    Some(out)
}

/// The answer of ours to a question for addresses: those of its family, each for `ttl` seconds; none of the family is an answer too. The question is one of
/// the Internet's class.
pub(super) fn answer(query: &[u8], addresses: &[IpAddr], ttl: u32) -> Option<Vec<u8>> {
    let (_, kind) = name_of(question_of(query)?)?;
    let mut out = failure(query)?;
    out[3] = RECURSION_AVAILABLE;
    let mut count: u16 = 0;
    for ip in addresses {
        let data = match (ip, kind) {
            (IpAddr::V4(ip), A) => ip.octets().to_vec(),
            (IpAddr::V6(ip), AAAA) => ip.octets().to_vec(),
            _ => continue,
        };
        // The name is where the question has it.
        out.extend([0xc0, HEADER as u8]);
        out.extend(kind.to_be_bytes());
        out.extend([0, 1]);
        out.extend(ttl.to_be_bytes());
        out.extend((data.len() as u16).to_be_bytes());
        out.extend(data);
        count += 1;
    }
    out[6..8].copy_from_slice(&count.to_be_bytes());
    Some(out)
}

/// An answer without its records, for who can take no more over UDP and is to ask over TCP.
pub fn truncated(answer: &[u8]) -> Option<Vec<u8>> {
    let question = question_of(answer)?;
    let mut out = answer.get(..HEADER)?.to_vec();
    out[2] |= IS_TRUNCATED;
    out[6..].copy_from_slice(&[0; 6]);
    out.extend_from_slice(question);
    Some(out)
}
