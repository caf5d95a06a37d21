//! Sockets, as the rest of the sidecar sees them: readiness, reading, writing, shutdown, reset, original destination.
//!
//! An enum rather than a trait: production has TCP, simulation a network in memory, and nothing above names either.

mod memory;
mod network;
mod tcp;

use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};

use tokio::io::ReadBuf;
use tokio::net::TcpListener;
use weft_core::traffic::policy::Tcp;

pub use memory::{MemorySocket, Shape, pair};
pub use network::{Host, MemoryListener, Network, Redirect};
pub use tcp::{Dialer, TcpSocket, listen};

use crate::link::Pipe;

/// Opens connections of the sidecar's own.
#[derive(Clone, Debug)]
pub enum Dial {
    Tcp(Dialer),
    Memory(Host),
}

impl Dial {
    /// Connects, with the options of a service's policy where it has any; a network in memory has none. `is_own` is an address of the pod's own.
    pub async fn connect(&self, to: SocketAddr, is_own: bool, options: Option<&Tcp>) -> io::Result<Socket> {
        Ok(match self {
            Self::Tcp(dialer) => {
                let socket = TcpSocket::dialled(dialer.connect(to).await?, to, is_own);
                if let Some(options) = options {
                    socket.apply(options);
                }
                Socket::Tcp(socket)
            }
            Self::Memory(host) => Socket::Memory(host.connect(to).await?),
        })
    }
}

/// Where connections come in.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Memory(MemoryListener),
}

impl Listener {
    /// The next connection. Cancel-safe.
    pub async fn accept(&mut self) -> io::Result<Socket> {
        Ok(match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                Socket::Tcp(TcpSocket::accepted(stream, peer))
            }
            Self::Memory(listener) => Socket::Memory(listener.accept().await),
        })
    }
}

/// One connection. Methods take `&self`: one future may read while another writes.
#[derive(Debug)]
pub enum Socket {
    Tcp(TcpSocket),
    Memory(MemorySocket),
    /// One stream of a link.
    Link(Pipe),
}

impl Socket {
    /// Ready as soon as a read would give bytes, the end, or an error. May be ready in vain.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(s) => s.poll_readable(cx),
            Self::Memory(s) => s.poll_readable(cx),
            Self::Link(p) => p.poll_readable(cx),
        }
    }

    /// Reads into the buffer; nothing read means the end.
    pub fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(s) => s.poll_read(cx, buf),
            Self::Memory(s) => s.poll_read(cx, buf),
            Self::Link(p) => p.poll_read(cx, buf),
        }
    }

    /// Writes some of the slices.
    pub fn poll_write_vectored(&self, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(s) => s.poll_write_vectored(cx, bufs),
            Self::Memory(s) => s.poll_write_vectored(cx, bufs),
            Self::Link(p) => p.poll_write_vectored(cx, bufs),
        }
    }

    /// Ends the writing half.
    pub fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(s) => s.poll_shutdown(cx),
            Self::Memory(s) => {
                s.shutdown();
                Poll::Ready(Ok(()))
            }
            Self::Link(p) => Poll::Ready(p.shutdown()),
        }
    }

    /// Has what was received acknowledged at once.
    pub fn acknowledge_now(&self) {
        if let Self::Tcp(s) = self {
            s.acknowledge_now();
        }
    }

    /// Bounds what waits in the kernel and was not sent yet: who has little to say waits behind that.
    pub fn bound_unsent(&self, octets: u32) {
        if let Self::Tcp(s) = self {
            s.bound_unsent(octets);
        }
    }

    /// Makes the peer see a reset rather than an end when this socket is dropped.
    pub fn reset_on_drop(&self) {
        match self {
            Self::Tcp(s) => s.reset_on_drop(),
            Self::Memory(s) => s.reset_on_drop(),
            Self::Link(p) => p.reset_on_drop(),
        }
    }

    /// Ends it both ways at once, while others use it: they see the end of it, and the peer a reset.
    pub fn cut(&self) {
        match self {
            Self::Tcp(s) => s.cut(),
            Self::Memory(s) => s.cut(),
            Self::Link(p) => p.cut(),
        }
    }

    /// Whether it was ended so from here.
    pub fn is_cut(&self) -> bool {
        match self {
            Self::Tcp(s) => s.is_cut(),
            Self::Memory(s) => s.is_cut(),
            Self::Link(p) => p.is_cut(),
        }
    }

    /// The address at the other end.
    pub fn peer(&self) -> SocketAddr {
        match self {
            Self::Tcp(s) => s.peer,
            Self::Memory(s) => s.peer(),
            Self::Link(p) => p.peer(),
        }
    }

    /// Where the connection was going before the redirect caught it; none if it was not redirected.
    pub fn original_destination(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(s) => s.original_destination(),
            Self::Memory(s) => s.original_destination(),
            // That of the link: a stream has none of its own.
            Self::Link(_) => None,
        }
    }
}
