//! `ExternalService`: hosts outside of the mesh, and how they are reached.

use serde_json::Value;

use super::schema::{Field, ancestors, list, number, object, text, whole, word};
use super::{Names, accepted, column, namespaced};

pub(super) fn definition() -> Value {
    let names = Names { kind: "ExternalService", singular: "externalservice", plural: "externalservices", short: "extsvc" };
    let columns = [
        column("Hosts", "string", ".spec.hosts", "What callers name"),
        column("TLS", "string", ".spec.tls.mode", "Whether sidecars open TLS"),
        column("Resolution", "string", ".spec.resolution", "Where the addresses come from"),
        accepted(),
        column("Age", "date", ".metadata.creationTimestamp", "How old it is"),
    ];
    let schema = whole(
        "Hosts outside of the mesh. Pods of its own namespace may go there; one in the namespace of the installation is for every pod, and goes before \
         others. An AuthorizationPolicy whose target it is says who may.",
        spec(),
        vec![ancestors()],
    );
    namespaced(&names, &columns, &schema)
}

fn spec() -> Field {
    let host =
        text("", "A name, *. before a name for any name below it, or an address that stands in endpoints. Without a port.")
            .longest(255);
    object(
        "spec",
        "Which hosts, and how they are reached. One that cannot be honoured keeps its hosts and ports shut, unless a version before it is in force.",
        vec![
            list("hosts", 64, "What callers name: by the server name of TLS, or by the Host of HTTP.", host).shortest(1).required(),
            list("ports", 16, "At which ports; each once.", port()).shortest(1).required(),
            tls(),
            word(
                "resolution",
                &["dns", "static"],
                "dns: the sidecar asks the pod's own name servers, and dials nothing inside of the mesh or the pod. static: the endpoints.",
            )
            .default("dns"),
            list("endpoints", 64, "With static resolution: where the hosts are.", endpoint()).shortest(1),
        ],
    )
    .rule(
        "has(self.endpoints) == (has(self.resolution) && self.resolution == 'static')",
        "endpoints stand with resolution static, and with no other",
    )
}

fn port() -> Field {
    object(
        "",
        "A port.",
        vec![
            number("port", 1, 65_535, "What callers dial.").required(),
            number("targetPort", 1, 65_535, "What is dialled. Left out: the same, and 443 for port 80 where sidecars open TLS."),
            text("name", "For people.").longest(63),
            word(
                "protocol",
                &["http", "http2", "tls", "tcp"],
                "What callers speak: http in any version, http2 alone, TLS of their own, or bytes, of which only the address says which host is meant.",
            )
            .required(),
        ],
    )
}

fn tls() -> Field {
    object(
        "tls",
        "Whether sidecars open TLS for callers that speak plain HTTP, or, where it is mutual, anything but TLS.",
        vec![
            word(
                "mode",
                &["none", "originate", "mutual"],
                "none: what callers say goes out as it is. originate: over TLS, and never without. mutual: the same, with the pod's own certificate, to a SPIFFE \
                 peer of a foreign trust domain, whose FederatedTrustDomain must be there.",
            )
            .default("none"),
            text("caCertificates", "The anchors that vouch for the hosts, in PEM form. Left out: the machine's own.")
                .longest(65_536),
            text("sni", "The server name that is asked for, and that the certificate must have, unless mode is mutual. Left out: the host.")
                .longest(253),
            list(
                "identities",
                64,
                "With mode mutual: who the server must be, all of one trust domain.",
                text("", "A SPIFFE ID, or spiffe://TRUST_DOMAIN/* for everybody of a trust domain.").longest(640),
            )
            .shortest(1),
        ],
    )
    .rule(
        "(has(self.mode) && self.mode == 'originate') || !has(self.caCertificates)",
        "caCertificates stand with mode originate",
    )
    .rule(
        "(has(self.mode) && (self.mode == 'originate' || self.mode == 'mutual')) || !has(self.sni)",
        "sni stands with mode originate or mutual",
    )
    .rule(
        "(has(self.mode) && self.mode == 'mutual') == has(self.identities)",
        "identities stand with mode mutual, and with no other",
    )
}

fn endpoint() -> Field {
    object(
        "",
        "An endpoint.",
        vec![
            text("address", "An IP address.").longest(45).required(),
            number("port", 1, 65_535, "Its port. Left out: that of the service's port."),
        ],
    )
}
