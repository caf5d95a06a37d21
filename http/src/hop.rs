//! What belongs to one hop and must not go further (RFC 9110, section 7.6.1), and what only weft may say.

use super::fields::{Fields, Known, list_elements};

/// Whether `Connection` lists a token.
pub fn connection_has(fields: &Fields, token: &[u8]) -> bool {
    fields.all(Known::Connection).flat_map(list_elements).any(|t| t.eq_ignore_ascii_case(token))
}

/// Takes out what belongs to the hop that a message came by, and every `weft-…` field. `Connection` goes first, so that nothing
/// that is set afterwards can be named away by the sender.
pub fn strip(fields: &mut Fields) {
    let mut named: Vec<Vec<u8>> = fields
        .all(Known::Connection)
        .flat_map(list_elements)
        .filter(|t| !matches!(Known::of(t), Known::Te | Known::Connection) && !t.eq_ignore_ascii_case(b"close"))
        .map(<[u8]>::to_ascii_lowercase)
        .collect();
    // There may be very many of both.
    named.sort_unstable();
    let trailers_wanted = fields.all(Known::Te).flat_map(list_elements).any(|t| t.eq_ignore_ascii_case(b"trailers"));
    fields.retain(|known, name, _| match known {
        Known::Connection
        | Known::KeepAlive
        | Known::ProxyConnection
        | Known::TransferEncoding
        | Known::Te
        | Known::Upgrade
        | Known::Http2Settings
        | Known::Weft => false,
        // Framing and routing are never named away.
        Known::ContentLength | Known::Host => true,
        _ => named.is_empty() || named.binary_search(&name.to_ascii_lowercase()).is_err(),
    });
    if trailers_wanted {
        fields.push(b"te", b"trailers");
    }
}

/// Takes out of trailers what may not stand there: framing, routing, connection fields (RFC 9110, section 6.5.1) and `weft-…`.
pub fn strip_trailers(fields: &mut Fields) {
    fields.retain(|known, _, _| matches!(known, Known::Other | Known::ContentType | Known::GrpcStatus | Known::Trace));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(list: &[(&str, &str)]) -> Fields {
        let mut f = Fields::default();
        for (n, v) in list {
            f.push(n.as_bytes(), v.as_bytes());
        }
        f
    }

    fn names(f: &Fields) -> Vec<String> {
        f.iter().map(|(_, n, _)| String::from_utf8_lossy(n).into_owned()).collect()
    }

    #[test]
    fn what_connection_names_goes_and_framing_stays() {
        let mut f = fields(&[
            ("Host", "a"),
            ("Connection", "close, X-Secret, content-length, host"),
            ("X-Secret", "1"),
            ("Content-Length", "3"),
            ("Keep-Alive", "5"),
            ("TE", "gzip, trailers"),
            ("Upgrade", "h2c"),
            ("HTTP2-Settings", "x"),
            ("weft_client_id", "spiffe://x"),
            ("X-Kept", "1"),
        ]);
        strip(&mut f);
        assert_eq!(names(&f), ["Host", "Content-Length", "X-Kept", "te"]);
    }

    #[test]
    fn trailers_carry_no_framing_and_no_identity() {
        let mut f =
            fields(&[("grpc-status", "0"), ("Content-Length", "1"), ("weft-client-id", "x"), ("Transfer-Encoding", "chunked")]);
        strip_trailers(&mut f);
        assert_eq!(names(&f), ["grpc-status"]);
    }
}
