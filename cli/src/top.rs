//! `weft top`: the same as `weft stat`, live: a table on a terminal, plain lines into a pipe.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clap::Args;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line as TextLine;
use ratatui::widgets::{Cell, Row, Table};
use ratatui::{DefaultTerminal, Frame};

use crate::duration;
use crate::edges::Edge;
use crate::fleet::{Fleet, Heard};
use crate::output::{self, Output, plain, print_on};
use crate::stat::{self, By, Line, What};

/// What `weft top` is told.
#[derive(Args, Debug)]
#[command(after_help = "\
Keys: s, r, e and p choose service, route, edge or pod; o the order; q ends. Without a terminal, or with -o json or yaml, one table or document is printed for each \
interval.

Examples:
  weft top
  weft top --by pod --interval 5s
  weft top --count 3 | cat
  weft top --count 1 -o json")]
pub(crate) struct TopArgs {
    #[command(flatten)]
    what: What,

    /// How often it is looked at
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = "2s")]
    interval: Duration,

    /// End after so many looks [default: until q or Ctrl-C]
    #[arg(long, value_name = "N")]
    count: Option<usize>,

    #[command(flatten)]
    output: Output,
}

/// How often a key is looked for while nothing is new.
const KEYS: Duration = Duration::from_millis(100);
/// The least interval: each look asks every sidecar.
const LEAST: Duration = Duration::from_millis(200);

/// By what lines are ordered; the first is the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Name,
    Requests,
    Failures,
    Time,
}

impl Order {
    fn next(self) -> Self {
        match self {
            Self::Name => Self::Requests,
            Self::Requests => Self::Failures,
            Self::Failures => Self::Time,
            Self::Time => Self::Name,
        }
    }

    fn sort(self, lines: &mut [Line]) {
        let failed = |l: &Line| l.success_rate.map_or(0.0, |rate| 1.0 - rate);
        match self {
            Self::Name => {}
            Self::Requests => lines.sort_by(|a, b| b.requests_per_second.total_cmp(&a.requests_per_second)),
            Self::Failures => lines.sort_by(|a, b| failed(b).total_cmp(&failed(a))),
            Self::Time => lines.sort_by(|a, b| b.p99.unwrap_or(0.0).total_cmp(&a.p99.unwrap_or(0.0))),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Requests => "requests",
            Self::Failures => "failures",
            Self::Time => "p99",
        }
    }
}

pub(crate) fn main(args: &TopArgs) -> anyhow::Result<ExitCode> {
    let fleet = Fleet::find(&args.what.which, args.what.context.as_deref())?;
    let interval = args.interval.max(LEAST);
    let live = args.output.is_text() && std::io::stdout().is_terminal() && std::io::stdin().is_terminal();
    if !live {
        return printed(args, &fleet, interval);
    }
    let mut terminal = ratatui::try_init()?;
    let outcome = run(&mut terminal, args, &fleet, interval);
    ratatui::restore();
    outcome.map(|()| ExitCode::SUCCESS)
}

fn printed(args: &TopArgs, fleet: &Fleet, interval: Duration) -> anyhow::Result<ExitCode> {
    let (mut before, mut at) = (stat::read(fleet, &args.what)?, Instant::now());
    let mut code = before.tell();
    for look in 0.. {
        if args.count.is_some_and(|count| look >= count) {
            break;
        }
        std::thread::sleep(interval.saturating_sub(at.elapsed()));
        let after = stat::read(fleet, &args.what)?;
        let lines = stat::lines(Some(&before), &after, &args.what, Some(at.elapsed()));
        code = after.tell();
        (before, at) = (after, Instant::now());
        let text = args.output.render(|look| stat::shown(&lines, args.what.by, look), &lines)?;
        if !print_on(&if look > 0 && args.output.is_text() { format!("\n{text}") } else { text })? {
            break;
        }
    }
    Ok(code)
}

/// What is on the screen.
struct Screen {
    what: What,
    order: Order,
    before: Option<Heard<Vec<Edge>>>,
    after: Option<Heard<Vec<Edge>>>,
    took: Duration,
    problem: Option<String>,
    /// What the reads come to, for as long as nothing is new and no key is pressed.
    lines: Vec<Line>,
}

fn run(terminal: &mut DefaultTerminal, args: &TopArgs, fleet: &Fleet, interval: Duration) -> anyhow::Result<()> {
    // Sidecars are asked beside, so that a key is answered at once.
    let (tell, told) = mpsc::channel();
    let (asker, what) = (fleet.clone(), args.what.clone());
    std::thread::spawn(move || {
        loop {
            let begun = Instant::now();
            if tell.send((stat::read(&asker, &what), begun)).is_err() {
                return;
            }
            std::thread::sleep(interval.saturating_sub(begun.elapsed()));
        }
    });
    let mut screen = Screen {
        what: args.what.clone(),
        order: Order::Name,
        before: None,
        after: None,
        took: interval,
        problem: None,
        lines: Vec::new(),
    };
    let (mut last, mut looks) = (None::<Instant>, 0);
    loop {
        while let Ok((read, at)) = told.try_recv() {
            match read {
                Ok(heard) => {
                    screen.problem = not_heard(&heard);
                    screen.before = screen.after.replace(heard);
                    screen.took = last.map_or(interval, |last| at.duration_since(last));
                    looks += usize::from(last.replace(at).is_some());
                    screen.count();
                }
                Err(why) => screen.problem = Some(format!("{why:#}")),
            }
        }
        if args.count.is_some_and(|count| looks >= count) {
            return Ok(());
        }
        terminal.draw(|frame| screen.draw(frame, looks == 0))?;
        if event::poll(KEYS)?
            && let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
        {
            match key.code {
                KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return Ok(()),
                KeyCode::Esc => return Ok(()),
                KeyCode::Char(c) if !screen.key(c) => return Ok(()),
                _ => {}
            }
        }
    }
}

/// How many are in no line, and the first of them.
fn not_heard(heard: &Heard<Vec<Edge>>) -> Option<String> {
    let (pod, why) = heard.silent.first_key_value()?;
    Some(format!("{} sidecars are not heard: {pod}: {why}", heard.silent.len()))
}

impl Screen {
    /// Works the lines out anew.
    fn count(&mut self) {
        self.lines = match (&self.before, &self.after) {
            (Some(before), Some(after)) => stat::lines(Some(before), after, &self.what, Some(self.took)),
            _ => Vec::new(),
        };
        self.order.sort(&mut self.lines);
    }

    /// What a key changes; false ends.
    fn key(&mut self, key: char) -> bool {
        match key {
            's' => self.what.by = By::Service,
            'r' => self.what.by = By::Route,
            'e' => self.what.by = By::Edge,
            'p' => self.what.by = By::Pod,
            'o' => self.order = self.order.next(),
            'q' => return false,
            _ => {}
        }
        self.count();
        true
    }

    fn draw(&self, frame: &mut Frame<'_>, is_first: bool) {
        let lines = &self.lines;
        let [head, body, foot] =
            Layout::vertical([Constraint::Length(1), Constraint::Min(1), Constraint::Length(1)]).areas(frame.area());
        let colour = output::colours(true);
        let (bold, bad) =
            (Style::new().add_modifier(Modifier::BOLD), if colour { Style::new().fg(Color::Red) } else { Style::new() });
        let state = match (&self.problem, is_first, lines.is_empty()) {
            (Some(why), ..) => plain(why),
            (_, true, _) => "counting…".to_owned(),
            (_, _, true) => "nothing was called meanwhile".to_owned(),
            _ => format!("over {:.1} s, ordered by {}", self.took.as_secs_f64(), self.order.name()),
        };
        frame.render_widget(TextLine::from(format!("weft top: {state}")), head);
        let header = stat::header(self.what.by, false);
        let cells = |line: &Line| stat::cells(line, self.what.by, false).iter().map(|cell| plain(cell)).collect();
        let cells: Vec<Vec<String>> = lines.iter().map(cells).collect();
        let widths = (0..header.len()).map(|i| {
            let longest = cells.iter().map(|row| row[i].chars().count()).max().unwrap_or(0).max(header[i].len());
            Constraint::Length(u16::try_from(longest).unwrap_or(u16::MAX))
        });
        let rows = lines.iter().zip(&cells).map(|(line, cells)| {
            let style = if line.success_rate.is_some_and(|rate| rate < 0.99) { bad } else { Style::new() };
            Row::new(cells.iter().map(|cell| Cell::from(cell.clone()))).style(style)
        });
        let table = Table::new(rows, widths.collect::<Vec<_>>()).header(Row::new(header).style(bold)).column_spacing(2);
        frame.render_widget(table, body);
        frame.render_widget(TextLine::from("s service  r route  e edge  p pod  o order  q end"), foot);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;

    #[test]
    fn the_screen_has_a_line_for_each_and_keys_choose_what() {
        let edge: Edge = serde_json::from_value(json!({"direction": "outbound", "peer": "x", "target": "shop/web", "protocol": "http/1.1", "cipher": "",
            "key_exchange": "", "connections": 1, "requests": 20, "by_class": {"2xx": 20}, "errors": {}, "retries": 0, "p50_micros": 0, "p99_micros": 0,
            "latency": [[1000, 20]]}))
        .expect("an edge");
        let cli = <crate::Cli as clap::Parser>::try_parse_from(["weft", "top"]).expect("it is a command");
        let crate::Command::Top(args) = cli.command else { panic!("another command") };
        let heard = |edges| Heard { told: vec![("front/client-0".to_owned(), edges)], silent: BTreeMap::new() };
        let after = Some(heard(vec![Edge { from: "front/client-0".into(), ..edge }]));
        let took = Duration::from_secs(2);
        let before = Some(heard(vec![]));
        let mut screen = Screen { what: args.what, order: Order::Name, before, after, took, problem: None, lines: vec![] };
        screen.count();
        let mut terminal = Terminal::new(TestBackend::new(100, 6)).expect("a screen");
        let mut shown = |screen: &Screen| {
            terminal.draw(|frame| screen.draw(frame, false)).expect("drawn");
            terminal.backend().to_string()
        };
        let text = shown(&screen);
        assert!(text.contains("SERVICE") && text.contains("shop/web  100.00%  10.0"), "{text}");
        assert!(screen.key('e') && screen.key('o') && screen.order == Order::Requests);
        assert!(shown(&screen).contains("front/client-0  shop/web"));
        assert!(!screen.key('q'));
    }
}
