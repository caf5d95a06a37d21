//! Whether an agent that is told to stop takes the plugin with it.
//!
//! A pod that is replaced, by a new version or on a node that starts anew, leaves the plugin where it is: pods that are created
//! meanwhile wait, and none has to be made anew. Where the `DaemonSet` is gone, nobody would ever answer again, and no pod would start.

use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{Api, Client};
use tokio::time::{Instant, sleep, timeout_at};

use crate::agent::said;

/// How long it is asked for; a pod is killed half a minute after it was told to stop.
const ASK: Duration = Duration::from_secs(10);
const EVERY: Duration = Duration::from_millis(500);

/// What to do with the plugin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Another agent will come.
    Stay,
    /// No other agent will come.
    Leave,
}

/// Asks the API server. One that does not answer at all is no reason to go: so it is when a whole node stops.
pub async fn verdict(client: &Client, namespace: &str, daemon_set: &str) -> Verdict {
    let api: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let deadline = Instant::now() + ASK;
    loop {
        let Ok(answer) = timeout_at(deadline, api.get_opt(daemon_set)).await else { break };
        if let Err(error) = &answer {
            tracing::warn!(error = said(error), "the API server does not tell of the DaemonSet");
        }
        if let Some(verdict) = judge(&answer) {
            return verdict;
        }
        if Instant::now() + EVERY >= deadline {
            break;
        }
        sleep(EVERY).await;
    }
    Verdict::Stay
}

/// What an answer means; None where it is worth asking again.
fn judge(answer: &Result<Option<DaemonSet>, kube::Error>) -> Option<Verdict> {
    match answer {
        Ok(Some(there)) if there.metadata.deletion_timestamp.is_none() => Some(Verdict::Stay),
        Ok(_) => Some(Verdict::Leave),
        // Who may no longer ask could not look pods up either. It is how an installation looks whose rights went before its pods.
        Err(kube::Error::Api(status)) if [401, 403].contains(&status.code) => Some(Verdict::Leave),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn there(metadata: &serde_json::Value) -> Result<Option<DaemonSet>, kube::Error> {
        Ok(Some(serde_json::from_value(json!({ "metadata": metadata })).expect("a DaemonSet")))
    }

    fn failed(code: u16) -> Result<Option<DaemonSet>, kube::Error> {
        let status = json!({"status": "Failure", "message": "", "reason": "", "code": code});
        Err(kube::Error::Api(Box::new(serde_json::from_value(status).expect("a status"))))
    }

    #[test]
    fn the_plugin_goes_with_its_daemon_set_and_with_nothing_less() {
        assert_eq!(judge(&there(&json!({"name": "weft-cni"}))), Some(Verdict::Stay));
        assert_eq!(judge(&there(&json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}))), Some(Verdict::Leave));
        assert_eq!(judge(&Ok(None)), Some(Verdict::Leave));
        assert_eq!((judge(&failed(403)), judge(&failed(401))), (Some(Verdict::Leave), Some(Verdict::Leave)));
        assert_eq!((judge(&failed(500)), judge(&failed(429))), (None, None));
    }
}
