//! `weft-bench`: measures, never judges. `control-plane` loads a real control plane with simulated sidecars over loopback; `policy` times decisions, `metrics` what telling costs, `hot` does what `bench/instructions` counts, `telemetry` what it costs each request;
//! `cluster-scale` (feature `kubernetes`) has it follow a real API server with many objects; the comparison with other proxies is
//! `bench/compare`.
#![allow(clippy::print_stdout, reason = "its figures are its output")]

#[cfg(feature = "kubernetes")]
mod cluster_scale;
mod control_plane;
mod floor;
mod hot;
mod metrics;
mod policy;
mod telemetry;
#[path = "../../sidecar/tests/sim/world.rs"]
#[expect(dead_code, reason = "the simulation uses the rest")]
mod world;

use clap::{Parser, Subcommand};

/// Measurements of weft
#[derive(Parser)]
#[command(name = "weft-bench")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Certificates a second, memory for each connected sidecar, and how long a change takes to reach all of them
    ControlPlane(control_plane::Args),
    /// What a decision costs with few and with many policies, and with a short and a long deny list
    Policy(policy::Args),
    /// One process of a pair that moves bytes and does nothing else: what `bench/compare` calls the floor
    Floor(floor::Args),
    /// Does one pure hot part many times, for `bench/instructions` to count what it takes
    Hot(hot::Args),
    /// What it costs to record a request, and to answer `/metrics` in each format
    Metrics(metrics::Args),
    /// What a request costs each sidecar in CPU: with telemetry off, with 1 % of the traces and metrics, with everything on
    #[command(after_long_help = telemetry::HELP)]
    Telemetry(telemetry::Args),
    /// A control plane that follows an API server with many Services and pods: its start, its memory, and how long changes take
    #[cfg(feature = "kubernetes")]
    #[command(after_long_help = cluster_scale::HELP)]
    ClusterScale(cluster_scale::Args),
}

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match Cli::parse().command {
        Command::ControlPlane(args) => runtime.block_on(control_plane::run(args)),
        Command::Policy(args) => policy::run(&args),
        Command::Floor(args) => floor::run(&args),
        Command::Hot(args) => hot::run(&args),
        Command::Metrics(args) => metrics::run(&args),
        Command::Telemetry(args) => telemetry::run(&args),
        #[cfg(feature = "kubernetes")]
        Command::ClusterScale(args) => runtime.block_on(cluster_scale::run(args)),
    }
}
