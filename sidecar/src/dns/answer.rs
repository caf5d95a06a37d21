//! The addresses in an answer.

use std::net::IpAddr;

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RData};

use super::message;

/// Aliases that are followed.
const MAX_ALIASES: usize = 16;

/// Why there is no answer to go by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NoAnswer {
    /// There is no such name (RFC 1035, section 4.1.1: response code 3).
    NotFound,
    /// Nobody answers.
    Silent,
    /// What a server did instead.
    Failed(String),
}

/// The addresses that an answer gives for what was asked, by way of its aliases, with their times to live in seconds: an address never lives longer than the
/// aliases that lead to it. What does not follow from the question is not looked at. An error says what the server did.
pub fn addresses(query: &[u8], answer: &[u8]) -> Result<Vec<(IpAddr, u32)>, NoAnswer> {
    let failed = |why: &dyn std::fmt::Display| NoAnswer::Failed(why.to_string());
    let asked =
        message::question_of(query).and_then(message::name_of).ok_or_else(|| failed(&"the question has no host's name"))?;
    let read = Message::from_vec(answer).map_err(|e| failed(&format_args!("the answer cannot be read: {e}")))?;
    match read.metadata.response_code {
        ResponseCode::NoError => {}
        ResponseCode::NXDomain => return Err(NoAnswer::NotFound),
        code => return Err(failed(&format_args!("the name server says {code}"))),
    }
    let mut name = Name::from_ascii(format!("{}.", asked.0)).map_err(|e| failed(&e))?;
    let mut life = u32::MAX;
    for _ in 0..MAX_ALIASES {
        let of_name = || read.answers.iter().filter(|r| r.name == name);
        let found: Vec<(IpAddr, u32)> = of_name()
            .filter_map(|r| match &r.data {
                RData::A(a) => Some((IpAddr::V4(a.0), r.ttl.min(life))),
                RData::AAAA(a) => Some((IpAddr::V6(a.0), r.ttl.min(life))),
                _ => None,
            })
            .collect();
        if !found.is_empty() {
            return Ok(found);
        }
        let alias = of_name().find_map(|r| match &r.data {
            RData::CNAME(to) => Some((to.0.clone(), r.ttl)),
            _ => None,
        });
        let Some((to, ttl)) = alias else { break };
        life = life.min(ttl);
        name = to;
    }
    Ok(vec![])
}
