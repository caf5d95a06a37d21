//! Names that an external service fixes: they are answered without asking anybody, so that a name that no name server knows can be called.

use weft_core::egress::{Host, Table};

use super::message;

/// How long a fixed address may be used by who has asked, in seconds: the external service may change.
const TTL: u32 = 5;

/// The answer to a question for the addresses of a host whose endpoints are fixed; without records where it has none of the family. None: somebody else is
/// to be asked.
pub(super) fn answer(table: &Table, query: &[u8]) -> Option<Vec<u8>> {
    let (name, kind) = message::name_of(message::question_of(query)?)?;
    let is_ours = message::is_standard(query) && message::is_internet(query) && matches!(kind, message::A | message::AAAA);
    let addresses = table.fixed(&Host::read(&name).filter(|_| is_ours)?);
    if addresses.is_empty() { None } else { message::answer(query, &addresses, TTL) }
}
