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
    decide(|| api.get_opt(daemon_set)).await
}

type Answer = Result<Option<DaemonSet>, kube::Error>;

async fn decide<F: Future<Output = Answer>>(ask: impl Fn() -> F) -> Verdict {
    let deadline = Instant::now() + ASK;
    let mut refused = false;
    while let Ok(answer) = timeout_at(deadline, ask()).await {
        if let Err(error) = &answer {
            tracing::warn!(error = said(error), "the API server does not tell of the DaemonSet");
        }
        if let Some(verdict) = judge(&answer) {
            return verdict;
        }
        refused = is_refused(&answer);
        if Instant::now() + EVERY >= deadline {
            break;
        }
        sleep(EVERY).await;
    }
    if refused { Verdict::Leave } else { Verdict::Stay }
}

/// What an answer means; None where it is worth asking again.
fn judge(answer: &Answer) -> Option<Verdict> {
    match answer {
        Ok(Some(there)) if there.metadata.deletion_timestamp.is_none() => Some(Verdict::Stay),
        Ok(_) => Some(Verdict::Leave),
        Err(_) => None,
    }
}

/// Who may no longer ask could not look pods up either: so an installation looks whose rights went before its pods. For a moment, a
/// server that starts looks so, too.
fn is_refused(answer: &Answer) -> bool {
    matches!(answer, Err(kube::Error::Api(status)) if [401, 403].contains(&status.code))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn there(metadata: &serde_json::Value) -> DaemonSet {
        serde_json::from_value(json!({ "metadata": metadata })).expect("a DaemonSet")
    }

    fn failed(code: u16) -> Answer {
        let status = json!({"status": "Failure", "message": "", "reason": "", "code": code});
        Err(kube::Error::Api(Box::new(serde_json::from_value(status).expect("a status"))))
    }

    #[test]
    fn the_plugin_goes_with_its_daemon_set_and_with_nothing_less() {
        assert_eq!(judge(&Ok(Some(there(&json!({"name": "weft-cni"}))))), Some(Verdict::Stay));
        assert_eq!(judge(&Ok(Some(there(&json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}))))), Some(Verdict::Leave));
        assert_eq!(judge(&Ok(None)), Some(Verdict::Leave));
        for code in [401, 403, 429, 500] {
            assert_eq!(judge(&failed(code)), None, "{code}");
        }
    }

    /// The verdict where the first `codes` answers fail so, and the last one is repeated.
    async fn decided(codes: &[u16], then: impl Fn() -> Answer) -> Verdict {
        let asked = std::cell::Cell::new(0);
        decide(|| {
            let at = asked.replace(asked.get() + 1);
            let answer = codes.get(at).map_or_else(&then, |code| failed(*code));
            async move { answer }
        })
        .await
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_counts_only_if_it_stands_to_the_end() {
        let stands = || Ok(Some(there(&json!({"name": "weft-cni"}))));
        assert_eq!(decided(&[403, 401, 403], stands).await, Verdict::Stay);
        assert_eq!(decided(&[403], || failed(500)).await, Verdict::Stay);
        assert_eq!(decided(&[500, 403], || Ok(None)).await, Verdict::Leave);
        for code in [401, 403] {
            assert_eq!(decided(&[500], || failed(code)).await, Verdict::Leave, "{code}");
        }
        let unheard = decide(|| async { std::future::pending().await }).await;
        assert_eq!(unheard, Verdict::Stay);
    }
}
