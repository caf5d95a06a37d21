use super::super::token::{ClaimMatch, TokenMatch};
use super::*;
use crate::jwt::ClaimPath;

const WEB: Option<&str> = Some("spiffe://td/ns/shop/sa/web");
const ID: &str = "https://id";

fn admin() -> TokenMatch {
    let claim = ClaimMatch { path: ClaimPath::dotted("realm.roles").expect("a path"), values: vec!["admin".into()] };
    TokenMatch { issuer: ID.into(), subject: None, audiences: vec![], claims: vec![claim] }
}

fn allow() -> Policy {
    policy("allow", Action::Allow, vec![rule(vec![Peer { jwt: Some(admin()), ..Peer::default() }], vec![])])
}

fn deny() -> Policy {
    policy("deny", Action::Deny, vec![rule(vec![Peer { jwt: Some(admin()), ..Peer::default() }], vec![])])
}

/// Denies who is no administrator.
fn require() -> Policy {
    policy("require", Action::Deny, vec![rule(vec![Peer { not_jwt: Some(admin()), ..Peer::default() }], vec![])])
}

fn with(borne: Option<Borne>) -> Request {
    Request { tokens: borne.into_iter().map(|b| (ID, b)).collect(), ..Request::get("/") }
}

fn token(role: &str) -> Borne {
    let roles = Claim::List(vec![Claim::Text(role.into())]);
    let realm = Claim::Object(vec![("roles".into(), roles)]);
    Borne::Valid(Token {
        issuer: ID.into(),
        subject: None,
        audiences: vec![],
        claims: Claim::Object(vec![("realm".into(), realm)]),
    })
}

#[test]
fn a_token_counts_if_it_is_valid_and_says_what_is_asked() {
    let expired = Borne::Invalid(TokenFault::Expired(0));
    // What is borne; then, of ALLOW, DENY and DENY of those without: whether it is allowed, and what the caller is told.
    let table = [
        (None, [(false, Some(Challenge::Missing)), (true, None), (false, Some(Challenge::Missing))]),
        (Some(Borne::Other), [(false, Some(Challenge::Invalid)), (true, None), (false, Some(Challenge::Invalid))]),
        (Some(token("admin")), [(true, None), (false, None), (true, None)]),
        (Some(token("guest")), [(false, None), (true, None), (false, None)]),
        (Some(expired), [(false, Some(Challenge::Invalid)); 3]),
    ];
    for caller in [WEB, None] {
        for (borne, expected) in table.clone() {
            let request = with(borne.clone());
            for (policy, expected) in [allow(), deny(), require()].into_iter().zip(expected) {
                let name = policy.id.clone();
                let judge = judge(Posture::AllowAll, vec![policy], connection(80, caller));
                assert!(judge.reads_tokens() && matches!(judge.outcome(), Outcome::PerRequest));
                let decision = judge.decide(Some(&request));
                assert_eq!((decision.is_allowed(), decision.challenge), expected, "{name} {borne:?}: {decision}");
            }
        }
    }
}

#[test]
fn a_token_stands_beside_the_identity_of_the_workload() {
    let both = Peer { jwt: Some(admin()), ..from("spiffe://td/ns/shop/sa/web") };
    let policy = policy("both", Action::Allow, vec![rule(vec![both], vec![])]);
    let request = with(Some(token("admin")));
    for (caller, is) in [(WEB, true), (None, false), (Some("spiffe://td/ns/dev/sa/db"), false)] {
        let decision = judge(Posture::AllowAll, vec![policy.clone()], connection(80, caller)).decide(Some(&request));
        assert_eq!(decision.is_allowed(), is, "{decision}");
        // Another token would not help.
        assert_eq!(decision.challenge, None);
    }
}

#[test]
fn bytes_bear_no_token_and_ports_without_such_a_policy_read_none() {
    for policy in [allow(), deny(), require()] {
        let decision = judge(Posture::AllowAll, vec![policy.clone()], connection(80, WEB)).decide(None);
        assert_eq!((decision.verdict, decision.cause.as_str()), (Verdict::Denied, "not-http"));
        let bound = Policy { ports: Some(vec![81]), ..policy };
        assert!(!judge(Posture::AllowAll, vec![bound], connection(80, WEB)).reads_tokens());
    }
}

#[test]
fn who_did_not_look_has_found_nothing() {
    struct Blind;
    impl RequestFacts for Blind {
        fn method(&self) -> &[u8] {
            b"GET"
        }
        fn path(&self) -> &[u8] {
            b"/"
        }
        fn query(&self) -> Option<&[u8]> {
            None
        }
        fn header_values(&self, _: &str, _: &mut dyn FnMut(&[u8])) {}
        fn fields(&self, _: &mut dyn FnMut(&[u8], &[u8])) {}
    }
    for policy in [allow(), deny(), require()] {
        assert!(!judge(Posture::AllowAll, vec![policy], connection(80, WEB)).decide(Some(&Blind)).is_allowed());
    }
}

#[test]
fn what_is_told_has_the_reason_and_nothing_of_the_token() {
    let say = |policy, borne| {
        let decision = judge(Posture::AllowAll, vec![policy], connection(80, None)).decide(Some(&with(borne)));
        let text = format!("{decision}|{}", decision.remedy().unwrap_or_default());
        assert!(!text.contains("admin") && !text.contains("guest"), "{text}");
        text
    };
    let asks = "ALLOW shop/allow rule 0, which asks for jwt issuer https://id with claim realm.roles (exact)";
    let text = say(allow(), None);
    assert!(text.ends_with(&format!("{asks} (it is no token)")), "{text}");
    let text = say(allow(), Some(token("guest")));
    assert!(text.ends_with(&format!("{asks} (it is a token whose claim realm.roles is missing or another)")), "{text}");
    let text = say(allow(), Some(Borne::Invalid(TokenFault::Expired(951_782_400))));
    assert!(text.ends_with("(it is a token that has expired at 2000-02-29T00:00:00Z)"), "{text}");
    let text = say(deny(), Some(Borne::Invalid(TokenFault::NoKeys(0))));
    assert!(
        text.starts_with("denied: DENY shop/deny rule 0 cannot be judged: the token cannot be verified: there have been no keys"),
        "{text}"
    );
}

#[test]
fn of_rules_that_are_as_near_the_one_that_wants_another_token_is_told() {
    let elsewhere = rule(vec![from("spiffe://td/ns/shop/sa/web")], vec![paths(&[below("/name")])]);
    let here = rule(vec![Peer { jwt: Some(admin()), ..from("spiffe://td/ns/shop/sa/web") }], vec![paths(&[below("/seen")])]);
    for rules in [vec![elsewhere.clone(), here.clone()], vec![here, elsewhere]] {
        let judge = judge(Posture::AllowAll, vec![policy("p", Action::Allow, rules)], connection(80, WEB));
        let decision = judge.decide(Some(&Request::get("/seen")));
        assert!(
            decision.to_string().contains("(it is no token)") && decision.challenge == Some(Challenge::Missing),
            "{decision}"
        );
    }
}
