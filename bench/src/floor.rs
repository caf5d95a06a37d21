//! The floor: a pair that does nothing but move bytes over one shared connection. It reads no HTTP, knows nobody, decides and counts nothing; what it costs, a mesh that is made of sockets and
//! shares connections costs at the least. With `--seal` each record is encrypted and decrypted where it lies, with a key that is no secret.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use anyhow::Context;
use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, MAX_TAG_LEN, NONCE_LEN, Nonce, UnboundKey};
use clap::Args as Arguments;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Domain, SockRef, Socket, Type};

/// A process of the pair
#[derive(Arguments, Debug)]
pub(crate) struct Args {
    /// Where it listens: for connections that a redirect sends here, or, without `--to`, for those of the other process, and there on as many ports from this one on as there are workers
    #[arg(long)]
    listen: SocketAddr,
    /// The other process. Without it this is the one that connects to the application, on 127.0.0.1
    #[arg(long)]
    to: Option<SocketAddr>,
    /// Encrypt what goes between the two (AES-128-GCM)
    #[arg(long)]
    seal: bool,
    /// Threads, each with a connection of its own
    #[arg(long, default_value_t = 2)]
    workers: u16,
}

/// Header of a frame: how many octets follow, and the stream that they are of. What else it says is in the length's upper bits.
const HEADER: usize = 8;
const OPEN: u32 = 1 << 31;
const FIN: u32 = 1 << 30;
const LENGTH: u32 = FIN - 1;
/// What is read at once.
const READ: usize = 64 * 1024;
/// Plaintext of a record, as TLS has it, and its header.
const RECORD: usize = 16 * 1024;
const RECORD_HEADER: usize = 4;
/// More than this is not kept for whoever does not read.
const FULL: usize = 128 * 1024;
const LISTENER: u64 = u64::MAX;
const LINK: u64 = u64::MAX - 1;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..args.workers).map(|i| scope.spawn(move || Worker::new(args, i)?.run())).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("it does not panic"))
    })
}

/// A connection of the application's.
struct Stream {
    socket: TcpStream,
    /// What it has not taken yet.
    waits: Waiting,
    /// What the other end of the stream has said is over, and what has been said to it.
    theirs_over: bool,
    ours_over: bool,
    there: There,
}

/// What there is to be read of a socket.
#[derive(Clone, Copy, PartialEq)]
enum There {
    Nothing,
    Octets,
    /// Everything that will ever come.
    End,
}

struct Link {
    socket: TcpStream,
    key: Option<LessSafeKey>,
    sealed: u64,
    opened: u64,
    /// Frames that go out at the end of the turn, as far as `end`.
    frames: Box<[u8]>,
    end: usize,
    /// Records that the socket has not taken.
    rest: Waiting,
    /// Nothing is read for now: an application does not take what came.
    paused: bool,
    came: Box<[u8]>,
    filled: usize,
    head: [u8; HEADER],
    headed: usize,
    /// The stream whose octets come, and how many.
    coming: Option<(u32, usize)>,
}

struct Worker {
    epoll: Epoll,
    listener: TcpListener,
    to: Option<SocketAddr>,
    seal: bool,
    link: Option<Link>,
    streams: Vec<Option<Box<Stream>>>,
    free: Vec<u32>,
}

fn edges() -> EpollFlags {
    EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET
}

fn nonce(n: u64) -> Nonce {
    let mut octets = [0; NONCE_LEN];
    octets[NONCE_LEN - 8..].copy_from_slice(&n.to_be_bytes());
    Nonce::assume_unique_for_key(octets)
}

fn blocked<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(e) => Err(e),
    }
}

impl Worker {
    fn new(args: &Args, which: u16) -> anyhow::Result<Self> {
        let next = |mut address: SocketAddr| {
            address.set_port(address.port() + which);
            address
        };
        let at = if args.to.is_some() { args.listen } else { next(args.listen) };
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let listener = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
        listener.set_reuse_port(true)?;
        listener.set_tcp_nodelay(true)?;
        listener.bind(&at.into()).with_context(|| format!("--listen {at}"))?;
        listener.listen(4096)?;
        let listener = TcpListener::from(listener);
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        Ok(Self { epoll, listener, to: args.to.map(next), seal: args.seal, link: None, streams: Vec::new(), free: Vec::new() })
    }

    fn join(&mut self, socket: TcpStream) -> anyhow::Result<()> {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        self.epoll.add(&socket, EpollEvent::new(edges(), LINK))?;
        let key = self.seal.then(|| UnboundKey::new(&AES_128_GCM, &[0; 16]).map(LessSafeKey::new)).transpose()?;
        self.link = Some(Link {
            socket,
            key,
            sealed: 0,
            opened: 0,
            frames: vec![0; FULL + 4 * READ].into(),
            end: 0,
            rest: Waiting::default(),
            paused: false,
            came: vec![0; 2 * READ].into(),
            filled: 0,
            head: [0; HEADER],
            headed: 0,
            coming: None,
        });
        Ok(())
    }

    fn run(mut self) -> anyhow::Result<()> {
        let mut events = [EpollEvent::empty(); 256];
        loop {
            let n = self.epoll.wait(&mut events, EpollTimeout::NONE)?;
            for event in &events[..n] {
                match event.data() {
                    LISTENER => self.accept()?,
                    LINK => self.receive()?,
                    stream => self.serve(stream as u32, event.events()),
                }
            }
            if let Some(link) = &mut self.link {
                let mut was_full = link.is_full();
                link.send()?;
                // Whoever had to wait may go on.
                while std::mem::take(&mut was_full) && self.link.as_ref().is_some_and(|link| !link.is_full()) {
                    for stream in 0..self.streams.len() as u32 {
                        self.read(stream);
                    }
                    let link = self.link.as_mut().expect("it is there");
                    was_full = link.is_full();
                    link.send()?;
                }
            }
        }
    }

    fn accept(&mut self) -> anyhow::Result<()> {
        let Some((socket, _)) = blocked(self.listener.accept())? else { return Ok(()) };
        let Some(to) = self.to else {
            // One that is called again has a new caller.
            self.streams.clear();
            self.free.clear();
            return self.join(socket);
        };
        if self.link.is_none() {
            self.join(TcpStream::connect(to).with_context(|| format!("--to {to}"))?)?;
        }
        socket.set_nonblocking(true)?;
        let port = SockRef::from(&socket).original_dst_v4()?.as_socket().map_or(0, |to| to.port());
        let number = self.free.pop().unwrap_or(self.streams.len() as u32);
        self.put(number, socket)?;
        self.frame(OPEN | 2, number, &port.to_be_bytes());
        self.read(number);
        Ok(())
    }

    fn put(&mut self, number: u32, socket: TcpStream) -> anyhow::Result<()> {
        self.epoll.add(&socket, EpollEvent::new(edges(), number.into()))?;
        if self.streams.len() <= number as usize {
            self.streams.resize_with(number as usize + 1, || None);
        }
        let stream = Stream { socket, waits: Waiting::default(), theirs_over: false, ours_over: false, there: There::Octets };
        self.streams[number as usize] = Some(Box::new(stream));
        Ok(())
    }

    fn frame(&mut self, word: u32, number: u32, octets: &[u8]) {
        let Some(link) = &mut self.link else { return };
        for part in [&word.to_be_bytes(), &number.to_be_bytes(), octets] {
            link.frames[link.end..link.end + part.len()].copy_from_slice(part);
            link.end += part.len();
        }
    }

    fn serve(&mut self, number: u32, events: EpollFlags) {
        let Some(Some(stream)) = self.streams.get_mut(number as usize) else { return };
        if events.contains(EpollFlags::EPOLLOUT) && !stream.waits.is_empty() {
            let Stream { socket, waits, .. } = &mut **stream;
            waits.write(socket);
            let is_slow = waits.is_full();
            if let Some(link) = &mut self.link
                && !is_slow
                && std::mem::take(&mut link.paused)
                && let Err(e) = self.receive()
            {
                eprintln!("{e:#}");
            }
        }
        let Some(Some(stream)) = self.streams.get_mut(number as usize) else { return };
        if events.intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            stream.there = There::End;
        } else if events.contains(EpollFlags::EPOLLIN) && stream.there == There::Nothing {
            stream.there = There::Octets;
        }
        self.read(number);
        self.tidy(number);
    }

    /// Reads what there is, straight to where it goes out from.
    fn read(&mut self, number: u32) {
        let (Some(link), Some(Some(stream))) = (&mut self.link, self.streams.get_mut(number as usize)) else { return };
        while stream.there != There::Nothing && !stream.ours_over && !link.is_full() {
            let at = link.end;
            let (head, space) = link.frames[at..].split_at_mut(HEADER);
            let came = blocked(stream.socket.read(&mut space[..READ])).unwrap_or(Some(0));
            let word = match came {
                None => {
                    stream.there = There::Nothing;
                    return;
                }
                Some(0) => {
                    stream.ours_over = true;
                    FIN
                }
                Some(n) => {
                    if n < READ && stream.there == There::Octets {
                        stream.there = There::Nothing;
                    }
                    n as u32
                }
            };
            head[..4].copy_from_slice(&word.to_be_bytes());
            head[4..].copy_from_slice(&number.to_be_bytes());
            link.end += HEADER + (word & LENGTH) as usize;
        }
    }

    /// What is over on both sides is forgotten.
    fn tidy(&mut self, number: u32) {
        if let Some(place) = self.streams.get_mut(number as usize)
            && place.as_ref().is_some_and(|s| s.theirs_over && s.ours_over && s.waits.is_empty())
        {
            *place = None;
            if self.to.is_some() {
                self.free.push(number);
            }
        }
    }

    fn receive(&mut self) -> anyhow::Result<()> {
        loop {
            let Some(mut link) = self.link.take_if(|link| !link.paused) else { return Ok(()) };
            let space = link.came.len() - link.filled;
            let came = blocked(link.socket.read(&mut link.came[link.filled..]));
            let Ok(Some(n @ 1..)) = came else {
                let is_over = !matches!(came, Ok(None));
                anyhow::ensure!(!is_over || self.to.is_none(), "the other process has gone");
                self.link = (!is_over).then_some(link);
                return Ok(());
            };
            link.filled += n;
            let mut at = 0;
            while let Some(whole) = link.record(at) {
                let (mut came, begins) = (std::mem::take(&mut link.came), at + RECORD_HEADER);
                let octets = link.open(&mut came[begins..at + whole])?;
                self.frames(&mut link, octets)?;
                link.came = came;
                at += whole;
            }
            link.came.copy_within(at..link.filled, 0);
            link.filled -= at;
            self.link = Some(link);
            if n < space {
                return Ok(());
            }
        }
    }

    fn frames(&mut self, link: &mut Link, mut octets: &[u8]) -> anyhow::Result<()> {
        while !octets.is_empty() {
            if let Some((number, left)) = link.coming {
                let (now, rest) = octets.split_at(left.min(octets.len()));
                octets = rest;
                link.coming = (now.len() < left).then_some((number, left - now.len()));
                if let Some(Some(stream)) = self.streams.get_mut(number as usize) {
                    stream.write(now);
                    link.paused |= stream.waits.is_full();
                }
                continue;
            }
            // What opens a stream is a header of its own, and two octets.
            let n = (HEADER - link.headed).min(octets.len());
            link.head[link.headed..link.headed + n].copy_from_slice(&octets[..n]);
            link.headed += n;
            octets = &octets[n..];
            if link.headed < HEADER {
                return Ok(());
            }
            let [word, number] =
                [&link.head[..4], &link.head[4..]].map(|part| u32::from_be_bytes(part.try_into().expect("four octets")));
            if word & OPEN != 0 {
                if octets.len() < 2 {
                    anyhow::bail!("a frame that opens a stream is in two records: raise RECORD");
                }
                self.connect(number, u16::from_be_bytes([octets[0], octets[1]]))?;
                octets = &octets[2..];
            } else if word & FIN != 0 {
                if let Some(Some(stream)) = self.streams.get_mut(number as usize) {
                    stream.theirs_over = true;
                    if !stream.ours_over {
                        let _ = stream.socket.shutdown(std::net::Shutdown::Write);
                    }
                }
                self.tidy(number);
            } else {
                link.coming = Some((number, (word & LENGTH) as usize));
            }
            link.headed = 0;
        }
        Ok(())
    }

    fn connect(&mut self, number: u32, port: u16) -> anyhow::Result<()> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None)?;
        socket.set_tcp_nodelay(true)?;
        match socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()) {
            Err(e) if e.raw_os_error() != Some(nix::libc::EINPROGRESS) => Err(e.into()),
            _ => self.put(number, socket.into()),
        }
    }
}

impl Stream {
    fn write(&mut self, octets: &[u8]) {
        let taken = if self.waits.is_empty() { blocked(self.socket.write(octets)).map(Option::unwrap_or_default) } else { Ok(0) };
        // Whoever has gone takes everything.
        self.waits.octets.extend_from_slice(&octets[taken.unwrap_or(octets.len())..]);
    }
}

/// What a socket has not taken yet.
#[derive(Default)]
struct Waiting {
    octets: Vec<u8>,
    taken: usize,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.octets.is_empty()
    }

    fn is_full(&self) -> bool {
        self.octets.len() - self.taken > FULL
    }

    fn write(&mut self, socket: &mut TcpStream) {
        let rest = &self.octets[self.taken..];
        self.taken += blocked(socket.write(rest)).map_or(rest.len(), Option::unwrap_or_default);
        if self.taken == self.octets.len() {
            self.octets.clear();
            self.taken = 0;
        }
    }
}

impl Link {
    fn is_full(&self) -> bool {
        self.end > FULL || !self.rest.is_empty()
    }

    fn tag(&self) -> usize {
        if self.key.is_some() { MAX_TAG_LEN } else { 0 }
    }

    /// The length of the record that begins at `at`, header and all, if it is there.
    fn record(&self, at: usize) -> Option<usize> {
        let header = self.came[at..self.filled].first_chunk::<RECORD_HEADER>()?;
        let whole = RECORD_HEADER + u32::from_be_bytes(*header) as usize;
        (self.filled - at >= whole).then_some(whole)
    }

    fn open<'a>(&mut self, record: &'a mut [u8]) -> anyhow::Result<&'a [u8]> {
        let Some(key) = &self.key else { return Ok(record) };
        self.opened += 1;
        Ok(key.open_in_place(nonce(self.opened), Aad::empty(), record)?)
    }

    /// Sends what was gathered, by one call as long as the socket takes it.
    fn send(&mut self) -> anyhow::Result<()> {
        loop {
            self.rest.write(&mut self.socket);
            if !self.rest.is_empty() || self.end == 0 {
                return Ok(());
            }
            let mut whole = std::mem::take(&mut self.frames);
            let frames = &mut whole[..self.end];
            let mut ends: Vec<([u8; RECORD_HEADER], [u8; MAX_TAG_LEN])> = Vec::with_capacity(frames.len() / RECORD + 1);
            for part in frames.chunks_mut(RECORD) {
                let mut end = ([0; RECORD_HEADER], [0; MAX_TAG_LEN]);
                end.0 = ((part.len() + self.tag()) as u32).to_be_bytes();
                if let Some(key) = &self.key {
                    self.sealed += 1;
                    end.1.copy_from_slice(key.seal_in_place_separate_tag(nonce(self.sealed), Aad::empty(), part)?.as_ref());
                }
                ends.push(end);
            }
            let tag = self.tag();
            let slices: Vec<IoSlice<'_>> = frames
                .chunks(RECORD)
                .zip(&ends)
                .flat_map(|(part, (header, end))| [IoSlice::new(header), IoSlice::new(part), IoSlice::new(&end[..tag])])
                .collect();
            let mut taken = blocked(self.socket.write_vectored(&slices))?.unwrap_or(0);
            for slice in &slices {
                let of_this = taken.min(slice.len());
                self.rest.octets.extend_from_slice(&slice[of_this..]);
                taken -= of_this;
            }
            self.end = 0;
            self.frames = whole;
        }
    }
}
