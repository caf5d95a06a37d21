//! Heads as they go out. Fields that came in one piece, one after the other as we would write them ourselves, are copied in one piece.

use super::Framing;
use crate::fields::{Fields, Known, Piece};
use crate::head::{RequestHead, ResponseHead};

/// Appends a request's head. `connection` is this hop's own `Connection` field.
pub fn put_request(out: &mut Vec<u8>, head: &RequestHead, framing: Framing, connection: Option<&str>) {
    out.extend_from_slice(&head.method);
    out.push(b' ');
    out.extend_from_slice(&head.target);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    if let (Some(authority), None) = (&head.authority, head.fields.first(Known::Host)) {
        put_field(out, b"host", authority);
    }
    put_fields(out, &head.fields, framing, connection);
}

/// Appends a response's head.
pub fn put_response(out: &mut Vec<u8>, head: &ResponseHead, framing: Framing, connection: Option<&str>) {
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(head.status.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(&head.reason);
    out.extend_from_slice(b"\r\n");
    put_fields(out, &head.fields, framing, connection);
}

fn put_fields(out: &mut Vec<u8>, fields: &Fields, framing: Framing, connection: Option<&str>) {
    put_lines(out, fields);
    if framing == Framing::Chunked {
        put_field(out, b"transfer-encoding", b"chunked");
    }
    if let Some(connection) = connection {
        put_field(out, b"connection", connection.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

/// Appends a line for each field, as trailers have them too.
pub fn put_lines(out: &mut Vec<u8>, fields: &Fields) {
    fields.pieces(|piece| match piece {
        Piece::Lines(lines) => {
            out.extend_from_slice(lines);
            out.extend_from_slice(b"\r\n");
        }
        Piece::Field(name, value) => put_field(out, name, value),
    });
}

fn put_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::h1::read_request;

    proptest! {
        /// However fields came, and whatever was taken out and added, they are written as each alone would be.
        #[test]
        fn pieces_are_written_as_fields_are(
            came in proptest::collection::vec(("[a-c]{1,3}", "(:|: |:  |:\t)", "[!-~]{0,4}", "[ \t]{0,2}"), 0..8),
            own in proptest::collection::vec(("[a-c]", "[!-~]{0,4}"), 0..3),
            gone in "[a-c]{1,2}",
        ) {
            let lines: String = came.iter().map(|(name, colon, value, blank)| format!("{name}{colon}{value}{blank}\r\n")).collect();
            let head = format!("GET / HTTP/1.1\r\nhost: a\r\n{lines}\r\n");
            let mut fields = read_request(&[head.as_bytes()]).expect("a request").expect("a whole one").fields;
            for (name, value) in &own {
                fields.push(name.as_bytes(), value.as_bytes());
            }
            fields.remove_named(&gone);
            let (mut out, mut each) = (Vec::new(), Vec::new());
            put_lines(&mut out, &fields);
            for (_, name, value) in fields.iter() {
                put_field(&mut each, name, value);
            }
            prop_assert_eq!(String::from_utf8(out), String::from_utf8(each));
        }
    }

    #[test]
    fn what_came_as_it_goes_is_one_piece() {
        let head = read_request(&[b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\nY:2\r\nZ: 3\r\n\r\n"])
            .expect("a request")
            .expect("a whole one");
        let mut pieces = Vec::new();
        head.fields.pieces(|piece| {
            pieces.push(match piece {
                Piece::Lines(lines) => lines.to_vec(),
                Piece::Field(name, value) => [name, b"|", value].concat(),
            });
        });
        assert_eq!(pieces, [&b"Host: a\r\nX: 1"[..], b"Y|2", b"Z: 3"]);
    }
}
