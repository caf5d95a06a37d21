//! File descriptors over a Unix socket (`SCM_RIGHTS`), each lot with one byte of its own.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Sends `mark`, and with it `fds`, which may be none.
pub(crate) fn send(stream: &UnixStream, mark: u8, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let messages = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    let byte = [mark];
    sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&byte)], messages, MsgFlags::empty(), None)?;
    Ok(())
}

/// Receives what [`send`] sent. An end of the stream is an error.
pub(crate) fn receive(stream: &UnixStream) -> io::Result<(u8, Vec<OwnedFd>)> {
    let mut byte = [0_u8];
    let mut space = nix::cmsg_space!([RawFd; 16]);
    let mut fds = Vec::new();
    let received = {
        let mut slices = [IoSliceMut::new(&mut byte)];
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                fds.extend(raw.into_iter().map(own));
            }
        }
        message.bytes
    };
    if received == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok((byte[0], fds))
}

#[expect(unsafe_code, reason = "the kernel hands over plain numbers")]
fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel made this descriptor for this process while it received the message, and nothing else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_descriptor_arrives_and_works() {
        let (a, b) = UnixStream::pair().expect("a pair");
        let (mut inner, passed) = UnixStream::pair().expect("a pair");
        send(&a, b'+', &[passed.as_fd()]).expect("sent");
        drop(passed);
        let (mark, fds) = receive(&b).expect("received");
        assert_eq!((mark, fds.len()), (b'+', 1));
        let mut passed = UnixStream::from(fds.into_iter().next().expect("one"));
        passed.write_all(b"hello").expect("written");
        drop(passed);
        let mut text = String::new();
        inner.read_to_string(&mut text).expect("read");
        assert_eq!(text, "hello");

        send(&a, b'-', &[]).expect("sent");
        assert_eq!(receive(&b).expect("received").1.len(), 0);
        drop(a);
        assert!(receive(&b).is_err());
    }
}
