//! HPACK's Huffman code (RFC 7541, appendix B). It is canonical: how long the code of each octet is says all of it.

/// How long the code of each octet is, in bits, and of the end of a string, which is never sent.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28,
    28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7,
    6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24,
    23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22,
    23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27,
    26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25,
    24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

const LONGEST: usize = 30;
/// The end of a string.
const END: u16 = 256;
/// Codes of so many bits are looked up at once: all of letters and digits.
const SHORT: usize = 8;

/// No string was written so.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a string is not of the Huffman code")]
pub struct Invalid;

struct Code {
    /// By their codes: the shorter first, of one length the smaller first.
    symbols: [u16; 257],
    /// For each length where its symbols begin, and its first code.
    first: [(u16, u32); LONGEST + 1],
    /// For each length the first code that is longer, at the left of 64 bits.
    beyond: [u64; LONGEST + 1],
    /// For what begins with these bits: the symbol and the length of its code, 0 where it is longer.
    short: [(u8, u8); 1 << SHORT],
}

static CODE: Code = code();

const fn code() -> Code {
    let mut made =
        Code { symbols: [0; 257], first: [(0, 0); LONGEST + 1], beyond: [0; LONGEST + 1], short: [(0, 0); 1 << SHORT] };
    let (mut length, mut next, mut known) = (1, 0u32, 0);
    while length <= LONGEST {
        next <<= 1;
        made.first[length] = (known as u16, next);
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == length {
                made.symbols[known] = symbol as u16;
                if length <= SHORT {
                    let mut rest = 0;
                    while rest < 1 << (SHORT - length) {
                        made.short[((next as usize) << (SHORT - length)) + rest] = (symbol as u8, length as u8);
                        rest += 1;
                    }
                }
                (known, next) = (known + 1, next + 1);
            }
            symbol += 1;
        }
        made.beyond[length] = if (next as u64) < 1 << length { (next as u64) << (64 - length) } else { u64::MAX };
        length += 1;
    }
    made
}

/// The symbol whose code `bits` begin with, and how long that is.
fn symbol(bits: u64) -> (u16, u32) {
    let (symbol, length) = CODE.short[(bits >> (64 - SHORT)) as usize];
    if length > 0 {
        return (u16::from(symbol), u32::from(length));
    }
    let mut length = SHORT + 1;
    while length < LONGEST && bits >= CODE.beyond[length] {
        length += 1;
    }
    let (place, first) = CODE.first[length];
    let code = (bits >> (64 - length)) as u32;
    (CODE.symbols[usize::from(place) + (code - first) as usize], length as u32)
}

/// Appends what `from` says. What is left of the last octet is the beginning of the string's end (RFC 7541, section 5.2).
pub(super) fn decode(from: &[u8], to: &mut Vec<u8>) -> Result<(), Invalid> {
    let (mut bits, mut held) = (0u64, 0u32);
    let mut rest = from.iter();
    loop {
        while held <= 56
            && let Some(octet) = rest.next()
        {
            bits |= u64::from(*octet) << (56 - held);
            held += 8;
        }
        if held == 0 {
            return Ok(());
        }
        let (symbol, length) = symbol(bits);
        if length > held {
            let is_end = held < 8 && bits == !(u64::MAX >> held);
            return if is_end { Ok(()) } else { Err(Invalid) };
        }
        if symbol == END {
            return Err(Invalid);
        }
        to.push(symbol as u8);
        bits <<= length;
        held -= length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(from: &[u8]) -> Result<Vec<u8>, Invalid> {
        let mut to = Vec::new();
        decode(from, &mut to).map(|()| to)
    }

    /// The code of a symbol, written bit by bit.
    fn encode(text: &[u8]) -> Vec<u8> {
        use std::fmt::Write;

        let mut bits = String::new();
        for octet in text {
            let place = CODE.symbols.iter().position(|s| *s == u16::from(*octet)).expect("every octet has a code");
            let length = usize::from(LENGTHS[usize::from(*octet)]);
            let (first, code) = CODE.first[length];
            write!(bits, "{:0length$b}", code as usize + place - usize::from(first)).expect("a string takes it");
        }
        bits += &"1".repeat((8 - bits.len() % 8) % 8);
        bits.as_bytes().chunks(8).map(|octet| octet.iter().fold(0, |n, bit| n << 1 | (bit - b'0'))).collect()
    }

    #[test]
    fn the_examples_of_the_rfc_are_read() {
        // RFC 7541, appendices C.4 and C.6.
        for (octets, text) in [
            (&[0xf1, 0xe3, 0xc2, 0xe5, 0xf2, 0x3a, 0x6b, 0xa0, 0xab, 0x90, 0xf4, 0xff][..], "www.example.com"),
            (&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf], "no-cache"),
            (&[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7f], "custom-key"),
            (&[0x64, 0x02], "302"),
            (&[], ""),
        ] {
            assert_eq!(decoded(octets), Ok(text.as_bytes().to_vec()));
            assert_eq!(encode(text.as_bytes()), octets);
        }
    }

    #[test]
    fn every_octet_comes_back() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decoded(&encode(&all)), Ok(all.clone()));
        for octet in all {
            assert_eq!(decoded(&encode(&[octet; 3])), Ok(vec![octet; 3]), "{octet}");
        }
    }

    #[test]
    fn what_is_no_end_is_refused() {
        // A whole octet of padding, padding of zeros, the end itself.
        for octets in [&[0xff][..], &[0x60], &[0xff, 0xff, 0xff, 0xff], &[0x07, 0xff]] {
            assert_eq!(decoded(octets), Err(Invalid), "{octets:x?}");
        }
    }
}
