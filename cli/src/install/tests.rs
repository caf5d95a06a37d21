//! What holds for everything that is installed, whatever it is.

use std::collections::BTreeSet;

use k8s_openapi::api::{admissionregistration, apps, core as core_api, networking, policy, rbac};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use weft_core::wellknown::{LABEL_INJECT, SIDECAR_CONTAINER};

use super::kinds::{KINDS, Kind};
use super::object::{LABEL_NAME, LABEL_PART_OF, LABEL_VERSION, PART_OF, Part};
use super::settings::Settings;
use super::*;

fn all() -> Vec<Value> {
    objects(&Settings::default(), KubeVersion::CURRENT)
}

/// With the CNI plugin, and what its agents may do about pods.
fn with_cni(repair: &str) -> Settings {
    Settings { cni: "true".to_owned(), cni_repair: repair.to_owned(), ..Settings::default() }
}

fn of_kind(kind: &str) -> Vec<Value> {
    all().into_iter().filter(|object| object["kind"] == kind).collect()
}

fn name(object: &Value) -> String {
    format!("{} {}", object["kind"].as_str().unwrap_or("?"), object["metadata"]["name"].as_str().unwrap_or("?"))
}

fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).unwrap_or_else(|| panic!("no list {pointer} in {value}"))
}

#[test]
fn every_object_says_whose_it_is_and_where() {
    for object in all() {
        let kind = Kind::of(&object).unwrap_or_else(|| panic!("{} is of no known kind", name(&object)));
        let labels = &object["metadata"]["labels"];
        assert_eq!(labels[LABEL_PART_OF], PART_OF, "{}", name(&object));
        assert_eq!(labels[LABEL_VERSION], VERSION, "{}", name(&object));
        assert!(labels[LABEL_NAME].is_string(), "{}", name(&object));
        let namespace = object["metadata"].get("namespace").and_then(Value::as_str);
        assert_eq!(namespace, kind.namespaced.then_some("weft-system"), "{}", name(&object));
        assert!(
            namespace.is_some()
                || kind == kinds::NAMESPACE
                || object["metadata"]["name"].as_str().is_some_and(|name| match kind {
                    kinds::CRD => name.ends_with(".weft.dev"),
                    _ => name.starts_with("weft-"),
                })
        );
    }
}

#[test]
fn objects_come_in_the_order_in_which_they_need_each_other_and_only_once() {
    let all = all();
    let order: Vec<usize> =
        all.iter().map(|object| KINDS.iter().position(|kind| Some(*kind) == Kind::of(object)).expect("a known kind")).collect();
    assert!(order.is_sorted(), "{:?}", all.iter().map(name).collect::<Vec<_>>());
    let names: BTreeSet<String> = all.iter().map(name).collect();
    assert_eq!(names.len(), all.len());
    assert_eq!(all, super::objects(&Settings::default(), KubeVersion::CURRENT), "the output is always the same");
}

/// The level `restricted` of the Pod Security standards, item by item.
#[test]
fn every_container_is_restricted() {
    for deployment in of_kind("Deployment") {
        let pod = &deployment["spec"]["template"]["spec"];
        for power in ["hostNetwork", "hostPID", "hostIPC", "hostUsers", "initContainers", "ephemeralContainers"] {
            assert_eq!(pod.get(power), None, "{}", name(&deployment));
        }
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert!(pod["securityContext"]["runAsUser"].as_u64().is_some_and(|user| user > 1000 && user != 4747));
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        for volume in pod.get("volumes").and_then(Value::as_array).into_iter().flatten() {
            assert!(volume.get("emptyDir").is_some(), "{volume}");
        }
        for container in list(pod, "/containers") {
            let security = &container["securityContext"];
            let expected = json!({
                "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": true,
                "runAsNonRoot": true,
                "seccompProfile": {"type": "RuntimeDefault"},
            });
            assert_eq!(*security, expected, "{}", name(&deployment));
            for part in ["readinessProbe", "livenessProbe", "resources", "image", "imagePullPolicy", "command", "args"] {
                assert!(container.get(part).is_some(), "{} has no {part}", name(&deployment));
            }
            for port in list(container, "/ports") {
                assert!(port.get("hostPort").is_none(), "{port}");
            }
        }
    }
}

#[test]
fn programs_run_twice_and_apart_and_survive_a_drain() {
    let deployments = of_kind("Deployment");
    assert_eq!(deployments.len(), Part::PROGRAMS.len());
    for deployment in deployments {
        let spec = &deployment["spec"];
        assert_eq!(spec["replicas"], 2);
        let pod = &spec["template"]["spec"];
        assert_eq!(pod["priorityClassName"], "system-cluster-critical");
        assert_eq!(list(pod, "/affinity/podAntiAffinity/preferredDuringSchedulingIgnoredDuringExecution").len(), 1);
        assert_eq!(list(pod, "/topologySpreadConstraints").len(), 1);
        // Every selector that is to mean these pods does, and does not mean the other's.
        let labels = spec["template"]["metadata"]["labels"].as_object().expect("labels").clone();
        let means =
            |selector: &Value| selector.as_object().expect("a map").iter().all(|(key, value)| labels.get(key) == Some(value));
        assert!(means(&spec["selector"]["matchLabels"]));
        for (kind, pointer) in [
            ("PodDisruptionBudget", "/spec/selector/matchLabels"),
            ("NetworkPolicy", "/spec/podSelector/matchLabels"),
            ("Service", "/spec/selector"),
        ] {
            let meant = of_kind(kind).iter().filter(|object| means(object.pointer(pointer).expect("a selector"))).count();
            assert_eq!(meant, 1, "{kind} of {}", name(&deployment));
        }
        let account = pod["serviceAccountName"].as_str().expect("a name");
        assert!(of_kind("ServiceAccount").iter().any(|object| object["metadata"]["name"] == account));
    }
}

#[test]
fn a_quota_admits_the_priority_class_of_every_pod() {
    for settings in [Settings::default(), with_cni("delete")] {
        let objects = objects(&settings, KubeVersion::CURRENT);
        let mut admitted = BTreeSet::new();
        for quota in objects.iter().filter(|object| object["kind"] == "ResourceQuota") {
            let scope = &list(quota, "/spec/scopeSelector/matchExpressions")[0];
            assert_eq!((&scope["scopeName"], &scope["operator"]), (&json!("PriorityClass"), &json!("In")));
            let most = 99 * Part::PROGRAMS.len() + Part::PROGRAMS.len();
            assert!(quota["spec"]["hard"]["pods"].as_str().and_then(|n| n.parse::<usize>().ok()).is_some_and(|n| n >= most));
            admitted.extend(list(scope, "/values").iter().map(Value::to_string));
        }
        let asked = objects.iter().filter_map(|object| object.pointer("/spec/template/spec/priorityClassName"));
        assert_eq!(admitted, asked.map(Value::to_string).collect(), "all of them, and no other");
    }
}

/// Whether a label selector matches, as the API server evaluates it.
fn matches(selector: &Value, labels: &[(&str, &str)]) -> bool {
    list(selector, "/matchExpressions").iter().all(|requirement| {
        let key = requirement["key"].as_str().expect("a key");
        let values = list(requirement, "/values");
        let label = labels.iter().find(|(name, _)| *name == key).map(|(_, value)| *value);
        let among = label.is_some_and(|label| values.iter().any(|value| *value == label));
        match requirement["operator"].as_str() {
            Some("In") => among,
            Some("NotIn") => !among,
            other => panic!("{other:?} is not evaluated here"),
        }
    })
}

/// How many of the webhooks are called for a pod with this label in a namespace with that name and label.
fn called(operation: &str, namespace: &str, namespace_label: Option<&str>, pod_label: Option<&str>) -> usize {
    let configuration = of_kind("MutatingWebhookConfiguration").remove(0);
    let of_namespace: Vec<(&str, &str)> = [("kubernetes.io/metadata.name", namespace)]
        .into_iter()
        .chain(namespace_label.map(|value| (LABEL_INJECT, value)))
        .collect();
    let of_pod: Vec<(&str, &str)> = pod_label.map(|value| (LABEL_INJECT, value)).into_iter().collect();
    list(&configuration, "/webhooks")
        .iter()
        .filter(|hook| hook["rules"][0]["operations"] == json!([operation]))
        .filter(|hook| matches(&hook["namespaceSelector"], &of_namespace))
        .filter(|hook| hook.get("objectSelector").is_none_or(|selector| matches(selector, &of_pod)))
        .count()
}

#[test]
fn the_webhook_is_asked_about_what_is_labelled_and_never_twice() {
    let labels = [None, Some("enabled"), Some("disabled"), Some("yes")];
    for namespace in labels {
        for pod in labels {
            let wanted = match (namespace, pod) {
                // A pod whose label is no word of ours is refused by the injector, which says so.
                (Some("enabled"), Some("disabled")) | (Some("disabled"), _) => 0,
                (Some("enabled"), _) | (_, Some("enabled")) => 1,
                _ => 0,
            };
            // A change of labels would take a pod out of the guard that goes by them.
            for (operation, wanted) in [("CREATE", wanted), ("UPDATE", 1)] {
                let called = |name: &str| called(operation, name, namespace, pod);
                assert_eq!(called("shop"), wanted, "{operation}: namespace {namespace:?}, pod {pod:?}");
                for system in ["kube-system", "kube-public", "kube-node-lease", "weft-system"] {
                    assert_eq!(called(system), 0, "{operation}: {system}: namespace {namespace:?}, pod {pod:?}");
                }
            }
        }
    }
}

fn expression(condition: &Value) -> &str {
    condition["expression"].as_str().expect("CEL")
}

#[test]
fn the_webhook_is_narrow_quick_and_fails_closed() {
    let configuration = of_kind("MutatingWebhookConfiguration").remove(0);
    let hooks = list(&configuration, "/webhooks");
    assert_eq!(hooks.len(), 3);
    for (index, hook) in hooks.iter().enumerate() {
        // Never pods/status, which is the kubelet's.
        let (operation, resources) =
            if index < 2 { ("CREATE", json!(["pods"])) } else { ("UPDATE", json!(["pods", "pods/ephemeralcontainers"])) };
        let expected = json!([{
            "apiGroups": [""], "apiVersions": ["v1"], "operations": [operation], "resources": resources, "scope": "Namespaced",
        }]);
        assert_eq!(hook["rules"], expected);
        let conditions: Vec<&str> =
            hook.get("matchConditions").map_or(&[][..], |_| list(hook, "/matchConditions")).iter().map(expression).collect();
        assert_eq!(conditions.iter().any(|cel| cel.contains("object.spec != oldObject.spec")), index >= 2, "{hook}");
        // A pod outside of the mesh is changed whether an injector answers or not.
        assert_eq!(conditions.iter().any(|cel| cel.contains("oldObject.spec.initContainers.exists")), index >= 2, "{hook}");
        for cel in conditions {
            assert!(!cel.contains("exists") || cel.matches(&format!("c.name == '{SIDECAR_CONTAINER}'")).count() == 3, "{cel}");
        }
        for (key, value) in [
            ("failurePolicy", json!("Fail")),
            ("timeoutSeconds", json!(5)),
            ("reinvocationPolicy", json!("IfNeeded")),
            ("matchPolicy", json!("Equivalent")),
            ("sideEffects", json!("None")),
        ] {
            assert_eq!(hook[key], value);
        }
        let service = &hook["clientConfig"]["service"];
        assert_eq!(*service, json!({"name": "weft-injector", "namespace": "weft-system", "path": "/inject", "port": 443}));
        assert_eq!(hook["clientConfig"].get("caBundle"), None, "it is the injector's");
    }
}

/// Every right that is given, as one line each.
#[test]
fn the_rights_are_these_and_no_others() {
    let mut given = BTreeSet::new();
    for role in of_kind("ClusterRole").into_iter().chain(of_kind("Role")) {
        for rule in list(&role, "/rules") {
            for resource in list(rule, "/resources") {
                for verb in list(rule, "/verbs") {
                    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
                    let names = rule.get("resourceNames").map_or_else(String::new, |names| {
                        format!("[{}]", names.as_array().into_iter().flatten().map(text).collect::<Vec<_>>().join(","))
                    });
                    assert_ne!(verb, "*");
                    given.insert(format!("{}: {} {}{names}", name(&role), text(verb), text(resource)));
                }
            }
        }
    }
    let expected: BTreeSet<String> = include_str!("tests/rights.txt").lines().map(str::to_owned).collect();
    let more: Vec<&String> = given.difference(&expected).collect();
    let less: Vec<&String> = expected.difference(&given).collect();
    assert!(more.is_empty() && less.is_empty(), "given and not listed: {more:#?}; listed and not given: {less:#?}");

    for binding in of_kind("ClusterRoleBinding").into_iter().chain(of_kind("RoleBinding")) {
        let (role, subjects) = (&binding["roleRef"], list(&binding, "/subjects"));
        assert_eq!(subjects.len(), 1);
        assert_eq!(subjects[0], json!({"kind": "ServiceAccount", "name": role["name"], "namespace": "weft-system"}));
        assert_eq!(binding["kind"], format!("{}Binding", role["kind"].as_str().unwrap_or("?")));
    }
}

/// A schema's bounds are floating-point numbers to the API server.
fn alike(mut value: Value) -> Value {
    match &mut value {
        Value::Number(number) => value = json!(number.as_f64()),
        Value::Array(all) => all.iter_mut().for_each(|one| *one = alike(one.take())),
        Value::Object(fields) => fields.values_mut().for_each(|one| *one = alike(one.take())),
        _ => {}
    }
    value
}

/// Through the type and back: what the type does not know is lost, what it wants otherwise is an error.
fn survives<T: Serialize + DeserializeOwned>(object: &Value) {
    let typed: T = serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{}: {error}", name(object)));
    let back = serde_json::to_value(typed).expect("plain JSON");
    assert_eq!(alike(back), alike(object.clone()), "{}: a field that current Kubernetes does not have", name(object));
}

#[test]
fn current_kubernetes_knows_every_field() {
    for object in objects(&with_cni("delete"), KubeVersion::CURRENT) {
        let check: fn(&Value) = match object["kind"].as_str().unwrap_or_default() {
            "Namespace" => survives::<core_api::v1::Namespace>,
            "ResourceQuota" => survives::<core_api::v1::ResourceQuota>,
            "CustomResourceDefinition" => survives::<apiextensions::v1::CustomResourceDefinition>,
            "ServiceAccount" => survives::<core_api::v1::ServiceAccount>,
            "ConfigMap" => survives::<core_api::v1::ConfigMap>,
            "Service" => survives::<core_api::v1::Service>,
            "ClusterRole" => survives::<rbac::v1::ClusterRole>,
            "ClusterRoleBinding" => survives::<rbac::v1::ClusterRoleBinding>,
            "Role" => survives::<rbac::v1::Role>,
            "RoleBinding" => survives::<rbac::v1::RoleBinding>,
            "NetworkPolicy" => survives::<networking::v1::NetworkPolicy>,
            "PodDisruptionBudget" => survives::<policy::v1::PodDisruptionBudget>,
            "DaemonSet" => survives::<apps::v1::DaemonSet>,
            "Deployment" => survives::<apps::v1::Deployment>,
            "MutatingWebhookConfiguration" => survives::<admissionregistration::v1::MutatingWebhookConfiguration>,
            other => panic!("{other} is checked against nothing"),
        };
        check(&object);
    }
}

#[test]
fn an_old_server_gets_what_it_knows() {
    let versions = |kube: &str| -> BTreeSet<String> {
        let kube = kube.parse().expect("a version");
        let budgets = objects(&Settings::default(), kube).into_iter().filter(|object| object["kind"] == "PodDisruptionBudget");
        budgets.map(|object| object["apiVersion"].as_str().unwrap_or("?").to_owned()).collect()
    };
    assert_eq!(versions("1.20"), BTreeSet::from(["policy/v1beta1".to_owned()]));
    assert_eq!(versions("1.21"), BTreeSet::from(["policy/v1".to_owned()]));
    assert_eq!(versions("1.31"), versions("1.21"));
}

#[test]
fn settings_reach_the_programs() {
    let arguments = |part: Part| -> Vec<String> {
        let deployment = of_kind("Deployment").into_iter().find(|object| object["metadata"]["name"] == part.name());
        let deployment = deployment.expect("both are installed");
        list(&deployment, "/spec/template/spec/containers/0/args").iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let image = format!("weft.local/weft:{VERSION}");
    for (part, argument) in [
        (Part::ControlPlane, "--kubernetes".to_owned()),
        (Part::ControlPlane, "--mtls=permissive".to_owned()),
        (Part::ControlPlane, "--trust-domain=cluster.local".to_owned()),
        (Part::Injector, format!("--sidecar-image={image}")),
        (Part::Injector, "--control-plane=weft-control-plane.weft-system.svc:4700".to_owned()),
        (Part::Injector, "--native-sidecars=auto".to_owned()),
        (Part::Injector, "--redirect=init".to_owned()),
    ] {
        assert!(arguments(part).contains(&argument), "{argument}: {:?}", arguments(part));
    }
}

#[test]
fn what_is_printed_is_what_was_rendered() {
    let text = yaml::documents(&all());
    let read: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
    assert_eq!(read, all());
}

#[test]
fn the_plugin_is_there_only_where_it_is_chosen() {
    assert!(of_kind("DaemonSet").is_empty() && !yaml::documents(&all()).contains("weft-cni"));
    let objects = objects(&with_cni("delete"), KubeVersion::CURRENT);
    let find =
        |kind: &str, name: &str| objects.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name);

    let injector = find("Deployment", "weft-injector").expect("it is installed");
    assert!(list(injector, "/spec/template/spec/containers/0/args").contains(&json!("--redirect=cni")));
    // The agent would not be admitted at any stricter level.
    let namespace = find("Namespace", "weft-system").expect("it is installed");
    assert_eq!(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "privileged");
    assert_eq!(of_kind("Namespace")[0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "restricted");

    let position = |kind: &str| objects.iter().position(|object| object["kind"] == kind);
    assert!(position("DaemonSet") < position("Deployment"), "the injector relies on it");
    for object in &objects {
        assert_eq!(object["metadata"]["labels"][LABEL_PART_OF], PART_OF, "{}", name(object));
        assert!(Kind::of(object).is_some(), "{}", name(object));
    }
}

#[test]
fn the_image_is_built_with_every_program_that_is_installed() {
    let mut programs: BTreeSet<String> = ["weft-sidecar", "weft-redirect"].map(str::to_owned).into();
    for object in objects(&with_cni("delete"), KubeVersion::CURRENT) {
        for container in object.pointer("/spec/template/spec/containers").and_then(Value::as_array).into_iter().flatten() {
            programs.insert(container["command"][0].as_str().expect("a program").to_owned());
        }
    }
    assert!(programs.contains("weft-cni") && programs.contains("weft-injector"), "{programs:?}");
    let (build, dockerfile) = (include_str!("../../../deploy/image/build"), include_str!("../../../deploy/image/Dockerfile"));
    let needed = build.lines().find(|line| line.starts_with("PROGRAMS = ")).expect("it says what it takes");
    for program in programs {
        assert!(needed.contains(&format!("'{program}'")), "{program}: {needed}");
        assert!(dockerfile.contains(&format!("-p {program} ")), "{program} is not built");
    }
    // It is run by the nodes themselves.
    assert!(dockerfile.contains("--bin weft-cni -- -C target-feature=+crt-static"));
}

#[test]
fn the_agent_runs_on_every_node_with_two_capabilities_and_three_directories() {
    let settings = Settings {
        cni_bin_dir: "/usr/libexec/cni".to_owned(),
        cni_conf_dir: "/var/lib/cni/net.d".to_owned(),
        ..with_cni("never")
    };
    let objects = objects(&settings, KubeVersion::CURRENT);
    let daemon_set = objects.iter().find(|object| object["kind"] == "DaemonSet").expect("it is installed");
    let pod = &daemon_set["spec"]["template"]["spec"];
    assert_eq!(
        (&pod["priorityClassName"], &pod["tolerations"]),
        (&json!("system-node-critical"), &json!([{"operator": "Exists"}]))
    );
    for power in ["hostNetwork", "hostPID", "hostIPC"] {
        assert_eq!(pod.get(power), None, "{power}");
    }
    let container = &pod["containers"][0];
    assert_eq!(container["securityContext"]["capabilities"], json!({"drop": ["ALL"], "add": ["NET_ADMIN", "SYS_ADMIN"]}));
    assert_eq!(container["securityContext"].get("privileged"), None);
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    let paths: Vec<&Value> = list(pod, "/volumes").iter().map(|volume| &volume["hostPath"]["path"]).collect();
    assert_eq!(paths, ["/usr/libexec/cni", "/var/lib/cni/net.d", "/run/weft-cni"]);
    assert!(list(container, "/args").contains(&json!("--repair=never")));
    // The plugin finds the agent by the same path on the node.
    assert!(list(container, "/args").contains(&json!("--socket=/run/weft-cni/agent.sock")));
    assert!(list(container, "/volumeMounts").iter().any(|mount| mount["mountPath"] == "/run/weft-cni"));
}

#[test]
fn the_agent_deletes_pods_only_where_it_is_to_repair_them() {
    let rights = |repair: &str| {
        let objects = objects(&with_cni(repair), KubeVersion::CURRENT);
        let names: BTreeSet<&str> = objects
            .iter()
            .filter(|object| object["kind"] == "ClusterRoleBinding" || object["kind"] == "RoleBinding")
            .filter(|binding| binding["subjects"][0]["name"] == "weft-cni")
            .filter_map(|binding| binding["roleRef"]["name"].as_str())
            .collect();
        let mut rights = Vec::new();
        for role in objects.iter().filter(|object| names.iter().any(|name| object["metadata"]["name"] == *name)) {
            for rule in role.get("rules").and_then(Value::as_array).into_iter().flatten() {
                rights.push(format!("{} {} {}", rule["resources"], rule["verbs"], rule["resourceNames"]));
            }
        }
        rights.sort();
        rights
    };
    let always = [r#"["daemonsets"] ["get"] ["weft-cni"]"#, r#"["pods"] ["get","list","watch"] null"#];
    assert_eq!(rights("never"), always);
    let mut more = always.to_vec();
    more.extend([r#"["events"] ["create","patch"] null"#, r#"["pods"] ["delete"] null"#]);
    more.sort_unstable();
    assert_eq!(rights("delete"), more);
}
