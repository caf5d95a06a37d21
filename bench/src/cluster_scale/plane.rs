//! The control plane that is measured: the real program, as a process.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weft_certs::Authority;

use super::objects::HOME;
use super::server::{Program, Server, free_ports};

/// How long it may take to be ready.
const START: Duration = Duration::from_secs(120);

pub(super) struct Plane {
    program: Program,
    probe: u16,
    /// Of the gRPC API.
    pub(super) address: String,
    /// From its start until `/ready`.
    pub(super) took: Duration,
}

/// Memory of a process, in bytes.
#[derive(Clone, Copy)]
pub(super) struct Memory {
    pub(super) resident: u64,
    /// Of that, what no file is behind: heap and stacks.
    pub(super) anonymous: u64,
    /// The most that was ever resident.
    pub(super) peak: u64,
}

impl Plane {
    /// Starts it and waits until it is ready, which it is when everything has been read once.
    pub(super) async fn start(binary: &Path, server: &Server, authority: &Authority, dir: &Path) -> anyhow::Result<Self> {
        let (chain, key) = (dir.join("ca.pem"), dir.join("ca.key"));
        std::fs::write(&chain, authority.issuer_pem() + &authority.root_pem())?;
        std::fs::write(&key, authority.issuer_key_pem())?;
        let [port, probe] = free_ports()?;
        let address = format!("127.0.0.1:{port}");
        let mut command = Command::new(binary);
        command.args(["--kubernetes", "--listen", &address, "--probe", &format!("127.0.0.1:{probe}"), "--kube-namespace", HOME]);
        command.arg("--state").arg(dir.join("state")).arg("--ca-chain").arg(&chain).arg("--ca-key").arg(&key);
        if let Some(path) = &server.kubeconfig {
            command.env("KUBECONFIG", path);
        }
        let began = Instant::now();
        let mut program = Program::start("weft-control-plane", &mut command, dir)
            .context("build it: cargo build -p weft-control-plane --features kubernetes, and name it with --binary")?;
        loop {
            program.check()?;
            if get(probe, "/ready").await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
                break;
            }
            if began.elapsed() > START {
                bail!("the control plane is not ready after {} s:\n{}", START.as_secs(), program.said());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(Self { program, probe, address, took: began.elapsed() })
    }

    /// The value of `weft_control_plane_NAME`.
    pub(super) async fn metric(&self, name: &str) -> anyhow::Result<usize> {
        let text = get(self.probe, "/metrics").await?;
        let wanted = format!("weft_control_plane_{name} ");
        let value = text.lines().find_map(|line| line.strip_prefix(&wanted)).with_context(|| format!("no metric {name}"))?;
        Ok(value.trim().parse()?)
    }

    pub(super) fn memory(&self) -> anyhow::Result<Memory> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.program.child.id()))?;
        let field = |name: &str| -> anyhow::Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
            Ok(line.split_whitespace().next().context("a number")?.parse::<u64>()? * 1024)
        };
        Ok(Memory { resident: field("VmRSS:")?, anonymous: field("RssAnon:")?, peak: field("VmHWM:")? })
    }

    /// Processor time used so far.
    pub(super) fn cpu(&self) -> anyhow::Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.program.child.id()))?;
        let fields: Vec<&str> = stat.rsplit(')').next().context("stat")?.split_whitespace().collect();
        let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(Duration::from_millis(ticks * 10))
    }
}

/// What the probe port answers, head and all.
async fn get(port: u16, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n").as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}
