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
