//! The sockets of a probe: what stands in for the sidecar, and what dials.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::error::VerifyError;

/// Listens where the sidecar will.
pub(super) struct Trap {
    socket: Socket,
}

impl Trap {
    pub(super) fn set(at: SocketAddr) -> Result<Self, VerifyError> {
        match listen(at) {
            Ok(socket) => Ok(Self { socket }),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(VerifyError::PortTaken { at }),
            Err(source) => Err(VerifyError::Socket { doing: "listen", source }),
        }
    }

    /// The original destination of a connection that the rules brought here, if one arrives in time.
    pub(super) fn caught(&self, within: Duration) -> Result<Option<SocketAddr>, VerifyError> {
        let failed = |doing| move |source| VerifyError::Socket { doing, source };
        if !readable(&self.socket, within).map_err(failed("wait"))? {
            return Ok(None);
        }
        let (socket, from) = match self.socket.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(failed("accept")(error)),
        };
        // Closed by a reset, so that the sidecar does not find its port in TIME_WAIT.
        socket.set_linger(Some(Duration::ZERO)).map_err(failed("set linger"))?;
        let original = if from.as_socket_ipv6().is_some() { socket.original_dst_v6() } else { socket.original_dst_v4() };
        Ok(original.map_err(failed("read the original destination"))?.as_socket())
    }

    /// An error unless the connection that was `dialled` to `to` arrives here and still knows where it was going.
    pub(super) fn expect_caught(
        &self,
        direction: &'static str,
        to: SocketAddr,
        dialled: Dialled,
        within: Duration,
    ) -> Result<(), VerifyError> {
        match self.caught(within)? {
            // Not compared whole: an IPv6 address from the kernel may carry a scope.
            Some(read) if (read.ip(), read.port()) == (to.ip(), to.port()) => Ok(()),
            Some(read) => Err(VerifyError::WrongDestination { to, read }),
            None => {
                let saw = dialled.err().unwrap_or_else(|| "it arrived there".to_owned());
                Err(VerifyError::NotCaught { direction, to, saw })
            }
        }
    }
}

/// A non-blocking listener; one for IPv6 leaves the port's IPv4 side alone.
pub(super) fn listen(at: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if at.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&SockAddr::from(at))?;
    socket.listen(16)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// What became of a connection: made, or not and why.
pub(super) type Dialled = Result<(), String>;

/// Connects, and hangs up at once. An error only where there was no trying.
pub(super) fn dial(to: SocketAddr, mark: Option<u32>, within: Duration) -> Result<Dialled, VerifyError> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)
        .map_err(|source| VerifyError::Socket { doing: "open a socket", source })?;
    if let Some(mark) = mark {
        socket.set_mark(mark).map_err(|source| VerifyError::Socket { doing: "mark a socket", source })?;
    }
    Ok(socket.connect_timeout(&SockAddr::from(to), within).map_err(|error| error.to_string()))
}

/// Whether packets to `to` have somewhere to go. Connecting a UDP socket asks the routing table alone; that
/// of TCP could not tell its answer from one that a router sends.
pub(super) fn route(to: SocketAddr) -> io::Result<()> {
    Socket::new(Domain::for_address(to), Type::DGRAM, None)?.connect(&SockAddr::from(to))
}

/// An error unless a datagram that is sent to `to` arrives `at` this address in time.
pub(super) fn expect_datagram(at: SocketAddr, to: SocketAddr, within: Duration) -> Result<(), VerifyError> {
    let failed = |doing| move |source| VerifyError::Socket { doing, source };
    let trap = std::net::UdpSocket::bind(at).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => VerifyError::PortTaken { at },
        _ => VerifyError::Socket { doing: "bind", source },
    })?;
    let any = match to {
        SocketAddr::V4(_) => SocketAddr::from(([0, 0, 0, 0], 0)),
        SocketAddr::V6(_) => SocketAddr::from(([0; 16], 0)),
    };
    let from = std::net::UdpSocket::bind(any).map_err(failed("bind"))?;
    // What is no message of DNS, wherever it may end.
    from.send_to(b"weft", to).map_err(failed("send"))?;
    if readable(&trap, within).map_err(failed("wait"))? {
        return Ok(());
    }
    Err(VerifyError::NotCaught { direction: "over UDP to", to, saw: "no datagram came".to_owned() })
}

/// Whether there is something to read, or to accept, before the time is over.
pub(super) fn readable(fd: &impl AsFd, within: Duration) -> io::Result<bool> {
    let timeout = PollTimeout::try_from(within).unwrap_or(PollTimeout::MAX);
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut fds, timeout)? > 0)
}
