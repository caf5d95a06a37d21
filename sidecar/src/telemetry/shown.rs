//! What a tap shows of a request beside its names: values of fields and the beginning of bodies, where the workload's own configuration allows it (`WEFT_TAP`). Values that
//! let somebody in are shown nowhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::Telemetry;
use super::line::quoted;
use crate::http::RequestHead;
use crate::http::fields::{Fields, Known};
use crate::worker::Worker;

/// How much is shown: asked for by a tap, allowed by a workload, wanted of a request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Show {
    /// Names of the request's fields.
    #[default]
    Names,
    /// Values as well, and those of the answer.
    Headers,
    /// The beginning of both bodies as well.
    Bodies,
}

impl Show {
    /// As `WEFT_TAP` and a tap's `show` have it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        [Self::Names, Self::Headers, Self::Bodies].into_iter().find(|show| show.as_str() == text)
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Names => "names",
            Self::Headers => "headers",
            Self::Bodies => "bodies",
        }
    }
}

impl Telemetry {
    /// Why a tap is not shown as much as it asks for, if it is not.
    pub(super) fn withholds(&self, asked: Show) -> Option<String> {
        let word = asked.as_str();
        (asked > self.telling.tap).then(|| {
            format!(
                "this workload does not have its {word} shown: that is for its own configuration to allow, by WEFT_TAP={word} in the annotation weft.dev/telemetry of its pod or \
                 namespace, or by tap: {word} of the workload in mesh.yaml, and from its sidecar's next start on; weft tap without --{word} shows the rest"
            )
        })
    }
}

/// Fields of a head that are shown, bytes of all their names and values, and bytes of one value.
const MOST: usize = 64;
const LONGEST: usize = 8 * 1024;
const LONGEST_VALUE: usize = 512;
/// Bytes of a body that are shown.
const EXCERPT: usize = 1024;

/// What is shown of one request and its answer.
#[derive(Debug)]
pub struct Shown {
    _room: Room,
    show: Show,
    request: Vec<(String, String)>,
    response: Vec<(String, String)>,
    request_body: Excerpt,
    response_body: Excerpt,
}

/// Requests of which something is shown, at once, in a sidecar: what they keep is bounded. Of more, names are told.
const MOST_SHOWN: usize = 512;

/// Room for one of them, until it is dropped.
#[derive(Debug)]
struct Room(Arc<AtomicUsize>);

impl Room {
    fn take(taken: &Arc<AtomicUsize>) -> Option<Self> {
        // From here on the drop gives it back.
        let room = Self(Arc::clone(taken));
        (taken.fetch_add(1, Relaxed) < MOST_SHOWN).then_some(room)
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// The beginning of a body.
#[derive(Debug, Default)]
pub struct Excerpt {
    bytes: Vec<u8>,
    /// Bytes that came.
    of: u64,
}

impl Excerpt {
    pub fn takes(&mut self, piece: &[u8]) {
        let room = EXCERPT - self.bytes.len();
        self.bytes.extend_from_slice(&piece[..piece.len().min(room)]);
        self.of += piece.len() as u64;
    }

    fn json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"begins\":");
        quoted(out, &String::from_utf8_lossy(&self.bytes));
        out.extend_from_slice(format!(",\"bytes\":{}}}", self.of).as_bytes());
    }
}

impl Shown {
    /// Of a request that has just come; none where nothing is shown but names.
    pub(super) fn of(show: Show, worker: &Worker, head: &RequestHead) -> Option<Box<Self>> {
        if show == Show::Names {
            return None;
        }
        let room = Room::take(&worker.telemetry.all.shown)?;
        let inbound = worker.mesh().inbound.load();
        let bears = |name: &str| inbound.as_ref().is_some_and(|policy| policy.issuers.read_from(name));
        Some(Box::new(Self {
            _room: room,
            show,
            request: values(&head.fields, bears),
            response: Vec::new(),
            request_body: Excerpt::default(),
            response_body: Excerpt::default(),
        }))
    }

    pub(super) fn bodies(&self) -> bool {
        self.show == Show::Bodies
    }

    /// The answer's head goes to the caller.
    pub(super) fn answered(&mut self, fields: &Fields) {
        self.response = values(fields, |_| false);
    }

    /// A piece of the answer's body goes to the caller.
    pub(super) fn sends(&mut self, piece: &[u8]) {
        if self.bodies() {
            self.response_body.takes(piece);
        }
    }

    /// The request's body went out so.
    pub(super) fn received(&mut self, body: Excerpt) {
        self.request_body = body;
    }

    /// Members of a JSON object, each with a comma before it: what a tap that asked for `show` gets.
    pub(super) fn json(&self, out: &mut Vec<u8>, show: Show) {
        if show >= Show::Headers {
            out.extend_from_slice(b",\"request_headers\":");
            pairs(out, &self.request);
            out.extend_from_slice(b",\"response_headers\":");
            pairs(out, &self.response);
        }
        if show >= Show::Bodies && self.bodies() {
            out.extend_from_slice(b",\"request_body\":");
            self.request_body.json(out);
            out.extend_from_slice(b",\"response_body\":");
            self.response_body.json(out);
        }
    }
}

fn pairs(out: &mut Vec<u8>, all: &[(String, String)]) {
    out.push(b'[');
    for (at, (name, value)) in all.iter().enumerate() {
        out.extend_from_slice(if at == 0 { b"[" } else { b",[" });
        quoted(out, name);
        out.push(b',');
        quoted(out, value);
        out.push(b']');
    }
    out.push(b']');
}

/// `bears` says of a field's name whether tokens are looked for in it.
fn values(fields: &Fields, bears: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    let mut bytes = 0;
    let told = fields.iter().filter(|(known, ..)| *known != Known::Weft).take(MOST).take_while(|(_, name, value)| {
        bytes += name.len() + value.len().min(LONGEST_VALUE);
        bytes <= LONGEST
    });
    told.map(|(_, name, value)| {
        let name = String::from_utf8_lossy(name).into_owned();
        let value = if is_secret(&name, value) || bears(&name) {
            format!("(not shown: {} bytes)", value.len())
        } else {
            without_query(&value[..value.len().min(LONGEST_VALUE)])
        };
        (name, value)
    })
    .collect()
}

/// What a name has in it whose value lets somebody in, or proves who somebody is.
const SECRET: [&str; 14] = [
    "auth",
    "cookie",
    "token",
    "secret",
    "passw",
    "apikey",
    "api_key",
    "session",
    "signature",
    "credential",
    "cert",
    "jwt",
    "otp",
    // Kubernetes takes a bearer's token there.
    "sec-websocket-protocol",
];

/// Whether a value is one that nobody is shown: by its field's name, or because it looks like a bearer's or basic credentials (RFC 6750, RFC 7617) or a JSON web token (RFC 7519).
fn is_secret(name: &str, value: &[u8]) -> bool {
    let (name, begins) =
        (name.to_ascii_lowercase(), |with: &[u8]| value.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with)));
    let is_token = |word: &[u8]| word.starts_with(b"eyJ");
    SECRET.iter().any(|part| name.contains(part))
        || name.ends_with("key")
        || matches!(&*name, "sid" | "x-sid")
        || begins(b"bearer ")
        || begins(b"basic ")
        || value.split(|b| !(b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))).any(is_token)
}

/// A value up to its first question mark: what follows that in an address may be a token.
fn without_query(value: &[u8]) -> String {
    match value.iter().position(|b| *b == b'?') {
        Some(at) => format!("{}?(not shown)", String::from_utf8_lossy(&value[..at])),
        None => String::from_utf8_lossy(value).into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Telling;

    #[test]
    fn what_lets_somebody_in_is_shown_nowhere() {
        for name in [
            "Authorization",
            "cookie",
            "Set-Cookie",
            "Proxy-Authorization",
            "X-Api-Key",
            "x-amz-security-token",
            "X-Session-Id",
            "x-jwt",
            "Ocp-Apim-Subscription-Key",
            "x-functions-key",
            "sid",
            "X-OTP",
            "Sec-WebSocket-Protocol",
        ] {
            assert!(is_secret(name, b"x"), "{name}");
        }
        assert!(
            is_secret("x-more", b"Bearer x")
                && is_secret("x-more", b"eyJhbGciOi")
                && is_secret("x-more", b"Token eyJhbGciOi")
                && is_secret("x", b"BASIC x")
        );
        assert!(!is_secret("accept", b"*/*") && !is_secret("x-request-id", b"7"));
        let mut fields = Fields::default();
        fields.push(b"accept", b"text/plain");
        fields.push(b"cookie", b"id=s3cret");
        fields.push(b"referer", b"https://a.example/in?code=s3cret");
        fields.push(b"x-issued", b"s3cret");
        let told = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            values(&fields, |name| name == "x-issued"),
            [
                told("accept", "text/plain"),
                told("cookie", "(not shown: 9 bytes)"),
                told("referer", "https://a.example/in?(not shown)"),
                told("x-issued", "(not shown: 6 bytes)"),
            ]
        );
    }

    #[test]
    fn what_is_shown_is_bounded() {
        let mut fields = Fields::default();
        for _ in 0..200 {
            fields.push(b"x-long", &[b'a'; 4_000]);
        }
        let told = values(&fields, |_| false);
        assert!(told.len() <= LONGEST / LONGEST_VALUE && told.iter().all(|(_, value)| value.len() == LONGEST_VALUE));
        let mut body = Excerpt::default();
        body.takes(&[b'a'; 900]);
        body.takes(&[b'b'; 900]);
        assert_eq!((body.bytes.len(), body.of), (EXCERPT, 1_800));
    }

    #[test]
    fn a_tap_is_shown_what_it_asked_for_where_that_is_allowed() {
        let telling = Telling { tap: Show::Headers, ..Telling::default() };
        let (names, headers) = (Telemetry::off(), Telemetry::new(None, telling, false));
        assert!(names.withholds(Show::Names).is_none() && headers.withholds(Show::Headers).is_none());
        assert!(names.withholds(Show::Headers).is_some_and(|why| why.contains("WEFT_TAP=headers")));
        assert!(headers.withholds(Show::Bodies).is_some_and(|why| why.contains("WEFT_TAP=bodies")));
        let shown = Shown {
            _room: Room(Arc::default()),
            show: Show::Bodies,
            request: vec![("a".into(), "b\n".into())],
            response: vec![],
            request_body: Excerpt::default(),
            response_body: Excerpt { bytes: b"hi".to_vec(), of: 2 },
        };
        let json = |show| {
            let mut out = Vec::new();
            shown.json(&mut out, show);
            String::from_utf8(out).expect("it is ASCII")
        };
        assert_eq!(json(Show::Names), "");
        let headers: serde_json::Value =
            serde_json::from_str(&format!("{{\"a\":1{}}}", json(Show::Headers))).expect("it is JSON");
        assert_eq!(headers["request_headers"], serde_json::json!([["a", "b\n"]]));
        assert_eq!(headers["response_headers"], serde_json::json!([]));
        assert!(json(Show::Bodies).ends_with("\"response_body\":{\"begins\":\"hi\",\"bytes\":2}"));
        assert_eq!(
            ["names", "headers", "bodies", "all"].map(|t| Show::parse(t).map(Show::as_str)),
            [Some("names"), Some("headers"), Some("bodies"), None]
        );
    }
}
