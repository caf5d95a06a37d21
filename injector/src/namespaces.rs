//! Where the namespaces' labels and annotations come from: a watch, or a directory where there is no cluster.
//!
//! A namespace that is not known yet is asked for; one that cannot be had is a refusal. Its annotations may forbid
//! what the pod asks for, or ask for what the pod does not say, and whoever creates the pod tries again.

use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio_stream::StreamExt;
use weft_core::Namespace;

use crate::{InjectError, NamespaceFacts};

/// A namespace without its spec and status, which say nothing here.
type Known = PartialObjectMeta<v1::Namespace>;

/// How long the API server may take over a namespace that the watch has not told of. It waits for our answer itself,
/// mostly 5 s.
const ASK: Duration = Duration::from_secs(2);

/// What is known of namespaces.
pub enum Namespaces {
    /// From a cluster: what a watch has told so far, and whom to ask for the rest.
    Cluster {
        /// What the watch has told.
        store: Store<Known>,
        /// Whom to ask.
        api: Box<Api<v1::Namespace>>,
    },
    /// From the files `NAME.json` of a directory.
    Directory(PathBuf),
}

impl Namespaces {
    /// Follows the cluster's namespaces, in a task that ends with the process.
    pub fn follow(client: Client) -> Self {
        let (store, writer) = reflector::store();
        let all: Api<Known> = Api::all(client.clone());
        tokio::spawn(async move {
            let events = watcher(all, watcher::Config::default()).default_backoff().reflect(writer);
            let mut events = std::pin::pin!(events);
            while let Some(event) = events.next().await {
                if let Err(error) = event {
                    tracing::warn!(%error, "namespaces can't be followed; what is known of them stays in force");
                }
            }
        });
        Self::Cluster { store, api: Box::new(Api::all(client)) }
    }

    /// Waits until all namespaces were listed once.
    pub async fn wait_until_known(&self) {
        match self {
            // Only a writer that is gone makes this an error, and then everything is asked for.
            Self::Cluster { store, .. } => drop(store.wait_until_ready().await),
            Self::Directory(_) => {}
        }
    }

    /// What is known of the namespace `name`; it may have changed a moment ago.
    pub async fn find(&self, name: &Namespace) -> Result<NamespaceFacts, InjectError> {
        if let Self::Cluster { store, .. } = self
            && let Some(known) = store.get(&ObjectRef::new(name.as_str()))
        {
            return NamespaceFacts::from_manifest(&json!({ "metadata": known.metadata }));
        }
        self.ask(name).await
    }

    /// What the namespace `name` is now.
    pub async fn ask(&self, name: &Namespace) -> Result<NamespaceFacts, InjectError> {
        let unknown = |why: String| InjectError::NamespaceUnknown { namespace: name.clone(), why };
        let manifest = match self {
            Self::Cluster { api, .. } => match tokio::time::timeout(ASK, api.get_metadata(name.as_str())).await {
                Ok(Ok(found)) => json!({ "metadata": found.metadata }),
                Ok(Err(error)) => return Err(unknown(error.to_string())),
                Err(_) => return Err(unknown(format!("no answer in {} s", ASK.as_secs()))),
            },
            Self::Directory(dir) => {
                let path = dir.join(format!("{name}.json"));
                let text = tokio::fs::read(&path).await.map_err(|e| unknown(format!("{}: {e}", path.display())))?;
                serde_json::from_slice::<Value>(&text).map_err(|e| unknown(format!("{}: {e}", path.display())))?
            }
        };
        NamespaceFacts::from_manifest(&manifest)
    }
}
