use proptest::prelude::*;

use super::*;
use crate::traffic::route::{Pattern, SessionKind};

fn session(absolute: Option<u64>, idle: Option<u64>, permanent: bool) -> Session {
    Session {
        name: "weft-session".into(),
        kind: SessionKind::Cookie,
        absolute: absolute.map(Duration::from_secs),
        idle: idle.map(Duration::from_secs),
        permanent,
    }
}

fn endpoint() -> SocketAddr {
    "10.1.2.3:8080".parse().expect("valid")
}

proptest! {
    #[test]
    fn marks_come_back(ip: IpAddr, port: u16, began: u64, used: Option<u64>) {
        let mark = Mark { endpoint: SocketAddr::new(ip, port), began, used };
        let text = mark.encode();
        prop_assert!((32..=72).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric()));
        prop_assert_eq!(Mark::decode(text.as_bytes()), Some(mark));
    }

    #[test]
    fn what_is_no_mark_is_none(text: Vec<u8>) {
        if let Some(mark) = Mark::decode(&text) {
            prop_assert_eq!(mark.encode().into_bytes(), text.to_ascii_lowercase());
        }
    }

    #[test]
    fn marks_cut_short_or_made_longer_are_none(used: Option<u64>, cut in 0usize..31) {
        let text = Mark { endpoint: endpoint(), began: 1, used }.encode();
        prop_assert_eq!(Mark::decode(&text.as_bytes()[..cut]), None);
        let longer = format!("{text}00");
        prop_assert_eq!(Mark::decode(longer.as_bytes()), None);
    }
}

#[test]
fn another_form_or_family_is_no_mark() {
    let text = Mark { endpoint: endpoint(), began: 1, used: None }.encode();
    assert!(text.starts_with("0104"));
    for start in ["0204", "0106", "0100"] {
        assert_eq!(Mark::decode(format!("{start}{}", &text[4..]).as_bytes()), None, "{start}");
    }
}

#[test]
fn sessions_end_by_age_and_by_silence() {
    let both = session(Some(100), Some(10), false);
    let mark = Mark::new(endpoint(), &both, 1000);
    assert_eq!((mark.began, mark.used), (1000, Some(1000)));
    assert!(mark.lasts(&both, 1009) && !mark.lasts(&both, 1010));

    let renewed = mark.renewed(&both, 1009).expect("valid");
    assert_eq!((renewed.began, renewed.used), (1000, Some(1009)));
    assert!(renewed.lasts(&both, 1018) && !renewed.lasts(&both, 1019));
    assert_eq!(mark.renewed(&both, 1000), None);
    let active = Mark { used: Some(1099), ..mark };
    assert!(active.lasts(&both, 1099) && !active.lasts(&both, 1100));

    let forever = session(None, None, false);
    let mark = Mark::new(endpoint(), &forever, 1000);
    assert_eq!(mark.used, None);
    assert!(mark.lasts(&forever, u64::MAX));
    assert_eq!(mark.renewed(&forever, 5000), None);
    // A mark from before the session was given an idle bound does not say when it was used.
    assert!(!mark.lasts(&both, 1001));
}

#[test]
fn marks_from_the_future_do_not_last() {
    let bounded = session(Some(100), None, false);
    let mark = Mark::new(endpoint(), &bounded, 1000);
    assert!(mark.lasts(&bounded, 950) && !mark.lasts(&bounded, 939));
    assert!(!Mark { began: u64::MAX, ..mark }.lasts(&bounded, 1000));
}

// GRPCRouteSessionPersistenceCookie: no lifetime; …PermanentLifetime: `Max-Age` from the absolute bound.
#[test]
fn cookies_carry_the_mark() {
    let mark = Mark { endpoint: endpoint(), began: 1000, used: None };
    let value = mark.encode();
    let rule = PathMatch::Prefix("/cart".into());
    assert_eq!(
        mark.set_cookie(&session(Some(100), None, false), Some(&rule), 1000),
        format!("weft-session={value}; Path=/cart; HttpOnly; SameSite=Strict")
    );
    let permanent = session(Some(100), None, true);
    assert_eq!(mark.set_cookie(&permanent, None, 1030), format!("weft-session={value}; Max-Age=70; HttpOnly; SameSite=Strict"));
    assert!(mark.set_cookie(&permanent, None, 2000).contains("Max-Age=0;"));
    assert_eq!(
        Mark::decode(cookie_value(format!("a=b; weft-session={value}").as_bytes(), "weft-session").expect("valid")),
        Some(mark)
    );
}

#[test]
fn nothing_breaks_out_of_a_cookie() {
    assert_eq!(
        set_cookie("a=;\r\nb", "1; x\n\u{e9}", Some("/p; Domain=x"), None),
        "ab=1x; Path=/pDomain=x; HttpOnly; SameSite=Strict"
    );
}

#[test]
fn the_path_of_a_cookie_is_the_matchs() {
    let regex = |text| PathMatch::Regex(Pattern::new(text).expect("valid"));
    assert_eq!(cookie_path(&PathMatch::Any), "/");
    assert_eq!(cookie_path(&PathMatch::Exact("/a/b".into())), "/a/b");
    assert_eq!(cookie_path(&PathMatch::Prefix("/a".into())), "/a");
    assert_eq!(cookie_path(&PathMatch::Grpc { service: None, method: None }), "/");
    for (text, wanted) in [
        ("/p1/p2/[^/]+/p3", "/p1/p2"),
        ("/p1.*", "/"),
        ("/a/b|/c", "/"),
        (".*", "/"),
        ("(?i)/a/b", "/"),
        ("a/b/.*", "/"),
        ("/a/bc*", "/a"),
    ] {
        assert_eq!(cookie_path(&regex(text)), wanted, "{text}");
    }
}

#[test]
fn cookies_are_found_by_name() {
    let value =
        |header: &'static str, name| cookie_value(header.as_bytes(), name).map(|v| std::str::from_utf8(v).expect("valid"));
    assert_eq!(value("a=1; b=2;c=\"3\"", "a"), Some("1"));
    assert_eq!(value("a=1; b=2;c=\"3\"", "b"), Some("2"));
    assert_eq!(value("a=1; b=2;c=\"3\"", "c"), Some("3"));
    assert_eq!(value("a=1; a=2", "a"), Some("1"));
    assert_eq!(value("a=x=y", "a"), Some("x=y"));
    assert_eq!(value("aa=1; A=2; a", "a"), None);
    assert_eq!(value("", ""), None);
    assert_eq!(value(";;=;", "a"), None);
    assert_eq!(value("a=\"", "a"), Some("\""));
}
