//! Everything that can be set, in one table.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use ipnet::IpNet;
use weft_core::TrustDomain;
use weft_core::policy::MtlsMode;

/// weft's control plane: issues workload certificates and pushes discovery and policy to sidecars.
#[derive(Parser, Debug, Clone)]
#[command(name = "weft-control-plane", version)]
pub struct Config {
    /// Directory of Kubernetes manifests to follow (Namespace, Service, Pod, `EndpointSlice`)
    #[arg(long, env = "WEFT_DIR", value_name = "DIR")]
    pub dir: PathBuf,

    /// Directory for the CA's keys, join tokens and the operator socket; made private (0700) if it is not there
    #[arg(long, env = "WEFT_STATE", value_name = "DIR")]
    pub state: PathBuf,

    /// Address for the gRPC API, over TLS
    #[arg(long, env = "WEFT_LISTEN", value_name = "ADDR:PORT", default_value = "0.0.0.0:4700")]
    pub listen: SocketAddr,

    /// Address for a DNS server (UDP and TCP) that answers for the services of the mesh; none without it
    #[arg(long, env = "WEFT_DNS", value_name = "ADDR:PORT")]
    pub dns: Option<SocketAddr>,

    /// DNS domain of the mesh: services are SERVICE.NAMESPACE.svc.DOMAIN
    #[arg(long, env = "WEFT_CLUSTER_DOMAIN", value_name = "DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,

    /// Trust domain of every identity that is issued
    #[arg(long, env = "WEFT_TRUST_DOMAIN", value_name = "DOMAIN", default_value = weft_core::wellknown::DEFAULT_TRUST_DOMAIN)]
    pub trust_domain: TrustDomain,

    /// mTLS mode where neither namespace, pod nor port says otherwise: strict or permissive
    #[arg(long, env = "WEFT_MTLS", value_name = "MODE", default_value = "permissive")]
    pub mtls: MtlsMode,

    /// CIDRs inside which a sidecar never dials an address in plaintext that discovery does not answer for
    #[arg(
        long,
        env = "WEFT_MESH_RANGES",
        value_name = "CIDR,…",
        value_delimiter = ',',
        default_value = "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,100.64.0.0/10,fc00::/7"
    )]
    pub mesh_ranges: Vec<IpNet>,

    /// The CA's certificate chain (PEM: issuer first, root last); made on first start without it
    #[arg(long, env = "WEFT_CA_CHAIN", value_name = "FILE", requires = "ca_key")]
    pub ca_chain: Option<PathBuf>,

    /// The issuer's private key (PEM, PKCS#8)
    #[arg(long, env = "WEFT_CA_KEY", value_name = "FILE", requires = "ca_chain")]
    pub ca_key: Option<PathBuf>,

    /// Seconds between heartbeats on each discovery stream
    #[arg(long, env = "WEFT_HEARTBEAT", value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=300))]
    pub heartbeat: u32,

    /// What is logged (tracing filter), to standard error
    #[arg(long, env = "WEFT_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,
}
