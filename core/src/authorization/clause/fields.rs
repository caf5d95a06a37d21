//! Clauses about header fields.

use crate::authorization::policy::{Action, HeaderMatch, HeaderValue};
use crate::traffic::table::RequestFacts;

impl HeaderMatch {
    /// Several fields of one name: what is refused is refused for any of them, what is allowed is allowed for all of them as one (RFC 9110, section
    /// 5.3), so that no second field turns a verdict. A reader that takes `_` for `-` (CGI, WSGI) sees fields that others do not: what is refused is
    /// refused by every spelling, and what is allowed is allowed by the policy's own, with no other beside it.
    pub(super) fn holds(&self, action: Action, request: &dyn RequestFacts) -> bool {
        let is = |value: &[u8]| match &self.value {
            HeaderValue::Exact(text) => text.as_bytes() == value,
            HeaderValue::Prefix(text) => value.starts_with(text.as_bytes()),
            HeaderValue::Present => true,
        };
        let (mut count, mut any, mut first, mut otherwise) = (0, false, false, false);
        request.fields(&mut |name, value| {
            if !is_alike(name, self.name.as_bytes()) {
                return;
            }
            let holds = is(value);
            any |= holds;
            if name.eq_ignore_ascii_case(self.name.as_bytes()) {
                count += 1;
                first |= count == 1 && holds;
            } else {
                otherwise = true;
            }
        });
        match (action, &self.value) {
            (Action::Deny | Action::Audit, _) => any,
            (Action::Allow, _) if otherwise => false,
            (Action::Allow, HeaderValue::Present) => any,
            // Joined they begin as the first does, and equal a text only if they are one.
            (Action::Allow, HeaderValue::Prefix(_)) => first,
            (Action::Allow, HeaderValue::Exact(text)) => match count {
                0 | 1 => first,
                _ => joined(&self.name, request) == text.as_bytes(),
            },
        }
    }
}

/// Whether two names of header fields are one to a reader that tells neither upper from lower case nor `_` from `-` (CGI, RFC 3875, section 4.1.18).
pub fn is_alike(sent: &[u8], name: &[u8]) -> bool {
    let folded = |byte: &u8| if *byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    sent.len() == name.len() && sent.iter().map(folded).eq(name.iter().map(folded))
}

fn joined(name: &str, request: &dyn RequestFacts) -> Vec<u8> {
    let separator: &[u8] = if name == "cookie" { b"; " } else { b"," };
    let mut whole = Vec::new();
    let mut several = false;
    request.fields(&mut |sent, value| {
        if !sent.eq_ignore_ascii_case(name.as_bytes()) {
            return;
        }
        if std::mem::replace(&mut several, true) {
            whole.extend_from_slice(separator);
        }
        whole.extend_from_slice(value);
    });
    whole
}
