use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::family::{Distribution, Exemplar, Exemplars};
use super::histogram::CLASSIC;
use super::table::{self, ALL, LABELS};
use super::{Family, Format, Kind, Labels, Point, Recorder, Value, expose, reference};

#[test]
fn the_table_is_in_order() {
    let names: BTreeSet<&str> = ALL.iter().map(|m| m.name).collect();
    assert_eq!(names.len(), ALL.len(), "a name comes twice");
    let prometheus: BTreeSet<String> = ALL.iter().map(|m| m.prometheus_name()).collect();
    assert_eq!(prometheus.len(), ALL.len(), "two have one name in Prometheus");
    for metric in ALL {
        assert!(metric.help.ends_with('.') && !metric.help.contains(['\n', '\\', '"', '|']), "{}", metric.name);
        assert!(metric.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'.' || b == b'_'), "{}", metric.name);
        assert!(!metric.programs.is_empty(), "nobody tells {}", metric.name);
        for label in metric.labels {
            assert!(LABELS.iter().any(|(name, _)| name == label), "{label} of {} is in no table", metric.name);
        }
        // A gauge that counts nothing has no unit; whatever else is measured has one.
        assert!(!metric.unit.is_empty() || metric.kind.is_gauge(), "{} has no unit", metric.name);
    }
    for (label, _) in LABELS {
        let known = [table::NAMESPACE, table::WORKLOAD, table::OVERFLOW];
        assert!(known.contains(label) || ALL.iter().any(|m| m.labels.contains(label)), "nothing has the label {label}");
    }
}

#[test]
fn names_become_those_of_prometheus_by_rule() {
    for (metric, name) in [
        (&table::HTTP_SERVER_DURATION, "http_server_request_duration_seconds"),
        (&table::IO_BYTES, "weft_network_io_bytes_total"),
        (&table::CONNECTIONS_OPEN, "weft_connections_open"),
        (&table::CERTIFICATE_EXPIRY, "weft_certificate_expiry_seconds"),
        (&table::RETRIES, "weft_retries_total"),
        (&table::TARGET_INFO, "target_info"),
        (&table::SPANS_EXPORTED, "otel_sdk_exporter_span_exported_total"),
    ] {
        assert_eq!(metric.prometheus_name(), name);
    }
}

fn hostile() -> Vec<Family> {
    let recorder = Recorder::default();
    recorder.record_alone(Duration::from_millis(3));
    recorder.record_alone(Duration::from_millis(300));
    let mut exemplars: Exemplars = [None; CLASSIC];
    exemplars[3] = Some(Exemplar { trace: [0xab; 16], span: [1; 8], seconds: 0.003, at: 1_700_000_000_123_000_000 });
    let mut duration = Family::new(&table::HTTP_SERVER_DURATION);
    let peer: Arc<str> = "spiffe://td/ns/a\"b/sa/c\\d\ne".into();
    duration.push(Point {
        labels: Labels::new().and(table::PEER, &peer).and(table::STATUS, 200u16).and(table::ERROR, ""),
        since: 0,
        value: Value::Distribution(Box::new(Distribution { reading: recorder.read(), exemplars: Some(Box::new(exemplars)) })),
    });
    let mut retries = Family::new(&table::RETRIES);
    retries.counts(Labels::overflow(), 7);
    vec![duration, retries, Family::level(&table::CERTIFICATE_EXPIRY, -1.5), Family::count(&table::READY, 1)]
}

#[test]
fn hostile_labels_stay_within_their_quotation_marks() {
    let constant = Labels::new().and(table::NAMESPACE, "shop");
    let text = String::from_utf8(expose(Format::Text, &hostile(), &constant)).expect("text");
    let labels = r#"weft_namespace="shop",weft_peer="spiffe://td/ns/a\"b/sa/c\\d\ne",http_response_status_code="200""#;
    for line in [
        "# HELP http_server_request_duration_seconds Time from the head of a request that came in to the end of its answer."
            .to_owned(),
        "# TYPE http_server_request_duration_seconds histogram".to_owned(),
        format!("http_server_request_duration_seconds_bucket{{{labels},le=\"0.0025\"}} 0"),
        format!("http_server_request_duration_seconds_bucket{{{labels},le=\"0.005\"}} 1"),
        format!("http_server_request_duration_seconds_bucket{{{labels},le=\"1\"}} 2"),
        format!("http_server_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} 2"),
        format!("http_server_request_duration_seconds_sum{{{labels}}} 0.303"),
        format!("http_server_request_duration_seconds_count{{{labels}}} 2"),
        "# TYPE weft_retries_total counter".to_owned(),
        "weft_retries_total{weft_namespace=\"shop\",otel_metric_overflow=\"true\"} 7".to_owned(),
        "weft_certificate_expiry_seconds{weft_namespace=\"shop\"} -1.5".to_owned(),
        "weft_ready{weft_namespace=\"shop\"} 1".to_owned(),
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    assert!(!text.contains(" # {"), "exemplars are not of this format: {text}");
}

#[test]
fn openmetrics_has_exemplars_units_and_an_end() {
    let text = String::from_utf8(expose(Format::OpenMetrics, &hostile(), &Labels::new())).expect("text");
    for line in ["# TYPE weft_retries counter", "# UNIT http_server_request_duration_seconds seconds", "# TYPE weft_ready gauge"]
    {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    let exemplar =
        format!("le=\"0.005\"}} 1 # {{trace_id=\"{}\",span_id=\"0101010101010101\"}} 0.003 1700000000.123\n", "ab".repeat(16));
    assert!(text.contains(&exemplar) && text.contains("le=\"1.0\"") && text.ends_with("# EOF\n"), "{text}");
}

/// The fields of a protobuf message: number, and the bytes or the number that it has.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>, u64)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = bytes[0];
            *bytes = &bytes[1..];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    }
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let (field, length) = match key & 7 {
            0 => {
                out.push((key >> 3, vec![], varint(&mut bytes)));
                continue;
            }
            1 => (key >> 3, 8),
            2 => (key >> 3, varint(&mut bytes) as usize),
            other => panic!("wire type {other}"),
        };
        out.push((field, bytes[..length].to_vec(), 0));
        bytes = &bytes[length..];
    }
    out
}

#[test]
fn protobuf_has_both_kinds_of_buckets() {
    let bytes = expose(Format::Protobuf, &hostile(), &Labels::new());
    let length = usize::from(bytes[0] & 0x7f) | usize::from(bytes[1]) << 7;
    let family = fields(&bytes[2..2 + length]);
    assert_eq!(family[0].1, b"http_server_request_duration_seconds");
    assert_eq!(family[2].2, 4, "a histogram");
    let metric = fields(&family[3].1);
    let histogram = fields(&metric.iter().find(|(n, ..)| *n == 7).expect("it is there").1);
    let numbers = |field| histogram.iter().filter(|(n, ..)| *n == field).map(|(.., n)| *n).collect::<Vec<_>>();
    // Count, schema 3 in zigzag, and 1, 0 (a new span), 1 as differences in zigzag.
    assert_eq!((numbers(1), numbers(5), numbers(7), numbers(13)), (vec![2], vec![6], vec![0], vec![2, 0]));
    let spans: Vec<Vec<u64>> = histogram
        .iter()
        .filter(|(n, ..)| *n == 12)
        .map(|(_, bytes, _)| fields(bytes).iter().map(|(.., n)| *n).collect())
        .collect();
    let zigzag = |n: i64| (n << 1 ^ n >> 63) as u64;
    let at = |seconds: f64| (seconds.log2() * 8.0).ceil() as i64;
    assert_eq!(spans, [[zigzag(at(0.003)), 1], [zigzag(at(0.3) - at(0.003) - 1), 1]]);
    assert_eq!(histogram.iter().filter(|(n, ..)| *n == 3).count(), CLASSIC);
}

/// `WEFT_WRITE=1 cargo test -p weft-core the_page` (`make docs`) writes it anew.
#[test]
fn the_page_says_what_the_table_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let page = reference::page();
    if std::env::var_os("WEFT_WRITE").is_some() {
        std::fs::write(&path, &page).expect("it can be written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == page, "{} is not of this table: run `make docs`", path.display());
    assert!(ALL.iter().all(|m| m.kind == Kind::Info || page.contains(&format!("`{}`", m.name))));
}
