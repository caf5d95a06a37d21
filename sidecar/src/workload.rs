//! The SPIFFE Workload API for the pod's own application, on a Unix socket: a certificate with a key of its own, the anchors, and JWT-SVIDs.
//!
//! The sidecar's own key never leaves it. The application gets another one, with a certificate for the same identity that names no pod, so that
//! neither policy is told nor a renewal granted on its word.

mod api;
mod authority;
pub mod callers;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::UnixListener;
use tokio::sync::{Notify, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use weft_proto::spiffe::spiffe_workload_api_server::SpiffeWorkloadApiServer;
use weft_proto::v1;
use weft_tls::Svid;

use crate::config::Config;
use crate::identity::Current;
use crate::mesh::Mesh;

/// JWK sets by trust domain.
pub type KeySets = Arc<BTreeMap<String, tonic::codegen::Bytes>>;

/// What is handed to the application, written by the control thread.
pub struct Handing {
    /// The application's certificate; none before it has asked.
    pub svid: watch::Sender<Option<Svid>>,
    /// By which JWT-SVIDs are checked.
    pub keys: watch::Sender<KeySets>,
    asked: AtomicBool,
    ask: Notify,
}

impl Default for Handing {
    fn default() -> Self {
        Self { svid: watch::Sender::new(None), keys: watch::Sender::default(), asked: AtomicBool::new(false), ask: Notify::new() }
    }
}

impl Handing {
    /// The application asks: it is to have a certificate from now on.
    pub fn ask(&self) {
        if !self.asked.swap(true, Relaxed) {
            self.ask.notify_one();
        }
    }

    /// Whether the application has ever asked.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Relaxed)
    }

    /// Notes by which keys JWT-SVIDs are checked.
    pub fn hear_keys(&self, bundle: &v1::TrustBundle) {
        let known = bundle.domains.iter().filter(|d| !d.jwks.is_empty());
        let sets: BTreeMap<_, _> = known.map(|d| (d.trust_domain.clone(), d.jwks.clone())).collect();
        self.keys.send_if_modified(|held| {
            **held != sets && {
                *held = Arc::new(sets);
                true
            }
        });
    }

    /// Waits until it has asked.
    pub async fn asked(&self) {
        while !self.is_asked() {
            self.ask.notified().await;
        }
    }
}

/// Connections at once; more are closed.
const MAX_CONNECTIONS: usize = 64;
/// Calls of one connection at once.
const MAX_CALLS: u32 = 16;

/// Binds the socket, then serves until the process ends.
pub fn serve(config: &Config, mesh: &Arc<Mesh>, identity: &Current) -> anyhow::Result<()> {
    let Some(path) = &config.workload.workload_api else { return Ok(()) };
    let listener = bind(path)?;
    let (tx, connections) = mpsc::channel(8);
    tokio::spawn(async move {
        let slots = Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let Ok(slot) = slots.clone().try_acquire_owned() else {
                tracing::warn!("an application's connection to the Workload API was refused: {MAX_CONNECTIONS} are open");
                continue;
            };
            if tx.send(Ok::<_, std::io::Error>(callers::Conn::new(stream, slot))).await.is_err() {
                return;
            }
        }
    });
    let api = api::WorkloadApi::new(config.clone(), mesh.clone(), identity.clone());
    let served = Server::builder()
        .max_concurrent_streams(MAX_CALLS)
        .http2_keepalive_interval(Some(Duration::from_secs(60)))
        .http2_keepalive_timeout(Some(Duration::from_secs(20)))
        .add_service(SpiffeWorkloadApiServer::new(api).max_decoding_message_size(64 * 1024))
        .serve_with_incoming(ReceiverStream::new(connections));
    tokio::spawn(async move {
        if let Err(e) = served.await {
            tracing::error!(error = %e, "the Workload API ended");
        }
    });
    Ok(())
}

/// Everybody may connect: who is answered is decided by who the kernel says it is.
fn bind(path: &Path) -> anyhow::Result<UnixListener> {
    let _ = std::fs::remove_file(path);
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot make the Workload API's socket {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}
