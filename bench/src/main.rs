//! `weft-bench`: measures, never judges. `control-plane` loads a real control plane with simulated sidecars over loopback; the
//! comparison with other proxies is `bench/compare`.
#![allow(clippy::print_stdout, reason = "its figures are its output")]

mod control_plane;

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
}

fn main() -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match Cli::parse().command {
        Command::ControlPlane(args) => runtime.block_on(control_plane::run(args)),
    }
}
