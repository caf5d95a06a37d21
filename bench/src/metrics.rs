//! `weft-bench metrics`: what it costs to record a request, and to answer `/metrics` in each format; on one thread, without any network.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use weft_core::failure::Reason;
use weft_core::metrics::{Format, expose};
use weft_sidecar::config::Config;
use weft_sidecar::mesh::Mesh;
use weft_sidecar::metrics::families::{constant, gather};
use weft_sidecar::metrics::{Call, Direction, EdgeKey, WorkerMetrics};
use weft_sidecar::worker::Shared;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many series there are, as Prometheus counts them, about; one run each
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000, 100_000])]
    series: Vec<usize>,

    /// Workers, each of which has counted all of them
    #[arg(long, default_value_t = 2)]
    workers: usize,
}

const REQUESTS: u32 = 5_000_000;
const TIMES: u32 = 20;

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    // Paused clocks and the like need one, and nothing here waits.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let _guard = runtime.enter();
    recording();
    println!("\nseries   format       bytes      one answer");
    for series in &args.series {
        let shared = filled(*series, args.workers);
        for (name, format) in [("text", Format::Text), ("openmetrics", Format::OpenMetrics), ("protobuf", Format::Protobuf)] {
            let text = expose(Format::Text, &gather(&shared), &constant(&shared));
            let counted = text.split(|b| *b == b'\n').filter(|line| line.first().is_some_and(|b| *b != b'#')).count();
            let bytes = expose(format, &gather(&shared), &constant(&shared)).len();
            let began = Instant::now();
            for _ in 0..TIMES {
                black_box(expose(format, &gather(&shared), &constant(&shared)));
            }
            println!("{counted:<8} {name:<12} {bytes:<10} {:.1} ms", began.elapsed().as_secs_f64() * 1e3 / f64::from(TIMES));
        }
    }
    Ok(())
}

pub(crate) fn shared() -> Shared {
    let args = ["weft-sidecar", "--control-plane=127.0.0.1:1", "--identity=shop/web", "--pod-ips=10.0.0.1"];
    Shared::new(Config::parse_from(args), Mesh::new().0)
}

pub(crate) fn key(i: usize) -> EdgeKey {
    EdgeKey {
        direction: Direction::Outbound,
        port: 8080,
        protocol: "http/1.1",
        target: Arc::from(format!("shop/service-{i}")),
        peer: Arc::from(format!("spiffe://cluster.local/ns/shop/sa/service-{i}")),
        tls: ("TLS13_AES_128_GCM_SHA256", "X25519MLKEM768"),
    }
}

/// One request in ten thousand fails, and they take from 0.1 to 26 ms.
fn recording() {
    let shared = shared();
    let worker = WorkerMetrics::new(shared.metrics.clone(), usize::MAX);
    let edge = worker.edge(&key(0));
    let began = Instant::now();
    for i in 0..REQUESTS {
        let call = Call::new(black_box(b"GET"), false).answered(if i % 10_000 == 0 { 503 } else { 200 }, None);
        edge.request(&call, Duration::from_micros(u64::from(100 + i % 256 * 100)));
        edge.forth(black_box(120));
        edge.back(black_box(3_000));
    }
    println!("recording a request: {:.1} ns", began.elapsed().as_secs_f64() * 1e9 / f64::from(REQUESTS));
}

/// Each edge has about 28 series: a histogram of 22, bytes, connections, errors.
fn filled(series: usize, workers: usize) -> Shared {
    let shared = shared();
    for _ in 0..workers {
        let worker = WorkerMetrics::new(shared.metrics.clone(), usize::MAX);
        for i in 0..series.div_ceil(28) {
            let edge = worker.edge(&key(i));
            for millis in [1, 2, 3, 5, 8, 13, 21] {
                edge.request(&Call::new(b"GET", false).answered(200, None), Duration::from_millis(millis));
            }
            edge.forth(120);
            edge.back(3_000);
            edge.open();
            edge.retry();
            edge.error(Reason::UpstreamReset);
        }
        // What outlives its worker stays with the registry, which shares it.
    }
    shared
}
