//! Metrics, pushed over OTLP now and then.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::resource::v1::Resource;
use tokio::time::MissedTickBehavior;
use weft_core::metrics::{Family, Labels};

use super::batch::Counts;
use super::points::{Aggregation, Points, Temporality, attribute};
use super::{Env, Exporter, SettingError, Signal};

/// How metrics are pushed.
pub struct Push {
    exporter: Exporter,
    /// `OTEL_METRIC_EXPORT_INTERVAL`.
    interval: Duration,
    temporality: Temporality,
    aggregation: Aggregation,
    began: u64,
}

/// What is told at a time: series, the labels that all of them have, and whose they are.
pub type Gathered = (Vec<Family>, Labels, Resource);

const INTERVAL: Duration = Duration::from_secs(60);

impl Push {
    /// By what the variables say, of what is counted from now on; none if they name no collector, or say that there is to be none (`OTEL_METRICS_EXPORTER=none`; `prometheus` too, since
    /// `/metrics` is served anyway). `mark` is put on its sockets.
    pub fn new(env: &Env, mark: u32) -> Result<Option<Self>, SettingError> {
        if env.get("OTEL_METRICS_EXPORTER") == Some("prometheus") {
            return Ok(None);
        }
        let Some(exporter) = Exporter::new(Signal::Metrics, env, mark)? else { return Ok(None) };
        let wrong = |name: &str, value: &str, known: &str| SettingError {
            name: name.to_owned(),
            why: format!("{value:?} is not known: write {known}"),
        };
        let name = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE";
        let temporality = match env.get(name).map(str::to_ascii_lowercase).as_deref() {
            None | Some("cumulative") => Temporality::Cumulative,
            Some("delta" | "lowmemory") => Temporality::Delta,
            Some(other) => return Err(wrong(name, other, "cumulative, delta or lowmemory")),
        };
        let name = "OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION";
        let aggregation = match env.get(name).map(str::to_ascii_lowercase).as_deref() {
            None | Some("explicit_bucket_histogram") => Aggregation::Explicit,
            Some("base2_exponential_bucket_histogram") => Aggregation::Exponential,
            Some(other) => return Err(wrong(name, other, "explicit_bucket_histogram or base2_exponential_bucket_histogram")),
        };
        let interval = env.millis("OTEL_METRIC_EXPORT_INTERVAL", INTERVAL);
        let interval = interval.clamp(Duration::from_millis(10), Duration::from_secs(24 * 3600));
        Ok(Some(Self { exporter, interval, temporality, aggregation, began: now() }))
    }

    /// Where it pushes to, for people.
    pub fn place(&self) -> &str {
        self.exporter.place()
    }

    /// Pushes until `stop` resolves, then once more: what was counted last is not lost. `random` is drawn from for jitter. A push that fails is told
    /// once for each time that it begins; what was counted is not lost by it, unless the temporality is delta.
    pub async fn run(
        mut self,
        counts: Arc<Counts>,
        random: impl Fn() -> u64,
        gather: impl Fn() -> Gathered,
        stop: impl Future<Output = ()>,
    ) {
        let mut points = Points::new(self.temporality, self.aggregation, self.began);
        // Sidecars that begin together do not push together.
        let first = self.interval.mul_f64((random() % 1_000) as f64 / 1_000.0);
        let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + first, self.interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stop = std::pin::pin!(stop);
        let stopped = AtomicBool::new(false);
        loop {
            if !stopped.load(Relaxed) {
                tokio::select! {
                    biased;
                    () = &mut stop => stopped.store(true, Relaxed),
                    _ = tick.tick() => {}
                }
            }
            if stopped.load(Relaxed) {
                let _ = tokio::time::timeout(LAST, self.once(&mut points, &counts, &random, &gather)).await;
                return;
            }
            // A collector that does not answer holds up the end no longer than the end's own time.
            let ended = tokio::select! {
                biased;
                () = self.once(&mut points, &counts, &random, &gather) => false,
                () = async {
                    (&mut stop).await;
                    stopped.store(true, Relaxed);
                    tokio::time::sleep(LAST).await;
                } => true,
            };
            if ended {
                return;
            }
        }
    }

    /// Pushes once.
    async fn once(&mut self, points: &mut Points, counts: &Counts, random: &impl Fn() -> u64, gather: &impl Fn() -> Gathered) {
        let (families, constant, resource) = gather();
        let (message, count) = points.request(families, &constant, resource, now());
        let outcome = self.exporter.export(message, random).await;
        let was_failing = counts.failing.swap(outcome.is_err(), Relaxed);
        match outcome {
            Ok(taken) => {
                counts.rejected.fetch_add(taken.rejected, Relaxed);
                counts.exported.fetch_add(count.saturating_sub(taken.rejected), Relaxed);
                if taken.rejected > 0 {
                    let rejected = taken.rejected;
                    tracing::warn!(
                        to = self.place(),
                        "the collector refused {rejected} of {count} data points: {}",
                        taken.message
                    );
                }
                if was_failing {
                    tracing::info!(to = self.place(), "metrics are pushed again");
                }
            }
            Err(why) => {
                counts.failed.fetch_add(count, Relaxed);
                if !was_failing {
                    tracing::warn!("metrics cannot be pushed: {why}");
                }
            }
        }
    }
}

/// How long the last push may take.
const LAST: Duration = Duration::from_secs(2);

/// Whose metrics these are: what `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_SERVICE_NAME` say, and, where they say nothing of it, `service` and `more`.
pub fn resource(env: &Env, service: &str, more: &[(&str, &str)]) -> Resource {
    let mut pairs: Vec<(String, String)> = Vec::new();
    let mut add = |name: &str, value: &str| {
        if pairs.iter().all(|(other, _)| other != name) {
            pairs.push((name.to_owned(), value.to_owned()));
        }
    };
    if let Some(name) = env.get("OTEL_SERVICE_NAME") {
        add("service.name", name);
    }
    for (name, value) in env.get("OTEL_RESOURCE_ATTRIBUTES").map(Env::pairs).unwrap_or_default().into_iter().flatten() {
        add(&name, &value);
    }
    add("service.name", service);
    for (name, value) in more {
        add(name, value);
    }
    let attributes = pairs.into_iter().map(|(name, value)| attribute(&name, Value::StringValue(value))).collect();
    Resource { attributes, ..Resource::default() }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    fn of(pairs: &[(&str, &str)]) -> Result<Option<Push>, SettingError> {
        let env: Env = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Push::new(&env, 0)
    }

    /// A pod that lives for less than the interval is heard of, too, and a collector that is silent holds its end up for two seconds.
    #[tokio::test(start_paused = true)]
    async fn what_was_counted_is_pushed_once_more_at_the_end() {
        let (asked, counts) = (Cell::new(0), Arc::new(Counts::default()));
        let gather = || {
            asked.set(asked.get() + 1);
            (Vec::new(), Labels::new(), Resource::default())
        };
        // Nothing listens there.
        let push = of(&[("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://127.0.0.1:1")]).expect("known").expect("an endpoint");
        let began = tokio::time::Instant::now();
        push.run(counts, || 999, gather, tokio::time::sleep(Duration::from_secs(1))).await;
        assert_eq!(asked.get(), 1);
        assert!(began.elapsed() <= Duration::from_secs(1) + LAST);
    }

    #[test]
    fn the_standard_variables_decide() {
        let endpoint = ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://127.0.0.1:4317");
        assert!(of(&[]).expect("nothing is said").is_none());
        assert!(of(&[endpoint, ("OTEL_METRICS_EXPORTER", "none")]).expect("known").is_none());
        assert!(of(&[endpoint, ("OTEL_METRICS_EXPORTER", "prometheus")]).expect("known").is_none());
        let usual = of(&[endpoint]).expect("known").expect("an endpoint");
        assert_eq!(
            (usual.temporality, usual.aggregation, usual.interval),
            (Temporality::Cumulative, Aggregation::Explicit, INTERVAL)
        );
        let other = of(&[
            endpoint,
            ("OTEL_METRIC_EXPORT_INTERVAL", "500"),
            ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "Delta"),
            ("OTEL_EXPORTER_OTLP_METRICS_DEFAULT_HISTOGRAM_AGGREGATION", "base2_exponential_bucket_histogram"),
        ]);
        let other = other.expect("known").expect("an endpoint");
        let half = Duration::from_millis(500);
        assert_eq!((other.temporality, other.aggregation, other.interval), (Temporality::Delta, Aggregation::Exponential, half));
        let wrong = of(&[endpoint, ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "some")]);
        assert!(wrong.is_err_and(|e| e.to_string().contains("cumulative, delta or lowmemory")));
    }
}
