use super::*;
use bytes::Bytes;

fn head(fields: &[(&str, &str)]) -> RequestHead {
    let mut all = crate::http::Fields::default();
    for (name, value) in fields {
        all.push(name.as_bytes(), value.as_bytes());
    }
    RequestHead {
        method: Bytes::from_static(b"GET"),
        target: Bytes::from_static(b"/"),
        authority: None,
        scheme: None,
        protocol: None,
        http10: false,
        fields: all,
    }
}

fn told(place: &Place, fields: &[(&str, &str)]) -> String {
    match borne(place, &head(fields)) {
        Borne::Nothing => "-".to_owned(),
        Borne::One(token) => String::from_utf8_lossy(token).into_owned(),
        Borne::Several => "several".to_owned(),
    }
}

#[test]
fn a_token_stands_in_one_field_or_nobody_knows_which_it_is() {
    let bearer = Place::bearer();
    for (fields, expected) in [
        (&[][..], "-"),
        (&[("Authorization", "Bearer a.b.c")], "a.b.c"),
        (&[("authorization", "bEARER   a.b.c")], "a.b.c"),
        (&[("authorization", "Basic abc")], "-"),
        (&[("authorization", "Bearera.b.c")], "-"),
        (&[("authorization", "Bearer")], ""),
        (&[("authorization", "Bearer a"), ("Authorization", "Bearer b")], "several"),
        (&[("authorization", "Bearer a"), ("authorization", "Basic b")], "several"),
        (&[("authorization", "Basic b"), ("authorization", "Digest c")], "-"),
        (&[("authorization", "Bearer a, Bearer b")], "several"),
    ] {
        assert_eq!(told(&bearer, fields), expected, "{fields:?}");
    }
    let place = Place::new("X-Id-Token", "JWT:").expect("a place");
    for (fields, expected) in [
        (&[("x-id-token", "JWT:a")][..], "a"),
        (&[("x-id-token", "jwt:a")], "-"),
        (&[("X_Id_Token", "JWT:a")], "several"),
        (&[("x-id-token", "JWT:a"), ("x_id-token", "b")], "several"),
    ] {
        assert_eq!(told(&place, fields), expected, "{fields:?}");
    }
}

#[test]
fn a_token_is_remembered_for_as_long_as_it_counts_and_the_keys_are_the_same() {
    let verified = |until| {
        let token =
            weft_core::jwt::Token { issuer: "i".into(), subject: None, audiences: vec![], claims: weft_core::jwt::Claim::Null };
        Rc::new(Verified { token, until })
    };
    let mut cache = TokenCache::default();
    let id = cache::id(b"a");
    assert!(cache.find((1, 1), &id, 0).is_none());
    cache.keep((1, 1), id, &verified(10));
    assert!(cache.find((1, 1), &id, 9).is_some() && cache.find((1, 1), &id, 10).is_none());
    assert!(cache.find((1, 2), &id, 9).is_none() && cache.find((1, 1), &id, 9).is_none());
    for i in 0..1000_u32 {
        cache.keep((1, 1), cache::id(&i.to_be_bytes()), &verified(10));
    }
    assert_eq!(cache.len(), 256);
    assert!(cache.find((1, 1), &cache::id(&999_u32.to_be_bytes()), 0).is_some());
}

/// base64url, as an issuer writes it.
fn encode(bytes: &[u8]) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().chain(&[0; 3]).take(3).fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        text.extend((0..=group.len()).map(|at| char::from(ALPHABET[(bits >> (18 - 6 * at)) as usize & 63])));
    }
    text
}

/// A worker whose pod goes by one issuer, with its keys inline; and what makes tokens of it.
fn world(forward: Forward) -> (Rc<Worker>, impl Fn(&str) -> String) {
    use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
    use clap::Parser;
    use weft_core::authorization::Authorization;
    use weft_core::policy::{InboundPolicy, MtlsMode};

    let pair = Ed25519KeyPair::generate().expect("a key");
    let keys = format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","x":"{}"}}]}}"#, encode(pair.public_key().as_ref()));
    let issuer = Issuer {
        id: "shop/id".parse().expect("a name"),
        issuer: "https://id".into(),
        audiences: vec!["shop".into()],
        keys: Keys::Inline(keys.into()),
        places: vec![Place::bearer(), Place::new("x-token", "").expect("a place")],
        forward,
        clock_skew: 0,
        algorithms: vec![],
    };
    let config = crate::config::Config::parse_from([
        "weft-sidecar",
        "--control-plane=127.0.0.1:1",
        "--identity=shop/web",
        "--pod-ips=10.0.0.1",
    ]);
    let (mesh, _lookups) = crate::mesh::Mesh::new();
    let policy = InboundPolicy {
        mode: MtlsMode::Strict,
        port_modes: vec![],
        protocols: vec![],
        required_features: vec![],
        zone: "".into(),
        rates: vec![],
        authorization: Authorization::default(),
        network: None,
        issuers: vec![Arc::new(issuer)],
    };
    mesh.govern(policy, &"spiffe://td/ns/shop/sa/web".parse().expect("an identity"));
    let worker = Worker::new(Arc::new(crate::worker::Shared::new(config, mesh)), 1);
    let make = move |claims: &str| {
        let signed = format!("{}.{}", encode(br#"{"alg":"EdDSA"}"#), encode(claims.as_bytes()));
        let signature = encode(pair.sign(signed.as_bytes()).as_ref());
        format!("{signed}.{signature}")
    };
    (worker, make)
}

#[test]
fn a_request_bears_what_its_fields_have_and_a_token_is_verified_once() {
    let (worker, make) = world(Forward::Keep);
    let later = unix_now() + 600;
    let good = make(&format!(r#"{{"iss":"https://id","aud":"shop","exp":{later}}}"#));
    let other = make(&format!(r#"{{"iss":"https://other","aud":"shop","exp":{later}}}"#));
    let old = make(r#"{"iss":"https://id","aud":"shop","exp":7}"#);
    let bearer = |token: &str| format!("Bearer {token}");
    let found = |issuer: &str, fields: &[(&str, String)]| {
        let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (*name, value.as_str())).collect();
        with_tokens(&worker, &head(&fields), |request| match request.token(issuer) {
            Bearer::Absent => "absent",
            Bearer::Other => "other",
            Bearer::Valid(_) => "valid",
            Bearer::Invalid(fault) => fault.as_str(),
        })
    };
    for _ in 0..3 {
        assert_eq!(found("https://id", &[("authorization", bearer(&good))]), "valid");
    }
    assert_eq!(worker.tokens.borrow().len(), 1);
    for (fields, expected) in [
        (vec![], "absent"),
        (vec![("x-token", good.clone())], "valid"),
        (vec![("authorization", bearer(&other))], "other"),
        (vec![("authorization", bearer(&other)), ("x-token", good.clone())], "valid"),
        (vec![("authorization", bearer(&good)), ("x-token", good.clone())], "several"),
        (vec![("authorization", bearer(&good)), ("authorization", bearer(&good))], "several"),
        (vec![("authorization", bearer(&old))], "expired"),
        (vec![("authorization", bearer("abc"))], "malformed"),
        (vec![("authorization", bearer("abc")), ("x-token", good.clone())], "several"),
        (vec![("X_Token", good.clone())], "several"),
    ] {
        assert_eq!(found("https://id", &fields), expected, "{fields:?}");
    }
    assert_eq!(found("https://other", &[("authorization", bearer(&other))]), "unknown-issuer");
    assert!(stripped(&worker, &head(&[("authorization", &bearer(&good))])).is_none());
}

#[test]
fn the_application_does_not_see_what_is_stripped() {
    let (worker, make) = world(Forward::Strip);
    let later = unix_now() + 600;
    let good = make(&format!(r#"{{"iss":"https://id","aud":"shop","exp":{later}}}"#));
    let other = make(&format!(r#"{{"iss":"https://other","aud":"shop","exp":{later}}}"#));
    let left = |fields: &[(&str, &str)]| {
        let bare = stripped(&worker, &head(fields))?;
        Some(bare.fields.iter().map(|(_, name, _)| String::from_utf8_lossy(name).into_owned()).collect::<Vec<_>>())
    };
    let (field, others) = (format!("Bearer {good}"), format!("Bearer {other}"));
    assert_eq!(left(&[("a", "1"), ("Authorization", &field)]), Some(vec!["a".to_owned()]));
    assert_eq!(left(&[("authorization", "Basic eDp5"), ("x-token", &good)]), Some(vec!["authorization".to_owned()]));
    assert_eq!(left(&[("authorization", &others)]), None, "it is somebody else's");
    assert_eq!(left(&[("a", "1")]), None);
}
