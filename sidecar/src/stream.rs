//! A stream of bytes to a peer, in the clear or over TLS. Nothing above names a socket or a TLS type.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, IoSlice, Write};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use rustls::{ClientConfig, Connection, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName};
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tokio_util::io::poll_read_buf;
use weft_tls::verify_error;

use crate::io::Socket;
use crate::link::{Link, Pipe};
use crate::pool::Buffers;
use crate::within::within;

mod tls;

use tls::{Blocking, Tls, digest, hand_out, take_plaintext, tls_error};

/// The two ends of a byte stream are read and written through `&self`: one future may read while another writes.
pub struct Stream {
    socket: Rc<Socket>,
    /// Bytes that were read before it was known what they are, and are to be read again.
    early: RefCell<Bytes>,
    tls: Option<Box<RefCell<Tls>>>,
    buffers: Buffers,
    /// Set once the peer has ended its half properly.
    ended: Cell<bool>,
    opened: Instant,
}

/// Pieces that are passed on together.
pub type Chunks = SmallVec<[BytesMut; 8]>;

/// What the handshake settled, for logs and metrics.
#[derive(Debug, Clone)]
pub struct TlsFacts {
    pub alpn: Option<Vec<u8>>,
    pub peer: Option<CertificateDer<'static>>,
}

/// Why a handshake failed, in a word, for metrics.
pub fn handshake_fault(e: &io::Error) -> &'static str {
    match as_tls_error(e).map(|tls| (tls, verify_error(tls))) {
        Some((_, Some(why))) => why.as_str(),
        Some((rustls::Error::AlertReceived(_), None)) => "peer-refused",
        Some((rustls::Error::NoApplicationProtocol, None)) => "no-alpn",
        Some(_) => "tls",
        None => "connection-lost",
    }
}

impl Stream {
    /// A stream in the clear.
    pub fn plain(socket: Socket, buffers: Buffers) -> Self {
        let (socket, ended, opened) = (Rc::new(socket), Cell::new(false), Instant::now());
        Self { socket, early: RefCell::default(), tls: None, buffers, ended, opened }
    }

    /// When it was opened, or taken in.
    pub fn opened(&self) -> Instant {
        self.opened
    }

    /// Puts bytes back that were read already.
    pub fn unread(&self, bytes: Bytes) {
        let mut early = self.early.borrow_mut();
        *early = if early.is_empty() { bytes } else { [&bytes[..], &early[..]].concat().into() };
    }

    /// Becomes a TLS server over this stream. Fails with the handshake's error.
    pub async fn accept_tls(self, config: Arc<ServerConfig>) -> io::Result<Self> {
        let connection = rustls::ServerConnection::new(config).map_err(io::Error::other)?;
        self.handshake(connection.into()).await
    }

    /// Becomes a TLS client over this stream. Fails with the handshake's error.
    pub async fn connect_tls(self, config: Arc<ClientConfig>, name: ServerName<'static>) -> io::Result<Self> {
        let connection = rustls::ClientConnection::new(config, name).map_err(io::Error::other)?;
        self.handshake(connection.into()).await
    }

    async fn handshake(mut self, mut connection: Connection) -> io::Result<Self> {
        connection.set_buffer_limit(Some(SEND_LIMIT));
        let backlog = self.early.take().to_vec();
        self.tls = Some(Box::new(RefCell::new(Tls { connection, backlog })));
        let outcome = poll_fn(|cx| self.poll_handshake(cx)).await;
        if outcome.is_err() {
            // The alert that explains it to the peer.
            let _ = poll_fn(|cx| self.poll_send_ciphertext(cx)).await;
        }
        outcome.map(|()| self)
    }

    fn poll_handshake(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.poll_send_ciphertext(cx))?;
            if !self.tls().borrow().connection.is_handshaking() {
                return Poll::Ready(Ok(()));
            }
            let taken = self.poll_ciphertext(cx, &mut self.tls().borrow_mut(), |tls, ciphertext| {
                let mut rest = ciphertext;
                digest(&mut tls.connection, &mut rest)?;
                tls.backlog.extend_from_slice(rest);
                Ok(ciphertext.len())
            });
            if ready!(taken)? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    fn tls(&self) -> &RefCell<Tls> {
        self.tls.as_deref().expect("called on a TLS stream only")
    }

    /// Sends what TLS has to send.
    fn poll_send_ciphertext(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.send_ciphertext(&mut self.tls().borrow_mut().connection, cx)
    }

    fn send_ciphertext(&self, connection: &mut Connection, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while connection.wants_write() {
            match connection.write_tls(&mut Blocking { socket: &self.socket, cx }) {
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Has `take` take in what ciphertext there is: what was kept, or else what one read of the socket brings; nothing at its end, of which TLS knows then, and
    /// says whether it was proper.
    fn poll_ciphertext<T>(
        &self,
        cx: &mut Context<'_>,
        tls: &mut Tls,
        take: impl FnOnce(&mut Tls, &[u8]) -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        let backlog = std::mem::take(&mut tls.backlog);
        if !backlog.is_empty() {
            return Poll::Ready(take(tls, &backlog));
        }
        let mut scratch = self.buffers.take();
        let mut read = ReadBuf::new(&mut scratch);
        ready!(self.socket.poll_read(cx, &mut read))?;
        if read.filled().is_empty() {
            tls.connection.read_tls(&mut io::empty())?;
        }
        Poll::Ready(take(tls, read.filled()))
    }

    /// Whether a read would give something at once or wait. Ready may be in vain.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.early.borrow().is_empty() || self.ended.get() {
            return Poll::Ready(Ok(()));
        }
        if let Some(tls) = &self.tls {
            let mut tls = tls.borrow_mut();
            if !tls.backlog.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let state = tls.connection.process_new_packets().map_err(tls_error)?;
            if state.plaintext_bytes_to_read() > 0 || state.peer_has_closed() {
                return Poll::Ready(Ok(()));
            }
        }
        self.socket.poll_readable(cx)
    }

    /// Waits until a read would give something. Cancel-safe.
    pub async fn readable(&self) -> io::Result<()> {
        poll_fn(|cx| self.poll_readable(cx)).await
    }

    /// Reads some bytes; none means that the peer has ended its half properly. A TLS stream that ends without
    /// `close_notify` is an error (Invariant 7).
    pub fn poll_read(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut early = self.early.borrow_mut();
        if !early.is_empty() {
            let n = early.len().min(buf.remaining());
            buf.put_slice(&early[..n]);
            early.advance(n);
            if early.is_empty() {
                *early = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        drop(early);
        let Some(tls) = &self.tls else {
            let before = buf.filled().len();
            ready!(self.socket.poll_read(cx, buf))?;
            self.ended.set(buf.filled().len() == before);
            return Poll::Ready(Ok(()));
        };
        let before = buf.filled().len();
        loop {
            let tls = &mut *tls.borrow_mut();
            if take_plaintext(&mut tls.connection, buf)? {
                self.ended.set(buf.filled().len() == before);
                return Poll::Ready(Ok(()));
            }
            if buf.filled().len() > before && (tls.backlog.is_empty() || buf.remaining() == 0) {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_ciphertext(cx, tls, |tls, ciphertext| tls.take_in(ciphertext, buf)))?;
            // An answer to the peer's key update, if one is due; what does not fit goes with the next write.
            let _ = self.send_ciphertext(&mut tls.connection, cx);
        }
    }

    /// Has `take` look at what one read of the socket brings, as it lies and piece by piece; at nothing where the peer has ended its half properly, which is false then. An error is the stream's or
    /// `take`'s own, and ends it. `take` may not use the stream.
    pub fn poll_each(&self, cx: &mut Context<'_>, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> Poll<io::Result<bool>> {
        let early = std::mem::take(&mut *self.early.borrow_mut());
        if !early.is_empty() {
            return Poll::Ready(take(&early).map(|()| true));
        }
        let Some(tls) = &self.tls else {
            let mut scratch = self.buffers.take();
            let mut read = ReadBuf::new(&mut scratch);
            ready!(self.socket.poll_read(cx, &mut read))?;
            self.ended.set(read.filled().is_empty());
            return Poll::Ready(take(read.filled()).map(|()| !self.ended.get()));
        };
        let tls = &mut *tls.borrow_mut();
        let some = Cell::new(false);
        let mut take = |plaintext: &[u8]| {
            some.set(true);
            take(plaintext)
        };
        let mut is_end = hand_out(&mut tls.connection, &mut take)?;
        while !some.get() {
            if is_end {
                self.ended.set(true);
                return Poll::Ready(take(&[]).map(|()| false));
            }
            is_end = ready!(self.poll_ciphertext(cx, tls, |tls, ciphertext| tls.pass_on(ciphertext, &mut take)))?;
            // An answer to the peer's key update, if one is due; what does not fit goes with the next write.
            let _ = self.send_ciphertext(&mut tls.connection, cx);
        }
        Poll::Ready(Ok(true))
    }

    /// Reads some bytes. Cancel-safe.
    pub async fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        poll_fn(|cx| {
            let mut read = ReadBuf::new(buf);
            ready!(self.poll_read(cx, &mut read))?;
            Poll::Ready(Ok(read.filled().len()))
        })
        .await
    }

    /// Reads what is there into bytes of their own, at most a buffer full; none at the end. A buffer is borrowed only while
    /// there is something to read. Cancel-safe.
    pub async fn read_some(&self) -> io::Result<BytesMut> {
        poll_fn(|cx| {
            if let Some(pipe) = self.pipe() {
                return self.poll_chunk(pipe, cx);
            }
            let mut buffer = self.buffers.take();
            let mut read = ReadBuf::new(&mut buffer);
            ready!(self.poll_read(cx, &mut read))?;
            Poll::Ready(Ok(BytesMut::from(read.filled())))
        })
        .await
    }

    /// The stream of a link that it is, if bytes come from there as they lie.
    fn pipe(&self) -> Option<&Pipe> {
        match &*self.socket {
            Socket::Link(pipe) if self.early.borrow().is_empty() => Some(pipe),
            _ => None,
        }
    }

    fn poll_chunk(&self, pipe: &Pipe, cx: &Context<'_>) -> Poll<io::Result<BytesMut>> {
        let chunk = ready!(pipe.poll_chunk(cx))?;
        self.ended.set(chunk.is_none());
        Poll::Ready(Ok(chunk.unwrap_or_default()))
    }

    /// Gathers what is there, where it comes in pieces that need not be copied; none where it does not, or has nothing just now. No bytes are the end.
    pub fn chunks(&self, cx: &Context<'_>, chunks: &mut Chunks) -> Option<io::Result<()>> {
        let pipe = self.pipe()?;
        while chunks.len() < chunks.inline_size() {
            match self.poll_chunk(pipe, cx) {
                Poll::Ready(Ok(chunk)) if chunk.is_empty() => break,
                Poll::Ready(Ok(chunk)) => chunks.push(chunk),
                Poll::Ready(Err(e)) if chunks.is_empty() => return Some(Err(e)),
                Poll::Pending if chunks.is_empty() => return None,
                Poll::Ready(Err(_)) | Poll::Pending => break,
            }
        }
        Some(Ok(()))
    }

    /// Whether the other end has not been asked in vain whether it is there, nor to leave; shows of a link alone.
    pub fn is_answering(&self) -> bool {
        self.link().is_none_or(|link| link.answers() && !link.is_leaving())
    }

    /// Ends a stream of a link so that whatever comes on it from here on, and was not looked at, may be said elsewhere; false for what is none.
    pub fn refuse(&self) -> bool {
        if let Socket::Link(pipe) = &*self.socket {
            pipe.refuse();
            return true;
        }
        false
    }

    /// The link that it is a stream of.
    pub fn link(&self) -> Option<&Rc<Link>> {
        if let Socket::Link(pipe) = &*self.socket { Some(pipe.link()) } else { None }
    }

    /// Whether it is a stream of a link.
    pub fn is_linked(&self) -> bool {
        matches!(*self.socket, Socket::Link(_))
    }

    /// Accepts some of the slices; over TLS they are encrypted and sent as far as the socket takes them.
    pub fn poll_write_vectored(&self, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let Some(tls) = &self.tls else { return self.socket.poll_write_vectored(cx, bufs) };
        loop {
            let n = tls.borrow_mut().connection.writer().write_vectored(bufs)?;
            let sent = self.poll_send_ciphertext(cx)?;
            if n > 0 || bufs.iter().all(|b| b.is_empty()) {
                return Poll::Ready(Ok(n));
            }
            // The buffer was full: it must drain before more is accepted.
            ready!(sent);
        }
    }

    /// Where it is a stream of a link: has what `from` brings put where it goes out from, and copied nowhere. How much came, 0 at its end; none if nothing is there. `from` is no stream of a link.
    pub fn poll_fill(&self, from: &Self, cx: &mut Context<'_>) -> Poll<io::Result<Option<io::Result<usize>>>> {
        let (Socket::Link(pipe), None, false) = (&*self.socket, &self.tls, from.is_linked()) else {
            return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
        };
        let came = ready!(pipe.poll_fill(cx, |cx, space| poll_read_buf(Pin::new(&mut Borrowed(from)), cx, space)))?;
        Poll::Ready(Ok(match came {
            Poll::Pending => None,
            Poll::Ready(came) => Some(came),
        }))
    }

    /// Sends what was accepted and not yet sent.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.tls.is_some() { self.poll_send_ciphertext(cx) } else { Poll::Ready(Ok(())) }
    }

    /// Writes everything and flushes; a peer that takes nothing for `stall` is an error. Not cancel-safe: what was written is
    /// not told.
    pub async fn write_all(&self, bytes: &[u8], stall: Duration) -> io::Result<()> {
        self.write_all_vectored(&mut [IoSlice::new(bytes)], stall).await
    }

    /// Writes all slices and flushes. See [`Self::write_all`].
    pub async fn write_all_vectored(&self, bufs: &mut [IoSlice<'_>], stall: Duration) -> io::Result<()> {
        let mut rest = bufs;
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            // The clock runs for each piece that is taken, so that a slow reader is not a stalled one.
            let n = within(stall, |cx| self.poll_write_vectored(cx, rest)).await??;
            if n == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            IoSlice::advance_slices(&mut rest, n);
        }
        within(stall, |cx| self.poll_flush(cx)).await?
    }

    /// Writes all pieces, of which none is empty, and flushes; they are taken off the front. See [`Self::write_all`].
    pub async fn write_chunks(&self, chunks: &mut Chunks, stall: Duration) -> io::Result<()> {
        let mut gone = 0;
        while gone < chunks.len() {
            let write = |cx: &mut Context<'_>| {
                let slices: SmallVec<[IoSlice<'_>; 8]> = chunks[gone..].iter().map(|chunk| IoSlice::new(chunk)).collect();
                self.poll_write_vectored(cx, &slices)
            };
            let mut n = within(stall, write).await??;
            if n == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            while n > 0 {
                let of_this = n.min(chunks[gone].len());
                chunks[gone].advance(of_this);
                n -= of_this;
                gone += usize::from(chunks[gone].is_empty());
            }
        }
        within(stall, |cx| self.poll_flush(cx)).await?
    }

    /// Ends the writing half properly: `close_notify` first, then FIN.
    pub fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(tls) = &self.tls {
            tls.borrow_mut().connection.send_close_notify();
            ready!(self.poll_send_ciphertext(cx))?;
        }
        self.socket.poll_shutdown(cx)
    }

    /// See [`Self::poll_shutdown`].
    pub async fn shutdown(&self) -> io::Result<()> {
        poll_fn(|cx| self.poll_shutdown(cx)).await
    }

    /// Whether the peer has ended its half and everything that it sent was read.
    pub fn is_finished(&self) -> bool {
        self.ended.get() && self.early.borrow().is_empty()
    }

    /// Has what was received acknowledged at once: a sender that waits for that before it sends the rest of a message (Nagle's
    /// algorithm) would else wait for the delayed acknowledgement.
    pub fn acknowledge_now(&self) {
        self.socket.acknowledge_now();
    }

    /// See [`Socket::bound_unsent`].
    pub fn bound_unsent(&self, octets: u32) {
        self.socket.bound_unsent(octets);
    }

    /// Has the peer see a reset, never a clean end.
    pub fn reset(&self) {
        self.socket.reset_on_drop();
    }

    /// See [`Socket::is_cut`].
    pub fn is_cut(&self) -> bool {
        self.socket.is_cut()
    }

    /// Its socket, for whoever may have to cut it.
    pub fn socket(&self) -> Weak<Socket> {
        Rc::downgrade(&self.socket)
    }

    /// The address at the other end.
    pub fn peer(&self) -> SocketAddr {
        self.socket.peer()
    }

    /// Cipher suite and key exchange group; empty in the clear.
    pub fn tls_names(&self) -> (&'static str, &'static str) {
        let Some(tls) = &self.tls else {
            return self.link().map_or(("", ""), |link| link.tls_names());
        };
        let c = &tls.borrow().connection;
        (
            c.negotiated_cipher_suite().and_then(|s| s.suite().as_str()).unwrap_or("unknown"),
            c.negotiated_key_exchange_group().and_then(|g| g.name().as_str()).unwrap_or("unknown"),
        )
    }

    /// What the handshake settled; none in the clear.
    pub fn tls_facts(&self) -> Option<TlsFacts> {
        let tls = self.tls.as_ref()?.borrow();
        let c = &tls.connection;
        Some(TlsFacts {
            alpn: c.alpn_protocol().map(<[u8]>::to_vec),
            peer: c.peer_certificates().and_then(<[_]>::first).map(|der| der.clone().into_owned()),
        })
    }
}

/// Plaintext that is accepted before the socket has taken it, in bytes.
const SEND_LIMIT: usize = 128 * 1024;

/// The verifier's or TLS's own error within an IO error.
pub fn as_tls_error(e: &io::Error) -> Option<&rustls::Error> {
    e.get_ref()?.downcast_ref()
}

/// A stream as tokio's own trait, for what reads into buffers of its own.
struct Borrowed<'a>(&'a Stream);

impl AsyncRead for Borrowed<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read(cx, buf)
    }
}

/// A stream as tokio's own traits, for codecs that want them.
#[derive(Clone)]
pub struct Shared(pub Rc<Stream>);

impl AsyncRead for Shared {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.poll_read(cx, buf)
    }
}

impl AsyncWrite for Shared {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }
    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.0.poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        true
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_flush(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_shutdown(cx)
    }
}
