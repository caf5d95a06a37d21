//! What a warm request costs each sidecar in allocations, and what an idle connection keeps: counted, told, and pinned, so that growth is a decision.

#[path = "sim/seeds.rs"]
#[expect(dead_code, reason = "the simulation uses the rest")]
mod seeds;
#[path = "sim/world.rs"]
#[expect(dead_code, reason = "the simulation uses the rest")]
mod world;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::future::poll_fn;
use std::io::Write;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::task::spawn_local;
use weft_sidecar::io::Socket;
use weft_sidecar::pool::Buffers;
use weft_sidecar::stream::Stream;

use seeds::simulate;
use world::{A, B, BYTES, Plan, Running, WEB_TARGET, World};

/// The most allocations of a warm request, on average, in the caller's sidecar and in the callee's. The design's goal is 4 each.
const MOST: [f64; 2] = [8.0, 8.0];
/// The largest of them, in bytes: the future of the exchange. Whatever grows here is written and copied at every request.
const LARGEST: [u64; 2] = [5 * 1024; 2];
/// The most that an idle connection keeps, in bytes, in the caller's sidecar and in the callee's: of HTTP/1.1 after a request, and an opaque one.
const MOST_KEPT: [[f64; 2]; 2] = [[4_700.0, 100.0], [3_900.0, 5_000.0]];
const WARM_UP: u32 = 200;
const COUNTED: u32 = 1_000;
const STALL: Duration = Duration::from_secs(10);

const REQUEST: &[u8] =
    b"GET /items/42?details=1 HTTP/1.1\r\nHost: api.shop\r\nUser-Agent: warm/1.0\r\nAccept: application/json\r\n\
    Accept-Encoding: gzip\r\nCookie: session=0123456789abcdef\r\nX-Request-Id: 7f3c2a\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nCache-Control: no-store\r\nETag: \"17\"\r\n\
    Content-Length: 17\r\n\r\n{\"item\":\"apples\"}";
const ANSWER_ENDS: &[u8] = b"\"apples\"}";

/// Whose allocations are counted: nobody's, the caller's sidecar's, the callee's.
const WHO: usize = 3;
static COUNTS: [AtomicU64; WHO] = [const { AtomicU64::new(0) }; WHO];
static LARGESTS: [AtomicU64; WHO] = [const { AtomicU64::new(0) }; WHO];

/// Bytes that are in use, by who took them and gave them back, and by their size in units of [`UNIT`].
static IN_USE: [[AtomicI64; SIZES]; WHO] = [const { [const { AtomicI64::new(0) }; SIZES] }; WHO];
const SIZES: usize = 4_096;
const UNIT: usize = 16;

/// What is counted is the process's: one test counts at a time.
static ALONE: Mutex<()> = Mutex::new(());

thread_local! {
    /// Whose turn it is on this thread.
    static TURN: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(size: usize) {
    // A thread that ends allocates without thread-local state.
    let _ = TURN.try_with(|turn| {
        COUNTS[turn.get()].fetch_add(1, Relaxed);
        LARGESTS[turn.get()].fetch_max(size as u64, Relaxed);
    });
    in_use(size, 1);
}

fn in_use(size: usize, times: i64) {
    let _ = TURN.try_with(|turn| IN_USE[turn.get()][(size / UNIT).min(SIZES - 1)].fetch_add(times * size as i64, Relaxed));
}

#[expect(unsafe_code, reason = "an allocator is an unsafe trait; this one counts, and passes everything on to the system's")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller keeps the same conditions as the system's allocator asks; so below.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: see above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        in_use(layout.size(), -1);
        count(new_size);
        // SAFETY: see above.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        in_use(layout.size(), -1);
        // SAFETY: see above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// Counts what a worker allocates: all its tasks run within it.
fn attributed(ip: IpAddr, mut running: Running) -> Running {
    let whose = if ip == A { 1 } else { 2 };
    Box::pin(poll_fn(move |cx| {
        let before = TURN.replace(whose);
        let polled = running.as_mut().poll(cx);
        TURN.set(before);
        polled
    }))
}

fn counts() -> [u64; 2] {
    [COUNTS[1].load(Relaxed), COUNTS[2].load(Relaxed)]
}

/// Reads up to these last bytes; false if the peer ended before.
async fn heard(peer: &Stream, buf: &mut [u8], last: &[u8]) -> bool {
    let mut filled = 0;
    while !buf[..filled].ends_with(last) {
        match peer.read(&mut buf[filled..]).await {
            Ok(n) if n > 0 => filled += n,
            _ => return false,
        }
    }
    true
}

async fn ask(client: &Stream, buf: &mut [u8], times: u32) {
    for _ in 0..times {
        client.write_all(REQUEST, STALL).await.expect("the sidecar reads");
        assert!(heard(client, buf, ANSWER_ENDS).await, "no answer");
    }
}

/// Past the test harness, which keeps what a passing test says to itself.
fn say(what: &str) {
    let _ = writeln!(std::io::stderr(), "{what}");
}

/// Bytes in use, by size, of the caller's sidecar and of the callee's.
fn kept() -> [Vec<i64>; 2] {
    [1, 2].map(|who: usize| IN_USE[who].iter().map(|bytes| bytes.load(Relaxed)).collect())
}

/// What an idle connection keeps in each sidecar, in bytes, after a request and its answer; told by size.
async fn idle(world: &World, port: u16) -> [f64; 2] {
    const MANY: usize = 100;
    let mut listener = world.network.host(B).listen(port);
    spawn_local(async move {
        loop {
            let server = Stream::plain(Socket::Memory(listener.accept().await), Buffers::default());
            spawn_local(async move {
                let mut buf = vec![0; 4096];
                while heard(&server, &mut buf, b"\r\n\r\n").await {
                    server.write_all(ANSWER, STALL).await.expect("the sidecar reads");
                }
            });
        }
    });
    let mut buf = vec![0; 4096];
    let mut clients = Vec::new();
    let mut open = async |many: usize| {
        for _ in 0..many {
            let peer = if port == BYTES { world.dial_bytes().await } else { world.dial_web().await };
            ask(&peer.0, &mut buf, 1).await;
            clients.push(peer);
        }
    };
    open(MANY).await;
    let before = kept();
    open(MANY).await;
    let after = kept();
    [0, 1].map(|who| {
        let each = |i: usize| (after[who][i] - before[who][i]) as f64 / MANY as f64;
        let mut sizes: Vec<usize> = (0..SIZES).filter(|i| each(*i).abs() > 15.0).collect();
        sizes.sort_by(|a, b| each(*b).total_cmp(&each(*a)));
        let told: Vec<String> = sizes.iter().map(|i| format!("{}: {:.0}", i * UNIT, each(*i))).collect();
        let all = (0..SIZES).map(each).sum();
        say(&format!(
            "an idle connection to port {port} keeps {all:.0} bytes in {}, by size {told:?}",
            ["the caller's sidecar", "the callee's"][who]
        ));
        all
    })
}

#[test]
fn an_idle_connection_keeps_little() {
    let _alone = ALONE.lock();
    simulate(1, &async |seed| {
        let world = World::new(&Plan { latency: Duration::ZERO, around: attributed, ..Plan::smooth(seed) });
        for (port, most) in [(WEB_TARGET, MOST_KEPT[0]), (BYTES, MOST_KEPT[1])] {
            let kept = idle(&world, port).await;
            // Behind connections of HTTP that are silent is one that they share.
            assert!(kept[0] > 0.0 && (port == WEB_TARGET || kept[1] > 0.0), "nothing was counted: {kept:?}");
            assert!(kept[0] <= most[0] && kept[1] <= most[1], "{kept:?} bytes an idle connection, and {most:?} are allowed");
        }
        world.end().await;
    });
}

#[test]
fn a_warm_request_allocates_little() {
    let _alone = ALONE.lock();
    simulate(1, &async |seed| {
        let world = World::new(&Plan { latency: Duration::ZERO, around: attributed, ..Plan::smooth(seed) });
        let mut listener = world.network.host(B).listen(WEB_TARGET);
        spawn_local(async move {
            // One connection is enough for one warm client.
            let server = Stream::plain(Socket::Memory(listener.accept().await), Buffers::default());
            let mut buf = vec![0; 4096];
            while heard(&server, &mut buf, b"\r\n\r\n").await {
                server.write_all(ANSWER, STALL).await.expect("the sidecar reads");
            }
        });
        let client = Rc::clone(&world.dial_web().await.0);
        let mut buf = vec![0; 4096];
        ask(&client, &mut buf, WARM_UP).await;
        for largest in &LARGESTS {
            largest.store(0, Relaxed);
        }
        let before = counts();
        ask(&client, &mut buf, COUNTED).await;
        let after = counts();
        let each = [0, 1].map(|i| (after[i] - before[i]) as f64 / f64::from(COUNTED));
        let largest = [1, 2].map(|who: usize| LARGESTS[who].load(Relaxed));
        say(&format!(
            "allocations of a warm request: {:.2} in the caller's sidecar, {:.2} in the callee's; the largest {largest:?} bytes",
            each[0], each[1]
        ));
        assert!(each[0] > 0.0 && each[1] > 0.0, "nothing was counted: {each:?}");
        assert!(each[0] <= MOST[0] && each[1] <= MOST[1], "{each:?} allocations a request, and {MOST:?} are allowed");
        assert!((0..2).all(|i| largest[i] <= LARGEST[i]), "an allocation of {largest:?} bytes, and {LARGEST:?} are allowed");
        drop(client);
        world.end().await;
    });
}
