//! `weft uninstall`: prints what `kubectl delete` takes, or removes everything and says what is left to do.

use std::process::ExitCode;

use clap::Args;
use serde_json::{Value, json};

use super::settings::Settings;
use super::{KubeVersion, Target, objects, print, yaml};

/// The label that the control plane puts on what it makes, and what it reads.
const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "weft-control-plane");

/// What `weft uninstall` is told.
#[derive(Args, Debug)]
#[cfg_attr(not(feature = "kubernetes"), allow(dead_code, reason = "only a client reads all of it"))]
pub(crate) struct UninstallArgs {
    #[command(flatten)]
    target: Target,

    /// Leave the CA, and so the namespace that it is in: a later installation can go on with the same identities
    #[arg(long)]
    keep_ca: bool,

    /// Do not ask before the CA is removed
    #[arg(long, conflicts_with = "keep_ca")]
    yes: bool,
}

pub(crate) fn main(args: &UninstallArgs) -> anyhow::Result<ExitCode> {
    if args.target.apply {
        return remove(args);
    }
    print(&printed(args.keep_ca))?;
    Ok(ExitCode::SUCCESS)
}

/// Everything that `weft install` prints, as far as it takes to name it, the last first: so the webhook goes before what
/// answers it, and nothing else in the cluster has to wait for it.
fn printed(keep_ca: bool) -> String {
    let named: Vec<Value> = objects(&Settings::default(), KubeVersion::CURRENT)
        .iter()
        .rev()
        .filter(|object| !(keep_ca && object["kind"] == "Namespace"))
        .map(|object| {
            let metadata = &object["metadata"];
            let mut place = json!({ "name": metadata["name"] });
            if let Some(namespace) = metadata.get("namespace") {
                place["namespace"] = namespace.clone();
            }
            json!({ "apiVersion": object["apiVersion"], "kind": object["kind"], "metadata": place })
        })
        .collect();
    let (label, value) = MANAGED_BY;
    format!(
        "# For kubectl delete --ignore-not-found -f -\n\
         # Besides, what the control plane wrote into other namespaces:\n\
         #     kubectl delete configmaps --all-namespaces -l {label}={value}\n{}",
        yaml::documents(&named)
    )
}

#[cfg(not(feature = "kubernetes"))]
fn remove(_: &UninstallArgs) -> anyhow::Result<ExitCode> {
    Err(super::no_client("pipe what `weft uninstall` prints to `kubectl delete --ignore-not-found -f -`"))
}

#[cfg(feature = "kubernetes")]
fn remove(args: &UninstallArgs) -> anyhow::Result<ExitCode> {
    super::cluster::run(removal::remove(&args.target, args.keep_ca, args.yes))
}

#[cfg(feature = "kubernetes")]
mod removal;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_webhook_goes_first_and_the_namespace_last() {
        let text = printed(false);
        let all: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
        let kinds: Vec<&str> = all.iter().filter_map(|object| object["kind"].as_str()).collect();
        assert_eq!(kinds.first(), Some(&"MutatingWebhookConfiguration"));
        assert_eq!(kinds.last(), Some(&"Namespace"));
        assert_eq!(all.len(), objects(&Settings::default(), KubeVersion::CURRENT).len());
        assert!(all.iter().all(|object| object["metadata"]["labels"].is_null() && object.get("spec").is_none()));
        assert!(!printed(true).contains("kind: Namespace\n"));
    }
}
