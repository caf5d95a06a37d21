use weft_core::jwt::{Forward, Keys, Place};

use crate::objects::Object;
use crate::watch::parse::parse;

/// RFC 7517, appendix A.1, but for what is not to be used.
const KEYS: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM","kid":"1"}]}"#;

fn read(spec: &str) -> Result<std::sync::Arc<weft_core::jwt::Issuer>, (String, String)> {
    let text = format!("apiVersion: weft.dev/v1alpha1\nkind: JwtIssuer\nmetadata: {{name: id, namespace: shop}}\nspec: {spec}\n");
    match parse("f.yaml", &text).expect("every one is an object").remove(0) {
        Object::JwtIssuer(object) => object.content.clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_left_out_is_the_usual() {
    let issuer = read("{issuer: https://id, audiences: [shop], jwksUri: http://keys.shop/jwks}").expect("a good one");
    assert_eq!((issuer.clock_skew, issuer.forward, &issuer.places[..]), (20, Forward::Keep, &[Place::bearer()][..]));
    assert_eq!(issuer.keys, Keys::Remote("http://keys.shop/jwks".into()));
    let text = format!(
        "{{issuer: a, audiences: [b], jwks: '{KEYS}', forward: Strip, clockSkewSeconds: 0, algorithms: [ES256], from: {{headers: [{{name: X-T}}]}}}}"
    );
    let issuer = read(&text).expect("a good one");
    assert_eq!(
        (issuer.clock_skew, issuer.forward, &*issuer.places[0].header, &*issuer.places[0].prefix),
        (0, Forward::Strip, "x-t", "")
    );
}

#[test]
fn each_mistake_is_told_with_its_field() {
    let private = KEYS.replace("\"kid\":\"1\"", "\"d\":\"AAAA\"");
    for (spec, field) in [
        ("{audiences: [a], jwksUri: http://a/}".to_owned(), "spec"),
        ("{issuer: a, jwksUri: http://a/}".to_owned(), "spec"),
        ("{issuer: a, audiences: [], jwksUri: http://a/}".to_owned(), "spec.audiences"),
        ("{issuer: ' a', audiences: [a], jwksUri: http://a/}".to_owned(), "spec.issuer"),
        ("{issuer: a, audiences: [a]}".to_owned(), "spec.jwksUri"),
        ("{issuer: a, audiences: [a], jwksUri: ftp://a/}".to_owned(), "spec.jwksUri"),
        (format!("{{issuer: a, audiences: [a], jwksUri: http://a/, jwks: '{KEYS}'}}"), "spec.jwksUri"),
        ("{issuer: a, audiences: [a], jwks: 'x'}".to_owned(), "spec.jwks"),
        (format!("{{issuer: a, audiences: [a], jwks: '{private}'}}"), "spec.jwks"),
        ("{issuer: a, audiences: [a], jwksUri: http://a/, clockSkewSeconds: 301}".to_owned(), "spec.clockSkewSeconds"),
        ("{issuer: a, audiences: [a], jwksUri: http://a/, algorithms: [HS256]}".to_owned(), "spec.algorithms[0]"),
        ("{issuer: a, audiences: [a], jwksUri: http://a/, algorithms: [none]}".to_owned(), "spec.algorithms[0]"),
        ("{issuer: a, audiences: [a], jwksUri: http://a/, algorithms: []}".to_owned(), "spec.algorithms"),
        ("{issuer: a, audiences: [a], jwksUri: http://a/, from: {headers: [{name: Cookie}]}}".to_owned(), "spec.from.headers[0]"),
        (
            "{issuer: a, audiences: [a], jwksUri: http://a/, from: {headers: [{name: x}, {name: X}]}}".to_owned(),
            "spec.from.headers[1]",
        ),
        ("{issuer: a, audiences: [a], jwksUri: http://a/, forward: Drop}".to_owned(), "spec.forward"),
        ("{issuer: a, audiences: [a], jwksUri: http://a/, other: 1}".to_owned(), "spec.other"),
    ] {
        let (at, message) = read(&spec).expect_err(&spec);
        assert!(at == field && !message.is_empty() && !message.contains("AAAA"), "{spec}: {at}: {message}");
    }
}
