//! Field sections and the heads that they are (RFC 9113, section 8): pseudo-fields, and what makes a message malformed.

use bytes::Bytes;
use weft_core::failure::{Failure, Reason};

use super::hpack::{self, Decoder, ENTRY, Invalid, Line, Of};
use crate::fields::{Fields, Known};
use crate::head::{RequestHead, ResponseHead};
use crate::octets;

/// The most of a section, in octets as HPACK counts them. One beyond is read to its end, for what is read after it, and then refused.
pub const MAX_SIZE: usize = 64 * 1024;
/// What sidecars add to a section on the way between them, at the most.
pub const ADDED: usize = 4 * 1024;
/// Beyond this the sender has lost its mind, or means harm: a table makes much of few octets.
const FAR_TOO_LARGE: usize = 4 * MAX_SIZE;

/// Why a message counts for nothing. Its stream ends, and no other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    Malformed(&'static str),
    TooLarge,
}

/// A section as it was read.
#[derive(Default, Debug)]
pub struct Section {
    method: Option<Bytes>,
    path: Option<Bytes>,
    authority: Option<Bytes>,
    scheme: Option<Bytes>,
    protocol: Option<Bytes>,
    status: Option<u16>,
    fields: Fields,
    /// What the fields say of the content's length.
    length: Option<u64>,
}

/// What is said again and again is kept once.
#[derive(Default)]
pub struct Seen {
    authority: Bytes,
}

/// Reads a whole section of at most so many octets, as [`MAX_SIZE`] counts them: to its end, for the sake of those after it, also where none is wanted. An error of the outer kind is the
/// connection's end.
pub fn read(
    decoder: &mut Decoder,
    octets: &[u8],
    seen: &mut Seen,
    most: Option<usize>,
) -> Result<Result<Section, Fault>, Invalid> {
    let room = if most.is_some() { octets.len() * 3 / 2 } else { 0 };
    let mut section = Section { fields: Fields::with_room(room), ..Section::default() };
    let (mut fault, mut size) = (most.is_none().then_some(Fault::Malformed("nobody takes it")), 0);
    decoder.decode(octets, |line| {
        size += line.name.len() + line.value.len() + ENTRY;
        if size > FAR_TOO_LARGE {
            return Err(Invalid::Large);
        }
        if most.is_some_and(|most| size > most) {
            fault = Some(Fault::TooLarge);
        } else if fault.is_none() {
            match section.take(line, seen) {
                Ok(of) => return Ok(of),
                Err(why) => fault = Some(Fault::Malformed(why)),
            }
        }
        Ok(None)
    })?;
    Ok(fault.map_or(Ok(section), Err))
}

impl Section {
    /// Takes a field in; gives what need not be looked at where the same one comes again.
    fn take(&mut self, line: Line<'_>, seen: &mut Seen) -> Result<Option<Of>, &'static str> {
        let Line { name, value, of, is_secret } = line;
        if let [b':', pseudo @ ..] = name {
            return self.take_pseudo(pseudo, value, seen).map(|()| None);
        }
        if of.is_none() && classes(name) != 0 {
            return Err("a field's name is not one");
        }
        let is_whole = of.is_some_and(|of| of.is_whole);
        if !is_whole && !is_value(value) {
            return Err("a field's value has a character that is not allowed");
        }
        // Blanks around it are not of it; most that leave them there mean no harm.
        let said = value.len();
        let value = if is_whole { value } else { trimmed(value) };
        let (known, number) = of.map_or_else(|| (Known::of(name), hpack::number_of(name)), |of| (of.known, of.number));
        match known {
            Known::Connection | Known::ProxyConnection | Known::KeepAlive | Known::TransferEncoding | Known::Upgrade => {
                return Err("it has a field of HTTP/1.1's connections");
            }
            Known::Te if value != b"trailers" => return Err("te names what there is not in HTTP/2"),
            Known::ContentLength => {
                let digits = std::str::from_utf8(value).ok().filter(|v| v.bytes().all(|b| b.is_ascii_digit()));
                let length = digits.and_then(|v| v.parse().ok()).ok_or("content-length is not a number")?;
                if self.length.replace(length).is_some_and(|other| other != length) {
                    return Err("content-length is said twice, and not alike");
                }
            }
            _ => {}
        }
        let secret = if is_secret { hpack::SECRET } else { 0 };
        self.fields.push_coded(known, number | secret, name, value);
        Ok((value.len() == said).then_some(Of { known, number, is_whole: true }))
    }

    fn take_pseudo(&mut self, name: &[u8], value: &[u8], seen: &mut Seen) -> Result<(), &'static str> {
        if !self.fields.is_empty() {
            return Err("a pseudo-field stands behind another field");
        }
        let is_plain = if name == b"path" { is_target(value) } else { is_graphic(value) };
        if value.is_empty() || !is_plain {
            return Err("a pseudo-field has a character that is not allowed");
        }
        let (place, value) = match name {
            b"method" => (&mut self.method, method(value)?),
            b"path" => (&mut self.path, if value == b"/" { Bytes::from_static(b"/") } else { Bytes::copy_from_slice(value) }),
            b"authority" => (&mut self.authority, seen.authority(value)?),
            b"scheme" => (&mut self.scheme, scheme(value)?),
            b"protocol" => (&mut self.protocol, Bytes::copy_from_slice(value)),
            b"status" => {
                let &[first @ b'1'..=b'9', second @ b'0'..=b'9', third @ b'0'..=b'9'] = value else {
                    return Err("the status is not one");
                };
                let status = [first, second, third].iter().fold(0, |n, digit| n * 10 + u16::from(digit - b'0'));
                return if self.status.replace(status).is_none() { Ok(()) } else { Err("a status is there twice") };
            }
            _ => return Err("there is no such pseudo-field"),
        };
        if place.replace(value).is_some() {
            return Err("a pseudo-field is there twice");
        }
        Ok(())
    }

    /// What the fields say of the content's length.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    fn has_request(&self) -> bool {
        self.method.is_some()
            || self.path.is_some()
            || self.authority.is_some()
            || self.scheme.is_some()
            || self.protocol.is_some()
    }

    /// A request's head (RFC 9113, section 8.3.1; RFC 8441, section 4).
    pub fn request(mut self) -> Result<RequestHead, &'static str> {
        if self.status.is_some() {
            return Err("a request has a status");
        }
        let method = self.method.ok_or("a request has no method")?;
        let is_tunnel = &*method == b"CONNECT" && self.protocol.is_none();
        if self.protocol.is_some() && &*method != b"CONNECT" {
            return Err("a protocol is named by another method than CONNECT");
        }
        if is_tunnel && (self.path.is_some() || self.scheme.is_some() || self.authority.is_none()) {
            return Err("CONNECT names more, or less, than an authority");
        }
        if !is_tunnel && (self.path.is_none() || self.scheme.is_none()) {
            return Err("a request has no path or no scheme");
        }
        let target = self.path.unwrap_or_default();
        let is_path = target.starts_with(b"/") && !target.contains(&b'#') || &*target == b"*";
        if !(is_tunnel || is_path) {
            return Err("the path is not one");
        }
        if self.authority.is_some() {
            // One of them says where to; the other could only disagree (RFC 9113, section 8.3.1).
            self.fields.remove(Known::Host);
        } else if self.fields.all(Known::Host).count() > 1 {
            return Err("a request names several hosts");
        }
        Ok(RequestHead {
            method,
            target,
            authority: self.authority,
            scheme: self.scheme,
            protocol: self.protocol,
            http10: false,
            fields: self.fields,
        })
    }

    /// A response's head (RFC 9113, section 8.3.2).
    pub fn response(self) -> Result<ResponseHead, &'static str> {
        match self.status {
            Some(101) => Err("HTTP/2 switches no protocols"),
            Some(status) if !self.has_request() => Ok(ResponseHead { fields: self.fields, ..ResponseHead::new(status) }),
            _ => Err("a response has no status, or more than one has"),
        }
    }

    /// Trailers, which are fields alone.
    pub fn trailers(self) -> Result<Fields, &'static str> {
        if self.status.is_some() || self.has_request() { Err("trailers have a pseudo-field") } else { Ok(self.fields) }
    }
}

impl Seen {
    /// An authority, of which most of a connection's requests name the same one.
    fn authority(&mut self, value: &[u8]) -> Result<Bytes, &'static str> {
        if self.is_authority(value) { Ok(self.authority.clone()) } else { Err("the authority is not HOST or HOST:PORT") }
    }

    /// Whether it is one, and the one that was seen last then.
    fn is_authority(&mut self, value: &[u8]) -> bool {
        let is_same = *self.authority == *value && !value.is_empty();
        if !is_same && is_authority(value) {
            self.authority = Bytes::copy_from_slice(value);
            return true;
        }
        is_same
    }
}

/// What an octet is that cannot stand in a name or a method (RFC 9110, section 5.6.2).
const NO_TOKEN: u8 = 1;
/// What a letter is that HTTP/2 has small in names (RFC 9113, section 8.2).
const CAPITAL: u8 = 2;

static CLASS: [u8; 256] = {
    let mut class = [NO_TOKEN; 256];
    let (mut octet, others) = (0, b"!#$%&'*+-.^_`|~");
    while octet < 256 {
        if (octet as u8).is_ascii_alphanumeric() {
            class[octet] = if (octet as u8).is_ascii_uppercase() { CAPITAL } else { 0 };
        }
        octet += 1;
    }
    let mut at = 0;
    while at < others.len() {
        class[others[at] as usize] = 0;
        at += 1;
    }
    class
};

/// Of what classes the octets of a name are: all of them are looked at, whatever is found, which takes less.
fn classes(name: &[u8]) -> u8 {
    name.iter().fold(u8::from(name.is_empty()) * NO_TOKEN, |classes, octet| classes | CLASS[usize::from(*octet)])
}

fn is_token(name: &[u8]) -> bool {
    classes(name) & NO_TOKEN == 0
}

fn is_graphic(value: &[u8]) -> bool {
    !octets::any(value, |word| octets::below(word, b'!') | octets::are(word, 0x7f) | word)
}

/// What may stand in a field's value (RFC 9110, section 5.5). Few have a tab.
fn is_value(value: &[u8]) -> bool {
    !octets::any(value, |word| octets::below(word, b' ') | octets::are(word, 0x7f))
        || value.iter().all(|b| !(*b < b' ' && *b != b'\t' || *b == 0x7f))
}

/// A request's target. Some do not escape what is not ASCII.
fn is_target(value: &[u8]) -> bool {
    is_graphic(value) || value.iter().all(|b| b.is_ascii_graphic() || !b.is_ascii()) && std::str::from_utf8(value).is_ok()
}

/// Without the blanks around it (RFC 9110, section 5.5).
fn trimmed(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Whether it names a host, and perhaps a port, and nothing else.
fn is_authority(value: &[u8]) -> bool {
    !value.is_empty() && value.iter().all(|b| b.is_ascii_graphic() && !matches!(b, b'@' | b',' | b'/' | b'\\' | b'?' | b'#'))
}

fn method(value: &[u8]) -> Result<Bytes, &'static str> {
    const USUAL: [&[u8]; 4] = [b"GET", b"POST", b"PUT", b"HEAD"];
    match USUAL.into_iter().find(|usual| *usual == value) {
        Some(usual) => Ok(Bytes::from_static(usual)),
        None if is_token(value) => Ok(Bytes::copy_from_slice(value)),
        None => Err("the method is not one"),
    }
}

fn scheme(value: &[u8]) -> Result<Bytes, &'static str> {
    match value {
        b"http" => Ok(Bytes::from_static(b"http")),
        b"https" => Ok(Bytes::from_static(b"https")),
        _ if is_scheme(value) => Ok(Bytes::copy_from_slice(value)),
        _ => Err("the scheme is not one"),
    }
}

/// RFC 3986, section 3.1.
fn is_scheme(value: &[u8]) -> bool {
    let [first, rest @ ..] = value else { return false };
    first.is_ascii_alphabetic() && rest.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
}

/// The host of a request that can be written. An error if it would be malformed, whoever made it so.
pub fn host_of<'a>(head: &'a RequestHead, seen: &mut Seen) -> Result<&'a [u8], Failure> {
    let bad = |why: &'static str| Failure::downstream(Reason::BadRequest).detail(why);
    let host = head.authority.as_deref().or_else(|| head.fields.first(Known::Host));
    let host = host.filter(|host| seen.is_authority(host)).ok_or_else(|| bad("the request names no authority"))?;
    if !is_token(&head.method) {
        return Err(bad("the method is not one"));
    }
    if has_target(head) && !(is_scheme(scheme_of(head)) && is_target(&head.target)) {
        return Err(bad("the scheme or the path is not one"));
    }
    Ok(host)
}

/// Whether it names more than a host (RFC 9113, section 8.5; RFC 8441, section 4).
fn has_target(head: &RequestHead) -> bool {
    !head.is_connect() || head.protocol.is_some()
}

fn scheme_of(head: &RequestHead) -> &[u8] {
    head.scheme.as_deref().unwrap_or(b"http")
}

/// Writes the head of a request to a host.
pub fn put_request(out: &mut Vec<u8>, head: &RequestHead, host: &[u8]) {
    hpack::put_pseudo(out, 2..=3, &head.method);
    if has_target(head) {
        hpack::put_pseudo(out, 6..=7, scheme_of(head));
        hpack::put_pseudo(out, 4..=5, if head.target.is_empty() { b"/" } else { &head.target });
    }
    hpack::put_pseudo(out, 1..=1, host);
    if let Some(protocol) = &head.protocol {
        hpack::put(out, b":protocol", protocol);
    }
    put_fields(out, &head.fields);
}

/// Writes a response's head.
pub fn put_response(out: &mut Vec<u8>, head: &ResponseHead) {
    let digits = [b'0' + (head.status / 100 % 10) as u8, b'0' + (head.status / 10 % 10) as u8, b'0' + (head.status % 10) as u8];
    hpack::put_pseudo(out, 8..=14, &digits);
    put_fields(out, &head.fields);
}

/// Writes fields: but for those of HTTP/1.1's framing, which have no meaning here, for the host, which is the authority, and for what would be malformed.
pub fn put_fields(out: &mut Vec<u8>, fields: &Fields) {
    for (known, coded, name, value) in fields.iter_coded() {
        if matches!(known, Known::TransferEncoding | Known::Connection | Known::Host) {
            continue;
        }
        if let Some(number) = coded {
            hpack::put_numbered(out, number, name, value);
            continue;
        }
        let classes = classes(name);
        if classes & NO_TOKEN != 0 || !is_value(value) {
            continue;
        }
        if classes & CAPITAL == 0 {
            hpack::put(out, name, trimmed(value));
        } else {
            hpack::put(out, &name.to_ascii_lowercase(), trimmed(value));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(fields: &[(&str, &str)]) -> Result<Section, Fault> {
        let mut out = Vec::new();
        for (name, value) in fields {
            hpack::put_as_it_is(&mut out, name.as_bytes(), value.as_bytes());
        }
        read(&mut Decoder::default(), &out, &mut Seen::default(), Some(MAX_SIZE)).expect("HPACK")
    }

    const GET: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "http"), (":path", "/a?b"), (":authority", "api:80")];

    fn request(more: &[(&str, &str)]) -> Result<RequestHead, &'static str> {
        match section(&[&GET[..], more].concat()) {
            Ok(section) => section.request(),
            Err(Fault::Malformed(why)) => Err(why),
            Err(Fault::TooLarge) => Err("too large"),
        }
    }

    #[test]
    fn what_no_field_may_hold_is_not_written_and_names_are_small() {
        let mut fields = Fields::default();
        for (name, value) in [("X-A", "1"), ("", "2"), ("x b", "3"), ("x-c", "4\n"), ("Connection", "close"), ("x-d", " 5 ")] {
            fields.push(name.as_bytes(), value.as_bytes());
        }
        let mut out = Vec::new();
        put_fields(&mut out, &fields);
        let again =
            read(&mut Decoder::default(), &out, &mut Seen::default(), Some(MAX_SIZE)).expect("HPACK").expect("well-formed");
        let list: Vec<_> = again.fields.iter().map(|(_, n, v)| (n, v)).collect();
        assert_eq!(list, [(&b"x-a"[..], &b"1"[..]), (b"x-d", b"5")]);
    }

    #[test]
    fn a_request_is_read_and_written_alike() {
        let head = request(&[("host", "other"), ("te", "trailers"), ("cookie", "a"), ("cookie", "b"), ("content-length", "3")])
            .expect("a request");
        assert_eq!((&*head.method, &*head.target, head.host()), (&b"GET"[..], &b"/a?b"[..], Some(&b"api:80"[..])));
        assert!(head.fields.first(Known::Host).is_none(), "the authority says it");
        let mut out = Vec::new();
        put_request(&mut out, &head, host_of(&head, &mut Seen::default()).expect("it has an authority"));
        let again =
            read(&mut Decoder::default(), &out, &mut Seen::default(), Some(MAX_SIZE)).expect("HPACK").expect("well-formed");
        assert_eq!(again.length(), Some(3));
        let again = again.request().expect("a request");
        let list = |head: &RequestHead| head.fields.iter().map(|(_, n, v)| (n.to_vec(), v.to_vec())).collect::<Vec<_>>();
        assert_eq!((list(&again), again.target, again.authority), (list(&head), head.target, head.authority));
    }

    #[test]
    fn each_octet_may_stand_in_a_value_or_not_wherever_it_is() {
        for octet in 0..=255_u8 {
            let in_value = octet == b'\t' || octet >= b' ' && octet != 0x7f;
            for (at, length) in (0..20).flat_map(|length| (0..length).map(move |at| (at, length))) {
                let mut text = [b'~'; 20];
                text[at] = octet;
                let text = &text[..length];
                assert_eq!(
                    (is_value(text), is_graphic(text)),
                    (in_value, octet.is_ascii_graphic()),
                    "{octet} at {at} of {length}"
                );
            }
        }
        assert!(is_value(b"") && is_graphic(b"") && is_value(b"a\t b"));
    }

    #[test]
    fn what_nobody_is_to_keep_is_marked_so_on_its_way() {
        let spelled = |first: u8, name: &str| [&[first, name.len() as u8], name.as_bytes(), b"\x01v"].concat();
        let mut decoder = Decoder::default();
        let mut passed = |octets: &[u8]| {
            let section = read(&mut decoder, octets, &mut Seen::default(), Some(MAX_SIZE)).expect("HPACK").expect("well-formed");
            let mut out = Vec::new();
            put_fields(&mut out, &section.fields);
            out
        };
        // However a secret's name comes, and whether its sender has it kept.
        for first in [0x00, 0x10, 0x40] {
            assert_eq!(passed(&spelled(first, "authorization")), b"\x1f\x08\x01v", "{first:x}");
        }
        assert_eq!(passed(&[0xbe]), b"\x1f\x08\x01v");
        assert_eq!(passed(&[0x0f, 0x08, 1, b'v']), b"\x1f\x08\x01v");
        // Of others the sender says it.
        assert_eq!(passed(&spelled(0x10, "x-key")), spelled(0x10, "x-key"));
        assert_eq!(passed(&spelled(0x00, "x-key")), spelled(0x00, "x-key"));
        assert_eq!(passed(&[&[0x1f, 0x01][..], b"\x0dgzip, deflate"].concat())[0], 0x1f);
        assert_eq!(passed(&[&[0x0f, 0x01][..], b"\x0dgzip, deflate"].concat()), [0x90]);
    }

    /// One field that is kept in the table, and then that entry alone, as a whole and as a name.
    #[test]
    fn what_is_kept_is_looked_at_once_and_judged_as_before() {
        let value = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
        for (name, said, is_good) in [
            ("x-good", "v", true),
            ("cookie", "a=b", true),
            ("x-blank", " v ", true),
            ("x-bad", "\x01", false),
            ("X-Bad", "v", false),
            ("connection", "close", false),
            ("te", "gzip", false),
            ("te", "trailers", true),
            ("content-length", "x", false),
        ] {
            let (mut decoder, mut seen) = (Decoder::default(), Seen::default());
            let first = [&[0x40][..], &value(name), &value(said)].concat();
            let named = [&[0x7e][..], &value(said)].concat();
            let bad = [&[0x7e][..], &value("\x02")].concat();
            let mut written: Vec<Vec<u8>> = Vec::new();
            // The first is not wanted, and nothing is known of it then.
            for (at, octets) in [&first, &vec![0xbe], &first, &vec![0xbe], &named, &vec![0xbe]].into_iter().enumerate() {
                let most = (at > 0).then_some(MAX_SIZE);
                let read = read(&mut decoder, octets, &mut seen, most).expect("HPACK");
                assert_eq!(read.is_ok(), is_good && at > 0, "{name}: {said:?}, {at}");
                if let Ok(section) = read {
                    let fields: Vec<_> = section.fields.iter().collect();
                    assert_eq!(fields, [(Known::of(name.as_bytes()), name.as_bytes(), said.trim().as_bytes())]);
                    let mut out = Vec::new();
                    put_fields(&mut out, &section.fields);
                    let mut again = Vec::new();
                    Decoder::default()
                        .decode(&out, |line| {
                            again = [line.name, b": ", line.value].concat();
                            Ok(None)
                        })
                        .expect("HPACK");
                    written.push(again);
                }
            }
            let whole = format!("{name}: {}", said.trim());
            assert!(written.iter().all(|out| *out == whole.as_bytes()), "{written:?}");
            assert!(read(&mut decoder, &bad, &mut seen, Some(MAX_SIZE)).expect("HPACK").is_err(), "{name} with another value");
        }
    }

    #[test]
    fn what_is_malformed_is_refused() {
        for more in [
            &[("Upper", "x")][..],
            &[("", "x")],
            &[("a b", "x")],
            &[("a", "x\r\ny: z")],
            &[("a", "\x01")],
            &[("a", "\x7f")],
            &[("connection", "close")],
            &[("transfer-encoding", "chunked")],
            &[("upgrade", "x")],
            &[("keep-alive", "1")],
            &[("proxy-connection", "x")],
            &[("te", "gzip")],
            &[("content-length", "1"), ("content-length", "2")],
            &[("content-length", "+1")],
            &[("content-length", "")],
            &[("x", "y"), (":path", "/")],
            &[(":path", "/")],
            &[(":unknown", "/")],
            &[(":status", "200")],
            &[(":protocol", "websocket")],
        ] {
            assert!(request(more).is_err(), "{more:?}");
        }
        for (at, value) in
            [(0, "GE T"), (0, "CONNECT"), (1, "1http"), (2, ""), (2, "a"), (2, "/#a"), (2, "/ a"), (3, "a@b"), (3, "")]
        {
            let mut fields = GET;
            fields[at].1 = value;
            let got = section(&fields)
                .map_err(|fault| format!("{fault:?}"))
                .and_then(|section| section.request().map_err(str::to_owned));
            assert!(got.is_err(), "{fields:?}");
        }
        for left_out in 0..3 {
            let fields: Vec<_> = GET.iter().enumerate().filter(|(at, _)| *at != left_out).map(|(_, f)| *f).collect();
            assert!(section(&fields).expect("fields").request().is_err(), "{fields:?}");
        }
        for status in ["20", "2000", "099", "2x0", "\u{c8}3", "99999999", "101"] {
            let got = section(&[(":status", status)]).ok().and_then(|section| section.response().ok());
            assert!(got.is_none(), "{status}");
        }
        assert!(section(&[("a", "b")]).expect("fields").response().is_err());
        assert!(section(&[(":status", "200")]).expect("fields").trailers().is_err());
    }

    #[test]
    fn connect_names_where_to_and_a_protocol_how() {
        let tunnel = section(&[(":method", "CONNECT"), (":authority", "db:5432")]).expect("fields").request().expect("a tunnel");
        assert_eq!((tunnel.host(), tunnel.is_connect()), (Some(&b"db:5432"[..]), true));
        let extended =
            [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https"), (":path", "/chat"), (":authority", "api")];
        let head = section(&extended).expect("fields").request().expect("RFC 8441");
        assert_eq!((head.protocol.as_deref(), &*head.target), (Some(&b"websocket"[..]), &b"/chat"[..]));
        let mut out = Vec::new();
        put_request(&mut out, &head, host_of(&head, &mut Seen::default()).expect("it has an authority"));
        let again =
            read(&mut Decoder::default(), &out, &mut Seen::default(), Some(MAX_SIZE)).expect("HPACK").expect("well-formed");
        assert_eq!(again.request().expect("RFC 8441").protocol, head.protocol);
    }

    #[test]
    fn what_is_too_large_is_read_over_and_what_is_far_too_large_is_not() {
        let value = "v".repeat(8_000);
        let many: Vec<_> = (0..9).map(|_| ("x", value.as_str())).collect();
        assert!(matches!(request(&many), Err("too large")));
        // One entry of the table, very often.
        let mut out = vec![0x40, 1, b'a', 0x7f, 0xa1, 0x1e];
        out.extend([b'v'; 4_000]);
        out.extend([0xbe; 100]);
        let got = read(&mut Decoder::default(), &out, &mut Seen::default(), Some(MAX_SIZE));
        assert!(matches!(got, Err(Invalid::Large)));
    }
}
