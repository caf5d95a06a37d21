//! One sidecar of a mesh, and the command that follows what it tells.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde_json::Value;
use weft_core::Namespace;

use super::{Fleet, exec_words, listed, runs_sidecar};
use crate::lab::door;
use crate::sidecar;

/// A sidecar that can be asked.
#[derive(Debug)]
pub(crate) struct Reached {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    /// What the pod is one of: the name of a workload, or of a Deployment or its like.
    pub(crate) workload: String,
    way: Way,
}

#[derive(Debug)]
enum Way {
    /// The run directory, and the replica's place in it.
    Run(PathBuf, usize),
    Cluster(Option<String>),
}

impl Fleet {
    /// The sidecars of one workload or pod, named as NAMESPACE/NAME.
    pub(crate) fn reach(&self, target: &str) -> anyhow::Result<Vec<Reached>> {
        let (namespace, name) = target.split_once('/').with_context(|| format!("{target:?} is not NAMESPACE/NAME"))?;
        let all = self.reachable(Some(&namespace.parse().with_context(|| format!("{namespace:?} is no namespace"))?))?;
        let known: Vec<String> = all.iter().map(|r| format!("{namespace}/{}", r.workload)).collect();
        let found: Vec<_> = all.into_iter().filter(|r| r.pod == name || r.workload == name).collect();
        if found.is_empty() {
            let mut known = known;
            known.dedup();
            bail!("{target} has no sidecar that runs; in {namespace} there are: {}", known.join(", "));
        }
        Ok(found)
    }

    /// Every sidecar, or those of one namespace.
    pub(super) fn reachable(&self, namespace: Option<&Namespace>) -> anyhow::Result<Vec<Reached>> {
        match self {
            Self::Run(run) => {
                let all = door::list(run)?.into_iter().enumerate();
                let meshed = all.filter(|(_, l)| l.meshed && namespace.is_none_or(|n| l.namespace == n.as_str()));
                Ok(meshed
                    .map(|(index, l)| Reached {
                        workload: l.pod.rsplit_once('-').map_or(&*l.pod, |(name, _)| name).to_owned(),
                        namespace: l.namespace,
                        pod: l.pod,
                        way: Way::Run(run.clone(), index),
                    })
                    .collect())
            }
            Self::Cluster(context) => {
                let pods = listed(context.as_deref(), "pods", namespace)?;
                let text = |pod: &Value, field: &str| pod["metadata"][field].as_str().unwrap_or_default().to_owned();
                let meshed = pods.iter().filter(|pod| runs_sidecar(pod));
                Ok(meshed
                    .map(|pod| Reached {
                        namespace: text(pod, "namespace"),
                        pod: text(pod, "name"),
                        workload: workload_of(pod),
                        way: Way::Cluster(context.clone()),
                    })
                    .collect())
            }
        }
    }
}

/// What a pod of a cluster is one of: its controller, or the Deployment that its `ReplicaSet` is of.
fn workload_of(pod: &Value) -> String {
    let owner = &pod["metadata"]["ownerReferences"][0];
    let name = owner["name"].as_str().or_else(|| pod["metadata"]["name"].as_str()).unwrap_or_default();
    let hash = pod["metadata"]["labels"]["pod-template-hash"].as_str().unwrap_or_default();
    match name.strip_suffix(hash).and_then(|name| name.strip_suffix('-')) {
        Some(deployment) if !hash.is_empty() => deployment.to_owned(),
        _ => name.to_owned(),
    }
}

impl Reached {
    /// As people are told of it.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.namespace, self.pod)
    }

    /// A command that prints what comes from `path` of the admin socket, for as long as it comes.
    pub(crate) fn follow(&self, path: &str) -> anyhow::Result<Command> {
        let mut command = match &self.way {
            Way::Run(run, index) => sidecar::lab_get(run, *index, path, "FOLLOW")?,
            Way::Cluster(context) => {
                let mut command = Command::new("kubectl");
                command.args(context.as_ref().map(|context| format!("--context={context}")));
                command.args(exec_words(&self.namespace, &self.pod, "FOLLOW", path));
                command
            }
        };
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(command)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_is_one_of_its_deployment_or_of_its_controller() {
        let pod = |owner: &str, hash: Value| json!({"metadata": {"name": "x", "ownerReferences": [{"name": owner}], "labels": {"pod-template-hash": hash}}});
        assert_eq!(workload_of(&pod("web-api-5d4f", json!("5d4f"))), "web-api");
        assert_eq!(workload_of(&pod("db", Value::Null)), "db");
        assert_eq!(workload_of(&json!({"metadata": {"name": "alone"}})), "alone");
    }
}
