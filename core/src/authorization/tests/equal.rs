use proptest::prelude::*;

use super::naive::{self, Call, Told};
use super::random::{authorization, call, request};
use super::*;

fn told(verdict: Verdict, cause: &Cause) -> Told {
    let by = cause.matched().map(|m| (m.policy.id.to_string(), m.rule, m.peer, m.operation));
    Told { verdict, cause: cause.as_str(), by }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, ..ProptestConfig::default() })]

    /// The index says what the reference says: the verdict, why, by which policy, rule, peer and operation; what is audited; what dry runs would do.
    #[test]
    fn the_index_and_the_reference_agree(a in authorization(), (port, caller, source) in call(), requests in prop::collection::vec(request(), 3)) {
        let own = own();
        let compiled = Arc::new(Compiled::new(&a, own.clone()));
        let judge = Judge::new(compiled, Connection::new(port, caller.clone(), source));
        let asked = requests.iter().map(Some).chain([None]);
        for asked in asked {
            let facts = asked.map(|r| r as &dyn RequestFacts);
            let decision = judge.decide(facts);
            let call = Call { own: &own, port, caller: caller.as_ref(), source, request: asked };
            let reference = naive::decide(&a, &call, false);
            prop_assert_eq!(told(decision.verdict, &decision.cause), reference.clone(), "{:?}", asked);
            prop_assert_eq!(decision.audited.iter().map(|m| m.policy.id.to_string()).collect::<Vec<_>>(), naive::audited(&a, &call));
            let dry = naive::decide(&a, &call, true);
            prop_assert_eq!(decision.dry_run.as_ref().map(|d| told(d.0, &d.1)), (dry.verdict != reference.verdict).then_some(dry));
            // What is not asked about more closely is the same decision.
            let short = judge.judge(facts);
            prop_assert_eq!(short.is_none(), decision.is_allowed() && !decision.tells());
            prop_assert!(short.is_none_or(|s| s == decision));
            // A connection's outcome holds for each of its requests.
            match judge.outcome() {
                Outcome::Allowed => prop_assert_eq!(decision.verdict, Verdict::Allowed),
                Outcome::Denied => prop_assert_eq!(decision.verdict, Verdict::Denied),
                Outcome::PerRequest => prop_assert!(asked.is_some() || decision.verdict == Verdict::Denied),
            }
            // Each policy, told on its own, tells the same.
            let considered = judge.consider(facts);
            if let Some(m) = decision.cause.matched() {
                let of = considered.iter().find(|c| c.policy.id == m.policy.id).expect("every policy is considered");
                prop_assert!(of.applies && (of.matched.as_ref() == Some(m) || of.unclear.as_ref().is_some_and(|(u, _)| u == m)));
            }
            // And every word of it can be said.
            prop_assert!(!decision.to_string().is_empty() && decision.remedy().is_some() != decision.is_allowed());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn the_order_of_policies_changes_nothing(a in authorization(), (port, caller, source) in call(), r in request()) {
        let judge = |a: &Authorization| {
            Judge::new(Arc::new(Compiled::new(a, own())), Connection::new(port, caller.clone(), source)).decide(Some(&r))
        };
        let mut reversed = a.clone();
        reversed.policies.reverse();
        prop_assert_eq!(judge(&a), judge(&reversed));
    }

    /// Nothing is allowed to who has no identity by a clause about identity, negated or not.
    #[test]
    fn identity_rules_never_match_the_unauthenticated(a in authorization(), (port, _, source) in call(), r in request()) {
        let decision = Judge::new(Arc::new(Compiled::new(&a, own())), Connection::new(port, None, source)).decide(Some(&r));
        if let Some(m) = decision.cause.matched() {
            prop_assert!(m.peer.is_none_or(|at| !m.policy.rules[m.rule].from[at].needs_identity()));
        }
    }
}
