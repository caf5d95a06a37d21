//! Two ends of a link, stepped by hand.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::Wake;

use proptest::prelude::*;

use super::*;
use crate::multiplex::{FULL, LARGEST, QUANTUM};

/// Counts how often it was woken.
#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

struct Pair {
    caller: Session,
    server: Session,
}

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// Has everything that goes out at `from` come in at `to`, in pieces.
fn carry(from: &mut Session, to: &mut Session, piece: usize) -> Result<(), Violation> {
    while !from.outgoing().is_empty() {
        let some = from.outgoing()[..from.outgoing().len().min(piece)].to_vec();
        from.sent(some.len());
        to.receive(&some)?;
    }
    Ok(())
}

impl Pair {
    fn new() -> Self {
        Self { caller: Session::new(End::Opens), server: Session::new(End::Serves) }
    }

    /// Both ways, until nobody has anything to say.
    fn step(&mut self, piece: usize) {
        while !(self.caller.outgoing().is_empty() && self.server.outgoing().is_empty()) {
            carry(&mut self.caller, &mut self.server, piece).expect("the server takes it");
            carry(&mut self.server, &mut self.caller, piece).expect("the caller takes it");
        }
    }

    fn open(&mut self) -> u32 {
        let stream = self.caller.begin(MeshProtocol::Tcp);
        self.step(usize::MAX);
        assert_eq!(self.server.opened(), [(stream, MeshProtocol::Tcp)]);
        stream
    }
}

fn write(session: &mut Session, stream: u32, bytes: &[u8]) -> usize {
    match session.poll_write(stream, &cx(), &[IoSlice::new(bytes)]) {
        Poll::Ready(n) => n.expect("the stream is open"),
        Poll::Pending => 0,
    }
}

/// Has bytes read into place, as far as there is room.
fn fill(session: &mut Session, stream: u32, bytes: &[u8]) -> Poll<usize> {
    let read = |_: &mut Context<'_>, space: &mut Limit<&mut Vec<u8>>| {
        let n = bytes.len().min(space.remaining_mut());
        space.put_slice(&bytes[..n]);
        Poll::Ready(Ok(n))
    };
    session.poll_fill(stream, &mut cx(), read).map(|came| match came.expect("the stream is open") {
        Poll::Ready(n) => n.expect("a read that succeeds"),
        Poll::Pending => unreachable!("it never waits"),
    })
}

fn read(session: &mut Session, stream: u32) -> Poll<io::Result<Vec<u8>>> {
    let mut space = vec![0; 1 << 20];
    session.poll_read(stream, &cx(), &mut space).map_ok(|n| space[..n].to_vec())
}

fn all(session: &mut Session, stream: u32) -> Vec<u8> {
    match read(session, stream) {
        Poll::Ready(bytes) => bytes.expect("the stream is open"),
        Poll::Pending => Vec::new(),
    }
}

#[test]
fn a_stream_is_half_closed_like_a_connection() {
    let mut pair = Pair::new();
    let stream = pair.open();
    assert_eq!(write(&mut pair.caller, stream, b"question"), 8);
    pair.caller.finish(stream).expect("it is open");
    pair.step(3);
    assert_eq!(all(&mut pair.server, stream), b"question");
    assert!(matches!(read(&mut pair.server, stream), Poll::Ready(Ok(end)) if end.is_empty()));
    assert_eq!(write(&mut pair.server, stream, b"answer"), 6);
    pair.server.finish(stream).expect("it is open");
    pair.server.forget(stream, None);
    pair.step(1);
    assert_eq!(all(&mut pair.caller, stream), b"answer");
    assert!(matches!(read(&mut pair.caller, stream), Poll::Ready(Ok(end)) if end.is_empty()));
    pair.caller.forget(stream, None);
    pair.step(1);
    assert_eq!((pair.caller.open(), pair.server.open()), (0, 0));
}

#[test]
fn a_reset_is_none_that_looks_like_an_end() {
    let mut pair = Pair::new();
    let stream = pair.open();
    write(&mut pair.server, stream, b"half an ans");
    // Dropped in the middle of it.
    pair.server.forget(stream, None);
    pair.step(usize::MAX);
    assert_eq!(all(&mut pair.caller, stream), b"half an ans");
    let Poll::Ready(Err(e)) = read(&mut pair.caller, stream) else { panic!("it has broken off") };
    assert_eq!(e.kind(), io::ErrorKind::ConnectionReset);
    assert!(e.get_ref().is_none());
    assert!(matches!(pair.caller.poll_write(stream, &cx(), &[IoSlice::new(b"x")]), Poll::Ready(Err(_))));
    pair.caller.forget(stream, None);
    // Nothing is said of what is over.
    assert!(pair.caller.outgoing().is_empty());
}

#[test]
fn who_does_not_read_stops_its_own_stream_alone() {
    let mut pair = Pair::new();
    let (slow, quick) = (pair.open(), pair.open());
    let much = vec![7; 4 * WINDOW as usize];
    let mut sent = 0;
    for _ in 0..100 {
        sent += write(&mut pair.caller, slow, &much);
        pair.step(usize::MAX);
    }
    assert_eq!(sent, WINDOW as usize);
    for _ in 0..100 {
        assert_eq!(write(&mut pair.caller, quick, b"through"), 7);
        pair.step(usize::MAX);
        assert_eq!(all(&mut pair.server, quick), b"through");
    }
    // And goes on when it reads.
    assert_eq!(all(&mut pair.server, slow).len(), WINDOW as usize);
    pair.step(usize::MAX);
    assert!(write(&mut pair.caller, slow, b"more") > 0);
}

#[test]
fn windows_grow_with_what_is_read_and_within_the_links_bound() {
    let mut pair = Pair::new();
    let much = vec![7; 1 << 20];
    let streams: Vec<u32> = (0..20).map(|_| pair.open()).collect();
    for stream in &streams {
        for _ in 0..400 {
            write(&mut pair.caller, *stream, &much);
            pair.step(usize::MAX);
            all(&mut pair.server, *stream);
        }
    }
    let windows: Vec<u32> = streams.iter().map(|s| pair.server.streams[s].window.size()).collect();
    assert_eq!(windows[0], LARGEST);
    assert_eq!(windows[19], WINDOW);
    assert!(windows.iter().map(|w| w - WINDOW).sum::<u32>() <= EXTRA);
    for stream in streams {
        pair.server.forget(stream, None);
    }
    assert_eq!(pair.server.extra.0, EXTRA);
}

#[test]
fn what_is_read_into_place_is_bounded_as_what_is_written() {
    let mut pair = Pair::new();
    let stream = pair.open();
    let much = vec![7; 3 * WINDOW as usize];
    assert_eq!(fill(&mut pair.caller, stream, &much), Poll::Ready(WINDOW as usize), "all of the credit, in one frame");
    assert_eq!(pair.caller.outgoing().len(), HEADER + WINDOW as usize);
    assert_eq!(fill(&mut pair.caller, stream, &much), Poll::Pending);
    pair.step(usize::MAX);
    assert_eq!(all(&mut pair.server, stream).len(), WINDOW as usize);
    pair.step(usize::MAX);
    // Nothing is there, it has ended, or it fails: nothing goes out.
    let errors: [fn() -> Poll<io::Result<usize>>; 3] =
        [|| Poll::Pending, || Poll::Ready(Ok(0)), || Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))];
    for came in errors {
        let filled = pair.caller.poll_fill(stream, &mut cx(), |_, _| came());
        assert!(matches!(filled, Poll::Ready(Ok(_))) && pair.caller.outgoing().is_empty());
    }
    assert_eq!(fill(&mut pair.caller, stream, &[7]), Poll::Ready(1));
    // One who reads no more is written no more.
    pair.server.forget(stream, None);
    pair.step(usize::MAX);
    let mut asked = false;
    let filled = pair.caller.poll_fill(stream, &mut cx(), |_, _| {
        asked = true;
        Poll::Pending
    });
    assert!(matches!(filled, Poll::Ready(Err(_))) && !asked);
}

#[test]
fn those_who_wait_for_room_take_turns() {
    let mut pair = Pair::new();
    let streams: Vec<u32> = (0..8).map(|_| pair.open()).collect();
    let much = vec![7; WINDOW as usize];
    // The first two fill the buffer; the others wait.
    let first: Vec<usize> = streams.iter().map(|s| write(&mut pair.caller, *s, &much)).collect();
    assert!(first[2..].iter().all(|n| *n == 0));
    // Not one of them gets in twice before all have.
    pair.caller.sent(pair.caller.outgoing().len() - LOW / 2);
    let mut order = Vec::new();
    for _ in 0..3 {
        for stream in &streams[2..] {
            if write(&mut pair.caller, *stream, &much) > 0 {
                order.push(*stream);
            }
        }
    }
    assert_eq!(order[..6.min(order.len())], streams[2..2 + 6.min(order.len())]);
}

#[test]
fn a_turn_for_which_nothing_is_there_is_anothers() {
    let mut pair = Pair::new();
    let streams: Vec<u32> = (0..22).map(|_| pair.open()).collect();
    let woken: Vec<Arc<Count>> = streams.iter().map(|_| Arc::default()).collect();
    let much = vec![7; WINDOW as usize];
    for (stream, count) in streams.iter().zip(&woken) {
        let waker = Arc::clone(count).into();
        let _ = pair.caller.poll_write(*stream, &Context::from_waker(&waker), &[IoSlice::new(&much)]);
    }
    // All goes. Whoever is woken from here on has nothing to say.
    let waiting = pair.caller.outgoing().len();
    pair.caller.sent(waiting);
    let mut asked = vec![false; streams.len()];
    while let Some(at) = (2..streams.len()).find(|at| !asked[*at] && woken[*at].0.load(Relaxed) > 0) {
        asked[at] = true;
        assert!(matches!(pair.caller.poll_fill(streams[at], &mut cx(), |_, _| Poll::Pending), Poll::Ready(Ok(Poll::Pending))));
    }
    assert!(asked[2..].iter().all(|asked| *asked), "{asked:?}");
    assert!(pair.caller.turns.is_empty() && pair.caller.outgoing().is_empty());
}

#[test]
fn the_first_to_run_leaves_the_others_their_turn() {
    let mut pair = Pair::new();
    let streams: [u32; 5] = std::array::from_fn(|_| pair.open());
    let much = vec![7; WINDOW as usize];
    for stream in streams {
        write(&mut pair.caller, stream, &much);
    }
    // All goes, at two times, before anybody who was woken runs.
    let waiting = pair.caller.outgoing().len();
    pair.caller.sent(waiting - 36);
    pair.caller.sent(36);
    let wrote = [2, 3, 4].map(|at| write(&mut pair.caller, streams[at], &much));
    assert!(wrote[..2] == [QUANTUM; 2] && wrote[2] >= QUANTUM && pair.caller.turns.is_empty(), "{wrote:?}");
}

#[test]
fn a_writer_that_has_gone_elsewhere_holds_nobody_up() {
    let mut pair = Pair::new();
    let (a, b, c, d) = (pair.open(), pair.open(), pair.open(), pair.open());
    let much = vec![7; WINDOW as usize];
    for stream in [a, b, c] {
        write(&mut pair.caller, stream, &much);
    }
    let count = Arc::<Count>::default();
    let waker = Waker::from(Arc::clone(&count));
    assert!(pair.caller.poll_write(d, &Context::from_waker(&waker), &[IoSlice::new(b"d")]).is_pending());
    // c waits before d, and is not polled again.
    pair.step(usize::MAX);
    assert_eq!(count.0.load(Relaxed), 1);
    assert_eq!(write(&mut pair.caller, d, b"d"), 1);
}

#[test]
fn what_crosses_the_word_that_no_more_are_to_begin_is_served() {
    let mut pair = Pair::new();
    let served = pair.open();
    pair.server.leave();
    let late = pair.caller.begin(MeshProtocol::Http1);
    pair.step(usize::MAX);
    assert_eq!(pair.server.opened(), [(late, MeshProtocol::Http1)]);
    assert!(!pair.caller.has_room());
    for stream in [served, late] {
        assert_eq!(write(&mut pair.server, stream, b"still"), 5);
        pair.step(usize::MAX);
        assert_eq!(all(&mut pair.caller, stream), b"still");
        pair.caller.forget(stream, None);
        pair.server.forget(stream, None);
    }
    // Whoever opens streams ends the link; whoever serves waits for that, or closes.
    pair.step(usize::MAX);
    assert!(pair.caller.is_over() && !pair.server.is_over());
    pair.server.close();
    assert!(pair.server.is_over());
}

#[test]
fn what_was_not_looked_at_may_go_elsewhere() {
    let mut pair = Pair::new();
    pair.server.close();
    let refused = pair.caller.begin(MeshProtocol::Http1);
    pair.step(usize::MAX);
    assert!(pair.server.opened().is_empty());
    let Poll::Ready(Err(e)) = read(&mut pair.caller, refused) else { panic!("it was not served") };
    assert_eq!(crate::link::refused(&e), Some(crate::link::Refused::Unseen));
    // What was on its way for it is read over, and no more than it might have been.
    assert_eq!(pair.server.over, u64::from(WINDOW));
}

#[test]
fn what_had_ended_when_the_link_does_is_whole() {
    let mut pair = Pair::new();
    let (whole, cut) = (pair.open(), pair.open());
    for stream in [whole, cut] {
        pair.caller.finish(stream).expect("it is open");
        write(&mut pair.server, stream, b"answer");
    }
    pair.server.finish(whole).expect("it is open");
    pair.step(usize::MAX);
    pair.caller.end();
    assert_eq!((all(&mut pair.caller, whole), all(&mut pair.caller, cut)), (b"answer".to_vec(), b"answer".to_vec()));
    assert!(matches!(read(&mut pair.caller, whole), Poll::Ready(Ok(end)) if end.is_empty()));
    assert!(matches!(read(&mut pair.caller, cut), Poll::Ready(Err(_))));
}

#[test]
fn a_peer_that_was_not_heard_since_a_stream_began_may_not_know_of_it() {
    let mut pair = Pair::new();
    let old = pair.open();
    pair.caller.hear();
    assert!(!pair.caller.is_unsure());
    let new = pair.caller.begin(MeshProtocol::Tcp);
    assert!(pair.caller.is_unsure());
    pair.caller.give_up_unsure();
    assert!(matches!(read(&mut pair.caller, new), Poll::Ready(Err(_))));
    assert!(read(&mut pair.caller, old).is_pending());
    // The peer is told, in case that it was only slow.
    pair.step(usize::MAX);
    assert!(matches!(read(&mut pair.server, new), Poll::Ready(Err(_))));
}

#[test]
fn who_takes_little_at_a_time_does_not_have_everything_kept() {
    let mut server = Session::new(End::Serves);
    let ping = Header { kind: Kind::Ping, stream: 0, length: 0 }.octets();
    for _ in 0..2 * LOW / HEADER {
        server.receive(&ping).expect("it may ask");
    }
    for _ in 0..500_000 {
        server.receive(&ping).expect("it may ask");
        server.sent(HEADER);
    }
    assert!(server.out.octets().len() < 4 * FULL, "{} octets are kept", server.out.octets().len());
}

#[test]
fn who_asks_and_never_listens_is_not_answered_without_end() {
    let mut server = Session::new(End::Serves);
    let ping = Header { kind: Kind::Ping, stream: 0, length: 0 }.octets();
    let mut asked = 0;
    while !server.is_choked() {
        server.receive(&ping).expect("it may ask");
        asked += 1;
    }
    assert!(asked > 1_000);
    let before = server.outgoing().len();
    server.sent(before);
    assert!(!server.is_choked());
}

#[test]
fn what_the_other_end_may_not_do_ends_the_link() {
    let frame = |kind, stream, payload: &[u8]| {
        let mut all = Header { kind, stream, length: payload.len() }.octets().to_vec();
        all.extend_from_slice(payload);
        all
    };
    let served = |frames: &[Vec<u8>]| {
        let mut server = Session::new(End::Serves);
        server.receive(&frames.concat())
    };
    let open = |n| frame(Kind::Open, n, &[3]);
    assert_eq!(served(&[open(1), open(1)]), Err(Violation::Stream(Kind::Open, 1)));
    assert_eq!(served(&[open(5), open(4)]), Err(Violation::Stream(Kind::Open, 4)));
    assert_eq!(served(&[open(1), frame(Kind::Data, 2, b"x")]), Err(Violation::Stream(Kind::Data, 2)));
    assert_eq!(served(&[frame(Kind::Open, 1, &[9])]), Err(Violation::UnknownProtocol(9)));
    assert_eq!(served(&[open(1), frame(Kind::Fin, 1, b""), frame(Kind::Data, 1, b"x")]), Err(Violation::AfterEnd(1)));
    assert_eq!(served(&[open(1), frame(Kind::Fin, 1, b""), frame(Kind::Fin, 1, b"")]), Err(Violation::AfterEnd(1)));
    assert_eq!(served(&[open(1), frame(Kind::Credit, 1, &[0; 4])]), Err(Violation::Credit(1)));
    assert_eq!(served(&[open(1), frame(Kind::Credit, 1, &[0xff; 4])]), Err(Violation::Credit(1)));
    assert_eq!(served(&[frame(Kind::GoAway, 0, b"")]), Err(Violation::Stream(Kind::GoAway, 0)));
    let full = frame(Kind::Data, 1, &vec![0; MAX_PAYLOAD]);
    assert_eq!(served(&[open(1), full.clone(), full]), Err(Violation::Credit(1)));
    let mut caller = Session::new(End::Opens);
    assert_eq!(caller.receive(&open(1)), Err(Violation::Stream(Kind::Open, 1)));
    assert_eq!(Session::new(End::Opens).receive(&[0, 0, 0, 99, 0, 0, 0, 1]), Err(Violation::UnknownKind(99)));
}

/// What a test does at one end.
#[derive(Clone, Debug)]
enum Do {
    Open,
    Write { caller: bool, stream: usize, n: usize },
    Read { caller: bool, stream: usize, most: usize },
    Finish { caller: bool, stream: usize },
    Carry { caller: bool, n: usize },
}

fn deed() -> impl Strategy<Value = Do> {
    let (caller, stream) = (any::<bool>(), 0..6_usize);
    prop_oneof![
        1 => Just(Do::Open),
        6 => (caller, stream.clone(), 1..200_000_usize).prop_map(|(caller, stream, n)| Do::Write { caller, stream, n }),
        6 => (any::<bool>(), stream.clone(), 1..200_000_usize).prop_map(|(caller, stream, most)| Do::Read { caller, stream, most }),
        1 => (any::<bool>(), stream).prop_map(|(caller, stream)| Do::Finish { caller, stream }),
        8 => (any::<bool>(), 1..70_000_usize).prop_map(|(caller, n)| Do::Carry { caller, n }),
    ]
}

/// One direction of one stream.
#[derive(Default)]
struct Way {
    written: usize,
    read: usize,
    finished: bool,
    ended: bool,
}

proptest! {
    /// Whatever the order in which two ends write, read and send: each byte arrives once, in order, and the end after the last.
    #[test]
    fn bytes_arrive_once_and_in_order(deeds in prop::collection::vec(deed(), 1..200)) {
        let mut pair = Pair::new();
        let mut ways: Vec<[Way; 2]> = Vec::new();
        let octet = |stream: usize, forth: bool, at: usize| ((at * 31 + stream * 7) as u8) ^ u8::from(forth);
        let finish: Vec<Do> = (0..6).flat_map(|stream| [true, false].map(|caller| Do::Finish { caller, stream })).collect();
        let rest = (0..60).flat_map(|_| {
            let carry = [true, false].map(|caller| Do::Carry { caller, n: usize::MAX });
            let reads = (0..6).flat_map(|stream| [true, false].map(|caller| Do::Read { caller, stream, most: 1 << 20 }));
            carry.into_iter().chain(reads)
        });
        for deed in deeds.into_iter().chain(finish).chain(rest) {
            match deed {
                Do::Open if ways.len() < 6 => {
                    let stream = pair.caller.begin(MeshProtocol::Tcp);
                    prop_assert_eq!(stream as usize, ways.len() + 1);
                    pair.step(usize::MAX);
                    ways.push(Default::default());
                }
                Do::Write { caller, stream, n } if stream < ways.len() => {
                    let way = &mut ways[stream][usize::from(caller)];
                    if way.finished { continue }
                    let bytes: Vec<u8> = (way.written..way.written + n).map(|at| octet(stream, caller, at)).collect();
                    let (a, b) = bytes.split_at(n / 3);
                    let end = if caller { &mut pair.caller } else { &mut pair.server };
                    // As a program's bytes are read into place, or as they are written.
                    let wrote = if n % 2 == 1 {
                        fill(end, stream as u32 + 1, &bytes)
                    } else {
                        end.poll_write(stream as u32 + 1, &cx(), &[IoSlice::new(a), IoSlice::new(b)]).map(|n| n.expect("it is open"))
                    };
                    if let Poll::Ready(n) = wrote {
                        way.written += n;
                    }
                }
                Do::Read { caller, stream, most } if stream < ways.len() => {
                    let end = if caller { &mut pair.caller } else { &mut pair.server };
                    let way = &mut ways[stream][usize::from(!caller)];
                    let mut space = vec![0; most];
                    if let Poll::Ready(n) = end.poll_read(stream as u32 + 1, &cx(), &mut space) {
                        let n = n.expect("it is open");
                        for (i, got) in space[..n].iter().enumerate() {
                            prop_assert_eq!(*got, octet(stream, !caller, way.read + i));
                        }
                        way.read += n;
                        way.ended |= n == 0;
                        prop_assert!(n > 0 || way.finished && way.read == way.written);
                    }
                }
                Do::Finish { caller, stream } if stream < ways.len() => {
                    ways[stream][usize::from(caller)].finished = true;
                    let end = if caller { &mut pair.caller } else { &mut pair.server };
                    end.finish(stream as u32 + 1).expect("it is open");
                }
                Do::Carry { caller, n } => {
                    let (from, to) = if caller { (&mut pair.caller, &mut pair.server) } else { (&mut pair.server, &mut pair.caller) };
                    let some = from.outgoing()[..from.outgoing().len().min(n)].to_vec();
                    from.sent(some.len());
                    prop_assert_eq!(to.receive(&some), Ok(()));
                }
                _ => {}
            }
        }
        for way in ways.iter().flatten() {
            prop_assert_eq!((way.read, way.ended), (way.written, true));
        }
    }

    /// No bytes whatever make it panic, or hold more than its windows.
    #[test]
    fn garbage_is_refused_or_read_over(bytes in prop::collection::vec(prop_oneof![Just(0_u8), Just(1), Just(2), Just(3), any::<u8>()], 0..4_000)) {
        let mut server = Session::new(End::Serves);
        let _ = server.receive(&bytes);
        for half in server.streams.values() {
            prop_assert!(half.came.octets() <= WINDOW as usize && half.came.octets() + half.window.allowed() as usize <= WINDOW as usize);
        }
    }
}
