//! The first bytes of a connection, which come in any pieces.

use weft_core::detect::{Detection, MAX_CLIENT_HELLO, detect as look};

/// An answer is final: what is decided on the bytes that have come stays so, whatever follows. So the pieces in which
/// they come decide nothing.
pub fn detect(bytes: &[u8]) {
    let mut decided: Option<(usize, Detection)> = None;
    for n in prefixes(bytes.len()) {
        let now = look(&bytes[..n]);
        match &decided {
            Some((at, before)) => assert_eq!(&now, before, "decided at {at} bytes, and otherwise at {n}"),
            None if now != Detection::More => decided = Some((n, now)),
            None => {}
        }
    }
    assert!(decided.is_some() || bytes.len() < MAX_CLIENT_HELLO, "it waits for more than the limit");
}

/// Each short prefix, and some of the long ones: each would take time by the square.
fn prefixes(len: usize) -> impl Iterator<Item = usize> {
    let step = len / 64 + 1;
    (0..=len).filter(move |n| *n <= 256 || n % step == 0 || *n == len)
}

/// The records that carry a `ClientHello` do not matter, and it is waited for to its end. The first byte is the records'
/// size; the others are the message's body.
pub fn client_hello(bytes: &[u8]) {
    let Some((size, body)) = bytes.split_first() else { return };
    let message = [&[1][..], &(body.len() as u32).to_be_bytes()[1..], body].concat();
    let split = records(&message, 1 + usize::from(*size));
    if split.len() > MAX_CLIENT_HELLO {
        return;
    }
    let whole = look(&records(&message, 1 << 14));
    assert_eq!(look(&split), whole, "other records, another answer");
    for n in [split.len() - 1, split.len() / 2] {
        assert_eq!(look(&split[..n]), Detection::More, "decided at {n} of {} bytes", split.len());
    }
    match whole {
        Detection::Tls(hello) => {
            assert!(hello.server_name.is_none_or(|name| name == name.to_ascii_lowercase()));
            assert!(hello.alpn.iter().map(|id| 1 + id.len()).sum::<usize>() <= body.len());
        }
        Detection::Opaque => {}
        other => panic!("a whole handshake message is {other:?}"),
    }
}

fn records(message: &[u8], size: usize) -> Vec<u8> {
    message.chunks(size).flat_map(|c| [&[0x16, 3, 1][..], &(c.len() as u16).to_be_bytes(), c].concat()).collect()
}
