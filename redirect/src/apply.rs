//! The rules on their way into the kernel and out of it: all of them, or none and an error.

use std::fs;
use std::path::Path;

use crate::error::{RedirectError, Refusal};
use crate::plan::{Exempt, Family, Ipv6, Plan, RedirectConfig};
use crate::timestamps;
use crate::tools::{self, Backend, Present, Tool};
use crate::verify::{Directions, PeerProgram, Verified, verify};

/// What [`apply`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The program that took the rules.
    pub back_end: &'static str,
    /// The IP versions that are caught.
    pub families: Vec<Family>,
    /// What the user should know: back ends that refused, IP versions that are left alone.
    pub notes: Vec<String>,
}

/// What [`remove`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Where rules were, and are no more.
    pub from: Vec<(&'static str, Family)>,
    /// Where there was no looking, because this kernel or image lacks the back end.
    pub notes: Vec<String>,
}

/// Rules of ours that are in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The program that reads them.
    pub back_end: &'static str,
    /// The IP version that they are for.
    pub family: Family,
    /// As the program prints them.
    pub rules: String,
}

/// What [`apply`] would feed to a program, in a namespace that has no rules of ours yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Script {
    /// The IP version that it is for.
    pub family: Family,
    /// The command that takes it on its standard input.
    pub command: String,
    /// What it takes.
    pub text: String,
}

/// Puts the rules in place with the first back end that takes them all, and removes what an earlier run with
/// another back end or configuration left. Applying twice leaves what applying once does. Timestamps that
/// are to be plain stay so, with the rules and without.
pub fn apply(config: &RedirectConfig, backend: Backend) -> Result<Applied, RedirectError> {
    config.check().map_err(RedirectError::Invalid)?;
    let (families, mut notes) = families(config.ipv6)?;
    require_net_admin()?;
    require_users(config, &fs::read_to_string("/proc/self/uid_map").unwrap_or_default())?;
    let mut attempts: Vec<Refusal> = Vec::new();
    for tool in tools::candidates(backend)? {
        match attempt(tool, config, &families)? {
            Attempt::Applied => {
                notes.extend(attempts.iter().map(|refusal| format!("a back end refused: {refusal}")));
                notes.extend(config.plain_timestamps.then(timestamps::plain_or_note).flatten());
                return Ok(Applied { back_end: tool.name, families, notes });
            }
            Attempt::Refused(refusal) => attempts.push(refusal),
        }
    }
    Err(RedirectError::Refused { attempts })
}

/// [`apply`], then [`verify`]; what is not proven is removed again.
pub fn apply_verified(
    config: &RedirectConfig,
    backend: Backend,
    directions: Directions,
    peer: &PeerProgram,
) -> Result<(Applied, Verified), RedirectError> {
    let applied = apply(config, backend)?;
    let source = match verify(config, directions, peer) {
        Ok(verified) => return Ok((applied, verified)),
        Err(source) => Box::new(source),
    };
    match remove(Backend::Auto) {
        Ok(_) => Err(RedirectError::RolledBack { source }),
        Err(undoing) => Err(RedirectError::NotRolledBack { source, undoing: Box::new(undoing) }),
    }
}

/// Removes every rule of ours from the back ends that `backend` means; without any, does nothing.
pub fn remove(backend: Backend) -> Result<Removed, RedirectError> {
    let mut removed = Removed { from: Vec::new(), notes: Vec::new() };
    let mut refusals = Vec::new();
    for (tool, family, present) in inspect(backend, &mut removed.notes)? {
        match tool.uninstall(family, &present) {
            Ok(()) => removed.from.push((tool.name, family)),
            Err(refusal) => refusals.push(refusal),
        }
    }
    if refusals.is_empty() { Ok(removed) } else { Err(RedirectError::Stuck { doing: "removed", refusals }) }
}

/// The rules of ours that are in the kernel now.
pub fn show(backend: Backend) -> Result<Vec<Shown>, RedirectError> {
    let found = inspect(backend, &mut Vec::new())?;
    Ok(found
        .into_iter()
        .map(|(tool, family, present)| {
            let rules = match present {
                Present::Iptables(table) => table.lines.join("\n"),
                Present::Nft(listed) => listed.trim_end().to_owned(),
            };
            Shown { back_end: tool.name, family, rules }
        })
        .collect())
}

/// The rules as text; nothing is changed and no right is needed.
pub fn render(config: &RedirectConfig, backend: Backend) -> Result<Vec<Script>, RedirectError> {
    config.check().map_err(RedirectError::Invalid)?;
    let (families, _) = families(config.ipv6)?;
    let installed = tools::candidates(backend).ok().and_then(|tools| tools.first().copied());
    let tool = installed.unwrap_or(Tool::named(backend));
    Ok(families
        .into_iter()
        .map(|family| {
            let text = tool.script(&Plan::new(config, family));
            Script { family, command: tool.command_line(family), text }
        })
        .collect())
}

enum Attempt {
    Applied,
    /// Nothing of the attempt is left.
    Refused(Refusal),
}

fn attempt(tool: Tool, config: &RedirectConfig, families: &[Family]) -> Result<Attempt, RedirectError> {
    for (already, family) in families.iter().enumerate() {
        if let Err(refusal) = tool.install(&Plan::new(config, *family)) {
            return undo(tool, &families[..already], refusal);
        }
    }
    match remove_strays(tool, families) {
        Ok(()) => Ok(Attempt::Applied),
        Err(refusal) => undo(tool, families, refusal),
    }
}

/// Takes back what was `applied`. An older rule set of the other IP version goes too: it is of no use alone.
/// Where nothing was applied, an older rule set is whole, and stays.
fn undo(tool: Tool, applied: &[Family], refusal: Refusal) -> Result<Attempt, RedirectError> {
    if applied.is_empty() {
        return Ok(Attempt::Refused(refusal));
    }
    for family in Family::ALL {
        let undone = match tool.inspect(family) {
            Ok(Some(present)) => tool.uninstall(family, &present),
            Err(undoing) if applied.contains(&family) => Err(undoing),
            // Not there; or not readable and not written just now, so that the kernel or the image lacks it.
            Ok(None) | Err(_) => Ok(()),
        };
        if let Err(undoing) = undone {
            return Err(RedirectError::HalfApplied { applying: refusal, undoing });
        }
    }
    Ok(Attempt::Refused(refusal))
}

/// What an earlier run left elsewhere would go on catching by its own configuration.
fn remove_strays(applied: Tool, families: &[Family]) -> Result<(), Refusal> {
    // One back end was found to get here, so that this is an error only if it has vanished since.
    for tool in tools::candidates(Backend::Auto).unwrap_or_default() {
        for family in Family::ALL {
            if tool.shares_store(applied) && families.contains(&family) {
                continue;
            }
            // What cannot be read with the rights that the rules were just applied with is not there.
            if let Ok(Some(present)) = tool.inspect(family) {
                tool.uninstall(family, &present)?;
            }
        }
    }
    Ok(())
}

/// Everything of ours in the kernel. A back end that the kernel or the image lacks cannot hold anything, and
/// makes a note; one that denies access makes an error, as do all together.
fn inspect(backend: Backend, notes: &mut Vec<String>) -> Result<Vec<(Tool, Family, Present)>, RedirectError> {
    require_net_admin()?;
    let mut found = Vec::new();
    let mut refusals = Vec::new();
    let mut readable = false;
    for tool in tools::candidates(backend)? {
        for family in Family::ALL {
            match tool.inspect(family) {
                Ok(present) => {
                    readable = true;
                    found.extend(present.map(|present| (tool, family, present)));
                }
                Err(refusal) => refusals.push(refusal),
            }
        }
    }
    if !readable || refusals.iter().any(Refusal::is_denial) {
        return Err(RedirectError::Stuck { doing: "read", refusals });
    }
    notes.extend(refusals.iter().map(|refusal| format!("not looked at: {refusal}")));
    Ok(found)
}

/// The IP versions to catch, and what to say about one that is not.
pub(crate) fn families(ipv6: Ipv6) -> Result<(Vec<Family>, Vec<String>), RedirectError> {
    let missing = why_no_ipv6(Path::new("/proc/sys/net/ipv6/conf"));
    match (ipv6, missing) {
        (Ipv6::Off, None) => Ok((vec![Family::V4], vec!["IPv6 goes round the mesh, as asked".to_owned()])),
        (Ipv6::Off, Some(_)) => Ok((vec![Family::V4], Vec::new())),
        (Ipv6::Auto, Some(why)) => Ok((vec![Family::V4], vec![format!("IPv6 is left alone: {why}")])),
        (Ipv6::Require, Some(why)) => Err(RedirectError::NoIpv6(why.to_owned())),
        (Ipv6::Auto | Ipv6::Require, None) => Ok((Family::ALL.to_vec(), Vec::new())),
    }
}

/// None where an interface has IPv6, or where one that is yet to come will have it.
fn why_no_ipv6(conf: &Path) -> Option<&'static str> {
    let Ok(interfaces) = fs::read_dir(conf) else {
        return Some("the kernel does not have it");
    };
    // `all` only ever sets the others; what counts is in them.
    let enabled = interfaces
        .flatten()
        .filter(|interface| interface.file_name() != "all")
        .any(|interface| fs::read_to_string(interface.path().join("disable_ipv6")).is_ok_and(|value| value.trim() == "0"));
    (!enabled).then_some("it is disabled on every interface (net.ipv6.conf.*.disable_ipv6)")
}

/// Legacy iptables reports an empty table to a process without rights, so it is not left to the tools to say.
pub(crate) fn require_net_admin() -> Result<(), RedirectError> {
    const CAP_NET_ADMIN: u32 = 12;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    match effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()) {
        Some(bits) if bits & (1 << CAP_NET_ADMIN) == 0 => Err(RedirectError::NoNetAdmin),
        // Without /proc the tools themselves will say.
        _ => Ok(()),
    }
}

/// A user that this user namespace does not have owns no socket in it: a rule about one never fits, and while
/// iptables refuses it, nft does not. `uid_map` is the file of that name of `user_namespaces(7)`; empty without /proc.
fn require_users(config: &RedirectConfig, uid_map: &str) -> Result<(), RedirectError> {
    let is_here = |uid: u32| {
        uid_map.lines().any(|line| {
            let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            matches!(numbers[..], [first, _, count] if (first..first + count).contains(&u64::from(uid)))
        })
    };
    let exempt = config.exempt.iter().filter_map(|exempt| match *exempt {
        Exempt::Uid(uid) => Some(uid),
        Exempt::Mark(_) => None,
    });
    let missing: Vec<String> = exempt
        .chain(config.skip_uids.iter().copied())
        .filter(|uid| !uid_map.is_empty() && !is_here(*uid))
        .map(|uid| format!("user {uid} is not in this user namespace; tell the sidecar's sockets by a mark instead"))
        .collect();
    if missing.is_empty() { Ok(()) } else { Err(RedirectError::Invalid(missing)) }
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::process;

    use super::*;

    #[test]
    fn ipv6_is_there_if_any_interface_has_it_whatever_all_says() {
        let conf = env::temp_dir().join(format!("weft-redirect-ipv6-{}", process::id()));
        let interface = |name: &str, disabled: &str| {
            fs::create_dir_all(conf.join(name)).expect("the temporary directory is writable");
            fs::write(conf.join(name).join("disable_ipv6"), disabled).expect("the temporary directory is writable");
        };
        assert!(why_no_ipv6(&conf).is_some(), "no directory means no IPv6 in the kernel");
        interface("all", "0\n");
        interface("default", "1\n");
        interface("lo", "1\n");
        assert!(why_no_ipv6(&conf).is_some());
        interface("eth0", "0\n");
        assert!(why_no_ipv6(&conf).is_none());
        fs::remove_dir_all(&conf).expect("the directory was made above");
    }

    #[test]
    fn ipv6_that_is_off_is_said_or_not_there_at_all() {
        let (families, _) = families(Ipv6::Off).expect("off never fails");
        assert_eq!(families, [Family::V4]);
    }

    #[test]
    fn a_user_must_be_in_the_user_namespace() {
        let config = |uid| RedirectConfig { skip_uids: vec![uid], ..RedirectConfig::default() };
        let whole = "         0          0 4294967295\n";
        let two = "0 1000 1\n4747 100000 10\n";
        assert!(require_users(&config(4_294_967_294), whole).is_ok());
        assert!(require_users(&config(4756), two).is_ok());
        assert!(matches!(require_users(&config(4757), two), Err(RedirectError::Invalid(users)) if users.len() == 1));
        assert!(matches!(require_users(&config(1), "0 1000 1\n"), Err(RedirectError::Invalid(users)) if users.len() == 2));
        assert!(require_users(&config(1), "").is_ok(), "without /proc the kernel decides");
    }

    #[test]
    fn a_config_that_cannot_work_is_refused_before_anything_is_run() {
        let config = RedirectConfig { exempt: Vec::new(), ..RedirectConfig::default() };
        assert!(matches!(apply(&config, Backend::Auto), Err(RedirectError::Invalid(_))));
        assert!(matches!(render(&config, Backend::Auto), Err(RedirectError::Invalid(_))));
    }
}
