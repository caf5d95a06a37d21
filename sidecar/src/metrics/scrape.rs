//! `/metrics`, for as many scrapers as there are: one answer is made at a time, beside the control thread, and serves all who ask within a second.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::Instant;
use weft_core::metrics::{Format, expose};

use super::families::{constant, gather};
use crate::worker::Shared;

/// How long an answer serves others.
const KEPT: Duration = Duration::from_secs(1);

/// The last answer of each format.
#[derive(Default)]
pub struct Scrapes(Mutex<Vec<(Format, Instant, Bytes)>>);

/// All metrics in a format. With `fresh` they are as they stand now, else at the most a second old.
pub async fn scrape(shared: &Arc<Shared>, format: Format, fresh: bool) -> Bytes {
    let mut kept = shared.scrapes.0.lock().await;
    if let Some((.., body)) = kept.iter().find(|(of, made, _)| !fresh && *of == format && made.elapsed() < KEPT) {
        return body.clone();
    }
    let (all, made) = (shared.clone(), Instant::now());
    let body = tokio::task::spawn_blocking(move || Bytes::from(expose(format, &gather(&all), &constant(&all)))).await;
    let body = body.unwrap_or_default();
    // What is old is not held on to.
    kept.retain(|(of, made, _)| *of != format && made.elapsed() < KEPT);
    kept.push((format, made, body.clone()));
    body
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::config::Config;
    use crate::mesh::Mesh;
    use crate::metrics::{Call, Direction, EdgeKey, WorkerMetrics};

    #[tokio::test]
    async fn one_answer_serves_a_crowd_and_its_owner_gets_a_fresh_one() {
        let args = ["weft-sidecar", "--control-plane=127.0.0.1:1", "--identity=shop/web", "--pod-ips=10.0.0.1"];
        let shared = Arc::new(Shared::new(Config::parse_from(args), Mesh::new().0));
        let worker = WorkerMetrics::new(shared.metrics.clone(), 50);
        let (target, peer) = ("shop/web".into(), "none".into());
        let key = EdgeKey { direction: Direction::Outbound, port: 80, protocol: "http/1.1", target, peer, tls: ("", "") };
        let count = async |fresh: bool, format: Format| {
            let text = scrape(&shared, format, fresh).await;
            let text = String::from_utf8(text.to_vec()).expect("text");
            text.lines().filter(|line| line.starts_with("http_client_request_duration_seconds_count")).count()
        };
        assert_eq!(count(false, Format::Text).await, 0);
        worker.edge(&key).request(&Call::new(b"GET", false).answered(200, None), Duration::ZERO);
        // Unless it took more than a second to come here, as on a machine that is very busy.
        let made = shared.scrapes.0.lock().await[0].1;
        let seen = count(false, Format::Text).await;
        assert!(seen == 0 || made.elapsed() >= KEPT);
        assert_eq!(count(true, Format::Text).await, 1);
        assert_eq!(count(false, Format::Text).await, 1);
        assert_eq!(count(false, Format::OpenMetrics).await, 1);
    }
}
