//! Connections come in: accepted first, then counted by their source ([`weft_core::admission`]). Who is not let in is closed at once.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use weft_core::admission::{self, Admitted, Counts, Door, Limits};
use weft_core::metrics::{Family, table};

/// What a connection holds; its token is cancelled when it has to give way.
pub struct Guest(weft_core::admission::Guest<CancellationToken>);

impl Guest {
    /// Its peer has proved who it is. It may stay for as long as it likes, and so gives way where there is no room left, to a source that
    /// has notably less: two pods would else keep all others away, from half of the places each. A sidecar comes back by itself.
    pub fn is_served(&self) {
        self.0.shares();
    }
}

/// How long to wait where a connection cannot be taken, as when there are no file descriptors left.
const PAUSE: Duration = Duration::from_millis(50);
/// Descriptors that are kept for everything but connections: the source, the operator's socket, files.
const RESERVED: usize = 128;

/// One listener's door.
#[derive(Clone)]
pub struct Gate {
    /// The port as metrics and log lines name it.
    name: &'static str,
    door: Arc<Door<CancellationToken>>,
    start: Instant,
}

/// A connection that was let in.
pub struct Incoming {
    pub socket: TcpStream,
    pub from: IpAddr,
    pub guest: Guest,
    /// Cancelled when it has to give way.
    pub gives_way: CancellationToken,
}

impl Gate {
    pub fn new(name: &'static str, limits: Limits) -> Self {
        Self { name, door: Door::new(limits), start: Instant::now() }
    }

    /// The next connection that is let in. Nothing is lost when this is dropped while it waits.
    pub async fn next(&self, listener: &TcpListener) -> Incoming {
        loop {
            match listener.accept().await {
                Ok((socket, from)) => {
                    if let Some(incoming) = self.admit(socket, from) {
                        return incoming;
                    }
                }
                Err(e) => {
                    // Out of descriptors, most likely: others may end meanwhile.
                    tracing::warn!(port = self.name, error = %e, "accept failed");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    fn admit(&self, socket: TcpStream, from: SocketAddr) -> Option<Incoming> {
        let gives_way = CancellationToken::new();
        let now = self.start.elapsed().as_nanos() as u64;
        match self.door.admit(from.ip(), now, gives_way.clone()) {
            Ok(Admitted { guest, gives_way: other }) => {
                if let Some(other) = other {
                    other.cancel();
                }
                Some(Incoming { socket, from: from.ip().to_canonical(), guest: Guest(guest), gives_way })
            }
            Err(refused) => {
                if let Some(times) = refused.tell {
                    let (port, why) = (self.name, refused.why.as_str());
                    tracing::warn!(port, %from, why, times, "connections refused: there are too many");
                }
                // A reset leaves nothing behind in the kernel.
                let _ = socket.set_zero_linger();
                None
            }
        }
    }

    pub fn counts(&self) -> Counts {
        self.door.counts()
    }
}

/// What is told of gates.
pub fn families(gates: &[Gate]) -> [Family; 2] {
    let counts = gates.iter().map(|gate| (gate.name, gate.counts()));
    admission::families(&table::CP_CONNECTIONS, &table::CP_CONNECTIONS_REFUSED, counts)
}

/// How many connections the gRPC port may have, within what the machine grants.
///
/// One source has half of them: in odd setups all sidecars come through the address of one node. Those that have proved nothing
/// yet, in their handshake or after it, are fewer, and one source has a quarter of these.
pub fn workload_limits() -> Limits {
    limits_within(open_files())
}

fn limits_within(descriptors: usize) -> Limits {
    let most = descriptors.saturating_sub(RESERVED).clamp(RESERVED, 32 * 1024);
    let waiting = (most / 4).min(1024);
    Limits { most, most_of_one: most / 2, waiting, waiting_of_one: waiting / 4 }
}

/// How many files may be open at once. The kernel tells a process so under this name.
fn open_files() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    soft_limit(&limits).unwrap_or(1024)
}

/// The soft limit in a table as proc(5) has it: `Max open files  SOFT  HARD  files`.
fn soft_limit(limits: &str) -> Option<usize> {
    let rest = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match rest.split_whitespace().next()? {
        "unlimited" => Some(usize::MAX),
        number => number.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use weft_core::metrics::{Format, Labels, expose};

    use super::*;

    #[test]
    fn the_kernels_limit_is_read_and_kept_to() {
        let table =
            |soft: &str| format!("Limit   Soft Limit  Hard Limit  Units\nMax open files            {soft}   524288    files\n");
        assert_eq!(soft_limit(&table("1024")), Some(1024));
        assert_eq!(soft_limit(&table("unlimited")), Some(usize::MAX));
        assert_eq!((soft_limit(&table("many")), soft_limit("")), (None, None));
        assert!(open_files() > 0);
        assert_eq!(limits_within(1024), Limits { most: 896, most_of_one: 448, waiting: 224, waiting_of_one: 56 });
        assert_eq!(limits_within(usize::MAX).waiting, 1024);
        assert_eq!(limits_within(0).most, RESERVED);
    }

    #[tokio::test]
    async fn two_pods_that_stay_do_not_keep_a_third_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let addr = listener.local_addr().expect("it listens");
        let gate = Gate::new("test", Limits { most: 4, most_of_one: 2, waiting: 2, waiting_of_one: 1 });
        let mut inside = Vec::new();
        for last in [1, 1, 2, 2, 3] {
            let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
            socket.bind(SocketAddr::from(([127, 0, 0, last], 0))).expect("all of 127/8 is loopback");
            let client = socket.connect(addr).await.expect("it listens");
            let incoming = gate.next(&listener).await;
            incoming.guest.is_served();
            inside.push((client, incoming));
        }
        let gone: Vec<bool> = inside.iter().map(|(_, incoming)| incoming.gives_way.is_cancelled()).collect();
        assert_eq!(gone, [true, false, false, false, false]);
        assert_eq!(gate.counts().open, 4);
    }

    #[tokio::test]
    async fn who_is_not_let_in_is_closed_at_once_and_counted() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has a free port");
        let addr = listener.local_addr().expect("it listens");
        let gate = Gate::new("test", Limits::quarter(8));
        let mut clients = Vec::new();
        let mut held = Vec::new();
        for _ in 0..2 {
            clients.push(TcpStream::connect(addr).await.expect("it listens"));
            held.push(gate.next(&listener).await);
        }
        let mut third = TcpStream::connect(addr).await.expect("it listens");
        let mut byte = [0];
        tokio::select! {
            _ = gate.next(&listener) => panic!("a source has a quarter"),
            end = third.read(&mut byte) => assert!(!matches!(end, Ok(1..)), "{end:?}"),
        }
        held.pop();
        let _fourth = TcpStream::connect(addr).await.expect("it listens");
        assert!(gate.next(&listener).await.from.is_loopback());
        let text = String::from_utf8(expose(Format::Text, &families(&[gate]), &Labels::new())).expect("text");
        assert!(text.contains("weft_control_plane_connections{weft_port_name=\"test\"} 1\n"), "{text}");
        let refused = "weft_control_plane_connections_refused_total{weft_port_name=\"test\",weft_reason=\"source\"} 1\n";
        assert!(text.contains(refused), "{text}");
    }
}
