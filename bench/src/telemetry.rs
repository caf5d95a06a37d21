//! What telemetry costs a request in CPU, in whole sidecars that export to a collector that takes everything.
//!
//! Each measurement is a process of its own: two sidecars on a network in memory (mutual TLS, HTTP/1.1), one warm connection, and whatever threads telemetry has. Its CPU time,
//! of all threads, is divided by the requests and by two; what the client, the application and the network in memory take is in all of them alike, so that
//! the difference from `off` is what telemetry adds. The collector counts and answers; it and whoever reads standard output are in another process.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::ValueEnum;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use tokio::task::{LocalSet, spawn_local};
use tokio_util::sync::CancellationToken;
use weft_core::metrics::{Format, expose};
use weft_sidecar::io::Socket;
use weft_sidecar::metrics::{families, push};
use weft_sidecar::otlp::Env;
use weft_sidecar::pool::Buffers;
use weft_sidecar::stream::Stream;

use crate::world::{B, Plan, Sidecar, WEB_TARGET, World};

pub(crate) const HELP: &str = "\
The collector is a sink on loopback that counts what it is sent (OTLP over HTTP, protobuf) and answers 200: its own work is in none of the figures.

Examples:
  weft-bench telemetry
  weft-bench telemetry --rate 10000
  weft-bench telemetry --requests 200000 --rounds 7

Without --rate a request follows the answer before it at once: more come than a collector on the same cores takes, and what is dropped costs nothing.
The figure is honest where nothing is dropped.";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Requests of one measurement, after a tenth as many to warm up
    #[arg(long, default_value_t = 100_000)]
    requests: u32,

    /// Requests a second; without it, each follows the answer before it
    #[arg(long)]
    rate: Option<u32>,

    /// Measurements of each kind, taken in turns; medians are told
    #[arg(long, default_value_t = 5)]
    rounds: usize,

    /// Measures one kind in this process, which its parent starts
    #[arg(long, hide = true)]
    one: Option<Kind>,
}

/// What is on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Kind {
    /// Nothing but the counters, which nobody asks for.
    Off,
    /// 1 % of the traces, and metrics once a second.
    Some,
    /// Every trace, metrics once a second, the access log as lines of JSON.
    All,
    /// And the access log over OTLP as well.
    Twice,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Off, Self::Some, Self::All, Self::Twice];

    fn variables(self, sink: SocketAddr) -> Vec<(&'static str, String)> {
        let mut all = vec![];
        if self != Self::Off {
            all.extend([
                ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{sink}")),
                ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf".to_owned()),
                ("OTEL_METRIC_EXPORT_INTERVAL", "1000".to_owned()),
                ("OTEL_TRACES_SAMPLER_ARG", "0.01".to_owned()),
            ]);
        }
        if self == Self::All || self == Self::Twice {
            all.extend([("OTEL_TRACES_SAMPLER", "parentbased_always_on".to_owned()), ("WEFT_ACCESS_LOG", "json".to_owned())]);
        }
        if self == Self::Twice {
            all.push(("OTEL_LOGS_EXPORTER", "otlp".to_owned()));
        }
        all
    }

    fn told(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Some => "1 % of the traces, metrics",
            Self::All => "all traces, metrics, access log (JSON)",
            Self::Twice => "all traces, metrics, access log (JSON and OTLP)",
        }
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if args.one.is_some() {
        return one(args);
    }
    let sink = Sink::start()?;
    let mut taken: [Vec<f64>; 4] = Default::default();
    let mut kernel: [f64; 4] = Default::default();
    let mut lost = [0; 4];
    for _ in 0..args.rounds.max(1) {
        for (i, kind) in Kind::ALL.into_iter().enumerate() {
            let (all, in_kernel, items) = measured(kind, args, sink.address)?;
            let of_one = |micros: f64| micros / f64::from(args.requests.max(1)) / 2.0;
            taken[i].push(of_one(all));
            kernel[i] += of_one(in_kernel) / args.rounds.max(1) as f64;
            lost[i] += items;
        }
    }
    let pace = args.rate.map_or_else(|| "one after the other".to_owned(), |rate| format!("{rate} a second"));
    println!(
        "µs of CPU a request and sidecar, {} requests, {pace}, medians of {} (least to most):",
        args.requests,
        args.rounds.max(1)
    );
    let medians = taken.map(|mut all| {
        all.sort_by(f64::total_cmp);
        (all[all.len() / 2], all[0], all[all.len() - 1])
    });
    for (i, kind) in Kind::ALL.into_iter().enumerate() {
        let (median, least, most) = medians[i];
        let (added, lost) = (median - medians[0].0, lost[i]);
        // What the least disturbed measurements of both say: a machine that others use is slower for much of the time.
        let undisturbed = least - medians[0].1;
        let of_it = kernel[i] - kernel[0];
        println!(
            "{:50} {median:7.2} ({least:.2} to {most:.2})  added {added:+.2} (least {undisturbed:+.2}), by the kernel {of_it:+.2}  items dropped {lost}",
            kind.told()
        );
    }
    println!("the sink took {} messages, {} bytes", sink.messages.load(Relaxed), sink.bytes.load(Relaxed));
    Ok(())
}

/// Microseconds of CPU of a measurement in a process of its own, all and those in the kernel, and items of telemetry that were dropped.
fn measured(kind: Kind, args: &Args, sink: SocketAddr) -> anyhow::Result<(f64, f64, u64)> {
    let name = kind.to_possible_value().context("every kind has a name")?;
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["telemetry", "--one", name.get_name(), "--requests", &args.requests.to_string()]);
    if let Some(rate) = args.rate {
        command.args(["--rate", &rate.to_string()]);
    }
    command.envs(kind.variables(sink)).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("it cannot start itself")?;
    let (mut lines, mut told) = (child.stdout.take().context("piped")?, String::new());
    // Lines are read as fast as they come, and thrown away.
    let reading = std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
    child.stderr.take().context("piped")?.read_to_string(&mut told)?;
    let status = child.wait()?;
    let _ = reading.join();
    let last = told.lines().last().and_then(|line| line.strip_prefix("taken "));
    let words: Vec<&str> = last.filter(|_| status.success()).into_iter().flat_map(|line| line.split(' ')).collect();
    let [all, in_kernel, lost] = words[..] else {
        bail!("a measurement failed ({status}): {told}");
    };
    Ok((all.parse()?, in_kernel.parse()?, lost.parse()?))
}

const STALL: Duration = Duration::from_secs(10);
const REQUEST: &[u8] =
    b"GET /items/42?details=1 HTTP/1.1\r\nHost: api.shop\r\nUser-Agent: warm/1.0\r\nAccept: application/json\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n{\"item\":\"apples\"}";
const ANSWER_ENDS: &[u8] = b"\"apples\"}";

/// Measures one kind here, by the variables that this process was given.
fn one(args: &Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    let (all, in_kernel, lost) = local.block_on(&runtime, measure(args))?;
    let mut out = std::io::stderr().lock();
    writeln!(out, "taken {all} {in_kernel} {lost}")?;
    out.flush()?;
    // What is left of the world waits for nothing.
    std::process::exit(0)
}

async fn measure(args: &Args) -> anyhow::Result<(u64, u64, u64)> {
    let variables = std::env::vars().filter(|(name, _)| name.starts_with("OTEL_"));
    let variables: Vec<(&'static str, &'static str)> = variables.map(|(name, value)| (&*name.leak(), &*value.leak())).collect();
    let (mut world, client) = warm(variables.leak()).await;
    let over = CancellationToken::new();
    let mut threads = Vec::new();
    let World { caller, callees, .. } = &mut world;
    for sidecar in std::iter::once(caller).chain(callees) {
        threads.push(sidecar.tells(over.clone()));
        threads.extend(push::begin(&sidecar.shared, &Env::of_process(), over.clone()));
    }
    ask(&client, args.requests / 10, args.rate).await?;
    let before = cpu()?;
    ask(&client, args.requests, args.rate).await?;
    // What is still on its way belongs to it.
    over.cancel();
    for thread in threads {
        let _ = thread.join();
    }
    let after = cpu()?;
    let [all, in_kernel] = [after.0 - before.0, after.1 - before.1];
    Ok((all, in_kernel, dropped(&world.caller) + world.callees.iter().map(dropped).sum::<u64>()))
}

/// Two sidecars and an application that answers; and a client's connection to it.
pub(crate) async fn warm(variables: &'static [(&'static str, &'static str)]) -> (World, Rc<Stream>) {
    let world = World::new(&Plan { latency: Duration::ZERO, variables, ..Plan::smooth(1) });
    let mut listener = world.network.host(B).listen(WEB_TARGET);
    spawn_local(async move {
        let server = Stream::plain(Socket::Memory(listener.accept().await), Buffers::default());
        let mut buf = vec![0; 4096];
        while heard(&server, &mut buf, b"\r\n\r\n").await && server.write_all(ANSWER, STALL).await.is_ok() {}
    });
    let client = Rc::clone(&world.dial_web().await.0);
    (world, client)
}

/// Asks so many times; without a rate, one after the other.
pub(crate) async fn ask(client: &Stream, times: u32, rate: Option<u32>) -> anyhow::Result<()> {
    let mut buf = vec![0; 4096];
    // As many at once as come in a millisecond: a timer knows nothing shorter.
    let at_once = rate.map_or(u32::MAX, |rate| (rate / 1_000).max(1));
    let mut tick = rate.map(|rate| tokio::time::interval(Duration::from_secs_f64(f64::from(at_once) / f64::from(rate.max(1)))));
    for n in 0..times {
        if let Some(tick) = &mut tick
            && n % at_once == 0
        {
            tick.tick().await;
        }
        client.write_all(REQUEST, STALL).await?;
        if !heard(client, &mut buf, ANSWER_ENDS).await {
            bail!("no answer");
        }
        // The runtime's other work has its turn, as sockets would give it.
        if n % 64 == 0 {
            tokio::task::yield_now().await;
        }
    }
    Ok(())
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

/// Items that found no room, or that nobody took.
fn dropped(sidecar: &Sidecar) -> u64 {
    let text = expose(Format::Text, &families::gather(&sidecar.shared), &families::constant(&sidecar.shared));
    let text = String::from_utf8_lossy(&text);
    let is_lost = |line: &&str| {
        line.starts_with("weft_telemetry_records_lost_total")
            || line.starts_with("weft_access_log_lost_total")
            || (line.starts_with("otel_sdk_") && line.contains("error_type="))
    };
    text.lines().filter(is_lost).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
}

/// CPU time of this process, all threads, those that ended included, in microseconds: all of it, and that in the kernel.
fn cpu() -> anyhow::Result<(u64, u64)> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("the system counts no CPU time")?;
    let micros = |time: TimeVal| (time.tv_sec() * 1_000_000 + time.tv_usec()) as u64;
    Ok((micros(usage.user_time()) + micros(usage.system_time()), micros(usage.system_time())))
}

/// A collector that takes everything, by OTLP over HTTP/1.1.
struct Sink {
    address: SocketAddr,
    messages: Arc<AtomicU64>,
    bytes: Arc<AtomicU64>,
}

impl Sink {
    fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind((IpAddr::from([127, 0, 0, 1]), 0))?;
        let (address, messages, bytes) = (listener.local_addr()?, Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let counts = (messages.clone(), bytes.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (messages, bytes) = counts.clone();
                std::thread::spawn(move || serve(stream, &messages, &bytes));
            }
        });
        Ok(Self { address, messages, bytes })
    }
}

/// Reads messages with their lengths until the connection ends.
fn serve(mut stream: TcpStream, messages: &AtomicU64, bytes: &AtomicU64) -> Option<()> {
    let (mut got, mut buf) = (Vec::new(), vec![0; 64 * 1024]);
    loop {
        let end = got.windows(4).position(|w| w == b"\r\n\r\n");
        let whole = end.and_then(|end| {
            let head = String::from_utf8_lossy(&got[..end]).to_ascii_lowercase();
            let length: usize = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok())?;
            Some(end + 4 + length).filter(|whole| got.len() >= *whole)
        });
        if let Some(whole) = whole {
            got.drain(..whole);
            messages.fetch_add(1, Relaxed);
            bytes.fetch_add(whole as u64, Relaxed);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n").ok()?;
            continue;
        }
        let n = stream.read(&mut buf).ok().filter(|n| *n > 0)?;
        got.extend_from_slice(&buf[..n]);
    }
}
