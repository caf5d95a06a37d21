//! Families of metrics as OTLP has them.

use std::collections::HashMap;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::exponential_histogram_data_point::Buckets;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Exemplar, ExponentialHistogram, ExponentialHistogramDataPoint, Gauge, Histogram, HistogramDataPoint,
    Metric as OtlpMetric, NumberDataPoint, ResourceMetrics, ScopeMetrics, Sum, exemplar,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;
use weft_core::conventions::SCHEMA_URL;
use weft_core::metrics::family::Distribution;
use weft_core::metrics::histogram::{BOUNDS, FIRST, Reading, SCHEMA, ZERO};
use weft_core::metrics::{Family, Kind, Labels, Metric, Point, Text, Value, table};

/// What counters and histograms tell: all since they began, or what came since they were told last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Temporality {
    Cumulative,
    Delta,
}

/// Which buckets histograms have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Aggregation {
    Explicit,
    Exponential,
}

/// Makes messages of families, and knows what was told before.
pub struct Points {
    temporality: Temporality,
    aggregation: Aggregation,
    /// When the program began, and when it told last, in nanoseconds since the Unix epoch.
    began: u64,
    told_at: u64,
    told: Told,
}

/// What series had, and since when they had been counted.
type Told = HashMap<(&'static str, Labels), (u64, Value)>;

impl Points {
    pub fn new(temporality: Temporality, aggregation: Aggregation, began: u64) -> Self {
        Self { temporality, aggregation, began, told_at: began, told: HashMap::new() }
    }

    /// An encoded `ExportMetricsServiceRequest`, and how many data points it has. `constant` are labels of every series; `now` is in nanoseconds since the
    /// Unix epoch.
    pub fn request(&mut self, families: Vec<Family>, constant: &Labels, resource: Resource, now: u64) -> (Bytes, u64) {
        let (mut count, mut told) = (0, Told::new());
        let mut metrics = Vec::with_capacity(families.len());
        for family in families {
            if family.metric.kind == Kind::Info || family.points.is_empty() {
                continue;
            }
            count += family.points.len() as u64;
            metrics.push(self.metric(family, constant, now, &mut told));
        }
        (self.told, self.told_at) = (told, now);
        let scope = InstrumentationScope {
            name: "weft".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..InstrumentationScope::default()
        };
        let scope_metrics = vec![ScopeMetrics { scope: Some(scope), metrics, schema_url: SCHEMA_URL.to_owned() }];
        let resource_metrics =
            vec![ResourceMetrics { resource: Some(resource), scope_metrics, schema_url: SCHEMA_URL.to_owned() }];
        (ExportMetricsServiceRequest { resource_metrics }.encode_to_vec().into(), count)
    }

    fn metric(&self, family: Family, constant: &Labels, now: u64, told: &mut Told) -> OtlpMetric {
        let metric = family.metric;
        let delta = self.temporality == Temporality::Delta && matches!(metric.kind, Kind::Counter | Kind::Histogram);
        let (mut numbers, mut explicit, mut exponential) = (Vec::new(), Vec::new(), Vec::new());
        for mut point in family.points {
            if delta {
                let key = (metric.name, point.labels.clone());
                let whole = point.value.clone();
                // A series that began anew has nothing of what was told of the one before.
                if let Some((_, before)) =
                    self.told.get(&key).filter(|(since, _)| *since == point.since || point.since <= self.told_at)
                {
                    point.value = since(&whole, before);
                }
                told.insert(key, (point.since, whole));
            }
            let start = match (delta, point.since) {
                (true, since) => since.max(self.told_at),
                (false, 0) => self.began,
                (false, since) => since,
            };
            let times = (start.min(now), now);
            match point.value {
                Value::Distribution(ref distribution) => match self.aggregation {
                    Aggregation::Explicit => explicit.push(explicit_point(&point, distribution, constant, times)),
                    Aggregation::Exponential => exponential.push(exponential_point(&point, distribution, constant, times)),
                },
                ref number => numbers.push(number_point(&point, number, constant, times)),
            }
        }
        let temporality = if delta { AggregationTemporality::Delta } else { AggregationTemporality::Cumulative };
        let aggregation_temporality = temporality.into();
        let data = match metric.kind {
            Kind::Gauge | Kind::Info => Data::Gauge(Gauge { data_points: numbers }),
            Kind::Counter | Kind::UpDownCounter => {
                Data::Sum(Sum { data_points: numbers, aggregation_temporality, is_monotonic: metric.kind == Kind::Counter })
            }
            Kind::Histogram if self.aggregation == Aggregation::Explicit => {
                Data::Histogram(Histogram { data_points: explicit, aggregation_temporality })
            }
            Kind::Histogram => {
                Data::ExponentialHistogram(ExponentialHistogram { data_points: exponential, aggregation_temporality })
            }
        };
        described(metric, data)
    }
}

fn described(metric: &Metric, data: Data) -> OtlpMetric {
    OtlpMetric {
        name: metric.name.to_owned(),
        description: metric.help.to_owned(),
        unit: metric.unit.to_owned(),
        metadata: vec![],
        data: Some(data),
    }
}

/// What came since it was told last. What is less than before had parts that ended: none of it is told again.
fn since(now: &Value, before: &Value) -> Value {
    match (now, before) {
        (Value::Count(now), Value::Count(before)) => Value::Count(now.saturating_sub(*before)),
        (Value::Distribution(now), Value::Distribution(before)) => {
            let told = |at: u64| before.exemplars.iter().flat_map(|all| all.iter().flatten()).any(|other| other.at == at);
            let fresh = now.exemplars.clone().map(|mut all| {
                for exemplar in all.iter_mut() {
                    *exemplar = exemplar.filter(|exemplar| !told(exemplar.at));
                }
                all
            });
            Value::Distribution(Box::new(Distribution { reading: now.reading.since(&before.reading), exemplars: fresh }))
        }
        (now, _) => now.clone(),
    }
}

fn number_point(point: &Point, value: &Value, constant: &Labels, (start, now): (u64, u64)) -> NumberDataPoint {
    let value = match value {
        Value::Count(n) => Number::AsInt(i64::try_from(*n).unwrap_or(i64::MAX)),
        Value::Level(level) => Number::AsDouble(*level),
        Value::Distribution(_) => Number::AsInt(0),
    };
    NumberDataPoint {
        attributes: attributes(constant, &point.labels),
        start_time_unix_nano: start,
        time_unix_nano: now,
        value: Some(value),
        ..NumberDataPoint::default()
    }
}

fn explicit_point(point: &Point, told: &Distribution, constant: &Labels, (start, now): (u64, u64)) -> HistogramDataPoint {
    HistogramDataPoint {
        attributes: attributes(constant, &point.labels),
        start_time_unix_nano: start,
        time_unix_nano: now,
        count: told.reading.count(),
        sum: Some(told.reading.sum()),
        bucket_counts: told.reading.classic.to_vec(),
        explicit_bounds: BOUNDS.to_vec(),
        exemplars: exemplars(told),
        ..HistogramDataPoint::default()
    }
}

fn exponential_point(
    point: &Point,
    told: &Distribution,
    constant: &Labels,
    (start, now): (u64, u64),
) -> ExponentialHistogramDataPoint {
    let reading = &told.reading;
    ExponentialHistogramDataPoint {
        attributes: attributes(constant, &point.labels),
        start_time_unix_nano: start,
        time_unix_nano: now,
        count: reading.exponential_count(),
        sum: Some(reading.sum()),
        scale: SCHEMA,
        zero_count: reading.zero,
        zero_threshold: ZERO,
        positive: Some(buckets(reading)),
        negative: Some(Buckets::default()),
        exemplars: exemplars(told),
        ..ExponentialHistogramDataPoint::default()
    }
}

/// One run of buckets. OTLP names a bucket by where it begins, one less than Prometheus, which names it by where it ends.
fn buckets(reading: &Reading) -> Buckets {
    let first = reading.slots.iter().position(|n| *n > 0);
    let last = reading.slots.iter().rposition(|n| *n > 0);
    match first.zip(last) {
        None => Buckets::default(),
        Some((first, last)) => Buckets { offset: FIRST + first as i32 - 1, bucket_counts: reading.slots[first..=last].to_vec() },
    }
}

fn exemplars(told: &Distribution) -> Vec<Exemplar> {
    let all = told.exemplars.iter().flat_map(|all| all.iter().flatten());
    all.map(|exemplar| Exemplar {
        filtered_attributes: vec![],
        time_unix_nano: exemplar.at,
        span_id: exemplar.span.to_vec(),
        trace_id: exemplar.trace.to_vec(),
        value: Some(exemplar::Value::AsDouble(exemplar.seconds)),
    })
    .collect()
}

fn attributes(constant: &Labels, labels: &Labels) -> Vec<KeyValue> {
    constant.iter().chain(labels.iter()).map(|(name, value)| attribute(name, of_text(name, value))).collect()
}

fn of_text(name: &str, value: &Text) -> Any {
    match value {
        Text::Number(number) => Any::IntValue(i64::from(*number)),
        Text::Word(word) if name == table::OVERFLOW => Any::BoolValue(*word == "true"),
        text => Any::StringValue(text.to_string()),
    }
}

/// An attribute.
pub fn attribute(name: &str, value: Any) -> KeyValue {
    KeyValue { key: name.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use weft_core::metrics::Recorder;

    use super::*;

    fn families(recorder: &Recorder, retries: u64) -> Vec<Family> {
        let mut took = Family::new(&table::HTTP_CLIENT_DURATION);
        took.distributes(Labels::new().and(table::STATUS, 200u16), recorder.read());
        let mut all = vec![took, Family::count(&table::RETRIES, retries), Family::count(&table::READY, 1)];
        all.push(Family::count(&table::TARGET_INFO, 1));
        all.push(Family::new(&table::ERRORS));
        all
    }

    fn decoded(points: &mut Points, families: Vec<Family>, now: u64) -> Vec<OtlpMetric> {
        let constant = Labels::new().and(table::NAMESPACE, "shop");
        let (message, count) = points.request(families, &constant, Resource::default(), now);
        assert_eq!(count, 3);
        let request = ExportMetricsServiceRequest::decode(message).expect("it was just encoded");
        request.resource_metrics[0].scope_metrics[0].metrics.clone()
    }

    #[test]
    fn names_units_and_values_are_those_of_the_table() {
        let recorder = Recorder::default();
        recorder.record(Duration::from_millis(3));
        recorder.record(Duration::from_millis(300));
        let mut points = Points::new(Temporality::Cumulative, Aggregation::Exponential, 5);
        let metrics = decoded(&mut points, families(&recorder, 7), 10);
        let names: Vec<_> = metrics.iter().map(|m| (m.name.as_str(), m.unit.as_str())).collect();
        assert_eq!(names, [("http.client.request.duration", "s"), ("weft.retries", "{request}"), ("weft.ready", "")]);
        let Some(Data::ExponentialHistogram(histogram)) = &metrics[0].data else { panic!("{:?}", metrics[0]) };
        let point = &histogram.data_points[0];
        let positive = point.positive.as_ref().expect("it has values");
        // (2^(i/8), 2^((i+1)/8)]
        let index = |seconds: f64| (seconds.log2() * 8.0).ceil() as i32 - 1;
        assert_eq!((positive.offset, positive.bucket_counts.len() as i32), (index(0.003), index(0.3) - index(0.003) + 1));
        assert_eq!((point.count, point.scale, positive.bucket_counts.iter().sum::<u64>()), (2, 3, 2));
        assert_eq!((point.start_time_unix_nano, point.time_unix_nano), (5, 10));
        assert_eq!(point.attributes[1], attribute("http.response.status_code", Any::IntValue(200)));
        let Some(Data::Sum(sum)) = &metrics[1].data else { panic!("{:?}", metrics[1]) };
        assert!(sum.is_monotonic && sum.data_points[0].value == Some(Number::AsInt(7)));
        assert!(matches!(&metrics[2].data, Some(Data::Gauge(_))));
    }

    #[test]
    fn a_delta_is_what_came_since_the_last_time() {
        let recorder = Recorder::default();
        recorder.record(Duration::from_millis(3));
        let mut points = Points::new(Temporality::Delta, Aggregation::Explicit, 5);
        decoded(&mut points, families(&recorder, 7), 10);
        recorder.record(Duration::from_millis(300));
        let metrics = decoded(&mut points, families(&recorder, 9), 20);
        let Some(Data::Histogram(histogram)) = &metrics[0].data else { panic!("{:?}", metrics[0]) };
        let point = &histogram.data_points[0];
        assert_eq!((point.count, point.bucket_counts.iter().sum::<u64>(), point.start_time_unix_nano), (1, 1, 10));
        assert_eq!(histogram.aggregation_temporality, i32::from(AggregationTemporality::Delta));
        let Some(Data::Sum(sum)) = &metrics[1].data else { panic!("{:?}", metrics[1]) };
        assert_eq!(sum.data_points[0].value, Some(Number::AsInt(2)));
        // It has less than before: none of it is told again.
        let metrics = decoded(&mut points, families(&recorder, 1), 30);
        let Some(Data::Sum(sum)) = &metrics[1].data else { panic!("{:?}", metrics[1]) };
        assert_eq!(sum.data_points[0].value, Some(Number::AsInt(0)));
        // It began anew, and says when.
        let mut families = families(&recorder, 5);
        families[1].points[0].since = 35;
        let metrics = decoded(&mut points, families, 40);
        let Some(Data::Sum(sum)) = &metrics[1].data else { panic!("{:?}", metrics[1]) };
        let point = &sum.data_points[0];
        assert_eq!((point.value, point.start_time_unix_nano), (Some(Number::AsInt(5)), 35));
        // A part of it that was older has gone, and what is left is not told again.
        let mut families = self::families(&recorder, 6);
        families[1].points[0].since = 38;
        let metrics = decoded(&mut points, families, 50);
        let Some(Data::Sum(sum)) = &metrics[1].data else { panic!("{:?}", metrics[1]) };
        assert_eq!(sum.data_points[0].value, Some(Number::AsInt(1)));
    }
}
