//! Everything that can be set, in one table.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser};
use weft_core::wellknown;

/// weft's sidecar: takes in a pod's redirected traffic, puts it on mutual TLS, balances it, and tells what it did.
#[derive(Parser, Debug, Clone)]
#[command(name = "weft-sidecar", version)]
pub struct Config {
    #[command(flatten)]
    pub identity: IdentityConfig,
    #[command(flatten)]
    pub net: NetConfig,
    #[command(flatten)]
    pub timeouts: Timeouts,
    #[command(flatten)]
    pub admin: AdminConfig,
    #[command(flatten)]
    pub workload: WorkloadConfig,
    #[command(flatten)]
    pub telemetry: crate::telemetry::TelemetryConfig,

    /// Worker threads; 0 follows the cgroup's CPU quota, at most one per core
    #[arg(long, env = "WEFT_WORKERS", value_name = "N", default_value_t = 0)]
    pub workers: usize,

    /// Connections that are held at once, in and out; 0 is as many as the limit of open files allows, each taking two
    #[arg(long, env = "WEFT_MAX_CONNECTIONS", value_name = "N", default_value_t = 0)]
    pub max_connections: usize,

    /// Connections to endpoints that are kept though nobody uses them, in all, but one for each worker; 0 is an eighth of the limit of open files, at most 16,384 for each worker. The longest idle go first
    #[arg(long, env = "WEFT_MAX_IDLE_CONNECTIONS", value_name = "N", default_value_t = 0)]
    pub max_idle: usize,

    /// Whether connections to another sidecar share one mutual TLS connection where it can do that, too; off gives each its own
    #[arg(long, env = "WEFT_LINK", value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub link: bool,

    /// Sets of labels that a worker keeps apart in metrics; what comes later is counted together
    #[arg(long, env = "WEFT_METRICS_SERIES", value_name = "N", default_value_t = 2_000)]
    pub metrics_series: usize,

    /// What is logged (tracing filter), to standard error
    #[arg(long, env = "WEFT_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,
}

#[derive(Args, Debug, Clone)]
pub struct IdentityConfig {
    /// The control plane's gRPC address; a name is looked up at every connect
    #[arg(long, env = "WEFT_CONTROL_PLANE", value_name = "HOST:PORT")]
    pub control_plane: HostPort,

    /// Service account and namespace that this sidecar asks a certificate for; the attestation decides
    #[arg(long, env = "WEFT_IDENTITY", value_name = "NS/SERVICE-ACCOUNT")]
    pub identity: weft_core::service::ObjectRef,

    /// Trust domain of the mesh
    #[arg(long, env = "WEFT_TRUST_DOMAIN", value_name = "DOMAIN", default_value = wellknown::DEFAULT_TRUST_DOMAIN)]
    pub trust_domain: weft_core::TrustDomain,

    /// File that holds a join token (`weft token create`); read when the sidecar has no certificate yet
    #[arg(long, env = "WEFT_JOIN_TOKEN_FILE", value_name = "FILE", conflicts_with = "token_file")]
    pub join_token_file: Option<PathBuf>,

    /// File with this pod's Kubernetes service-account token for the control plane (a projected volume); read anew for every
    /// certificate
    #[arg(long, env = "WEFT_TOKEN_FILE", value_name = "FILE", requires = "anchors_file")]
    pub token_file: Option<PathBuf>,

    /// File with the anchors (PEM) that vouch for the control plane; read anew for every certificate
    #[arg(long, env = "WEFT_ANCHORS_FILE", value_name = "FILE", requires = "token_file")]
    pub anchors_file: Option<PathBuf>,

    /// Private directory (0700, best memory-backed) for the last good state, so that a restart with the control plane away still
    /// serves; nothing is kept without it
    #[arg(long, env = "WEFT_STATE", value_name = "DIR")]
    pub state: Option<PathBuf>,
}

/// Where something listens: a name or an address, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// An IPv6 address stands here without brackets.
    pub host: String,
    pub port: u16,
}

impl FromStr for HostPort {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is not HOST:PORT: write control-plane.example:4700, 10.0.0.1:4700 or [fd00::1]:4700");
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().ok().filter(|p| *p != 0).ok_or_else(wrong)?;
        let host = match host.strip_prefix('[').and_then(|h| h.strip_suffix(']')) {
            Some(inner) if inner.parse::<std::net::Ipv6Addr>().is_ok() => inner,
            None if !host.is_empty() && !host.contains([':', '/', '[', ' ']) => host,
            _ => return Err(wrong()),
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

impl std::fmt::Display for HostPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl IdentityConfig {
    /// The identity that this sidecar is to have.
    pub fn spiffe_id(&self) -> weft_core::SpiffeId {
        let account = self.identity.name.as_str().parse().expect("both are RFC 1123 subdomains");
        weft_core::SpiffeId::new(self.trust_domain.clone(), self.identity.namespace.clone(), account)
    }

    /// Whether an identity is the one that this sidecar is to have.
    pub fn is(&self, id: &weft_core::SpiffeId) -> bool {
        *id.trust_domain() == self.trust_domain
            && *id.namespace() == self.identity.namespace
            && id.service_account().as_str() == self.identity.name.as_str()
    }
}

#[derive(Args, Debug, Clone)]
pub struct NetConfig {
    /// The pod's own addresses: inbound dials these and nothing else
    #[arg(long, env = "WEFT_POD_IPS", value_name = "IP,…", value_delimiter = ',', required = true)]
    pub pod_ips: Vec<IpAddr>,

    /// Port that the redirect sends the pod's own connections to; listens on loopback only
    #[arg(long, env = "WEFT_OUTBOUND_PORT", value_name = "PORT", default_value_t = wellknown::PORT_OUTBOUND)]
    pub outbound_port: u16,

    /// Port that the redirect sends other pods' connections to
    #[arg(long, env = "WEFT_INBOUND_PORT", value_name = "PORT", default_value_t = wellknown::PORT_INBOUND)]
    pub inbound_port: u16,

    /// Port that the redirect sends the pod's own questions to DNS to; listens on loopback only. 0 is none
    #[arg(long, env = "WEFT_DNS_PORT", value_name = "PORT", default_value_t = 0)]
    pub dns_port: u16,

    /// File that names the pod's name servers (resolv.conf)
    #[arg(long, env = "WEFT_RESOLV_CONF", value_name = "FILE", default_value = "/etc/resolv.conf")]
    pub resolv_conf: PathBuf,

    /// Mark on the sidecar's own sockets, for a redirect that exempts by mark (needs `NET_ADMIN`); 0 for a redirect that exempts by uid
    #[arg(long, env = "WEFT_MARK", value_name = "MARK", default_value_t = 0)]
    pub mark: u32,
}

#[derive(Args, Debug, Clone, Copy)]
pub struct Timeouts {
    /// How long an endpoint may take to accept a connection, TLS handshake included
    #[arg(long = "connect-timeout", env = "WEFT_CONNECT_TIMEOUT", value_name = "DURATION", default_value = "1s", value_parser = duration)]
    pub connect: Duration,

    /// How long a peer may take to say what it speaks, TLS handshake included
    #[arg(long = "handshake-timeout", env = "WEFT_HANDSHAKE_TIMEOUT", value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub handshake: Duration,

    /// How long a client may take to send a whole header section
    #[arg(long = "header-timeout", env = "WEFT_HEADER_TIMEOUT", value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub header: Duration,

    /// How long a stalled peer may block a write before its connection is reset
    #[arg(long = "write-timeout", env = "WEFT_WRITE_TIMEOUT", value_name = "DURATION", default_value = "60s", value_parser = duration)]
    pub write: Duration,

    /// How long a kept-alive HTTP/1 connection may idle, on either side
    #[arg(long = "idle-timeout", env = "WEFT_IDLE_TIMEOUT", value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub idle: Duration,

    /// First phase of a drain: still accepting, while endpoints learn that the pod goes
    #[arg(long, env = "WEFT_DRAIN_GRACE", value_name = "DURATION", default_value = "2s", value_parser = duration)]
    pub drain_grace: Duration,

    /// Second phase of a drain: what is under way may end; then it is cut
    #[arg(long, env = "WEFT_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "20s", value_parser = duration)]
    pub drain_timeout: Duration,
}

#[derive(Args, Debug, Clone)]
pub struct AdminConfig {
    /// Port for /live, /ready, /metrics and /probe, on every address of the pod
    #[arg(long, env = "WEFT_ADMIN_PORT", value_name = "PORT", default_value_t = wellknown::PORT_ADMIN)]
    pub admin_port: u16,

    /// Unix socket (0600) for /config and /drain; none without it
    #[arg(long, env = "WEFT_ADMIN_SOCKET", value_name = "PATH")]
    pub admin_socket: Option<PathBuf>,

    /// Checks of the application that the admin port makes at /probe/NAME, for who may not ask the application itself
    #[arg(long, env = "WEFT_PROBES", value_name = "JSON", default_value = "{}")]
    pub probes: crate::probe::Checks,
}

#[derive(Args, Debug, Clone)]
pub struct WorkloadConfig {
    /// Unix socket for the pod's own application: the SPIFFE Workload API; none without it
    #[arg(long, env = "WEFT_WORKLOAD_API", value_name = "PATH")]
    pub workload_api: Option<PathBuf>,

    /// Who is answered there: `network` (processes in the sidecar's network namespace that it can look at), user ids joined by commas, or
    /// `volume` (whoever reaches the socket, where it is in a volume of the pod's own)
    #[arg(long, env = "WEFT_WORKLOAD_API_CALLERS", value_name = "WHO", default_value = "network")]
    pub workload_api_callers: crate::workload::callers::Callers,
}

/// Reads `250ms`, `2s`, `5m` or `1h`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is not a duration: write 250ms, 2s, 5m or 1h"))?;
    match &text[digits.len()..] {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        "h" => Ok(Duration::from_secs(number.saturating_mul(3600))),
        _ => Err(format!("{text:?} is not a duration: write 250ms, 2s, 5m or 1h")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_and_port_is_a_name_or_an_address_with_a_port() {
        for good in ["weft-control-plane.weft-system.svc:4700", "10.0.0.1:4700", "[fd00::1]:4700"] {
            assert_eq!(good.parse::<HostPort>().map(|h| h.to_string()).as_deref(), Ok(good));
        }
        for bad in
            ["", "host", "host:", ":4700", "host:0", "host:65536", "fd00::1:4700", "[fd00::1]", "[host]:1", "http://host:1"]
        {
            assert!(bad.parse::<HostPort>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn durations_are_read_with_their_unit_and_never_without() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        for bad in ["", "5", "s", "-1s", "1.5s", "5d", "5 s"] {
            assert!(duration(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
