//! Secrets in texts: keys in PEM, what follows a telling name, passwords and queries of URLs, and what looks like a token.

use super::{REMOVED, is_secret_name};

/// The shortest run of base64 or hexadecimal that is taken for key material, unless it is a hash in hexadecimal.
const LONGEST_WORD: usize = 80;
const BEGIN: &str = "-----BEGIN ";

/// A text without secrets. A certificate is public and stays, if there is nothing but base64 in it; a private key goes (RFC 7468), and one without an end
/// goes with all that follows.
pub(super) fn clean(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let (mut plain, mut rest) = (String::new(), text);
    while let Some(begin) = rest.find(BEGIN) {
        let inside = &rest[begin + BEGIN.len()..];
        let label = inside.split("-----").next().unwrap_or_default();
        let end = |body: &str| body.find(&format!("-----END {label}-----"));
        if label.contains("PRIVATE KEY") {
            out += &words(&(std::mem::take(&mut plain) + &rest[..begin]));
            out += REMOVED;
            let mark = format!("-----END {label}-----");
            rest = inside.find(&mark).map_or("", |at| &inside[at + mark.len()..]);
            continue;
        }
        let body = inside.strip_prefix("CERTIFICATE-----");
        match body.and_then(|body| Some((body, end(body)?))).filter(|(body, end)| is_base64(&body[..*end])) {
            Some((body, end)) => {
                let after = &body[end + "-----END CERTIFICATE-----".len()..];
                out += &words(&(std::mem::take(&mut plain) + &rest[..begin]));
                out += &rest[begin..rest.len() - after.len()];
                rest = after;
            }
            None => {
                plain += &rest[..begin + BEGIN.len()];
                rest = inside;
            }
        }
    }
    out + &words(&(plain + rest))
}

/// Lines of it, whether they are broken or, as in a text of JSON, said to be.
fn is_base64(body: &str) -> bool {
    // What fills it up stands at its end alone: `name=value` is none.
    let body = body.replace("\\n", "\n");
    body.trim_end().trim_end_matches('=').bytes().all(|b| b.is_ascii_alphanumeric() || b"+/\r\n ".contains(&b))
}

fn words(text: &str) -> String {
    text.split_inclusive('\n').map(line).collect()
}

/// What stands between blanks and quotes is looked at one by one, and with what came before it.
fn line(line: &str) -> String {
    let is_between = |c: char| c.is_whitespace() || "\"'`<>()[]{}\u{0}".contains(c);
    let mut out = String::with_capacity(line.len());
    let (mut rest, mut after) = (line, After::Nothing);
    while let Some(first) = rest.chars().next() {
        let end = rest.find(|c: char| is_between(c) != is_between(first)).unwrap_or(rest.len());
        let (part, left) = rest.split_at(end);
        rest = left;
        if is_between(first) {
            out += part;
        } else {
            let (cleaned, next) = chunk(part, after);
            out += &cleaned;
            after = next;
        }
    }
    out
}

/// What was said just before.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    Nothing,
    /// `Bearer` or `Basic`: what follows is one, if it is long enough to be no word.
    Scheme,
    /// A telling name with nothing behind it yet.
    Name,
    /// The name of a header field whose whole value is a secret.
    Field,
}

fn chunk(part: &str, after: After) -> (String, After) {
    let bare = part.trim_matches(|c: char| !c.is_ascii_alphanumeric()).to_ascii_lowercase();
    let is_scheme = ["bearer", "basic"].contains(&bare.as_str());
    match after {
        After::Field if is_scheme => return (part.to_owned(), After::Field),
        After::Field => return (REMOVED.to_owned(), After::Field),
        After::Name if is_scheme => return (part.to_owned(), After::Name),
        After::Name if part != "=" && part != ":" => return (REMOVED.to_owned(), After::Nothing),
        After::Name => return (part.to_owned(), After::Name),
        After::Scheme if part.len() >= 8 => return (REMOVED.to_owned(), After::Nothing),
        After::Scheme | After::Nothing => {}
    }
    if is_scheme {
        return (part.to_owned(), After::Scheme);
    }
    // NAME=VALUE and NAME:VALUE; behind the first telling name everything goes.
    for (at, sign) in part.match_indices(['=', ':']) {
        let name = part[..at].rsplit(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c))).next().unwrap_or_default();
        let name = name.trim_start_matches('-').to_ascii_lowercase();
        if part[at..].starts_with("://") || !(tells(&name) || sign == "=" && name.ends_with("headers")) {
            continue;
        }
        let (kept, value) = part.split_at(at + 1);
        let next = match &*name {
            _ if !value.is_empty() => return (format!("{}{REMOVED}", urls(kept)), After::Nothing),
            "authorization" | "proxy-authorization" | "cookie" | "set-cookie" => After::Field,
            _ => After::Name,
        };
        return (part.to_owned(), next);
    }
    // `--password hunter2`
    let is_flag = part.starts_with("--") && tells(&part.trim_start_matches('-').to_ascii_lowercase());
    (tokens(&urls(part)), if is_flag { After::Name } else { After::Nothing })
}

/// Whether what follows this name, in lower case, is a secret. What is said of policies and files is none.
fn tells(name: &str) -> bool {
    let is_other = name.ends_with("policy") || name.ends_with("policies") || name.ends_with("file") || name.ends_with("dir");
    is_secret_name(name) && !is_other
}

/// Without the user and the password of a URL, and without queries.
fn urls(part: &str) -> String {
    let mut text = part.to_owned();
    if let Some(at) = text.find("://").map(|at| at + 3) {
        let place = text[at..].split(['/', '?']).next().unwrap_or_default().len();
        if let Some(user) = text[at..at + place].rfind('@') {
            text.replace_range(at..at + user, REMOVED);
        }
    }
    match text.split_once('?') {
        Some((before, query)) if before.contains('/') && query.len() > 1 => format!("{before}?{REMOVED}"),
        _ => text,
    }
}

/// Without what looks like a token: JSON Web Tokens, join tokens, and long runs of base64.
fn tokens(text: &str) -> String {
    let is_part = |c: char| c.is_ascii_alphanumeric() || "-_.+/=~".contains(c);
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end = rest.find(|c: char| is_part(c) != is_part(first)).unwrap_or(rest.len());
        let (word, left) = rest.split_at(end);
        rest = left;
        out += if is_part(first) && looks_secret(word) { REMOVED } else { word };
    }
    out
}

fn looks_secret(word: &str) -> bool {
    // A join token (`weft token create`).
    if word.contains("weft1.") {
        return true;
    }
    if word.contains("eyJ") && word.split('.').count() >= 3 {
        return true;
    }
    let longest = word.split(|c: char| "./=~".contains(c)).map(str::len).max().unwrap_or(0);
    let is_name = word.contains('/') && word.split('/').all(|part| part.len() <= 64);
    let is_hash = word.bytes().all(|b| b.is_ascii_hexdigit()) && word.len() <= 128;
    longest >= LONGEST_WORD && !is_name && !is_hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_tokens_are_removed_wherever_they_stand() {
        let key = "-----BEGIN EC PRIVATE KEY-----\nabcd\n-----END EC PRIVATE KEY-----";
        let certificate = format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", "A".repeat(64));
        assert_eq!(clean(&format!("a {key} b\n{certificate}")), format!("a {REMOVED} b\n{certificate}"));
        assert_eq!(clean("cut -----BEGIN PRIVATE KEY-----\nabcd"), format!("cut {REMOVED}"));
        assert_eq!(clean("x=eyJhbGciOi.eyJzdWIi.c2ln y"), format!("{REMOVED} y"), "with the name before it");
        assert_eq!(clean(&format!("t weft1.{}.{}.{}", "1".repeat(16), "2".repeat(64), "3".repeat(64))), format!("t {REMOVED}"));
        assert_eq!(clean("Authorization: Bearer abcdefgh12"), format!("Authorization: Bearer {REMOVED}"));
        let long = "Zm9v".repeat(30);
        assert_eq!(clean(&format!("t {long}")), format!("t {REMOVED}"));
        for (told, cleaned) in [
            (&*format!("{certificate}Bearer abcdefgh12\n"), &*format!("{certificate}Bearer {REMOVED}\n")),
            (
                "-----BEGIN CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\nab\n-----END PRIVATE KEY-----\n",
                &format!("-----BEGIN CERTIFICATE-----\n{REMOVED}\n"),
            ),
            (
                "-----BEGIN CERTIFICATE-----\ntoken=hunter2\n-----END CERTIFICATE-----",
                &format!("-----BEGIN CERTIFICATE-----\ntoken={REMOVED}\n-----END CERTIFICATE-----"),
            ),
            ("run --db-password=hunter2 --x", &format!("run --db-password={REMOVED} --x")),
            ("run --db-password hunter2 --x", &format!("run --db-password {REMOVED} --x")),
            ("a,password:hunter2,b", &format!("a,password:{REMOVED}")),
            ("password: \"hunter2\"", &format!("password: \"{REMOVED}\"")),
            ("postgres://u:p@h/db", &format!("postgres://{REMOVED}@h/db")),
            ("GET /a?key=v HTTP", &format!("GET /a?{REMOVED} HTTP")),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS=x-team=0123,y=4", &format!("OTEL_EXPORTER_OTLP_TRACES_HEADERS={REMOVED}")),
            ("Cookie: a=b; c=d\nnext", &format!("Cookie: {REMOVED} {REMOVED}\nnext")),
        ] {
            assert_eq!(clean(told), cleaned);
        }
        for harmless in [
            "AuthorizationPolicy: shop/web: rules[0]: is wrong",
            "the token is bad, and/or? gone",
            "--token-file=/var/run/token",
            "spiffe://cluster.local/ns/shop/sa/web",
            "weft_requests_total{peer=\"x\"} 5",
            &"0af1".repeat(16),
            "/var/lib/weft/pods/0/admin.sock",
        ] {
            assert_eq!(clean(harmless), harmless);
        }
    }
}
