//! Listening, and taking no more connections than there is room for.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const BACKLOG: i32 = 1024;
/// How long to wait where a connection cannot be taken, as when there are no file descriptors left.
const PAUSE: Duration = Duration::from_millis(50);

/// Listens on every address of this host, of both IP versions where it has them.
pub fn listen(port: u16) -> io::Result<TcpListener> {
    let both = bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)));
    both.or_else(|_| bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))))
        .map_err(|e| io::Error::new(e.kind(), format!("cannot listen on port {port}: {e}: another process may have it")))
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Serves each connection in a task of its own, at most `most` at once, until `stop`; then waits for those that are
/// under way, which must end by themselves.
pub(crate) async fn accept<F>(listener: TcpListener, most: usize, stop: &CancellationToken, serve: impl Fn(TcpStream) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let slots = Arc::new(Semaphore::new(most));
    let connections = TaskTracker::new();
    loop {
        let taken = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            taken = take(&listener, &slots) => taken,
        };
        let Some((stream, slot)) = taken else { continue };
        let serving = serve(stream);
        connections.spawn(async move {
            serving.await;
            drop(slot);
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// The next connection, once there is room for it.
async fn take(listener: &TcpListener, slots: &Arc<Semaphore>) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, slot)),
        Err(_) => {
            tokio::time::sleep(PAUSE).await;
            None
        }
    }
}
