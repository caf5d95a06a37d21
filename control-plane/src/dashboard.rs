//! The dashboard: a page that stands alone, and its data. It is served on the operator socket only, by `weft.v1.Operator/Dashboard`; `weft dashboard` brings it to
//! a browser. It changes nothing.
//!
//! The page's files are in this directory as they are served: no step makes them, and they ask for nothing elsewhere.

use std::sync::Arc;
use std::time::Duration;

use weft_proto::v1;

use crate::hub::Hub;
use crate::issue::ca::Ca;

pub mod account;
pub mod others;
pub mod traffic;
mod view;

use others::Others;
use traffic::{SLOT, SLOTS, Traffic};
use view::View;

/// Files by path, with their types.
const FILES: [(&str, &str, &str); 6] = [
    ("/", "text/html; charset=utf-8", include_str!("dashboard/page/index.html")),
    ("/page.css", "text/css; charset=utf-8", include_str!("dashboard/page/page.css")),
    ("/page.js", "text/javascript; charset=utf-8", include_str!("dashboard/page/page.js")),
    ("/graph.js", "text/javascript; charset=utf-8", include_str!("dashboard/page/graph.js")),
    ("/tables.js", "text/javascript; charset=utf-8", include_str!("dashboard/page/tables.js")),
    ("/icon.svg", "image/svg+xml", include_str!("dashboard/page/icon.svg")),
];
const JSON: &str = "application/json";
const PLAIN: &str = "text/plain; charset=utf-8";
/// What is shown where nobody says how long, in seconds.
const WINDOW: u64 = 60;

/// What the dashboard tells of.
pub struct Dashboard {
    pub hub: Arc<Hub>,
    pub ca: Arc<Ca>,
    pub traffic: Arc<Traffic>,
    /// This replica.
    pub replica: String,
    /// The way to other replicas, which have sidecars of their own; none where there is one alone.
    pub others: Option<Others>,
}

impl Dashboard {
    /// Answers for a path of the page.
    pub async fn answer(self: &Arc<Self>, path: &str) -> v1::DashboardResponse {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let answer = |status, kind: &str, body: Vec<u8>| v1::DashboardResponse {
            status,
            content_type: kind.to_owned(),
            body: body.into(),
        };
        if let Some((_, kind, text)) = FILES.iter().find(|(name, _, _)| *name == path) {
            return answer(200, kind, text.as_bytes().to_vec());
        }
        if path != "/data.json" {
            return answer(404, PLAIN, b"the dashboard has no such file\n".to_vec());
        }
        let most = SLOT.as_secs() * SLOTS as u64;
        let asked = query.split('&').find_map(|pair| pair.strip_prefix("window="));
        let Ok(window) = asked.map_or(Ok(WINDOW), str::parse::<u64>) else {
            return answer(400, PLAIN, b"window is a number of seconds\n".to_vec());
        };
        let window = Duration::from_secs(window.clamp(1, most));
        let told = match &self.others {
            Some(others) => others.ask(window).await,
            None => Ok(Vec::new()),
        };
        let dashboard = self.clone();
        // It takes as long as there are services and sidecars, and those are served meanwhile.
        let written = tokio::task::spawn_blocking(move || {
            let own = dashboard.traffic.account(window);
            serde_json::to_vec(&View::new(&dashboard, own, told, window)).map_err(|e| e.to_string())
        });
        match written.await.unwrap_or_else(|e| Err(format!("the page was given up: {e}"))) {
            Ok(body) => answer(200, JSON, body),
            Err(e) => answer(500, PLAIN, format!("{e}\n").into_bytes()),
        }
    }
}
