//! Who may see the page. The listener is on loopback, where every user and every page in a browser can come: so the address that is opened carries a token, which
//! is good once and becomes a cookie; and a request must be meant for this listener and come from its own page.

use std::sync::atomic::{AtomicBool, Ordering};

use hyper::header::{COOKIE, HOST, HeaderMap, HeaderName, ORIGIN};
use hyper::{Method, StatusCode, Uri};

/// Where the token is handed in.
const OPEN: &str = "/open";

/// What every answer says. No page of others may frame it, read it or be read by it; nothing is kept; nothing runs or is fetched but files of its own.
pub(super) const SAID: [(&str, &str); 8] = [
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-store"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
];

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// The token was handed in: the cookie is set, and the page asked for.
    Opened {
        cookie: String,
    },
    /// What is asked of the control plane.
    Page(String),
    Refused(StatusCode, &'static str),
}

/// One listener's secrets.
#[derive(Debug)]
pub(super) struct Gate {
    /// `127.0.0.1:PORT`, as browsers name it.
    host: String,
    token: String,
    used: AtomicBool,
    /// The cookie's name and value. Cookies are not told apart by port: the name is.
    cookie: (String, String),
}

impl Gate {
    /// `token` and `session` are secrets of this run, and nothing that has a meaning in a URL or a cookie.
    pub(super) fn new(port: u16, token: String, session: String) -> Self {
        let cookie = (format!("weft-dashboard-{port}"), session);
        Self { host: format!("127.0.0.1:{port}"), token, used: AtomicBool::new(false), cookie }
    }

    /// What is opened, once.
    pub(super) fn address(&self) -> String {
        format!("http://{}{OPEN}?token={}", self.host, self.token)
    }

    /// Judges a request, by its head alone.
    pub(super) fn judge(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Asked {
        let refused = |why| Asked::Refused(StatusCode::FORBIDDEN, why);
        let one = |name: &HeaderName| -> Result<Option<&str>, ()> {
            let mut all = headers.get_all(name).iter();
            match (all.next(), all.next()) {
                (None, _) => Ok(None),
                (Some(value), None) => value.to_str().map(Some).map_err(drop),
                _ => Err(()),
            }
        };
        // A name that leads to loopback by somebody else's DNS is another host.
        if one(&HOST) != Ok(Some(&self.host)) || uri.authority().is_some() {
            return refused("this listener is for its own address alone\n");
        }
        if *method != Method::GET {
            return Asked::Refused(StatusCode::METHOD_NOT_ALLOWED, "there is nothing to change here: GET alone\n");
        }
        let own = format!("http://{}", self.host);
        if !matches!(one(&ORIGIN), Ok(None)) && one(&ORIGIN) != Ok(Some(&own)) {
            return refused("another page's requests are not answered\n");
        }
        if uri.path() == OPEN {
            return self.open(uri.query().unwrap_or_default());
        }
        let site = one(&HeaderName::from_static("sec-fetch-site"));
        if !matches!(site, Ok(None | Some("same-origin" | "none"))) {
            return refused("another page's requests are not answered\n");
        }
        let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(';'));
        let (name, session) = &self.cookie;
        let knows = cookies.filter_map(|pair| pair.trim().split_once('=')).any(|(n, v)| n == name && same(v, session));
        if !knows {
            return refused("open the address that `weft dashboard` printed; it is good once: run it again for another\n");
        }
        Asked::Page(uri.path_and_query().map_or("/", |path| path.as_str()).to_owned())
    }

    fn open(&self, query: &str) -> Asked {
        let knows = query.strip_prefix("token=").is_some_and(|token| same(token, &self.token));
        if !knows {
            return Asked::Refused(StatusCode::FORBIDDEN, "this is not the token of this run\n");
        }
        if self.used.swap(true, Ordering::Relaxed) {
            let why = "this address was opened before, and is good once: run `weft dashboard` again. If that was not you, somebody else has seen it\n";
            return Asked::Refused(StatusCode::FORBIDDEN, why);
        }
        let (name, session) = &self.cookie;
        Asked::Opened { cookie: format!("{name}={session}; HttpOnly; SameSite=Strict; Path=/") }
    }
}

/// Compares in a time that says nothing of where they differ.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |all, (a, b)| all | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn gate() -> Gate {
        Gate::new(4321, "t0ken".to_owned(), "s3ssion".to_owned())
    }

    fn ask(gate: &Gate, method: &Method, uri: &str, headers: &[(&'static str, &str)]) -> Asked {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(value).expect("plain"));
        }
        gate.judge(method, &uri.parse().expect("a path"), &map)
    }

    const HOST_OK: (&str, &str) = ("host", "127.0.0.1:4321");
    const COOKIE_OK: (&str, &str) = ("cookie", "other=1; weft-dashboard-4321=s3ssion");

    fn status(asked: &Asked) -> u16 {
        match asked {
            Asked::Refused(status, _) => status.as_u16(),
            _ => 200,
        }
    }

    #[test]
    fn the_token_is_good_once_and_becomes_a_cookie() {
        let gate = gate();
        assert_eq!(gate.address(), "http://127.0.0.1:4321/open?token=t0ken");
        for wrong in ["/open", "/open?token=", "/open?token=t0kem", "/open?token=t0ken1", "/open?x=1&token=t0ken"] {
            assert_eq!(status(&ask(&gate, &Method::GET, wrong, &[HOST_OK])), 403, "{wrong}");
        }
        // It may be opened from a file, which is another site.
        let opened = ask(&gate, &Method::GET, "/open?token=t0ken", &[HOST_OK, ("sec-fetch-site", "cross-site")]);
        let cookie = "weft-dashboard-4321=s3ssion; HttpOnly; SameSite=Strict; Path=/".to_owned();
        assert_eq!(opened, Asked::Opened { cookie });
        assert_eq!(status(&ask(&gate, &Method::GET, "/open?token=t0ken", &[HOST_OK])), 403, "once");
    }

    #[test]
    fn only_the_page_itself_is_answered() {
        let gate = gate();
        let page = ask(&gate, &Method::GET, "/data.json?window=60", &[HOST_OK, COOKIE_OK, ("sec-fetch-site", "same-origin")]);
        assert_eq!(page, Asked::Page("/data.json?window=60".to_owned()));
        assert_eq!(status(&ask(&gate, &Method::GET, "/", &[HOST_OK, COOKIE_OK, ("origin", "http://127.0.0.1:4321")])), 200);
        let refused: [&[(&str, &str)]; 9] = [
            &[HOST_OK],
            &[COOKIE_OK],
            &[("host", "evil.example:4321"), COOKIE_OK],
            &[("host", "localhost:4321"), COOKIE_OK],
            &[HOST_OK, HOST_OK, COOKIE_OK],
            &[HOST_OK, ("cookie", "weft-dashboard-4321=s3ssioo")],
            &[HOST_OK, ("cookie", "weft-dashboard-4322=s3ssion")],
            &[HOST_OK, COOKIE_OK, ("origin", "http://127.0.0.1:80")],
            &[HOST_OK, COOKIE_OK, ("sec-fetch-site", "same-site")],
        ];
        for headers in refused {
            assert_eq!(status(&ask(&gate, &Method::GET, "/", headers)), 403, "{headers:?}");
        }
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS, Method::HEAD] {
            assert_eq!(status(&ask(&gate, &method, "/", &[HOST_OK, COOKIE_OK])), 405);
        }
        assert_eq!(status(&ask(&gate, &Method::GET, "http://127.0.0.1:4321/", &[HOST_OK, COOKIE_OK])), 403, "it is no proxy");
    }
}
