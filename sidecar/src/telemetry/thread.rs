//! The telemetry thread: takes records from all workers, and makes spans, lines and tap events of them.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;
use tokio::task::LocalSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weft_core::conventions::SCHEMA_URL;

use super::config::{AccessLog, TelemetryConfig, Telling, Tracing, Which};
use super::fields::Told;
use super::record::Record;
use super::resource::{resource, scope};
use super::stdout::Lines;
use super::{Telemetry, line, span};
use crate::identity::{random, unix_now};
use crate::otlp::batch::{Limits, Queue};
use crate::otlp::{Env, Exporter, SettingError, Signal};
use crate::worker::Shared;

/// How often the queues are looked at. Workers wake nobody: that would cost each request a system call.
const LOOK: Duration = Duration::from_millis(50);
/// After so many looks in vain they are fewer.
const IDLE: u32 = 40;
/// Records that are taken from one worker before others have their turn, and the exporter.
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
    workers: Vec<Receiver<Box<Record>>>,
    lines: Option<Lines>,
    spans: Option<Rc<Queue<Span>>>,
    logs: Option<Rc<Queue<LogRecord>>>,
}

/// How long the end may take.
const LAST: Duration = Duration::from_secs(2);

impl Teller {
    fn new(shared: Arc<Shared>, plan: Plan) -> std::io::Result<Self> {
        let Plan { env, config, traces, logs } = plan;
        let env = Rc::new(env);
        let telemetry = shared.telemetry.clone();
        let lines = if config.form == AccessLog::Off { None } else { Some(Lines::new(telemetry.clone())?) };
        let spans = traces.map(|exporter| {
            let queue = Queue::new(Limits::read(&env, "OTEL_BSP", SPANS), telemetry.spans.clone());
            let (shared, env) = (shared.clone(), env.clone());
            tokio::task::spawn_local(queue.clone().run(exporter, "spans", move |spans| {
                let scope_spans = ScopeSpans { scope: Some(scope()), spans, schema_url: SCHEMA_URL.to_owned() };
                let resource = Some(resource(&shared, &env));
                let all = ResourceSpans { resource, scope_spans: vec![scope_spans], schema_url: SCHEMA_URL.to_owned() };
                ExportTraceServiceRequest { resource_spans: vec![all] }.encode_to_vec().into()
            }));
            queue
        });
        let logs = logs.map(|exporter| {
            let queue = Queue::new(Limits::read(&env, "OTEL_BLRP", LOGS), telemetry.logs.clone());
            let (shared, env) = (shared.clone(), env.clone());
            tokio::task::spawn_local(queue.clone().run(exporter, "log records", move |log_records| {
                let scope_logs = ScopeLogs { scope: Some(scope()), log_records, schema_url: SCHEMA_URL.to_owned() };
                let resource = Some(resource(&shared, &env));
                let all = ResourceLogs { resource, scope_logs: vec![scope_logs], schema_url: SCHEMA_URL.to_owned() };
                ExportLogsServiceRequest { resource_logs: vec![all] }.encode_to_vec().into()
            }));
            queue
        });
        Ok(Self { shared, config, workers: vec![], lines, spans, logs })
    }

    async fn run(mut self, stop: CancellationToken) {
        let telemetry = self.shared.telemetry.clone();
        let mut idle = 0;
        while !stop.is_cancelled() {
            let wait = async {
                if !telemetry.is_wanted() {
                    telemetry.wake.notified().await;
                } else if idle < IDLE {
                    tokio::time::sleep(LOOK).await;
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

    /// Takes all that came; says whether anything did. The exporter of spans has its turn in between: where its queue fills up while the collector
    /// takes what it is sent, it is waited for, but not for long.
    async fn take(&mut self) -> bool {
        let (mut some, mut waited) = (false, Duration::ZERO);
        loop {
            let full = self.spans.as_ref().is_some_and(|q| q.presses() && !q.counts.failing.load(Relaxed));
            if full && waited < HELD_BACK {
                waited += PAUSE;
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            let Some(more) = self.look() else { return some };
            some = true;
            if !more {
                return true;
            }
            tokio::task::yield_now().await;
        }
    }

    /// Takes what came: none if nothing did, else whether there may be more.
    fn look(&mut self) -> Option<bool> {
        let telemetry = self.shared.telemetry.clone();
        self.workers.append(&mut telemetry.fresh());
        let mut workers = std::mem::take(&mut self.workers);
        let (mut some, mut more) = (false, false);
        workers.retain(|worker| {
            for _ in 0..AT_ONCE {
                match worker.try_recv() {
                    Ok(record) => {
                        some = true;
                        self.tell(record);
                    }
                    Err(TryRecvError::Empty) => return true,
                    Err(TryRecvError::Disconnected) => return false,
                }
            }
            more = true;
            true
        });
        self.workers = workers;
        if let Some(lines) = &mut self.lines {
            lines.flush();
        }
        telemetry.taps().beat(Instant::now(), telemetry.unseen.swap(0, Relaxed));
        some.then_some(more)
    }

    fn tell(&mut self, record: Box<Record>) {
        let told = Told { record: &record };
        let failed = record.is_error();
        let telemetry = &self.shared.telemetry;
        let traced = telemetry
            .tracing
            .as_ref()
            .is_some_and(|tracing| record.trace.as_ref().is_some_and(|t| t.sampled || (failed && tracing.errors)));
        if let Some(queue) = self.spans.as_ref().filter(|_| traced) {
            // Nothing is made that is dropped at once.
            if queue.room() == 0 {
                queue.drops(span::count(&record));
            } else {
                for span in span::spans(&told) {
                    queue.push(span);
                }
            }
        }
        let config = &self.config;
        let logged = failed || (config.which == Which::All && config.share.takes(random()));
        if logged && let Some(queue) = &self.logs {
            let now = record.began + record.took.as_nanos() as u64;
            queue.push(span::log_record(&told, now));
        }
        if logged && let Some(lines) = &mut self.lines {
            let fields = &config.fields;
            lines.line(|out| match config.form {
                AccessLog::Json => line::json(out, fields, &told),
                AccessLog::Text | AccessLog::Off => line::text(out, fields, &told),
            });
        }
        let mut taps = telemetry.taps();
        if !taps.is_empty() {
            let now = Instant::now();
            taps.tell(&told, now);
            telemetry.full.store(if taps.are_full(now) { unix_now() as u64 } else { 0 }, Relaxed);
        }
        drop(taps);
        if traced {
            telemetry.ring.keep(record);
        }
    }
}
