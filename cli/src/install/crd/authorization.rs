//! `AuthorizationPolicy`: who may call a workload, and for what.
//!
//! Rules in CEL stand at the top alone: the API server multiplies the cost of one by how often it might be evaluated, and refuses a definition where that is
//! too much. The control plane checks the rest.

use serde_json::Value;

use super::schema::{DNS_LABEL, Field, TOKEN, ancestors, any_text, flag, list, number, object, sidecars, text, whole, word};
use super::{Names, accepted, column, namespaced};

/// Values of one list.
const VALUES: u32 = 256;
/// Entries of `from` and of `to`.
const ENTRIES: u32 = 32;

pub(super) fn definition() -> Value {
    let names =
        Names { kind: "AuthorizationPolicy", singular: "authorizationpolicy", plural: "authorizationpolicies", short: "apol" };
    let columns = [
        column("Action", "string", ".spec.action", "What happens to what it matches"),
        column("For", "string", ".status.ancestors[*].ancestorRef.kind", "The kind of what it is attached to"),
        column("Name", "string", ".status.ancestors[*].ancestorRef.name", "What it is attached to"),
        column("Dry-Run", "boolean", ".spec.dryRun", "Whether it is only told of"),
        accepted(),
        column("Sidecars", "integer", ".status.sidecars.subscribed", "How many sidecars it is for"),
        column("Applied", "integer", ".status.sidecars.applied", "How many of them have it in force"),
        column("Age", "date", ".metadata.creationTimestamp", "How old it is"),
    ];
    let schema = whole(
        "Who may call workloads, and for what. Deny goes first; then, where any Allow applies to a port, one must match; else the default of the \
         namespace or the mesh decides.",
        spec(),
        vec![ancestors(), sidecars()],
    );
    namespaced(&names, &columns, &schema)
}

fn spec() -> Field {
    object(
        "spec",
        "What is wanted. A policy that cannot be honoured refuses what comes to what it is for, unless a version before it is in force.",
        vec![
            target(),
            selector(),
            word(
                "action",
                &["Allow", "Deny", "Audit"],
                "Allow: what it matches is let in, and what no such policy matches is not. Deny: what it matches is refused. Audit: it is told \
                 what it matches.",
            )
            .required(),
            flag("dryRun", "It is judged and told of, and changes no verdict.").default(false),
            list(
                "rules",
                64,
                "It matches where any of these does. Left out: it matches nothing, so that an Allow without rules refuses everything.",
                rule(),
            ),
        ],
    )
    .rule("!(has(self.targetRef) && has(self.selector))", "targetRef and selector exclude each other")
}

fn target() -> Field {
    object(
        "targetRef",
        "What the policy is for. Left out, without a selector: its namespace.",
        vec![
            any_text("group", "The API group: the empty one, and weft.dev for a mesh and an ExternalService. Left out: the empty one.").longest(253),
            word(
                "kind",
                &["Service", "ExternalService", "Namespace", "Mesh"],
                "Service: the pods that it selects, at its target ports; one that was never there has none, and nothing is enforced until it is. \
                 ExternalService: what callers ask of its hosts, judged by each caller's own sidecar with the caller's identity. Namespace: the \
                 policy's own. Mesh: everything; such a policy stands in \
                 the namespace of the installation.",
            )
            .required(),
            text("name", "Its name, in the policy's own namespace. A mesh has none.").longest(63).pattern(DNS_LABEL),
        ],
    )
    .rule(
        "self.kind == 'Mesh' ? !has(self.group) || self.group in ['', 'weft.dev'] : (has(self.group) && self.group == 'weft.dev') == (self.kind == 'ExternalService')",
        "the group of an ExternalService is weft.dev, and that of a Service or Namespace \"\"",
    )
    .rule("!(self.kind in ['Service', 'ExternalService']) || has(self.name)", "a Service and an ExternalService need their names")
    .rule("self.kind != 'Mesh' || !has(self.name)", "a mesh has no name")
}

fn selector() -> Field {
    object(
        "selector",
        "The pods of the policy's namespace that it is for.",
        vec![Field::labels("matchLabels", 64, "Labels that a pod must have, all of them; at least one.").required()],
    )
}

fn rule() -> Field {
    object(
        "",
        "It matches where one of `from` and one of `to` does. An empty one matches everything.",
        vec![
            list("from", ENTRIES, "Who calls. Left out: anyone.", peer()).shortest(1),
            list("to", ENTRIES, "What is asked for. Left out: anything.", operation()).shortest(1),
        ],
    )
}

/// A list of texts, and one of those that must not be.
fn both(name: &'static str, not: &'static str, what: &str, item: &Field) -> [Field; 2] {
    [
        list(name, VALUES, &format!("{what} One of them."), item.clone()).shortest(1),
        list(not, VALUES, &format!("{what} None of them."), item.clone()).shortest(1),
    ]
}

fn peer() -> Field {
    let principal =
        text("", "spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT, its beginning with * behind it, or * for any.")
            .longest(2_048);
    let namespace = text("", "A namespace of the mesh's own trust domain.").longest(63).pattern(DNS_LABEL);
    let account = text("", "NAMESPACE/NAME, or the NAME of one in the policy's own namespace.").longest(317);
    let block = text("", "A CIDR, as 10.0.0.0/8.").longest(64);
    let fields = [
        both("principals", "notPrincipals", "SPIFFE IDs.", &principal),
        both("namespaces", "notNamespaces", "Namespaces that callers are of.", &namespace),
        both("serviceAccounts", "notServiceAccounts", "Service accounts that callers have.", &account),
        both("ipBlocks", "notIpBlocks", "Networks that the connection comes from.", &block),
    ];
    let mut fields = fields.concat();
    fields.push(flag("unauthenticated", "Callers that prove no identity. Left out: it does not matter."));
    fields
        .push(token("jwt", "A token of the end user's that the request must bear. It says nothing about which workload calls."));
    fields.push(token(
        "notJwt",
        "A token that the request must not bear; one that does not count is no such token, but to a Deny.",
    ));
    object(
        "",
        "All that is given must hold, and something must be given. Identities never match a caller without one, not even those that it must not \
         be.",
        fields,
    )
}

fn token(name: &'static str, what: &str) -> Field {
    let value = text("", "A text; of a whole number or a boolean, as JSON writes it.").longest(2_048);
    let audience = text("", "An audience.").longest(2_048);
    let claim = object(
        "",
        "A claim: name or path, and values or present.",
        vec![
            text("name", "Its name; with dots, the names of objects that lie in each other.").longest(2_048),
            list("path", 8, "The same as a list, for names that have dots in them.", text("", "A name.").longest(256))
                .shortest(1),
            list("values", VALUES, "It is one of these, or a list that has one of them.", value).shortest(1),
            flag("present", "It is there, and not null."),
        ],
    );
    object(
        name,
        what,
        vec![
            text("issuer", "Its issuer, as a JwtIssuer has it.").longest(2_048).required(),
            text("subject", "Its subject. Left out: any.").longest(2_048),
            list("audiences", VALUES, "One of them. Left out: any that the JwtIssuer takes.", audience).shortest(1),
            list("claims", VALUES, "Each of them.", claim).shortest(1),
        ],
    )
}

fn operation() -> Field {
    let port = number("", 1, 65_535, "A port.");
    let host = text("", "A name or address without a port; *.example.com is any name below example.com.").longest(255);
    let method = text("", "A method, as GET.").longest(256).pattern(TOKEN);
    let path =
        text("", "/a is that path, /a/* it and all below it, and in /a/{id}/b one segment is any.").longest(2_048).pattern("^/");
    let fields = [
        both("ports", "notPorts", "The pod's own ports, to which those of a Service lead.", &port),
        both("hosts", "notHosts", "Hosts that are asked for.", &host),
        both("methods", "notMethods", "Methods of HTTP.", &method),
        both(
            "paths",
            "notPaths",
            "Paths, without a query, escapes undone. Case counts, and so does a slash at the end: /a is neither /A nor /a/, which a server may take for \
             the same; a Deny is safer with /a/*, which has /a and /a/.",
            &path,
        ),
    ];
    let mut fields = fields.concat();
    fields.push(list("headers", VALUES, "Header fields. All of them.", header()).shortest(1));
    fields.push(list("grpc", VALUES, "Calls of gRPC. One of them.", call()).shortest(1));
    object(
        "",
        "All that is given must hold, and something must be given. On a port where more than ports are given, bytes that are not HTTP are refused.",
        fields,
    )
}

fn header() -> Field {
    object(
        "",
        "A header field.",
        vec![
            text("name", "Its name.").longest(256).pattern(TOKEN).required(),
            word("type", &["Exact", "Prefix", "Present"], "How the value is compared.").default("Exact"),
            any_text("value", "What it reads, or begins with; the type Present has none.").longest(2_048),
        ],
    )
}

fn call() -> Field {
    object(
        "",
        "A call of gRPC: a service, a method, or both.",
        vec![
            text("service", "The service, with its package. Left out: any.").longest(2_048).pattern("^[A-Za-z0-9_.]+$"),
            text("method", "The method. Left out: any.").longest(2_048).pattern("^[A-Za-z0-9_.]+$"),
        ],
    )
}
