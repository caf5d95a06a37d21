//! What a command prints, and in which form: one layer for all of them.

use std::fmt::Write as _;
use std::io::{ErrorKind, IsTerminal, Write as _};
use std::os::fd::AsFd;
use std::sync::OnceLock;

use anyhow::Context;
use clap::{Args, ValueEnum};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
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
            Format::Table | Format::Wide => plain_lines(&text(self.look())),
            Format::Json => format!("{}\n", plain_json(&serde_json::to_string_pretty(value)?)),
            Format::Yaml => yaml::document(&serde_json::to_value(value)?),
        })
    }

    /// One of many values in a form for programs: a line of JSON, or a document of YAML.
    pub(crate) fn line(self, value: &serde_json::Value) -> String {
        if self.output == Format::Yaml {
            format!("---\n{}", yaml::document(value))
        } else {
            format!("{}\n", plain_json(&value.to_string()))
        }
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
    print_on(text).map(|_| ())
}

/// Prints a part of what has no end: false where nobody reads any more.
pub(crate) fn print_on(text: &str) -> anyhow::Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        outcome => outcome.context("it can't be printed").map(|()| true),
    }
}

/// Whether somebody reads the standard output still, as far as that can be said: of a pipe.
pub(crate) fn is_read() -> bool {
    let stdout = std::io::stdout();
    let mut one = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    let polled = poll(&mut one, PollTimeout::ZERO);
    !(polled.is_ok() && one[0].revents().is_some_and(|seen| seen.contains(PollFlags::POLLERR)))
}

/// Whether a terminal takes a character for a sign or a blank, and for nothing more: no control, nothing that turns or hides text.
pub(crate) fn is_sign(c: char) -> bool {
    // What `Debug` escapes is what does not print, beside quotes and backslashes; marks that stand above others are harmless.
    matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1
}

/// A text from outside for one line of a terminal: what a terminal would take for more than a sign is written as its number.
pub(crate) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_sign(c) { out.push(c) } else { out.extend(c.escape_unicode()) }
    }
    out
}

/// Lines for a terminal; the colours of [`Look::paint`] stay.
pub(crate) fn plain_lines(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let colour = ["\x1b[0m", "\x1b[1m", "\x1b[31m", "\x1b[32m", "\x1b[33m"].into_iter().find(|code| rest.starts_with(code));
        let taken = colour.map_or(c.len_utf8(), str::len);
        if colour.is_some() || c == '\n' || is_sign(c) {
            out += &rest[..taken];
        } else {
            out.extend(c.escape_unicode());
        }
        rest = &rest[taken..];
    }
    out
}

/// JSON that means the same and does nothing to a terminal: such characters stand in strings alone, where each may be written as its number (RFC 8259, section 7).
pub(crate) fn plain_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        if c == '\n' || is_sign(c) {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
    out
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
    fn no_text_from_outside_does_anything_to_a_terminal() {
        let hostile = "a\u{9b}2J\u{1b}[2J\u{202e}\u{2066}\u{200b}\n\u{85}\u{2028}é–✗\"'\\";
        assert_eq!(plain(hostile), "a\\u{9b}2J\\u{1b}[2J\\u{202e}\\u{2066}\\u{200b}\\u{a}\\u{85}\\u{2028}é–✗\"'\\");
        let look = Look { wide: false, colour: true };
        assert_eq!(plain_lines(&format!("{}\n\x1b[2J", look.paint(Tint::Bad, "x"))), "\x1b[31mx\x1b[0m\n\\u{1b}[2J");
        for output in [Format::Table, Format::Wide, Format::Json, Format::Yaml] {
            let text = Output { output }.render(|_| hostile.to_owned(), &json!({ "path": hostile })).expect("rendered");
            assert!(text.chars().all(|c| c == '\n' || is_sign(c)), "{output:?}: {text:?}");
        }
        let line = Output { output: Format::Json }.line(&json!({ "path": hostile, "x": "\u{e0001}" }));
        assert!(line.trim_end().chars().all(is_sign), "{line:?}");
        let read: serde_json::Value = serde_json::from_str(&line).expect("JSON still");
        assert_eq!((read["path"].as_str(), read["x"].as_str()), (Some(hostile), Some("\u{e0001}")));
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
