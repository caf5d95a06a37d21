//! The cases of Kubernetes' own end-to-end tests of network policies (`test/e2e/network/netpol/network_policy.go`), as a table: the name of each, the policies,
//! and who reaches whom among the pods a, b and c of the namespaces x, y and z. A pod that calls itself is left out there, and here.

use super::*;

/// One step of a case: manifests that come, policies that go, and what is expected then.
struct Step {
    apply: String,
    gone: &'static [&'static str],
    port: u16,
    /// Who, whom, and whether it gets there; `*` is all. Everybody reaches everybody where none says otherwise; the last word counts.
    expect: &'static [(&'static str, &'static str, bool)],
}

fn step(apply: impl Into<String>, port: u16, expect: &'static [(&'static str, &'static str, bool)]) -> Step {
    Step { apply: apply.into(), gone: &[], port, expect }
}

fn np(at: &str, spec: &str) -> String {
    let (namespace, name) = at.split_once('/').expect("namespace and name");
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

/// A policy for the pods that `who` selects, which isolates for ingress.
fn ingress(at: &str, who: &str, rules: &str) -> String {
    np(at, &format!("{{podSelector: {who}, policyTypes: [Ingress], ingress: {rules}}}"))
}

fn egress(at: &str, who: &str, rules: &str) -> String {
    np(at, &format!("{{podSelector: {who}, policyTypes: [Egress], egress: {rules}}}"))
}

const A: &str = "{matchLabels: {pod: a}}";
const B: &str = "{matchLabels: {pod: b}}";
const ALL: &str = "{}";
const IN_Y: &str = "{matchLabels: {kubernetes.io/metadata.name: y}}";
const NOT_X: &str = "{matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [x]}]}";

/// The names of the original's cases, in its order, as of its commit 008b3659: those of UDP and of SCTP have that in front.
const UPSTREAM: &str = include_str!("upstream.txt");

/// What depends on UDP or SCTP getting through, or not: weft carries neither, and does not see them.
const NOT_ENFORCEABLE: &[&str] = &[
    "UDP: should support a 'default-deny-ingress' policy",
    "UDP: should enforce policy based on Ports",
    "UDP: should enforce policy to allow traffic only from a pod in a different namespace based on PodSelector and NamespaceSelector",
    "SCTP: should support a 'default-deny-ingress' policy",
    "SCTP: should enforce policy based on Ports",
    "SCTP: should enforce policy to allow traffic only from a pod in a different namespace based on PodSelector and NamespaceSelector",
    "the half about UDP of: should enforce ingress policy allowing any port traffic to a server on a specific protocol",
];

fn pod_of(namespace: &str, name: &str, labels: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, labels: {{pod: {name}{labels}}}}}\n\
         spec: {{serviceAccountName: {name}, containers: [{{name: app, ports: [{{name: serve-80-tcp, containerPort: 80}}, {{name: serve-81-tcp, containerPort: 81}}]}}, {{name: weft-sidecar}}]}}\n\
         status: {{podIP: {}}}\n",
        address(namespace, name)
    )
}

fn address(namespace: &str, name: &str) -> IpAddr {
    let octet = |text: &str| text.bytes().next().expect("a letter");
    IpAddr::from([10, 0, octet(namespace), octet(name)])
}

fn namespace(name: &str, labels: &str) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n")
}

fn cases() -> Vec<(&'static str, Vec<Step>)> {
    let from = |who: &str| format!("[{{from: [{{podSelector: {who}}}]}}]");
    let from_ns = |who: &str| format!("[{{from: [{{namespaceSelector: {who}}}]}}]");
    let both = |ns: &str, pods: &str| format!("{{namespaceSelector: {ns}, podSelector: {pods}}}");
    let only_y: &[_] = &[("x/*", "x/a", false), ("z/*", "x/a", false)];
    let nobody_to_a: &[_] = &[("*", "x/a", false)];
    let y_port = |n: &str, port: &str| {
        ingress(n, A, &format!("[{{from: [{{namespaceSelector: {IN_Y}}}], ports: [{{port: {port}, protocol: TCP}}]}}]"))
    };
    let deny_in = || ingress("x/deny", ALL, "[]");
    let b32 = format!("{}/32", address("x", "b"));
    let around_b = egress("x/cidr", A, &format!("[{{to: [{{ipBlock: {{cidr: 10.0.0.0/8, except: [{b32}]}}}}]}}]"));
    vec![
        ("should support a 'default-deny-ingress' policy", vec![step(deny_in(), 80, &[("*", "x/*", false)])]),
        (
            "should support a 'default-deny-all' policy",
            vec![step(
                np("x/deny-all", "{podSelector: {}, policyTypes: [Ingress, Egress]}"),
                80,
                &[("*", "x/*", false), ("x/*", "*", false)],
            )],
        ),
        (
            "should enforce policy to allow traffic from pods within server namespace based on PodSelector",
            vec![step(ingress("x/p", A, &from(B)), 80, &[("*", "x/a", false), ("x/b", "x/a", true)])],
        ),
        (
            "should enforce policy to allow ingress traffic for a target",
            vec![step(
                deny_in() + &ingress("x/p", A, &format!("[{{from: [{}]}}]", both(ALL, ALL))),
                80,
                &[("*", "x/*", false), ("*", "x/a", true)],
            )],
        ),
        (
            "should enforce policy to allow ingress traffic from pods in all namespaces",
            vec![step(ingress("x/p", A, &from_ns("{matchLabels: {}}")), 80, &[])],
        ),
        (
            "should enforce policy to allow traffic only from a different namespace, based on NamespaceSelector",
            vec![step(ingress("x/p", A, &from_ns(IN_Y)), 80, only_y)],
        ),
        (
            "should enforce policy based on PodSelector with MatchExpressions",
            vec![step(
                ingress("x/p", A, &from("{matchExpressions: [{key: pod, operator: In, values: [b]}]}")),
                80,
                &[("*", "x/a", false), ("x/b", "x/a", true)],
            )],
        ),
        (
            "should enforce policy based on NamespaceSelector with MatchExpressions",
            vec![step(
                ingress(
                    "x/p",
                    A,
                    &from_ns("{matchExpressions: [{key: kubernetes.io/metadata.name, operator: In, values: [y]}]}"),
                ),
                80,
                only_y,
            )],
        ),
        (
            "should enforce policy based on PodSelector or NamespaceSelector",
            vec![step(
                ingress("x/p", A, &format!("[{{from: [{{namespaceSelector: {NOT_X}}}, {{podSelector: {B}}}]}}]")),
                80,
                &[("x/a", "x/a", false), ("x/c", "x/a", false)],
            )],
        ),
        (
            "should enforce policy based on PodSelector and NamespaceSelector",
            vec![step(
                ingress("x/p", A, &format!("[{{from: [{}]}}]", both(NOT_X, B))),
                80,
                &[("*", "x/a", false), ("y/b", "x/a", true), ("z/b", "x/a", true)],
            )],
        ),
        (
            "should enforce policy based on Multiple PodSelectors and NamespaceSelectors",
            vec![step(
                ingress(
                    "x/p",
                    A,
                    &format!("[{{from: [{}]}}]", both(NOT_X, "{matchExpressions: [{key: pod, operator: In, values: [b, c]}]}")),
                ),
                80,
                &[("x/*", "x/a", false), ("y/a", "x/a", false), ("z/a", "x/a", false)],
            )],
        ),
        (
            "should enforce policy based on any PodSelectors",
            vec![step(
                ingress("x/p", A, &format!("[{{from: [{{podSelector: {B}}}, {{podSelector: {{matchLabels: {{pod: c}}}}}}]}}]")),
                80,
                &[("*", "x/a", false), ("x/b", "x/a", true), ("x/c", "x/a", true)],
            )],
        ),
        (
            "should enforce policy to allow traffic only from a pod in a different namespace based on PodSelector and NamespaceSelector",
            vec![step(
                ingress("x/p", A, &format!("[{{from: [{}]}}]", both(IN_Y, A))),
                80,
                &[("*", "x/a", false), ("y/a", "x/a", true)],
            )],
        ),
        ("should enforce policy based on Ports", vec![step(y_port("x/p", "81"), 81, only_y)]),
        (
            "should enforce multiple, stacked policies with overlapping podSelectors",
            vec![step(y_port("x/p81", "81"), 81, only_y), step("", 80, nobody_to_a), step(y_port("x/p80", "80"), 80, only_y)],
        ),
        ("should support allow-all policy", vec![step(ingress("x/p", ALL, "[{}]"), 80, &[]), step("", 81, &[])]),
        (
            "should allow ingress access on one named port",
            vec![step(ingress("x/p", ALL, "[{ports: [{port: serve-81-tcp}]}]"), 81, &[]), step("", 80, &[("*", "x/*", false)])],
        ),
        (
            "should allow ingress access from namespace on one named port",
            vec![step(y_port("x/p", "serve-80-tcp"), 80, only_y), step("", 81, nobody_to_a)],
        ),
        (
            "should allow egress access on one named port",
            vec![step(egress("x/p", ALL, "[{ports: [{port: serve-80-tcp}]}]"), 80, &[]), step("", 81, &[("x/*", "*", false)])],
        ),
        (
            "should enforce updated policy",
            vec![step(ingress("x/p", ALL, "[{}]"), 81, &[]), step(ingress("x/p", ALL, "[]"), 81, &[("*", "x/*", false)])],
        ),
        (
            "should allow ingress access from updated namespace",
            vec![
                step(ingress("x/p", A, &from_ns("{matchLabels: {ns2: updated}}")), 80, nobody_to_a),
                step(namespace("y", "ns2: updated"), 80, &[("*", "x/a", false), ("y/*", "*", true)]),
            ],
        ),
        (
            "should allow ingress access from updated pod",
            vec![
                step(ingress("x/p", A, &from("{matchLabels: {pod: b, pod2: updated}}")), 80, nobody_to_a),
                step(pod_of("x", "b", ", pod2: updated"), 80, &[("*", "x/a", false), ("x/b", "x/a", true)]),
            ],
        ),
        (
            "should deny ingress from pods on other namespaces",
            vec![step(ingress("x/p", ALL, &from("{matchLabels: {}}")), 80, &[("y/*", "x/*", false), ("z/*", "x/*", false)])],
        ),
        (
            "should deny ingress access to updated pod",
            vec![
                step(ingress("x/p", "{matchLabels: {target: isolated}}", "[]"), 80, &[]),
                step(pod_of("x", "a", ", target: isolated"), 80, nobody_to_a),
            ],
        ),
        ("should deny egress from pods based on PodSelector", vec![step(egress("x/p", A, "[]"), 80, &[("x/a", "*", false)])]),
        ("should deny egress from all pods in a namespace", vec![step(egress("x/p", ALL, "[]"), 80, &[("x/*", "*", false)])]),
        (
            "should work with Ingress, Egress specified together",
            vec![
                step(
                    np(
                        "x/p",
                        &format!(
                            "{{podSelector: {A}, policyTypes: [Egress, Ingress], ingress: {}, egress: [{{ports: [{{port: 80}}]}}]}}",
                            from(B)
                        ),
                    ),
                    80,
                    &[("*", "x/a", false), ("x/b", "x/a", true)],
                ),
                step("", 81, &[("*", "x/a", false), ("x/a", "*", false), ("x/b", "x/a", true)]),
            ],
        ),
        (
            "should support denying of egress traffic on the client side (even if the server explicitly allows this traffic)",
            vec![step(
                egress("x/p", A, &format!("[{{to: [{}]}}]", both(IN_Y, A)))
                    + &["a", "b"]
                        .map(|to| {
                            let x_a = both("{matchLabels: {kubernetes.io/metadata.name: x}}", A);
                            ingress(
                                &format!("y/{to}"),
                                &format!("{{matchLabels: {{pod: {to}}}}}"),
                                &format!("[{{from: [{x_a}]}}]"),
                            )
                        })
                        .concat(),
                80,
                &[("x/a", "*", false), ("*", "y/a", false), ("x/a", "y/a", true), ("*", "y/b", false)],
            )],
        ),
        (
            "should enforce egress policy allowing traffic to a server in a different namespace based on PodSelector and NamespaceSelector",
            vec![step(
                egress("x/p", A, &format!("[{{to: [{}]}}]", both(IN_Y, A))),
                80,
                &[("x/a", "*", false), ("x/a", "y/a", true)],
            )],
        ),
        (
            "should enforce ingress policy allowing any port traffic to a server on a specific protocol",
            vec![step(ingress("x/p", A, "[{ports: [{protocol: TCP}]}]"), 80, &[])],
        ),
        (
            "should enforce multiple ingress policies with ingress allow-all policy taking precedence",
            vec![
                step(ingress("x/p80", ALL, "[{ports: [{port: 80}]}]"), 81, &[("*", "x/*", false)]),
                step(ingress("x/all", ALL, "[{}]"), 81, &[]),
            ],
        ),
        (
            "should enforce multiple egress policies with egress allow-all policy taking precedence",
            vec![
                step(egress("x/p80", ALL, "[{ports: [{port: 80}]}]"), 81, &[("x/*", "*", false)]),
                step(egress("x/all", ALL, "[{}]"), 81, &[]),
            ],
        ),
        (
            "should stop enforcing policies after they are deleted",
            vec![
                step(
                    np("x/deny-all", "{podSelector: {}, policyTypes: [Ingress, Egress]}"),
                    80,
                    &[("x/*", "*", false), ("*", "x/*", false)],
                ),
                Step { apply: String::new(), gone: &["x/deny-all"], port: 80, expect: &[] },
            ],
        ),
        (
            "should allow egress access to server in CIDR block",
            vec![step(
                egress("x/p", A, &format!("[{{to: [{{ipBlock: {{cidr: {}/32}}}}]}}]", address("y", "b"))),
                80,
                &[("x/a", "*", false), ("x/a", "y/b", true)],
            )],
        ),
        (
            "should enforce except clause while egress access to server in CIDR block",
            vec![step(around_b.clone(), 80, &[("x/a", "x/b", false)])],
        ),
        (
            "should ensure an IP overlapping both IPBlock.CIDR and IPBlock.Except is allowed",
            vec![
                step(around_b, 80, &[("x/a", "x/b", false)]),
                step(
                    egress("x/cidr", A, &format!("[{{to: [{{ipBlock: {{cidr: {b32}}}}}]}}]")),
                    80,
                    &[("x/a", "*", false), ("x/a", "x/b", true)],
                ),
            ],
        ),
        (
            "should enforce policies to check ingress and egress policies can be controlled independently based on PodSelector",
            vec![step(egress("x/out", A, "[{}]"), 80, &[]), step(ingress("x/in", A, "[]"), 80, nobody_to_a)],
        ),
        (
            "should not mistakenly treat 'protocol: SCTP' as 'protocol: TCP', even if the plugin doesn't support SCTP",
            vec![step(deny_in() + &ingress("x/sctp", A, "[{ports: [{port: 81, protocol: SCTP}]}]"), 81, &[("*", "x/*", false)])],
        ),
        (
            "should properly isolate pods that are selected by a policy allowing SCTP, even if the plugin doesn't support SCTP",
            vec![step(ingress("x/sctp", A, "[{ports: [{port: 80, protocol: SCTP}]}]"), 81, nobody_to_a)],
        ),
        (
            "should not allow access by TCP when a policy specifies only UDP",
            vec![step(ingress("x/udp", A, "[{ports: [{port: 81, protocol: UDP}]}]"), 81, nobody_to_a)],
        ),
        (
            "should enforce policy to allow traffic based on NamespaceSelector with MatchLabels using default ns label",
            vec![step(ingress("x/p", A, &from_ns(IN_Y)), 80, only_y)],
        ),
        (
            "should enforce policy based on NamespaceSelector with MatchExpressions using default ns label",
            vec![step(
                egress(
                    "x/p",
                    A,
                    "[{to: [{namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [y]}]}}]}]",
                ),
                80,
                &[("x/a", "y/*", false)],
            )],
        ),
    ]
}

fn is(pattern: &str, name: &str) -> bool {
    pattern == "*" || pattern == name || pattern.strip_suffix('*').is_some_and(|namespace| name.starts_with(namespace))
}

#[test]
fn every_case_of_kubernetes_own_tests_has_its_verdicts() {
    let names: Vec<(&str, &str)> = ["x", "y", "z"].into_iter().flat_map(|ns| ["a", "b", "c"].map(|name| (ns, name))).collect();
    let identity = |ns: &str, name: &str| format!("spiffe://cluster.local/ns/{ns}/sa/{name}").parse::<SpiffeId>().expect("valid");
    let ends = names.iter().map(|(ns, name)| {
        let full = format!("{ns}/{name}");
        (full.clone(), (address(ns, name), id(&full), Some(identity(ns, name))))
    });
    let ends = Ends(ends.collect());
    for (case, steps) in cases() {
        let mut m = model();
        let namespaces: String = ["x", "y", "z"].map(|ns| namespace(ns, "")).concat();
        let pods: String = names.iter().map(|(ns, name)| pod_of(ns, name, "")).collect();
        m.apply(upserts(&(namespaces + &pods)));
        for (i, step) in steps.iter().enumerate() {
            m.apply(upserts(&step.apply));
            m.apply(step.gone.iter().map(|gone| Change::Delete(ObjectKey { kind: Kind::NetworkPolicy, id: id(gone) })).collect());
            let known: BTreeMap<&str, Known> = ends.0.keys().map(|name| (name.as_str(), Known::of(&m, &id(name)))).collect();
            for (from, calling) in &known {
                for (to, called) in known.iter().filter(|(to, _)| *to != from) {
                    let reaches = calling.calls(&ends.end(to), step.port) && called.takes(&ends.end(from), step.port);
                    let expected = step.expect.iter().rev().find(|(f, t, _)| is(f, from) && is(t, to)).is_none_or(|(_, _, e)| *e);
                    assert_eq!(reaches, expected, "{case:?}, step {i}: {from} to {to} at {}", step.port);
                }
            }
        }
    }
    let (ours, twice) = (cases(), "a case has two places");
    let here: BTreeSet<&str> = ours.iter().map(|(case, _)| *case).chain(NOT_ENFORCEABLE.iter().copied()).collect();
    assert_eq!(here.len(), ours.len() + NOT_ENFORCEABLE.len(), "{twice}");
    let of = |case: &&str| !case.starts_with("the half");
    assert_eq!(here.into_iter().filter(of).collect::<BTreeSet<_>>(), UPSTREAM.lines().collect());
}
