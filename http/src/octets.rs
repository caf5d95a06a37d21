//! Octets of a text, eight at a time: whether any is one that is looked for.

/// One in each octet of a word, and the highest bit of each.
const ONES: u64 = 0x0101_0101_0101_0101;
const TOPS: u64 = ONES << 7;

/// Whether `odd` finds something in any eight octets of these: it has the top of an octet set. What is missing of eight are letters.
#[inline]
pub fn any(text: &[u8], odd: impl Fn(u64) -> u64) -> bool {
    let (words, rest) = text.as_chunks::<8>();
    let last = text.last_chunk::<8>().copied().unwrap_or_else(|| {
        let mut last = [b'a'; 8];
        last[..rest.len()].copy_from_slice(rest);
        last
    });
    words.iter().fold(odd(u64::from_ne_bytes(last)), |all, word| all | odd(u64::from_ne_bytes(*word))) & TOPS != 0
}

/// The tops of those of a word's octets that are below `least`, of ASCII, and perhaps of some beside one of them.
#[inline]
pub const fn below(word: u64, least: u8) -> u64 {
    word.wrapping_sub(ONES * least as u64) & !word
}

/// The same of those that are this one.
#[inline]
pub const fn are(word: u64, octet: u8) -> u64 {
    below(word ^ (ONES * octet as u64), 1)
}
