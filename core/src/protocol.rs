//! What bytes are, as declared by a user and as framed between two sidecars.

use std::fmt;

/// What a port is declared to speak. Declared, it is never detected.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum AppProtocol {
    /// Nothing was declared: the client's sidecar detects it.
    #[default]
    Detect,
    /// HTTP of either version: bytes that are neither are an error, not opaque.
    Http,
    /// HTTP/2 with prior knowledge, which includes gRPC.
    Http2,
    /// Bytes that are relayed untouched, without waiting for the client to speak.
    Opaque,
}

impl AppProtocol {
    /// Reads Kubernetes' `appProtocol` (KEP-1422, KEP-3726) or, where there is none, the prefix of the port's
    /// name as in `http-web`. An unknown word declares nothing.
    pub fn from_declaration(app_protocol: Option<&str>, port_name: Option<&str>) -> Self {
        if let Some(word) = app_protocol {
            return Self::from_word(word);
        }
        let prefix = port_name.and_then(|n| n.split('-').next()).unwrap_or_default();
        Self::from_word(prefix)
    }

    fn from_word(word: &str) -> Self {
        let word = word.strip_prefix("kubernetes.io/").unwrap_or(word);
        match word.to_ascii_lowercase().as_str() {
            "http" | "ws" | "http1" | "http/1.1" => Self::Http,
            "h2c" | "http2" | "grpc" | "grpc-web" => Self::Http2,
            "tcp" | "tls" | "https" | "wss" | "mysql" | "redis" | "mongo" | "mongodb" | "postgres" | "postgresql" | "smtp"
            | "nats" | "amqp" | "kafka" | "opaque" => Self::Opaque,
            _ => Self::Detect,
        }
    }

    /// Whether the port is declared as some HTTP, so that opaque bytes are refused on it.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2)
    }
}

/// The framing between two sidecars, named by ALPN. The identifiers are frozen: a new framing gets a new one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MeshProtocol {
    /// HTTP/1.1, one exchange at a time.
    Http1,
    /// HTTP/2.
    Http2,
    /// Bytes.
    Tcp,
}

impl MeshProtocol {
    /// Every framing that this version speaks.
    pub const ALL: [Self; 3] = [Self::Http1, Self::Http2, Self::Tcp];

    /// The ALPN protocol id (RFC 7301).
    pub const fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"weft/h1",
            Self::Http2 => b"weft/h2",
            Self::Tcp => b"weft/tcp",
        }
    }

    /// The framing that an ALPN id names, if it is one of ours.
    pub fn from_alpn(id: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.alpn() == id)
    }
}

/// Many streams of any framing but HTTP/2 on one connection.
pub const LINK_ALPN: &[u8] = b"weft/link2";

impl fmt::Display for MeshProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http1 => "http/1.1",
            Self::Http2 => "http/2",
            Self::Tcp => "tcp",
        })
    }
}

/// Whether an ALPN id is in weft's own name space, known to this version or not.
pub fn is_weft_alpn(id: &[u8]) -> bool {
    id.starts_with(b"weft/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_declaration_wins_over_the_port_name() {
        let read = AppProtocol::from_declaration;
        assert_eq!(read(None, Some("http-web")), AppProtocol::Http);
        assert_eq!(read(None, Some("grpc")), AppProtocol::Http2);
        assert_eq!(read(Some("kubernetes.io/h2c"), Some("http")), AppProtocol::Http2);
        assert_eq!(read(Some("kubernetes.io/ws"), None), AppProtocol::Http);
        assert_eq!(read(Some("mysql"), Some("http")), AppProtocol::Opaque);
        assert_eq!(read(Some("example.com/own"), Some("http")), AppProtocol::Detect);
        assert_eq!(read(None, Some("web")), AppProtocol::Detect);
        assert_eq!(read(None, None), AppProtocol::Detect);
    }

    #[test]
    fn alpn_ids_are_frozen() {
        assert_eq!(MeshProtocol::from_alpn(b"weft/h1"), Some(MeshProtocol::Http1));
        assert_eq!(MeshProtocol::from_alpn(b"weft/h2"), Some(MeshProtocol::Http2));
        assert_eq!(MeshProtocol::from_alpn(b"weft/tcp"), Some(MeshProtocol::Tcp));
        assert_eq!(MeshProtocol::from_alpn(b"h2"), None);
        assert_eq!(LINK_ALPN, b"weft/link2");
        assert!(is_weft_alpn(LINK_ALPN));
    }
}
