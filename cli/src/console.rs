//! What `weft up` says while it runs: text for people, or a JSON object a line.

use std::io::{self, BufWriter, IsTerminal, Write};
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::table;

/// Everything that is said. The names are what `--json` prints.
#[derive(Serialize, Debug)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum Event {
    /// A step of the start is done.
    Step {
        what: String,
        millis: u64,
    },
    /// Everything has been started; what is not ready yet will be.
    Started {
        mesh: String,
        millis: u64,
        #[serde(flatten)]
        summary: Summary,
    },
    /// Every replica is ready.
    Ready {
        millis: u64,
    },
    /// A line that a workload or its sidecar wrote.
    Log {
        #[serde(flatten)]
        from: Origin,
        source: Source,
        line: String,
    },
    /// A workload has ended.
    Exited {
        #[serde(flatten)]
        from: Origin,
        status: String,
        restart_in_millis: Option<u64>,
    },
    /// A workload is ready, or is not any more.
    Health {
        #[serde(flatten)]
        from: Origin,
        ready: bool,
        why: String,
    },
    Note {
        message: String,
    },
    Warning {
        message: String,
    },
    Error {
        message: String,
    },
}

/// Which replica something is from.
#[derive(Serialize, Debug, Clone)]
pub(crate) struct Origin {
    pub(crate) namespace: String,
    pub(crate) replica: String,
    /// What a line begins with, padded so that all begin alike.
    #[serde(skip)]
    pub(crate) label: String,
    /// The workload's colour, by its number.
    #[serde(skip)]
    pub(crate) tint: usize,
}

/// Who wrote a line.
#[derive(Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Source {
    Stdout,
    Stderr,
    Sidecar,
}

/// The mesh as it stands: also what the file `ready` in the run directory holds.
#[derive(Serialize, Debug, Default, Clone)]
pub(crate) struct Summary {
    pub(crate) workloads: Vec<WorkloadLine>,
    pub(crate) services: Vec<ServiceLine>,
}

/// One replica.
#[derive(Serialize, Debug, Clone)]
pub(crate) struct WorkloadLine {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) replica: String,
    pub(crate) address: String,
    pub(crate) meshed: bool,
    #[serde(skip)]
    pub(crate) ready: bool,
}

/// One service.
#[derive(Serialize, Debug, Clone)]
pub(crate) struct ServiceLine {
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// None for a headless one.
    pub(crate) address: Option<String>,
    pub(crate) ports: Vec<u16>,
}

/// How it is said.
#[derive(Serialize, Deserialize, Debug, Clone, Copy)]
pub(crate) struct Style {
    pub(crate) json: bool,
    pub(crate) colour: bool,
}

const TINTS: [&str; 6] = ["36", "33", "32", "35", "34", "31"];

impl Style {
    /// Colour only where a person looks, and has not asked for none (<https://no-color.org>).
    pub(crate) fn for_stdout(json: bool) -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { json, colour: !json && !unwanted && io::stdout().is_terminal() }
    }

    /// The event as text, without an end of line.
    pub(crate) fn render(self, event: &Event) -> String {
        if self.json {
            return serde_json::to_string(event)
                .unwrap_or_else(|e| format!("{{\"event\":\"error\",\"message\":\"not JSON: {e}\"}}"));
        }
        match event {
            Event::Step { what, millis } => format!("  {}  {what:<36} {millis:>6} ms", self.paint("32", "ok")),
            Event::Started { mesh, millis, summary } => {
                format!("\n{}mesh {mesh} started in {}; Ctrl-C ends it\n", tables(summary), seconds(*millis))
            }
            Event::Ready { millis } => format!("everything is ready after {}", seconds(*millis)),
            Event::Log { from, source: Source::Sidecar, line } => format!("{} {line}", self.label(from, " sidecar")),
            Event::Log { from, line, .. } => format!("{} {line}", self.label(from, "")),
            Event::Exited { from, status, restart_in_millis: None } => {
                format!("{} {status}; it is not started again", self.label(from, ""))
            }
            Event::Exited { from, status, restart_in_millis: Some(millis) } => {
                format!("{} {status}; it is started again in {}", self.label(from, ""), seconds(*millis))
            }
            Event::Health { from, ready: true, .. } => format!("{} ready", self.label(from, "")),
            Event::Health { from, ready: false, why } => format!("{} not ready: {why}", self.label(from, "")),
            Event::Note { message } => message.clone(),
            Event::Warning { message } => format!("{} {message}", self.paint("33", "warning:")),
            Event::Error { message } => format!("{} {message}", self.paint("31", "error:")),
        }
    }

    fn label(self, from: &Origin, suffix: &str) -> String {
        self.paint(TINTS[from.tint % TINTS.len()], &format!("{}{suffix} |", from.label))
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Says it on standard output, at once.
    pub(crate) fn say(self, event: &Event) {
        let mut out = io::stdout().lock();
        let _ = writeln!(out, "{}", self.render(event)).and_then(|()| out.flush());
    }
}

fn tables(summary: &Summary) -> String {
    let workloads: Vec<Vec<String>> = summary
        .workloads
        .iter()
        .map(|w| vec![w.namespace.clone(), w.replica.clone(), w.address.clone(), yes(w.meshed), yes(w.ready)])
        .collect();
    let mut text = table::render(&["NAMESPACE", "REPLICA", "ADDRESS", "MESHED", "READY"], &workloads);
    if !summary.services.is_empty() {
        let ports = |list: &[u16]| list.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
        let services: Vec<Vec<String>> = summary
            .services
            .iter()
            .map(|s| {
                let address = s.address.clone().unwrap_or_else(|| "headless".to_owned());
                vec![s.namespace.clone(), s.name.clone(), address, ports(&s.ports)]
            })
            .collect();
        text.push('\n');
        text.push_str(&table::render(&["NAMESPACE", "SERVICE", "ADDRESS", "PORTS"], &services));
    }
    text.push('\n');
    text
}

fn yes(is: bool) -> String {
    let word = if is { "yes" } else { "no" };
    word.to_owned()
}

fn seconds(millis: u64) -> String {
    format!("{}.{} s", millis / 1000, millis / 100 % 10)
}

/// How much may wait to be said before those who say it wait.
const QUEUE: usize = 1024;

/// Where a runtime leaves events. A thread of its own says them, so that a terminal that stands still stops nothing but logs.
#[derive(Debug, Clone)]
pub(crate) struct Console {
    queue: mpsc::Sender<Event>,
}

impl Console {
    /// Starts the thread; it ends when every clone of the console is gone and everything is said.
    pub(crate) fn start(style: Style) -> io::Result<(Self, JoinHandle<()>)> {
        let (queue, mut events) = mpsc::channel::<Event>(QUEUE);
        let thread = std::thread::Builder::new().name("console".to_owned()).spawn(move || {
            let mut out = BufWriter::new(io::stdout());
            while let Some(event) = events.blocking_recv() {
                // A reader that has gone away is nobody's problem: what is left is taken and dropped.
                let mut next = Some(event);
                while let Some(event) = next {
                    let _ = writeln!(out, "{}", style.render(&event));
                    next = events.try_recv().ok();
                }
                let _ = out.flush();
            }
        })?;
        Ok((Self { queue }, thread))
    }

    pub(crate) async fn say(&self, event: Event) {
        let _ = self.queue.send(event).await;
    }

    pub(crate) async fn step(&self, what: &str, took: Duration) {
        self.say(Event::Step { what: what.to_owned(), millis: millis(took) }).await;
    }

    pub(crate) async fn warn(&self, message: impl Into<String>) {
        self.say(Event::Warning { message: message.into() }).await;
    }
}

/// A duration in whole milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin { namespace: "shop".to_owned(), replica: "web-0".to_owned(), label: "web-0".to_owned(), tint: 0 }
    }

    #[test]
    fn people_get_text_and_programs_get_json() {
        let (text, json) = (Style { json: false, colour: false }, Style { json: true, colour: false });
        let log = Event::Log { from: origin(), source: Source::Stdout, line: "hello".to_owned() };
        assert_eq!(text.render(&log), "web-0 | hello");
        assert_eq!(json.render(&log), r#"{"event":"log","namespace":"shop","replica":"web-0","source":"stdout","line":"hello"}"#);
        let exited = Event::Exited { from: origin(), status: "ended with status 1".to_owned(), restart_in_millis: Some(500) };
        assert_eq!(text.render(&exited), "web-0 | ended with status 1; it is started again in 0.5 s");
    }

    #[test]
    fn colour_is_round_the_label_alone() {
        let log = Event::Log { from: origin(), source: Source::Sidecar, line: "hello".to_owned() };
        assert_eq!(Style { json: false, colour: true }.render(&log), "\x1b[36mweb-0 sidecar |\x1b[0m hello");
    }

    #[test]
    fn the_start_is_summed_up_in_tables() {
        let summary = Summary {
            workloads: vec![WorkloadLine {
                namespace: "shop".to_owned(),
                name: "web".to_owned(),
                replica: "web-0".to_owned(),
                address: "10.47.1.1".to_owned(),
                meshed: true,
                ready: false,
            }],
            services: vec![ServiceLine {
                namespace: "shop".to_owned(),
                name: "web".to_owned(),
                address: None,
                ports: vec![80, 443],
            }],
        };
        let text =
            Style { json: false, colour: false }.render(&Event::Started { mesh: "shop".to_owned(), millis: 1234, summary });
        assert!(text.contains("shop       web-0    10.47.1.1  yes     no\n"), "{text}");
        assert!(text.contains("headless  80,443\n"), "{text}");
        assert!(text.ends_with("mesh shop started in 1.2 s; Ctrl-C ends it\n"), "{text}");
    }
}
