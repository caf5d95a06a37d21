//! What `weft --help` says: commands in groups, led by the questions that a user of a mesh has; `weft completion` and `weft man`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Command};
use clap_complete::Shell;

use crate::output::print;

/// Headings, with the commands below each. A name that is no command is passed over, and a command that stands nowhere comes last.
const GROUPS: [(&str, &[&str]); 6] = [
    ("Is it healthy?", &["check", "status", "diff", "trust"]),
    ("Who talks to whom, and how well?", &["stat", "top", "edges", "routes", "endpoints", "tap", "dashboard"]),
    ("Why did this call fail?", &["why", "trace", "explain", "capture", "sidecar", "log", "bundle"]),
    ("Policies", &["record", "suggest", "validate"]),
    ("A mesh on this machine", &["up", "exec", "demo", "token"]),
    ("A mesh on Kubernetes", &["install", "upgrade", "uninstall", "inject"]),
];
const REST: &str = "More";

const AFTER: &str = "\
Begin with `weft check`: it names the cause of most faults. `weft COMMAND --help` has examples.
Exit status: 0 all is well; 1 something is wrong or failed; 2 no answer, or a wrong command line.";

/// The whole command line, as people see it.
pub(crate) fn dress(command: Command) -> Command {
    let template = format!("{{about}}\n\n{{usage-heading}} {{usage}}\n\n{}Options:\n{{options}}\n\n{AFTER}\n", groups(&command));
    command.help_template(template)
}

fn groups(command: &Command) -> String {
    let visible: Vec<&Command> = command.get_subcommands().filter(|c| !c.is_hide_set()).collect();
    let line = |c: &Command| format!("  {:<11} {}\n", c.get_name(), c.get_about().map(ToString::to_string).unwrap_or_default());
    let mut text = String::new();
    for (heading, names) in GROUPS {
        let lines: String =
            names.iter().filter_map(|name| visible.iter().find(|c| c.get_name() == *name)).map(|c| line(c)).collect();
        if !lines.is_empty() {
            let _ = write!(text, "{heading}\n{lines}\n");
        }
    }
    let grouped = |c: &Command| GROUPS.iter().any(|(_, names)| names.contains(&c.get_name()));
    let rest: String = visible.iter().filter(|c| !grouped(c)).map(|c| line(c)).collect();
    if !rest.is_empty() {
        let _ = write!(text, "{REST}\n{rest}\n");
    }
    text
}

/// What `weft completion` is told.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  source <(weft completion bash)
  weft completion zsh > \"${fpath[1]}/_weft\"
  weft completion fish > ~/.config/fish/completions/weft.fish")]
pub(crate) struct CompletionArgs {
    /// Whose it is
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

/// `weft completion`
pub(crate) fn completion(args: &CompletionArgs, command: &mut Command) -> anyhow::Result<ExitCode> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, command, "weft", &mut text);
    print(&String::from_utf8(text).context("the completion is no text")?)?;
    Ok(ExitCode::SUCCESS)
}

/// What `weft man` is told.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  weft man --dir ~/.local/share/man/man1
  man weft-check")]
pub(crate) struct ManArgs {
    /// Directory for the pages, one for each command; it is made where it is not there
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

/// `weft man`
pub(crate) fn man(args: &ManArgs, command: Command) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(&args.dir).with_context(|| format!("{} cannot be made", args.dir.display()))?;
    clap_mangen::generate_to(command.disable_help_subcommand(true), &args.dir)
        .with_context(|| format!("a page cannot be written to {}", args.dir.display()))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command;

    /// Commands without `-o`, and why.
    const WITHOUT_OUTPUT: [(&str, &str); 14] = [
        ("up", "it runs; --json makes it say everything as JSON"),
        ("exec", "it prints what the command prints"),
        ("demo", "it runs; --json gives the end as JSON"),
        ("record", "-o names the file that it writes, which is JSON already"),
        ("suggest", "it prints manifests"),
        ("inject", "it prints manifests"),
        ("install", "it prints manifests, or applies them"),
        ("upgrade", "it prints differences, or applies them"),
        ("uninstall", "it prints manifests, or removes what they name"),
        ("capture", "it writes packets"),
        ("dashboard", "it serves a page"),
        ("bundle", "it writes an archive"),
        ("completion", "it prints a script"),
        ("man", "it writes pages"),
    ];

    fn walk(command: &Command, path: &str, each: &mut impl FnMut(&str, &Command)) {
        for sub in command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
            let path = format!("{path} {}", sub.get_name()).trim().to_owned();
            if sub.has_subcommands() {
                walk(sub, &path, each);
            } else {
                each(&path, sub);
            }
        }
    }

    #[test]
    fn every_command_has_a_description_examples_and_a_form_for_programs() {
        let mut lacking = Vec::new();
        walk(&command(), "", &mut |path, c| {
            if c.get_about().is_none_or(|about| about.to_string().len() < 20) {
                lacking.push(format!("{path}: a description"));
            }
            let after = c.get_after_help().map(ToString::to_string).unwrap_or_default();
            if !after.contains("Examples:\n  weft ") && !after.contains("Examples:\n  source <(weft ") {
                lacking.push(format!("{path}: examples"));
            }
            let first = path.split(' ').next().unwrap_or_default();
            let is_exempt = WITHOUT_OUTPUT.iter().any(|(name, why)| *name == first && !why.is_empty());
            let output = c.get_arguments().find(|a| a.get_short() == Some('o') && a.get_long() == Some("output"));
            let forms: Vec<String> =
                output.map(|a| a.get_possible_values().iter().map(|v| v.get_name().to_owned()).collect()).unwrap_or_default();
            if !is_exempt && forms != ["table", "wide", "json", "yaml"] {
                lacking.push(format!("{path}: -o table|wide|json|yaml"));
            }
        });
        assert!(lacking.is_empty(), "{lacking:#?}");
    }

    #[test]
    fn every_argument_is_described() {
        let mut lacking = Vec::new();
        walk(&command(), "", &mut |path, c| {
            let bare = c.get_arguments().filter(|a| !a.is_hide_set() && a.get_help().is_none());
            lacking.extend(bare.map(|a| format!("{path}: {}", a.get_id())));
        });
        assert!(lacking.is_empty(), "{lacking:#?}");
    }

    #[test]
    fn the_first_help_fits_a_screen_and_leads_by_the_three_questions() {
        let help = command().term_width(100).render_help().to_string();
        let at = |text: &str| help.find(text).unwrap_or_else(|| panic!("{text} is not in\n{help}"));
        assert!(at("Is it healthy?") < at("Who talks to whom, and how well?"));
        assert!(at("Who talks to whom, and how well?") < at("Why did this call fail?"));
        assert!(at("\n  check ") < at("\n  status "));
        assert!(help.lines().count() <= 60 && help.lines().all(|l| l.chars().count() <= 110), "it is too long:\n{help}");
        for sub in command().get_subcommands().filter(|c| !c.is_hide_set()) {
            at(&format!("\n  {} ", sub.get_name()));
        }
    }

    #[test]
    fn completion_and_pages_are_made_for_every_shell_and_command() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::PowerShell, Shell::Elvish] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut command(), "weft", &mut text);
            assert!(String::from_utf8_lossy(&text).contains("endpoints"), "{shell}");
        }
        let dir = tempfile::tempdir().expect("a directory");
        man(&ManArgs { dir: dir.path().join("man1") }, command()).expect("written");
        for page in ["weft.1", "weft-check.1", "weft-trust-deny-add.1"] {
            assert!(dir.path().join("man1").join(page).is_file(), "{page}");
        }
    }
}
