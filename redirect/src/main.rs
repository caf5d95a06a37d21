//! `weft-redirect`: the packet rules from the command line, for the init container, the CNI plugin and the lab.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;
use weft_core::wellknown::{PORT_INBOUND, PORT_OUTBOUND, SIDECAR_UID};
use weft_redirect::{
    Backend, Directions, Exempt, Ipv6, PeerProgram, PortRange, RedirectConfig, RedirectError, STATUS_NOT_IN_FORCE, Verified,
};

/// Brings a pod's TCP connections to its sidecar.
///
/// Works on the network namespace that it runs in. Ends with status 0 only where everything asked for is done
/// and, with --verify, proven; otherwise nothing is left behind, or the message says what is. `verify` ends with
/// status 3 where the rules are not in force, and takes no rights to prove outbound alone.
#[derive(Debug, Parser)]
#[command(name = "weft-redirect", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Put the rules in place; again is the same as once.
    Apply {
        #[command(flatten)]
        rules: RuleFlags,
        /// Print what would be applied, and change nothing.
        #[arg(long)]
        dry_run: bool,
        /// Prove afterwards that connections are caught, and remove the rules if they are not.
        #[arg(
            long,
            env = "WEFT_REDIRECT_VERIFY",
            value_name = "DIRECTIONS",
            value_enum,
            num_args = 0..=1,
            require_equals = true,
            default_missing_value = "both"
        )]
        verify: Option<Directions>,
    },
    /// Prove that the rules, applied before with the same flags, catch connections.
    Verify {
        #[command(flatten)]
        rules: RuleFlags,
        /// Which connections to make.
        #[arg(long, env = "WEFT_REDIRECT_DIRECTIONS", value_enum, default_value = "both")]
        directions: Directions,
    },
    /// Remove the rules, whichever back end they were applied with.
    Remove {
        #[command(flatten)]
        with: BackendFlag,
    },
    /// Print the rules that are in place.
    Show {
        #[command(flatten)]
        with: BackendFlag,
    },
    /// Be the other end of a proof.
    #[command(name = weft_redirect::PROBE_PEER, hide = true)]
    ProbePeer,
}

#[derive(Debug, Args)]
struct BackendFlag {
    /// What applies the rules.
    #[arg(long, env = "WEFT_REDIRECT_BACKEND", value_enum, default_value = "auto")]
    backend: Backend,
}

// Not a doc comment: clap would take it for the description of each subcommand that has these flags.
#[derive(Debug, Args)]
struct RuleFlags {
    #[command(flatten)]
    with: BackendFlag,
    /// What to do about IPv6.
    #[arg(long, env = "WEFT_REDIRECT_IPV6", value_enum, default_value = "auto")]
    ipv6: Ipv6,
    /// The sidecar's port for connections that come in.
    #[arg(long, env = "WEFT_REDIRECT_INBOUND_PORT", value_name = "PORT", default_value_t = PORT_INBOUND)]
    inbound_port: u16,
    /// The sidecar's port for connections that the pod opens.
    #[arg(long, env = "WEFT_REDIRECT_OUTBOUND_PORT", value_name = "PORT", default_value_t = PORT_OUTBOUND)]
    outbound_port: u16,
    /// Users whose connections are the sidecar's own [default: 4747, unless --exempt-mark is given].
    #[arg(long, env = "WEFT_REDIRECT_EXEMPT_UID", value_name = "UID", value_delimiter = ',')]
    exempt_uid: Vec<u32>,
    /// Marks of sockets that are the sidecar's own, as 18247 or 0x4747.
    #[arg(long, env = "WEFT_REDIRECT_EXEMPT_MARK", value_name = "MARK", value_delimiter = ',', value_parser = mark)]
    exempt_mark: Vec<u32>,
    /// Ports of this pod that others reach directly, as 80 or 8000-8010.
    #[arg(long, env = "WEFT_REDIRECT_SKIP_INBOUND_PORTS", value_name = "PORTS", value_delimiter = ',')]
    skip_inbound_ports: Vec<PortRange>,
    /// Ports of others that this pod reaches directly, as 25 or 8000-8010.
    #[arg(long, env = "WEFT_REDIRECT_SKIP_OUTBOUND_PORTS", value_name = "PORTS", value_delimiter = ',')]
    skip_outbound_ports: Vec<PortRange>,
    /// Destinations that this pod reaches directly, as 10.0.0.0/8 or `2001:db8::/32`.
    #[arg(long, env = "WEFT_REDIRECT_SKIP_SUBNETS", value_name = "SUBNETS", value_delimiter = ',')]
    skip_subnets: Vec<IpNet>,
    /// Users of this pod, besides the sidecar's, whose connections are not caught.
    #[arg(long, env = "WEFT_REDIRECT_SKIP_UIDS", value_name = "UIDS", value_delimiter = ',')]
    skip_uids: Vec<u32>,
    /// The sidecar's port for what the pod asks of DNS, over UDP and TCP; without it, that is not caught.
    #[arg(long, env = "WEFT_REDIRECT_DNS_PORT", value_name = "PORT")]
    dns_port: Option<u16>,
    /// Set `net.ipv4.tcp_timestamps` to 2, which stays: a program that opens thousands of connections to several services does not wait a second for some (WEFT-C037).
    ///
    /// Every connection of the network namespace then has timestamps that tell how long the machine has run, and that two pods are on one.
    #[arg(long, env = "WEFT_REDIRECT_PLAIN_TIMESTAMPS")]
    plain_timestamps: bool,
}

fn mark(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|error| error.to_string())
}

impl RuleFlags {
    fn into_config(self) -> RedirectConfig {
        let uids = self.exempt_uid.into_iter().map(Exempt::Uid);
        let mut exempt: Vec<Exempt> = uids.chain(self.exempt_mark.into_iter().map(Exempt::Mark)).collect();
        if exempt.is_empty() {
            exempt.push(Exempt::Uid(SIDECAR_UID));
        }
        RedirectConfig {
            inbound_port: self.inbound_port,
            outbound_port: self.outbound_port,
            exempt,
            skip_inbound_ports: self.skip_inbound_ports,
            skip_outbound_ports: self.skip_outbound_ports,
            skip_subnets: self.skip_subnets,
            skip_uids: self.skip_uids,
            dns_port: self.dns_port,
            ipv6: self.ipv6,
            plain_timestamps: self.plain_timestamps,
        }
    }
}

fn main() -> ExitCode {
    let Err(error) = run(Cli::parse().command) else { return ExitCode::SUCCESS };
    let _ = writeln!(io::stderr(), "Error: {error:?}");
    let not_in_force = error.downcast_ref().is_some_and(RedirectError::is_not_in_force);
    if not_in_force { ExitCode::from(STATUS_NOT_IN_FORCE) } else { ExitCode::FAILURE }
}

fn run(command: Command) -> anyhow::Result<()> {
    let lines = match command {
        Command::Apply { rules, dry_run: true, .. } => dry_run(rules)?,
        Command::Apply { rules, verify, .. } => apply(rules, verify)?,
        Command::Verify { rules, directions } => told(weft_redirect::verify(&rules.into_config(), directions, &this_program()?)?),
        Command::Remove { with } => remove(with.backend)?,
        Command::Show { with } => show(with.backend)?,
        Command::ProbePeer => {
            weft_redirect::probe_peer()?;
            Vec::new()
        }
    };
    let mut out = io::stdout().lock();
    for line in lines {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

fn dry_run(rules: RuleFlags) -> anyhow::Result<Vec<String>> {
    let backend = rules.with.backend;
    let scripts = weft_redirect::render(&rules.into_config(), backend)?;
    let lines = scripts.iter().map(|script| format!("# {}: {}\n{}", script.family, script.command, script.text));
    Ok(lines.collect())
}

fn apply(rules: RuleFlags, verify: Option<Directions>) -> anyhow::Result<Vec<String>> {
    let backend = rules.with.backend;
    let config = rules.into_config();
    let (applied, verified) = match verify {
        None => (weft_redirect::apply(&config, backend)?, Verified::default()),
        Some(directions) => weft_redirect::apply_verified(&config, backend, directions, &this_program()?)?,
    };
    let families: Vec<String> = applied.families.iter().map(ToString::to_string).collect();
    let mut lines = vec![format!("applied: {} by {}", families.join(" and "), applied.back_end)];
    lines.extend(notes(&applied.notes));
    // What is said of the IP versions is said once.
    let news = verified.notes.into_iter().filter(|note| !applied.notes.contains(note)).collect();
    lines.extend(told(Verified { proven: verified.proven, notes: news }));
    Ok(lines)
}

fn remove(backend: Backend) -> anyhow::Result<Vec<String>> {
    let removed = weft_redirect::remove(backend)?;
    let mut lines: Vec<String> =
        removed.from.iter().map(|(back_end, family)| format!("removed: {family} by {back_end}")).collect();
    if lines.is_empty() {
        lines.push("no rules of weft's were in place".to_owned());
    }
    lines.extend(notes(&removed.notes));
    Ok(lines)
}

fn show(backend: Backend) -> anyhow::Result<Vec<String>> {
    let shown = weft_redirect::show(backend)?;
    if shown.is_empty() {
        return Ok(vec!["no rules of weft's are in place".to_owned()]);
    }
    Ok(shown.iter().map(|shown| format!("# {} by {}\n{}", shown.family, shown.back_end, shown.rules)).collect())
}

fn told(verified: Verified) -> Vec<String> {
    let mut lines: Vec<String> = verified.proven.into_iter().map(|line| format!("proven: {line}")).collect();
    lines.extend(notes(&verified.notes));
    lines
}

fn notes(notes: &[String]) -> Vec<String> {
    notes.iter().map(|note| format!("note: {note}")).collect()
}

fn this_program() -> anyhow::Result<PeerProgram> {
    PeerProgram::this_program().context("this program cannot be found to be started again for the proof")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(args: &[&str]) -> Cli {
        let line = [&["weft-redirect", "apply"][..], args].concat();
        Cli::try_parse_from(line).expect("the test's flags are well formed")
    }

    fn config(args: &[&str]) -> RedirectConfig {
        match parse(args).command {
            Command::Apply { rules, .. } => rules.into_config(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_table_of_flags_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn without_flags_the_config_is_the_default() {
        assert_eq!(config(&[]), RedirectConfig::default());
    }

    #[test]
    fn a_mark_takes_the_place_of_the_default_user_and_joins_a_given_one() {
        assert_eq!(config(&["--exempt-mark=0x4747"]).exempt, [Exempt::Mark(0x4747)]);
        assert_eq!(config(&["--exempt-mark=18247", "--exempt-uid=7"]).exempt, [Exempt::Uid(7), Exempt::Mark(18247)]);
    }

    #[test]
    fn lists_are_separated_by_commas() {
        let config = config(&["--skip-outbound-ports=25,8000-8010", "--skip-subnets=10.0.0.0/8,2001:db8::/32"]);
        assert_eq!(config.skip_outbound_ports.len(), 2);
        assert_eq!(config.skip_subnets.len(), 2);
    }

    #[test]
    fn verify_takes_its_directions_only_after_an_equals_sign() {
        let verify = |args: &[&str]| match parse(args).command {
            Command::Apply { verify, .. } => verify,
            other => panic!("{other:?}"),
        };
        assert_eq!(verify(&["--verify"]), Some(Directions::Both));
        assert_eq!(verify(&["--verify=outbound"]), Some(Directions::Outbound));
        assert_eq!(verify(&[]), None);
    }

    #[test]
    fn a_malformed_flag_is_refused() {
        for flag in ["--skip-outbound-ports=99999", "--exempt-mark=0xzz", "--skip-subnets=10.0.0.0/99", "--backend=pf"] {
            assert!(Cli::try_parse_from(["weft-redirect", "apply", flag]).is_err(), "{flag}");
        }
    }
}
