// The cases of Gateway API's conformance suite, as far as they are decisions: what is asked, and where it must go. Each test or row names the case
// that it stands for. The suite itself runs against a cluster.
//
// Stood for elsewhere in this crate:
// - `MeshHTTPRouteRewritePath`, `MeshHTTPRouteRedirectPath`, `…RedirectPort`, `…SchemeRedirect`, `…RedirectHostAndStatus`, `…303/307/308Redirect`,
//   `MeshHTTPRouteWeight`, `MeshGRPCRouteWeight`, `HTTPRouteAllBackendsWeightZero`, `GRPCRouteAllBackendsWeightZero`, `MeshHTTPRouteRequestHeaderModifier`,
//   `MeshGRPCRouteRequestHeaderModifier`, `HTTPRouteResponseHeaderModifier`, `HTTPRouteRequestPercentageMirror`: `traffic/apply/tests.rs`.
// - `GRPCRouteSessionPersistenceCookie` and its `…PermanentLifetime`: `traffic/session/tests.rs`, the mark and the cookie; that requests follow it is the sidecar's.
//
// Not decisions, so not here:
// - `MeshBasic`, `MeshFrontend` (to a pod's address), `MeshFrontendHostname`: which service an address is comes before any table; the table of a port knows
//   no host, which the type already says (`hostnames` of an `HTTPRoute` are never read, see `hostnames_are_ignored`).
// - `MeshConsumerRoute`: which routes a caller is given is the control plane's; the table has those that it is given.
// - `HTTPRouteRequestMirror`, `…MultipleMirrors`, `MeshGRPCRouteRequestMirror`, `HTTPRouteTimeoutRequest`, `…TimeoutBackendRequest`, `HTTPRouteRetry…`,
//   `HTTPRouteBackendProtocolH2C`, `…WebSocket`: what is sent, and when: the sidecar's.
// - `HTTPRouteCrossNamespace`, `…ReferenceGrant`, `…InvalidBackendRef…`, `…InvalidNonExistentBackendRef`, `…PartiallyInvalid…`, `…ObservedGenerationBump`,
//   `…ParentRef…`: references and status are the control plane's; what cannot be resolved arrives as `BackendTarget::Unresolved`.
// - `HTTPRouteListenerHostnameMatching`, `GRPCRouteListenerHostnameMatching`, `HTTPRouteHostnameIntersection`, `HTTPRouteHTTPSListener`,
//   `…ListenerPortMatching`, `Gateway…`, `BackendTLSPolicy…`: of gateways and listeners, which a mesh does not have.
// - `HTTPRouteCORS…`, `HTTPRouteExternalAuth…`: filters that are not of this mesh; a route with one is refused.

use super::*;

// MeshHTTPRouteMatching, HTTPRouteMatching.
#[test]
fn path_and_header() {
    let routes = [http(&[("/|version:one", "echo-v1"), ("/v2|version:two", "echo-v2")])];
    expect(
        &routes,
        &[
            ("/", "echo-v1"),
            ("/example", "echo-v1"),
            ("/ Version:one", "echo-v1"),
            ("/v2", "echo-v2"),
            ("/v2/example", "echo-v2"),
            ("/ Version:two", "echo-v2"),
            ("/v2/", "echo-v2"),
            ("/v2example", "echo-v1"),
            ("/foo/v2/example", "echo-v1"),
        ],
    );
}

// HTTPRouteMatchingAcrossRoutes, without its host names: rules of several routes stand in one order.
#[test]
fn across_routes() {
    let one = route(RouteKind::Http, "ns/part1", 0, &[("/|version:one", "v1")]);
    let two = route(RouteKind::Http, "ns/part2", 0, &[("/v2|version:two", "v2")]);
    for routes in [[one.clone(), two.clone()], [two, one]] {
        expect(
            &routes,
            &[
                ("/", "v1"),
                ("/ version:one", "v1"),
                ("/v2", "v2"),
                ("/v2/example", "v2"),
                ("/ version:two", "v2"),
                ("/v2 version:one", "v2"),
            ],
        );
    }
}

// HTTPRouteExactPathMatching.
#[test]
fn exact_path() {
    let routes = [http(&[("=/one", "v1"), ("=/two", "v2")])];
    expect(&routes, &[("/one", "v1"), ("/two", "v2"), ("/", "404"), ("/one/example", "404"), ("/two/", "404"), ("/Two", "404")]);
}

// HTTPRoutePathMatchOrder.
#[test]
fn path_order() {
    let rules = [
        ("=/match/exact/one", "v3"),
        ("=/match/exact", "v2"),
        ("=/match", "v1"),
        ("/match/prefix/one", "v2"),
        ("/match/prefix", "v1"),
        ("/match", "v3"),
    ];
    let backwards: Vec<_> = rules.iter().rev().copied().collect();
    for rules in [&rules[..], &backwards] {
        expect(
            &[http(rules)],
            &[
                ("/match/exact/one", "v3"),
                ("/match/exact", "v2"),
                ("/match", "v1"),
                ("/match/prefix/one/any", "v2"),
                ("/match/prefix/any", "v1"),
                ("/match/any", "v3"),
            ],
        );
    }
}

// HTTPRouteHeaderMatching; and, as gRPC metadata, GRPCRouteHeaderMatching.
#[test]
fn headers() {
    let rules = [
        ("version:one", "v1"),
        ("version:two", "v2"),
        ("version:two color:orange", "v1"),
        ("color:blue|color:green", "v1"),
        ("color:red|color:yellow", "v2"),
    ];
    let cases = [
        ("Version:one", "v1"),
        ("Version:two", "v2"),
        ("Version:two Color:orange", "v1"),
        ("Version:two Color:blue", "v2"),
        ("Color:orange", "404"),
        ("Some-Other-Header:one", "404"),
        ("Color:blue", "v1"),
        ("Color:green", "v1"),
        ("Color:red", "v2"),
        ("Color:yellow", "v2"),
        ("Color:purple", "404"),
    ];
    for (fields, wanted) in cases {
        expect(&[http(&rules)], &[(&format!("/ {fields}"), wanted)]);
        expect(&[grpc(&rules)], &[(&format!("@pkg.GrpcEcho/Echo {fields}"), wanted)]);
    }
}

// HTTPRouteMethodMatching.
#[test]
fn methods() {
    let routes = [http(&[
        ("POST", "v1"),
        ("GET", "v2"),
        ("/path1 GET", "v1"),
        ("PUT version:one", "v2"),
        ("/path2 POST version:two", "v3"),
        ("/path3 PATCH|/path4 DELETE version:three", "v1"),
        ("/path5", "v1"),
        ("PATCH", "v2"),
        ("version:four", "v3"),
    ])];
    expect(
        &routes,
        &[
            ("POST /", "v1"),
            ("GET /", "v2"),
            ("HEAD /", "404"),
            ("GET /path1", "v1"),
            ("PUT / version:one", "v2"),
            ("POST /path2 version:two", "v3"),
            ("PATCH /path3", "v1"),
            ("DELETE /path4 version:three", "v1"),
            ("PUT /", "404"),
            ("DELETE /path4", "404"),
            // A longer path comes before a method, a method before a header field.
            ("PATCH /path5", "v1"),
            ("PATCH / version:four", "v2"),
        ],
    );
}

// MeshHTTPRouteQueryParamMatching, HTTPRouteQueryParamMatching.
#[test]
fn query_parameters() {
    let routes = [http(&[
        ("?animal=whale", "v1"),
        ("?animal=dolphin", "v2"),
        ("?animal=dolphin ?color=blue", "v3"),
        ("/path1 ?animal=whale", "v1"),
        ("version:one ?animal=whale", "v2"),
        ("/path3 ?animal=shark|/path4 ?animal=kraken version:three", "v1"),
        ("/path5", "v1"),
        ("?animal=hydra", "v2"),
    ])];
    expect(
        &routes,
        &[
            ("/?animal=whale", "v1"),
            ("/?animal=dolphin", "v2"),
            ("/?animal=whale&otherparam=irrelevant", "v1"),
            ("/?animal=dolphin&color=yellow", "v2"),
            ("/?animal=dolphin&color=blue", "v3"),
            ("/?color=blue", "404"),
            ("/?animal=dog", "404"),
            ("/?animal=whaledolphin", "404"),
            ("/", "404"),
            ("/path1?animal=whale", "v1"),
            ("/?animal=whale version:one", "v2"),
            ("/path3?animal=shark", "v1"),
            ("/path4?animal=kraken version:three", "v1"),
            ("/?animal=shark", "404"),
            ("/path4?animal=kraken", "404"),
            ("/path5?animal=hydra", "v1"),
        ],
    );
}

// MeshTrafficSplit (by path) and HTTPRouteSimpleSameNamespace, MeshHTTPRouteSimpleSameNamespace.
#[test]
fn split_by_path() {
    expect(&[http(&[("=/v1", "echo-v1"), ("=/v2", "echo-v2")])], &[("/v1", "echo-v1"), ("/v2", "echo-v2"), ("/v3", "404")]);
    expect(&[http(&[("", "echo-v1")])], &[("/", "echo-v1"), ("/any?thing", "echo-v1")]);
}

// MeshHTTPRouteNamedRule, GRPCRouteNamedRule: a name changes nothing.
#[test]
fn named_rules() {
    let mut named = (*http(&[("/named", "v1"), ("/unnamed", "v2")])).clone();
    named.rules[0].name = Some("named-rule".into());
    expect(&[Arc::new(named)], &[("/named", "v1"), ("/unnamed", "v2"), ("/", "404")]);
}

// MeshPorts.
#[test]
fn ports() {
    let mut at_80 = (*http(&[("", "v1")])).clone();
    at_80.ports = vec![80];
    let (one, all) = ([Arc::new(at_80)], [http(&[("", "v2")])]);
    let at = |routes: &[Arc<Route>], port| said(RouteTable::new(routes, port).http(&request("/")));
    assert_eq!([at(&one, 80), at(&one, 8080)], ["v1", "service"]);
    assert_eq!([at(&all, 80), at(&all, 8080)], ["v2", "v2"]);
}

// MeshFrontendHostname, as far as it is a table's: the destination decides, not the host.
#[test]
fn hostnames_are_ignored() {
    let mut named = (*http(&[("", "v2")])).clone();
    named.hostnames = vec!["echo-v2".into()];
    expect(&[Arc::new(named)], &[("/ host:echo-v1", "v2"), ("/ host:echo-v2", "v2"), ("/", "v2")]);
}

// GRPCExactMethodMatching.
#[test]
fn grpc_exact_method() {
    let routes = [grpc(&[("@pkg.GrpcEcho/Echo", "v1"), ("@pkg.GrpcEcho/EchoTwo", "v2")])];
    expect(&routes, &[("@pkg.GrpcEcho/Echo", "v1"), ("@pkg.GrpcEcho/EchoTwo", "v2"), ("@pkg.GrpcEcho/EchoThree", "404")]);
}
