//! Listening, and taking no more connections than there is room for: accepted first, then counted by their source
//! ([`weft_core::admission`]). Who is not let in is closed at once.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weft_core::admission::{self, Admitted, Counts, Door, Limits};
use weft_core::metrics::{Family, Metric};

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

/// One listener's door. A clone is the same.
#[derive(Debug, Clone)]
pub struct Gate {
    /// The port as metrics and log lines name it.
    name: &'static str,
    door: Arc<Door<CancellationToken>>,
    start: Instant,
}

/// A connection's place. It waits for its peer until it [works](Self::works).
#[derive(Debug)]
pub struct Guest {
    place: weft_core::admission::Guest<CancellationToken>,
    start: Instant,
}

/// A guest for whom something is done: it gives way to nobody until this is dropped.
#[derive(Debug)]
pub struct Working<'a>(&'a Guest);

impl Guest {
    /// From now on something is done for it, until what is returned is dropped.
    pub fn works(&self) -> Working<'_> {
        self.place.is_served();
        Working(self)
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.place.waits(nanoseconds_since(self.0.start));
    }
}

fn nanoseconds_since(start: Instant) -> u64 {
    start.elapsed().as_nanos() as u64
}

impl Gate {
    /// A door with nobody behind it.
    pub fn new(name: &'static str, limits: Limits) -> Self {
        Self { name, door: Door::new(limits), start: Instant::now() }
    }

    fn counts(&self) -> Counts {
        self.door.counts()
    }

    /// The next connection, if it is let in, and what is cancelled when it has to give way.
    async fn take(&self, listener: &TcpListener) -> Option<(TcpStream, Guest, CancellationToken)> {
        let Ok((stream, from)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            return None;
        };
        let gives_way = CancellationToken::new();
        match self.door.admit(from.ip(), nanoseconds_since(self.start), gives_way.clone()) {
            Ok(Admitted { guest: place, gives_way: other }) => {
                if let Some(other) = other {
                    other.cancel();
                }
                Some((stream, Guest { place, start: self.start }, gives_way))
            }
            Err(refused) => {
                if let Some(times) = refused.tell {
                    let (port, why) = (self.name, refused.why.as_str());
                    tracing::warn!(port, %from, why, times, "connections refused: there are too many");
                }
                // A reset leaves nothing behind in the kernel.
                let _ = stream.set_zero_linger();
                None
            }
        }
    }
}

/// Serves each connection that `gate` lets in, in a task of its own, until `stop` or until it has to give way; then waits for
/// those that are under way, which must end by themselves.
pub async fn accept<F>(listener: TcpListener, gate: &Gate, stop: &CancellationToken, serve: impl Fn(TcpStream, Arc<Guest>) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let connections = TaskTracker::new();
    loop {
        let taken = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            taken = gate.take(&listener) => taken,
        };
        let Some((stream, guest, gives_way)) = taken else { continue };
        let serving = serve(stream, Arc::new(guest));
        connections.spawn(async move {
            tokio::select! {
                biased;
                () = gives_way.cancelled() => {}
                () = serving => {}
            }
        });
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// What is told of gates; see [`admission::families`].
pub fn families(open: &'static Metric, closed: &'static Metric, gates: &[Gate]) -> [Family; 2] {
    admission::families(open, closed, gates.iter().map(|gate| (gate.name, gate.counts())))
}
