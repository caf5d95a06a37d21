//! `TrafficPolicy`: how a service's callers treat it, and how much it takes.

use serde_json::Value;

use super::schema::{
    DNS_LABEL, Field, GENERATIONS, TOKEN, ancestors, any_text, duration, flag, list, map, number, object, text, whole, word,
};
use super::{Names, accepted, column, namespaced};

pub(super) fn definition() -> Value {
    let names = Names { kind: "TrafficPolicy", singular: "trafficpolicy", plural: "trafficpolicies", short: "tpol" };
    let columns = [
        column("Target", "string", ".spec.targetRef.name", "The service that it is for"),
        accepted(),
        column("Sidecars", "integer", ".status.sidecars.subscribed", "How many sidecars call the service"),
        column("Applied", "integer", ".status.sidecars.applied", "How many of them have this policy in force"),
        column("Age", "date", ".metadata.creationTimestamp", "How old it is"),
    ];
    let schema = whole(
        "How callers treat a service, and how much of them it takes. A service without one is treated as the defaults say.",
        spec(),
        status(),
    );
    namespaced(&names, &columns, &schema)
}

fn spec() -> Field {
    object(
        "spec",
        "What is wanted. What is left out is as its text says.",
        vec![
            target().required(),
            balancer(),
            zone(),
            duration("slowStart", "An endpoint that is new gets its full share only after so long. Left out: at once."),
            outlier(),
            limits(),
            map("rates", &["name"], 16, "How many requests the service's own sidecars take. Left out: any.", rate()),
            list("faults", 16, "Faults that callers' sidecars make on purpose. Left out: none.", fault()),
            timeouts(),
            tcp(),
        ],
    )
}

fn target() -> Field {
    object(
        "targetRef",
        "The service, in the policy's own namespace. Of two policies for one service the older one is in force.",
        vec![
            any_text("group", "The service's API group, which is the empty one. Left out: the same.").longest(253),
            text("kind", "Service.").longest(63).default("Service"),
            text("name", "Its name.").longest(63).pattern(DNS_LABEL).required(),
        ],
    )
    .rule(
        "(!has(self.group) || self.group == '') && self.kind == 'Service'",
        "a TrafficPolicy is for a Service, whose group is \"\"",
    )
}

fn balancer() -> Field {
    let words = ["P2CEWMA", "LeastRequest", "RoundRobin", "Random", "RingHash", "Maglev"];
    object(
        "balancer",
        "How an endpoint is chosen.",
        vec![
            word(
                "type",
                &words,
                "P2CEWMA: two are drawn, the one with less latency times queue wins. LeastRequest: two are drawn, the one with fewer \
                 requests in flight wins. RoundRobin: each in turn. Random: any. RingHash and Maglev: by a key of the request; Maglev is \
                 more even, and moves a few more keys when endpoints change.",
            )
            .default("P2CEWMA"),
            hash("ringHash", "What is hashed, for the type RingHash."),
            hash("maglev", "What is hashed, for the type Maglev."),
        ],
    )
    .rule("has(self.ringHash) == (self.type == 'RingHash')", "ringHash is for the type RingHash, which needs it")
    .rule("has(self.maglev) == (self.type == 'Maglev')", "maglev is for the type Maglev, which needs it")
}

fn hash(name: &'static str, what: &str) -> Field {
    let keys = ["header", "cookie", "query", "source"];
    object(
        name,
        &format!("{what} Exactly one key. A request without it goes to any endpoint."),
        vec![
            text("header", "The value of this header field.").longest(256).pattern(TOKEN),
            object(
                "cookie",
                "The value of a cookie.",
                vec![
                    text("name", "Its name.").longest(256).pattern(TOKEN).required(),
                    duration(
                        "ttl",
                        "Where the request has none, the answer sets one that lives so long. Left out: it sets none.",
                    ),
                ],
            ),
            text("query", "The value of this query parameter.").longest(256),
            object("source", "The caller's address.", vec![]),
        ],
    )
    .one_of(&keys)
}

fn zone() -> Field {
    object(
        "zone",
        "Whether the caller's own zone comes first.",
        vec![
            flag("prefer", "Left out: no. A service whose callers stand unevenly would overload a zone's endpoints.")
                .default(false),
            number(
                "spillBelow",
                1,
                100,
                "Percent. Requests go to other zones, too, once fewer than so many of the zone's endpoints are well.",
            )
            .default(70),
        ],
    )
}

fn outlier() -> Field {
    object(
        "outlier",
        "When an endpoint is ejected. Left out: never; one that fails three times in a row is avoided all the same.",
        vec![
            number("consecutiveFailures", 0, 1_000, "Ejected after so many failures in a row. 0: not by this.").default(5),
            word(
                "failures",
                &["Gateway", "Any5xx"],
                "Which answers are failures. Gateway: 502, 503 and 504; Any5xx: 500 to 599; both: none at all.",
            )
            .default("Gateway"),
            list(
                "grpcCodes",
                16,
                "gRPC status codes that are failures. Left out: 2, 4, 13, 14 and 15.",
                number("", 1, 16, "A status code."),
            ),
            number("successRate", 0, 100, "Percent. Ejected below this share of successes within the window. 0: not by this.")
                .default(0),
            number("minimumVolume", 1, 1_000_000, "So many answers within the window before the share counts.").default(20),
            duration("window", "The window that the share is taken over.").default("10s"),
            duration("baseEjection", "The first ejection lasts so long, give or take a tenth; each further one twice as long.")
                .default("10s"),
            duration("maxEjection", "The longest ejection. Left out: 5m, or as long as baseEjection where that is longer."),
            number("maxEjected", 1, 100, "Percent. At most this share of the endpoints is ejected at once.").default(50),
        ],
    )
}

fn limits() -> Field {
    let most = i64::from(u32::MAX);
    object(
        "limits",
        "How much each caller's sidecar gives the service at once; what is more is refused at once. Left out: any, for each of them.",
        vec![
            number("connections", 1, most, "Opaque connections to the service."),
            number("connectionsPerEndpoint", 1, most, "Opaque connections to one endpoint."),
            number("requests", 1, most, "Requests in flight to the service."),
            number("requestsPerEndpoint", 1, most, "Requests in flight to one endpoint."),
            number("pending", 1, most, "Requests that wait for a connection to open."),
        ],
    )
}

fn rate() -> Field {
    let most = i64::from(u32::MAX);
    object(
        "",
        "A bucket that is refilled evenly. A request must get a token of every bucket that it falls under.",
        vec![
            text("name", "Its name, for metrics.").longest(63).pattern(DNS_LABEL).required(),
            word("by", &["All", "Caller"], "Who shares the bucket. All: everybody; Caller: each identity has its own.")
                .default("All"),
            list(
                "principals",
                64,
                "Only requests of these callers, by their SPIFFE ID. Left out: all.",
                text("", "spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT").longest(2_048).pattern("^spiffe://"),
            ),
            number("requests", 1, most, "So many requests in each `per`.").required(),
            duration("per", "The time in which they are refilled.").default("1s"),
            number("burst", 1, most, "So many may come at once. Left out: as many as `requests`."),
            headers("Only requests that match all of these header fields. Left out: all."),
            list("ports", 64, "Only these ports of the service. Left out: all.", number("", 1, 65_535, "A port.")),
        ],
    )
}

/// Header fields that a request must have, as an HTTPRoute writes them.
fn headers(what: &str) -> Field {
    let item = object(
        "",
        "A header field.",
        vec![
            text("name", "Its name.").longest(256).pattern(TOKEN).required(),
            word(
                "type",
                &["Exact", "RegularExpression"],
                "How the value is compared. A regular expression (RE2) must match all of it.",
            )
            .default("Exact"),
            text("value", "Its value.").longest(1_024).required(),
        ],
    );
    map("headers", &["name"], 16, what, item)
}

fn fault() -> Field {
    object(
        "",
        "A fault: the request waits, or is answered at once, or both in this order.",
        vec![
            headers("Only requests that match all of these header fields. Left out: all."),
            object(
                "fraction",
                "The share of the requests. Left out: all of them.",
                vec![
                    number("numerator", 0, 1_000_000, "So many of `denominator`.").required(),
                    number("denominator", 1, 1_000_000, "Of how many.").default(100),
                ],
            )
            .rule("self.numerator <= self.denominator", "numerator must not be more than denominator"),
            duration("delay", "They wait so long."),
            object(
                "abort",
                "They are answered so, and go nowhere. Exactly one kind.",
                vec![
                    number("http", 200, 599, "An HTTP status; callers of gRPC get what it stands for."),
                    number("grpc", 1, 16, "A gRPC status."),
                    object("reset", "The connection is reset.", vec![]),
                ],
            )
            .one_of(&["http", "grpc", "reset"]),
        ],
    )
    .rule("has(self.delay) || has(self.abort)", "a fault needs a delay or an abort")
}

fn timeouts() -> Field {
    object(
        "timeouts",
        "How long things may take. Left out: the sidecar's own bounds, for each of them.",
        vec![
            duration("connect", "To open a connection to an endpoint."),
            duration("idle", "An opaque connection or WebSocket without a byte either way."),
            duration(
                "request",
                "A request that no route bounds, to the end of its answer. Streams are bounded as well: leave it out for services that stream.",
            ),
        ],
    )
}

fn tcp() -> Field {
    object(
        "tcp",
        "How TCP connections to the service are kept. Left out: as the machine has it, for each field.",
        vec![
            object(
                "keepalive",
                "Probes on a silent connection.",
                vec![
                    duration("idle", "Silence before the first probe, in whole seconds."),
                    duration("interval", "Between probes, in whole seconds."),
                    number("count", 1, 127, "So many probes without an answer, and the connection is dead."),
                ],
            ),
            duration("userTimeout", "Sent bytes may stay unacknowledged for so long (RFC 5482)."),
            text("congestion", "Congestion control, by its name in the kernel, as cubic or bbr.")
                .longest(15)
                .pattern("^[a-z0-9_-]+$"),
        ],
    )
}

/// `status`, as the control plane writes it.
fn status() -> Vec<Field> {
    vec![
        ancestors(),
        object(
            "sidecars",
            "How far it has come. Counted by all replicas of the control plane, and a few seconds old.",
            vec![
                number("subscribed", 0, i64::from(i32::MAX), "Sidecars that have asked for the service's policy."),
                number("applied", 0, i64::from(i32::MAX), "Those of them that have the latest one in force."),
                number("observedGeneration", 0, GENERATIONS, "The generation of the policy that they were counted for."),
            ],
        ),
    ]
}

#[cfg(test)]
mod tests;
