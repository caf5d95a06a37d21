//! `weft uninstall`: prints what `kubectl delete` takes, or removes everything and says what is left to do.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::kinds::{CRD, DEFINED};
use super::settings::Settings;
use super::{KubeVersion, Target, access, objects, yaml};
use crate::output::print;

/// The label that the control plane puts on what it makes, and what it reads.
const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "weft-control-plane");

/// What `weft uninstall` is told.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  weft uninstall
  weft uninstall --apply --keep-ca")]
#[cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "only a client reads all of it"))]
pub(crate) struct UninstallArgs {
    #[command(flatten)]
    target: Target,

    /// Leave the CA, and so the namespace that it is in: a later installation can go on with the same identities
    #[arg(long)]
    keep_ca: bool,

    /// Remove weft's kinds even where objects of them are left, and those objects with them
    #[arg(long)]
    delete_crds: bool,

    /// Do not ask before the CA is removed
    #[arg(long, conflicts_with = "keep_ca")]
    yes: bool,
}

pub(crate) fn main(args: &UninstallArgs) -> anyhow::Result<ExitCode> {
    if args.target.applies() {
        return remove(args);
    }
    let (left, kube) = left(args);
    print(&printed(args.keep_ca, args.delete_crds, &left, kube))?;
    Ok(ExitCode::SUCCESS)
}

/// Everything that `weft install` prints, as far as it takes to name it, the last first: so the webhook goes before what
/// answers it, and nothing else in the cluster has to wait for it. The namespace is not among it: something else may be in it.
/// `left` is said first, line by line; kinds are of the versions that `kube` has.
fn printed(keep_ca: bool, delete_crds: bool, left: &[String], kube: KubeVersion) -> String {
    let home = Settings::default().namespace;
    let made = [("coordination.k8s.io/v1", "Lease", access::LEASE), ("v1", "Secret", access::WEBHOOK_SECRET)]
        .map(|(version, kind, name)| json!({"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": home}}));
    let mut named: Vec<Value> = objects(&everything(), kube)
        .iter()
        .rev()
        .filter(|object| object["kind"] != "Namespace")
        .filter(|object| delete_crds || object["kind"] != CRD.kind)
        .map(|object| {
            let metadata = &object["metadata"];
            let mut place = json!({ "name": metadata["name"] });
            if let Some(namespace) = metadata.get("namespace") {
                place["namespace"] = namespace.clone();
            }
            json!({ "apiVersion": object["apiVersion"], "kind": object["kind"], "metadata": place })
        })
        .collect();
    named.extend(made);
    let (label, value) = MANAGED_BY;
    let kinds = if delete_crds {
        "# With weft's kinds, and so with every object of them in every namespace.\n".to_owned()
    } else {
        let all: Vec<String> = DEFINED.iter().map(|kind| format!("{}.{}", kind.plural, kind.group())).collect();
        format!(
            "# Without weft's kinds, since objects of them may be left (kubectl get {} -A):\n\
             #     kubectl delete crd --ignore-not-found {}\n",
            all.join(","),
            all.join(" ")
        )
    };
    let mut text: String = left.iter().map(|line| format!("# {}\n", on_one_line(line))).collect();
    let _ = write!(
        text,
        "# For kubectl delete --ignore-not-found -f -\n\
         # Besides, when the control plane's pods are gone, what it wrote into other namespaces:\n\
         #     kubectl delete configmaps --all-namespaces -l {label}={value}\n"
    );
    if !keep_ca {
        let _ = write!(
            text,
            "# Then the CA, where weft made it, and its namespace, if nothing else is in it:\n\
             #     kubectl delete secrets -n {home} -l {label}={value}\n\
             #     kubectl delete namespace {home}\n"
        );
    }
    text + &kinds + &yaml::documents(&named)
}

/// Names in a cluster are anybody's to choose, owners' above all: one with a line break would add to what is deleted.
fn on_one_line(text: &str) -> String {
    text.replace(|c: char| c.is_control() || matches!(c, '\u{85}' | '\u{2028}' | '\u{2029}'), "?")
}

#[cfg(not(feature = "kubernetes"))]
fn left(_: &UninstallArgs) -> (Vec<String>, KubeVersion) {
    let line = "Pods keep their sidecars until they are made anew. This build has no Kubernetes client, which would name them.";
    (vec![line.to_owned()], KubeVersion::CURRENT)
}

/// What stays in the cluster when all of this is deleted, or why nobody knows; and the cluster's version.
#[cfg(feature = "kubernetes")]
fn left(args: &UninstallArgs) -> (Vec<String>, KubeVersion) {
    super::cluster::run(removal::look(&args.target)).unwrap_or_else(|why| {
        let line = format!("Which pods still have sidecars, and what else is in the namespace, can't be said: {why:#}");
        (vec![line], KubeVersion::CURRENT)
    })
}

/// With all that may have been chosen: what is not there is not deleted.
fn everything() -> Settings {
    Settings { cni: "true".to_owned(), ..Settings::default() }
}

#[cfg(not(feature = "kubernetes"))]
fn remove(_: &UninstallArgs) -> anyhow::Result<ExitCode> {
    Err(super::no_client("pipe what `weft uninstall` prints to `kubectl delete --ignore-not-found -f -`"))
}

#[cfg(feature = "kubernetes")]
fn remove(args: &UninstallArgs) -> anyhow::Result<ExitCode> {
    super::cluster::run(removal::remove(args))
}

#[cfg(feature = "kubernetes")]
mod removal;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_webhook_goes_first_and_the_namespace_stays() {
        let text = printed(false, true, &["Namespace shop still has its label".to_owned()], KubeVersion::CURRENT);
        let all: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
        let kinds: Vec<&str> = all.iter().filter_map(|object| object["kind"].as_str()).collect();
        assert_eq!(kinds.first(), Some(&"MutatingWebhookConfiguration"));
        assert!(!kinds.contains(&"Namespace"), "what else is in it would go too");
        // Without the namespace, with the Lease and the Secret that the programs made.
        assert_eq!(all.len(), objects(&everything(), KubeVersion::CURRENT).len() + 1);
        // Its agents ask for it when they are told to stop, and so whether to leave their nodes.
        let place = |kind: &str, name: &str| all.iter().position(|one| one["kind"] == kind && one["metadata"]["name"] == name);
        assert!(place("DaemonSet", "weft-cni").is_some_and(|index| Some(index) < place("RoleBinding", "weft-cni")));
        assert!(all.iter().all(|object| object["metadata"]["labels"].is_null() && object.get("spec").is_none()));
        assert!(text.starts_with("# Namespace shop still has its label\n# For kubectl delete"), "{text}");
        assert!(text.contains("delete namespace weft-system"));
        let kept = printed(true, true, &[], KubeVersion::CURRENT);
        assert!(!kept.contains("delete namespace") && !kept.contains("secrets -n"));
        // Users' objects go with their kinds: that is asked for by name.
        assert!(text.contains("kind: CustomResourceDefinition\n"));
        let text = printed(false, false, &[], KubeVersion::OLDEST);
        assert!(text.contains("policy/v1beta1"), "{text}");
        assert!(!text.contains("kind: CustomResourceDefinition\n"));
        assert!(
            text.contains("kubectl delete crd --ignore-not-found authorizationpolicies.weft.dev externalservices.weft.dev jwtissuers.weft.dev mtlspolicies.weft.dev trafficpolicies.weft.dev federatedtrustdomains.weft.dev identitydenials.weft.dev\n"),
            "{text}"
        );
    }

    #[test]
    fn what_is_said_first_adds_no_object() {
        let text = printed(true, true, &["deployment/x\n---\nkind: Secret\r\u{1b}[2J\u{2028}x".to_owned()], KubeVersion::CURRENT);
        assert!(text.starts_with("# deployment/x?---?kind: Secret??[2J?x\n# For"), "{text:?}");
    }
}
