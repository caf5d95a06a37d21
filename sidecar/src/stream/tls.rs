//! TLS on a stream's socket: ciphertext in, plaintext out, as far as there is room for it.

use std::io::{self, BufRead, IoSlice, Read, Write};
use std::task::{Context, Poll};

use rustls::Connection;
use tokio::io::ReadBuf;

use crate::io::Socket;

/// Plaintext that may wait in the TLS layer before more ciphertext is taken in; below rustls's own bound.
const PLAINTEXT_WAITING: usize = 12 * 1024;

/// One end of it.
pub(super) struct Tls {
    pub(super) connection: Connection,
    /// Ciphertext that was read and not yet taken in.
    pub(super) backlog: Vec<u8>,
}

impl Tls {
    /// Takes ciphertext in, and plaintext out into `buf`, as far as there is room: what is left is kept.
    pub(super) fn take_in(&mut self, ciphertext: &[u8], buf: &mut ReadBuf<'_>) -> io::Result<()> {
        let mut rest = ciphertext;
        loop {
            digest(&mut self.connection, &mut rest)?;
            if rest.is_empty() {
                return Ok(());
            }
            if take_plaintext(&mut self.connection, buf)? || buf.remaining() == 0 {
                self.backlog.extend_from_slice(rest);
                return Ok(());
            }
        }
    }

    /// Takes ciphertext in, and has `take` look at all that was in it; true where the peer has ended its half.
    pub(super) fn pass_on(&mut self, ciphertext: &[u8], mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<bool> {
        let mut rest = ciphertext;
        loop {
            digest(&mut self.connection, &mut rest)?;
            // Nothing counts that comes after the end.
            let is_end = hand_out(&mut self.connection, &mut take)?;
            if is_end || rest.is_empty() {
                return Ok(is_end);
            }
        }
    }
}

/// Has `take` look at the plaintext that is there, as it lies; true where the peer has ended its half.
pub(super) fn hand_out(connection: &mut Connection, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<bool> {
    let mut reader = connection.reader();
    loop {
        let n = match reader.fill_buf() {
            Ok([]) => return Ok(true),
            Ok(plaintext) => {
                take(plaintext)?;
                plaintext.len()
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(e) => return Err(e),
        };
        reader.consume(n);
    }
}

/// Takes plaintext out, as far as there is room; true where the peer has ended its half and all of it was taken.
pub(super) fn take_plaintext(connection: &mut Connection, buf: &mut ReadBuf<'_>) -> io::Result<bool> {
    while buf.remaining() > 0 {
        match connection.reader().read(buf.initialize_unfilled()) {
            Ok(0) => return Ok(true),
            Ok(n) => buf.advance(n),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(e) => return Err(e),
        }
    }
    Ok(false)
}

/// Feeds ciphertext until all is taken or plaintext must be read first.
pub(super) fn digest(connection: &mut Connection, rest: &mut &[u8]) -> io::Result<()> {
    let mut waiting = connection.process_new_packets().map_err(tls_error)?.plaintext_bytes_to_read();
    while !rest.is_empty() && waiting <= PLAINTEXT_WAITING && connection.read_tls(rest)? > 0 {
        waiting = connection.process_new_packets().map_err(tls_error)?.plaintext_bytes_to_read();
    }
    Ok(())
}

pub(super) fn tls_error(e: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, e)
}

/// Lets rustls write to a socket that may not be ready.
pub(super) struct Blocking<'a, 'b, 'c> {
    pub(super) socket: &'a Socket,
    pub(super) cx: &'b mut Context<'c>,
}

impl Write for Blocking<'_, '_, '_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buf)])
    }
    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        match self.socket.poll_write_vectored(self.cx, bufs) {
            Poll::Ready(r) => r,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
