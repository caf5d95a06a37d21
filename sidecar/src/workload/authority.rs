//! A client of a Unix socket has no host to name. Some, gRPC's own core among them, name the socket's path with its slashes escaped, which no URI has for
//! an authority, so that HTTP/2's reader resets the stream. Nothing depends on the name here, and so `%` becomes `-` in it before it is read.
//!
//! What comes in is followed byte by byte as far as frames (RFC 9113) and the lengths of header fields (RFC 7541) go; nothing is decoded, and nothing but
//! that one value is touched.

const PREFACE: usize = 24;
const FRAME_HEADER: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const PADDED: u8 = 0x08;
const PRIORITY: u8 = 0x20;
/// `:authority` in the static table, and as it is written out.
const AUTHORITY: u32 = 1;
const NAME: &[u8] = b":authority";

/// One connection's bytes, from client to server.
pub(super) struct Authority {
    preface: usize,
    head: [u8; FRAME_HEADER],
    read: usize,
    /// Bytes of the frame's payload that are still to come.
    left: usize,
    /// Of these, padding at the end.
    padding: usize,
    /// Bytes before the header block; none where the frame has no header block.
    before: Option<usize>,
    is_padded: bool,
    at: At,
}

/// Where in a header block.
#[derive(Clone, Copy)]
enum At {
    Field,
    Integer { value: u32, shift: u32, then: Then },
    Length { then: Part },
    Name { left: u32, same: Option<usize> },
    Value { left: u32, of_authority: bool },
}

/// What an integer is.
#[derive(Clone, Copy)]
enum Then {
    /// An index, or a table's size.
    Nothing,
    /// The name of a literal.
    Name,
    Length {
        huffman: bool,
        part: Part,
    },
}

/// What a text is.
#[derive(Clone, Copy)]
enum Part {
    Name,
    Value { of_authority: bool },
}

impl Default for Authority {
    fn default() -> Self {
        Self {
            preface: PREFACE,
            head: [0; FRAME_HEADER],
            read: 0,
            left: 0,
            padding: 0,
            before: None,
            is_padded: false,
            at: At::Field,
        }
    }
}

impl Authority {
    /// Follows what came in next, and mends it in place.
    pub(super) fn mend(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            if self.preface > 0 {
                self.preface -= 1;
            } else if self.left == 0 {
                self.head[self.read] = *byte;
                self.read += 1;
                if self.read == FRAME_HEADER {
                    self.read = 0;
                    self.begin();
                }
            } else {
                self.left -= 1;
                self.payload(byte);
            }
        }
    }

    fn begin(&mut self) {
        let [a, b, c, kind, flags, ..] = self.head;
        self.left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        (self.padding, self.is_padded) = (0, false);
        self.before = match kind {
            HEADERS => {
                self.at = At::Field;
                self.is_padded = flags & PADDED != 0;
                Some(usize::from(self.is_padded) + if flags & PRIORITY == 0 { 0 } else { 5 })
            }
            CONTINUATION => Some(0),
            _ => None,
        };
    }

    fn payload(&mut self, byte: &mut u8) {
        match &mut self.before {
            None => {}
            Some(0) if self.left >= self.padding => self.block(byte),
            Some(0) => {}
            Some(before) => {
                *before -= 1;
                if std::mem::take(&mut self.is_padded) {
                    self.padding = usize::from(*byte);
                }
            }
        }
    }

    fn block(&mut self, byte: &mut u8) {
        self.at = match self.at {
            At::Field => match *byte {
                b if b & 0x80 != 0 => integer(b, 7, Then::Nothing),
                b if b & 0x40 != 0 => integer(b, 6, Then::Name),
                b if b & 0x20 != 0 => integer(b, 5, Then::Nothing),
                b => integer(b, 4, Then::Name),
            },
            At::Integer { value, shift, then } => {
                let more = u32::from(*byte & 0x7f).checked_shl(shift).unwrap_or(u32::MAX);
                let value = value.saturating_add(more);
                if *byte & 0x80 == 0 { after(value, then) } else { At::Integer { value, shift: shift.saturating_add(7), then } }
            }
            At::Length { then } => integer(*byte, 7, Then::Length { huffman: *byte & 0x80 != 0, part: then }),
            At::Name { left, same } => name(left - 1, same.filter(|at| NAME.get(*at) == Some(byte)).map(|at| at + 1)),
            At::Value { left, of_authority } => {
                if of_authority && *byte == b'%' {
                    *byte = b'-';
                }
                value(left - 1, of_authority)
            }
        };
    }
}

/// An integer whose first byte has so many bits of it (RFC 7541, section 5.1).
fn integer(byte: u8, bits: u32, then: Then) -> At {
    let most = (1_u32 << bits) - 1;
    let value = u32::from(byte) & most;
    if value < most { after(value, then) } else { At::Integer { value, shift: 0, then } }
}

fn after(number: u32, then: Then) -> At {
    match then {
        Then::Nothing => At::Field,
        Then::Name if number == 0 => At::Length { then: Part::Name },
        Then::Name => At::Length { then: Part::Value { of_authority: number == AUTHORITY } },
        Then::Length { huffman, part: Part::Name } => name(number, (!huffman).then_some(0)),
        Then::Length { huffman, part: Part::Value { of_authority } } => value(number, of_authority && !huffman),
    }
}

/// In a name of which so many bytes are to come; `same` counts those that are `:authority`'s, as long as all are.
fn name(left: u32, same: Option<usize>) -> At {
    match left {
        0 => At::Length { then: Part::Value { of_authority: same == Some(NAME.len()) } },
        _ => At::Name { left, same },
    }
}

/// In a value of which so many bytes are to come.
fn value(left: u32, of_authority: bool) -> At {
    if left == 0 { At::Field } else { At::Value { left, of_authority } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        [&[0, (payload.len() >> 8) as u8, payload.len() as u8, kind, flags, 0, 0, 0, 1][..], payload].concat()
    }

    fn literal(first: &[u8], value: &[u8]) -> Vec<u8> {
        [first, &[value.len() as u8], value].concat()
    }

    /// What becomes of frames, however they are cut into pieces.
    fn mended(frames: &[u8]) -> Vec<u8> {
        let whole = [&[b'P'; PREFACE][..], frames].concat();
        let mut outcomes = [1, 2, 3, 7, whole.len()].map(|size| {
            let (mut all, mut authority) = (whole.clone(), Authority::default());
            all.chunks_mut(size).for_each(|piece| authority.mend(piece));
            all.split_off(PREFACE)
        });
        assert!(outcomes.iter().all(|o| *o == outcomes[0]));
        std::mem::take(&mut outcomes[0])
    }

    #[test]
    fn only_the_authority_of_a_header_block_is_mended() {
        let path = b"run%2Fweft%2Fsocket";
        let own = [0x83, 0x3f, 0x10];
        let long = [&[0x40, 3][..], b"x-y", &[0x7f, 0x49], &[b'%'; 200]].concat();
        let other = literal(&[0x44], b"/a%2Fb");
        let block = |authority: &[u8]| [&own[..], &other, &long, &literal(&[0x41], authority), &other].concat();
        let data = literal(&[0x41], path);
        for first in [0x41, 0x01, 0x11] {
            let (mut before, mut after) = (block(path), block(b"run-2Fweft-2Fsocket"));
            let at = own.len() + other.len() + long.len();
            (before[at], after[at]) = (first, first);
            assert_eq!(mended(&frame(HEADERS, 4, &before)), frame(HEADERS, 4, &after), "first byte {first:#x}");
        }
        let written = |path| frame(HEADERS, 4, &[&[0x40][..], &literal(&[], NAME), &literal(&[], path)].concat());
        assert_eq!(mended(&written(&path[..])), written(b"run-2Fweft-2Fsocket"));
        let all = |a: &[u8]| {
            let block = block(a);
            let padded = [&[4][..], &[0; 5], &block, b"%%%%"].concat();
            let (one, two) = block.split_at(block.len() - 20);
            [
                frame(4, 0, b"%%%%%%"),
                frame(HEADERS, 0x2c, &padded),
                frame(0, 0, &data),
                frame(HEADERS, 0, one),
                frame(CONTINUATION, 4, two),
                frame(0, 1, &data),
            ]
            .concat()
        };
        assert_eq!(mended(&all(path)), all(b"run-2Fweft-2Fsocket"));
    }

    #[test]
    fn a_coded_authority_and_garbage_are_left_alone() {
        let coded = [&[0x41, 0x85][..], b"%%%%%"].concat();
        assert_eq!(mended(&frame(HEADERS, 4, &coded)), frame(HEADERS, 4, &coded));
        let mut authority = Authority::default();
        for seed in 0..2000_u32 {
            let mut bytes: Vec<u8> =
                (0..64).map(|i| (seed.wrapping_mul(2_654_435_761).wrapping_add(i * 40_503) >> 7) as u8).collect();
            authority.mend(&mut bytes);
        }
    }
}
