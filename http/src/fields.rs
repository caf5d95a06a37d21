//! Header fields: order, case and duplicates kept, as ranges into one buffer.

use std::cell::RefCell;

use bytes::Bytes;
use weft_core::traffic::apply::HeaderEdit;

/// The fields that the forwarder itself looks at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Known {
    Connection,
    ContentLength,
    ContentType,
    Cookie,
    Expect,
    ForwardedFor,
    GrpcStatus,
    GrpcTimeout,
    Host,
    Http2Settings,
    KeepAlive,
    ProxyConnection,
    Te,
    /// What says where a request stands in a trace: `traceparent`, `tracestate`, `b3` and `x-b3-…`.
    Trace,
    Trailer,
    TransferEncoding,
    Upgrade,
    /// Any `weft-…`, however it is spelled.
    Weft,
    Other,
}

impl Known {
    /// Recognises a field by name, whatever its case.
    pub fn of(name: &[u8]) -> Self {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        match name.len() {
            2 if is("te") => Self::Te,
            2 if is("b3") => Self::Trace,
            4 if is("host") => Self::Host,
            6 if is("expect") => Self::Expect,
            6 if is("cookie") => Self::Cookie,
            7 if is("upgrade") => Self::Upgrade,
            7 if is("trailer") => Self::Trailer,
            10 if is("tracestate") || is("x-b3-flags") => Self::Trace,
            10 if is("connection") => Self::Connection,
            10 if is("keep-alive") => Self::KeepAlive,
            11 if is("traceparent") || is("x-b3-spanid") => Self::Trace,
            11 if is("grpc-status") => Self::GrpcStatus,
            12 if is("x-b3-traceid") || is("x-b3-sampled") => Self::Trace,
            12 if is("content-type") => Self::ContentType,
            12 if is("grpc-timeout") => Self::GrpcTimeout,
            14 if is("content-length") => Self::ContentLength,
            14 if is("http2-settings") => Self::Http2Settings,
            15 if is("x-forwarded-for") => Self::ForwardedFor,
            16 if is("proxy-connection") => Self::ProxyConnection,
            17 if is("x-b3-parentspanid") => Self::Trace,
            17 if is("transfer-encoding") => Self::TransferEncoding,
            // Servers that map fields to variables read `_` as `-`.
            5.. if name[..4].eq_ignore_ascii_case(b"weft") && matches!(name[4], b'-' | b'_') => Self::Weft,
            _ => Self::Other,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Span {
    start: u32,
    len: u32,
}

#[derive(Clone, Copy, Debug)]
struct Field {
    name: Span,
    value: Span,
    known: Known,
    /// Whether the spans lie in `own` rather than in `wire`.
    own: bool,
    /// See [`Fields::push_coded`]; [`UNCODED`] where nothing is known.
    coded: u8,
}

impl Span {
    fn end(self) -> usize {
        (self.start + self.len) as usize
    }
}

/// A part of a section, of [`Fields::pieces`].
pub enum Piece<'a> {
    /// Lines, without the end of the last one.
    Lines(&'a [u8]),
    /// A field's name and value.
    Field(&'a [u8], &'a [u8]),
}

const UNCODED: u8 = u8::MAX;

/// Room for what weft usually adds, in bytes: allocated once.
const OWN: usize = 160;

/// A field section. It is small: heads pass through many hands.
#[derive(Clone, Debug, Default)]
pub struct Fields {
    wire: Bytes,
    room: Room,
}

/// What a field section has of its own.
#[derive(Clone, Debug)]
struct Own {
    octets: Vec<u8>,
    list: Vec<Field>,
}

/// Where that lies, which the next section uses again; nowhere while there is no field.
#[derive(Clone, Debug, Default)]
struct Room(Option<Box<Own>>);

/// Rooms that a worker keeps for the next sections.
const KEPT: usize = 64;
/// As long as they have no room for more octets and fields than these.
const MOST_KEPT: (usize, usize) = (4 * 1024, 64);
/// Fields that there is room for at first.
const FEW: usize = 16;

thread_local! {
    /// The rooms that nobody uses just now, empty.
    #[expect(clippy::vec_box, reason = "each moves between here and its section as a pointer")]
    static ROOMS: RefCell<Vec<Box<Own>>> = const { RefCell::new(Vec::new()) };
}

impl Room {
    fn own(&mut self) -> &mut Own {
        self.0.get_or_insert_with(|| {
            let kept = ROOMS.with_borrow_mut(Vec::pop);
            kept.unwrap_or_else(|| Box::new(Own { octets: Vec::with_capacity(OWN), list: Vec::with_capacity(FEW) }))
        })
    }

    fn octets(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], |own| &own.octets)
    }

    fn list(&self) -> &[Field] {
        self.0.as_ref().map_or(&[], |own| &own.list)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let Some(mut own) = self.0.take() else { return };
        if own.octets.capacity() > MOST_KEPT.0 || own.list.capacity() > MOST_KEPT.1 {
            return;
        }
        own.octets.clear();
        own.list.clear();
        // A thread that ends keeps none.
        let _ = ROOMS.try_with(|rooms| {
            let mut rooms = rooms.borrow_mut();
            if rooms.len() < KEPT {
                rooms.push(own);
            }
        });
    }
}

impl Fields {
    /// An empty section over a buffer that [`Self::push_wire`] refers to.
    pub fn over(wire: Bytes) -> Self {
        Self { wire, room: Room::default() }
    }

    /// Adds a field that stands in the buffer.
    ///
    /// # Panics
    /// If the slices are not part of the buffer.
    pub fn push_wire(&mut self, name: &[u8], value: &[u8]) {
        let span = |part: &[u8]| {
            let start = if part.is_empty() { 0 } else { part.as_ptr() as usize - self.wire.as_ptr() as usize };
            assert!(start + part.len() <= self.wire.len(), "a field lies outside of its buffer");
            Span { start: start as u32, len: part.len() as u32 }
        };
        let (n, v) = (span(name), span(value));
        self.room.own().list.push(Field { name: n, value: v, known: Known::of(name), own: false, coded: UNCODED });
    }

    /// An empty section with room for fields of so many octets.
    pub fn with_room(octets: usize) -> Self {
        let mut fields = Self::default();
        fields.room.own().octets.reserve(octets + OWN);
        fields
    }

    /// Adds a field.
    pub fn push(&mut self, name: &[u8], value: &[u8]) {
        self.push_as(Known::of(name), name, value);
    }

    /// Adds a field that is known already.
    pub fn push_as(&mut self, known: Known, name: &[u8], value: &[u8]) {
        self.push_own(known, UNCODED, name, value);
    }

    /// Adds a field that HTTP/2 may have as it is: its name is a token in small letters, its value has what may stand in one, and no blanks around it. `coded` is how HPACK
    /// writes it (`hpack::put_numbered`).
    pub fn push_coded(&mut self, known: Known, coded: u8, name: &[u8], value: &[u8]) {
        self.push_own(known, coded, name, value);
    }

    #[inline]
    fn push_own(&mut self, known: Known, coded: u8, name: &[u8], value: &[u8]) {
        let Own { octets, list } = self.room.own();
        let mut span = |part: &[u8]| {
            let start = octets.len() as u32;
            octets.extend_from_slice(part);
            Span { start, len: part.len() as u32 }
        };
        let (n, v) = (span(name), span(value));
        list.push(Field { name: n, value: v, known, own: true, coded });
    }

    fn text(&self, own: bool, span: Span) -> &[u8] {
        let from: &[u8] = if own { self.room.octets() } else { &self.wire };
        &from[span.start as usize..(span.start + span.len) as usize]
    }

    /// Every field, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Known, &[u8], &[u8])> {
        self.room.list().iter().map(|f| (f.known, self.text(f.own, f.name), self.text(f.own, f.value)))
    }

    /// Every field, in order; with what [`Self::push_coded`] was given, of those that were added so.
    pub fn iter_coded(&self) -> impl Iterator<Item = (Known, Option<u8>, &[u8], &[u8])> {
        let coded = |f: &Field| (f.coded != UNCODED).then_some(f.coded);
        self.room.list().iter().map(move |f| (f.known, coded(f), self.text(f.own, f.name), self.text(f.own, f.value)))
    }

    /// Every field, in order, as HTTP/1 has them: fields that stand in the buffer one after the other just as they would be written are one piece.
    pub fn pieces(&self, mut put: impl FnMut(Piece<'_>)) {
        let mut rest = self.room.list();
        while let [first, others @ ..] = rest {
            rest = others;
            if !self.is_as_written(first) {
                put(Piece::Field(self.text(first.own, first.name), self.text(first.own, first.value)));
                continue;
            }
            let mut end = first.value.end();
            while let [next, others @ ..] = rest
                && self.is_as_written(next)
                && next.name.start as usize == end + 2
                && self.wire[end..end + 2] == *b"\r\n"
            {
                (end, rest) = (next.value.end(), others);
            }
            put(Piece::Lines(&self.wire[first.name.start as usize..end]));
        }
    }

    /// Whether it stands in the buffer as `NAME: VALUE`.
    fn is_as_written(&self, f: &Field) -> bool {
        let end = f.name.end();
        !f.own && f.value.len > 0 && f.value.start as usize == end + 2 && self.wire[end..end + 2] == *b": "
    }

    /// The values of a known field, in order.
    pub fn all(&self, known: Known) -> impl Iterator<Item = &[u8]> {
        self.room.list().iter().filter(move |f| f.known == known).map(|f| self.text(f.own, f.value))
    }

    /// The first value of a known field.
    pub fn first(&self, known: Known) -> Option<&[u8]> {
        self.all(known).next()
    }

    /// Keeps the fields for which `keep` says so.
    pub fn retain(&mut self, mut keep: impl FnMut(Known, &[u8], &[u8]) -> bool) {
        let Some(Own { octets, list }) = self.room.0.as_deref_mut() else { return };
        list.retain(|f| {
            let from: &[u8] = if f.own { octets } else { &self.wire };
            let text = |s: Span| &from[s.start as usize..(s.start + s.len) as usize];
            keep(f.known, text(f.name), text(f.value))
        });
    }

    /// The values of every field of a name, in order.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        let is_named =
            move |f: &&Field| f.name.len as usize == name.len() && self.text(f.own, f.name).eq_ignore_ascii_case(name.as_bytes());
        self.room.list().iter().filter(is_named).map(|f| self.text(f.own, f.value))
    }

    /// Takes every field of a name out.
    pub fn remove_named(&mut self, name: &str) {
        // Names are compared of those alone that are of its kind.
        let kind = Known::of(name.as_bytes());
        self.retain(|known, n, _| known != kind || !n.eq_ignore_ascii_case(name.as_bytes()));
    }

    /// Takes every field of a kind out.
    pub fn remove(&mut self, known: Known) {
        if let Some(own) = &mut self.room.0 {
            own.list.retain(|f| f.known != known);
        }
    }

    pub fn len(&self) -> usize {
        self.room.list().len()
    }

    pub fn is_empty(&self) -> bool {
        self.room.list().is_empty()
    }
}

/// What routes may change: whatever they say, framing, this hop's own fields and what only weft may say are left alone.
impl HeaderEdit for Fields {
    fn set(&mut self, name: &str, value: &str) {
        if is_free(name) {
            self.remove_named(name);
            self.push(name.as_bytes(), value.as_bytes());
        }
    }

    fn add(&mut self, name: &str, value: &str) {
        if is_free(name) {
            self.push(name.as_bytes(), value.as_bytes());
        }
    }

    fn remove(&mut self, name: &str) {
        if is_free(name) {
            self.remove_named(name);
        }
    }
}

fn is_free(name: &str) -> bool {
    use Known::{
        Connection, ContentLength, Http2Settings, KeepAlive, ProxyConnection, Te, Trailer, TransferEncoding, Upgrade, Weft,
    };
    !matches!(
        Known::of(name.as_bytes()),
        Connection
            | ContentLength
            | Http2Settings
            | KeepAlive
            | ProxyConnection
            | Te
            | Trailer
            | TransferEncoding
            | Upgrade
            | Weft
    )
}

/// The elements of a comma-separated list, trimmed, without the empty ones (RFC 9110, section 5.6.1).
pub fn list_elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|e| !e.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_case_and_duplicates_are_kept() {
        let wire = Bytes::from_static(b"X-A: 1\r\nx-a: 2\r\n");
        let mut f = Fields::over(wire.clone());
        f.push_wire(&wire[0..3], &wire[5..6]);
        f.push(b"Own", b"value");
        f.push_wire(&wire[8..11], &wire[13..14]);
        let all: Vec<_> = f.iter().map(|(_, n, v)| (n.to_vec(), v.to_vec())).collect();
        assert_eq!(
            all,
            [(b"X-A".to_vec(), b"1".to_vec()), (b"Own".to_vec(), b"value".to_vec()), (b"x-a".to_vec(), b"2".to_vec())]
        );
    }

    #[test]
    fn what_a_section_lay_in_is_used_again_and_empty() {
        // A thread of its own: whatever else ran on this one has left rooms behind.
        let kept = || ROOMS.with_borrow(Vec::len);
        let thread = std::thread::spawn(move || {
            let mut fields = Fields::default();
            assert!(fields.is_empty() && fields.first(Known::Host).is_none());
            fields.push(b"host", b"a");
            let copy = fields.clone();
            drop(fields);
            assert_eq!((kept(), copy.first(Known::Host)), (1, Some(&b"a"[..])));
            let mut fields = Fields::with_room(100);
            assert_eq!((kept(), fields.len()), (0, 0));
            fields.push(b"via", b"b");
            assert_eq!(fields.iter().collect::<Vec<_>>(), [(Known::Other, &b"via"[..], &b"b"[..])]);
            fields.push(b"x-long", &[b'x'; 2 * MOST_KEPT.0]);
            drop((fields, copy));
            assert_eq!(kept(), 1, "what is large is given back");
            let mut many: Vec<Fields> = (0..2 * KEPT).map(|_| Fields::with_room(0)).collect();
            many.clear();
            assert_eq!(kept(), KEPT);
        });
        thread.join().expect("it holds");
    }

    #[test]
    fn routes_change_fields_but_not_framing_nor_what_weft_says() {
        let mut fields = Fields::default();
        for (n, v) in [("A", "1"), ("b", "2"), ("a", "3"), ("C", "4"), ("Content-Length", "5")] {
            fields.push(n.as_bytes(), v.as_bytes());
        }
        let pair = |n: &str, v: &str| (n.into(), v.into());
        let change = weft_core::traffic::route::HeaderChange {
            set: vec![pair("a", "x"), pair("content-length", "0"), pair("weft-client-id", "me")],
            add: vec![pair("b", "y"), pair("c", "z"), pair("transfer-encoding", "chunked")],
            remove: vec!["c".into(), "content-length".into()],
        };
        weft_core::traffic::apply::change_headers(&change, &mut fields);
        let all: Vec<_> = fields.iter().map(|(_, n, v)| (n.to_vec(), v.to_vec())).collect();
        let want = [("b", "2"), ("Content-Length", "5"), ("a", "x"), ("b", "y")];
        assert_eq!(all, want.map(|(n, v)| (n.as_bytes().to_vec(), v.as_bytes().to_vec())));
    }

    #[test]
    fn weft_fields_are_known_by_any_spelling() {
        for name in ["weft-client-id", "WEFT-Client-ID", "weft_client_id", "Weft_x"] {
            assert_eq!(Known::of(name.as_bytes()), Known::Weft, "{name}");
        }
        for name in ["weft", "weftx-a", "x-weft-a"] {
            assert_eq!(Known::of(name.as_bytes()), Known::Other, "{name}");
        }
    }
}
