use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, Ed25519KeyPair,
    KeyPair as _, RSA_PKCS1_SHA256, RSA_PSS_SHA512, RsaEncoding,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use weft_core::jwt::{Algorithm, Forward, Issuer, Keys, Place, TokenFault};

use super::*;

const NOW: i64 = 1_800_000_000;
const ISSUER: &str = "https://id.example.com/";

/// As an issuer writes it.
fn encode(bytes: &[u8]) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits = group.iter().chain(&[0; 3]).take(3).fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        for at in 0..=group.len() {
            text.push(char::from(ALPHABET[(bits >> (18 - 6 * at)) as usize & 63]));
        }
    }
    text
}

/// A key pair of an issuer's.
enum Pair {
    Rsa(RsaKeyPair),
    Ec(&'static str, EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

impl Pair {
    fn rsa() -> Self {
        Self::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).expect("a key"))
    }

    fn ec() -> Self {
        Self::of_curve("P-256", &ECDSA_P256_SHA256_FIXED_SIGNING)
    }

    fn of_curve(name: &'static str, scheme: &'static EcdsaSigningAlgorithm) -> Self {
        Self::Ec(name, EcdsaKeyPair::generate(scheme).expect("a key"))
    }

    fn ed() -> Self {
        Self::Ed(Ed25519KeyPair::generate().expect("a key"))
    }

    fn jwk(&self, more: &str) -> String {
        let parts = match self {
            Self::Rsa(pair) => {
                let key = pair.public_key();
                let n = encode(key.modulus().big_endian_without_leading_zero());
                format!(r#""kty":"RSA","n":"{n}","e":"{}""#, encode(key.exponent().big_endian_without_leading_zero()))
            }
            Self::Ec(curve, pair) => {
                let point = &pair.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                format!(r#""kty":"EC","crv":"{curve}","x":"{}","y":"{}""#, encode(x), encode(y))
            }
            Self::Ed(pair) => format!(r#""kty":"OKP","crv":"Ed25519","x":"{}""#, encode(pair.public_key().as_ref())),
        };
        format!("{{{parts}{more}}}")
    }

    fn keys(&self, more: &str) -> Jwks {
        Jwks::read(format!(r#"{{"keys":[{}]}}"#, self.jwk(more)).as_bytes()).expect("a set")
    }

    fn sign(&self, message: &[u8], rsa: &'static dyn RsaEncoding) -> Vec<u8> {
        let random = SystemRandom::new();
        match self {
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(rsa, &random, message, &mut signature).expect("it signs");
                signature
            }
            Self::Ec(_, pair) => pair.sign(&random, message).expect("it signs").as_ref().to_vec(),
            Self::Ed(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }

    fn token(&self, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", encode(header.as_bytes()), encode(claims.as_bytes()));
        let signature = self.sign(signed.as_bytes(), &RSA_PKCS1_SHA256);
        format!("{signed}.{}", encode(&signature))
    }
}

fn issuer() -> Issuer {
    Issuer {
        id: "shop/id".parse().expect("a name"),
        issuer: ISSUER.into(),
        audiences: vec!["shop".into()],
        keys: Keys::Remote("".into()),
        places: vec![Place::bearer()],
        forward: Forward::Keep,
        clock_skew: 20,
        algorithms: vec![],
    }
}

fn claims() -> String {
    with("")
}

/// The usual claims, and more.
fn with(more: &str) -> String {
    format!(r#"{{"iss":"{ISSUER}","sub":"anna","aud":"shop","exp":{}{more}}}"#, NOW + 60)
}

fn judged(token: &str, keys: &Jwks) -> Result<Verified, TokenFault> {
    Unverified::read(token.as_bytes())?.verify(&issuer(), keys, NOW)
}

fn fault(token: &str, keys: &Jwks) -> Option<TokenFault> {
    judged(token, keys).err()
}

#[test]
fn each_algorithm_verifies_what_its_key_has_signed_and_nothing_else() {
    for (pair, alg) in [
        (Pair::rsa(), "RS256"),
        (Pair::ec(), "ES256"),
        (Pair::of_curve("P-384", &ECDSA_P384_SHA384_FIXED_SIGNING), "ES384"),
        (Pair::ed(), "EdDSA"),
    ] {
        let keys = pair.keys("");
        let token = pair.token(&format!(r#"{{"alg":"{alg}"}}"#), &with(r#","roles":["a"]"#));
        let verified = judged(&token, &keys).unwrap_or_else(|fault| panic!("{alg}: {fault}"));
        assert_eq!((verified.token.subject.as_deref(), verified.until), (Some("anna"), NOW + 80));
        for other in [Pair::rsa(), Pair::ec(), Pair::ed()] {
            let found = fault(&token, &other.keys(""));
            assert!(matches!(found, Some(TokenFault::Signature | TokenFault::Algorithm)), "{alg}: {found:?}");
        }
        // One bit of each part.
        for at in [2, token.find('.').expect("a dot") + 5, token.len() - 5] {
            let mut bytes = token.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            assert!(fault(&String::from_utf8(bytes).expect("ASCII"), &keys).is_some(), "{alg} {at}");
        }
    }
    let pair = Pair::rsa();
    let signed = format!("{}.{}", encode(br#"{"alg":"PS512"}"#), encode(claims().as_bytes()));
    let token = format!("{signed}.{}", encode(&pair.sign(signed.as_bytes(), &RSA_PSS_SHA512)));
    assert_eq!(fault(&token, &pair.keys("")), None);
    assert_eq!(fault(&token, &pair.keys(r#","alg":"RS256""#)), Some(TokenFault::Algorithm));
}

#[test]
fn hostile_headers_are_refused() {
    let pair = Pair::ec();
    let (keys, named) = (pair.keys(""), pair.keys(r#","kid":"1""#));
    let header = |text: &str| fault(&pair.token(text, &claims()), &keys);
    for (text, expected) in [
        (r#"{"alg":"none"}"#, TokenFault::Algorithm),
        (r#"{"alg":"None"}"#, TokenFault::Algorithm),
        (r#"{"alg":"HS256"}"#, TokenFault::Algorithm),
        (r#"{"alg":"es256"}"#, TokenFault::Algorithm),
        // Confusion: the key is of another kind.
        (r#"{"alg":"RS256"}"#, TokenFault::Algorithm),
        (r#"{"alg":"ES384"}"#, TokenFault::Algorithm),
        (r#"{"alg":"EdDSA"}"#, TokenFault::Algorithm),
        (r#"{"alg":"ES256","crit":["exp"],"exp":1}"#, TokenFault::Critical),
        (r#"{"alg":"ES256","crit":[]}"#, TokenFault::Critical),
        (r#"{"alg":"ES256","b64":false,"crit":["b64"]}"#, TokenFault::Critical),
        (r#"{"alg":"ES256","b64":true}"#, TokenFault::Critical),
        (r#"{"alg":"ES256","alg":"ES256"}"#, TokenFault::Malformed("a member stands twice")),
        (r#"{"alg":"ES256","a\u006cg":"none"}"#, TokenFault::Malformed("a member stands twice")),
        (r#"{"alg":"ES256","kid":7}"#, TokenFault::Malformed("its `kid` is no text")),
        (r#"{"alg":["ES256"]}"#, TokenFault::Malformed("it has no `alg`")),
        ("{}", TokenFault::Malformed("it has no `alg`")),
        (r#"["ES256"]"#, TokenFault::Malformed("a part is no JSON object")),
        (r#"{"alg":"ES256"} "x""#, TokenFault::Malformed("it is not JSON")),
        (r#"{"alg":"ES256",}"#, TokenFault::Malformed("it is not JSON")),
        ("{\"alg\":\"ES256\",\"x\":\"\u{0}\"}", TokenFault::Malformed("it is not JSON")),
    ] {
        assert_eq!(header(text), Some(expected), "{text}");
    }
    // Keys that a token brings along count for nothing, and hurt nobody.
    let jwk = Pair::ec();
    let own = format!(r#"{{"alg":"ES256","jwk":{},"jku":"https://evil/","x5u":"https://evil/","x5c":["AA"]}}"#, jwk.jwk(""));
    assert_eq!(fault(&jwk.token(&own, &claims()), &keys), Some(TokenFault::Signature));
    assert_eq!(header(&own), None);
    // A `kid` chooses, and may lead nowhere.
    assert_eq!(fault(&pair.token(r#"{"alg":"ES256","kid":"2"}"#, &claims()), &named), Some(TokenFault::UnknownKey));
    assert_eq!(fault(&pair.token(r#"{"alg":"ES256","kid":"1"}"#, &claims()), &named), None);
    assert_eq!(header(r#"{"alg":"ES256","kid":"../../etc/passwd"}"#), None);
    // A shared secret that is the public key: there is no such algorithm.
    assert!("HS256".parse::<Algorithm>().is_err());
}

#[test]
fn hostile_forms_are_refused() {
    let pair = Pair::ec();
    let keys = pair.keys("");
    let good = pair.token(r#"{"alg":"ES256"}"#, &claims());
    assert_eq!(fault(&good, &keys), None);
    let (signed, signature) = good.rsplit_once('.').expect("three parts");
    let flip = |c: char| char::from_u32(c as u32 ^ 1).filter(char::is_ascii_alphanumeric).unwrap_or('-');
    let last = signature.chars().last().expect("a character");
    // Another text for the same bytes, were bits left over let by: the last character of 64 bytes has four such bits.
    let loose = format!("{signed}.{}{}", &signature[..signature.len() - 1], flip(last));
    for token in [
        "",
        ".",
        "..",
        "...",
        "a.b",
        "a.b.c.d",
        signed,
        &format!("{signed}."),
        &format!("{good}="),
        &format!("{good}=="),
        &format!("{good} "),
        &format!(" {good}"),
        &format!("{good}\n"),
        &format!("{good}."),
        &format!("{good}.x"),
        &good[..good.len() - 1],
        &good[..good.len() - 4],
        &good.replacen('.', "=.", 1),
        &good.replace('.', ". "),
        &loose,
        &format!("{good}AA"),
        &format!("{}.{}", encode(br#"{"alg":"ES256"}"#), &good[good.find('.').expect("a dot") + 1..].replace('-', "+"))
            .replace('_', "/"),
    ] {
        if token != good {
            assert!(fault(token, &keys).is_some(), "{token}");
        }
    }
    let long = pair.token(r#"{"alg":"ES256"}"#, &with(&format!(r#","x":"{}""#, "x".repeat(7000))));
    assert_eq!(fault(&long, &keys), Some(TokenFault::TooLong));
    let deep = |n: usize| pair.token(r#"{"alg":"ES256"}"#, &with(&format!(r#","x":{}{}"#, "[".repeat(n), "]".repeat(n))));
    assert_eq!(fault(&deep(15), &keys), None);
    assert_eq!(fault(&deep(16), &keys), Some(TokenFault::Malformed("values lie too deep in each other")));
    assert!(fault(&deep(2000), &keys).is_some());
    let twice = pair.token(r#"{"alg":"ES256"}"#, &with(r#","sub":"otto""#));
    assert_eq!(fault(&twice, &keys), Some(TokenFault::Malformed("a member stands twice")));
    let within = pair.token(r#"{"alg":"ES256"}"#, &with(r#","a":[{"b":1,"b":2}]"#));
    assert_eq!(fault(&within, &keys), Some(TokenFault::Malformed("a member stands twice")));
}

#[test]
fn a_token_counts_within_its_times_and_its_audience() {
    let pair = Pair::ed();
    let keys = pair.keys("");
    let of = |claims: &str| fault(&pair.token(r#"{"alg":"EdDSA"}"#, claims), &keys);
    let timed = |exp: &str, nbf: &str| of(&format!(r#"{{"iss":"{ISSUER}","aud":["x","shop"],"exp":{exp}{nbf}}}"#));
    let at = |offset: i64| (NOW + offset).to_string();
    let time = Some(TokenFault::Malformed("a time in it is none"));
    for (exp, nbf, expected) in [
        (at(1), String::new(), None),
        (at(-19), String::new(), None),
        (at(-20), String::new(), Some(TokenFault::Expired(NOW - 20))),
        (format!("{}.9", NOW - 20), String::new(), Some(TokenFault::Expired(NOW - 20))),
        ("0".into(), String::new(), Some(TokenFault::Expired(0))),
        ("9223372036854775807".into(), String::new(), None),
        ("18446744073709551615".into(), String::new(), time),
        ("1e400".into(), String::new(), Some(TokenFault::Malformed("it is not JSON"))),
        ("1e300".into(), String::new(), time),
        ("-1".into(), String::new(), time),
        ("\"1900000000\"".into(), String::new(), time),
        ("null".into(), String::new(), time),
        ("true".into(), String::new(), time),
        (at(60), format!(r#","nbf":{}"#, NOW + 20), None),
        (at(60), format!(r#","nbf":{}"#, NOW + 21), Some(TokenFault::NotYet(NOW + 21))),
        (at(60), format!(r#","nbf":{}.5"#, NOW + 20), Some(TokenFault::NotYet(NOW + 21))),
        (at(60), r#","nbf":9223372036854775807"#.into(), Some(TokenFault::NotYet(i64::MAX))),
        (at(60), r#","nbf":-5"#.into(), time),
    ] {
        assert_eq!(timed(&exp, &nbf), expected, "{exp} {nbf}");
    }
    let plain = |rest: &str| of(&format!(r#"{{"iss":"{ISSUER}","exp":{}{rest}}}"#, NOW + 9));
    let malformed = Some(TokenFault::Malformed("its `aud` is neither a text nor a list of texts"));
    for (rest, expected) in [
        (r#","aud":"shop""#, None),
        (r#","aud":["shop"]"#, None),
        (r#","aud":[]"#, Some(TokenFault::Audience)),
        ("", Some(TokenFault::Audience)),
        (r#","aud":"shop2""#, Some(TokenFault::Audience)),
        (r#","aud":"Shop""#, Some(TokenFault::Audience)),
        (r#","aud":["shop",7]"#, malformed),
        (r#","aud":{"shop":1}"#, malformed),
        (r#","aud":"shop","sub":7"#, Some(TokenFault::Malformed("its `sub` is no text"))),
    ] {
        assert_eq!(plain(rest), expected, "{rest}");
    }
    assert_eq!(of(&format!(r#"{{"iss":"{ISSUER}","aud":"shop"}}"#)), Some(TokenFault::NoExpiry));
    // Names that look alike, or are alike to some.
    for iss in [
        "https://id.example.com",
        "https://ID.example.com/",
        "https://id.example.com/ ",
        "https://\u{456}d.example.com/",
        "https://id.example.com/\u{200b}",
    ] {
        assert_eq!(of(&claims().replace(ISSUER, iss)), Some(TokenFault::UnknownIssuer), "{iss}");
    }
    assert_eq!(of(&claims().replace("https", "\\u0068ttps")), None);
}

#[test]
fn an_issuer_may_take_fewer_algorithms_than_its_keys_have() {
    let pair = Pair::rsa();
    let token = pair.token(r#"{"alg":"RS256"}"#, &claims());
    let of = |algorithms: Vec<Algorithm>| {
        let issuer = Issuer { algorithms, ..issuer() };
        Unverified::read(token.as_bytes()).and_then(|t| t.verify(&issuer, &pair.keys(""), NOW)).err()
    };
    assert_eq!(of(vec![Algorithm::Rs256]), None);
    assert_eq!(of(vec![Algorithm::Ps256, Algorithm::Es256]), Some(TokenFault::Algorithm));
}

#[test]
fn sets_of_keys_are_bounded_and_have_nothing_secret() {
    let (ec, rsa) = (Pair::ec().jwk(""), Pair::rsa().jwk(r#","use":"sig""#));
    let read = |list: &[&str]| Jwks::read(format!(r#"{{"keys":[{}]}}"#, list.join(",")).as_bytes());
    assert_eq!(read(&[&ec, &rsa]).map(|set| set.len()), Ok(2));
    let foreign = [
        r#"{"kty":"oct"}"#.to_owned(),
        r#"{"kty":"EC","crv":"secp256k1","x":"AA","y":"AA"}"#.to_owned(),
        r#"{"kty":"RSA","n":"AQAB","e":"AQAB"}"#.to_owned(),
        rsa.replace("AQAB", "Ag"),
        rsa.replace("\"sig\"", "\"enc\""),
        ec.replace("P-256", "P-384"),
        ec.replace("\"crv\"", "\"alg\":\"RS256\",\"crv\""),
        ec.replace("\"crv\"", "\"key_ops\":[\"sign\"],\"crv\""),
        ec.replace("\"crv\"", "\"kid\":1,\"crv\""),
        r#"{"kty":"EC","crv":"P-256","x":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA","y":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"}"#.to_owned(),
        "7".to_owned(),
    ];
    for key in &foreign {
        assert_eq!(read(&[key, &ec]).map(|set| set.len()), Ok(1), "{key}");
        assert!(matches!(read(&[key]), Err(JwksError::NoneUsable { count: 1, first: Some(_) })), "{key}");
    }
    assert_eq!(read(&[]).err(), Some(JwksError::NoneUsable { count: 0, first: None }));
    for secret in ["\"d\":\"AA\"", "\"p\":\"AA\"", "\"k\":\"c2VjcmV0\""] {
        let e = read(&[&ec, &ec.replace("\"kty\"", &format!("{secret},\"kty\""))]).expect_err(secret);
        assert!(e == JwksError::Private(1) && !e.to_string().contains("c2VjcmV0"), "{e}");
    }
    let many = vec![ec.as_str(); 101];
    assert_eq!(read(&many).err(), Some(JwksError::TooMany(101)));
    assert_eq!(Jwks::read(&vec![b' '; (64 << 10) + 1]).err(), Some(JwksError::TooLarge((64 << 10) + 1)));
    for text in ["", "{", "[]", "{\"keys\":{}}", "{\"keys\":[],\"keys\":[]}", "\u{feff}{\"keys\":[]}"] {
        assert!(matches!(Jwks::read(text.as_bytes()), Err(JwksError::NotASet(_))), "{text}");
    }
}

#[test]
fn base64url_has_one_text_for_each_bytes() {
    for length in 0..70_u8 {
        let bytes: Vec<u8> = (0..length).map(|i| i.wrapping_mul(37)).collect();
        assert_eq!(URL_SAFE_NO_PAD.decode(encode(&bytes)), Ok(bytes));
    }
    for text in ["A", "AB", "AAB", "AA=", "AA==", "A A", "AA\n", "+A", "/A", "AAAAA", "\u{e9}A"] {
        assert!(URL_SAFE_NO_PAD.decode(text).is_err(), "{text}");
    }
}
