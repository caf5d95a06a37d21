//! The programs that put rules into the kernel: which are there, and what each is told.

use std::cmp::Reverse;
use std::env;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::error::{RedirectError, Refusal};
use crate::plan::iptables::{self, NatTable};
use crate::plan::{Family, Plan, nft};

/// What applies the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Backend {
    /// What already holds rules; else iptables; else nft. The next one where the kernel refuses.
    Auto,
    /// The program `iptables`, whichever kernel interface it has.
    Iptables,
    /// iptables over `nf_tables`.
    IptablesNft,
    /// iptables over its legacy interface.
    IptablesLegacy,
    /// The program `nft`.
    Nft,
}

/// Where in the kernel the rules end up. Two tools with the same store see each other's rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Store {
    XtablesNft,
    XtablesLegacy,
    Nft,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    store: Store,
}

/// What of ours a store holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Present {
    Iptables(NatTable),
    Nft(String),
}

/// Seconds that a tool waits for the lock that legacy iptables takes.
const LOCK_WAIT_SECS: &str = "5";

/// Besides `PATH`, which in a container often lacks them.
const ADMIN_DIRECTORIES: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The tools to use for `wanted`, best first, one for each store; never none.
pub(crate) fn candidates(wanted: Backend) -> Result<Vec<Tool>, RedirectError> {
    let names = ["iptables", "iptables-nft", "iptables-legacy", "nft"];
    let mut tools: Vec<Tool> = names.into_iter().filter_map(Tool::installed).filter(|tool| tool.serves(wanted)).collect();
    let asked_for = |tool: &Tool| wanted != Backend::Auto && tool.name == Tool::named(wanted).name;
    tools.sort_by_cached_key(|tool| (tool.store == Store::Nft, !asked_for(tool), Reverse(tool.rules_held())));

    let mut stores = Vec::new();
    tools.retain(|tool| {
        let first = !stores.contains(&tool.store);
        stores.push(tool.store);
        first
    });
    if tools.is_empty() {
        let wanted = match wanted {
            Backend::Auto => "iptables or nft",
            Backend::Iptables | Backend::IptablesNft | Backend::IptablesLegacy | Backend::Nft => Tool::named(wanted).name,
        };
        return Err(RedirectError::NoTool { wanted, searched: searched() });
    }
    Ok(tools)
}

impl Tool {
    /// The tool that `wanted` names, installed or not.
    pub(crate) const fn named(wanted: Backend) -> Self {
        match wanted {
            Backend::Auto | Backend::Iptables => Self { name: "iptables", store: Store::XtablesNft },
            Backend::IptablesNft => Self { name: "iptables-nft", store: Store::XtablesNft },
            Backend::IptablesLegacy => Self { name: "iptables-legacy", store: Store::XtablesLegacy },
            Backend::Nft => Self { name: "nft", store: Store::Nft },
        }
    }

    fn installed(name: &'static str) -> Option<Self> {
        if name == "nft" {
            return locate(name).map(|_| Self { name, store: Store::Nft });
        }
        let restore = format!("{name}-restore");
        locate(&format!("{name}-save"))?;
        // A version without the word is older than 1.8, and so older than iptables over nf_tables.
        let version = run(&restore, &["--version"], "").ok()?;
        let store = if version.contains("nf_tables") { Store::XtablesNft } else { Store::XtablesLegacy };
        Some(Self { name, store })
    }

    fn serves(self, wanted: Backend) -> bool {
        match wanted {
            Backend::Auto => true,
            Backend::Iptables => self.name == "iptables",
            Backend::IptablesNft => self.store == Store::XtablesNft,
            Backend::IptablesLegacy => self.store == Store::XtablesLegacy,
            Backend::Nft => self.store == Store::Nft,
        }
    }

    pub(crate) fn shares_store(self, other: Self) -> bool {
        self.store == other.store
    }

    /// How many rules, of anyone's, an iptables store has.
    fn rules_held(self) -> usize {
        if self.store == Store::Nft {
            return 0;
        }
        let saved = Family::ALL.map(|family| run(&self.program(family, "-save"), &[], "").unwrap_or_default());
        saved.iter().map(|saved| iptables::rules_in(saved)).sum()
    }

    fn program(self, family: Family, suffix: &str) -> String {
        match (family, self.name.strip_prefix("ip")) {
            (Family::V6, Some(rest)) => format!("ip6{rest}{suffix}"),
            _ => format!("{}{suffix}", self.name),
        }
    }

    /// The command that takes a script on its standard input and applies all of it or nothing.
    fn command(self, family: Family) -> (String, &'static [&'static str]) {
        match self.store {
            Store::Nft => ("nft".to_owned(), &["-f", "-"]),
            _ => (self.program(family, "-restore"), &["--noflush", "-w", LOCK_WAIT_SECS]),
        }
    }

    pub(crate) fn command_line(self, family: Family) -> String {
        let (program, args) = self.command(family);
        line(&program, args)
    }

    /// What is fed to [`Tool::command_line`] where nothing of ours is there yet.
    pub(crate) fn script(self, plan: &Plan) -> String {
        self.script_over(plan, None)
    }

    fn script_over(self, plan: &Plan, present: Option<Present>) -> String {
        match (self.store, present) {
            (Store::Nft, _) => nft::ruleset(plan),
            (_, Some(Present::Iptables(table))) => iptables::restore_script(plan, &table),
            _ => iptables::restore_script(plan, &NatTable::default()),
        }
    }

    /// Applies `plan` whole, or changes nothing.
    pub(crate) fn install(self, plan: &Plan) -> Result<(), Refusal> {
        let present = self.inspect(plan.family)?;
        let (program, args) = self.command(plan.family);
        run(&program, args, &self.script_over(plan, present)).map(drop)
    }

    /// What of ours is there for `family`, or None.
    pub(crate) fn inspect(self, family: Family) -> Result<Option<Present>, Refusal> {
        if self.store != Store::Nft {
            let saved = run(&self.program(family, "-save"), &[], "")?;
            return Ok(NatTable::parse(&saved).map(Present::Iptables));
        }
        match run("nft", &["list", "table", nft::family_word(family), nft::TABLE], "") {
            Ok(listed) => Ok(Some(Present::Nft(listed))),
            Err(refusal) if refusal.why.contains("No such file or directory") => Ok(None),
            Err(refusal) => Err(refusal),
        }
    }

    /// Removes what [`Tool::inspect`] found.
    pub(crate) fn uninstall(self, family: Family, present: &Present) -> Result<(), Refusal> {
        let script = match present {
            Present::Iptables(table) => iptables::removal_script(table),
            Present::Nft(_) => nft::removal_script(family),
        };
        let (program, args) = self.command(family);
        run(&program, args, &script).map(drop)
    }
}

/// Runs a program to its end and returns what it printed.
pub(crate) fn run(program: &str, args: &[&str], input: &str) -> Result<String, Refusal> {
    let refuse = |why: String| Refusal { command: line(program, args), why };
    let path = locate(program).ok_or_else(|| refuse(format!("{program} is not installed")))?;
    let mut child = Command::new(path)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| refuse(format!("it could not be started: {error}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that gave up early has closed its end; its exit status and its words say why.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| refuse(format!("it could not be waited for: {error}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr).split_whitespace().collect::<Vec<_>>().join(" ");
    Err(refuse(if words.is_empty() { output.status.to_string() } else { words }))
}

fn line(program: &str, args: &[&str]) -> String {
    [&[program][..], args].concat().join(" ")
}

fn directories() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).chain(ADMIN_DIRECTORIES.into_iter().map(PathBuf::from)).collect()
}

fn searched() -> String {
    directories().iter().map(|directory| directory.display().to_string()).collect::<Vec<_>>().join(":")
}

fn locate(program: &str) -> Option<PathBuf> {
    directories().into_iter().map(|directory| directory.join(program)).find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}
