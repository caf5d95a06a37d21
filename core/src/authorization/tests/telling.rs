use super::*;

const DB: Option<&str> = Some("spiffe://td/ns/dev/sa/db");

fn shop() -> Vec<Policy> {
    let cart = Operation { methods: vec!["GET".into()], ..paths(&[below("/cart")]) };
    let web = Peer { service_accounts: vec!["shop/web".parse().expect("an account")], ..Peer::default() };
    vec![
        policy("cart", Action::Allow, vec![rule(vec![web], vec![cart])]),
        policy("no-admin", Action::Deny, vec![rule(vec![from("spiffe://td/ns/dev/*")], vec![paths(&[below("/admin")])])]),
    ]
}

fn say(posture: Posture, policies: Vec<Policy>, caller: Option<&str>, request: Option<&Request>) -> (String, Option<String>) {
    let decision = judge(posture, policies, connection(80, caller)).decide(request.map(|r| r as &dyn RequestFacts));
    (decision.to_string(), decision.remedy())
}

#[test]
fn a_decision_reads_well_to_a_person() {
    let (text, remedy) = say(Posture::Deny, shop(), DB, Some(&Request::get("/admin/x")));
    assert_eq!(text, "denied by DENY shop/no-admin rule 0 (from principals spiffe://td/ns/dev/*; to paths /admin/*)");
    assert_eq!(remedy.as_deref(), Some("a call that shop/no-admin does not match"));

    let (text, remedy) = say(Posture::Deny, shop(), DB, Some(&Request::get("/cart")));
    let nearest = "ALLOW shop/cart rule 0, which asks for serviceAccounts shop/web (it is spiffe://td/ns/dev/sa/db)";
    assert_eq!(text, format!("denied: no ALLOW policy matches: what comes nearest is {nearest}"));
    assert_eq!(remedy.as_deref(), Some(nearest));

    let web = Some("spiffe://td/ns/shop/sa/web");
    let (text, _) = say(Posture::Deny, shop(), web, Some(&Request::get("/cart/7")));
    assert_eq!(text, "allowed by ALLOW shop/cart rule 0 (from serviceAccounts shop/web; to methods GET, paths /cart/*)");

    let (text, _) = say(Posture::Deny, shop(), web, None);
    assert_eq!(text, "denied: ALLOW shop/cart rule 0 cannot be judged: the bytes are not HTTP");

    let (text, _) = say(Posture::Deny, shop(), web, Some(&Request::get("/x/../cart")));
    assert_eq!(text, "denied: ALLOW shop/cart rule 0 cannot be judged: the path has a dot segment");

    let (text, remedy) = say(Posture::AllowSameNamespace, vec![], DB, None);
    assert_eq!(text, "denied: no ALLOW policy applies, and the default of the mesh is allow-same-namespace");
    assert_eq!(remedy.as_deref(), Some("an ALLOW policy that matches it"));
}

#[test]
fn what_cannot_be_honoured_says_so() {
    let broken =
        Policy { broken: Some("spec.action: missing".into()), ..policy("odd", Action::Deny, vec![rule(vec![], vec![])]) };
    let (text, remedy) = say(Posture::AllowAll, vec![broken], DB, None);
    assert_eq!(text, "denied by DENY shop/odd rule 0 (everything, since it cannot be honoured: spec.action: missing)");
    assert_eq!(remedy.as_deref(), Some("shop/odd mended"));
}

#[test]
fn values_of_header_fields_are_not_told() {
    let values = [HeaderValue::Exact("s3cret".into()), HeaderValue::Prefix("s3cret".into()), HeaderValue::Present];
    let headers: Vec<_> = values.into_iter().map(|v| HeaderMatch::new("X-Key", v).expect("a field")).collect();
    let texts: Vec<_> = headers.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["x-key (exact)", "x-key (prefix)", "x-key (present)"]);
    let operation = Operation { headers, ..Operation::default() };
    for (action, sent) in [(Action::Deny, "s3cret"), (Action::Allow, "s3cret"), (Action::Allow, "no")] {
        let mut request = Request::get("/");
        request.headers.push(("x-key".into(), sent.into()));
        let policies = vec![policy("p", action, vec![rule(vec![], vec![operation.clone()])])];
        let (text, remedy) = say(Posture::AllowAll, policies, DB, Some(&request));
        assert!(text.contains("headers x-key (exact) or x-key (prefix) or x-key (present)"), "{text}");
        assert!(!text.contains("s3cret") && !remedy.unwrap_or_default().contains("s3cret"), "{text}");
    }
}

#[test]
fn what_a_caller_sent_is_quoted_and_cut() {
    let path = format!("/{}\n", "x".repeat(5000));
    let web = Some("spiffe://td/ns/shop/sa/web");
    let (text, _) = say(Posture::Deny, shop(), web, Some(&Request { path, ..Request::get("/") }));
    assert!(!text.contains('\n') && text.len() < 400, "{text}");
}

#[test]
fn audit_and_dry_run_are_told_and_change_nothing() {
    let audit = policy("audit", Action::Audit, vec![rule(vec![from("*")], vec![])]);
    let dry = Policy { dry_run: true, ..policy("dry", Action::Allow, vec![rule(vec![], vec![paths(&[below("/cart")])])]) };
    let judge = judge(Posture::AllowAll, vec![audit, dry], connection(80, DB));
    assert!(matches!(judge.outcome(), Outcome::Allowed) && !judge.is_open());
    let request = Request::get("/other");
    let decision = judge.judge(Some(&request)).expect("there is something to tell");
    assert!(decision.is_allowed());
    let text = decision.to_string();
    assert!(text.starts_with("allowed: the default of the mesh is allow; AUDIT shop/audit rule 0 matches; "), "{text}");
    assert!(text.ends_with("with the policies in dry run it would be denied: no ALLOW policy matches"), "{text}");
}

/// A call costs what the rules about it cost, however many others there are.
#[test]
fn few_of_a_thousand_policies_are_looked_at() {
    let many = (0..1000).map(|i| {
        let account = format!("spiffe://td/ns/shop/sa/app-{i}");
        let own = paths(&[below(&format!("/p{i}"))]);
        policy(&format!("p{i}"), Action::Allow, vec![rule(vec![from(&account)], vec![]), rule(vec![from("*")], vec![own])])
    });
    let authorization =
        Authorization { posture: Posture::Deny, posture_from: PostureFrom::Mesh, policies: many.map(Arc::new).collect() };
    let compiled = Compiled::new(&authorization, own());
    let looked_at = |caller: &str, path: &str| {
        let request = Request::get(path);
        compiled.candidates(&connection(80, Some(caller)), Some(&request))
    };
    assert_eq!(looked_at("spiffe://td/ns/shop/sa/app-7", "/p7/x"), 2);
    assert_eq!(looked_at("spiffe://td/ns/shop/sa/app-7", "/other"), 1);
    assert_eq!(looked_at("spiffe://td/ns/shop/sa/nobody", "/other"), 0);
}
