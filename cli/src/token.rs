//! `weft token`: join tokens from a control plane on this machine.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand};
use weft_core::ServiceAccount;
use weft_core::service::ObjectRef;

use crate::duration;
use crate::operator::{self, Meant};

/// What `weft token` can do.
#[derive(Subcommand, Debug)]
pub(crate) enum TokenCommand {
    /// Make a join token for one pod, and print it: it lets one sidecar join, once
    Create(CreateArgs),
}

/// What `weft token create` is told.
#[derive(Args, Debug)]
pub(crate) struct CreateArgs {
    /// The pod that may join
    #[arg(value_name = "NS/POD")]
    pod: ObjectRef,

    /// Its service account, which becomes its identity
    #[arg(long, value_name = "NAME")]
    service_account: ServiceAccount,

    /// How long the token may be used, at most 24h
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = duration::parse)]
    ttl: Duration,

    #[command(flatten)]
    meant: Meant,
}

pub(crate) fn main(command: &TokenCommand) -> anyhow::Result<ExitCode> {
    let TokenCommand::Create(args) = command;
    let token = operator::ask(&args.meant.socket()?, async |mut operator| {
        // Less than a second would mean the default to the control plane.
        let ttl = args.ttl.max(Duration::from_secs(1));
        operator.create_token(args.pod.namespace.as_str(), args.pod.name.as_str(), args.service_account.as_str(), ttl).await
    })?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", token.as_str()).context("the token cannot be printed")?;
    Ok(ExitCode::SUCCESS)
}
