//! What a command prints, and in which form: one layer for all of them.

use std::io::{ErrorKind, IsTerminal, Write as _};
use std::sync::OnceLock;

use anyhow::Context;
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::install::yaml;

/// The forms in which commands print what they found.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// For people
    #[value(alias = "text")]
    Table,
    /// For people with a wide screen: everything that is known
    Wide,
    /// For programs
    Json,
    /// For programs and people
    Yaml,
}

/// How a command prints.
#[derive(Args, Debug, Clone, Copy)]
pub(crate) struct Output {
    /// How it is printed
    #[arg(short, long = "output", value_enum, value_name = "FORMAT", default_value = "table", hide_possible_values = true, help = HELP)]
    output: Format,
}

const HELP: &str = "How it is printed: table, wide, json or yaml";

/// What a text for people may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) wide: bool,
    pub(crate) colour: bool,
}

impl Look {
    /// A text that shows itself in a colour, where there is one.
    pub(crate) fn paint(self, tint: Tint, text: &str) -> String {
        if self.colour { format!("\x1b[{}m{text}\x1b[0m", tint.code()) } else { text.to_owned() }
    }
}

/// What a colour says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tint {
    Good,
    Warning,
    Bad,
    Head,
}

impl Tint {
    /// ECMA-48, section 8.3.117 (SGR).
    fn code(self) -> &'static str {
        match self {
            Self::Good => "32",
            Self::Warning => "33",
            Self::Bad => "31",
            Self::Head => "1",
        }
    }
}

impl Output {
    /// Whether it is for people.
    pub(crate) fn is_text(self) -> bool {
        matches!(self.output, Format::Table | Format::Wide)
    }

    /// How a text for people looks.
    pub(crate) fn look(self) -> Look {
        Look { wide: self.output == Format::Wide, colour: colours(std::io::stdout().is_terminal()) }
    }

    /// What is to be printed: the text, or the value in a form for programs.
    pub(crate) fn render<T: Serialize>(self, text: impl FnOnce(Look) -> String, value: &T) -> anyhow::Result<String> {
        Ok(match self.output {
            Format::Table | Format::Wide => text(self.look()),
            Format::Json => format!("{}\n", serde_json::to_string_pretty(value)?),
            Format::Yaml => yaml::document(&serde_json::to_value(value)?),
        })
    }

    /// One of many values in a form for programs: a line of JSON, or a document of YAML.
    pub(crate) fn line(self, value: &serde_json::Value) -> String {
        if self.output == Format::Yaml { format!("---\n{}", yaml::document(value)) } else { format!("{value}\n") }
    }

    /// Prints it.
    pub(crate) fn print<T: Serialize>(self, text: impl FnOnce(Look) -> String, value: &T) -> anyhow::Result<()> {
        print(&self.render(text, value)?)
    }
}

/// When colours are used.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum When {
    #[default]
    Auto,
    Always,
    Never,
}

static CHOSEN: OnceLock<When> = OnceLock::new();

/// Says once, at the start, when colours are used.
pub(crate) fn choose(when: When) {
    let _ = CHOSEN.set(when);
}

/// Whether colours are used on an output: as --color says; else on a terminal that has them, unless `NO_COLOR` is set (no-color.org).
pub(crate) fn colours(is_terminal: bool) -> bool {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    wanted(
        CHOSEN.get().copied().unwrap_or_default(),
        is_terminal,
        variable("NO_COLOR").is_some(),
        variable("TERM").is_some_and(|term| term == "dumb"),
    )
}

fn wanted(when: When, is_terminal: bool, no_color: bool, dumb: bool) -> bool {
    match when {
        When::Always => true,
        When::Never => false,
        When::Auto => is_terminal && !no_color && !dumb,
    }
}

/// Prints what was asked for. A standard output that is gone, as behind `head`, is nobody's problem.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        outcome => outcome.context("it can't be printed"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn one_value_has_every_form() {
        let of = |output| {
            Output { output }.render(|look| format!("wide {}\n", look.wide), &json!({"b": 1, "a": ["x"]})).expect("it is JSON")
        };
        assert_eq!((of(Format::Table), of(Format::Wide)), ("wide false\n".to_owned(), "wide true\n".to_owned()));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&of(Format::Json)).expect("JSON")["b"], 1);
        let yaml = of(Format::Yaml);
        assert!(yaml.contains("b: 1"), "{yaml}");
    }

    #[test]
    fn colours_are_for_terminals_unless_somebody_says_otherwise() {
        assert!(wanted(When::Auto, true, false, false));
        assert!(!wanted(When::Auto, false, false, false) && !wanted(When::Auto, true, true, false));
        assert!(!wanted(When::Auto, true, false, true) && !wanted(When::Never, true, false, false));
        assert!(wanted(When::Always, false, true, true));
        let look = |colour| Look { wide: false, colour };
        assert_eq!(look(false).paint(Tint::Bad, "x"), "x");
        assert_eq!(look(true).paint(Tint::Bad, "x"), "\x1b[31mx\x1b[0m");
    }
}
