//! The real control plane on loopback, in directories of its own, and its two kinds of callers.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, ServerName};
use tempfile::TempDir;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::Status;
use tonic::transport::{Channel, Endpoint, Uri};
use tower_service::Service;
use weft_core::SpiffeId;
use weft_core::failure::chain;
use weft_proto::v1;
use weft_proto::v1::certificates_client::CertificatesClient;
use weft_proto::v1::issue_request::Attestation;
use weft_proto::v1::operator_client::OperatorClient;
use weft_tls::{PendingKey, PinnedAnchor, ServerVerifier, Svid, TrustBundle};

use crate::{PATIENCE, Running, eventually, process, programs};

const CONNECT: Duration = Duration::from_secs(5);

/// A control plane that runs as long as this lives.
#[derive(Debug)]
pub struct ControlPlane {
    dir: TempDir,
    process: Running,
    address: SocketAddr,
    /// The size of its state's own file system, in KiB, where it has one.
    room: Option<u32>,
}

impl ControlPlane {
    /// Starts one over a directory of manifests that `prepare` may fill first.
    ///
    /// # Panics
    ///
    /// If it does not serve in time.
    #[track_caller]
    pub fn start(prepare: impl FnOnce(&Path)) -> Self {
        Self::start_in(None, prepare)
    }

    /// The same, with its state on a file system of its own of so many KiB, which ends with the process.
    #[track_caller]
    pub fn start_with_room(kib: u32, prepare: impl FnOnce(&Path)) -> Self {
        programs::require(&["mount", "unshare"]);
        Self::start_in(Some(kib), prepare)
    }

    #[track_caller]
    fn start_in(room: Option<u32>, prepare: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::Builder::new().prefix("weft-lab-").tempdir().expect("a temporary directory");
        let manifests = dir.path().join("manifests");
        fs::create_dir(&manifests).expect("a fresh directory takes another");
        prepare(&manifests);
        let (process, address) = run(dir.path(), room);
        Self { dir, process, address, room }
    }

    /// Ends it, and starts another one with the same directories.
    #[track_caller]
    pub fn restart(&mut self) {
        self.process.stop();
        (self.process, self.address) = run(self.dir.path(), self.room);
    }

    /// Its private directory.
    pub fn state(&self) -> PathBuf {
        let path = self.dir.path().join("state");
        match self.room {
            None => path,
            // The file system is mounted for that process alone.
            Some(_) => {
                let root = PathBuf::from(format!("/proc/{}/root", self.process.id()));
                root.join(path.strip_prefix("/").expect("temporary directories have absolute paths"))
            }
        }
    }

    /// The most memory that it ever had resident, in KiB.
    pub fn peak_memory(&self) -> u64 {
        process::memory(self.process.id(), "VmHWM")
    }

    /// Puts a text in a manifest's place, at once and whole.
    pub fn put(&self, file: &str, text: &str) {
        put(&self.dir.path().join("manifests"), file, text);
    }

    /// Takes a manifest away.
    pub fn remove(&self, file: &str) {
        fs::remove_file(self.dir.path().join("manifests").join(file)).expect("it was there");
    }

    /// The operator's API, on the socket that is the owner's alone.
    pub async fn operator(&self) -> OperatorClient<Channel> {
        let path = self.state().join("operator.sock");
        let connect = move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        };
        // The name is for the protocol alone: the connector knows the way.
        let endpoint = Endpoint::from_static("http://localhost").timeout(PATIENCE).connect_timeout(CONNECT);
        let channel = endpoint.connect_with_connector(Connector(connect)).await;
        OperatorClient::new(channel.expect("the operator socket is served"))
    }

    /// A join token for a pod, and the hash of the anchor in it.
    pub async fn token(&self, namespace: &str, pod: &str, service_account: &str, ttl_seconds: u32) -> (String, String) {
        let request = v1::CreateTokenRequest {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            service_account: service_account.to_owned(),
            ttl_seconds,
        };
        let answer = self.operator().await.create_token(request).await.expect("the operator may").into_inner();
        let anchor = answer.token.split('.').nth(3).expect("a token has four parts").to_owned();
        (answer.token, anchor)
    }

    /// A connection of somebody who has no certificate, and knows the server by the hash of its anchor.
    pub async fn stranger(&self, anchor: &str) -> Result<Channel, String> {
        let provider = weft_tls::provider();
        let verifier = Arc::new(PinnedAnchor::new(provider.clone(), anchor.to_owned()));
        self.connect(weft_tls::client_config(&provider, verifier, None, &[b"h2"])).await
    }

    /// A connection of a workload.
    pub async fn workload(&self, svid: &Svid, bundle: &Arc<TrustBundle>) -> Result<Channel, String> {
        let provider = weft_tls::provider();
        let domain = svid.info().id.trust_domain().clone();
        let verifier = Arc::new(ServerVerifier::control_plane(provider.clone(), bundle.clone(), domain));
        self.connect(weft_tls::client_config(&provider, verifier, Some(svid), &[b"h2"])).await
    }

    async fn connect(&self, config: rustls::ClientConfig) -> Result<Channel, String> {
        let connector = TlsConnector::from(Arc::new(config));
        let address = self.address;
        let name = ServerName::try_from("weft-control-plane.weft-system.svc").expect("a constant name");
        let connect = move |_: Uri| {
            let (connector, name) = (connector.clone(), name.clone());
            async move {
                let tcp = TcpStream::connect(address).await?;
                connector.connect(name, tcp).await.map(TokioIo::new)
            }
        };
        let endpoint = Endpoint::from_static("http://weft-control-plane").connect_timeout(CONNECT);
        endpoint.connect_with_connector(Connector(connect)).await.map_err(|error| chain(&error))
    }

    /// Joins as a pod: a certificate with its key, and the bundle.
    pub async fn join(&self, namespace: &str, pod: &str, service_account: &str) -> (Svid, Arc<TrustBundle>) {
        let (token, anchor) = self.token(namespace, pod, service_account, 0).await;
        let channel = self.stranger(&anchor).await.expect("the control plane is reached");
        let id: SpiffeId =
            format!("spiffe://cluster.local/ns/{namespace}/sa/{service_account}").parse().expect("an identity is made of names");
        let key = PendingKey::generate().expect("a key");
        let answer = issue(channel, &key, &id, Some(Attestation::JoinToken(token))).await.expect("a fresh token is good");
        let chain = answer.chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let bundle = answer.trust_bundle.expect("an answer has a bundle");
        let bundle = TrustBundle::try_from(&bundle).expect("a bundle is made of anchors");
        (key.with_chain(chain).expect("the chain is for the key"), Arc::new(bundle))
    }
}

/// Asks for a certificate.
pub async fn issue(
    channel: Channel,
    key: &PendingKey,
    id: &SpiffeId,
    attestation: Option<Attestation>,
) -> Result<v1::IssueResponse, Status> {
    let csr = key.request(id).expect("a request").into();
    let request = v1::IssueRequest { csr, attestation, application: false };
    CertificatesClient::new(channel).issue(request).await.map(tonic::Response::into_inner)
}

fn put(manifests: &Path, file: &str, text: &str) {
    let temporary = manifests.join(format!(".{file}.test"));
    fs::write(&temporary, text).expect("the directory is ours");
    fs::rename(temporary, manifests.join(file)).expect("the directory is ours");
}

#[track_caller]
fn run(dir: &Path, room: Option<u32>) -> (Running, SocketAddr) {
    let (program, state) = (programs::weft("weft-control-plane"), dir.join("state"));
    let mut command = match room {
        None => Command::new(program),
        Some(kib) => {
            fs::create_dir_all(&state).expect("the directory is ours");
            let mount = format!("mount -t tmpfs -o size={kib}k,mode=0700 tmpfs \"$1\" && shift && exec \"$@\"");
            // It stays one process, so that it is the control plane that is known by its number.
            let mut command = Command::new("unshare");
            command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &mount, "sh"]).arg(&state).arg(program);
            command
        }
    };
    programs::without_settings(&mut command);
    command.arg("--dir").arg(dir.join("manifests")).arg("--state").arg(&state);
    command.args(["--listen", "127.0.0.1:0", "--heartbeat", "1", "--log", "info"]).env("NO_COLOR", "1");
    let mut process = Running::start(command);
    let address = eventually("the control plane serves", || {
        let log = without_colour(&process.stderr());
        assert!(process.ended().is_none(), "the control plane ended:\n{log}");
        let line = log.lines().find(|line| line.contains(" ready "))?;
        line.split_whitespace().find_map(|word| word.strip_prefix("address="))?.parse().ok()
    });
    (process, address)
}

/// Takes terminal colours out.
fn without_colour(text: &str) -> String {
    let mut parts = text.split('\x1b');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |plain, part| plain + part.split_once('m').map_or("", |(_, rest)| rest))
}

/// A function as a tower service, for tonic's edge.
struct Connector<F>(F);

impl<F, R, T> Service<Uri> for Connector<F>
where
    F: FnMut(Uri) -> R,
    R: Future<Output = io::Result<T>>,
{
    type Response = T;
    type Error = io::Error;
    type Future = R;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> R {
        (self.0)(uri)
    }
}
