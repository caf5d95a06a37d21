//! `weft-cni`: the plugin where a container runtime starts it; else, by its subcommands, the agent.

use std::process::ExitCode;

use clap::Parser;
use weft_cni::config::{Cli, Command, Config};
use weft_cni::{PLUGIN, install, plugin};

fn main() -> anyhow::Result<ExitCode> {
    // Before anything else: it runs for every container of the node.
    if std::env::var_os("CNI_COMMAND").is_some() {
        return Ok(plugin::main());
    }
    match Cli::parse().command {
        Command::Install(config) => agent(*config)?,
        Command::Uninstall(node) => {
            let _log = weft_log::Log::begin("info")?;
            install::leave(&node.node())?;
        }
        Command::Log { filter } => weft_log::door::main(PLUGIN, filter.as_slice())?,
        Command::ProbePeer => weft_redirect::probe_peer()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn agent(config: Config) -> anyhow::Result<()> {
    let log = weft_log::Log::begin(&config.log)?;
    weft_log::door::open(PLUGIN, log.levels());
    // The client of the API server takes the process's provider; without one it would guess among those that are built in.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        anyhow::bail!("a cryptographic provider is in place already: a fault in weft");
    }
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(install::run(config, log.levels()))
}
