//! The real network.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket as RawSocket, TcpKeepalive, Type};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use weft_core::traffic::policy::Tcp;

/// A TCP connection. The cell is borrowed within one poll only.
#[derive(Debug)]
pub struct TcpSocket {
    stream: RefCell<TcpStream>,
    pub(super) peer: SocketAddr,
    /// It was ended from here, and what was read of it may lack something.
    cut: Cell<bool>,
}

impl TcpSocket {
    /// One that [`listen`] has accepted: it has its listener's options.
    pub(super) fn accepted(stream: TcpStream, peer: SocketAddr) -> Self {
        Self { stream: RefCell::new(stream), peer, cut: Cell::new(false) }
    }

    /// One that was dialled. A program of the pod's own cannot vanish without the kernel's knowing.
    pub(super) fn dialled(stream: TcpStream, peer: SocketAddr, is_own: bool) -> Self {
        prepare(&SockRef::from(&stream), !is_own);
        Self::accepted(stream, peer)
    }

    /// Sets what a policy asks for. What this kernel does not have is told and left out: the connection matters more.
    pub(super) fn apply(&self, options: &Tcp) {
        let stream = self.stream.borrow();
        let socket = SockRef::from(&*stream);
        let tell = |what: &str, set: io::Result<()>| {
            if let Err(e) = set {
                tracing::warn!("the kernel refuses the policy's {what}: {e}");
            }
        };
        if options.keepalive_idle.is_some() || options.keepalive_interval.is_some() || options.keepalive_count.is_some() {
            let mut keepalive = TcpKeepalive::new();
            if let Some(idle) = options.keepalive_idle {
                keepalive = keepalive.with_time(idle);
            }
            if let Some(interval) = options.keepalive_interval {
                keepalive = keepalive.with_interval(interval);
            }
            if let Some(count) = options.keepalive_count {
                keepalive = keepalive.with_retries(count);
            }
            tell("keep-alive", socket.set_tcp_keepalive(&keepalive));
        }
        if let Some(timeout) = options.user_timeout {
            tell("user timeout", socket.set_tcp_user_timeout(Some(timeout)));
        }
        if let Some(name) = &options.congestion {
            tell("congestion control", socket.set_tcp_congestion(name.as_bytes()));
        }
    }

    pub(super) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.cut.get() {
            return Poll::Ready(Ok(()));
        }
        self.stream.borrow().poll_read_ready(cx)
    }

    pub(super) fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.cut.get() {
            // The kernel would tell of a proper end.
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut *self.stream.borrow_mut()).poll_read(cx, buf)
    }

    pub(super) fn poll_write_vectored(&self, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_write_vectored(cx, bufs)
    }

    pub(super) fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream.borrow_mut()).poll_shutdown(cx)
    }

    pub(super) fn acknowledge_now(&self) {
        let _ = SockRef::from(&*self.stream.borrow()).set_tcp_quickack(true);
    }

    pub(super) fn bound_unsent(&self, octets: u32) {
        let _ = SockRef::from(&*self.stream.borrow()).set_tcp_notsent_lowat(octets);
    }

    pub(super) fn reset_on_drop(&self) {
        let _ = SockRef::from(&*self.stream.borrow()).set_linger(Some(Duration::ZERO));
    }

    pub(super) fn cut(&self) {
        self.reset_on_drop();
        self.cut.set(true);
        // It may have ended already.
        let _ = SockRef::from(&*self.stream.borrow()).shutdown(std::net::Shutdown::Both);
    }

    pub(super) fn is_cut(&self) -> bool {
        self.cut.get()
    }

    pub(super) fn original_destination(&self) -> Option<SocketAddr> {
        Self::original_of(&self.stream.borrow(), self.peer)
    }

    /// Where a connection was going before the redirect caught it; none if it was not redirected.
    pub fn original_of(stream: &TcpStream, peer: SocketAddr) -> Option<SocketAddr> {
        let socket = SockRef::from(stream);
        let original = match peer {
            SocketAddr::V4(_) => socket.original_dst_v4(),
            SocketAddr::V6(_) => socket.original_dst_v6(),
        };
        // Without a redirect the kernel has no entry, or gives the address that was dialled: the listener's own.
        let original = original.ok()?.as_socket()?;
        let local = stream.local_addr().ok()?;
        (original != local).then_some(original)
    }
}

/// No delay, and a bound on unacknowledged data.
fn prepare(socket: &SockRef<'_>, watches: bool) {
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_user_timeout(Some(USER_TIMEOUT));
    if watches {
        let _ = socket.set_tcp_keepalive(&KEEPALIVE);
    }
}

/// Data that stays unacknowledged this long, or unread by a peer whose window is shut, ends the connection. Above the default
/// of `--write-timeout`, which has a say first.
const USER_TIMEOUT: Duration = Duration::from_secs(90);
/// An idle peer that has vanished is noticed after a minute and a half.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(10)).with_retries(3);
const BACKLOG: i32 = 4096;

/// Opens connections of the sidecar's own, which the redirect lets pass.
#[derive(Clone, Copy, Debug)]
pub struct Dialer {
    /// Socket mark; 0 where the redirect exempts by uid.
    pub mark: u32,
}

impl Dialer {
    /// Connects.
    pub async fn connect(self, to: SocketAddr) -> io::Result<TcpStream> {
        self.socket(to)?.connect(to).await
    }

    /// Connects, with segments of at most so many octets both ways (`TCP_MAXSEG`).
    pub async fn connect_in_segments(self, to: SocketAddr, octets: u32) -> io::Result<TcpStream> {
        let socket = self.socket(to)?;
        SockRef::from(&socket).set_tcp_mss(octets)?;
        socket.connect(to).await
    }

    fn socket(self, to: SocketAddr) -> io::Result<tokio::net::TcpSocket> {
        let raw = RawSocket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        if self.mark != 0 {
            raw.set_mark(self.mark).map_err(|e| {
                io::Error::new(
                    e.kind(),
                    format!("cannot mark a socket: {e}: the sidecar needs NET_ADMIN where the redirect exempts by mark"),
                )
            })?;
        }
        Ok(tokio::net::TcpSocket::from_std_stream(raw.into()))
    }
}

/// A listener that shares its port with the other workers'. What it accepts inherits its options: that is a system call less for each of them and each connection.
pub fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let raw = RawSocket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    raw.set_reuse_address(true)?;
    raw.set_reuse_port(true)?;
    if addr.is_ipv6() {
        raw.set_only_v6(true)?;
    }
    raw.set_nonblocking(true)?;
    prepare(&SockRef::from(&raw), true);
    raw.bind(&addr.into())?;
    raw.listen(BACKLOG)?;
    TcpListener::from_std(raw.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_accepted_has_its_listeners_options() {
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        let to = listener.local_addr().expect("it is bound");
        for is_own in [false, true] {
            let dialled = Dialer { mark: 0 }.connect(to).await.expect("it listens");
            let dialled = TcpSocket::dialled(dialled, to, is_own);
            let (stream, peer) = listener.accept().await.expect("it was dialled");
            let accepted = TcpSocket::accepted(stream, peer);
            for (socket, watches) in [(dialled, !is_own), (accepted, true)] {
                let stream = socket.stream.borrow();
                let raw = SockRef::from(&*stream);
                assert!(raw.tcp_nodelay().expect("an option") && raw.nonblocking().expect("a flag"));
                assert_eq!(raw.tcp_user_timeout().expect("an option"), Some(USER_TIMEOUT));
                assert_eq!(raw.keepalive().expect("an option"), watches);
                if watches {
                    assert_eq!(raw.tcp_keepalive_time().expect("an option"), Duration::from_secs(60));
                    assert_eq!(raw.tcp_keepalive_retries().expect("an option"), 3);
                }
            }
        }
    }
}
