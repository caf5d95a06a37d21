//! A control plane under load: many simulated sidecars, each with a certificate and a stream of its own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Parser;
use hyper_util::rt::TokioIo;
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::mpsc;
use tonic::transport::{Channel, Endpoint};
use weft_core::SpiffeId;
use weft_proto::v1;
use weft_proto::v1::certificates_client::CertificatesClient;
use weft_proto::v1::discovery_client::DiscoveryClient;
use weft_proto::v1::issue_request::Attestation;
use weft_proto::v1::operator_client::OperatorClient;
use weft_proto::v1::watch_request::Message as Ask;
use weft_proto::v1::watch_response::Message as Answer;
use weft_sidecar::config::Config;
use weft_sidecar::control::{Trust, connect};
use weft_tls::{PendingKey, Svid, TrustBundle};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Simulated sidecars
    #[arg(long, default_value_t = 1000)]
    sidecars: usize,

    /// Of these, how many know a second service
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    few: u32,

    /// Changes of each service whose propagation is measured
    #[arg(long, default_value_t = 20)]
    changes: usize,

    /// Certificates issued over warm connections, for the rate
    #[arg(long, default_value_t = 5000)]
    certificates: usize,

    /// The control plane's binary
    #[arg(long, default_value = "target/ship/weft-control-plane")]
    binary: PathBuf,
}

/// The services, by who knows them.
const ALL: &str = "all";
const FEW: &str = "few";

struct Plane {
    child: Child,
    address: String,
    dir: tempfile::TempDir,
}

impl Drop for Plane {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Plane {
    async fn start(binary: &Path, sidecars: usize) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        std::fs::create_dir(dir.path().join("manifests"))?;
        let mut pods = String::new();
        for i in 0..sidecars {
            pods.push_str(&pod(i));
        }
        std::fs::write(dir.path().join("manifests/pods.yaml"), pods)?;
        for (service, ip) in [(ALL, "10.96.0.1"), (FEW, "10.96.0.2")] {
            let text = format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: {service}, namespace: load}}\nspec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n"
            );
            std::fs::write(dir.path().join(format!("manifests/{service}.yaml")), text)?;
            write_slice(dir.path(), service, 0)?;
        }
        let (child, address) = Self::begin(binary, &dir, "127.0.0.1:0").await?;
        Ok(Self { child, address, dir })
    }

    /// Ends it without a word, and has another one begin with what it had, on the same port.
    async fn again(&mut self, binary: &Path) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        (self.child, self.address) = Self::begin(binary, &self.dir, &self.address).await?;
        Ok(())
    }

    async fn begin(binary: &Path, dir: &tempfile::TempDir, listen: &str) -> anyhow::Result<(Child, String)> {
        let mut child = Command::new(binary)
            .arg("--dir")
            .arg(dir.path().join("manifests"))
            .arg("--state")
            .arg(dir.path().join("state"))
            .args(["--listen", listen, "--log", "weft_control_plane=info,weft_control_plane::issue=warn"])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} could not be started: cargo build --profile ship --bins", binary.display()))?;
        let stderr = tokio::process::ChildStderr::from_std(child.stderr.take().context("piped")?)?;
        let mut lines = BufReader::new(stderr).lines();
        let address = loop {
            let Some(line) = lines.next_line().await? else { bail!("the control plane ended before it was ready") };
            if let Some(at) = line.find("127.0.0.1:") {
                let digits: String = line[at + 10..].chars().take_while(char::is_ascii_digit).collect();
                break format!("127.0.0.1:{digits}");
            }
        };
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok((child, address))
    }

    /// Resident memory in bytes: `VmRSS` what it is, `VmHWM` the most that it was.
    fn memory(&self, which: &str) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|l| l.starts_with(which)).context("a line of /proc/PID/status")?;
        Ok(line.split_whitespace().nth(1).context("a number")?.parse::<u64>()? * 1024)
    }

    /// CPU time used so far, in seconds.
    fn cpu(&self) -> anyhow::Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().context("stat")?.split_whitespace().collect();
        Ok((fields[11].parse::<f64>()? + fields[12].parse::<f64>()?) / 100.0)
    }

    async fn operator(&self) -> anyhow::Result<OperatorClient<Channel>> {
        let path = self.dir.path().join("state/operator.sock");
        let connector = Dial(move || {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
        });
        Ok(OperatorClient::new(Endpoint::from_static("http://operator").connect_with_connector(connector).await?))
    }
}

#[derive(Clone)]
struct Dial<F>(F);

impl<F, R, T> tower_service::Service<tonic::transport::Uri> for Dial<F>
where
    F: FnMut() -> R,
    R: Future<Output = std::io::Result<T>>,
{
    type Response = T;
    type Error = std::io::Error;
    type Future = R;
    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(Ok(()))
    }
    fn call(&mut self, _: tonic::transport::Uri) -> R {
        (self.0)()
    }
}

fn pod(i: usize) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p{i}, namespace: load}}\nspec: {{serviceAccountName: p, containers: [{{name: weft-sidecar}}]}}\n\
         status: {{podIP: 10.1.{}.{}}}\n",
        i / 250,
        i % 250 + 1
    )
}

/// A hundred endpoints, of which one changes its address with `n`; renamed over the old file.
fn write_slice(dir: &Path, service: &str, n: usize) -> anyhow::Result<()> {
    use std::fmt::Write;
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {service}, namespace: load, labels: {{kubernetes.io/service-name: \
         {service}}}}}\nports: [{{port: 8080}}]\nendpoints:\n"
    );
    for i in 0..99 {
        writeln!(text, "- {{addresses: [10.2.0.{}]}}", i + 1)?;
    }
    writeln!(text, "- {{addresses: [10.3.{}.{}]}}", n / 250, n % 250 + 1)?;
    std::fs::write(dir.join("slice.new"), text)?;
    std::fs::rename(dir.join("slice.new"), dir.join(format!("manifests/{service}-slice.yaml")))?;
    Ok(())
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let mut plane = Plane::start(&args.binary, args.sidecars).await?;
    let config =
        Config::parse_from(["weft-sidecar", "--control-plane", &plane.address, "--identity", "load/p", "--pod-ips", "127.0.0.1"]);
    let id: SpiffeId = "spiffe://cluster.local/ns/load/sa/p".parse()?;
    let mut operator = plane.operator().await?;

    // Every sidecar joins with a token of its own.
    let began = Instant::now();
    let mut svids = Vec::new();
    for i in 0..args.sidecars {
        let request = v1::CreateTokenRequest {
            namespace: "load".into(),
            pod: format!("p{i}"),
            service_account: "p".into(),
            ttl_seconds: 600,
        };
        let token = operator.create_token(request).await?.into_inner().token;
        svids.push(join(&config, &id, token).await?);
    }
    println!(
        "{} sidecars joined in {:.1} s (a token, a new connection and a key each, one after another)",
        args.sidecars,
        began.elapsed().as_secs_f64()
    );

    rate(&config, &id, &svids, &plane, args.certificates).await?;

    let before = plane.memory("VmRSS")?;
    let (seen, mut reports) = mpsc::unbounded_channel();
    let began = Instant::now();
    for (i, (svid, bundle)) in svids.iter().enumerate() {
        tokio::spawn(keep(config.clone(), svid.clone(), bundle.clone(), i < args.few as usize, seen.clone()));
    }
    drop(seen);
    heard(&mut reports, ALL, args.sidecars).await?;
    let connected = began.elapsed();
    let after = plane.memory("VmRSS")?;
    println!(
        "{} streams in {:.2} s; memory {:.1} MB → {:.1} MB, {:.1} KB each",
        args.sidecars,
        connected.as_secs_f64(),
        before as f64 / 1e6,
        after as f64 / 1e6,
        (after.saturating_sub(before)) as f64 / 1e3 / args.sidecars as f64
    );

    for (service, subscribers) in [(ALL, args.sidecars), (FEW, args.sidecars.min(args.few as usize))] {
        let (mut first, mut last) = (Vec::new(), Vec::new());
        let cpu = plane.cpu()?;
        for n in 1..=args.changes {
            let began = Instant::now();
            write_slice(plane.dir.path(), service, n)?;
            heard(&mut reports, service, 1).await?;
            first.push(began.elapsed());
            heard(&mut reports, service, subscribers - 1).await?;
            last.push(began.elapsed());
        }
        println!(
            "a change on disk reaches the first of {subscribers} who subscribe in {:.1} ms (median), all in {:.1} ms (median), {:.1} ms (worst), for {:.1} ms of the control plane's CPU",
            median(&mut first),
            median(&mut last),
            last.last().map_or(0.0, |d| d.as_secs_f64() * 1e3),
            (plane.cpu()? - cpu) * 1e3 / args.changes.max(1) as f64,
        );
    }

    let began = Instant::now();
    plane.again(&args.binary).await?;
    let (ready, began) = (began.elapsed(), Instant::now());
    heard(&mut reports, ALL, args.sidecars).await?;
    println!(
        "killed and started anew, it is ready after {:.2} s, and all {} hold everything again {:.2} s later, for {:.2} s of its CPU; memory {:.1} MB, {:.1} MB at the most",
        ready.as_secs_f64(),
        args.sidecars,
        began.elapsed().as_secs_f64(),
        plane.cpu()?,
        plane.memory("VmRSS")? as f64 / 1e6,
        plane.memory("VmHWM")? as f64 / 1e6,
    );
    Ok(())
}

/// Waits for so many reports of a service. What comes of another one meanwhile was asked for before.
async fn heard(reports: &mut mpsc::UnboundedReceiver<&'static str>, service: &str, mut times: usize) -> anyhow::Result<()> {
    while times > 0 {
        times -= usize::from(reports.recv().await.context("all streams ended")? == service);
    }
    Ok(())
}

fn median(list: &mut [Duration]) -> f64 {
    list.sort_unstable();
    list.get(list.len() / 2).map_or(0.0, |d| d.as_secs_f64() * 1e3)
}

type Joined = (Svid, Arc<TrustBundle>);

async fn join(config: &Config, id: &SpiffeId, token: String) -> anyhow::Result<Joined> {
    let anchor = token.split('.').nth(3).context("a token")?.to_owned();
    let channel = connect(config, Trust::Pinned(&anchor)).await?;
    issue(channel, id, Attestation::JoinToken(token)).await
}

async fn issue(channel: Channel, id: &SpiffeId, attestation: Attestation) -> anyhow::Result<Joined> {
    let key = PendingKey::generate()?;
    let request = v1::IssueRequest { csr: key.request(id)?.into(), attestation: Some(attestation), application: false };
    let answer = CertificatesClient::new(channel).issue(request).await?.into_inner();
    let chain = answer.chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
    let bundle = TrustBundle::try_from(answer.trust_bundle.as_ref().context("a bundle")?)?;
    Ok((key.with_chain(chain)?, Arc::new(bundle)))
}

/// Certificates a second over warm connections; the requesters' own key generation runs beside it on the same processors.
async fn rate(config: &Config, id: &SpiffeId, svids: &[Joined], plane: &Plane, total: usize) -> anyhow::Result<()> {
    const CONNECTIONS: usize = 16;
    let mut requests = Vec::new();
    for (svid, bundle) in svids.iter().cycle().take(CONNECTIONS) {
        let channel = connect(config, Trust::Bundle(svid, bundle)).await?;
        let csr: Vec<u8> = PendingKey::generate()?.request(id)?;
        requests.push((channel, csr));
    }
    let cpu = plane.cpu()?;
    let began = Instant::now();
    let tasks: Vec<_> = requests
        .into_iter()
        .map(|(channel, csr)| {
            tokio::spawn(async move {
                let mut client = CertificatesClient::new(channel);
                for _ in 0..total / CONNECTIONS {
                    let request = v1::IssueRequest {
                        csr: csr.clone().into(),
                        attestation: Some(Attestation::Renewal(v1::Renewal {})),
                        application: false,
                    };
                    client.issue(request).await?;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    let n = total / CONNECTIONS * CONNECTIONS;
    println!(
        "{n} certificates over {CONNECTIONS} warm connections: {:.0} a second, {:.0} µs of the control plane's CPU each",
        n as f64 / began.elapsed().as_secs_f64(),
        (plane.cpu()? - cpu) * 1e6 / n as f64
    );
    Ok(())
}

/// A stream that ended is opened again after so long.
const AGAIN: Duration = Duration::from_millis(200);

/// One simulated sidecar, which comes back where its stream ends.
async fn keep(config: Config, svid: Svid, bundle: Arc<TrustBundle>, few: bool, seen: mpsc::UnboundedSender<&'static str>) {
    while !seen.is_closed() {
        let _ = watch(&config, &svid, &bundle, few, &seen).await;
        tokio::time::sleep(AGAIN).await;
    }
}

/// It reports once when it holds everything, and then for each change of the endpoints.
async fn watch(
    config: &Config,
    svid: &Svid,
    bundle: &Arc<TrustBundle>,
    few: bool,
    seen: &mpsc::UnboundedSender<&'static str>,
) -> anyhow::Result<()> {
    let channel = connect(config, Trust::Bundle(svid, bundle)).await?;
    let (tx, rx) = mpsc::channel(16);
    let ask = |m| v1::WatchRequest { message: Some(m) };
    tx.send(ask(Ask::Hello(v1::Hello::default()))).await?;
    let names = ["address/10.96.0.1", "address/10.96.0.2"].into_iter().take(if few { 2 } else { 1 });
    tx.send(ask(Ask::Subscribe(v1::Subscribe { names: names.map(ToOwned::to_owned).collect() }))).await?;
    let mut updates = DiscoveryClient::new(channel).watch(tokio_stream::wrappers::ReceiverStream::new(rx)).await?.into_inner();
    while let Some(message) = updates.message().await? {
        if let Some(Answer::Update(update)) = message.message {
            tx.send(ask(Ask::Ack(v1::Ack { nonce: update.nonce, ..Default::default() }))).await?;
            for service in [ALL, FEW] {
                if update.resources.iter().any(|r| r.name.strip_prefix("endpoints/load/") == Some(service)) {
                    let _ = seen.send(service);
                }
            }
        }
    }
    Ok(())
}
