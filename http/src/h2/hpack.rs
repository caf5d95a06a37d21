//! HPACK (RFC 7541): how HTTP/2 writes field sections.
//!
//! What comes is read with the dynamic table that its sender keeps with us. What goes is written without one, and without Huffman's code: both save octets, which cost little between neighbours, for
//! the work of whoever writes and reads them.

use std::collections::VecDeque;
use std::ops::{Range, RangeInclusive};

use super::huffman;
use crate::fields::Known;

/// The most that a sender may have us keep, in octets as HPACK counts them: what it is before anything is said (RFC 9113, section 6.5.2).
const TABLE: usize = 4096;
/// What an entry counts beside its octets (RFC 7541, section 4.1).
pub const ENTRY: usize = 32;

/// The static table (RFC 7541, appendix A); the first has number 1.
#[rustfmt::skip]
const STATIC: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"), (":scheme", "http"), (":scheme", "https"),
    (":status", "200"), (":status", "204"), (":status", "206"), (":status", "304"), (":status", "400"), (":status", "404"), (":status", "500"),
    ("accept-charset", ""), ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""), ("accept", ""),
    ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""), ("cache-control", ""), ("content-disposition", ""),
    ("content-encoding", ""), ("content-language", ""), ("content-length", ""), ("content-location", ""), ("content-range", ""), ("content-type", ""),
    ("cookie", ""), ("date", ""), ("etag", ""), ("expect", ""), ("expires", ""), ("from", ""), ("host", ""), ("if-match", ""), ("if-modified-since", ""),
    ("if-none-match", ""), ("if-range", ""), ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""), ("location", ""), ("max-forwards", ""),
    ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""), ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""),
    ("set-cookie", ""), ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""), ("via", ""), ("www-authenticate", ""),
];

/// The longest name of the static table, in octets.
const LONGEST: usize = 27;

/// By the length of a name, the numbers of those in the static table that have it.
static BY_LENGTH: [[u8; 16]; LONGEST + 1] = by_length();

const fn by_length() -> [[u8; 16]; LONGEST + 1] {
    let mut made = [[0; 16]; LONGEST + 1];
    let mut at = 0;
    while at < STATIC.len() {
        let length = STATIC[at].0.len();
        let mut place = 0;
        while made[length][place] != 0 {
            place += 1;
        }
        made[length][place] = at as u8 + 1;
        at += 1;
    }
    made
}

/// No field section is written so; the connection's two ends do not agree on anything any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Invalid {
    #[error("a field section ends too early")]
    Short,
    #[error("a number is too large")]
    Number,
    #[error("there is no field {0}")]
    Index(usize),
    #[error("the table of fields is made larger than it may be, or within a section")]
    Size,
    #[error(transparent)]
    Huffman(#[from] huffman::Invalid),
    #[error("a field section is far too large")]
    Large,
}

/// What is known of a field by its place in a table, and need not be looked for again.
#[derive(Clone, Copy, Debug)]
pub struct Of {
    pub known: Known,
    /// The number of its name in the static table, or 0.
    pub number: u8,
    /// Its value is known to be one, too, with no blanks around it.
    pub is_whole: bool,
}

/// A field as it comes. Of one of which nothing is known, neither name nor value may be what they ought to.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    pub name: &'a [u8],
    pub value: &'a [u8],
    pub of: Option<Of>,
    /// Its sender wants nobody to keep it (RFC 7541, section 6.2.3).
    pub is_secret: bool,
}

struct Entry {
    /// The name, and then the value.
    text: Box<[u8]>,
    name: usize,
    of: Option<Of>,
}

/// What a name of the static table is.
fn known_of(number: usize) -> Known {
    match number {
        28 => Known::ContentLength,
        31 => Known::ContentType,
        32 => Known::Cookie,
        35 => Known::Expect,
        38 => Known::Host,
        57 => Known::TransferEncoding,
        _ => Known::Other,
    }
}

/// A string that came: as it stands in the section, or where it was decoded to.
enum Text<'a> {
    Plain(&'a [u8]),
    Decoded(Range<usize>),
}

impl<'a> Text<'a> {
    fn within(self, decoded: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Plain(text) => text,
            Self::Decoded(range) => &decoded[range],
        }
    }
}

/// Reads what one sender writes.
#[derive(Default)]
pub struct Decoder {
    /// The newest first.
    entries: VecDeque<Entry>,
    octets: usize,
    /// How much less than [`TABLE`] the sender uses.
    less: usize,
    text: Vec<u8>,
}

impl Decoder {
    /// Gives each field of a whole section to `field`, which may find that it is too much, and says what is known of it when it comes again.
    pub fn decode(
        &mut self,
        section: &[u8],
        mut field: impl FnMut(Line<'_>) -> Result<Option<Of>, Invalid>,
    ) -> Result<(), Invalid> {
        let mut rest = section;
        let mut begins = true;
        while let Some(first) = rest.first().copied() {
            if first & 0x80 != 0 {
                let index = integer(&mut rest, 7)?;
                field(self.at(index)?)?;
            } else if first & 0xe0 == 0x20 {
                let size = integer(&mut rest, 5)?;
                self.less = TABLE.checked_sub(size).filter(|_| begins).ok_or(Invalid::Size)?;
                self.evict(0);
                continue;
            } else {
                let (keeps, is_secret) = (first & 0x40 != 0, first & 0xf0 == 0x10);
                let index = integer(&mut rest, if keeps { 6 } else { 4 })?;
                let mut text = std::mem::take(&mut self.text);
                text.clear();
                let name = if index == 0 { Some(string(&mut rest, &mut text)?) } else { None };
                let value = string(&mut rest, &mut text)?.within(&text);
                let line = match name {
                    Some(name) => Line { name: name.within(&text), value, of: None, is_secret },
                    None => {
                        let Line { name, of, .. } = self.at(index)?;
                        Line { name, value, of: of.map(|of| Of { is_whole: false, ..of }), is_secret }
                    }
                };
                let of = field(line)?;
                if keeps {
                    let entry = Entry { text: [line.name, value].concat().into(), name: line.name.len(), of };
                    self.keep(entry);
                }
                self.text = text;
            }
            begins = false;
        }
        Ok(())
    }

    /// Gives back the room that is not needed between sections.
    pub fn rest(&mut self) {
        self.text = Vec::new();
    }

    fn at(&self, index: usize) -> Result<Line<'_>, Invalid> {
        if let Some((name, value)) = index.checked_sub(1).and_then(|at| STATIC.get(at)) {
            let of = Of { known: known_of(index), number: index as u8, is_whole: true };
            return Ok(Line { name: name.as_bytes(), value: value.as_bytes(), of: Some(of), is_secret: false });
        }
        let entry = index.checked_sub(STATIC.len() + 1).and_then(|at| self.entries.get(at)).ok_or(Invalid::Index(index))?;
        let (name, value) = entry.text.split_at(entry.name);
        Ok(Line { name, value, of: entry.of, is_secret: false })
    }

    fn keep(&mut self, entry: Entry) {
        let size = entry.text.len() + ENTRY;
        self.evict(size);
        // One that is larger than the table leaves it empty (RFC 7541, section 4.4).
        if size <= TABLE - self.less {
            self.octets += size;
            self.entries.push_front(entry);
        }
    }

    /// Makes room for an entry of `size`.
    fn evict(&mut self, size: usize) {
        while self.octets + size > TABLE - self.less
            && let Some(oldest) = self.entries.pop_back()
        {
            self.octets -= oldest.text.len() + ENTRY;
        }
    }
}

/// Takes a number off the front, of whose first octet the last `prefix` bits belong to it (RFC 7541, section 5.1).
fn integer(from: &mut &[u8], prefix: u32) -> Result<usize, Invalid> {
    let mask = (1 << prefix) - 1;
    let (first, mut rest) = from.split_first().ok_or(Invalid::Short)?;
    let mut number = usize::from(first & mask as u8);
    if number == mask {
        let mut shift = 0;
        loop {
            let (octet, after) = rest.split_first().ok_or(Invalid::Short)?;
            rest = after;
            number += usize::from(octet & 0x7f) << shift;
            if octet & 0x80 == 0 {
                break;
            }
            shift += 7;
            if shift > 21 {
                return Err(Invalid::Number);
            }
        }
    }
    *from = rest;
    Ok(number)
}

/// Takes a string off the front (RFC 7541, section 5.2); one in Huffman's code is decoded to the end of `to`.
fn string<'a>(from: &mut &'a [u8], to: &mut Vec<u8>) -> Result<Text<'a>, Invalid> {
    let is_huffman = from.first().is_some_and(|first| first & 0x80 != 0);
    let length = integer(from, 7)?;
    let (text, rest) = from.split_at_checked(length).ok_or(Invalid::Short)?;
    *from = rest;
    if !is_huffman {
        return Ok(Text::Plain(text));
    }
    let begins = to.len();
    huffman::decode(text, to)?;
    Ok(Text::Decoded(begins..to.len()))
}

#[inline]
fn put_integer(out: &mut Vec<u8>, first: u8, prefix: u32, number: usize) {
    let mask = (1 << prefix) - 1;
    if number < mask {
        out.push(first | number as u8);
    } else {
        put_large(out, first, mask, number);
    }
}

fn put_large(out: &mut Vec<u8>, first: u8, mask: usize, mut number: usize) {
    out.push(first | mask as u8);
    number -= mask;
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn put_string(out: &mut Vec<u8>, text: &[u8]) {
    put_integer(out, 0, 7, text.len());
    out.extend_from_slice(text);
}

/// Says that no table is kept: once, at the beginning of the first section (RFC 7541, section 4.2). Whatever size a receiver allows later is enough.
pub fn put_no_table(out: &mut Vec<u8>) {
    put_integer(out, 0x20, 5, 0);
}

/// Writes a field, whose name is in lower case. What a proxy should not keep is marked so (RFC 7541, section 7.1.3).
pub fn put(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    put_numbered(out, number_of(name), name, value);
}

/// The number of a name in the static table, or 0.
pub fn number_of(name: &[u8]) -> u8 {
    let alike = BY_LENGTH.get(name.len()).into_iter().flatten().copied().take_while(|number| *number != 0);
    let is_named = |number: &u8| {
        let known = STATIC[usize::from(*number) - 1].0.as_bytes();
        // Of one length few end alike.
        known.last() == name.last() && known == name
    };
    alike.into_iter().find(is_named).unwrap_or(0)
}

/// Added to the number of a name where its sender wants nobody to keep the field.
pub const SECRET: u8 = 0x40;

/// Writes a field of which the number of its name in the static table is known, or 0 if it has none; and [`SECRET`].
pub fn put_numbered(out: &mut Vec<u8>, coded: u8, name: &[u8], value: &[u8]) {
    let (number, is_secret) = (coded & !SECRET, coded & SECRET != 0);
    // Of fields that are no pseudo-fields, one has a value there.
    if number == ACCEPT_ENCODING && !is_secret && value == STATIC[usize::from(ACCEPT_ENCODING) - 1].1.as_bytes() {
        return put_integer(out, 0x80, 7, number.into());
    }
    put_literal(out, number, is_secret, name, value);
}

/// The number of `accept-encoding` in the static table.
const ACCEPT_ENCODING: u8 = 16;

/// Writes a pseudo-field, of which these numbers are in the static table.
pub fn put_pseudo(out: &mut Vec<u8>, numbers: RangeInclusive<u8>, value: &[u8]) {
    let named = *numbers.start();
    match numbers.into_iter().find(|number| STATIC[usize::from(*number) - 1].1.as_bytes() == value) {
        Some(number) => put_integer(out, 0x80, 7, number.into()),
        None => put_literal(out, named, false, b"", value),
    }
}

fn put_literal(out: &mut Vec<u8>, number: u8, is_secret: bool, name: &[u8], value: &[u8]) {
    let is_secret = is_secret || matches!(number, 23 | 32 | 49 | 55);
    out.reserve(name.len() + value.len() + 16);
    put_integer(out, if is_secret { 0x10 } else { 0 }, 4, number.into());
    if number == 0 {
        put_string(out, name);
    }
    put_string(out, value);
}

/// Writes a field whatever stands in it: for tests.
#[cfg(test)]
pub fn put_as_it_is(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.push(0);
    put_string(out, name);
    put_string(out, value);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type List = Vec<(String, String)>;

    fn decode(decoder: &mut Decoder, section: &[u8]) -> Result<List, Invalid> {
        let mut all = Vec::new();
        let text = |t: &[u8]| String::from_utf8_lossy(t).into_owned();
        decoder.decode(section, |line| {
            all.push((text(line.name), text(line.value)));
            Ok(line.of)
        })?;
        Ok(all)
    }

    fn octets(hex: &str) -> Vec<u8> {
        let hex: Vec<u8> =
            hex.bytes().filter(u8::is_ascii_hexdigit).map(|d| (d as char).to_digit(16).unwrap_or(0) as u8).collect();
        hex.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
    }

    fn list(fields: &[(&str, &str)]) -> List {
        fields.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn names_of_the_static_table_are_what_they_are_by_their_text() {
        for (at, (name, value)) in STATIC.iter().enumerate() {
            assert_eq!(known_of(at + 1), Known::of(name.as_bytes()), "{name}");
            let with_value = !name.starts_with(':') && !value.is_empty();
            assert_eq!(with_value, at + 1 == usize::from(ACCEPT_ENCODING), "{name}");
        }
    }

    #[test]
    fn the_examples_of_the_rfc_are_read() {
        // RFC 7541, appendix C.4: three requests on one connection.
        let mut decoder = Decoder::default();
        let first = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com")];
        let got = decode(&mut decoder, &octets("8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff"));
        assert_eq!((got, decoder.octets), (Ok(list(&first)), 57));
        let got = decode(&mut decoder, &octets("8286 84be 5886 a8eb 1064 9cbf"));
        assert_eq!((got, decoder.octets), (Ok(list(&[&first[..], &[("cache-control", "no-cache")]].concat())), 110));
        let got = decode(&mut decoder, &octets("8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf"));
        let third = [
            (":method", "GET"),
            (":scheme", "https"),
            (":path", "/index.html"),
            (":authority", "www.example.com"),
            ("custom-key", "custom-value"),
        ];
        assert_eq!((got, decoder.octets), (Ok(list(&third)), 164));
    }

    #[test]
    fn the_table_is_as_large_as_its_sender_says_and_no_larger_than_it_may_be() {
        let mut decoder = Decoder::default();
        let mut section = Vec::new();
        for n in 0..200 {
            section.push(0x40);
            put_string(&mut section, format!("name-{n}").as_bytes());
            put_string(&mut section, &[b'v'; 40]);
        }
        decode(&mut decoder, &section).expect("a section");
        assert!(decoder.octets <= TABLE && decoder.octets > TABLE - 100, "{}", decoder.octets);
        let newest = decode(&mut decoder, &[0xbe]).expect("an entry");
        assert_eq!(newest[0].0, "name-199");
        // To 100 octets, where one entry has room, and back.
        let mut smaller = Vec::new();
        put_integer(&mut smaller, 0x20, 5, 100);
        smaller.push(0xbe);
        assert_eq!(decode(&mut decoder, &smaller), Ok(newest));
        assert_eq!((decoder.entries.len(), decode(&mut decoder, &[0xbf])), (1, Err(Invalid::Index(63))));
        let mut larger = Vec::new();
        put_integer(&mut larger, 0x20, 5, TABLE + 1);
        assert_eq!(decode(&mut decoder, &larger), Err(Invalid::Size));
        assert_eq!(decode(&mut decoder, &[0x82, 0x20]), Err(Invalid::Size));
        // One that is larger than the table empties it.
        let mut large = vec![0x40];
        put_string(&mut large, b"n");
        put_string(&mut large, &[b'v'; TABLE]);
        decode(&mut decoder, &large).expect("a section");
        assert_eq!((decoder.octets, decoder.entries.len()), (0, 0));
    }

    #[test]
    fn what_is_written_otherwise_is_refused() {
        for (hex, why) in [
            ("80", Invalid::Index(0)),
            ("be", Invalid::Index(62)),
            ("ff", Invalid::Short),
            ("ffffffffff7f", Invalid::Number),
            ("4005", Invalid::Short),
            ("400161ff", Invalid::Short),
            ("0001618100", Invalid::Huffman(huffman::Invalid)),
        ] {
            assert_eq!(decode(&mut Decoder::default(), &octets(hex)), Err(why), "{hex}");
        }
    }

    #[test]
    fn what_is_static_is_written_as_a_number() {
        let mut out = Vec::new();
        put_pseudo(&mut out, 2..=3, b"GET");
        put_pseudo(&mut out, 8..=14, b"404");
        put_pseudo(&mut out, 8..=14, b"418");
        for (name, value) in [("content-type", "a"), ("x", "y"), ("cookie", "c")] {
            put(&mut out, name.as_bytes(), value.as_bytes());
        }
        assert_eq!(out, octets("82 8d 08 0334 3138 0f10 0161 00 0178 0179 1f11 0163"));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(fields in prop::collection::vec(("[a-z-]{1,40}", "[ -~]{0,300}"), 0..40)) {
            let mut out = Vec::new();
            put_no_table(&mut out);
            for (name, value) in &fields {
                put(&mut out, name.as_bytes(), value.as_bytes());
            }
            prop_assert_eq!(decode(&mut Decoder::default(), &out), Ok(fields));
        }

        #[test]
        fn garbage_is_read_or_refused(section in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut decoder = Decoder::default();
            let _ = decode(&mut decoder, &section);
            prop_assert!(decoder.octets <= TABLE);
        }
    }
}
