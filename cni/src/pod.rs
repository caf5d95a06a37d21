//! What is to be done about a pod, by what the API server says of it. Pure.

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Container, Pod};
use weft_core::wellknown::{PORT_DNS, SIDECAR_CONTAINER};
use weft_injector::{ANNOTATION_REDIRECT, REDIRECT_CONTAINER, VERIFY_ARGUMENTS, VERIFY_CONTAINER};
use weft_redirect::{PortRange, RedirectConfig};

/// The annotation that the kubelet puts on the mirror of a pod of its own, which has another uid than the pod itself.
const ANNOTATION_STATIC: &str = "kubernetes.io/config.hash";
/// The most bytes that the words of one pod's redirect may have.
const MAX_WORDS: usize = 16 * 1024;

/// What is to be done about a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Redirect it so.
    Redirect(Box<RedirectConfig>),
    /// It is none of the plugin's business.
    Leave(&'static str),
    /// It is another pod than the one that was asked about.
    Stale,
    /// It is in the mesh, and what it says of its redirect cannot be gone by: it must not start.
    Refuse(String),
}

/// Decides about `pod`, which the runtime says has this uid, if it says one.
pub fn decide(pod: &Pod, uid: Option<&str>) -> Decision {
    let annotation = |name: &str| pod.metadata.annotations.as_ref()?.get(name).map(String::as_str);
    if uid.is_some() && uid != pod.metadata.uid.as_deref() {
        return match annotation(ANNOTATION_STATIC) {
            Some(hash) if uid == Some(hash) => Decision::Leave("it is the kubelet's own, and never admitted to the mesh"),
            _ => Decision::Stale,
        };
    }
    let Some(verify) = container(pod, VERIFY_CONTAINER) else {
        return match (container(pod, SIDECAR_CONTAINER), container(pod, REDIRECT_CONTAINER), annotation(ANNOTATION_REDIRECT)) {
            (Some(_), None, Some(_)) => Decision::Refuse(format!(
                "it has a sidecar and no container {VERIFY_CONTAINER:?} that proves its redirect: create it again, so that the \
                 injector of this version sees it"
            )),
            (Some(_), Some(_), _) => Decision::Leave("its own init container redirects it"),
            _ => Decision::Leave("it is not in the mesh by the plugin"),
        };
    };
    let words: Vec<&str> = verify.args.iter().flatten().map(String::as_str).collect();
    let Some(words) = words.strip_prefix(&VERIFY_ARGUMENTS) else {
        return Decision::Refuse(format!("the arguments of its container {VERIFY_CONTAINER:?} are not the injector's"));
    };
    // Whoever may change a pod may change its annotations, but not its containers.
    if annotation(ANNOTATION_REDIRECT) != Some(words.join(" ").as_str()) {
        return Decision::Refuse(format!(
            "its annotation {ANNOTATION_REDIRECT} is not what it was admitted with ({:?}): create the pod again",
            words.join(" ")
        ));
    }
    match redirect(words) {
        Ok(config) => Decision::Redirect(Box::new(config)),
        Err(why) => Decision::Refuse(format!("its redirect can't be read: {why}")),
    }
}

/// The container of that name, among those that run first or the others.
fn container<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec = pod.spec.as_ref()?;
    spec.init_containers.iter().flatten().chain(&spec.containers).find(|container| container.name == name)
}

/// Reads the words that the injector writes, and no others: they come from the cluster, and how the sidecar is told from the app is
/// not theirs to say.
fn redirect(words: &[&str]) -> Result<RedirectConfig, String> {
    if words.iter().map(|word| word.len()).sum::<usize>() > MAX_WORDS {
        return Err(format!("it has more than {MAX_WORDS} bytes"));
    }
    let mut config = RedirectConfig::default();
    let mut words = words.iter();
    while let Some(flag) = words.next() {
        let list = words.next().ok_or_else(|| format!("{flag:?} has no value"))?;
        match *flag {
            "--skip-inbound-ports" => config.skip_inbound_ports = ports(list)?,
            "--skip-outbound-ports" => config.skip_outbound_ports = ports(list)?,
            "--skip-subnets" => config.skip_subnets = subnets(list)?,
            "--dns-port" if *list == PORT_DNS.to_string() => config.dns_port = Some(PORT_DNS),
            "--dns-port" => return Err(format!("{list:?} is not the sidecar's port for DNS, which is {PORT_DNS}")),
            _ => {
                let known = "--skip-inbound-ports, --skip-outbound-ports, --skip-subnets and --dns-port";
                return Err(format!("{flag:?} is none of {known}"));
            }
        }
    }
    Ok(config)
}

fn ports(list: &str) -> Result<Vec<PortRange>, String> {
    list.split(',').map(|ports| ports.parse::<PortRange>().map_err(|error| error.to_string())).collect()
}

fn subnets(list: &str) -> Result<Vec<IpNet>, String> {
    list.split(',').map(|subnet| subnet.parse::<IpNet>().map_err(|error| format!("{subnet:?}: {error}"))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(annotation: Option<&str>, init: &Value) -> Pod {
        let annotations = annotation.map(|words| json!({ ANNOTATION_REDIRECT: words }));
        serde_json::from_value(json!({
            "metadata": {"name": "web-1", "namespace": "shop", "uid": "7", "annotations": annotations},
            "spec": {"initContainers": init, "containers": [{"name": "app"}]},
        }))
        .expect("a pod")
    }

    fn meshed(words: &str) -> Pod {
        let args: Vec<&str> = VERIFY_ARGUMENTS.into_iter().chain(words.split_whitespace()).collect();
        pod(Some(words), &json!([{"name": VERIFY_CONTAINER, "args": args}, {"name": SIDECAR_CONTAINER}]))
    }

    #[track_caller]
    fn refused(pod: &Pod, part: &str) {
        match decide(pod, Some("7")) {
            Decision::Refuse(why) => assert!(why.contains(part), "{why}"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_pod_of_the_mesh_is_redirected_as_it_says() {
        assert_eq!(decide(&meshed(""), Some("7")), Decision::Redirect(Box::default()));
        assert_eq!(decide(&meshed(""), None), Decision::Redirect(Box::default()), "older runtimes don't tell the uid");
        let words = "--skip-inbound-ports 22,9100 --skip-outbound-ports 3306 --skip-subnets 10.96.0.0/12,fd00::/8";
        let Decision::Redirect(config) = decide(&meshed(words), Some("7")) else { panic!("it is in the mesh") };
        assert_eq!(config.skip_inbound_ports, ports("22,9100").expect("ports"));
        assert_eq!(config.skip_outbound_ports, ports("3306").expect("ports"));
        assert_eq!(config.skip_subnets, subnets("10.96.0.0/12,fd00::/8").expect("subnets"));
        assert_eq!(config.exempt, RedirectConfig::default().exempt);
        let Decision::Redirect(config) = decide(&meshed("--dns-port 4753"), Some("7")) else { panic!("it is in the mesh") };
        assert_eq!(config.dns_port, Some(4753));
    }

    #[test]
    fn other_pods_are_left_alone() {
        let leave = |pod: &Pod| matches!(decide(pod, Some("7")), Decision::Leave(_));
        assert!(leave(&pod(None, &Value::Null)));
        assert!(leave(&pod(Some("--skip-subnets 0.0.0.0/0"), &json!([{"name": "migrate"}]))), "an annotation alone says nothing");
        assert!(leave(&pod(None, &json!([{"name": REDIRECT_CONTAINER}, {"name": SIDECAR_CONTAINER}]))));
        assert!(
            leave(&Pod::default()) || decide(&Pod::default(), None) == Decision::Leave("it is not in the mesh by the plugin")
        );
    }

    #[test]
    fn another_pod_of_the_same_name_is_told_from_it() {
        assert_eq!(decide(&meshed(""), Some("8")), Decision::Stale);
        let mut mirror = pod(None, &Value::Null);
        let annotations = mirror.metadata.annotations.get_or_insert_default();
        annotations.insert(ANNOTATION_STATIC.to_owned(), "8".to_owned());
        assert!(matches!(decide(&mirror, Some("8")), Decision::Leave(_)));
        assert_eq!(decide(&mirror, Some("9")), Decision::Stale);
    }

    #[test]
    fn what_was_changed_after_admission_does_not_start() {
        let mut changed = meshed("--skip-outbound-ports 3306");
        let annotations = changed.metadata.annotations.get_or_insert_default();
        annotations.insert(ANNOTATION_REDIRECT.to_owned(), "--skip-outbound-ports 1-65535".to_owned());
        refused(&changed, "not what it was admitted with");
        annotations_of(&mut changed).clear();
        refused(&changed, "not what it was admitted with");
        refused(&pod(Some(""), &json!([{"name": SIDECAR_CONTAINER}])), VERIFY_CONTAINER);
        refused(&pod(Some(""), &json!([{"name": VERIFY_CONTAINER, "args": ["show"]}])), "not the injector's");
    }

    fn annotations_of(pod: &mut Pod) -> &mut std::collections::BTreeMap<String, String> {
        pod.metadata.annotations.get_or_insert_default()
    }

    #[test]
    fn words_that_are_not_the_injectors_are_refused() {
        for (words, part) in [
            ("--exempt-uid 0", "--exempt-uid"),
            ("--skip-inbound-ports", "no value"),
            ("--skip-inbound-ports 0", "65535"),
            ("--skip-subnets 10.0.0.0/99", "10.0.0.0/99"),
            ("--backend nft --skip-subnets 10.0.0.0/8", "--backend"),
            ("--dns-port 53", "4753"),
        ] {
            refused(&meshed(words), part);
        }
        let long = format!("--skip-inbound-ports {}", vec!["80"; MAX_WORDS].join(","));
        refused(&meshed(&long), "bytes");
    }
}
