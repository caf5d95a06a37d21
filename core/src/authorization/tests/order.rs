use super::*;

const WEB: Option<&str> = Some("spiffe://td/ns/shop/sa/web");

#[test]
fn deny_comes_first_then_allow_then_the_posture() {
    let allow = || policy("allow", Action::Allow, vec![rule(vec![from("spiffe://td/ns/shop/*")], vec![])]);
    let deny = || policy("deny", Action::Deny, vec![rule(vec![], vec![paths(&[below("/admin")])])]);
    let get = |path: &str, policies: Vec<Policy>| {
        let request = Request::get(path);
        judge(Posture::Deny, policies, connection(80, WEB)).decide(Some(&request)).verdict
    };
    assert_eq!(get("/", vec![]), Verdict::Denied);
    assert_eq!(get("/", vec![allow()]), Verdict::Allowed);
    assert_eq!(get("/admin/x", vec![allow(), deny()]), Verdict::Denied);
    assert_eq!(get("/administer", vec![allow(), deny()]), Verdict::Allowed);
    // A DENY alone allows nothing.
    assert_eq!(get("/", vec![deny()]), Verdict::Denied);
}

#[test]
fn an_allow_without_rules_denies_all_on_the_ports_that_it_is_bound_to() {
    let bound = Policy { ports: Some(vec![80]), ..policy("none", Action::Allow, vec![]) };
    for (port, outcome) in [(80, Verdict::Denied), (81, Verdict::Allowed)] {
        assert_eq!(judge(Posture::AllowAll, vec![bound.clone()], connection(port, WEB)).decide(None).verdict, outcome);
    }
    // Without rules a DENY matches nothing.
    let deny = policy("none", Action::Deny, vec![]);
    assert!(judge(Posture::AllowAll, vec![deny], connection(80, WEB)).is_open());
}

#[test]
fn postures_go_by_identity_namespace_and_trust_domain() {
    use Posture::{AllowAll, AllowAuthenticated, AllowSameNamespace, Deny};
    let callers = [None, WEB, Some("spiffe://td/ns/dev/sa/web"), Some("spiffe://other/ns/shop/sa/web")]
        .map(|caller| connection(80, caller));
    for (posture, allowed) in [
        (AllowAll, [true, true, true, true]),
        (AllowAuthenticated, [false, true, true, true]),
        (AllowSameNamespace, [false, true, false, false]),
        (Deny, [false; 4]),
    ] {
        let found = callers.clone().map(|c| matches!(judge(posture, vec![], c).outcome(), Outcome::Allowed));
        assert_eq!(found, allowed, "{posture}");
    }
}

#[test]
fn namespaces_and_accounts_are_of_the_own_trust_domain() {
    let by_namespace = Peer { namespaces: vec!["shop".parse().expect("a namespace")], ..Peer::default() };
    let by_account = Peer { service_accounts: vec!["shop/web".parse().expect("an account")], ..Peer::default() };
    for peer in [by_namespace, by_account] {
        let allow = policy("allow", Action::Allow, vec![rule(vec![peer], vec![])]);
        let verdict = |caller| judge(Posture::AllowAll, vec![allow.clone()], connection(80, Some(caller))).decide(None).verdict;
        assert_eq!(verdict("spiffe://td/ns/shop/sa/web"), Verdict::Allowed);
        assert_eq!(verdict("spiffe://other/ns/shop/sa/web"), Verdict::Denied);
    }
}

#[test]
fn what_depends_on_http_is_not_let_by_as_bytes() {
    let allow =
        || policy("allow", Action::Allow, vec![rule(vec![from("spiffe://td/ns/shop/sa/web")], vec![paths(&[below("/a")])])]);
    let whole = || policy("whole", Action::Allow, vec![rule(vec![from("spiffe://td/ns/shop/sa/web")], vec![])]);
    let deny = || policy("deny", Action::Deny, vec![rule(vec![], vec![paths(&[below("/admin")])])]);
    let bytes = |policies| {
        let decision = judge(Posture::AllowAll, policies, connection(80, WEB)).decide(None);
        (decision.verdict, decision.cause.as_str())
    };
    assert_eq!(bytes(vec![allow()]), (Verdict::Denied, "not-http"));
    assert_eq!(bytes(vec![deny()]), (Verdict::Denied, "not-http"));
    assert_eq!(bytes(vec![whole(), deny()]), (Verdict::Denied, "not-http"));
    // Where another rule decides whatever the path were, HTTP is not needed.
    assert_eq!(bytes(vec![allow(), whole()]), (Verdict::Allowed, "matched"));
    // A policy about another port says nothing.
    assert_eq!(bytes(vec![Policy { ports: Some(vec![81]), ..allow() }]), (Verdict::Allowed, "default"));
}

#[test]
fn an_ambiguous_path_is_refused_where_a_path_decides_and_only_there() {
    let deny = || policy("deny", Action::Deny, vec![rule(vec![], vec![paths(&[below("/admin")])])]);
    let post = || Operation { methods: vec!["POST".into()], ..paths(&[below("/admin")]) };
    let get = |path: &str, policies| {
        let request = Request::get(path);
        let decision = judge(Posture::AllowAll, policies, connection(80, WEB)).decide(Some(&request));
        (decision.verdict, decision.cause.as_str())
    };
    for path in ["/x/../admin", "//admin", "/%2fadmin", "/admin;x", "/x\\..\\admin"] {
        assert_eq!(get(path, vec![deny()]), (Verdict::Denied, "path"), "{path}");
        // It is no POST: the path makes no difference.
        assert_eq!(get(path, vec![policy("post", Action::Deny, vec![rule(vec![], vec![post()])])]).0, Verdict::Allowed, "{path}");
        assert_eq!(get(path, vec![]).0, Verdict::Allowed, "{path}");
    }
    assert_eq!(get("/%61dmin/x", vec![deny()]), (Verdict::Denied, "matched"));
}

#[test]
fn a_second_field_turns_no_verdict() {
    let header = || HeaderMatch::new("X-Role", HeaderValue::Exact("admin".into())).expect("a field");
    let operation = || Operation { headers: vec![header()], ..Operation::default() };
    let verdict = |action, values: &[&str]| {
        let mut request = Request::get("/");
        request.headers.extend(values.iter().map(|v| ("x-role".to_owned(), (*v).to_owned())));
        let policy = policy("p", action, vec![rule(vec![], vec![operation()])]);
        judge(Posture::AllowAll, vec![policy], connection(80, WEB)).decide(Some(&request)).is_allowed()
    };
    assert!(verdict(Action::Allow, &["admin"]));
    assert!(
        !verdict(Action::Allow, &["admin", "guest"])
            && !verdict(Action::Allow, &["guest", "admin"])
            && !verdict(Action::Allow, &[])
    );
    assert!(verdict(Action::Deny, &["guest"]) && verdict(Action::Deny, &[]));
    assert!(!verdict(Action::Deny, &["guest", "admin"]) && !verdict(Action::Deny, &["admin", "guest"]));
}

#[test]
fn no_spelling_of_a_field_turns_a_verdict() {
    let operation = |name| {
        let header = HeaderMatch::new(name, HeaderValue::Prefix("on".into())).expect("a field");
        Operation { headers: vec![header], ..Operation::default() }
    };
    // The policy's name, the fields that are sent, whether an ALLOW lets them in, whether a DENY does.
    for (name, sent, allowed, not_denied) in [
        ("x-debug", &[("X-Debug", "on")][..], true, false),
        ("x-debug", &[("X_Debug", "on")], false, false),
        ("x-debug", &[("x_debug", "off")], false, true),
        ("x-debug", &[("x-debug", "on"), ("X_DEBUG", "off")], false, false),
        ("x-debug", &[("X_DEBUG", "on"), ("x-debug", "off")], false, false),
        ("x-debug", &[("x-debug", "on"), ("x-debug-2", "off")], true, false),
        ("x_debug", &[("X_Debug", "on")], true, false),
        ("x_debug", &[("x-debug", "on")], false, false),
        ("x-a-b", &[("x_a-b", "on")], false, false),
        ("x-debug", &[("xdebug", "on")], false, true),
    ] {
        let verdict = |action| {
            let headers = sent.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
            let policy = policy("p", action, vec![rule(vec![], vec![operation(name)])]);
            let request = Request { headers, ..Request::get("/") };
            judge(Posture::AllowAll, vec![policy], connection(80, WEB)).decide(Some(&request)).is_allowed()
        };
        assert_eq!((verdict(Action::Allow), verdict(Action::Deny)), (allowed, not_denied), "{name} {sent:?}");
    }
}

#[test]
fn a_listed_method_in_another_case_is_not_judged() {
    let methods = |list: &[&str]| list.iter().map(|m| Arc::from(*m)).collect::<Vec<_>>();
    let listed = |list| Operation { methods: methods(list), ..Operation::default() };
    let other_than = |list| Operation { not_methods: methods(list), ..Operation::default() };
    let none = Verdict::Denied;
    for (action, operation, sent, expected) in [
        (Action::Deny, listed(&["DELETE"]), "DELETE", (none, "matched")),
        (Action::Deny, listed(&["DELETE"]), "delete", (none, "method")),
        (Action::Deny, listed(&["DELETE"]), "Delete", (none, "method")),
        (Action::Deny, listed(&["DELETE"]), "get", (Verdict::Allowed, "default")),
        (Action::Allow, listed(&["GET"]), "get", (none, "method")),
        (Action::Allow, listed(&["GET"]), "delete", (none, "none-allows")),
        (Action::Allow, other_than(&["DELETE"]), "delete", (none, "method")),
        (Action::Allow, other_than(&["DELETE"]), "DELETE", (none, "none-allows")),
        (Action::Allow, other_than(&["DELETE"]), "get", (Verdict::Allowed, "matched")),
        // Made up, and listed as it is sent.
        (Action::Allow, listed(&["Frob"]), "Frob", (Verdict::Allowed, "matched")),
        (Action::Deny, listed(&["Frob"]), "FROB", (none, "method")),
    ] {
        let name = format!("{action} {operation:?} {sent}");
        let request = Request { method: sent.into(), ..Request::get("/") };
        let policy = policy("p", action, vec![rule(vec![], vec![operation])]);
        let decision = judge(Posture::AllowAll, vec![policy], connection(80, WEB)).decide(Some(&request));
        assert_eq!((decision.verdict, decision.cause.as_str()), expected, "{name}");
    }
}

#[test]
fn what_is_empty_matches_nothing_and_is_refused_when_read() {
    for broken in [rule(vec![Peer::default()], vec![]), rule(vec![], vec![Operation::default()])] {
        let allow = policy("p", Action::Allow, vec![broken]);
        assert!(allow.check().is_err());
        assert_eq!(
            judge(Posture::AllowAll, vec![allow], connection(80, WEB)).decide(Some(&Request::get("/"))).verdict,
            Verdict::Denied
        );
    }
    let nobody = Peer { unauthenticated: true, ..from("*") };
    assert!(policy("p", Action::Allow, vec![rule(vec![nobody], vec![])]).check().is_err());
    let zero = Operation { ports: vec![0], ..Operation::default() };
    assert!(policy("p", Action::Allow, vec![rule(vec![], vec![zero])]).check().is_err());
}

#[test]
fn texts_of_clauses_are_read_strictly() {
    for text in [
        "*",
        "spiffe://td/*",
        "spiffe://td/ns/shop/*",
        "spiffe://td/ns/shop/sa/*",
        "spiffe://td/ns/shop/sa/we*",
        "spiffe://td/ns/shop/sa/web",
    ] {
        assert_eq!(text.parse::<Principal>().map(|p| p.to_string()).as_deref(), Ok(text));
    }
    for text in [
        "",
        "**",
        "spiffe://td",
        "spiffe://*",
        "*web",
        "spiffe://td/sa/*",
        "spiffe://td/ns/Shop*",
        "td/ns/shop/sa/web",
        "spiffe:///*",
        "spiffe://td/ns/shop*",
        "spiffe://td/ns/s*",
        "spiffe://td/ns/-/*",
        "spiffe://td/ns//*",
        "spiffe://td/ns/shop/x*",
        "spiffe://td/ns/shop/sa/web/*",
    ] {
        assert!(text.parse::<Principal>().is_err(), "{text}");
    }
    for (text, host) in [("Cart.Shop.", "cart.shop"), ("*.Shop", "*.shop"), ("[FD00::1]", "fd00::1"), ("10.0.0.1", "10.0.0.1")] {
        assert_eq!(text.parse::<HostMatch>().map(|h| h.to_string()).as_deref(), Ok(host));
    }
    for text in ["", "*", "a*", "*.", "a:80", "a/b", "a b", "a..b"] {
        assert!(text.parse::<HostMatch>().is_err(), "{text}");
    }
    for text in ["", "a", "/a?b", "/a//b", "/../a", "/%61", "/a;b", "/a\\b"] {
        assert!(PathMatch::exact(text).is_err() && PathMatch::prefix(text).is_err(), "{text}");
    }
    assert!(
        PathMatch::template("/a").is_err() && PathMatch::template("/a{x}").is_err() && PathMatch::template("/a/{x}/b").is_ok()
    );
    assert_eq!(PathMatch::prefix("/a/").map(|p| p.to_string()).as_deref(), Ok("/a/*"));
    for name in ["", "a b", "host", "Connection", "weft-client-id", "WEFT_client_id"] {
        assert!(HeaderMatch::new(name, HeaderValue::Present).is_err(), "{name}");
    }
}
