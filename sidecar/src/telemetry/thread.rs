//! The telemetry thread: takes what all workers have told to exporters, standard output and taps.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use tokio::task::LocalSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Telemetry;
use super::config::{AccessLog, TelemetryConfig, Telling, Tracing};
use super::resource::{self, resource};
use super::stdout::Lines;
use super::way::{Bundle, Items, MANY, Way};
use crate::identity::unix_now;
use crate::otlp::batch::{Counts, Limits, Queue};
use crate::otlp::{Env, Exporter, SettingError, Signal};
use crate::worker::Shared;

/// How often it is looked what workers have told. They wake nobody for a single request: that would cost each a system call.
const LOOK: Duration = Duration::from_millis(50);
/// After so many looks in vain they are fewer.
const IDLE: u32 = 40;
/// So many spans or log records are passed on in the memory that they lie in; fewer are copied, and the worker has its room back.
const MOVED: usize = MANY / 4;
/// Where spans come faster than the exporter takes them, what workers have told waits for it so long, in pauses of such a length.
const HELD_BACK: Duration = Duration::from_millis(100);
const PAUSE: Duration = Duration::from_millis(1);
/// How long spans and log records wait for others, unless `OTEL_BSP_SCHEDULE_DELAY` and `OTEL_BLRP_SCHEDULE_DELAY` say otherwise.
const SPANS: Duration = Duration::from_secs(5);
const LOGS: Duration = Duration::from_secs(1);

/// What is exported and written, as it was set.
pub struct Plan {
    env: Env,
    traces: Option<Exporter>,
    logs: Option<Exporter>,
}

impl Plan {
    /// Reads everything. What cannot be honoured is told in the log and left out: traffic matters more. `mark`: see [`Exporter::new`].
    pub fn read(env: Env, config: &TelemetryConfig, mark: u32) -> (Self, Telemetry) {
        let (telling, wrong) = Telling::read(config);
        for why in wrong {
            tracing::error!("{why}");
        }
        let told = |signal: Signal, exporter: Result<Option<Exporter>, SettingError>| {
            exporter.unwrap_or_else(|why| {
                tracing::error!("{} are not exported: {why}", signal.upper().to_lowercase());
                None
            })
        };
        let traces = told(Signal::Traces, Exporter::new(Signal::Traces, &env, mark));
        // The access log as OTLP only where it is asked for by name: an endpoint is often there for traces alone.
        let asked = env.get("OTEL_LOGS_EXPORTER").is_some() || env.get("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT").is_some();
        let logs = if asked { told(Signal::Logs, Exporter::new(Signal::Logs, &env, mark)) } else { None };
        let tracing = Tracing::read(&env, traces.is_some(), telling.errors).unwrap_or_else(|why| {
            tracing::error!("nothing is traced: {why}");
            None
        });
        if let Some(exporter) = &traces {
            tracing::info!(to = exporter.place(), "spans are exported");
        }
        if let Some(exporter) = &logs {
            tracing::info!(to = exporter.place(), "the access log is exported");
        }
        let telemetry = Telemetry::new(tracing, telling, logs.is_some());
        (Self { env, traces, logs }, telemetry)
    }
}

/// Starts the thread. It ends after `stop`, once everything is exported and written, or in [`LAST`] twice, whatever a collector, a name server or a reader does.
pub fn start(shared: Arc<Shared>, plan: Plan, stop: CancellationToken) -> std::io::Result<std::thread::JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("weft-telemetry".to_owned()).spawn(move || {
        let local = LocalSet::new();
        runtime.block_on(local.run_until(async move {
            match Teller::new(shared, plan) {
                Ok(teller) => teller.run(stop).await,
                Err(e) => tracing::error!(error = %e, "nothing is told of requests"),
            }
        }));
        drop(local);
        // A thread that looks a name up cannot be ended: it is left behind.
        runtime.shutdown_background();
    })
}

struct Teller {
    shared: Arc<Shared>,
    ways: Vec<Arc<Way>>,
    /// What was taken from one of them.
    bundle: Bundle,
    lines: Option<Lines>,
    spans: Option<Rc<Queue>>,
    logs: Option<Rc<Queue>>,
}

/// How long the end may take.
const LAST: Duration = Duration::from_secs(2);

impl Teller {
    fn new(shared: Arc<Shared>, plan: Plan) -> std::io::Result<Self> {
        let Plan { env, traces, logs } = plan;
        let env = Rc::new(env);
        let telemetry = shared.telemetry.clone();
        let has_lines = telemetry.telling.form != AccessLog::Off;
        let lines = if has_lines { Some(Lines::new(telemetry.clone())?) } else { None };
        let queue = |prefix: &str, delay: Duration, counts: &Arc<Counts>, exporter: Exporter, what: &'static str| {
            let queue = Queue::new(Limits::read(&env, prefix, delay), counts.clone());
            let (shared, env) = (shared.clone(), env.clone());
            let head = move |items| resource::before(&resource(&shared, &env), items);
            tokio::task::spawn_local(queue.clone().run(exporter, what, head));
            queue
        };
        let spans = traces.map(|exporter| queue("OTEL_BSP", SPANS, &telemetry.spans, exporter, "spans"));
        let logs = logs.map(|exporter| queue("OTEL_BLRP", LOGS, &telemetry.logs, exporter, "log records"));
        Ok(Self { shared, ways: vec![], bundle: Bundle::default(), lines, spans, logs })
    }

    async fn run(mut self, stop: CancellationToken) {
        let telemetry = self.shared.telemetry.clone();
        let mut idle = 0;
        while !stop.is_cancelled() {
            let wait = async {
                if !telemetry.is_wanted() {
                    telemetry.wake.notified().await;
                } else if idle < IDLE {
                    // Sooner where much has come.
                    let _ = tokio::time::timeout(LOOK, telemetry.wake.notified()).await;
                } else {
                    // Whoever has something to tell then wakes this thread, once.
                    telemetry.asleep.store(true, Relaxed);
                    let _ = tokio::time::timeout(LOOK * 4, telemetry.wake.notified()).await;
                    telemetry.asleep.store(false, Relaxed);
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = wait => {}
            }
            idle = if self.take().await { 0 } else { idle + 1 };
        }
        // What was told while it looked for the last time.
        self.take().await;
        if let Some(queue) = &self.spans {
            queue.close();
        }
        if let Some(queue) = &self.logs {
            queue.close();
        }
        let waits = |waiting: &AtomicU64| waiting.load(Relaxed) > 0;
        let emptied = async {
            while waits(&telemetry.spans.waiting) || waits(&telemetry.logs.waiting) {
                tokio::time::sleep(LOOK).await;
            }
        };
        let _ = tokio::time::timeout(LAST, emptied).await;
        if let Some(lines) = self.lines {
            lines.close(LAST);
        }
    }

    /// Passes on all that was told; says whether anything was. The exporters have their turn in between: where a queue fills up while the collector
    /// takes what it is sent, it is waited for, but not for long.
    async fn take(&mut self) -> bool {
        let telemetry = self.shared.telemetry.clone();
        self.ways.append(&mut telemetry.fresh());
        let (mut some, mut waited) = (false, Duration::ZERO);
        for i in 0..self.ways.len() {
            self.ways[i].take(&mut self.bundle);
            some |= self.bundle.requests > 0;
            let mut exported = self.pass_on();
            while !exported.is_over() {
                while self.is_pressed() && waited < HELD_BACK {
                    waited += PAUSE;
                    tokio::time::sleep(PAUSE).await;
                }
                exported.push(self.spans.as_deref(), self.logs.as_deref());
                tokio::task::yield_now().await;
            }
        }
        self.ways.retain(|way| !way.is_over());
        telemetry.taps().beat(Instant::now(), telemetry.unseen.swap(0, Relaxed));
        some
    }

    fn is_pressed(&self) -> bool {
        let presses = |queue: &Option<Rc<Queue>>| queue.as_ref().is_some_and(|q| q.presses() && !q.counts.failing.load(Relaxed));
        presses(&self.spans) || presses(&self.logs)
    }

    /// Passes on what was taken, but for what is exported.
    fn pass_on(&mut self) -> Exported {
        let (telemetry, bundle) = (&self.shared.telemetry, &mut self.bundle);
        let mut exported = Exported::default();
        if bundle.spans.count > 0 {
            let count = bundle.spans.count;
            let spans = bytes_of(&mut bundle.spans);
            if self.spans.is_some() {
                exported.spans = (spans.clone(), count);
            }
            if let Some(memory) = telemetry.ring.keep(spans, count) {
                bundle.spans.has_room(|| memory);
            }
        }
        if let Some(queue) = self.logs.as_ref().filter(|_| bundle.logs.count > 0) {
            let count = bundle.logs.count;
            exported.logs = (bytes_of(&mut bundle.logs), count);
            bundle.logs.has_room(|| queue.empty());
        }
        if let Some(lines) = &self.lines {
            lines.send(&mut bundle.lines);
        }
        if !bundle.tapped.is_empty() {
            let (mut taps, now) = (telemetry.taps(), Instant::now());
            for noted in bundle.tapped.drain(..) {
                taps.tell(&noted.told(), now);
            }
            telemetry.full.store(if taps.are_full(now) { unix_now() as u64 } else { 0 }, Relaxed);
        }
        exported
    }
}

/// Spans and log records that are still to be given to the exporters, and how many.
#[derive(Default)]
struct Exported {
    spans: (Bytes, usize),
    logs: (Bytes, usize),
}

impl Exported {
    fn is_over(&self) -> bool {
        self.spans.1 == 0 && self.logs.1 == 0
    }

    /// Gives a batch of each.
    fn push(&mut self, spans: Option<&Queue>, logs: Option<&Queue>) {
        for (queue, (bytes, count)) in [(spans, &mut self.spans), (logs, &mut self.logs)] {
            match queue {
                Some(queue) => queue.push_some(bytes, count),
                None => *count = 0,
            }
        }
    }
}

/// The bytes of items; in their own memory where they are many.
fn bytes_of(items: &mut Items) -> Bytes {
    // Nor is much memory kept for little.
    if items.count < MOVED || items.bytes.capacity() > 4 * items.bytes.len() {
        return Bytes::copy_from_slice(&items.bytes);
    }
    std::mem::take(&mut items.bytes).into()
}
