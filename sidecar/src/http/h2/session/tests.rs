use std::collections::BTreeMap;
use std::task::{Poll, Waker};

use bytes::Bytes;
use proptest::prelude::*;

use super::*;
use crate::http::Chunk;
use crate::http::fields::Fields;
use crate::http::h2::frame::MAX_PAYLOAD;
use crate::http::h2::section;
use crate::http::head::ResponseHead;
use crate::multiplex::{FULL, QUANTUM};

fn cx() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// A request's head, by its path and how many fields of ten octets it has.
fn head(path: &str, fields: usize) -> RequestHead {
    let mut head = RequestHead {
        method: Bytes::from_static(b"POST"),
        target: Bytes::copy_from_slice(path.as_bytes()),
        authority: Some(Bytes::from_static(b"api:80")),
        scheme: Some(Bytes::from_static(b"http")),
        protocol: None,
        http10: false,
        fields: Fields::default(),
    };
    for n in 0..fields {
        head.fields.push(format!("x-{n:03}").as_bytes(), b"0123456789");
    }
    head
}

/// A client and a server, and what the server was asked.
struct Two {
    client: Session,
    server: Session,
    asked: BTreeMap<u32, RequestHead>,
    /// How many octets are given to the other end at once, the next first.
    pieces: Vec<usize>,
}

impl Two {
    fn new() -> Self {
        Self::of(With::Program)
    }

    fn of(with: With) -> Self {
        let (client, server) = (Session::new(End::Asks, with), Session::new(End::Serves, with));
        let mut two = Self { client, server, asked: BTreeMap::new(), pieces: vec![] };
        two.talk();
        assert!(two.client.is_greeted() && two.server.is_greeted());
        two
    }

    /// Gives each other what they say, until they have nothing more to say.
    fn talk(&mut self) {
        while !(self.client.outgoing().is_empty() && self.server.outgoing().is_empty()) {
            pass(&mut self.client, &mut self.server, &mut self.pieces).expect("a good client");
            for (stream, head) in self.server.fresh() {
                let Ok(head) = head else { continue };
                self.server.holds(stream);
                self.asked.insert(stream, head);
            }
            pass(&mut self.server, &mut self.client, &mut self.pieces).expect("a good server");
        }
    }

    fn ask(&mut self, path: &str, ends: bool) -> u32 {
        let stream = self.client.begin(&head(path, 2), ends).expect("a whole head");
        self.client.holds(stream);
        self.talk();
        stream
    }
}

fn pass(from: &mut Session, to: &mut Session, pieces: &mut Vec<usize>) -> Result<(), Violation> {
    let said = from.outgoing().to_vec();
    from.sent(said.len());
    let mut rest = &said[..];
    while !rest.is_empty() {
        let n = pieces.pop().unwrap_or(rest.len()).min(rest.len());
        to.receive(&rest[..n])?;
        rest = &rest[n..];
    }
    Ok(())
}

/// Sends as much as goes; how much that was.
fn send(session: &mut Session, stream: u32, data: &[u8]) -> usize {
    let mut left = Bytes::copy_from_slice(data);
    while !left.is_empty() && session.poll_send(stream, &cx(), &mut left).is_ready() {}
    data.len() - left.len()
}

/// Reads what is there; whether the end was, and what trailers there were.
fn read(session: &mut Session, stream: u32, to: &mut Vec<u8>) -> (bool, Option<Box<Fields>>) {
    loop {
        match session.poll_piece(stream, &cx()) {
            Poll::Ready(Ok(Some(Chunk::Data(data)))) => to.extend_from_slice(&data),
            Poll::Ready(Ok(Some(Chunk::Trailers(fields)))) => return (true, Some(fields)),
            Poll::Ready(Ok(None)) => return (true, None),
            Poll::Ready(Err(e)) => panic!("stream {stream} broke: {e}"),
            Poll::Pending => return (false, None),
        }
    }
}

/// What a peer that is made by hand says, as frames.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    [&Header { length: payload.len(), kind, flags, stream }.octets()[..], payload].concat()
}

/// A request without a body, as a client writes it.
fn get(stream: u32) -> Vec<u8> {
    let mut section = Vec::new();
    section::put_request(&mut section, &head("/", 0), b"api:80");
    frame(frame::HEADERS, frame::END_STREAM | frame::END_HEADERS, stream, &section)
}

/// A server that has been greeted.
fn server() -> Session {
    let mut server = Session::new(End::Serves, With::Program);
    server.receive(&[PREFACE, &frame(frame::SETTINGS, 0, 0, &[])].concat()).expect("a greeting");
    let n = server.outgoing().len();
    server.sent(n);
    server
}

/// The frames that are to go out: kind, flags, stream, payload.
fn said(session: &mut Session) -> Vec<(Header, Vec<u8>)> {
    let all = session.outgoing().to_vec();
    session.sent(all.len());
    let (mut rest, mut frames) = (&all[..], vec![]);
    while let Some((header, after)) = rest.split_first_chunk() {
        let header = Header::read(header);
        let (payload, after) = after.split_at(header.length);
        frames.push((header, payload.to_vec()));
        rest = after;
    }
    frames
}

/// The code of the one frame that ends a stream.
fn reset(session: &mut Session) -> Option<Code> {
    let all = said(session);
    let (_, payload) = all.iter().find(|(header, _)| header.kind == frame::RST_STREAM)?;
    frame::number(payload, "").ok().map(Code)
}

#[test]
fn a_small_exchange_is_one_frame_for_its_head_and_one_for_its_body() {
    let mut two = Two::new();
    let stream = two.client.begin(&head("/a", 2), false).expect("a whole head");
    two.client.holds(stream);
    assert_eq!(send(&mut two.client, stream, b"question"), 8);
    two.client.finish(stream).expect("it is open");
    two.talk();
    assert_eq!(&*two.asked[&stream].target, b"/a");
    let mut question = Vec::new();
    assert!(read(&mut two.server, stream, &mut question).0 && question == b"question");
    two.server.respond(stream, &ResponseHead::new(200), false).expect("it is open");
    assert_eq!(send(&mut two.server, stream, b"answer"), 6);
    two.server.finish(stream).expect("it is open");
    let octets = two.server.outgoing().to_vec();
    let kinds: Vec<_> = said(&mut two.server).iter().map(|(h, _)| (h.kind, h.flags, h.length)).collect();
    assert_eq!(kinds, [(frame::HEADERS, frame::END_HEADERS, 2), (frame::DATA, frame::END_STREAM, 6)]);
    two.client.receive(&octets).expect("a good server");
    let Poll::Ready(Ok(head)) = two.client.poll_head(stream, &cx()) else { panic!("there is an answer") };
    let mut answer = Vec::new();
    assert!(head.status == 200 && read(&mut two.client, stream, &mut answer).0 && answer == b"answer");
    assert_eq!((two.client.open(), two.server.open()), (0, 0));
    two.client.lets_go(stream);
    two.server.lets_go(stream);
    assert!(two.client.outgoing().is_empty() && two.server.outgoing().is_empty(), "all was said");
    assert!(two.client.is_idle() && two.server.is_idle());
}

#[test]
fn a_reader_that_does_not_read_holds_up_its_own_stream() {
    let mut two = Two::new();
    let (slow, quick) = (two.ask("/slow", false), two.ask("/quick", false));
    let much = vec![7; 2 * STREAM_WINDOW as usize];
    let mut sent = 0;
    loop {
        let n = send(&mut two.client, slow, &much[sent..]);
        two.talk();
        sent += n;
        if n == 0 {
            break;
        }
    }
    assert_eq!(sent, STREAM_WINDOW as usize);
    let mut got = Vec::new();
    for _ in 0..40 {
        let n = send(&mut two.client, quick, &much[..100_000]);
        two.talk();
        read(&mut two.server, quick, &mut got);
        two.talk();
        assert_eq!(n, 100_000.min(n.max(1)));
    }
    assert!(got.len() > 2 * STREAM_WINDOW as usize, "{}", got.len());
    // And goes on when it is read.
    read(&mut two.server, slow, &mut Vec::new());
    two.talk();
    assert!(send(&mut two.client, slow, &much[sent..]) > 0);
    // What nobody reads of one that is dropped comes back to the connection.
    two.server.lets_go(slow);
    two.talk();
    assert_eq!(two.server.window.whole(), CONNECTION_WINDOW);
}

/// Sends on a stream as long as anything goes; how much that was.
fn fill(two: &mut Two, stream: u32) -> usize {
    let (piece, mut all) = (vec![7; 64 * 1024], 0);
    loop {
        let n = send(&mut two.client, stream, &piece);
        two.talk();
        all += n;
        if n == 0 {
            return all;
        }
    }
}

#[test]
fn between_sidecars_streams_that_nobody_reads_hold_up_no_other() {
    let mut two = Two::of(With::Sidecar);
    let streams: Vec<u32> = (0..USUAL_STREAMS).map(|n| two.ask(&format!("/{n}"), false)).collect();
    let (quick, slow) = streams.split_last().expect("there are some");
    // The first of them were read for a while, and were granted more.
    for stream in &slow[..40] {
        for _ in 0..50 {
            fill(&mut two, *stream);
            read(&mut two.server, *stream, &mut Vec::new());
            two.talk();
        }
    }
    assert!(two.server.extra.0 < STREAM_WINDOW, "{}", two.server.extra.0);
    assert!(slow.iter().all(|stream| fill(&mut two, *stream) >= STREAM_WINDOW as usize));
    let mut got = Vec::new();
    for _ in 0..100 {
        fill(&mut two, *quick);
        read(&mut two.server, *quick, &mut got);
        two.talk();
    }
    assert_eq!(got.len(), 100 * STREAM_WINDOW as usize);
    // What a stream had beyond its beginning is another's when it is over.
    for stream in &streams {
        two.server.lets_go(*stream);
    }
    two.talk();
    assert_eq!(two.server.extra.0, EXTRA);
    assert_eq!(two.server.window.whole(), USUAL_STREAMS as u32 * STREAM_WINDOW + EXTRA + CONNECTION_WINDOW);
}

#[test]
fn what_the_other_end_may_not_have_heard_of_is_given_up_alone() {
    let mut two = Two::of(With::Sidecar);
    let heard = two.ask("/heard", true);
    two.client.hear();
    assert!(!two.client.is_unsure());
    let unheard = two.client.begin(&head("/unheard", 0), true).expect("a whole head");
    two.client.holds(unheard);
    assert!(two.client.is_unsure());
    two.client.give_up_unsure();
    assert!(two.client.is_broken(unheard) && !two.client.is_broken(heard));
    // Nobody serves it, should somebody hear of it after all.
    two.talk();
    assert!(!two.asked.contains_key(&unheard) && !two.server.is_broken(heard));
}

#[test]
fn writers_take_turns() {
    let mut two = Two::new();
    let streams: Vec<u32> = (0..8).map(|n| two.ask(&format!("/{n}"), true)).collect();
    let much = vec![1; 200_000];
    let mut left: BTreeMap<u32, usize> = streams.iter().map(|stream| (*stream, much.len())).collect();
    for stream in &streams {
        two.server.respond(*stream, &ResponseHead::new(200), false).expect("it is open");
    }
    let mut rounds = 0;
    while left.values().any(|left| *left > 0) {
        // As they are woken: whoever was first last time is last.
        for at in 0..streams.len() {
            let stream = streams[(at + rounds) % streams.len()];
            let left = left.get_mut(&stream).expect("one of them");
            *left -= send(&mut two.server, stream, &much[..*left]);
        }
        assert!(two.server.out.waiting() <= FULL + QUANTUM + 8 * 1024, "{}", two.server.out.waiting());
        // The socket takes a little.
        let n = two.server.outgoing().len().min(50_000);
        let octets = two.server.outgoing()[..n].to_vec();
        two.server.sent(n);
        two.client.receive(&octets).expect("a good server");
        for stream in &streams {
            read(&mut two.client, *stream, &mut Vec::new());
        }
        pass(&mut two.client, &mut two.server, &mut vec![]).expect("a good client");
        rounds += 1;
        assert!(rounds < 200, "{left:?}");
        if rounds == 20 {
            // The first had all the room to itself for a moment.
            let others = || streams[1..].iter().map(|stream| left[stream]);
            let (least, most) = (others().min(), others().max());
            assert!(most.zip(least).is_some_and(|(most, least)| most - least <= 3 * QUANTUM), "{left:?}");
        }
    }
}

#[test]
fn a_turn_lasts_until_its_writer_has_run() {
    let mut two = Two::new();
    let streams = [two.ask("/a", false), two.ask("/b", false), two.ask("/c", false)];
    let much = vec![1; 200_000];
    for stream in streams {
        send(&mut two.client, stream, &much);
    }
    two.client.credit = 1 << 20;
    let before = two.client.streams[&streams[0]].credit;
    // All goes, at two times, and credit comes, before anybody who was woken runs.
    let waiting = two.client.outgoing().len();
    two.client.sent(waiting - 36);
    two.client.sent(36);
    for _ in 0..3 {
        two.client.receive(&frame(frame::WINDOW_UPDATE, 0, 0, &1_000u32.to_be_bytes())).expect("a good server");
    }
    let sent = streams.map(|stream| send(&mut two.client, stream, &much));
    assert!(sent.iter().all(|sent| *sent >= QUANTUM), "{sent:?}");
    assert!(before - two.client.streams[&streams[0]].credit < FULL as i64 / 2, "one took everything");
    // Whoever has a turn and does not use it holds up nobody for ever.
    let waiting = two.client.outgoing().len();
    two.client.sent(waiting);
    assert!(!two.client.turns.is_empty());
    for _ in 0..8 {
        two.client.register(&cx());
    }
    assert!(two.client.turns.is_empty());
    assert!(send(&mut two.client, streams[2], &much) >= QUANTUM);
}

#[test]
fn credit_of_the_connection_goes_round() {
    let mut two = Two::new();
    let streams = [two.ask("/a", false), two.ask("/b", false), two.ask("/c", false)];
    // What a server grants that says nothing of its windows.
    let rest = two.client.credit - 40_000;
    two.client.credit = 40_000;
    let mut sent = [0; 3];
    let much = vec![1; 60_000];
    for round in 0..60 {
        for at in 0..3 {
            let at = (at + round) % 3;
            sent[at] += send(&mut two.client, streams[at], &much[..60_000 - sent[at]]);
        }
        two.talk();
        // A little at a time, less than those who wait would take.
        two.client.receive(&frame(frame::WINDOW_UPDATE, 0, 0, &5_000u32.to_be_bytes())).expect("a good server");
        if round == 10 {
            // The first had all of it to itself.
            assert_eq!(sent, [55_000, 20_000, 15_000]);
        }
    }
    assert_eq!(sent, [60_000; 3]);
    assert!(rest > 0 && two.client.turns.is_empty());
}

#[test]
fn what_a_peer_may_not_do_ends_the_connection() {
    let settings =
        |name: u16, value: u32| frame(frame::SETTINGS, 0, 0, &[&name.to_be_bytes()[..], &value.to_be_bytes()].concat());
    let data = |flags, payload: &[u8]| [get(1), frame(frame::DATA, flags, 3, payload)].concat();
    let cases: [(&str, Vec<u8>, Code); 22] = [
        ("a frame that is too long", frame(frame::PING, 0, 0, &vec![0; MAX_PAYLOAD + 1]), Code::FRAME_SIZE_ERROR),
        ("data without a stream", frame(frame::DATA, 0, 0, b"x"), Code::PROTOCOL_ERROR),
        ("data of a stream that has not begun", data(0, b"x"), Code::PROTOCOL_ERROR),
        (
            "padding longer than its frame",
            [post(1), frame(frame::DATA, frame::PADDED, 1, &[9, 1])].concat(),
            Code::PROTOCOL_ERROR,
        ),
        ("padding of no length", [post(1), frame(frame::DATA, frame::PADDED, 1, &[])].concat(), Code::FRAME_SIZE_ERROR),
        ("a stream with a server's number", get(2), Code::PROTOCOL_ERROR),
        ("settings of a stream", frame(frame::SETTINGS, 0, 1, &[]), Code::PROTOCOL_ERROR),
        ("half a setting", frame(frame::SETTINGS, 0, 0, &[0; 5]), Code::FRAME_SIZE_ERROR),
        ("settings with an answer", frame(frame::SETTINGS, frame::ACK, 0, &[0; 6]), Code::FRAME_SIZE_ERROR),
        ("a window that is too large", settings(frame::INITIAL_WINDOW_SIZE, 1 << 31), Code::FLOW_CONTROL_ERROR),
        ("frames that are too small", settings(frame::MAX_FRAME_SIZE, 1), Code::PROTOCOL_ERROR),
        ("push, perhaps", settings(frame::ENABLE_PUSH, 2), Code::PROTOCOL_ERROR),
        ("a ping of a stream", frame(frame::PING, 0, 1, &[0; 8]), Code::PROTOCOL_ERROR),
        ("a short ping", frame(frame::PING, 0, 0, &[0; 7]), Code::FRAME_SIZE_ERROR),
        ("a promise", frame(frame::PUSH_PROMISE, 0, 1, &[0; 4]), Code::PROTOCOL_ERROR),
        ("the end of a stream that has not begun", frame(frame::RST_STREAM, 0, 1, &[0; 4]), Code::PROTOCOL_ERROR),
        ("no credit", frame(frame::WINDOW_UPDATE, 0, 0, &[0; 4]), Code::PROTOCOL_ERROR),
        ("too much credit", frame(frame::WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]), Code::FLOW_CONTROL_ERROR),
        ("a continuation of nothing", frame(frame::CONTINUATION, 0, 1, &[]), Code::PROTOCOL_ERROR),
        (
            "something within a section",
            [frame(frame::HEADERS, 0, 1, &[0x82]), frame(frame::PING, 0, 0, &[0; 8])].concat(),
            Code::PROTOCOL_ERROR,
        ),
        ("a section of garbage", frame(frame::HEADERS, frame::END_HEADERS, 1, &[0xff; 20]), Code::COMPRESSION_ERROR),
        (
            "a section without end",
            [&frame(frame::HEADERS, 0, 1, &[])[..], &frame(frame::CONTINUATION, 0, 1, &[]).repeat(MAX_FRAGMENTS)].concat(),
            Code::ENHANCE_YOUR_CALM,
        ),
    ];
    for (what, octets, code) in cases {
        let mut whole = server();
        let violation = whole.receive(&octets).expect_err(what);
        assert_eq!(violation.code, code, "{what}: {violation}");
        let mut split = server();
        let got = octets.iter().try_for_each(|octet| split.receive(&[*octet]));
        assert_eq!(got, Err(violation), "{what}, octet by octet");
        whole.accuse(violation);
        let all = said(&mut whole);
        let (_, farewell) = all.last().expect("a word about it");
        assert_eq!(farewell[4..], code.0.to_be_bytes(), "{what}");
    }
    for first in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[PREFACE, &frame(frame::PING, 0, 0, &[0; 8])].concat()] {
        assert!(Session::new(End::Serves, With::Program).receive(first).is_err());
    }
}

/// A request with a body that is to come.
fn post(stream: u32) -> Vec<u8> {
    let mut octets = get(stream);
    octets[4] = frame::END_HEADERS;
    octets
}

#[test]
fn what_is_wrong_with_one_stream_ends_that_one() {
    let announced = |length: &str, flags: u8| {
        let mut section = Vec::new();
        let mut head = head("/", 0);
        head.fields.push(b"content-length", length.as_bytes());
        section::put_request(&mut section, &head, b"api:80");
        frame(frame::HEADERS, flags | frame::END_HEADERS, 1, &section)
    };
    let end = |payload: &[u8]| frame(frame::DATA, frame::END_STREAM, 1, payload);
    for (what, octets, code) in [
        ("less than was announced", [announced("3", 0), end(b"ab")].concat(), Code::PROTOCOL_ERROR),
        ("more than was announced", [announced("3", 0), end(b"abcd")].concat(), Code::PROTOCOL_ERROR),
        ("nothing of what was announced", announced("3", frame::END_STREAM), Code::PROTOCOL_ERROR),
        ("data after the end", [get(1), end(b"x")].concat(), Code::STREAM_CLOSED),
        ("fields after the end", [get(1), get(1)].concat(), Code::STREAM_CLOSED),
        ("trailers that are none", [post(1), post(1)].concat(), Code::PROTOCOL_ERROR),
        ("no credit", [post(1), frame(frame::WINDOW_UPDATE, 0, 1, &[0; 4])].concat(), Code::PROTOCOL_ERROR),
        (
            "too much credit",
            [post(1), frame(frame::WINDOW_UPDATE, 0, 1, &[0x7f, 0xff, 0xff, 0xff])].concat(),
            Code::FLOW_CONTROL_ERROR,
        ),
        ("a malformed head", frame(frame::HEADERS, frame::END_HEADERS | frame::END_STREAM, 1, &[0x82]), Code::PROTOCOL_ERROR),
    ] {
        let mut server = server();
        server.receive(&octets).expect(what);
        assert_eq!(reset(&mut server), Some(code), "{what}");
        assert_eq!(server.open(), 0, "{what}");
        // Others go on.
        server.fresh();
        server.receive(&get(3)).expect(what);
        assert!(matches!(server.fresh()[..], [(3, Ok(_))]), "{what}");
    }
    let mut server = server();
    server.receive(&[announced("3", 0), end(b"abc")].concat()).expect("as announced");
    assert_eq!((reset(&mut server), server.fresh().len()), (None, 1));
}

#[test]
fn a_head_that_is_too_large_is_answered() {
    let mut two = Two::new();
    let large = head("/", 2_000);
    let stream = two.client.begin(&large, true).expect("a whole head");
    two.client.holds(stream);
    two.talk();
    let Poll::Ready(Ok(answer)) = two.client.poll_head(stream, &cx()) else { panic!("there is an answer") };
    assert_eq!((answer.status, two.asked.len()), (431, 0));
    // One of several frames that is not.
    let stream = two.client.begin(&head("/", 1_200), true).expect("a whole head");
    two.client.holds(stream);
    assert!(two.client.outgoing().len() > MAX_PAYLOAD);
    two.talk();
    assert_eq!(two.asked[&stream].fields.len(), 1_200);
}

#[test]
fn streams_that_nobody_waits_for_are_not_served() {
    let mut calm = server();
    let hasty = |n: u32| [get(n), frame(frame::RST_STREAM, 0, n, &8u32.to_be_bytes())].concat();
    let mut ended = Ok(());
    for n in 0..=MAX_FAULTS as u32 {
        assert_eq!(ended, Ok(()));
        ended = calm.receive(&hasty(2 * n + 1));
        assert!(calm.fresh().is_empty() && calm.is_idle());
    }
    assert_eq!(ended.map_err(|v| v.code), Err(Code::ENHANCE_YOUR_CALM));
    let mut full = server();
    let many: Vec<u8> = (0..MAX_CONCURRENT as u32 + 5).flat_map(|n| get(2 * n + 1)).collect();
    full.receive(&many).expect("it could not know");
    assert_eq!(full.fresh().len(), MAX_CONCURRENT);
    let refused = said(&mut full).iter().filter(|(h, p)| h.kind == frame::RST_STREAM && p[3] == 7).count();
    assert_eq!(refused, 5);
}

/// What a peer says at a time.
type Says = fn(u32) -> Vec<u8>;

#[test]
fn work_in_vain_has_an_end() {
    let malformed: Says = |n| frame(frame::HEADERS, frame::END_HEADERS, n, &[]);
    let crooked: Says = |n| [post(n), frame(frame::WINDOW_UPDATE, 0, n, &[0; 4])].concat();
    let settings: Says = |_| frame(frame::SETTINGS, 0, 0, &[]);
    for (what, octets) in [("malformed", malformed), ("crooked", crooked), ("settings", settings)] {
        let mut server = server();
        let calm = |server: &mut Session, n: u32| {
            let ended = server.receive(&octets(2 * n + 1));
            server.fresh();
            ended.is_ok()
        };
        let times = (0..5 * MAX_FAULTS as u32).take_while(|n| calm(&mut server, *n)).count();
        assert!((MAX_FAULTS as usize..MAX_FAULTS as usize + 2).contains(&times), "{what}: {times}");
    }
}

#[test]
fn a_server_that_goes_serves_what_crosses_its_word() {
    let mut two = Two::new();
    let before = two.ask("/before", true);
    two.server.leave();
    let crossing = two.client.begin(&head("/crossing", 0), true).expect("a whole head");
    two.client.holds(crossing);
    two.talk();
    assert!(two.client.is_closed() && two.asked.contains_key(&crossing));
    for stream in [before, crossing] {
        assert!(!two.server.is_over());
        two.server.respond(stream, &ResponseHead::new(204), true).expect("it is open");
        two.server.lets_go(stream);
    }
    assert!(two.server.is_over());
    two.talk();
    assert!(two.client.poll_head(crossing, &cx()).is_ready());
    assert!(matches!(two.client.poll_room(&head("/", 0), &cx()), Poll::Ready(Err(Broken::Unseen))));
}

#[test]
fn what_a_server_has_not_looked_at_says_so() {
    let mut client = Session::new(End::Asks, With::Program);
    client.receive(&frame(frame::SETTINGS, 0, 0, &[])).expect("a greeting");
    let streams: Vec<u32> = (0..3)
        .map(|_| {
            let stream = client.begin(&head("/", 0), true).expect("a whole head");
            client.holds(stream);
            stream
        })
        .collect();
    client.receive(&frame(frame::GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0])).expect("a good server");
    let broken = |client: &mut Session, stream| match client.poll_head(stream, &cx()) {
        Poll::Ready(Err(broken)) => Some(broken),
        _ => None,
    };
    assert_eq!(broken(&mut client, streams[0]), None);
    assert_eq!(broken(&mut client, streams[1]), Some(Broken::Unseen));
    client.receive(&frame(frame::RST_STREAM, 0, streams[0], &7u32.to_be_bytes())).expect("a good server");
    assert_eq!(broken(&mut client, streams[0]), Some(Broken::Reset(Code::REFUSED_STREAM)));
}

#[test]
fn an_answer_that_is_whole_stays_so_when_its_stream_is_reset() {
    let mut two = Two::new();
    let stream = two.ask("/", false);
    two.server.respond(stream, &ResponseHead::new(200), false).expect("it is open");
    send(&mut two.server, stream, b"enough");
    two.server.finish(stream).expect("it is open");
    two.server.lets_go(stream);
    two.talk();
    assert!(matches!(two.client.may_say(stream), Err(Broken::Reset(Code::NO_ERROR))));
    let mut answer = Vec::new();
    assert!(two.client.poll_head(stream, &cx()).is_ready());
    assert!(read(&mut two.client, stream, &mut answer).0 && answer == b"enough");
}

#[test]
fn the_answer_to_head_announces_what_does_not_come() {
    let mut client = Session::new(End::Asks, With::Program);
    client.receive(&frame(frame::SETTINGS, 0, 0, &[])).expect("a greeting");
    for (method, status, is_good) in [("HEAD", 200, true), ("GET", 304, true), ("GET", 200, false)] {
        let asked = RequestHead { method: Bytes::from_static(method.as_bytes()), ..head("/", 0) };
        let stream = client.begin(&asked, true).expect("a whole head");
        client.holds(stream);
        let mut answer = ResponseHead::new(status);
        answer.fields.push(b"content-length", b"5");
        let mut section = Vec::new();
        section::put_response(&mut section, &answer);
        client.receive(&frame(frame::HEADERS, frame::END_HEADERS, stream, &section)).expect("a good server");
        client.receive(&frame(frame::DATA, frame::END_STREAM, stream, &[])).expect("a good server");
        let ended = client.poll_head(stream, &cx()).is_ready() && client.may_say(stream).is_ok();
        assert_eq!(ended, is_good, "{method} {status}");
        // With the head itself.
        let stream = client.begin(&asked, true).expect("a whole head");
        client.holds(stream);
        client.receive(&frame(frame::HEADERS, frame::END_STREAM | frame::END_HEADERS, stream, &section)).expect("a good server");
        let ended = matches!(client.poll_head(stream, &cx()), Poll::Ready(Ok(_)));
        assert_eq!(ended, is_good, "{method} {status}, without data");
    }
}

/// What of an exchange has passed, up and down.
#[derive(Default)]
struct Passed {
    sent: [usize; 2],
    got: [Vec<u8>; 2],
    said: [bool; 2],
}

proptest! {
    /// Exchanges of any size, in pieces of any size: what one end says is what the other hears.
    #[test]
    fn everything_arrives(
        sizes in prop::collection::vec((0usize..200_000, 0usize..400_000, 0usize..40), 1..6),
        pieces in prop::collection::vec(1usize..40_000, 0..200),
    ) {
        let mut two = Two::new();
        two.pieces = pieces;
        let mut exchanges = vec![];
        for (at, (up, down, fields)) in sizes.iter().enumerate() {
            let stream = two.client.begin(&head(&format!("/{at}"), *fields), *up == 0).expect("a whole head");
            two.client.holds(stream);
            exchanges.push((stream, vec![at as u8; *up], vec![at as u8 + 100; *down], *fields));
        }
        two.talk();
        for (stream, _, down, _) in &exchanges {
            two.server.respond(*stream, &ResponseHead::new(200), down.is_empty()).expect("it is open");
        }
        let mut state: BTreeMap<u32, Passed> = BTreeMap::new();
        for round in 0..2_000 {
            let mut is_over = true;
            for (stream, up, down, fields) in &exchanges {
                let Passed { sent: [sent_up, sent_down], got: [got_up, got_down], said: [said_up, said_down] } = state.entry(*stream).or_default();
                *sent_up += send(&mut two.client, *stream, &up[*sent_up..]);
                if *sent_up == up.len() && !up.is_empty() && !std::mem::replace(said_up, true) {
                    let mut trailers = Fields::default();
                    trailers.push(b"x-up", b"1");
                    two.client.trailers(*stream, &trailers).expect("it is open");
                }
                *sent_down += send(&mut two.server, *stream, &down[*sent_down..]);
                if *sent_down == down.len() && !down.is_empty() && !std::mem::replace(said_down, true) {
                    two.server.finish(*stream).expect("it is open");
                }
                let came_up = got_up.len() == up.len() && two.server.is_done(*stream);
                if !came_up {
                    let (ended, trailers) = read(&mut two.server, *stream, got_up);
                    prop_assert_eq!(ended && !up.is_empty(), trailers.is_some());
                }
                read(&mut two.client, *stream, got_down);
                prop_assert_eq!(two.asked[stream].fields.len(), *fields);
                is_over &= got_up.len() == up.len() && got_down.len() == down.len() && two.client.is_done(*stream);
            }
            two.talk();
            if is_over {
                break;
            }
            prop_assert!(round < 1_999, "it never ends");
        }
        for (stream, up, down, _) in &exchanges {
            let [got_up, got_down] = &state[stream].got;
            prop_assert!(got_up == up && got_down == down);
            prop_assert!(two.client.poll_head(*stream, &cx()).is_ready());
            two.client.lets_go(*stream);
            two.server.lets_go(*stream);
        }
        two.talk();
        prop_assert!(two.client.is_idle() && two.server.is_idle());
        for session in [&two.client, &two.server] {
            prop_assert_eq!(session.window.whole(), CONNECTION_WINDOW);
            prop_assert!(session.turns.is_empty());
        }
    }

    /// Whatever comes, the session holds no more than it may.
    #[test]
    fn garbage_ends_the_connection_or_does_nothing(frames in prop::collection::vec((0u8..12, any::<u8>(), 0u32..8, prop::collection::vec(any::<u8>(), 0..60)), 0..60)) {
        let mut server = server();
        for (kind, flags, stream, payload) in frames {
            if let Err(violation) = server.receive(&frame(kind, flags, stream, &payload)) {
                server.accuse(violation);
                break;
            }
            prop_assert!(server.open() <= server.streams.len());
        }
        server.fresh();
        prop_assert!(server.out.waiting() < CHOKED);
    }
}
