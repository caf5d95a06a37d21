use super::*;

const FRONT: PeersId = PeersId(1);
const NAMED: PeersId = PeersId(2);

fn id(text: &str) -> ObjectRef {
    text.parse().expect("valid")
}

fn spiffe(account: &str) -> SpiffeId {
    format!("spiffe://td/ns/shop/sa/{account}").parse().expect("valid")
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn isolation(rules: Vec<Rule>) -> Isolation {
    Isolation { policies: vec![Arc::new(Policy { id: id("shop/p"), rules, broken: None })] }
}

fn sets() -> PeerSets {
    let front = Member { pod: id("shop/front"), identity: Some(spiffe("front")), port: None };
    let named = Member { port: Some(8080), ..front.clone() };
    [(FRONT, front), (NAMED, named)].into_iter().map(|(set, m)| (set, Arc::new([(ip("10.0.0.1"), m)].into()))).collect()
}

fn plain(address: &str) -> End<'static> {
    End { address: ip(address), proved: None }
}

fn rule(peer: PeerTerm, port: PortTerm) -> Rule {
    Rule { place: 0, peers: vec![peer], ports: vec![port] }
}

fn miss(verdict: Verdict) -> Option<Miss> {
    match verdict {
        Verdict::Allowed { .. } => None,
        Verdict::Denied(denied) => denied.nearest.map(|n| n.miss),
    }
}

#[test]
fn a_set_that_is_named_and_not_there_denies() {
    let of_set = isolation(vec![rule(PeerTerm::Set(PeersId(9)), PortTerm::All)]);
    assert_eq!(miss(of_set.judge(&sets(), &plain("10.0.0.1"), 80)), Some(Miss::NoSet(PeersId(9))));
    let by_name = isolation(vec![rule(PeerTerm::Anywhere, PortTerm::Named(PeersId(9)))]);
    assert_eq!(miss(by_name.judge(&sets(), &plain("10.0.0.1"), 80)), Some(Miss::NoSet(PeersId(9))));
}

#[test]
fn a_certificate_must_say_what_the_set_says() {
    let policy = isolation(vec![rule(PeerTerm::Set(FRONT), PortTerm::All)]);
    let (front, other, account, another) = (id("shop/front"), id("shop/other"), spiffe("front"), spiffe("other"));
    let proved = |pod, identity| End { address: ip("10.0.0.1"), proved: Some(Proved { pod, identity }) };
    assert!(policy.judge(&sets(), &proved(Some(&front), Some(&account)), 80).is_allowed());
    assert!(policy.judge(&sets(), &proved(None, Some(&account)), 80).is_allowed(), "no pod was recorded");
    for end in [proved(Some(&other), Some(&account)), proved(Some(&front), Some(&another)), proved(Some(&front), None)] {
        let verdict = policy.judge(&sets(), &end, 80);
        assert!(matches!(miss(verdict), Some(Miss::Disagrees { .. })), "{end:?}");
    }
    assert!(policy.judge(&sets(), &plain("10.0.0.1"), 80).is_allowed());
    assert!(policy.judge(&sets(), &plain("::ffff:10.0.0.1"), 80).is_allowed(), "the same address in another form");
    assert_eq!(miss(policy.judge(&sets(), &plain("10.0.0.2"), 80)), Some(Miss::Peer));
}

#[test]
fn blocks_ranges_and_names() {
    let block =
        PeerTerm::Block { cidr: "10.0.0.0/24".parse().expect("valid"), except: vec!["10.0.0.128/25".parse().expect("valid")] };
    let policy = isolation(vec![rule(block, PortTerm::Range(80, 90))]);
    let lets = |address: &str, port| policy.judge(&sets(), &plain(address), port).is_allowed();
    assert!(lets("10.0.0.1", 80) && lets("10.0.0.127", 90));
    assert!(!lets("10.0.0.128", 80) && !lets("10.0.1.1", 80) && !lets("10.0.0.1", 91) && !lets("fd00::1", 80));
    assert_eq!(miss(policy.judge(&sets(), &plain("10.0.0.1"), 91)), Some(Miss::Port));

    let named = isolation(vec![rule(PeerTerm::Anywhere, PortTerm::Named(NAMED))]);
    let lets = |address: &str, port| named.judge(&sets(), &plain(address), port).is_allowed();
    assert!(lets("10.0.0.1", 8080) && !lets("10.0.0.1", 8081) && !lets("10.0.0.2", 8080));
}

#[test]
fn nothing_allows_where_there_are_no_rules_or_the_policy_is_broken() {
    let verdict = isolation(vec![]).judge(&sets(), &plain("10.0.0.1"), 80);
    let Verdict::Denied(denied) = verdict else { panic!("it was allowed") };
    assert_eq!((denied.isolating.len(), &denied.nearest), (1, &None));
    assert!(denied.to_string().contains("shop/p"));

    let broken = Policy { id: id("shop/q"), rules: vec![], broken: Some("spec.ports".into()) };
    let both = Isolation {
        policies: vec![Arc::new(broken), isolation(vec![rule(PeerTerm::Anywhere, PortTerm::Range(1, 1))]).policies[0].clone()],
    };
    assert!(both.judge(&sets(), &plain("10.0.0.1"), 1).is_allowed(), "another policy allows it all the same");
    assert!(matches!(miss(both.judge(&sets(), &plain("10.0.0.1"), 2)), Some(Miss::Broken(_))));
}

#[test]
fn names_of_sets_survive_and_others_are_refused() {
    assert_eq!("00000000000000ff".parse(), Ok(PeersId(255)));
    assert_eq!(PeersId(255).to_string(), "00000000000000ff");
    for bad in ["", "ff", "00000000000000FF", "+0000000000000ff", "00000000000000fff"] {
        assert!(bad.parse::<PeersId>().is_err(), "{bad}");
    }
}
