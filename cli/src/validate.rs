//! `weft validate`: manifests as the control plane would read them, without one: what is wrong with each, and what would become of
//! it. The reader and the model are the control plane's own.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use weft_control_plane::watch::{directory, parse};

use crate::install::print;
use report::Report;

mod report;

/// What `weft validate` is told.
#[derive(Args, Debug)]
#[command(after_help = "\
What a route or a policy refers to is looked for among the same manifests: give those of its services as well. Kinds that weft does \
not read, as a Deployment, are passed over.

Exit status: 0 where nothing is wrong, 1 where something is, 2 where something cannot be read.

Examples:
  weft validate routes.yaml services.yaml
  weft validate manifests/
  kustomize build . | weft validate -
  weft validate -o json manifests/ | jq '.problems[].message'")]
pub(crate) struct ValidateArgs {
    /// Files of manifests, or directories of them; - is standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,

    /// How it is printed
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "text")]
    output: Output,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Output {
    Text,
    Json,
}

/// A file: its name for people, and its text.
type File = (String, String);

pub(crate) fn main(args: &ValidateArgs) -> anyhow::Result<ExitCode> {
    let files = match read(&args.files) {
        Ok(files) => files,
        Err(error) => {
            crate::complain(&format!("{error:#}"));
            return Ok(ExitCode::from(2));
        }
    };
    let report = Report::of(&files);
    print(&match args.output {
        Output::Text => report.shown(),
        Output::Json => format!("{}\n", serde_json::to_string_pretty(&report)?),
    })?;
    Ok(ExitCode::from(u8::from(!report.is_good())))
}

/// Reads all that was named; a directory as the control plane reads one.
fn read(named: &[PathBuf]) -> anyhow::Result<Vec<File>> {
    let mut files = Vec::new();
    for path in named {
        if path.is_dir() {
            let (found, problems) = directory::manifests(path);
            if let Some(problem) = problems.first() {
                bail!("{problem}");
            }
            if found.is_empty() {
                bail!("{} has no manifests: they end in .yaml, .yml or .json", path.display());
            }
            for path in found {
                files.push(file(&path)?);
            }
        } else {
            files.push(file(path)?);
        }
    }
    Ok(files)
}

fn file(path: &Path) -> anyhow::Result<File> {
    let is_stdin = path == Path::new("-");
    let name = if is_stdin { "standard input".to_owned() } else { path.display().to_string() };
    let named = || format!("{name} can't be read");
    let source: Box<dyn std::io::Read> =
        if is_stdin { Box::new(std::io::stdin()) } else { Box::new(std::fs::File::open(path).with_context(named)?) };
    let mut text = String::new();
    source.take(parse::MAX_FILE + 1).read_to_string(&mut text).with_context(named)?;
    if text.len() as u64 > parse::MAX_FILE {
        bail!("{name} is larger than {} bytes, which is the most that weft reads: split it", parse::MAX_FILE);
    }
    Ok((name, text))
}
