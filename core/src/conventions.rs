//! What OpenTelemetry's semantic conventions say of names and of errors, for spans and for metrics alike.

/// The schema that the names are of (opentelemetry.io/docs/specs/semconv): `rpc.system.name`, `rpc.method` with the service in it and
/// `rpc.response.status_code` are there from 1.39 on.
pub const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.40.0";

/// What stands for a value that is not known beforehand, so that values stay few.
pub const OTHER: &str = "_OTHER";

/// Methods that are told by their names: those of RFC 9110, of RFC 5789, and QUERY.
pub const METHODS: [&str; 10] = ["GET", "POST", "HEAD", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"];

/// The place of a method in [`METHODS`]; none for others.
pub fn known_method(method: &[u8]) -> Option<usize> {
    METHODS.iter().position(|known| known.as_bytes() == method)
}

/// gRPC's statuses (`statuscodes.md`), by their numbers.
const GRPC: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// gRPC's status by its name; one that gRPC does not have is `UNKNOWN`.
pub fn grpc_name(status: u8) -> &'static str {
    GRPC.get(usize::from(status)).copied().unwrap_or("UNKNOWN")
}

/// gRPC's status of an answer that has none, by its HTTP status (`http-grpc-status-mapping.md`).
pub fn grpc_of_http(status: u16) -> u8 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// Whether a gRPC status is the server's fault: `UNKNOWN`, `DEADLINE_EXCEEDED`, `UNIMPLEMENTED`, `INTERNAL`, `UNAVAILABLE`, `DATA_LOSS`, and what gRPC does not have. Others are
/// the caller's, or no fault.
pub fn is_grpc_failure(status: u8) -> bool {
    matches!(status, 2 | 4 | 12..=15 | 17..)
}

/// Whether the conventions call a gRPC status an error at this end: to the caller all but OK are.
pub fn is_grpc_error(status: u8, server: bool) -> bool {
    if server { is_grpc_failure(status) } else { status != 0 }
}

/// Whether the conventions call an HTTP status an error at this end: to the caller 4xx are, too.
pub fn is_http_error(status: u16, server: bool) -> bool {
    status >= if server { 500 } else { 400 }
}

/// The longest gRPC method that is told, in bytes.
const LONGEST_METHOD: usize = 128;

/// The full name of a gRPC method by a request's path, without the first slash; none where it is no `/SERVICE/METHOD` of letters, digits, dots and
/// underlines, or is longer than 128 bytes.
pub fn rpc_method(path: &[u8]) -> Option<&str> {
    let name = path.strip_prefix(b"/").filter(|name| name.len() <= LONGEST_METHOD)?;
    let text = std::str::from_utf8(name).ok()?;
    let (service, method) = text.split_once('/')?;
    let is_name = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_'));
    (is_name(service) && is_name(method)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_errors_are_those_that_are_its_own() {
        let own: Vec<u8> = (0..20).filter(|status| is_grpc_error(*status, true)).collect();
        assert_eq!(own, [2, 4, 12, 13, 14, 15, 17, 18, 19]);
        assert!((1..20).all(|status| is_grpc_error(status, false)) && !is_grpc_error(0, false));
        assert_eq!([404, 500].map(|status| is_http_error(status, true)), [false, true]);
        assert!(is_http_error(404, false) && !is_http_error(304, false));
        assert_eq!((grpc_name(14), grpc_name(99)), ("UNAVAILABLE", "UNKNOWN"));
        assert_eq!([200, 404, 503].map(|status| grpc_name(grpc_of_http(status))), ["UNKNOWN", "UNIMPLEMENTED", "UNAVAILABLE"]);
    }

    #[test]
    fn a_method_is_told_only_if_it_looks_like_one() {
        assert_eq!(rpc_method(b"/shop.v1.Cart/Add_2"), Some("shop.v1.Cart/Add_2"));
        let long = format!("/shop.Cart/{}", "a".repeat(LONGEST_METHOD));
        for bad in [
            "",
            "/",
            "/shop.Cart",
            "/shop.Cart/",
            "//Add",
            "/shop.Cart/Add/x",
            "/shop Cart/Add",
            "/shop.Cart/Add?x",
            "shop/Add",
            &long,
        ] {
            assert_eq!(rpc_method(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!((known_method(b"QUERY").is_some(), known_method(b"get")), (true, None));
    }
}
