//! Connections for gRPC that the sidecar itself asks: of the control plane, and of an application how it is. All are of one type, so that the program
//! holds the code of one HTTP/2 client, and pays for it in memory once.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::transport::{Channel, Endpoint, Error, Uri};

/// What gRPC goes over.
pub trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Wire for S {}

/// A connection that is being opened.
pub type Opening = Pin<Box<dyn Future<Output = io::Result<Box<dyn Wire>>> + Send>>;

/// A channel over what `open` opens: now, and again whenever a call finds the last connection gone.
pub async fn channel(endpoint: Endpoint, open: impl Fn() -> Opening + Send + 'static) -> Result<Channel, Error> {
    endpoint.connect_with_connector(Connector(Box::new(open))).await
}

/// `channel`'s argument as a tower service, for tonic's edge.
struct Connector(Box<dyn Fn() -> Opening + Send>);

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Box<dyn Wire>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let opening = (self.0)();
        Box::pin(async move { opening.await.map(TokioIo::new) })
    }
}
