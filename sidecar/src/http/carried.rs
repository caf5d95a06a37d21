//! HTTP/2's exchanges between two sidecars, over streams of a link: one after the other, in HTTP/1.1's form. So neither end keeps HTTP/2's state for the hop between them, whose
//! streams, windows and resets the link has already.
//!
//! What HTTP/1.1's form has no place for stands in fields of weft's own, which never leave the hop. What does not fit into it at all goes over an HTTP/2 connection.

use bytes::Bytes;

use super::fields::{Fields, Known};
use super::h1::Limits;
use super::head::{RequestHead, ResponseHead};

/// The scheme of a request, where it is not `http`.
const SCHEME: &[u8] = b"weft-scheme";
/// The message ends with its head, and says nothing of a length.
const BARE: &[u8] = b"weft-bare";

/// What of HTTP/2 is carried, within the bounds of its own connections.
pub const LIMITS: Limits = Limits { head: 128 * 1024, fields: 2_000, target: 64 * 1024 };

/// Whether a request's head can be written in HTTP/1.1's form and read back as it was.
pub fn fits(head: &RequestHead) -> bool {
    let Some(authority) = &head.authority else { return false };
    let is_host = |host: &[u8]| host.iter().all(|b| b.is_ascii_graphic() && !matches!(b, b',' | b'/' | b'@'));
    head.protocol.is_none()
        && !head.is_connect()
        && !authority.is_empty()
        && is_host(authority)
        && head.fields.first(Known::Host).is_none()
        && !head.target.is_empty()
        && head.target.iter().all(u8::is_ascii_graphic)
        && head.fields.len() <= LIMITS.fields / 2
}

/// Has a request say what its line does not.
pub fn pack(head: &RequestHead) -> Option<Box<RequestHead>> {
    let scheme = head.scheme.as_ref().filter(|scheme| &***scheme != b"http")?;
    let mut packed = Box::new(head.clone());
    packed.fields.push(SCHEME, scheme);
    Some(packed)
}

/// A request as it was before it was written.
pub fn unpack(head: &mut RequestHead) {
    let scheme = head.fields.named("weft-scheme").next().map(Bytes::copy_from_slice);
    head.authority = head.fields.first(Known::Host).map(Bytes::copy_from_slice);
    head.fields.remove(Known::Host);
    // What else is weft's goes with everything that belongs to the hop.
    head.scheme = Some(scheme.unwrap_or_else(|| Bytes::from_static(b"http")));
}

/// Has an answer say that it has no body.
pub fn bare(fields: &mut Fields) {
    fields.push(BARE, b"yes");
}

/// Whether an answer says that it has no body; it does not say so any more then.
pub fn is_bare(head: &mut ResponseHead) -> bool {
    if head.fields.all(Known::Weft).next().is_none() || head.fields.named("weft-bare").next().is_none() {
        return false;
    }
    head.fields.retain(|known, name, _| known != Known::Weft || !name.eq_ignore_ascii_case(BARE));
    true
}
