//! `weft demo`: brings a small shop up, sends real traffic through it, and checks every claim that it makes.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::edges::{self, Edge};
use crate::fleet::Fleet;
use crate::{rundir, trace};

mod topology;

/// Shows a whole mesh on this machine, and checks that it does what it says
#[derive(Args, Debug)]
#[command(after_help = "\
Exit status: 0 where every claim holds.

Examples:
  weft demo
  weft demo --keep
  weft demo --json | jq .ok")]
pub(crate) struct DemoArgs {
    /// One JSON object at the end, instead of text
    #[arg(long)]
    json: bool,

    /// Leave the mesh running, to look around in it with `weft exec` and `weft status`
    #[arg(long)]
    keep: bool,

    /// As root: use a user namespace all the same
    #[arg(long)]
    rootless: bool,
}

const FILES: [(&str, &str); 4] = [
    ("mesh.yaml", include_str!("../../examples/shop/mesh.yaml")),
    ("web.py", include_str!("../../examples/shop/web.py")),
    ("catalog.py", include_str!("../../examples/shop/catalog.py")),
    ("ledger.py", include_str!("../../examples/shop/ledger.py")),
];

/// How long the shop may take to open.
const OPENING: Duration = Duration::from_secs(60);

/// How long a span may be on its way to where it is kept.
const TOLD: Duration = Duration::from_secs(5);

/// What was claimed, and what was seen.
struct Claim {
    what: &'static str,
    seen: Result<String, String>,
}

pub(crate) fn main(args: &DemoArgs) -> anyhow::Result<std::process::ExitCode> {
    let demo = Demo::start(args)?;
    let opened = Instant::now();
    let outcome = demo.run();
    let open = opened.elapsed();
    demo.shop.close();
    let (claims, edges) = outcome?;
    let good = claims.iter().all(|c| c.seen.is_ok());
    if args.json {
        let list: Vec<_> = claims
            .iter()
            .map(|c| json!({"claim": c.what, "ok": c.seen.is_ok(), "seen": c.seen.as_ref().unwrap_or_else(|e| e)}))
            .collect();
        writeln!(std::io::stdout(), "{:#}", json!({"ok": good, "claims": list, "edges": edges}))?;
    } else {
        demo.summary(&claims, &edges, open)?;
    }
    Ok(if good { std::process::ExitCode::SUCCESS } else { std::process::ExitCode::FAILURE })
}

struct Demo {
    shop: Shop,
    /// The process of `weft up`.
    up: u32,
    run: PathBuf,
    log: PathBuf,
    json: bool,
    keep: bool,
    colour: bool,
}

/// What is closed at the end: by the demo itself, or where a signal ends it, by who waits for signals. Whoever comes first does it.
#[derive(Clone)]
struct Shop(Arc<Mutex<Option<Open>>>);

struct Open {
    up: Child,
    /// The shop's own files, which nobody else has.
    files: PathBuf,
    keep: bool,
}

impl Demo {
    fn start(args: &DemoArgs) -> anyhow::Result<Self> {
        let mut signals = Vec::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        for kind in [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt()] {
            let _inside = runtime.enter();
            signals.push((kind, signal(kind)?));
        }
        let files = std::env::temp_dir().join(format!("weft-demo-{}", std::process::id()));
        std::fs::create_dir(&files).with_context(|| format!("{} cannot be made", files.display()))?;
        for (name, text) in FILES {
            std::fs::write(files.join(name), text)?;
        }
        let log = files.join("up.log");
        let out = std::fs::File::create(&log)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("up").arg(files.join("mesh.yaml")).stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        if args.rootless {
            command.arg("--rootless");
        }
        if args.keep {
            use std::os::unix::process::CommandExt;
            // Ctrl-C in this terminal is for the demo, not for what it leaves running.
            command.process_group(0);
        }
        let run = rundir::base().join("shop");
        let _ = std::fs::remove_file(run.join(rundir::READY));
        let up = command.spawn();
        if up.is_err() {
            let _ = std::fs::remove_dir_all(&files);
        }
        let up = up.context("weft up could not be started")?;
        let id = up.id();
        let shop = Shop(Arc::new(Mutex::new(Some(Open { up, files, keep: args.keep }))));
        let at_signal = shop.clone();
        std::thread::spawn(move || {
            let number = runtime.block_on(first(signals));
            at_signal.close();
            std::process::exit(128 + number);
        });
        let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        let demo = Self { shop, up: id, run, log, json: args.json, keep: args.keep, colour };
        let opened = demo.wait_until_open();
        if opened.is_err() {
            demo.shop.close();
        }
        opened.map(|()| demo)
    }

    fn say(&self, text: &str) {
        if !self.json {
            let _ = writeln!(std::io::stdout(), "{text}");
        }
    }

    fn wait_until_open(&self) -> anyhow::Result<()> {
        self.say("opening a small shop: customer → web → catalog ×3 and ledger, each in a network namespace with a sidecar …");
        let began = Instant::now();
        while !self.run.join(rundir::READY).exists() {
            if let Some(status) = self.shop.ended()? {
                bail!("weft up ended ({status}):\n{}", tail(&self.log));
            }
            if began.elapsed() > OPENING {
                bail!("the shop did not open in {OPENING:?}:\n{}", tail(&self.log));
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        self.say(&format!(
            "open after {:.1} s: control plane, certificates, sidecars, redirects and health checks are up",
            began.elapsed().as_secs_f64()
        ));
        Ok(())
    }

    /// Runs a command inside a workload's place in the mesh.
    fn exec(&self, place: &str, command: &[&str]) -> anyhow::Result<String> {
        let output = self.command(place, command)?.output()?;
        if !output.status.success() {
            bail!("{} in {place} ended with {}: {}", command[0], output.status, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn command(&self, place: &str, command: &[&str]) -> anyhow::Result<Command> {
        let mut exec = Command::new(std::env::current_exe()?);
        exec.arg("exec").arg("--run-dir").arg(&self.run).arg(place).arg("--").args(command).stdin(Stdio::null());
        Ok(exec)
    }

    /// A pod's own address. Whoever has no sidecar has no service addresses either.
    fn address(&self, pod: &str) -> anyhow::Result<String> {
        let ready: Value = serde_json::from_slice(&std::fs::read(self.run.join(rundir::READY))?)?;
        let workloads = ready["workloads"].as_array().context("the list of workloads")?;
        let found = workloads.iter().find(|w| w["replica"] == pod).and_then(|w| w["address"].as_str());
        found.map(ToOwned::to_owned).with_context(|| format!("the address of {pod}"))
    }

    fn edges(&self) -> anyhow::Result<Vec<Edge>> {
        let heard = edges::read(&Fleet::Run(self.run.clone()), Some(&"shop".parse()?))?;
        if let Some((pod, why)) = heard.silent.first_key_value() {
            bail!("the sidecar of {pod} is not heard: {why}");
        }
        Ok(edges::since(None, &heard))
    }

    fn run(&self) -> anyhow::Result<(Vec<Claim>, Vec<Edge>)> {
        let mut claims = Vec::new();
        let mut claim = |what: &'static str, seen: anyhow::Result<String>| {
            let claim = Claim { what, seen: seen.map_err(|e| format!("{e:#}")) };
            self.show(&claim);
            claims.push(claim);
        };
        claim("unmodified programs call each other by name", self.bought());
        claim("every hop knows its caller by a proved identity", self.identities());
        claim("60 calls are spread over all three catalogs", self.spread());
        claim("a protocol in which the server speaks first works undeclared", self.server_first());
        claim("every connection between them is mutual TLS 1.3 with a hybrid post-quantum key exchange", self.encrypted());
        claim("a plaintext intruder is refused, with the reason", self.refused());
        claim("raw plaintext to the ledger gets nothing", self.refused_bytes());
        claim("an endpoint is killed under load and no call fails", self.killed());
        claim("the trace of a call is whole across all hops", self.traced());
        let edges = self.edges()?;
        Ok((claims, edges))
    }

    fn buy(&self, item: &str) -> anyhow::Result<Value> {
        let text = self.exec("shop/customer", &["curl", "-sS", "--max-time", "10", &format!("http://web/buy/{item}")])?;
        serde_json::from_str(&text).with_context(|| format!("the shop answered {text:?}"))
    }

    fn bought(&self) -> anyhow::Result<String> {
        let sale = self.buy("loom")?;
        if sale["offer"]["price"] != 400 || !sale["entry"].as_str().is_some_and(|e| e.starts_with("entry ")) {
            bail!("the sale is not as it should be: {sale}");
        }
        Ok(format!(
            "customer → web → catalog and ledger: a loom for {}, written down as {}",
            sale["offer"]["price"], sale["entry"]
        ))
    }

    fn identities(&self) -> anyhow::Result<String> {
        let sale = self.buy("loom")?;
        let (customer, web) = (&sale["caller"], &sale["offer"]["caller"]);
        if customer != "spiffe://cluster.local/ns/shop/sa/customer" || web != "spiffe://cluster.local/ns/shop/sa/web" {
            bail!("web saw {customer}, catalog saw {web}");
        }
        // What a caller says of itself counts for nothing.
        let forged = self.exec(
            "shop/customer",
            &["curl", "-sS", "-H", "weft-client-id: spiffe://cluster.local/ns/shop/sa/admin", "http://web/buy/loom"],
        )?;
        if forged.contains("sa/admin") {
            bail!("a forged identity reached the application: {forged}");
        }
        Ok(format!("web was called by {}, catalog by {}; a forged header was removed", short(customer), short(web)))
    }

    /// Many calls on one connection; gives the answers that are not 200, and how many there were.
    fn many(&self, n: usize) -> anyhow::Result<(usize, Vec<String>)> {
        let url = format!("http://web/buy/thread?n=[1-{n}]");
        let text =
            self.exec("shop/customer", &["curl", "-sS", "--max-time", "60", "-o", "/dev/null", "-w", "%{http_code}\n", &url])?;
        let codes: Vec<&str> = text.lines().collect();
        Ok((codes.len(), codes.into_iter().filter(|c| *c != "200").map(ToOwned::to_owned).collect()))
    }

    fn spread(&self) -> anyhow::Result<String> {
        let (n, bad) = self.many(60)?;
        if n != 60 || !bad.is_empty() {
            bail!("{n} answers, of which {} are not 200: {bad:?}", bad.len());
        }
        let edges = self.edges()?;
        let served: Vec<u64> = ["catalog-0", "catalog-1", "catalog-2"]
            .iter()
            .map(|pod| {
                edges
                    .iter()
                    .filter(|e| e.from == format!("shop/{pod}") && e.direction == "inbound" && e.peer.ends_with("/sa/web"))
                    .map(|e| e.requests)
                    .sum()
            })
            .collect();
        if served.contains(&0) {
            bail!("one catalog got nothing: {served:?}");
        }
        Ok(format!("60 of 60 answered; the catalogs served {served:?}"))
    }

    fn server_first(&self) -> anyhow::Result<String> {
        let script =
            "import socket\ns = socket.create_connection(('ledger', 7000), timeout=5)\nprint(s.makefile().readline().strip())";
        let greeting = self.exec("shop/customer", &["python3", "-c", script])?;
        if greeting.trim() != "ledger at your service" {
            bail!("the greeting was {greeting:?}");
        }
        Ok(format!("a client that says nothing is greeted: {:?}", greeting.trim()))
    }

    fn encrypted(&self) -> anyhow::Result<String> {
        let edges = self.edges()?;
        let out: Vec<&Edge> = edges.iter().filter(|e| e.direction == "outbound").collect();
        let bare: Vec<_> =
            out.iter().filter(|e| !e.is_mutual_tls()).map(|e| format!("{} → {} ({})", e.from, e.target, e.protocol)).collect();
        if out.len() < 3 || !bare.is_empty() {
            bail!("{} edges, not on mutual TLS: {bare:?}", out.len());
        }
        let one = out[0];
        Ok(format!("{} edges, all {} with {}", out.len(), one.cipher, one.key_exchange))
    }

    fn refused(&self) -> anyhow::Result<String> {
        let url = format!("http://{}:8080/buy/loom", self.address("web-0")?);
        let head = self.exec("outside/intruder", &["curl", "-sS", "--max-time", "10", "-D", "-", "-o", "/dev/null", &url])?;
        let reason = head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("weft-error: ").map(|r| r.trim().to_owned()));
        if !head.starts_with("HTTP/1.1 403") || reason.as_deref() != Some("mtls-required") {
            bail!("the intruder got {head:?}");
        }
        Ok("intruder → web: 403, weft-error: mtls-required".to_owned())
    }

    fn refused_bytes(&self) -> anyhow::Result<String> {
        let script = format!(
            "import socket\ns = socket.create_connection(('{}', 7000), timeout=5)\n\
             try:\n  s.sendall(b'sold the shop\\n')\n  print('got', s.recv(100))\nexcept ConnectionResetError:\n  print('reset')",
            self.address("ledger-0")?
        );
        match self.exec("outside/intruder", &["python3", "-c", &script])?.trim() {
            "reset" => Ok("intruder → ledger: connection reset".to_owned()),
            other => bail!("the intruder got {other:?}"),
        }
    }

    fn killed(&self) -> anyhow::Result<String> {
        const CALLS: usize = 200;
        let url = format!("http://web/buy/thread?n=[1-{CALLS}]");
        let mut load =
            self.command("shop/customer", &["curl", "-sS", "--max-time", "60", "-o", "/dev/null", "-w", "%{http_code}\n", &url])?;
        let load = load.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let kill = "import os, signal\nfor p in os.listdir('/proc'):\n  if p.isdigit() and int(p) != os.getpid():\n    \
                    if b'catalog.py' in open(f'/proc/{p}/cmdline', 'rb').read(): os.kill(int(p), signal.SIGKILL); print('killed', p)";
        let killed = self.exec("shop/catalog-1", &["python3", "-c", kill]);
        let output = load.wait_with_output()?;
        if !killed?.contains("killed") {
            bail!("there was no catalog to kill");
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let good = text.lines().filter(|c| *c == "200").count();
        if good != CALLS {
            bail!("{good} of {CALLS} calls were answered: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(format!("catalog-1 was killed while {CALLS} calls ran: {good} of {CALLS} answered"))
    }

    /// A call whose caller begins a trace, as the sidecars on its way have it.
    fn traced(&self) -> anyhow::Result<String> {
        const SPANS: usize = 4;
        let id = format!("{:016x}{:016x}", u64::from(self.up), 0x7765_6674_2064_656d_u64);
        let field = format!("traceparent: 00-{id}-00000000000000d1-01");
        self.exec("shop/customer", &["curl", "-sS", "--max-time", "10", "-H", &field, "http://web/buy/loom"])?;
        let (fleet, began) = (Fleet::Run(self.run.clone()), Instant::now());
        loop {
            let (spans, tree) = trace::of(&fleet, &id)?;
            if spans == SPANS {
                return Ok(tree.trim_end().to_owned());
            }
            if spans > SPANS || began.elapsed() > TOLD {
                bail!("it has {spans} spans and not {SPANS}:\n{tree}");
            }
            std::thread::sleep(Duration::from_millis(25));
        }
    }

    fn show(&self, claim: &Claim) {
        let (mark, colour, text) = match &claim.seen {
            Ok(seen) => ("✓", "32", seen),
            Err(why) => ("✗", "31", why),
        };
        let mark = if self.colour { format!("\x1b[{colour}m{mark}\x1b[0m") } else { mark.to_owned() };
        self.say(&format!("{mark} {}\n    {}", claim.what, text.replace('\n', "\n    ")));
    }

    fn summary(&self, claims: &[Claim], edges: &[Edge], open: Duration) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        writeln!(out, "\nwho called whom, as the callers' sidecars counted it:")?;
        out.write_all(edges::shown(edges).as_bytes())?;
        writeln!(out, "\nits topology:")?;
        out.write_all(topology::drawn(edges, open).as_bytes())?;
        let good = claims.iter().filter(|c| c.seen.is_ok()).count();
        writeln!(out, "\n{good} of {} claims hold", claims.len())?;
        if self.keep {
            writeln!(out, "\nthe shop is still open; look around:")?;
            for line in [
                "weft status",
                "weft trace",
                "weft tap shop/web",
                "weft dashboard",
                "weft exec shop/customer -- curl -s http://web/buy/shuttle",
                &format!("weft exec outside/intruder -- curl -si http://{}:8080/", self.address("web-0")?),
            ] {
                writeln!(out, "  {line}")?;
            }
            writeln!(out, "close it with: kill -INT {}", self.up)?;
        }
        Ok(())
    }
}

impl Shop {
    fn held(&self) -> MutexGuard<'_, Option<Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The status that `weft up` ended with, if it did.
    fn ended(&self) -> std::io::Result<Option<ExitStatus>> {
        self.held().as_mut().map_or(Ok(None), |open| open.up.try_wait())
    }

    /// Closes the shop and removes its files, unless it is to stay. Who comes second waits until it is closed.
    fn close(&self) {
        let mut held = self.held();
        let Some(mut open) = held.take() else { return };
        if open.keep && open.up.try_wait().is_ok_and(|ended| ended.is_none()) {
            return;
        }
        if let Ok(pid) = i32::try_from(open.up.id()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGINT);
        }
        let until = Instant::now() + Duration::from_secs(15);
        while Instant::now() < until {
            if !matches!(open.up.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        let _ = open.up.kill();
        let _ = open.up.wait();
        let _ = std::fs::remove_dir_all(&open.files);
    }
}

/// The number of the first of these signals that comes.
async fn first(mut signals: Vec<(SignalKind, Signal)>) -> i32 {
    std::future::poll_fn(|cx| {
        let came = signals.iter_mut().find_map(|(kind, signal)| signal.poll_recv(cx).is_ready().then(|| kind.as_raw_value()));
        came.map_or(std::task::Poll::Pending, std::task::Poll::Ready)
    })
    .await
}

fn short(id: &Value) -> &str {
    let text = id.as_str().unwrap_or("nobody");
    text.strip_prefix("spiffe://cluster.local/").unwrap_or(text)
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}
