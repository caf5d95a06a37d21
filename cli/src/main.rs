//! `weft`: what is wrong (`check`), who talks to whom (`stat`, `top`, `edges`), why a call failed (`why`, `explain`); a mesh on one machine (`up`), a command
//! inside it (`exec`), join tokens (`token`), and its roots (`trust`); a mesh on a Kubernetes cluster (`install`, `upgrade`, `uninstall`), and sidecars in manifests (`inject`).

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

mod bundle;
mod capture;
mod check;
mod confine;
mod console;
mod dashboard;
mod demo;
mod diff;
mod duration;
mod edges;
mod endpoints;
mod exec;
mod explain;
mod fds;
mod fleet;
mod help;
mod histogram;
mod http;
mod init;
mod inject;
mod install;
mod lab;
mod log;
mod manifests;
mod mesh_file;
mod mounts;
mod operator;
mod output;
mod plan;
mod preflight;
mod record;
mod routes;
mod rundir;
mod sidecar;
mod stat;
mod status;
mod strict_ready;
mod suggest;
mod table;
mod tap;
mod token;
mod top;
mod trace;
mod trust;
mod up;
mod userns;
mod validate;
mod why;
mod wire;

/// A service mesh: on this machine or on Kubernetes, and the tools to look into it
#[derive(Parser, Debug)]
#[command(name = "weft", version)]
struct Cli {
    /// When colours are used: auto, always or never
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "WHEN",
        default_value = "auto",
        hide_default_value = true,
        hide_possible_values = true
    )]
    color: output::When,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the workloads of a file in a mesh of their own, until Ctrl-C
    Up(up::UpArgs),
    /// Run a command inside a workload's place in the mesh
    Exec(exec::ExecArgs),
    /// Bring a small shop up, send traffic through it, and check that the mesh does what it says
    Demo(demo::DemoArgs),
    /// Find what is wrong with a mesh, its cause and its remedy
    Check(check::CheckArgs),
    /// Show workloads, identities, certificate expiry and versions
    Status(status::StatusArgs),
    /// Compare what the control plane has for a sidecar with what it holds
    Diff(diff::DiffArgs),
    /// Show success, rate and latency by service, route, edge or pod
    Stat(stat::StatArgs),
    /// Show the same live, as it changes
    Top(top::TopArgs),
    /// Show who talks to whom, whether secured, how well and how fast
    Edges(edges::EdgesArgs),
    /// Show the routes in force, as callers have them
    Routes(routes::RoutesArgs),
    /// Show what sidecars think of the endpoints that they call
    Endpoints(endpoints::EndpointsArgs),
    /// Tell whether a call would be let in, and by which policy, or why not
    Explain(Box<explain::ExplainArgs>),
    /// Tell why a call was denied, by the reference that its caller got
    Why(why::WhyArgs),
    /// Capture the decrypted packets of a pod
    Capture(capture::CaptureArgs),
    /// Make a support archive, without secrets
    Bundle(bundle::BundleArgs),
    /// Record who calls what, for a while, to replay it or to suggest policies from it
    Record(record::RecordArgs),
    /// Write the least policies that allow what was recorded
    Suggest(suggest::SuggestArgs),
    /// Ask one sidecar what it knows (/config) and has counted (/edges, /metrics)
    Sidecar(sidecar::SidecarArgs),
    /// Read or change what a sidecar, the control plane or the injector logs
    Log(log::LogArgs),
    /// Open a page that shows traffic, refusals and certificates live
    Dashboard(dashboard::DashboardArgs),
    /// Show requests and connections of a workload, live
    Tap(tap::TapArgs),
    /// Show the last traces that the sidecars keep
    Trace(trace::TraceArgs),
    /// Join tokens, for sidecars on machines without a cluster
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Show the roots that the mesh trusts, and replace the root while everything runs
    #[command(subcommand)]
    Trust(trust::TrustCommand),

    /// Install the mesh on a Kubernetes cluster: prints the manifests, or applies them
    Install(Box<install::InstallArgs>),
    /// Bring a mesh on Kubernetes to this version or other settings: shows what differs, or applies it
    Upgrade(Box<install::UpgradeArgs>),
    /// Remove the mesh from a Kubernetes cluster: prints what to delete, or deletes it
    Uninstall(install::uninstall::UninstallArgs),
    /// Add sidecars to the pods of manifests
    Inject(Box<inject::InjectArgs>),
    /// Tell what is wrong with manifests, and what would become of routes and policies
    Validate(validate::ValidateArgs),

    /// Print the completion of a shell
    Completion(help::CompletionArgs),
    /// Write a manual page for each command
    Man(help::ManArgs),

    // What `up` and `exec` start again as, inside namespaces; each is described where it is defined.
    #[command(name = "__probe", hide = true)]
    Probe(preflight::ProbeArgs),
    #[command(name = "__reach", hide = true)]
    Reach(check::ReachArgs),
    #[command(name = "__get", hide = true)]
    Get(sidecar::GetArgs),
    #[command(name = "__init", hide = true)]
    Init,
    #[command(name = "__lab", hide = true)]
    Lab,
    #[command(name = "__replica", hide = true)]
    Replica,
    #[command(name = "__run", hide = true)]
    Run,
    #[command(name = "__pod", hide = true)]
    Pod,
    #[command(name = "__exec", hide = true)]
    Confined(confine::ConfinedArgs),
}

/// The command line, as it is parsed and as it is shown.
fn command() -> clap::Command {
    help::dress(Cli::command())
}

fn main() -> ExitCode {
    let cli = match Cli::from_arg_matches(&command().get_matches()) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    output::choose(cli.color);
    let outcome = match cli.command {
        Command::Up(args) => up::main(&args),
        Command::Exec(args) => exec::main(&args),
        Command::Demo(args) => demo::main(&args),
        Command::Status(args) => status::main(&args),
        Command::Diff(args) => diff::main(&args),
        Command::Stat(args) => stat::main(&args),
        Command::Top(args) => top::main(&args),
        Command::Edges(args) => edges::main(&args),
        Command::Routes(args) => routes::main(&args),
        Command::Capture(args) => capture::main(&args),
        Command::Bundle(args) => bundle::main(&args),
        Command::Completion(args) => help::completion(&args, &mut command()),
        Command::Man(args) => help::man(&args, command()),
        Command::Endpoints(args) => endpoints::main(&args),
        Command::Explain(args) => explain::main(&args),
        Command::Why(args) => why::main(&args),
        Command::Record(args) => record::main(&args),
        Command::Suggest(args) => suggest::main(&args),
        Command::Sidecar(args) => sidecar::main(&args),
        Command::Log(args) => log::main(&args),
        Command::Tap(args) => tap::main(&args),
        Command::Dashboard(args) => dashboard::main(&args),
        Command::Trace(args) => trace::main(&args),
        Command::Reach(args) => check::reach(&args),
        Command::Get(args) => sidecar::get(&args),
        Command::Token(command) => token::main(&command),
        Command::Trust(command) => trust::main(&command),
        Command::Install(args) => install::main(&args),
        Command::Upgrade(args) => install::upgrade(&args),
        Command::Uninstall(args) => install::uninstall::main(&args),
        Command::Check(args) => check::run(&args),
        Command::Inject(args) => inject::main(&args),
        Command::Validate(args) => validate::main(&args),
        Command::Probe(args) => preflight::probe(&args),
        Command::Init => init::main(),
        Command::Lab => lab::main(),
        Command::Replica => lab::replica::main(),
        Command::Run => lab::pod::run_main(),
        Command::Pod => lab::pod::main(),
        Command::Confined(args) => confine::main(&args),
    };
    outcome.unwrap_or_else(|error| {
        complain(&format!("{error:#}"));
        ExitCode::FAILURE
    })
}

/// Says on standard error what went wrong. A standard error that is gone is nobody's problem.
fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "weft: {}", output::plain_lines(text));
}
