//! The two facts that routing needs from a TLS `ClientHello` (RFC 8446, section 4.1.2): server name and ALPN.

/// What a client offers, as it claims.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientHello {
    /// The server name (RFC 6066, section 3): a routing hint, never policy input.
    pub server_name: Option<String>,
    /// The ALPN ids on offer (RFC 7301), in the client's order.
    pub alpn: Vec<Vec<u8>>,
    /// It carries another, encrypted one, or makes as if (RFC 9849, GREASE): which host is meant is not to be known.
    pub has_ech: bool,
}

impl ClientHello {
    /// Whether any id on offer is one of weft's.
    pub fn is_weft(&self) -> bool {
        self.alpn.iter().any(|id| crate::protocol::is_weft_alpn(id))
    }
}

pub(super) enum Parsed {
    More,
    Hello(ClientHello),
    No,
}

/// Reads a `ClientHello` that may span several records and arrive in any pieces.
pub(super) fn parse(bytes: &[u8]) -> Parsed {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        // A record: type 0x16, version 0x03xx, length of 1 to 2^14.
        for (i, ok) in [(0, &(0x16..=0x16)), (1, &(0x03..=0x03)), (2, &(0x00..=0x04))] {
            match rest.get(i) {
                Some(b) if !ok.contains(b) => return Parsed::No,
                None => return Parsed::More,
                Some(_) => {}
            }
        }
        let (Some(hi), Some(lo)) = (rest.get(3), rest.get(4)) else { return Parsed::More };
        let length = usize::from(u16::from_be_bytes([*hi, *lo]));
        if length == 0 || length > 1 << 14 {
            return Parsed::No;
        }
        let body = &rest[5..rest.len().min(5 + length)];
        message.extend_from_slice(body);
        match whole(&message) {
            Some(Ok(hello)) => return Parsed::Hello(hello),
            Some(Err(())) => return Parsed::No,
            None if body.len() < length => return Parsed::More,
            None => rest = &rest[5 + length..],
        }
    }
}

/// The handshake message once it is all there; an error as soon as it cannot be a `ClientHello`.
fn whole(message: &[u8]) -> Option<Result<ClientHello, ()>> {
    if *message.first()? != 0x01 {
        return Some(Err(()));
    }
    let header: &[u8; 4] = message.first_chunk()?;
    let length = usize::from(header[1]) << 16 | usize::from(header[2]) << 8 | usize::from(header[3]);
    if length > super::MAX_CLIENT_HELLO {
        return Some(Err(()));
    }
    let body = message.get(4..4 + length)?;
    Some(read_hello(body).ok_or(()))
}

fn read_hello(body: &[u8]) -> Option<ClientHello> {
    let mut r = Reader(body);
    r.take(2 + 32)?; // legacy_version, random
    r.vec8()?; // legacy_session_id
    r.vec16()?; // cipher_suites
    r.vec8()?; // legacy_compression_methods
    let mut hello = ClientHello::default();
    if r.0.is_empty() {
        return Some(hello);
    }
    let mut extensions = Reader(r.vec16()?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let mut data = Reader(extensions.vec16()?);
        match kind {
            0 => {
                let mut names = Reader(data.vec16()?);
                while !names.0.is_empty() {
                    let name_type = names.take(1)?[0];
                    let name = names.vec16()?;
                    if name_type == 0 && hello.server_name.is_none() {
                        hello.server_name = std::str::from_utf8(name).ok().map(str::to_ascii_lowercase);
                    }
                }
            }
            16 => {
                let mut ids = Reader(data.vec16()?);
                while !ids.0.is_empty() {
                    hello.alpn.push(ids.vec8()?.to_vec());
                }
            }
            0xfe0d => hello.has_ech = true,
            _ => {}
        }
    }
    Some(hello)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(n)?;
        self.0 = tail;
        Some(head)
    }
    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }
    fn vec8(&mut self) -> Option<&'a [u8]> {
        let n = self.take(1)?[0];
        self.take(usize::from(n))
    }
    fn vec16(&mut self) -> Option<&'a [u8]> {
        let n = self.u16()?;
        self.take(usize::from(n))
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::{Detection, MAX_CLIENT_HELLO, detect};
    use proptest::prelude::*;

    /// A `ClientHello` with these facts and `padding` bytes of an unknown extension, cut into records of `record` bytes.
    fn hello(name: &str, alpn: &[&[u8]], padding: usize, record: usize) -> Vec<u8> {
        let vec16 = |b: &[u8]| [&(b.len() as u16).to_be_bytes()[..], b].concat();
        let ext = |kind: u16, data: &[u8]| [&kind.to_be_bytes()[..], &vec16(data)].concat();
        let names = vec16(&[&[0_u8][..], &vec16(name.as_bytes())].concat());
        let ids: Vec<u8> = alpn.iter().flat_map(|id| [&[id.len() as u8][..], id].concat()).collect();
        let extensions = [ext(0, &names), ext(21, &vec![0; padding]), ext(16, &vec16(&ids))].concat();
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
        body.extend(vec16(&extensions));
        let mut message = vec![1, 0];
        message.extend((body.len() as u16).to_be_bytes());
        message.extend(body);
        message.chunks(record).flat_map(|c| [&[0x16, 3, 1][..], &(c.len() as u16).to_be_bytes(), c].concat()).collect()
    }

    #[test]
    fn server_name_and_alpn_are_read_across_records() {
        for record in [1, 7, 100, 16_000] {
            let bytes = hello("P80.Web.shop", &[b"weft/h1", b"h2"], 300, record);
            let Detection::Tls(h) = detect(&bytes) else { panic!("not detected with records of {record}") };
            assert_eq!(h.server_name.as_deref(), Some("p80.web.shop"));
            assert_eq!(h.alpn, [b"weft/h1".to_vec(), b"h2".to_vec()]);
            assert!(h.is_weft());
            assert_eq!(detect(&bytes[..bytes.len() - 1]), Detection::More);
        }
    }

    #[test]
    fn sixteen_kilobytes_are_waited_for_and_no_end_is_not() {
        assert!(matches!(detect(&hello("a", &[b"h2"], 16_000, 16_384)), Detection::Tls(_)));
        let endless = hello("a", &[], 60_000, 16_384);
        assert_eq!(detect(&endless[..MAX_CLIENT_HELLO]), Detection::Opaque);
    }

    proptest! {
        #[test]
        fn garbage_behind_a_record_header_never_panics(tail in proptest::collection::vec(any::<u8>(), 0..400)) {
            let bytes = [&[0x16, 3, 1][..], &tail].concat();
            let _ = detect(&bytes);
        }

        #[test]
        fn a_flipped_byte_never_panics(at in 0usize..400, to in any::<u8>()) {
            let mut bytes = hello("web", &[b"weft/tcp"], 200, 64);
            let at = at % bytes.len();
            bytes[at] = to;
            let _ = detect(&bytes);
        }
    }
}
