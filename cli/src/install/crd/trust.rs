//! `FederatedTrustDomain` and `IdentityDenial`: whose identities are believed, and whose are not.

use serde_json::Value;

use super::schema::{any_text, list, object, text, whole};
use super::{Names, column, namespaced};

/// A SPIFFE ID as weft has them.
const SPIFFE_ID: &str = "^spiffe://[a-z0-9._-]+/ns/[a-z0-9-]+/sa/[a-z0-9.-]+$";
/// A serial number (RFC 5280, section 4.1.2.2: 20 bytes at most), with colons or not.
const SERIAL: &str = "^[0-9A-Fa-f:]{1,60}$";

pub(super) fn federation() -> Value {
    let names =
        Names { kind: "FederatedTrustDomain", singular: "federatedtrustdomain", plural: "federatedtrustdomains", short: "ftd" };
    let columns = [
        column("Domain", "string", ".spec.trustDomain", "The foreign trust domain"),
        column("Age", "date", ".metadata.creationTimestamp", "How old it is"),
    ];
    let spec = object(
        "spec",
        "What is wanted.",
        vec![
            text("trustDomain", "The foreign domain; never the mesh's own.").longest(255).pattern("^[a-z0-9._-]+$").required(),
            text("bundle", "Its anchors, 1 to 16 certificates in PEM. They vouch for identities of this domain alone.")
                .longest(65_536)
                .required(),
        ],
    );
    namespaced(
        &names,
        &columns,
        &whole(
            "A foreign trust domain whose identities are believed. It stands in the namespace of the installation.",
            spec,
            vec![],
        ),
    )
}

pub(super) fn denial() -> Value {
    let names = Names { kind: "IdentityDenial", singular: "identitydenial", plural: "identitydenials", short: "iden" };
    let columns = [
        column("Reason", "string", ".spec.reason", "Why"),
        column("Expires", "date", ".spec.expires", "When it ends"),
        column("Age", "date", ".metadata.creationTimestamp", "How old it is"),
    ];
    let spec = object(
        "spec",
        "What is wanted; at least one identity or serial number.",
        vec![
            list(
                "identities",
                5_000,
                "SPIFFE IDs: every certificate of theirs is refused, and none is issued.",
                text("identity", "One of them.").longest(600).pattern(SPIFFE_ID),
            ),
            list(
                "serials",
                5_000,
                "Serial numbers of certificates, in hexadecimal, as `weft status -o json` tells them. They are compared whoever issued the certificate.",
                text("serial", "One of them.").longest(60).pattern(SERIAL),
            ),
            any_text("reason", "For people.").longest(300),
            any_text("expires", "When it ends. Left out: never. A certificate of the mesh lives 24 hours, so that its serial number need not be denied for longer.")
                .date_time(),
        ],
    );
    namespaced(
        &names,
        &columns,
        &whole(
            "Identities and certificates that nobody in the mesh lets in or calls, and that are not renewed. What is open with them is closed. It stands in the namespace of the installation.",
            spec,
            vec![],
        ),
    )
}
