//! The telemetry thread: takes records from all workers, and makes spans, lines and tap events of them.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use tokio::task::LocalSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::config::{AccessLog, TelemetryConfig, Telling, Tracing, Which};
use super::record::Told;
use super::resource::{self, resource};
use super::stdout::Lines;
use super::way::{Bundle, Way};
use super::{TAP, Telemetry, line, span};
use crate::identity::{random, unix_now};
use crate::otlp::batch::{Counts, Limits, Queue};
use crate::otlp::{Env, Exporter, SettingError, Signal};
use crate::worker::Shared;

/// How often workers' records are looked for. Workers wake nobody for a single one: that would cost each request a system call.
const LOOK: Duration = Duration::from_millis(50);
/// After so many looks in vain they are fewer.
const IDLE: u32 = 40;
/// Records that are told before the exporter has its turn.
const AT_ONCE: usize = 256;
/// Where spans come faster than the exporter takes them, workers' records wait for it so long, in pauses of such a length.
const HELD_BACK: Duration = Duration::from_millis(100);
const PAUSE: Duration = Duration::from_millis(1);
/// How long spans and log records wait for others, unless `OTEL_BSP_SCHEDULE_DELAY` and `OTEL_BLRP_SCHEDULE_DELAY` say otherwise.
const SPANS: Duration = Duration::from_secs(5);
const LOGS: Duration = Duration::from_secs(1);

/// What is exported and written, as it was set.
pub struct Plan {
    env: Env,
    config: Telling,
    traces: Option<Exporter>,
    logs: Option<Exporter>,
}

impl Plan {
    /// Reads everything. What cannot be honoured is told in the log and left out: traffic matters more. `mark`: see [`Exporter::new`].
    pub fn read(env: Env, config: &TelemetryConfig, mark: u32) -> (Self, Telemetry) {
        let (config, wrong) = Telling::read(config);
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
        let tracing = Tracing::read(&env, traces.is_some(), config.errors).unwrap_or_else(|why| {
            tracing::error!("nothing is traced: {why}");
            None
        });
        if let Some(exporter) = &traces {
            tracing::info!(to = exporter.place(), "spans are exported");
        }
        if let Some(exporter) = &logs {
            tracing::info!(to = exporter.place(), "the access log is exported");
        }
        let telemetry = Telemetry::new(tracing, logs.is_some() || config.form != AccessLog::Off).allowing(config.tap);
        (Self { env, config, traces, logs }, telemetry)
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
    config: Telling,
    ways: Vec<Arc<Way>>,
    /// What was taken from one of them.
    bundle: Bundle,
    /// The attributes of the span that was written last.
    shared_attributes: Vec<u8>,
    lines: Option<Lines>,
    spans: Option<Rc<Queue>>,
    logs: Option<Rc<Queue>>,
}

/// How long the end may take.
const LAST: Duration = Duration::from_secs(2);

impl Teller {
    fn new(shared: Arc<Shared>, plan: Plan) -> std::io::Result<Self> {
        let Plan { env, config, traces, logs } = plan;
        let env = Rc::new(env);
        let telemetry = shared.telemetry.clone();
        let lines = if config.form == AccessLog::Off { None } else { Some(Lines::new(telemetry.clone())?) };
        let queue = |prefix: &str, delay: Duration, counts: &Arc<Counts>, exporter: Exporter, what: &'static str| {
            let queue = Queue::new(Limits::read(&env, prefix, delay), counts.clone());
            let (shared, env) = (shared.clone(), env.clone());
            let head = move |items| resource::before(&resource(&shared, &env), items);
            tokio::task::spawn_local(queue.clone().run(exporter, what, head));
            queue
        };
        let spans = traces.map(|exporter| queue("OTEL_BSP", SPANS, &telemetry.spans, exporter, "spans"));
        let logs = logs.map(|exporter| queue("OTEL_BLRP", LOGS, &telemetry.logs, exporter, "log records"));
        Ok(Self { shared, config, ways: vec![], bundle: Bundle::default(), shared_attributes: vec![], lines, spans, logs })
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

    /// Tells all that came; says whether anything did. The exporters have their turn in between: where a queue fills up while the collector
    /// takes what it is sent, it is waited for, but not for long.
    async fn take(&mut self) -> bool {
        let telemetry = self.shared.telemetry.clone();
        self.ways.append(&mut telemetry.fresh());
        let (mut some, mut waited) = (false, Duration::ZERO);
        for i in 0..self.ways.len() {
            self.ways[i].take(&mut self.bundle);
            loop {
                while self.is_pressed() && waited < HELD_BACK {
                    waited += PAUSE;
                    tokio::time::sleep(PAUSE).await;
                }
                if !self.tell_some() {
                    break;
                }
                some = true;
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

    /// Tells some of what was taken; false if nothing is left.
    fn tell_some(&mut self) -> bool {
        let mut bundle = std::mem::take(&mut self.bundle);
        let mut some = false;
        for _ in 0..AT_ONCE {
            let Some((record, texts)) = bundle.next() else { break };
            some = true;
            if self.tell(&Told { record, texts }) {
                // What a tap was shown is kept for nobody else.
                (record.shown, record.fields) = (None, None);
                self.shared.telemetry.ring.keep(std::mem::take(record), texts);
            }
        }
        self.bundle = bundle;
        if let Some(lines) = &mut self.lines {
            lines.flush();
        }
        some
    }

    /// Tells of a record; says whether its spans are to be kept.
    fn tell(&mut self, told: &Told<'_>) -> bool {
        let record = told.record;
        let failed = record.is_error();
        let telemetry = &self.shared.telemetry;
        let traced = telemetry
            .tracing
            .as_ref()
            .is_some_and(|tracing| record.trace.as_ref().is_some_and(|t| t.sampled || (failed && tracing.errors)));
        self.shared_attributes.clear();
        if let Some(queue) = self.spans.as_ref().filter(|_| traced) {
            for i in 0..span::count(record) {
                queue.push(|out| span::write(out, told, i, &mut self.shared_attributes));
            }
        }
        let config = &self.config;
        let logged = failed || (config.which == Which::All && config.share.takes(random));
        if logged && let Some(queue) = &self.logs {
            let shared = Some(&*self.shared_attributes).filter(|shared| !shared.is_empty() && span::count(record) == 1);
            queue.push(|out| span::write_log(out, told, shared));
        }
        if logged && let Some(lines) = &mut self.lines {
            let fields = &config.fields;
            lines.line(|out| match config.form {
                AccessLog::Json => line::json(out, fields, told),
                AccessLog::Text | AccessLog::Off => line::text(out, fields, told),
            });
        }
        if telemetry.wanted.load(Relaxed) & TAP != 0 {
            let (mut taps, now) = (telemetry.taps(), Instant::now());
            taps.tell(told, now);
            telemetry.full.store(if taps.are_full(now) { unix_now() as u64 } else { 0 }, Relaxed);
        }
        traced
    }
}
