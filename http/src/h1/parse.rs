//! Heads and chunk lines from bytes. `httparse` knows the grammar; here is what it lets pass and we do not.

use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use weft_core::failure::{Failure, Reason, Retryable};

use super::Limits;
use crate::fields::{Fields, Known};
use crate::head::{RequestHead, ResponseHead};

const MAX_FIELDS: usize = 128;

/// Room for the fields of a head.
type Room<'h> = [MaybeUninit<httparse::Header<'h>>];

/// More room than usual, where the limits are above that and a head has more fields.
fn more_room<T: Clone>(head: &[u8], limits: &Limits, empty: T) -> Option<Vec<T>> {
    let is_large = limits.fields > MAX_FIELDS && head.split(|b| *b == b'\n').nth(MAX_FIELDS).is_some();
    is_large.then(|| vec![empty; limits.fields + 1])
}

fn bad(why: &'static str) -> Failure {
    Failure::downstream(Reason::BadRequest).detail(why)
}

fn bad_upstream(why: impl std::fmt::Display) -> Failure {
    Failure::upstream(Reason::UpstreamProtocol, Retryable::No).detail(why)
}

/// The end of the head in `buf`, just behind the empty line, or none if it is not there yet. A bare LF is an error: other
/// readers take it for a line's end or do not, and that is how requests are smuggled (RFC 9112, sections 2.2 and 11.2).
fn head_end(buf: &[u8], seen: usize) -> Result<Option<usize>, &'static str> {
    let from = seen.saturating_sub(3);
    for lf in memchr::memchr_iter(b'\n', &buf[from..]).map(|i| from + i) {
        if lf == 0 || buf[lf - 1] != b'\r' {
            return Err("a line ends with a bare line feed");
        }
        if lf >= 3 && &buf[lf - 3..=lf] == b"\r\n\r\n" {
            return Ok(Some(lf + 1));
        }
    }
    Ok(None)
}

/// Takes a request head off the front of `buf`; none if more bytes are needed. `seen` is how much was looked at before.
pub fn request(buf: &mut BytesMut, seen: &mut usize, limits: &Limits) -> Result<Option<RequestHead>, Failure> {
    // Empty lines before a request are ignored (RFC 9112, section 2.2), in whatever pieces they come.
    if *seen == 0 {
        while buf.starts_with(b"\r\n") {
            let _ = buf.split_to(2);
        }
        if &buf[..] == b"\r" {
            return Ok(None);
        }
    }
    let Some(end) = head_end(buf, *seen).map_err(bad)? else {
        *seen = buf.len();
        return if buf.len() > limits.head { Err(too_large(buf, limits)) } else { Ok(None) };
    };
    *seen = 0;
    if end > limits.head {
        return Err(too_large(buf, limits));
    }
    let head = buf.split_to(end).freeze();
    let (mut few, mut many) = ([const { MaybeUninit::uninit() }; MAX_FIELDS], more_room(&head, limits, MaybeUninit::uninit()));
    let room: &mut Room<'_> = many.as_deref_mut().unwrap_or(&mut few);
    let mut request = httparse::Request::new(&mut []);
    match httparse::ParserConfig::default().parse_request_with_uninit_headers(&mut request, &head, room) {
        Ok(httparse::Status::Complete(n)) if n == head.len() => {}
        Ok(_) => return Err(bad("the head ends in the middle of a line")),
        Err(httparse::Error::TooManyHeaders) => return Err(Failure::downstream(Reason::HeadersTooLarge)),
        Err(httparse::Error::Version) => return Err(bad("the HTTP version is not 1.0 or 1.1")),
        Err(e) => return Err(Failure::downstream(Reason::BadRequest).detail(e)),
    }
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(bad("the request line is not complete"));
    };
    if target.len() > limits.target {
        return Err(Failure::downstream(Reason::UriTooLong));
    }
    // All of it, whatever is found: many octets at once.
    if !target.bytes().fold(true, |fits, b| fits & b.is_ascii_graphic()) {
        return Err(bad("the request target has a character that is not allowed"));
    }
    let fields = section(&head, request.headers, limits).map_err(|(reason, why)| Failure::downstream(reason).detail(why))?;
    let hosts = fields.all(Known::Host).count();
    if hosts > 1 || (hosts == 0 && version == 1) {
        return Err(bad("HTTP/1.1 needs exactly one Host field"));
    }
    if fields.first(Known::Host).is_some_and(|h| h.iter().any(|b| matches!(b, b' ' | b',' | b'/' | b'@' | b'\t'))) {
        return Err(bad("the Host field is not a host"));
    }
    Ok(Some(RequestHead {
        method: head.slice_ref(method.as_bytes()),
        target: head.slice_ref(target.as_bytes()),
        authority: None,
        scheme: None,
        protocol: None,
        http10: version == 0,
        fields,
    }))
}

fn too_large(buf: &[u8], limits: &Limits) -> Failure {
    let line_ended = buf.iter().take(limits.target).any(|b| *b == b'\n');
    Failure::downstream(if line_ended { Reason::HeadersTooLarge } else { Reason::UriTooLong })
}

/// Takes a response head off the front of `buf`; none if more bytes are needed.
pub fn response(buf: &mut BytesMut, seen: &mut usize, limits: &Limits) -> Result<Option<ResponseHead>, Failure> {
    let Some(end) = head_end(buf, *seen).map_err(bad_upstream)? else {
        *seen = buf.len();
        return if buf.len() > limits.head { Err(bad_upstream("the head is too large")) } else { Ok(None) };
    };
    *seen = 0;
    let head = buf.split_to(end).freeze();
    let (mut few, mut many) = ([const { MaybeUninit::uninit() }; MAX_FIELDS], more_room(&head, limits, MaybeUninit::uninit()));
    let room: &mut Room<'_> = many.as_deref_mut().unwrap_or(&mut few);
    let mut response = httparse::Response::new(&mut []);
    match httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, &head, room) {
        Ok(httparse::Status::Complete(n)) if n == head.len() => {}
        Ok(_) => return Err(bad_upstream("the head ends in the middle of a line")),
        Err(e) => return Err(bad_upstream(e)),
    }
    let (Some(status @ 100..=999), Some(version)) = (response.code, response.version) else {
        return Err(bad_upstream("the status line is not complete"));
    };
    let reason =
        response.reason.map_or_else(Bytes::new, |r| if r.is_empty() { Bytes::new() } else { head.slice_ref(r.as_bytes()) });
    let fields = section(&head, response.headers, limits).map_err(|(_, why)| bad_upstream(why))?;
    Ok(Some(ResponseHead { status, reason, http10: version == 0, fields }))
}

fn section(head: &Bytes, parsed: &[httparse::Header<'_>], limits: &Limits) -> Result<Fields, (Reason, &'static str)> {
    if parsed.len() > limits.fields {
        return Err((Reason::HeadersTooLarge, "there are too many fields"));
    }
    let mut fields = Fields::over(head.clone());
    for h in parsed {
        // httparse takes leading and trailing white space off, and refuses folding; a NUL or bare CR inside is refused here.
        if memchr::memchr3(0, b'\r', b'\n', h.value).is_some() {
            return Err((Reason::BadRequest, "a field value has a control character"));
        }
        fields.push_wire(h.name.as_bytes(), h.value);
    }
    Ok(fields)
}

/// Takes a trailer section off the front of `buf`; none if more bytes are needed.
pub fn trailers(buf: &mut BytesMut, seen: &mut usize, limits: &Limits) -> Result<Option<Fields>, &'static str> {
    if buf.starts_with(b"\r\n") {
        let _ = buf.split_to(2);
        *seen = 0;
        return Ok(Some(Fields::default()));
    }
    if buf.len() < 2 {
        return Ok(None);
    }
    let Some(end) = head_end(buf, *seen)? else {
        *seen = buf.len();
        return if buf.len() > limits.head { Err("the trailers are too large") } else { Ok(None) };
    };
    *seen = 0;
    let block = buf.split_to(end).freeze();
    let (mut few, mut many) = ([httparse::EMPTY_HEADER; MAX_FIELDS], more_room(&block, limits, httparse::EMPTY_HEADER));
    match httparse::parse_headers(&block, many.as_deref_mut().unwrap_or(&mut few)) {
        Ok(httparse::Status::Complete((n, list))) if n == block.len() => {
            section(&block, list, limits).map(Some).map_err(|(_, why)| why)
        }
        _ => Err("the trailers are malformed"),
    }
}

/// The longest chunk line that is read, extensions and all.
const MAX_CHUNK_LINE: usize = 256;

/// Takes a chunk's size line off the front of `buf`; none if more bytes are needed. Extensions are read over (RFC 9112, section 7.1.1).
pub fn chunk_size(buf: &mut BytesMut) -> Result<Option<u64>, &'static str> {
    let Some(lf) = buf.iter().take(MAX_CHUNK_LINE).position(|b| *b == b'\n') else {
        return if buf.len() >= MAX_CHUNK_LINE { Err("a chunk's size line is too long") } else { Ok(None) };
    };
    if lf == 0 || buf[lf - 1] != b'\r' {
        return Err("a chunk's size line ends with a bare line feed");
    }
    let line = buf.split_to(lf + 1);
    let line = &line[..lf - 1];
    let digits = line.iter().position(|b| !b.is_ascii_hexdigit()).unwrap_or(line.len());
    let rest = line[digits..].trim_ascii_start();
    if digits == 0 || digits > 15 || !(rest.is_empty() || rest[0] == b';') {
        return Err("a chunk's size is not a number");
    }
    if rest.iter().any(|b| matches!(b, b'\r' | 0)) {
        return Err("a chunk extension has a control character");
    }
    Ok(Some(line[..digits].iter().fold(0, |n, b| n << 4 | u64::from((*b as char).to_digit(16).unwrap_or(0)))))
}

#[cfg(test)]
mod tests;
