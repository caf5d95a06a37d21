//! Who may use the Workload API: told by the kernel (`SO_PEERCRED`), never by the caller.

use std::io;
use std::pin::Pin;
use std::str::FromStr;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::net::unix::UCred;
use tokio::sync::OwnedSemaphorePermit;
use tonic::transport::server::Connected;

use super::authority::Authority;

/// Whose calls are answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Callers {
    /// Processes in the sidecar's own network namespace that it can see.
    Network,
    /// Processes of these users.
    Users(Vec<u32>),
    /// Whoever can reach the socket, since it is in a volume that the pod's containers alone have. Where containers do not share their processes, the
    /// kernel tells the user, and no process that could be looked at.
    Volume,
}

impl FromStr for Callers {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "network" => Ok(Self::Network),
            "volume" => Ok(Self::Volume),
            _ => text
                .split(',')
                .map(str::parse)
                .collect::<Result<_, _>>()
                .map(Self::Users)
                .map_err(|_| format!("{text:?} says not who may call: write network, volume, or user ids such as 1000,1001")),
        }
    }
}

impl Callers {
    /// Whether a caller is answered, or why not.
    pub fn admit(&self, caller: Option<&UCred>) -> Result<(), String> {
        let Some(caller) = caller else { return Err("the kernel does not say who calls".into()) };
        match self {
            Self::Volume => Ok(()),
            Self::Users(users) if users.contains(&caller.uid()) => Ok(()),
            Self::Users(_) => Err(format!("user {} is not among those who are answered", caller.uid())),
            Self::Network => {
                let pid = caller.pid().filter(|pid| *pid > 0).ok_or("the caller's process cannot be seen from here")?;
                let theirs =
                    network(&pid.to_string()).map_err(|e| format!("the network of process {pid} cannot be looked at: {e}"))?;
                let ours = network("self").map_err(|e| format!("the own network cannot be looked at: {e}"))?;
                if theirs == ours { Ok(()) } else { Err(format!("process {pid} is in another network namespace")) }
            }
        }
    }
}

/// The network namespace of a process.
fn network(pid: &str) -> io::Result<std::path::PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/net"))
}

/// A connection of a caller; it holds its place among all of them.
pub struct Conn {
    stream: UnixStream,
    authority: Authority,
    _slot: OwnedSemaphorePermit,
}

impl Conn {
    pub fn new(stream: UnixStream, slot: OwnedSemaphorePermit) -> Self {
        Self { stream, authority: Authority::default(), _slot: slot }
    }
}

/// Who calls, as it was when the connection was made.
#[derive(Clone, Debug)]
pub struct Caller(pub Option<UCred>);

impl Connected for Conn {
    type ConnectInfo = Caller;
    fn connect_info(&self) -> Caller {
        Caller(self.stream.peer_cred().ok())
    }
}

impl AsyncRead for Conn {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        std::task::ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.authority.mend(&mut buf.filled_mut()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Conn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_call_is_written_in_one_word_or_as_users() {
        assert_eq!("network".parse(), Ok(Callers::Network));
        assert_eq!("volume".parse(), Ok(Callers::Volume));
        assert_eq!("0,1000".parse(), Ok(Callers::Users(vec![0, 1000])));
        for bad in ["", "all", "1000,", "-1"] {
            assert!(bad.parse::<Callers>().is_err(), "{bad:?} was read");
        }
    }

    #[tokio::test]
    async fn a_caller_is_who_the_kernel_says() {
        let (ours, _theirs) = UnixStream::pair().expect("a pair");
        let me = ours.peer_cred().expect("the kernel knows");
        assert_eq!(Callers::Network.admit(Some(&me)), Ok(()));
        assert_eq!(Callers::Volume.admit(Some(&me)), Ok(()));
        assert_eq!(Callers::Users(vec![me.uid()]).admit(Some(&me)), Ok(()));
        assert!(Callers::Users(vec![me.uid().wrapping_add(1)]).admit(Some(&me)).is_err());
        for callers in [Callers::Network, Callers::Volume, Callers::Users(vec![0])] {
            assert!(callers.admit(None).is_err(), "{callers:?} let nobody in");
        }
    }
}
