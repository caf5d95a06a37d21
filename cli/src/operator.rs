//! The control plane's operator API, on its owner-only Unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tower_service::Service;
use weft_proto::v1;
use weft_proto::v1::operator_client::OperatorClient;
use zeroize::Zeroizing;

use crate::rundir::{self, Which};

/// How long a call may take. About the root, replicas ask each other and their API server first.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long the socket may take.
const CONNECT: Duration = Duration::from_secs(5);

/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 << 20;

/// Which control plane is meant.
#[derive(Args, Debug)]
pub(crate) struct Meant {
    /// Operator socket of a control plane that `weft up` has not started (operator.sock in its --state)
    #[arg(long, value_name = "PATH", conflicts_with_all = ["mesh", "run_dir"])]
    socket: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) which: Which,
}

impl Meant {
    /// The operator socket that was named.
    pub(crate) fn named(&self) -> Option<&Path> {
        self.socket.as_deref()
    }

    /// Its operator socket.
    pub(crate) fn socket(&self) -> anyhow::Result<PathBuf> {
        match &self.socket {
            Some(socket) => Ok(socket.clone()),
            None => Ok(self.which.find()?.join(rundir::OPERATOR_SOCKET)),
        }
    }
}

/// Asks the control plane whose operator socket this is.
pub(crate) fn ask<T>(socket: &Path, ask: impl AsyncFnOnce(Operator) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime can be made")?;
    runtime.block_on(async { ask(Operator::connect(socket).await?).await })
}

/// A connection to the operator API.
pub(crate) struct Operator(OperatorClient<Channel>);

impl Operator {
    /// Connects to the socket at `path`.
    pub(crate) async fn connect(path: &Path) -> anyhow::Result<Self> {
        let failed = || format!("the control plane's operator socket {} cannot be reached", path.display());
        // The socket first, since its error says more than the transport's.
        UnixStream::connect(path).await.with_context(failed)?;
        // The name is for the protocol alone: the connector knows the way.
        let endpoint = Endpoint::from_static("http://operator.weft").timeout(TIMEOUT).connect_timeout(CONNECT);
        let channel = endpoint.connect_with_connector(Connector(path.to_owned())).await.with_context(failed)?;
        // An explanation tells of every policy, and there may be many.
        Ok(Self(OperatorClient::new(channel).max_decoding_message_size(MAX_ANSWER)))
    }

    /// Makes a join token for one pod.
    pub(crate) async fn create_token(
        &mut self,
        namespace: &str,
        pod: &str,
        service_account: &str,
        ttl: Duration,
    ) -> anyhow::Result<Zeroizing<String>> {
        let request = v1::CreateTokenRequest {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            service_account: service_account.to_owned(),
            ttl_seconds: u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX),
        };
        let answer = self.0.create_token(request).await.map_err(|status| said(&status))?;
        Ok(Zeroizing::new(answer.into_inner().token))
    }

    /// Whether a call would be let in, and why.
    pub(crate) async fn explain(&mut self, question: v1::ExplainRequest) -> anyhow::Result<v1::ExplainResponse> {
        let answer = self.0.explain(question).await.map_err(|status| said(&status))?;
        Ok(answer.into_inner())
    }

    /// Which roots there are, how far a rotation is, and who is missing.
    pub(crate) async fn trust_status(&mut self) -> anyhow::Result<v1::TrustStatusResponse> {
        let answer = self.0.trust_status(v1::TrustStatusRequest {}).await.map_err(|status| said(&status))?;
        Ok(answer.into_inner())
    }

    /// Begins to rotate the root, or gives up who is named.
    pub(crate) async fn trust_rotate(&mut self, give_up: Vec<String>) -> anyhow::Result<v1::TrustStatusResponse> {
        let answer = self.0.trust_rotate(v1::TrustRotateRequest { give_up }).await.map_err(|status| said(&status))?;
        Ok(answer.into_inner())
    }

    /// Removes the old anchor.
    pub(crate) async fn trust_finish(&mut self, give_up: Vec<String>) -> anyhow::Result<v1::TrustStatusResponse> {
        let answer = self.0.trust_finish(v1::TrustFinishRequest { give_up }).await.map_err(|status| said(&status))?;
        Ok(answer.into_inner())
    }

    /// Goes back to the old root.
    pub(crate) async fn trust_abort(&mut self, give_up: Vec<String>) -> anyhow::Result<v1::TrustStatusResponse> {
        let answer = self.0.trust_abort(v1::TrustAbortRequest { give_up }).await.map_err(|status| said(&status))?;
        Ok(answer.into_inner())
    }

    /// Who is denied.
    pub(crate) async fn trust_denials(&mut self) -> anyhow::Result<v1::TrustDenialsResponse> {
        let answer = self.0.trust_denials(v1::TrustDenialsRequest {}).await.map_err(|status| said(&status))?;
        Ok(answer.into_inner())
    }

    /// Denies identities or certificates.
    pub(crate) async fn trust_deny(&mut self, request: v1::TrustDenyRequest) -> anyhow::Result<v1::TrustDenialsResponse> {
        let answer = self.0.trust_deny(request).await.map_err(|status| said(&status))?;
        Ok(answer.into_inner())
    }

    /// Takes entries off the control plane's own deny list.
    pub(crate) async fn trust_permit(&mut self, subjects: Vec<String>) -> anyhow::Result<v1::TrustDenialsResponse> {
        let answer = self.0.trust_permit(v1::TrustPermitRequest { subjects }).await.map_err(|status| said(&status))?;
        Ok(answer.into_inner())
    }

    /// What the control plane has for one sidecar.
    pub(crate) async fn view(&mut self, request: v1::ViewRequest) -> anyhow::Result<v1::ViewResponse> {
        let answer = self.0.view(request).await.map_err(|status| said(&status))?;
        Ok(answer.into_inner())
    }

    /// What the control plane knows of the mesh.
    pub(crate) async fn status(&mut self) -> anyhow::Result<v1::StatusResponse> {
        let answer = self.0.status(v1::StatusRequest {}).await.map_err(|status| said(&status))?;
        Ok(answer.into_inner())
    }
}

/// The control plane's own words; the code beside them says nothing to a person.
fn said(status: &tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("the control plane says: {}", status.message())
}

struct Connector(PathBuf);

impl Service<Uri> for Connector {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<UnixStream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = self.0.clone();
        Box::pin(async move { Ok(TokioIo::new(UnixStream::connect(path).await?)) })
    }
}
