use super::fault::Utc;
use super::*;

#[test]
fn times_read_as_rfc_3339_has_them() {
    for (seconds, text) in [
        (0, "1970-01-01T00:00:00Z"),
        (951_782_400, "2000-02-29T00:00:00Z"),
        (1_709_164_800, "2024-02-29T00:00:00Z"),
        (1_709_251_199, "2024-02-29T23:59:59Z"),
        (4_107_542_400, "2100-03-01T00:00:00Z"),
        (-1, "1969-12-31T23:59:59Z"),
    ] {
        assert_eq!(Utc(seconds).to_string(), text);
    }
    assert_eq!(Utc(i64::MAX).to_string(), format!("{} s since 1970", i64::MAX));
}

#[test]
fn a_claim_is_found_by_its_path_and_is_one_of_its_values() {
    let text = |t: &str| Claim::Text(t.into());
    let member = |n: &str, c| (Box::<str>::from(n), c);
    let roles = Claim::List(vec![text("a"), Claim::Int(7), Claim::Bool(true), Claim::List(vec![text("deep")])]);
    let claims = Claim::Object(vec![
        member("realm", Claim::Object(vec![member("roles", roles), member("none", Claim::Null)])),
        member("https://x.example/id", text("7")),
    ]);
    let roles = claims.at(&ClaimPath::dotted("realm.roles").expect("a path")).expect("it is there");
    for (wanted, has) in [("a", true), ("7", true), ("true", true), ("deep", false), ("b", false), ("", false)] {
        assert_eq!(roles.has(wanted), has, "{wanted}");
    }
    assert!(claims.at(&ClaimPath::new(&["https://x.example/id"]).expect("a path")).is_some_and(|c| c.has("7")));
    for absent in ["realm.none", "realm.roles.a", "real", "roles"] {
        assert_eq!(claims.at(&ClaimPath::dotted(absent).expect("a path")), None, "{absent}");
    }
    assert!(
        ClaimPath::dotted("a..b").is_err() && ClaimPath::dotted("").is_err() && ClaimPath::dotted("a.b.c.d.e.f.g.h.i").is_err()
    );
}

#[test]
fn a_token_may_stand_in_fields_that_are_nobody_elses() {
    assert_eq!(Place::new("Authorization", "Bearer "), Ok(Place::bearer()));
    assert!(Place::new("X-Token", "").is_ok());
    for (header, prefix) in [
        ("cookie", ""),
        ("host", ""),
        ("weft-id", ""),
        ("connection", ""),
        ("a b", ""),
        ("x", "\n"),
        ("authorization", "Bearer x="),
    ] {
        assert!(Place::new(header, prefix).is_err(), "{header}");
    }
}

#[test]
fn algorithms_are_exact_and_none_is_without_a_key_pair() {
    for algorithm in Algorithm::ALL {
        assert_eq!(algorithm.as_str().parse(), Ok(*algorithm));
    }
    for text in ["none", "None", "HS256", "rs256", "RS256 ", "", "ES256K"] {
        assert!(text.parse::<Algorithm>().is_err(), "{text}");
    }
}

#[test]
fn urls_of_keys_are_read_strictly() {
    for (text, host, port, target) in [
        ("http://keys.shop/jwks", "keys.shop", 80, "/jwks"),
        ("https://ID.example.com", "id.example.com", 443, "/"),
        ("https://id.example.com:8443?x=1", "id.example.com", 8443, "/?x=1"),
        ("https://[fd00::1]:1/a", "fd00::1", 1, "/a"),
        ("http://10.0.0.1/", "10.0.0.1", 80, "/"),
    ] {
        let url: KeysUrl = text.parse().expect(text);
        assert_eq!((&*url.host, url.port, &*url.target), (host, port, target));
        assert_eq!(url.to_string().parse::<KeysUrl>(), Ok(url));
    }
    for text in [
        "",
        "keys.shop",
        "ftp://a/",
        "HTTP://a/",
        "http://",
        "http://a:0/",
        "http://a:x/",
        "http://a:/",
        "http://u@a/",
        "http://a/#x",
        "http://a b/",
        "http://[::1/",
        "http://[fd00::1]x/",
        "http://127.0.0.1/",
        "https://169.254.169.254/",
        "https://[::ffff:127.0.0.1]/",
        "http://a..b/",
        "http://a/\u{e9}",
    ] {
        assert!(text.parse::<KeysUrl>().is_err(), "{text}");
    }
}
