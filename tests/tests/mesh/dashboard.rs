//! The dashboard in a real browser: what happens in a mesh is seen there, by keyboard alone too; what is hostile is a text; and nothing leaves for elsewhere.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use weft_proto::v1;
use weft_proto::v1::discovery_client::DiscoveryClient;
use weft_proto::v1::watch_request::Message as Request;
use weft_proto::v1::watch_response::Message as Said;
use weft_tests::{ControlPlane, Dashboard, World, browse, eventually, require, require_modules, weft};

const MESH: &str = r#"
manifests: ["@WORK@/policies.yaml"]
namespaces:
  shop: {mtls: strict}
workloads:
- {name: web, namespace: shop, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090}]}
- {name: open, namespace: yard, command: ["@PYTHON@", "@PEERS@/http_peer.py", "8090"], ports: [{port: 8090}]}
- {name: client, namespace: front, command: [sleep, infinity]}
- {name: intruder, namespace: outside, sidecar: false, command: [sleep, infinity]}
"#;

const POLICY: &str = r#"
apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: no-put, namespace: shop}
spec:
  targetRef: {group: "", kind: Service, name: web}
  action: Deny
  rules: [{to: [{methods: [PUT]}]}]
"#;

/// The steps that open a page, and wait until it shows data.
fn opened(dashboard: &Dashboard) -> Vec<Value> {
    vec![json!({"go": dashboard.address}), json!({"until": "document.documentElement.dataset.drawn"})]
}

/// Runs steps in a browser; gives what each came to.
#[track_caller]
fn seen(dashboard: &Dashboard, steps: Vec<Value>) -> Vec<Value> {
    let told = browse(&Value::Array(steps));
    assert_eq!(told["complaints"], json!([]), "the console says nothing");
    for request in told["requests"].as_array().into_iter().flatten() {
        let url = request.as_str().unwrap_or_default();
        assert!(url.starts_with(&format!("{}/", dashboard.origin())) || url == "about:blank", "a request went elsewhere: {url}");
    }
    told["results"].as_array().cloned().unwrap_or_default()
}

/// A row of a table that has all of these texts.
fn row(table: &str, texts: &[&str]) -> Value {
    let texts = json!(texts);
    json!({"until": format!("[...document.querySelectorAll('#{table} tbody tr')].map(r => r.innerText).find(t => {texts}.every(x => t.includes(x)))")})
}

#[test]
fn what_happens_in_a_mesh_is_seen_in_the_browser() {
    require(&["curl", "chromium"]);
    require_modules(&["websockets"]);
    let world =
        World::up_with(MESH, |work| fs::write(work.join("policies.yaml"), POLICY).expect("a fresh directory takes a file"));
    let (web, open) = ("http://web.shop:8090/seen", "http://open.yard:8090/seen");
    // Once before anybody looks, and then all the time.
    assert_eq!(world.status("front/client", web), "200");
    let script =
        format!("while curl -s -o /dev/null --max-time 5 {web} && curl -s -o /dev/null --max-time 5 {open}; do sleep 0.1; done");
    let _calls = world.spawn("front/client", &["sh", "-c", &script]);
    eventually("the policy is in force", || {
        (world.curl("front/client", &["-X", "PUT", "-o", "/dev/null", "-w", "%{http_code}", web]) == "403").then_some(())
    });
    let strict = format!("http://{}:8090/seen", world.address("shop/web-0"));
    assert_eq!(world.status("outside/intruder", &strict), "403 mtls-required");
    let clear = format!("http://{}:8090/seen", world.address("yard/open-0"));
    assert_eq!(world.status("outside/intruder", &clear), "200");

    let dashboard = Dashboard::open(world.shell("exec weft dashboard --no-open"));
    shut_to_others(&world, &dashboard);
    let mut steps = opened(&dashboard);
    let node = |id: &str| json!({"until": format!("document.querySelector('#graph .node[data-id=\"{id}\"]') && true")});
    steps.extend([
        node("workload front/client"),
        node("service shop/web"),
        row("edges-table", &["front/client", "shop/web", "mutual TLS"]),
        row("edges-table", &["front/client", "yard/open", "mutual TLS"]),
        row("edges-table", &["callers in the clear", "yard/open", "in the clear"]),
        json!({"until": "document.querySelectorAll('#graph .edge.mtls').length >= 2 && document.querySelectorAll('#graph .edge.plaintext').length >= 1"}),
        // A rate: it was asked while it went on.
        json!({"until": "[...document.querySelectorAll('#services-table tbody tr')].map(r => r.innerText).find(t => t.includes('shop/web') && /[1-9][0-9.]*\\/s/.test(t) && / ms/.test(t))"}),
        json!({"until": "document.querySelectorAll('#services-table .spark rect').length > 0"}),
        json!({"until": "[...document.querySelectorAll('#refusal-list li')].map(l => l.textContent).find(t => t.includes('shop/no-put') && t.includes('to methods PUT') && t.includes('PUT /seen') && t.includes('What would allow it'))"}),
        json!({"until": "[...document.querySelectorAll('#refusal-list li')].map(l => l.textContent).find(t => t.includes('mtls-required') && t.includes('plaintext'))"}),
        row("sidecars-table", &["shop/web-0", "spiffe://cluster.local/ns/shop/sa/web", "in 2"]),
        json!({"eval": "document.getElementById('anchors').innerText"}),
        json!({"eval": "document.getElementById('whose').innerText"}),
    ]);
    let told = seen(&dashboard, steps);
    let last = |back: usize| told[told.len() - back].as_str().unwrap_or_default().to_owned();
    assert!(last(2).starts_with("anchor ") && last(1).contains("3 sidecars"), "{told:#?}");
    assert!(!dashboard.stderr().contains("panicked"), "{}", dashboard.stderr());
}

/// The listener answers its own page, in one browser.
fn shut_to_others(world: &World, dashboard: &Dashboard) {
    let ask = |words: &str| {
        let line = format!("curl -s -o /dev/null -w '%{{http_code}}' {words}");
        let output = world.shell(&line).output().expect("a shell runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let origin = dashboard.origin();
    let port = origin.rsplit_once(':').map_or("", |(_, port)| port);
    for words in [
        format!("{origin}/"),
        format!("{origin}/data.json"),
        format!("{origin}/open?token=guessed"),
        format!("-H 'Host: weft.example:{port}' '{}'", dashboard.address),
        format!("-H 'Origin: http://weft.example' '{}'", dashboard.address),
        format!("-b 'weft-dashboard-{port}=guessed' {origin}/data.json"),
    ] {
        assert_eq!(ask(&words), "403", "{words}");
    }
    assert_eq!(ask(&format!("-X POST '{}'", dashboard.address)), "405");
}

/// A control plane with so many services, and sidecars that are none: they tell what a test has them tell.
struct Stage {
    control_plane: ControlPlane,
    runtime: tokio::runtime::Runtime,
}

impl Stage {
    fn new(services: usize) -> Self {
        let control_plane = ControlPlane::start(|manifests| {
            let mut text = String::new();
            for i in 0..services {
                let (space, ip) = (i % 10, format!("10.50.{}.{}", i / 250, i % 250 + 1));
                let _ = write!(
                    text,
                    "---\napiVersion: v1\nkind: Service\nmetadata: {{name: service-{i}, namespace: team-{space}}}\nspec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n"
                );
            }
            fs::write(manifests.join("services.yaml"), text).expect("a fresh directory takes a file");
        });
        Self { control_plane, runtime: tokio::runtime::Runtime::new().expect("a runtime") }
    }

    /// A sidecar of `front/POD` that tells this whenever it is asked.
    fn sidecar(&self, pod: &str, report: v1::TrafficReport) {
        let pod_manifest = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}, namespace: front}}\nspec: {{serviceAccountName: {pod}}}\nstatus: {{phase: Running, podIP: 10.60.0.{}}}\n",
            pod.len()
        );
        self.control_plane.put(&format!("{pod}.yaml"), &pod_manifest);
        let mut said = self.runtime.block_on(async {
            let (svid, bundle) = self.control_plane.join("front", pod, pod).await;
            let channel = self.control_plane.workload(&svid, &bundle).await.expect("an SVID is a way in");
            let (requests, receiver) = mpsc::channel(16);
            let hello = v1::Hello {
                version: "0.0.1<b>".to_owned(),
                features: vec!["traffic-report/v1".to_owned()],
                ..Default::default()
            };
            let message = v1::WatchRequest { message: Some(Request::Hello(hello)) };
            requests.try_send(message).expect("a fresh channel has room");
            let answer = DiscoveryClient::new(channel).watch(ReceiverStream::new(receiver)).await.expect("discovery is served");
            (requests, answer.into_inner())
        });
        self.runtime.spawn(async move {
            while let Ok(Some(message)) = said.1.message().await {
                if let Some(Said::TelemetryWanted(wanted)) = message.message
                    && wanted.interval_millis > 0
                {
                    for whole in [true, false] {
                        let report = v1::TrafficReport { whole, ..report.clone() };
                        let _ = said.0.send(v1::WatchRequest { message: Some(Request::Report(report)) }).await;
                    }
                }
            }
        });
    }

    fn dashboard(&self) -> Dashboard {
        let mut command = Command::new(weft("weft"));
        command.args(["dashboard", "--no-open", "--socket"]).arg(self.control_plane.state().join("operator.sock"));
        Dashboard::open(command)
    }
}

fn edge(target: &str, requests: u64, mutual_tls: bool) -> v1::ReportedEdge {
    let mut latency = vec![0; 20];
    latency[3] = requests;
    v1::ReportedEdge {
        target: target.to_owned(),
        protocol: "http/1.1".to_owned(),
        mutual_tls,
        requests,
        failed: requests / 50,
        latency,
        ..Default::default()
    }
}

const HOSTILE: &str = "<img src=x onerror=document.body.dataset.broken=1>";

#[test]
fn hostile_names_are_texts_and_the_keyboard_is_enough_by_day_and_night() {
    require(&["chromium"]);
    require_modules(&["websockets"]);
    let stage = Stage::new(3);
    let refusal = v1::ReportedRefusal {
        reference: format!("{HOSTILE}1"),
        peer: HOSTILE.to_owned(),
        text: format!("denied {HOSTILE}"),
        policy: HOSTILE.to_owned(),
        remedy: "javascript:document.body.dataset.broken=1".to_owned(),
        ..Default::default()
    };
    let edges = vec![edge("team-0/service-0", 100, true), edge("team-1/service-1", 10, false), edge(HOSTILE, 5, false)];
    stage.sidecar("caller", v1::TrafficReport { edges, refusals: vec![refusal], ..Default::default() });
    let dashboard = stage.dashboard();
    let mut steps = opened(&dashboard);
    let on = |what: &str| json!({"until": format!("document.activeElement.matches({})", json!(what))});
    steps.extend([
        row("edges-table", &["front/caller", HOSTILE]),
        json!({"until": format!("[...document.querySelectorAll('#refusal-list li')].some(l => l.textContent.includes({}))", json!(HOSTILE))}),
        json!({"eval": "document.querySelectorAll('main img, main script, main a').length + (document.body.dataset.broken ? 1 : 0)"}),
        // By keyboard alone: past the header into the graph, from node to node, and to what is chosen.
        json!({"key": "Tab"}),
        on(".skip"),
        json!({"key": "Enter"}),
        json!({"until": "location.hash === '#topology'"}),
        json!({"key": "Tab"}),
        on("#search"),
        json!({"type": "service-1"}),
        json!({"until": "document.querySelectorAll('#graph .node').length === 2"}),
        json!({"key": "Tab", "times": 4}),
        on("#graph .node"),
        json!({"key": "End"}),
        on("#graph .node[data-id='service team-1/service-1']"),
        json!({"key": "ArrowLeft"}),
        on("#graph .node[data-id='workload front/caller']"),
        json!({"key": "ArrowRight"}),
        json!({"key": "Enter"}),
        json!({"until": "document.getElementById('details').innerText.includes('team-1/service-1') && document.getElementById('details').innerText.includes('in the clear')"}),
        json!({"key": "Escape"}),
        json!({"until": "!document.getElementById('details').innerText.includes('team-1')"}),
        // Sorting by a heading that was reached by the keyboard.
        json!({"eval": "document.querySelector('#services-table th button').focus()"}),
        json!({"key": "Enter"}),
        json!({"until": "document.querySelector('#services-table th').getAttribute('aria-sort') === 'ascending'"}),
        // Every field and button has a name.
        json!({"eval": "[...document.querySelectorAll('button, select, input')].filter(e => !(e.labels?.length || e.textContent.trim())).length"}),
        json!({"media": {"prefers-color-scheme": "light"}}),
        json!({"eval": "getComputedStyle(document.body).backgroundColor"}),
        json!({"media": {"prefers-color-scheme": "dark"}}),
        json!({"eval": "getComputedStyle(document.body).backgroundColor"}),
        json!({"eval": "theme.value = 'light', theme.dispatchEvent(new Event('change')), getComputedStyle(document.body).backgroundColor"}),
        json!({"media": {"prefers-color-scheme": "light", "prefers-reduced-motion": "reduce"}}),
        json!({"eval": "theme.value = 'dark', theme.dispatchEvent(new Event('change')), getComputedStyle(document.body).backgroundColor"}),
        json!({"eval": "getComputedStyle(document.querySelector('.edge path')).transitionDuration"}),
        json!({"eval": "document.cookie"}),
        json!({"eval": "fetch('/').then(r => ['content-security-policy', 'x-content-type-options', 'cache-control'].map(n => r.headers.get(n)).join('|'))"}),
    ]);
    let told = seen(&dashboard, steps);
    assert_eq!(told[4], 0, "nothing of it became an element");
    let [day, night, light, dark, motion, cookie, headers] =
        [9, 7, 6, 4, 3, 2, 1].map(|back: usize| told[told.len() - back].clone());
    assert!(day == light && night == dark && day != night, "{day} {night} {light} {dark}");
    assert_eq!((motion, cookie), (json!("0s"), json!("")));
    let headers = headers.as_str().unwrap_or_default().to_owned();
    assert!(headers.starts_with("default-src 'none'; script-src 'self'") && headers.ends_with("|nosniff|no-store"), "{headers}");
}

#[test]
fn two_hundred_services_are_drawn_in_bounded_work() {
    require(&["chromium"]);
    require_modules(&["websockets"]);
    let stage = Stage::new(200);
    let name = |i: usize| format!("team-{}/service-{i}", i % 10);
    for (sidecar, step) in [("a", 1), ("bb", 3), ("ccc", 7)] {
        let edges = (0..200).step_by(step).take(190).map(|i| edge(&name(i), 1000 + i as u64, i % 40 != 0)).collect();
        stage.sidecar(sidecar, v1::TrafficReport { edges, ..Default::default() });
    }
    let dashboard = stage.dashboard();
    let mut steps = opened(&dashboard);
    steps.extend([
        json!({"until": "document.querySelectorAll('#graph .edge').length > 0 && document.querySelectorAll('#graph .node.namespace').length === 11"}),
        json!({"until": "document.querySelectorAll('#services-table tbody tr').length === 200"}),
        json!({"eval": "(grouping.value = 'services', grouping.dispatchEvent(new Event('input')), document.querySelectorAll('#graph .node').length)"}),
        // The same picture for the same mesh, and no two nodes at one place.
        json!({"eval": "(() => { const at = () => [...document.querySelectorAll('#graph .node')].map(n => n.dataset.id + n.getAttribute('transform')).sort(); const a = at(); for (const g of ['namespaces', 'services']) { grouping.value = g; grouping.dispatchEvent(new Event('input')); } const b = at(); return a.join() === b.join() && new Set(b.map(x => x.slice(x.indexOf('translate')))).size === b.length; })()"}),
        json!({"eval": "(() => { const begun = performance.now(); for (const g of ['namespaces', 'services']) { grouping.value = g; grouping.dispatchEvent(new Event('input')); } return performance.now() - begun; })()"}),
        json!({"eval": "fetch('/data.json').then(r => r.text()).then(t => t.length)"}),
        json!({"eval": "Number(document.documentElement.dataset.drawn)"}),
    ]);
    let told = seen(&dashboard, steps);
    let last = |back: usize| told[told.len() - back].clone();
    assert!(last(5).as_u64().is_some_and(|nodes| (193..=203).contains(&nodes)), "every service is a node: {}", last(5));
    assert_eq!(last(4), true);
    // Bytes and not time: the work of a view grows with them.
    assert!(last(2).as_u64().is_some_and(|bytes| bytes < 400_000), "{} bytes of data", last(2));
    eprintln!(
        "200 services: first view after {} ms in the browser, both pictures anew in {} ms, {} bytes of data",
        last(1),
        last(3),
        last(2)
    );
}
