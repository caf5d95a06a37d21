//! What a command prints, and in which form.

use std::io::{ErrorKind, Write as _};

use anyhow::Context;
use clap::ValueEnum;

/// The forms in which commands print what they found.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Json,
}

/// Prints what was asked for. A standard output that is gone, as behind `head`, is nobody's problem.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.context("it can't be printed"),
    }
}
