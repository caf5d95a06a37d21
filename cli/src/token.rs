//! `weft token`: join tokens from a control plane on this machine.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use weft_core::ServiceAccount;
use weft_core::service::ObjectRef;

use crate::duration;
use crate::operator::{self, Meant};
use crate::output::Output;

/// What `weft token` can do.
#[derive(Subcommand, Debug)]
pub(crate) enum TokenCommand {
    /// Make a join token for one pod, and print it: it lets one sidecar join, once
    Create(CreateArgs),
}

/// What `weft token create` is told.
#[derive(Args, Debug)]
#[command(after_help = "\
The token is a secret until it was used.

Examples:
  weft token create shop/db-0 --service-account db > token
  weft token create shop/db-0 --service-account db --ttl 1h -o json")]
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

    #[command(flatten)]
    output: Output,
}

pub(crate) fn main(command: &TokenCommand) -> anyhow::Result<ExitCode> {
    let TokenCommand::Create(args) = command;
    let token = operator::ask(&args.meant.socket()?, async |mut operator| {
        // Less than a second would mean the default to the control plane.
        let ttl = args.ttl.max(Duration::from_secs(1));
        operator.create_token(args.pod.namespace.as_str(), args.pod.name.as_str(), args.service_account.as_str(), ttl).await
    })?;
    let told = serde_json::json!({
        "pod": args.pod.to_string(),
        "serviceAccount": args.service_account.as_str(),
        "token": token.as_str(),
        "ttlSeconds": args.ttl.max(Duration::from_secs(1)).as_secs(),
    });
    args.output.print(|_| format!("{}\n", token.as_str()), &told)?;
    Ok(ExitCode::SUCCESS)
}
