//! A control plane on a cluster of some size: an API server is filled with Services, pods and slices, and the real control plane
//! follows it.

mod objects;
mod plane;
mod server;
mod sidecar;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::value_parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use weft_certs::Authority;

use objects::{ACCOUNT, Size};
use plane::{Memory, Plane};
use server::Server;
use sidecar::Arrival;

pub(crate) const HELP: &str = "\
The API server is the one that KUBECONFIG names, else etcd and kube-apiserver are started on loopback (tests/cluster/setup builds
them). A cluster in which weft is in use is refused; what is made in one is in namespaces weft-bench-*, and deleted at the end.

  cargo build --profile ship -p weft-control-plane -p weft-bench --features weft-control-plane/kubernetes,weft-bench/kubernetes
  target/ship/weft-bench cluster-scale

Changes are timed from when the request to the API server is sent until the update has been read from a sidecar's stream.";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Services, each with one slice
    #[arg(long, default_value_t = 1000, value_parser = value_parser!(u32).range(1..=20_000))]
    services: u32,

    /// Pods with sidecars, dealt out to the services; at least one each
    #[arg(long, default_value_t = 5000, value_parser = value_parser!(u32).range(1..=100_000))]
    pods: u32,

    /// Namespaces that the services are dealt out to
    #[arg(long, default_value_t = 20, value_parser = value_parser!(u32).range(1..=1000))]
    namespaces: u32,

    /// Services that the sidecar is subscribed to
    #[arg(long, default_value_t = 20, value_parser = value_parser!(u32).range(1..=1000))]
    subscribed: u32,

    /// Changes whose way is timed one by one
    #[arg(long, default_value_t = 200)]
    changes: u32,

    /// Changes a second under load, of one service after another
    #[arg(long, default_value_t = 100, value_parser = value_parser!(u32).range(1..=10_000))]
    rate: u32,

    /// Seconds of that load; 0 for none
    #[arg(long, default_value_t = 60)]
    seconds: u32,

    /// The control plane's binary, built with the feature `kubernetes`
    #[arg(long, default_value = "target/ship/weft-control-plane")]
    binary: PathBuf,

    /// Directory of etcd and kube-apiserver [default: bin in the cache of tests/cluster]
    #[arg(long, value_name = "DIR")]
    kube_bin: Option<PathBuf>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    if args.pods < args.services {
        bail!("--pods {} is less than --services {}: each service has one at least", args.pods, args.services);
    }
    let size = Size {
        namespaces: args.namespaces.min(args.services) as usize,
        services: args.services as usize,
        pods: args.pods as usize,
    };
    let dir = tempfile::tempdir()?;
    let bin = args.kube_bin.clone().or_else(cached_bin).context("there is no HOME: say --kube-bin")?;
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut told = std::pin::pin!(async {
        tokio::select! { _ = term.recv() => {} _ = int.recv() => {} }
    });
    let server = tokio::select! {
        server = Server::open(&bin, dir.path()) => Arc::new(server?),
        () = &mut told => bail!("told to stop"),
    };
    objects::refuse_weft(&server).await?;
    let outcome = tokio::select! {
        outcome = measure(&args, size, &server, dir.path()) => outcome,
        () = &mut told => Err(anyhow::anyhow!("told to stop")),
    };
    if !server.is_own() {
        objects::delete(&server, size).await?;
    }
    outcome
}

/// As tests/cluster/env.sh has it.
fn cached_bin() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = || set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    Some(set("WEFT_KUBE_DIR").or_else(|| Some(cache()?.join("weft/kube")))?.join("bin"))
}

async fn measure(args: &Args, size: Size, server: &Arc<Server>, dir: &std::path::Path) -> anyhow::Result<()> {
    row("API server", &server.what);
    let began = Instant::now();
    let addresses = objects::make(server, size).await?;
    row(
        "objects",
        &format!("{} Services, {} pods, {} slices in {} namespaces", size.services, size.pods, size.services, size.namespaces),
    );
    row("made in", &seconds(began.elapsed()));

    let authority = Authority::try_new("cluster.local")?;
    let plane = Plane::start(&args.binary, server, &authority, dir).await?;
    row("start until /ready", &seconds(plane.took));
    row("CPU until then", &seconds(plane.cpu()?));
    let (services, workloads) = (plane.metric("services").await?, plane.metric("workloads").await?);
    if services < size.services || workloads < size.pods {
        bail!("the control plane is ready with {services} Services and {workloads} pods only");
    }
    row("loaded then", &format!("{services} Services, {workloads} pods, {} problems", plane.metric("problems").await?));
    // The allocator gives back what the start alone needed.
    sleep(Duration::from_secs(3)).await;
    row("memory", &of(plane.memory()?));

    let watched = size.services.min(args.subscribed as usize);
    // Spread over all, so that none is always the first.
    let watched: Vec<usize> = (0..watched).map(|n| n * size.services / watched).collect();
    let asked: Vec<String> = watched.iter().map(|n| addresses[*n].clone()).collect();
    let who = (size.namespace(0), ACCOUNT, "p0");
    let began = Instant::now();
    let mut seen = sidecar::subscribe(&plane.address, &authority, (&who.0, who.1, who.2), &asked).await?;
    let mut missing: Vec<String> = watched.iter().map(|n| size.endpoints_name(*n)).collect();
    while !missing.is_empty() {
        let (name, _) = next(&mut seen).await?;
        missing.retain(|m| *m != name);
    }
    row(&format!("{} subscriptions answered in", watched.len()), &millis(began.elapsed()));

    let (mut ways, mut writes) = one_by_one(args.changes, size, server, &watched, &mut seen).await?;
    row(&format!("{} changes, one by one", ways.len()), &spread(&mut ways));
    row("  of that, the API server's answer", &spread(&mut writes));

    if args.seconds > 0 {
        under_load(args, size, server, &plane, &watched, &mut seen).await?;
    }
    Ok(())
}

async fn next(seen: &mut UnboundedReceiver<Arrival>) -> anyhow::Result<Arrival> {
    timeout(Duration::from_secs(30), seen.recv()).await.context("no update in 30 s")?.context("the stream ended")
}

/// Times of the whole way, and of the requests alone.
async fn one_by_one(
    changes: u32,
    size: Size,
    server: &Server,
    watched: &[usize],
    seen: &mut UnboundedReceiver<Arrival>,
) -> anyhow::Result<(Vec<Duration>, Vec<Duration>)> {
    let (mut ways, mut writes) = (Vec::new(), Vec::new());
    for n in 0..changes as usize {
        let service = watched[n % watched.len()];
        let name = size.endpoints_name(service);
        let sent = Instant::now();
        objects::set_ready(server, size, service, (n / watched.len()) % 2 == 1).await?;
        writes.push(sent.elapsed());
        loop {
            let (arrived, at) = next(seen).await?;
            if arrived == name {
                ways.push(at.duration_since(sent));
                break;
            }
        }
    }
    // Everything is as it was in the beginning.
    for service in watched {
        objects::set_ready(server, size, *service, true).await?;
    }
    sleep(Duration::from_secs(1)).await;
    while seen.try_recv().is_ok() {}
    Ok((ways, writes))
}

/// Changes at a rate, whether or not those before have arrived.
async fn under_load(
    args: &Args,
    size: Size,
    server: &Arc<Server>,
    plane: &Plane,
    watched: &[usize],
    seen: &mut UnboundedReceiver<Arrival>,
) -> anyhow::Result<()> {
    let names: HashMap<usize, String> = watched.iter().map(|n| (*n, size.endpoints_name(*n))).collect();
    let (before, cpu) = (plane.memory()?, plane.cpu()?);
    let total = args.rate as usize * args.seconds as usize;
    let mut tick = interval(Duration::from_secs(1) / args.rate);
    tick.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut writes = JoinSet::new();
    // When each change was sent that has not arrived yet, the oldest first.
    let mut under_way: HashMap<&str, Vec<Instant>> = HashMap::new();
    let mut ways: Vec<(Instant, Duration)> = Vec::new();
    let mut rounds = vec![0_u32; size.services];
    let began = Instant::now();
    let (mut sent, mut last_write) = (0, began);
    // One more than the load, at once: how long it takes is the lag that has gathered.
    while sent <= total || !writes.is_empty() || under_way.values().any(|list| !list.is_empty()) {
        tokio::select! {
            _ = tick.tick(), if sent <= total => {
                let service = if sent < total { sent % size.services } else { watched[0] };
                let ready = rounds[service] % 2 == 1;
                rounds[service] += 1;
                let now = Instant::now();
                if let Some(name) = names.get(&service) {
                    under_way.entry(name).or_default().push(now);
                }
                let server = server.clone();
                writes.spawn(async move { objects::set_ready(&server, size, service, ready).await });
                sent += 1;
            }
            Some(done) = writes.join_next() => {
                done??;
                last_write = Instant::now();
            }
            arrival = next(seen) => {
                let (name, at) = arrival.context("changes are lost")?;
                // Several changes may have become one update.
                for sent in under_way.get_mut(name.as_str()).into_iter().flat_map(std::mem::take) {
                    ways.push((at, at.duration_since(sent)));
                }
            }
        }
    }
    let written = last_write.duration_since(began);
    // Of the change that was sent last.
    let lag =
        ways.iter().filter_map(|(at, way)| Some((at.checked_sub(*way)?, *way))).max().map_or(Duration::ZERO, |(_, way)| way);
    let end = began + written.saturating_sub(Duration::from_secs(5));
    let mut at_end: Vec<Duration> = ways.iter().filter(|(at, _)| *at >= end).map(|(_, way)| *way).collect();
    let mut all: Vec<Duration> = ways.iter().map(|(_, way)| *way).collect();
    row("load", &format!("{total} changes in {}, {:.0} a second", seconds(written), total as f64 / written.as_secs_f64()));
    row("  changes of what is subscribed", &spread(&mut all));
    row("  of that, in the last 5 s", &spread(&mut at_end));
    row("  lag at the end", &millis(lag));
    row(
        "  CPU of the control plane",
        &format!("{:.1} %", plane.cpu()?.saturating_sub(cpu).as_secs_f64() / written.as_secs_f64() * 100.0),
    );
    row("  memory before", &of(before));
    row("  memory after", &of(plane.memory()?));
    Ok(())
}

fn row(what: &str, value: &str) {
    println!("{what:<38} {value}");
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

fn of(memory: Memory) -> String {
    let mega = |bytes: u64| bytes as f64 / 1e6;
    format!(
        "{:.1} MB resident, {:.1} MB anonymous, {:.1} MB at most",
        mega(memory.resident),
        mega(memory.anonymous),
        mega(memory.peak)
    )
}

/// Sorts, and tells the quantiles.
fn spread(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let at = |share: f64| times.get(((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1)));
    match (at(0.5), at(0.99), times.last()) {
        (Some(median), Some(p99), Some(worst)) => {
            format!("{} median, {} p99, {} worst", millis(*median), millis(*p99), millis(*worst))
        }
        _ => "none".to_owned(),
    }
}
