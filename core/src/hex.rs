//! Bytes as lower-case hexadecimal digits.

/// The two digits of each byte.
pub const PAIRS: [[u8; 2]; 256] = {
    let digits = b"0123456789abcdef";
    let mut all = [[b'0'; 2]; 256];
    let mut n = 0;
    while n < all.len() {
        all[n] = [digits[n >> 4], digits[n & 15]];
        n += 1;
    }
    all
};

/// Two digits for each byte.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().flat_map(|b| PAIRS[usize::from(*b)]).map(char::from).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn two_digits_for_each_byte() {
        assert_eq!(super::hex(&[0, 0x0f, 0xf0, 0xab]), "000ff0ab");
    }
}
