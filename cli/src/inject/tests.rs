use serde_json::json;

use super::*;

fn injected_as(text: &str, native: bool) -> anyhow::Result<(String, Vec<String>)> {
    let mut options = InjectorOptions::new("example.com/weft:1", &service::control_plane_address(CONTROL_PLANE_NAMESPACE));
    options.native_sidecar = native;
    let chunks = stream::parse("f", text)?;
    Injection::new(options, &"default".parse()?, &chunks)?.run(chunks)
}

fn injected(text: &str) -> (String, Vec<String>) {
    injected_as(text, true).unwrap_or_else(|error| panic!("{error:#}"))
}

fn objects(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

const SPEC: &str = "{containers: [{name: app, image: a}]}";

#[test]
fn what_makes_no_pods_passes_byte_for_byte() {
    let text = "\
# by hand
apiVersion: v1
kind:   ConfigMap
metadata: {name: a}
---

--- # odd
- 1
---
kind: Gateway
spec:
    a:   \"b\"
...
";
    assert_eq!(injected(text), (text.to_owned(), vec![]));
}

#[test]
fn every_maker_of_pods_is_injected() {
    for (version, kind, at) in [
        ("v1", "Pod", "/spec"),
        ("v1", "ReplicationController", "/spec/template/spec"),
        ("v1", "PodTemplate", "/template/spec"),
        ("apps/v1", "Deployment", "/spec/template/spec"),
        ("apps/v1", "ReplicaSet", "/spec/template/spec"),
        ("apps/v1", "StatefulSet", "/spec/template/spec"),
        ("apps/v1", "DaemonSet", "/spec/template/spec"),
        ("batch/v1", "Job", "/spec/template/spec"),
        ("batch/v1", "CronJob", "/spec/jobTemplate/spec/template/spec"),
        ("batch/v1beta1", "CronJob", "/spec/jobTemplate/spec/template/spec"),
    ] {
        let nested = at.trim_start_matches('/').rsplit('/').fold(SPEC.to_owned(), |inner, key| format!("{{{key}: {inner}}}"));
        let text = format!(
            "---\n# Source: chart\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: x, namespace: shop}}\n{}\n",
            &nested[1..nested.len() - 1]
        );
        let (out, report) = injected(&text);
        assert!(out.starts_with("---\n# Source: chart\napiVersion: "), "{out}");
        let object = objects(&out).remove(0);
        let spec = object.pointer(at).unwrap_or_else(|| panic!("{out}"));
        assert_eq!(spec["initContainers"].as_array().map(Vec::len), Some(2), "{out}");
        assert_eq!(report, [format!("{}/x in shop: injected", kind.to_lowercase())]);
        // What has its sidecar already is left alone, and so stays as it is.
        assert_eq!(injected(&out).0, out);
    }
}

#[test]
fn a_sidecar_that_is_no_native_one_stands_beside_the_app() {
    let text = format!(
        "{{\"apiVersion\": \"v1\", \"kind\": \"Pod\", \"metadata\": {{\"name\": \"x\"}}, \"spec\": {}}}",
        json!({"containers": [{"name": "app"}]})
    );
    let (out, _) = injected_as(&text, false).expect("a pod");
    let pod: Value = serde_json::from_str(&out).expect("JSON stays JSON");
    assert_eq!(pod["spec"]["containers"].as_array().map(Vec::len), Some(2));
}

#[test]
fn lists_are_injected_item_by_item() {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": []}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "b"}, "spec": {"hostNetwork": true, "containers": []}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "c"}, "spec": {"containers": []}},
    ]});
    let (out, report) = injected(&list.to_string());
    // Warnings may stand between.
    for line in ["pod/a: injected", "pod/b: left alone (host-network)", "pod/c: injected"] {
        assert!(report.iter().any(|told| told == line), "{line} is not among {report:?}");
    }
    let out: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(out["items"][0], list["items"][0]);
    assert!(out["items"][3]["spec"]["initContainers"].is_array());
}

#[test]
fn a_namespace_in_the_input_is_heeded() {
    let pod = |namespace: &str| {
        format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: x, namespace: {namespace}}}\nspec: {SPEC}\n")
    };
    let namespace =
        |label: &str| format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{{label}}}}}\n");
    let of = |label: &str| injected(&format!("{}{}", pod("shop"), namespace(label))).1;
    assert_eq!(of("weft.dev/inject: disabled"), ["pod/x in shop: left alone (namespace-disabled)"]);
    assert_eq!(of("a: b"), ["pod/x in shop: injected"]);
    let wrong = injected_as(&namespace("weft.dev/inject: \"yes\""), true).expect_err("no such word");
    assert!(wrong.to_string().contains("weft.dev/inject"), "{wrong:#}");
}

#[test]
fn nothing_is_printed_where_one_is_refused() {
    let pod = |name: &str, spec: &str| format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {spec}\n");
    let text = [
        pod("good", SPEC),
        pod("bad", "{containers: [{name: a, securityContext: {privileged: true}}]}"),
        "---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: empty}\n".to_owned(),
    ]
    .concat();
    let error = injected_as(&text, true).expect_err("a privileged pod").to_string();
    assert!(error.contains("pod/bad: ") && error.contains("privileged"), "{error}");
    assert!(error.contains("deployment/empty: it has no spec.template"), "{error}");
}

#[test]
fn the_flags_become_options() {
    use clap::Parser;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        args: InjectArgs,
    }
    let options = |flags: &[&str]| {
        let program = Program::try_parse_from(["inject"].iter().chain(flags)).unwrap_or_else(|error| panic!("{error}"));
        program.args.options().expect("valid options")
    };
    assert!(options(&[]).native_sidecar && !options(&["--kube-version", "1.28"]).native_sidecar);
    assert!(options(&["--kube-version", "1.20", "--native-sidecars", "always"]).native_sidecar);
    assert_eq!(options(&["--image", "example.com/weft"]).sidecar_image, format!("example.com/weft:{}", crate::install::VERSION));
    assert_eq!(options(&["--redirect", "cni"]).redirect, Redirect::Cni);
}
