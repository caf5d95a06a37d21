use weft_core::policy::MtlsMode::{Permissive, Strict};

use super::*;
use crate::objects::{Labels, Object};
use crate::watch::parse::parse;

fn read(spec: &str) -> Result<Arc<Modes>, Unhonoured> {
    let text = format!("apiVersion: weft.dev/v1alpha1\nkind: MtlsPolicy\nmetadata: {{name: a, namespace: shop}}\nspec: {spec}\n");
    let Object::MtlsPolicy(object) = parse("f", &text).expect("it is an object, whatever its spec is").remove(0) else {
        panic!("another kind")
    };
    object.content.clone()
}

#[test]
fn what_a_policy_can_say() {
    let it = read("{mode: strict}").expect("good");
    assert_eq!((&it.selector, it.mode, &it.ports[..]), (&None, Some(Strict), &[][..]));
    let it = read("{selector: {matchLabels: {app: web}}, ports: [{port: 9090, mode: permissive}, {port: 80, mode: strict}]}");
    let it = it.expect("good");
    assert_eq!((it.mode, &it.ports[..]), (None, &[(80, Strict), (9090, Permissive)][..]));
}

#[test]
fn a_selector_means_what_kubernetes_means_by_it() {
    let labels = |text: &str| -> Labels { serde_saphyr::from_str(text).expect("labels") };
    let picks = |selector: &str, of: &str| {
        let it = read(&format!("{{mode: strict, selector: {selector}}}")).expect("good");
        it.selector.as_ref().expect("it has one").selects(&labels(of))
    };
    for (selector, of, expected) in [
        ("{}", "{}", true),
        ("{matchLabels: {app: web}}", "{app: web, tier: a}", true),
        ("{matchLabels: {app: web}}", "{app: db}", false),
        ("{matchExpressions: [{key: app, operator: In, values: [web, db]}]}", "{app: db}", true),
        ("{matchExpressions: [{key: app, operator: In, values: [web, db]}]}", "{}", false),
        ("{matchExpressions: [{key: app, operator: NotIn, values: [web]}]}", "{}", true),
        ("{matchExpressions: [{key: app, operator: NotIn, values: [web]}]}", "{app: web}", false),
        ("{matchExpressions: [{key: app, operator: Exists}]}", "{app: web}", true),
        ("{matchExpressions: [{key: app, operator: DoesNotExist}]}", "{app: web}", false),
        ("{matchLabels: {app: web}, matchExpressions: [{key: old, operator: DoesNotExist}]}", "{app: web, old: x}", false),
    ] {
        assert_eq!(picks(selector, of), expected, "{selector} of {of}");
    }
}

#[test]
fn what_makes_no_sense_is_told_with_its_field_and_with_whose_it_may_be() {
    let labelled = "selector: {matchLabels: {app: web}}";
    let selected = |it: &Unhonoured| matches!(it.pods, Meant::Selected(_));
    for (spec, field, message) in [
        ("{mode: STRICT}", "spec.mode", "must be \"strict\""),
        ("{}", "spec.mode", "missing"),
        ("{mode: strict, ports: [{port: 0, mode: strict}]}", "spec.ports[0].port", "not a port"),
        ("{ports: [{port: 1, mode: strict}, {port: 1, mode: strict}]}", "spec.ports[1].port", "twice"),
        ("{ports: [{port: 1, mode: off}]}", "spec.ports[0].mode", "must be"),
        ("{mode: strict, mtls: {}}", "spec.mtls", "unknown field"),
        ("{mode: null}", "spec.mode", "null"),
        ("{mode: strict, ports: [{port: 70000, mode: strict}]}", "spec.ports[0].port", "65535"),
    ] {
        let it = read(spec).expect_err(spec);
        assert_eq!((it.field.as_str(), &it.pods), (field, &Meant::All), "{it:?}");
        assert!(it.message.contains(message), "{it:?}");
        let it = read(&spec.replacen('{', &format!("{{{labelled}, "), 1).replace(", }", "}")).expect_err(spec);
        assert!(selected(&it), "{it:?}");
    }
    for selector in ["null", "{matchLabels: [a]}", "{matchExpressions: [{key: a, operator: In}]}", "{labels: {a: b}}", "7"] {
        let it = read(&format!("{{mode: strict, selector: {selector}}}")).expect_err(selector);
        assert_eq!(it.pods, Meant::Unknown, "{it:?}");
        assert!(it.field.starts_with("spec.selector"), "{it:?}");
    }
    assert_eq!(read("7").expect_err("no spec").pods, Meant::Unknown);
}
