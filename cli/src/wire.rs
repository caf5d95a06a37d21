//! Messages between the processes of a mesh: a line of JSON each, on a Unix socket that is the child's standard input.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as StdStream;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

/// The socket that a process was started with as its standard input.
pub(crate) fn from_stdin() -> io::Result<StdStream> {
    Ok(StdStream::from(io::stdin().as_fd().try_clone_to_owned()?))
}

/// A message as it goes over the wire.
pub(crate) fn line<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

/// Both directions of a socket. Needs a runtime.
pub(crate) fn open(socket: StdStream) -> io::Result<(Incoming, OwnedWriteHalf)> {
    socket.set_nonblocking(true)?;
    let (read, write) = UnixStream::from_std(socket)?.into_split();
    Ok((Incoming(BufReader::new(read).lines()), write))
}

/// Messages that come in.
pub(crate) struct Incoming(Lines<BufReader<OwnedReadHalf>>);

impl Incoming {
    /// The next message; none once the other end has gone. Cancel-safe.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        match self.0.next_line().await? {
            Some(line) => Ok(Some(serde_json::from_str(&line)?)),
            None => Ok(None),
        }
    }
}

/// How many bulk messages wait before their sender does.
const BULK: usize = 256;

/// Where messages are left to be sent. What steers goes first and never waits; bulk (log lines) waits where the reader is slow.
#[derive(Debug)]
pub(crate) struct Mailbox<T> {
    steering: mpsc::UnboundedSender<T>,
    bulk: mpsc::Sender<T>,
}

impl<T> Clone for Mailbox<T> {
    fn clone(&self) -> Self {
        Self { steering: self.steering.clone(), bulk: self.bulk.clone() }
    }
}

impl<T> Mailbox<T> {
    /// Leaves a message. Where the other end has gone, the reader of its messages notices.
    pub(crate) fn steer(&self, message: T) {
        let _ = self.steering.send(message);
    }

    /// Leaves a message when there is room; false once nobody reads any more.
    pub(crate) async fn bulk(&self, message: T) -> bool {
        self.bulk.send(message).await.is_ok()
    }
}

/// A mailbox, and the work that empties it into `half` until every clone of the mailbox is gone.
pub(crate) fn mailbox<T: Serialize>(half: OwnedWriteHalf) -> (Mailbox<T>, impl Future<Output = ()>) {
    let (steering, steering_rx) = mpsc::unbounded_channel();
    let (bulk, bulk_rx) = mpsc::channel(BULK);
    (Mailbox { steering, bulk }, post(half, steering_rx, bulk_rx))
}

async fn post<T: Serialize>(mut half: OwnedWriteHalf, mut steering: mpsc::UnboundedReceiver<T>, mut bulk: mpsc::Receiver<T>) {
    loop {
        let message = tokio::select! {
            biased;
            Some(message) = steering.recv() => message,
            Some(message) = bulk.recv() => message,
            else => return,
        };
        let Ok(line) = line(&message) else { continue };
        if half.write_all(&line).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_steers_goes_before_bulk_and_the_end_is_seen() {
        let (a, b) = StdStream::pair().expect("a pair");
        let (_unused, write) = open(a).expect("open");
        let (mut incoming, _write) = open(b).expect("open");
        let (mailbox, work) = mailbox::<String>(write);
        assert!(mailbox.bulk("log".to_owned()).await);
        mailbox.steer("stop".to_owned());
        drop(mailbox);
        work.await;
        assert_eq!(incoming.next::<String>().await.expect("read").as_deref(), Some("stop"));
        assert_eq!(incoming.next::<String>().await.expect("read").as_deref(), Some("log"));
        assert!(incoming.next::<String>().await.expect("read").is_none());
    }
}
