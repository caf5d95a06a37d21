//! The API server that is loaded: etcd and kube-apiserver as programs of our own, or the one that KUBECONFIG names. No kubelet, no
//! controllers: what is measured is what the control plane makes of objects.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use http::{Method, Request};
use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use serde_json::Value;

/// How long the API server may take to start.
const START: Duration = Duration::from_secs(90);

/// A program that ends with this value, by its id.
pub(super) struct Program {
    pub(super) child: Child,
    name: &'static str,
    log: PathBuf,
}

impl Program {
    /// Starts it with its output in `dir/NAME.log`.
    pub(super) fn start(name: &'static str, command: &mut Command, dir: &Path) -> anyhow::Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let out = File::create(&log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("{} could not be started", command.get_program().display()))?;
        Ok(Self { child, name, log })
    }

    /// Fails when it has ended, with the last that it said.
    pub(super) fn check(&mut self) -> anyhow::Result<()> {
        let Some(status) = self.child.try_wait()? else { return Ok(()) };
        let said = self.said();
        let last: Vec<&str> = said.lines().rev().take(10).collect();
        bail!("{} ended ({status}):\n{}", self.name, last.into_iter().rev().collect::<Vec<_>>().join("\n"))
    }

    /// All that it said so far.
    pub(super) fn said(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection to an API server, and what of it is ours.
pub(super) struct Server {
    client: Client,
    /// For the control plane; `None` where the environment names it.
    pub(super) kubeconfig: Option<PathBuf>,
    /// In the order in which they are to end.
    programs: Vec<Program>,
    /// What it is, for people.
    pub(super) what: String,
}

impl Server {
    /// The one that KUBECONFIG names, or else one that is started here, with its files in `dir`.
    pub(super) async fn open(bin: &Path, dir: &Path) -> anyhow::Result<Self> {
        let named = std::env::var_os("KUBECONFIG").is_some_and(|path| !path.is_empty());
        let mut server = if named { Self::given().await? } else { Self::start(bin, dir).await? };
        let version = server.ask(Method::GET, "/version", "", Value::Null).await?;
        server.what = format!("{} {}", server.what, version["gitVersion"].as_str().unwrap_or_default());
        Ok(server)
    }

    async fn given() -> anyhow::Result<Self> {
        let config = Config::infer().await.context("the kubeconfig that KUBECONFIG names can't be used")?;
        let what = config.cluster_url.to_string();
        Ok(Self { client: Client::try_from(config)?, kubeconfig: None, programs: Vec::new(), what })
    }

    async fn start(bin: &Path, dir: &Path) -> anyhow::Result<Self> {
        for name in ["etcd", "kube-apiserver"] {
            let path = bin.join(name);
            if !path.exists() {
                bail!(
                    "{} is not there: run tests/cluster/setup, name their directory with --kube-bin, or set KUBECONFIG",
                    path.display()
                );
            }
        }
        let keys = dir.join("keys");
        std::fs::create_dir(&keys)?;
        // One pair for both: it serves TLS on loopback, and signs the tokens of service accounts, of which none is used.
        let pair = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
        let (certificate, key, public) = (keys.join("tls.crt"), keys.join("tls.key"), keys.join("sa.pub"));
        std::fs::write(&certificate, pair.cert.pem())?;
        std::fs::write(&key, pair.signing_key.serialize_pem())?;
        std::fs::write(&public, pair.signing_key.public_key_pem())?;
        let token = weft_core::hex::hex(&keys_seed()?);
        std::fs::write(keys.join("tokens"), format!("{token},weft-bench,weft-bench,system:masters\n"))?;

        let [client_port, peer_port, port] = free_ports()?;
        let (client_url, peer_url) = (format!("http://127.0.0.1:{client_port}"), format!("http://127.0.0.1:{peer_port}"));
        let mut etcd = Program::start(
            "etcd",
            Command::new(bin.join("etcd"))
                .arg("--data-dir")
                .arg(dir.join("etcd"))
                .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
                .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
                .args(["--initial-cluster", &format!("default={peer_url}"), "--unsafe-no-fsync"]),
            dir,
        )?;
        let mut api = Program::start(
            "kube-apiserver",
            Command::new(bin.join("kube-apiserver"))
                .arg(format!("--etcd-servers={client_url}"))
                .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none"])
                .arg(format!("--secure-port={port}"))
                // Fields that tests/cluster has brought to its server are known to it in JSON alone.
                .args(["--service-cluster-ip-range=10.96.0.0/16", "--storage-media-type=application/json"])
                .arg(format!("--tls-cert-file={}", certificate.display()))
                .arg(format!("--tls-private-key-file={}", key.display()))
                .arg(format!("--token-auth-file={}", keys.join("tokens").display()))
                .args(["--authorization-mode=RBAC", "--service-account-issuer=https://kubernetes.default.svc"])
                .arg(format!("--service-account-key-file={}", public.display()))
                .arg(format!("--service-account-signing-key-file={}", key.display())),
            dir,
        )?;
        let kubeconfig = dir.join("kubeconfig");
        std::fs::write(
            &kubeconfig,
            format!(
                "apiVersion: v1\nkind: Config\nclusters: [{{name: b, cluster: {{server: \"https://127.0.0.1:{port}\", certificate-authority: {}}}}}]\n\
                 users: [{{name: b, user: {{token: {token}}}}}]\ncontexts: [{{name: b, context: {{cluster: b, user: b}}}}]\ncurrent-context: b\n",
                certificate.display()
            ),
        )?;
        let config = Config::from_custom_kubeconfig(Kubeconfig::read_from(&kubeconfig)?, &KubeConfigOptions::default()).await?;
        let client = Client::try_from(config)?;
        let began = Instant::now();
        loop {
            etcd.check()?;
            api.check()?;
            let ready = Request::get("/readyz").body(Vec::new())?;
            match client.request_text(ready).await {
                Ok(_) => break,
                Err(e) if began.elapsed() > START => return Err(e).context("the API server is not ready after 90 s"),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
        let what = "kube-apiserver and etcd on loopback".to_owned();
        Ok(Self { client, kubeconfig: Some(kubeconfig), programs: vec![api, etcd], what })
    }

    /// Whether it was started here, and goes with us.
    pub(super) fn is_own(&self) -> bool {
        !self.programs.is_empty()
    }

    /// One call. `kind` is the body's media type; without one there is no body.
    pub(super) async fn ask(&self, method: Method, path: &str, kind: &str, body: Value) -> anyhow::Result<Value> {
        let mut request = Request::builder().method(&method).uri(path);
        let mut bytes = Vec::new();
        if !kind.is_empty() {
            request = request.header(http::header::CONTENT_TYPE, kind);
            bytes = serde_json::to_vec(&body)?;
        }
        self.client.request(request.body(bytes)?).await.with_context(|| format!("{method} {path}"))
    }

    /// Makes an object, and gives what the server made of it.
    pub(super) async fn create(&self, path: &str, object: Value) -> anyhow::Result<Value> {
        self.ask(Method::POST, path, "application/json", object).await
    }
}

/// 32 random bytes.
fn keys_seed() -> anyhow::Result<Vec<u8>> {
    use std::io::Read;
    let mut seed = vec![0; 32];
    File::open("/dev/urandom")?.read_exact(&mut seed)?;
    Ok(seed)
}

/// Ports that nobody holds now: all are held at once, so that they differ.
pub(super) fn free_ports<const N: usize>() -> anyhow::Result<[u16; N]> {
    let held: Vec<TcpListener> = (0..N).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&held) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}
