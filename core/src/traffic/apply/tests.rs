use super::*;
use crate::traffic::route::{Backend, BackendTarget, Pattern, Timeouts};

fn prefix(text: &str) -> PathMatch {
    PathMatch::Prefix(text.into())
}

fn rewritten(target: &str, matched: &PathMatch, change: &PathChange) -> String {
    String::from_utf8(rewrite_target(target.as_bytes(), matched, change)).expect("valid")
}

// The table of `ReplacePrefixMatch` in Gateway API: path, prefix, replacement, result.
#[test]
fn a_prefix_is_replaced_with_its_slashes_in_order() {
    for (path, matched, replacement, wanted) in [
        ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
        ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
        ("/foo", "/foo", "/xyz", "/xyz"),
        ("/foo/", "/foo", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "", "/bar"),
        ("/foo/", "/foo", "", "/"),
        ("/foo", "/foo", "", "/"),
        ("/foo/", "/foo", "/", "/"),
        ("/foo", "/foo", "/", "/"),
        // Beyond the table.
        ("/foo/bar", "/", "/xyz", "/xyz/foo/bar"),
        ("/", "/", "/xyz", "/xyz/"),
        ("/foo/bar", "/foo", "xyz", "/xyz/bar"),
        ("/foobar", "/foo", "/xyz", "/foobar"),
    ] {
        let change = PathChange::Prefix(replacement.into());
        for query in ["", "?", "?a=/foo&b=%2F"] {
            let target = format!("{path}{query}");
            assert_eq!(
                rewritten(&target, &prefix(matched), &change),
                format!("{wanted}{query}"),
                "{target} {matched} {replacement}"
            );
            let absolute = format!("http://host:80{target}");
            assert_eq!(rewritten(&absolute, &prefix(matched), &change), format!("http://host:80{wanted}{query}"));
        }
    }
}

#[test]
fn a_prefix_is_whatever_the_match_named() {
    let change = PathChange::Prefix("/x".into());
    assert_eq!(rewritten("/a/b", &PathMatch::Any, &change), "/x/a/b");
    assert_eq!(rewritten("/a/b", &PathMatch::Exact("/a/b".into()), &change), "/x");
    assert_eq!(rewritten("/a/b", &PathMatch::Regex(Pattern::new("/a.*").expect("valid")), &change), "/a/b");
}

// MeshHTTPRouteRewritePath, HTTPRouteRewritePath.
#[test]
fn whole_paths_are_replaced() {
    let full = |text: &str| PathChange::Full(text.into());
    assert_eq!(rewritten("/prefix/one/two", &prefix("/prefix/one"), &PathChange::Prefix("/one".into())), "/one/two");
    assert_eq!(rewritten("/strip-prefix/three", &prefix("/strip-prefix"), &PathChange::Prefix("/".into())), "/three");
    assert_eq!(rewritten("/full/one/two?q=1", &prefix("/full/one"), &full("/one")), "/one?q=1");
    assert_eq!(rewritten("/full", &prefix("/full"), &full("one")), "/one");
    assert_eq!(rewritten("/full", &prefix("/full"), &full("")), "/");
}

#[test]
fn targets_without_a_path_stay_and_empty_paths_become_one() {
    let change = PathChange::Full("/x".into());
    for target in ["*", "host:443", ""] {
        assert_eq!(rewritten(target, &PathMatch::Any, &change), target);
    }
    assert_eq!(rewritten("http://host", &PathMatch::Any, &change), "http://host/x");
    assert_eq!(rewritten("http://host?q", &PathMatch::Any, &change), "http://host/x?q");
    assert_eq!(rewritten("http://host?q", &PathMatch::Any, &PathChange::Prefix("/".into())), "http://host/?q");
    // What looks like a scheme in a path or a query is none.
    assert_eq!(rewritten("/a://b/c?d://e", &PathMatch::Any, &change), "/x?d://e");
}

// What a redirect says, of `scheme hostname path port status`.
struct Case<'c> {
    stands_for: &'c str,
    redirect: Redirect,
    authority: &'c str,
    port: u16,
    target: &'c str,
    wanted: &'c str,
}

fn plain(status: u16) -> Redirect {
    Redirect { scheme: None, hostname: None, path: None, port: None, status }
}

#[test]
fn redirects_say_where() {
    let host = |name: &str, status| Redirect { hostname: Some(name.into()), ..plain(status) };
    let scheme = |scheme: &str| Redirect { scheme: Some(scheme.into()), ..plain(302) };
    let port = |port| Redirect { port: Some(port), ..plain(302) };
    let path = |path| Redirect { path: Some(path), ..plain(302) };
    let case =
        |stands_for, redirect, authority, port, target, wanted| Case { stands_for, redirect, authority, port, target, wanted };
    for Case { stands_for, redirect: asked, authority, port, target, wanted } in [
        case(
            "MeshHTTPRouteRedirectHostAndStatus",
            host("example.org", 302),
            "echo",
            80,
            "/hostname-redirect",
            "http://example.org/hostname-redirect",
        ),
        case(
            "MeshHTTPRouteRedirectHostAndStatus",
            host("example.org", 301),
            "echo",
            80,
            "/host-and-status",
            "http://example.org/host-and-status",
        ),
        case("MeshHTTPRoute303Redirect", host("example.org", 303), "echo", 80, "/x", "http://example.org/x"),
        case("MeshHTTPRoute307Redirect", host("example.org", 307), "echo", 80, "/x", "http://example.org/x"),
        case("MeshHTTPRoute308Redirect", host("example.org", 308), "echo", 80, "/x", "http://example.org/x"),
        case("MeshHTTPRouteRedirectPort", port(8083), "echo", 80, "/port", "http://echo:8083/port"),
        case(
            "MeshHTTPRouteRedirectPort",
            Redirect { port: Some(8083), ..host("example.org", 301) },
            "echo",
            80,
            "/p",
            "http://example.org:8083/p",
        ),
        case("MeshHTTPRouteSchemeRedirect", scheme("https"), "echo", 80, "/scheme", "https://echo/scheme"),
        case(
            "MeshHTTPRouteSchemeRedirect",
            Redirect { scheme: Some("https".into()), ..host("example.org", 301) },
            "echo",
            80,
            "/s",
            "https://example.org/s",
        ),
        case(
            "MeshHTTPRouteRedirectPath",
            path(PathChange::Prefix("/replacement".into())),
            "echo",
            80,
            "/original/lemon",
            "http://echo/replacement/lemon",
        ),
        case(
            "MeshHTTPRouteRedirectPath",
            path(PathChange::Full("/full".into())),
            "echo",
            80,
            "/original/x?q=1",
            "http://echo/full?q=1",
        ),
        // HTTPRouteRedirectPortAndScheme: the scheme's own port, unless one is said; the port that the scheme has anyway is left out.
        case("HTTPRouteRedirectPortAndScheme", plain(302), "echo:8080", 8080, "/", "http://echo:8080/"),
        case("HTTPRouteRedirectPortAndScheme", scheme("http"), "echo:8080", 8080, "/", "http://echo/"),
        case("HTTPRouteRedirectPortAndScheme", scheme("https"), "echo:8080", 8080, "/", "https://echo/"),
        case(
            "HTTPRouteRedirectPortAndScheme",
            Redirect { port: Some(443), ..scheme("https") },
            "echo:8080",
            8080,
            "/",
            "https://echo/",
        ),
        case(
            "HTTPRouteRedirectPortAndScheme",
            Redirect { port: Some(80), ..scheme("https") },
            "echo:8080",
            8080,
            "/",
            "https://echo:80/",
        ),
        case("HTTPRouteRedirectPortAndScheme", port(80), "echo:8080", 8080, "/", "http://echo/"),
        case("a scheme without a port of its own", scheme("ws"), "echo:8080", 8080, "/", "ws://echo:8080/"),
        case("an IPv6 host", plain(302), "[::1]:8080", 80, "/a", "http://[::1]/a"),
        case("an IPv6 host without a port", plain(302), "[::1]", 81, "/a", "http://[::1]:81/a"),
        case("no host", plain(302), "", 80, "/a?b", "/a?b"),
        case("the absolute form", plain(302), "echo", 80, "http://echo/a?b", "http://echo/a?b"),
        case("no path", plain(302), "echo", 80, "*", "http://echo/"),
        case("an empty path", plain(302), "echo", 80, "http://echo?q", "http://echo/?q"),
    ] {
        let matched = prefix("/original");
        let facts =
            RedirectFacts { scheme: "http", authority: authority.as_bytes(), port, target: target.as_bytes(), matched: &matched };
        let answer = redirect(&asked, &facts);
        assert_eq!(
            (answer.status, String::from_utf8(answer.location).expect("valid")),
            (asked.status, wanted.to_owned()),
            "{stands_for}"
        );
    }
}

fn weighted(weights: &[u32]) -> Rule {
    let backend = |weight: &u32| Backend { target: BackendTarget::Unresolved("".into()), weight: *weight, filters: vec![] };
    Rule {
        name: None,
        matches: vec![],
        filters: vec![],
        backends: weights.iter().map(backend).collect(),
        timeouts: Timeouts::default(),
        retry: None,
        session: None,
    }
}

// MeshHTTPRouteWeight, MeshGRPCRouteWeight: 70 to 30.
#[test]
fn backends_are_chosen_by_weight() {
    let rule = weighted(&[0, 70, 0, 30, 0]);
    let mut seen = [0; 5];
    for step in 0..1000u64 {
        seen[choose_backend(&rule, step * (u64::MAX / 1000) + u64::MAX / 2000).expect("valid")] += 1;
    }
    assert_eq!(seen, [0, 700, 0, 300, 0]);
    assert_eq!((choose_backend(&rule, 0), choose_backend(&rule, u64::MAX)), (Some(1), Some(3)));
}

// HTTPRouteAllBackendsWeightZero, GRPCRouteAllBackendsWeightZero: nobody gets it.
#[test]
fn without_any_weight_there_is_no_backend() {
    assert_eq!(choose_backend(&weighted(&[]), 7), None);
    assert_eq!(choose_backend(&weighted(&[0, 0]), u64::MAX), None);
}

#[test]
fn weights_may_sum_beyond_32_bits() {
    let rule = weighted(&[u32::MAX, u32::MAX, u32::MAX]);
    let at = |part: u64| choose_backend(&rule, part * (u64::MAX / 6));
    assert_eq!([at(1), at(3), at(5), choose_backend(&rule, u64::MAX)], [Some(0), Some(1), Some(2), Some(2)]);
}

// HTTPRouteRequestPercentageMirror: 20 of 100, one of two, none, all.
#[test]
fn a_share_is_mirrored() {
    let count = |numerator, denominator| {
        (0..1000u64).filter(|step| mirrors(numerator, denominator, step * (u64::MAX / 1000) + u64::MAX / 2000)).count()
    };
    assert_eq!(
        [count(20, 100), count(1, 2), count(0, 100), count(100, 100), count(5, 0), count(7, 3)],
        [200, 500, 0, 1000, 0, 1000]
    );
    assert!(mirrors(100, 100, u64::MAX));
}

// MeshHTTPRouteRequestHeaderModifier, MeshGRPCRouteRequestHeaderModifier, HTTPRouteResponseHeaderModifier.
#[test]
fn header_fields_are_set_added_removed() {
    #[derive(Default)]
    struct Fields(Vec<(String, String)>);
    impl HeaderEdit for Fields {
        fn set(&mut self, name: &str, value: &str) {
            self.remove(name);
            self.add(name, value);
        }
        fn add(&mut self, name: &str, value: &str) {
            self.0.push((name.into(), value.into()));
        }
        fn remove(&mut self, name: &str) {
            self.0.retain(|(field, _)| field != name);
        }
    }
    let mut fields = Fields(vec![]);
    for (name, value) in [("x-set", "old"), ("x-set", "older"), ("x-add", "first"), ("x-remove", "gone"), ("x-keep", "kept")] {
        fields.add(name, value);
    }
    let change = HeaderChange {
        set: vec![("x-set".into(), "new".into())],
        add: vec![("x-add".into(), "second".into()), ("x-new".into(), "new".into())],
        remove: vec!["x-remove".into(), "x-absent".into()],
    };
    change_headers(&change, &mut fields);
    let said: Vec<String> = fields.0.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(said, ["x-add=first", "x-keep=kept", "x-set=new", "x-add=second", "x-new=new"]);
}
