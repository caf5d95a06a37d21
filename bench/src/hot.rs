//! `weft-bench hot`: one hot part, as often as asked, and nothing else that grows with it. Who counts the instructions of two runs knows what one time takes,
//! on any machine of the same kind and however busy it is: `bench/instructions`.

use std::hint::black_box;
use std::io::IoSlice;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::ValueEnum;
use tokio::task::LocalSet;
use weft_core::SpiffeId;
use weft_core::authorization::{Authorization, Compiled, Connection, Judge, Posture};
use weft_core::balance::{Candidates, Chooser, Standing};
use weft_core::detect::{Detection, detect};
use weft_core::network_policy::{End as PolicyEnd, Isolation, PeerSets};
use weft_core::protocol::MeshProtocol;
use weft_core::trace::{SpanId, parse_traceparent, write_traceparent};
use weft_core::traffic::route::{Match, PathMatch, Route, RouteKind, Rule, Timeouts};
use weft_core::traffic::table::{RouteTable, Verdict};
use weft_sidecar::http::h1::{read_request, request_framing};
use weft_sidecar::http::h2::session as http2;
use weft_sidecar::http::{Known, RequestHead, ResponseHead};
use weft_sidecar::link::session::{End, Session};
use weft_sidecar::metrics::{Call, WorkerMetrics};
use weft_sidecar::multiplex::Framing;

use crate::policy::{Get, network_policy, policy};
use crate::{metrics, telemetry};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What is done; without it, the parts are listed
    part: Option<Part>,

    /// How often
    #[arg(long, default_value_t = 1_000)]
    times: u32,
}

/// A hot part.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Part {
    /// What protocol the first bytes of a connection are
    Detect,
    /// A request's head is read, and where its body ends
    Http1Head,
    /// A request finds its rule among 1,000
    Route,
    /// A request is judged by 100 policies, and the last allows it
    Policy,
    /// A connection is judged by 100 network policies, and the last lets it in
    NetworkPolicy,
    /// One of 1,000 endpoints is chosen
    Balance,
    /// A trace's context is read, and written as that of the next span
    Trace,
    /// A request is counted
    Metrics,
    /// A request with nine fields and an answer with four, from one end of an HTTP/2 connection to the other and back
    Http2,
    /// 1,000 bytes go over a stream of a link, to the other end's reader
    Link,
    /// A request by HTTP/1.1 through two sidecars over mutual TLS, and its answer; the client, the application and the network in memory are in it
    Request,
}

const HEAD: &[u8] = b"GET /api/v1/items/4711?sort=name HTTP/1.1\r\nhost: api.shop.svc.cluster.local:8080\r\nuser-agent: Mozilla/5.0 (X11; Linux \
    x86_64) AppleWebKit/537.36\r\naccept: application/json\r\naccept-encoding: gzip, deflate, br\r\naccept-language: en-US,en;q=0.9\r\nx-request-id: \
    7f0f2a5e-6d0c-4a51-9a52-d2f6d8f4b2a1\r\ncookie: session=0123456789abcdef0123456789abcdef\r\ncontent-length: 0\r\n\r\n";
const CONTEXT: &[u8] = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let Some(part) = args.part else {
        for part in Part::value_variants() {
            println!("{}", part.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned()));
        }
        return Ok(());
    };
    // Some begin a task or ask for the time; nothing waits for more than the other end.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let _guard = runtime.enter();
    let n = args.times;
    match part {
        Part::Detect => each(n, || matches!(detect(black_box(HEAD)), Detection::Http1)),
        Part::Http1Head => each(n, || {
            let head = read_request(&[black_box(HEAD)]);
            matches!(head, Ok(Some(head)) if request_framing(&head).is_ok())
        }),
        Part::Route => {
            let table = RouteTable::new(&(0..1_000).map(route).collect::<anyhow::Result<Vec<_>>>()?, 80);
            each(n, || matches!(table.http(black_box(&Get(b"/p999/some/thing"))), Verdict::Rule { .. }))
        }
        Part::Policy => {
            let own: SpiffeId = "spiffe://td/ns/shop/sa/cart".parse()?;
            let caller: SpiffeId = "spiffe://td/ns/shop/sa/app-99".parse()?;
            let policies = (0..100).map(policy).collect::<anyhow::Result<_>>()?;
            let authorization = Authorization { posture: Posture::Deny, policies, ..Authorization::default() };
            let compiled = Arc::new(Compiled::new(&authorization, own));
            let judge = Judge::new(compiled, Connection::new(80, Some(caller), "10.0.0.9".parse()?));
            each(n, || judge.judge(Some(black_box(&Get(b"/p99/some/thing")))).is_none_or(|decision| decision.is_allowed()))
        }
        Part::NetworkPolicy => {
            let isolation = Isolation { policies: (0..100).map(network_policy).collect::<anyhow::Result<_>>()? };
            let end = PolicyEnd { address: "172.16.99.7".parse()?, proved: None };
            let sets = PeerSets::default();
            each(n, || isolation.judge(&sets, black_box(&end), 80).is_allowed())
        }
        Part::Balance => {
            let mut random = 1_u64;
            let mut next = move || {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                random >> 16
            };
            each(n, || Chooser::P2cEwma.choose(black_box(&Well(1_000)), None, &mut next).is_some())
        }
        Part::Trace => each(n, || {
            let context = parse_traceparent(black_box(CONTEXT));
            context.is_some_and(|context| !black_box(write_traceparent(&context.at(SpanId::random(7), true))).is_empty())
        }),
        Part::Metrics => {
            let shared = metrics::shared();
            let worker = WorkerMetrics::new(shared.metrics.clone(), usize::MAX);
            let edge = worker.edge(&metrics::key(0));
            each(n, || {
                edge.request(&Call::new(black_box(b"GET"), false).answered(200, None), Duration::from_micros(black_box(1_300)));
                edge.forth(black_box(120));
                edge.back(black_box(3_000));
                true
            })
        }
        Part::Link => {
            let (mut opens, mut serves) = (Session::new(End::Opens), Session::new(End::Serves));
            let stream = opens.begin(MeshProtocol::Tcp);
            let mut space = [0; 2_000];
            each(n, || pass(&mut opens, &mut serves, stream, &mut space) == 1_000)
        }
        Part::Http2 => {
            let (mut asks, mut serves) = (
                http2::Session::new(http2::End::Asks, http2::With::Sidecar),
                http2::Session::new(http2::End::Serves, http2::With::Sidecar),
            );
            let greeted =
                moved(&mut asks, |said| serves.receive(said).is_ok()) && moved(&mut serves, |said| asks.receive(said).is_ok());
            ensure!(greeted, "they do not understand each other");
            let mut head = read_request(&[HEAD]).ok().flatten().context("a request")?;
            head.authority = head.fields.first(Known::Host).map(|host| host.to_vec().into());
            head.fields.remove(Known::Host);
            let mut answer = ResponseHead::new(200);
            for (name, value) in [
                ("server", "nginx"),
                ("date", "Mon, 23 Nov 2026 10:00:00 GMT"),
                ("content-type", "text/html"),
                ("etag", "\"5f2\""),
            ] {
                answer.fields.push(name.as_bytes(), value.as_bytes());
            }
            each(n, || exchange(&mut asks, &mut serves, black_box(&head), black_box(&answer)).is_some())
        }
        Part::Request => LocalSet::new().block_on(&runtime, async {
            let (_world, client) = telemetry::warm(&[]).await;
            telemetry::ask(&client, 100, None).await?;
            telemetry::ask(&client, n, None).await
        }),
    }
}

/// Does it so often; it says itself whether it did what it should.
fn each(times: u32, mut what: impl FnMut() -> bool) -> anyhow::Result<()> {
    for _ in 0..times {
        ensure!(black_box(what()), "it did something else");
    }
    Ok(())
}

fn route(i: usize) -> anyhow::Result<Arc<Route>> {
    let matches = vec![Match { path: PathMatch::Prefix(format!("/p{i}").into()), ..Match::default() }];
    let (filters, backends) = (vec![], vec![]);
    let rule = Rule { name: None, matches, filters, backends, timeouts: Timeouts::default(), retry: None, session: None };
    let id = format!("shop/r{i}").parse()?;
    Ok(Arc::new(Route { kind: RouteKind::Http, id, created: 0, ports: vec![], hostnames: vec![], rules: vec![rule] }))
}

/// So many endpoints that are well.
struct Well(usize);

impl Candidates for Well {
    fn count(&self) -> usize {
        self.0
    }
    fn avoid(&self, _: usize) -> bool {
        false
    }
    fn standing(&self, _: usize) -> Standing {
        Standing::Well
    }
    fn load(&self, i: usize) -> f64 {
        (i % 7) as f64
    }
    fn in_flight(&self, i: usize) -> u32 {
        (i % 7) as u32
    }
}

/// One end says something, the other hears it, and gives credit back; how much was heard.
fn pass(opens: &mut Session, serves: &mut Session, stream: u32, space: &mut [u8]) -> usize {
    let cx = Context::from_waker(Waker::noop());
    let written = opens.poll_write(stream, &cx, &[IoSlice::new(black_box(&[7; 1_000]))]);
    if !matches!(written, Poll::Ready(Ok(1_000))) || !moved(opens, |said| serves.receive(said).is_ok()) {
        return 0;
    }
    serves.opened();
    let Poll::Ready(Ok(read)) = serves.poll_read(stream, &cx, space) else { return 0 };
    if moved(serves, |said| opens.receive(said).is_ok()) { read } else { 0 }
}

/// One end says what it has to say, which is heard at the other; whether it could be.
fn moved(from: &mut impl Framing, hear: impl FnOnce(&[u8]) -> bool) -> bool {
    let out = from.outgoing().len();
    let heard = hear(from.outgoing());
    from.sent(out);
    heard
}

/// A request without a body, and its answer.
fn exchange(
    asks: &mut http2::Session,
    serves: &mut http2::Session,
    head: &RequestHead,
    answer: &ResponseHead,
) -> Option<ResponseHead> {
    let cx = Context::from_waker(Waker::noop());
    let stream = asks.begin(head, true).ok()?;
    asks.holds(stream);
    let heard = moved(asks, |said| serves.receive(said).is_ok()).then(|| serves.fresh().pop()).flatten()?;
    serves.holds(stream);
    black_box(heard.1.ok()?);
    serves.respond(stream, answer, true).ok()?;
    serves.lets_go(stream);
    let Poll::Ready(Ok(answer)) = moved(serves, |said| asks.receive(said).is_ok()).then(|| asks.poll_head(stream, &cx))? else {
        return None;
    };
    asks.lets_go(stream);
    Some(answer)
}
