//! `JwtIssuer`: whose tokens count.

use serde_json::Value;

use super::schema::{Field, TOKEN, ancestors, any_text, list, number, object, text, whole, word};
use super::{Names, accepted, column, namespaced};

pub(super) fn definition() -> Value {
    let names = Names { kind: "JwtIssuer", singular: "jwtissuer", plural: "jwtissuers", short: "jwti" };
    let columns = [
        column("Issuer", "string", ".spec.issuer", "Whose tokens it is about"),
        column("Keys", "string", ".spec.jwksUri", "Where its keys are fetched, where they are not inline"),
        accepted(),
        column("Age", "date", ".metadata.creationTimestamp", "How old it is"),
    ];
    let schema = whole(
        "Whose tokens count: for its own namespace, or, in the namespace of the installation, for the whole mesh.",
        spec(),
        vec![ancestors()],
    );
    namespaced(&names, &columns, &schema)
}

fn spec() -> Field {
    object(
        "spec",
        "An issuer. What asks for tokens of one that cannot be honoured refuses, unless a version before it is in force.",
        vec![
            text("issuer", "The `iss` of its tokens, compared as it is.").longest(2_048).required(),
            list("audiences", 16, "Of which a token's `aud` must have one.", text("", "An audience.").longest(2_048)).shortest(1).required(),
            any_text("jwks", "Its public keys: a JWK Set, as JSON. This or jwksUri.").longest(65_536),
            text(
                "jwksUri",
                "Where a JWK Set is fetched by the sidecars: http:// for a Service of the mesh, over mutual TLS, and https:// for anything else.",
            )
            .longest(2_048)
            .pattern("^https?://"),
            object(
                "from",
                "Where its tokens stand. Left out: in Authorization, behind Bearer.",
                vec![
                    list(
                        "headers",
                        4,
                        "Header fields.",
                        object(
                            "",
                            "A header field.",
                            vec![
                                text("name", "Its name.").longest(256).pattern(TOKEN).required(),
                                any_text("prefix", "What stands before the token. Left out: `Bearer ` in Authorization, and nothing elsewhere.")
                                    .longest(64),
                            ],
                        ),
                    )
                    .shortest(1)
                    .required(),
                ],
            ),
            word("forward", &["Keep", "Strip"], "Whether the application sees its tokens, or they are taken out where they were looked at.")
                .default("Keep"),
            number("clockSkewSeconds", 0, 300, "How far clocks may differ.").default(20),
            list(
                "algorithms",
                9,
                "What is taken. Left out: all that a key can be used with.",
                word("", &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"], "An algorithm."),
            )
            .shortest(1),
        ],
    )
    .rule("has(self.jwks) != has(self.jwksUri)", "one of jwks and jwksUri is given")
}
