//! The control plane's operator API, on its owner-only Unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, Join, ReadBuf};
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tonic::Code;
use tonic::transport::{Channel, Endpoint, Uri};
use tower_service::Service;
use weft_core::wellknown::CONTROL_PLANE_SERVICE_ACCOUNT;
use weft_proto::v1;
use weft_proto::v1::operator_client::OperatorClient;
use zeroize::Zeroizing;

use crate::fleet::kubectl;
use crate::install::object::LABEL_NAME;
use crate::install::sidecars;
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
    ask_by(Way::Socket(socket.to_owned()), ask)
}

/// Asks the control plane that a way leads to.
pub(crate) fn ask_by<T>(way: Way, ask: impl AsyncFnOnce(Operator) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime can be made")?;
    runtime.block_on(async { ask(Operator::by(way).await?).await })
}

/// The way to an operator socket.
#[derive(Debug, Clone)]
pub(crate) enum Way {
    Socket(PathBuf),
    /// By the standard streams of a command: `kubectl`, which runs `weft-control-plane relay` beside the socket.
    Exec(Vec<String>),
}

impl Way {
    /// To a control plane of a cluster, by a context of the kubeconfig or its current one.
    pub(crate) fn exec(context: Option<&str>) -> anyhow::Result<Self> {
        Ok(Self::every(context)?.swap_remove(0))
    }

    /// To each of a cluster's replicas of the control plane that is ready: at least one.
    pub(crate) fn every(context: Option<&str>) -> anyhow::Result<Vec<Self>> {
        let label = format!("{LABEL_NAME}={CONTROL_PLANE_SERVICE_ACCOUNT}");
        let text = kubectl(context, &["get", "pods", "-A", "-l", &label, "-o", "json"])?;
        let relays = relays(&serde_json::from_str(&text).context("kubectl prints what is not JSON")?)?;
        let context = context.map(|context| format!("--context={context}"));
        let by = |words| Self::Exec(["kubectl".to_owned()].into_iter().chain(context.clone()).chain(words).collect());
        Ok(relays.into_iter().map(by).collect())
    }
}

/// What `kubectl` is told to reach the operator socket of each of a list's pods that is ready.
fn relays(list: &Value) -> anyhow::Result<Vec<Vec<String>>> {
    let pods = list["items"].as_array().context("kubectl prints no list")?;
    let ready = pods.iter().filter(|pod| sidecars::is_ready(pod)).map(relay).collect::<anyhow::Result<Vec<_>>>()?;
    if ready.is_empty() {
        bail!("the cluster has no control plane of weft that is ready: weft check says more");
    }
    Ok(ready)
}

fn relay(pod: &Value) -> anyhow::Result<Vec<String>> {
    let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let flags = pod["spec"]["containers"][0]["args"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let state = flags.into_iter().find(|flag| flag.starts_with("--state=")).context("the control plane's pod says no --state")?;
    let words =
        ["exec", "-i", "-n", &text("/metadata/namespace"), &text("/metadata/name"), "-c", &text("/spec/containers/0/name")];
    let command = ["--", "weft-control-plane", "relay", state];
    Ok(words.into_iter().chain(command).map(ToOwned::to_owned).collect())
}

/// A connection to the operator API; a copy asks on the same one.
#[derive(Clone)]
pub(crate) struct Operator(OperatorClient<Channel>);

impl Operator {
    /// Connects to the socket at `path`.
    pub(crate) async fn connect(path: &Path) -> anyhow::Result<Self> {
        Self::by(Way::Socket(path.to_owned())).await
    }

    /// Connects by a way.
    pub(crate) async fn by(way: Way) -> anyhow::Result<Self> {
        let failed = || match &way {
            Way::Socket(path) => format!("the control plane's operator socket {} cannot be reached", path.display()),
            Way::Exec(words) => format!("the control plane's operator socket cannot be reached by `{}`", words.join(" ")),
        };
        // The socket first, since its error says more than the transport's.
        if let Way::Socket(path) = &way {
            UnixStream::connect(path).await.with_context(failed)?;
        }
        // The name is for the protocol alone: the connector knows the way.
        let endpoint = Endpoint::from_static("http://operator.weft").timeout(TIMEOUT).connect_timeout(CONNECT);
        let channel = endpoint.connect_with_connector(Connector(way.clone())).await.with_context(failed)?;
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

    /// A file of the dashboard, or its data.
    pub(crate) async fn dashboard(&mut self, path: &str) -> anyhow::Result<v1::DashboardResponse> {
        let request = v1::DashboardRequest { path: path.to_owned() };
        match self.0.dashboard(request).await {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) if status.code() == Code::Unimplemented => {
                bail!("this control plane is of a version without a dashboard: upgrade it")
            }
            Err(status) => Err(said(&status)),
        }
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

struct Connector(Way);

impl Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Stream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let way = self.0.clone();
        Box::pin(async move {
            let stream: Box<dyn Stream> = match way {
                Way::Socket(path) => Box::new(UnixStream::connect(path).await?),
                Way::Exec(words) => Box::new(Exec::start(&words)?),
            };
            Ok(TokioIo::new(stream))
        })
    }
}

/// What a connection is made over.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A command whose standard streams are a connection; it ends with this. What it complains of is seen by who runs `weft`.
struct Exec {
    streams: Join<ChildStdout, ChildStdin>,
    _child: Child,
}

impl Exec {
    fn start(words: &[String]) -> io::Result<Self> {
        let (program, words) = words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(program);
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let (Some(stdout), Some(stdin)) = (child.stdout.take(), child.stdin.take()) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        Ok(Self { streams: tokio::io::join(stdout, stdin), _child: child })
    }
}

impl AsyncRead for Exec {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.streams).poll_read(cx, buf)
    }
}

impl AsyncWrite for Exec {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.streams).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.streams).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.streams).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_control_plane_that_is_ready_is_reached_where_its_socket_is() {
        let pod = |name: &str, ready: &str, args: Value| {
            json!({"metadata": {"namespace": "weft-system", "name": name}, "status": {"conditions": [{"type": "Ready", "status": ready}]},
                "spec": {"containers": [{"name": "weft-control-plane", "args": args}]}})
        };
        let flags = json!(["--kubernetes", "--state=/run/weft/own"]);
        let words = relays(&json!({"items": [pod("a", "False", flags.clone()), pod("b", "True", flags)]})).expect("one is ready");
        assert_eq!(words.len(), 1);
        assert_eq!(
            words[0].join(" "),
            "exec -i -n weft-system b -c weft-control-plane -- weft-control-plane relay --state=/run/weft/own"
        );
        for none in [json!({}), json!({"items": []}), json!({"items": [pod("a", "True", json!([]))]})] {
            assert!(relays(&none).is_err(), "{none}");
        }
    }
}
