//! Everything that can be set, in one table.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser};
use ipnet::IpNet;
use weft_core::authorization::Posture;
use weft_core::egress::EgressDefault;
use weft_core::policy::MtlsMode;
use weft_core::service::ObjectRef;
use weft_core::{Namespace, TrustDomain};

/// weft's control plane: issues workload certificates and pushes discovery and policy to sidecars.
#[derive(Parser, Debug, Clone)]
#[command(name = "weft-control-plane", version)]
pub struct Config {
    #[command(flatten)]
    pub source: SourceConfig,
    #[command(flatten)]
    pub cluster: ClusterConfig,

    /// Directory for the CA's keys, join tokens and the operator socket (on Kubernetes the socket alone); made private (0700) if
    /// it is not there
    #[arg(long, env = "WEFT_STATE", value_name = "DIR")]
    pub state: PathBuf,

    /// Address for the gRPC API, over TLS
    #[arg(long, env = "WEFT_LISTEN", value_name = "ADDR:PORT", default_value = "[::]:4700")]
    pub listen: SocketAddr,

    /// Address for /live, /ready and /metrics, in plaintext, for a kubelet's probes; none without it
    #[arg(long, env = "WEFT_PROBE", value_name = "ADDR:PORT")]
    pub probe: Option<SocketAddr>,

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

    /// Who may call a pod where neither its namespace nor an `AuthorizationPolicy` says so: allow, allow-authenticated, allow-same-namespace or
    /// deny
    #[arg(long, env = "WEFT_DEFAULT_POLICY", value_name = "POLICY", default_value = "allow")]
    pub default_policy: Posture,

    /// What becomes of destinations outside of the mesh that no `ExternalService` names, where a namespace does not say so: allow or deny
    #[arg(long, env = "WEFT_EGRESS", value_name = "DEFAULT", default_value = "allow")]
    pub egress: EgressDefault,

    /// CIDRs inside which a sidecar never dials an address in plaintext that discovery does not answer for
    #[arg(
        long,
        env = "WEFT_MESH_RANGES",
        value_name = "CIDR,…",
        value_delimiter = ',',
        default_value = "10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,100.64.0.0/10,fc00::/7"
    )]
    pub mesh_ranges: Vec<IpNet>,

    /// The CA's certificate chain (PEM: issuer first, root last). It and the two files below may be replaced at any time. Without it, made on first start: in the state directory, or on
    /// Kubernetes in a Secret, which all replicas share
    #[arg(long, env = "WEFT_CA_CHAIN", value_name = "FILE", requires = "ca_key")]
    pub ca_chain: Option<PathBuf>,

    /// The roots that sidecars are to trust (PEM, up to 16): with it the chain may end below its root, and another root can follow. Default: ca.crt
    /// beside the chain, if it is there
    #[arg(long, env = "WEFT_CA_BUNDLE", value_name = "FILE", requires = "ca_chain")]
    pub ca_bundle: Option<PathBuf>,

    /// The issuer's private key (PEM, PKCS#8)
    #[arg(long, env = "WEFT_CA_KEY", value_name = "FILE", requires = "ca_chain")]
    pub ca_key: Option<PathBuf>,

    /// Seconds between heartbeats on each discovery stream
    #[arg(long, env = "WEFT_HEARTBEAT", value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=300))]
    pub heartbeat: u32,

    /// Seconds after which a discovery stream ends, give or take a fifth, so that sidecars spread over replicas
    #[arg(long, env = "WEFT_STREAM_AGE", value_name = "SECONDS", default_value_t = 1800, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub stream_age: u32,

    /// Seconds that sidecars are given to move to other replicas when this one stops; on Kubernetes only
    #[arg(long, env = "WEFT_DRAIN", value_name = "SECONDS", default_value_t = 6, value_parser = clap::value_parser!(u32).range(0..=300))]
    pub drain: u32,

    /// What is logged (tracing filter), to standard error. The client's own warnings are left out: what goes wrong is told by us, and a
    /// kind that the cluster does not have is asked for again and again
    #[arg(long, env = "WEFT_LOG", value_name = "FILTER", default_value = "info,kube_client=error")]
    pub log: String,
}

/// Where objects come from: exactly one of these.
#[derive(Args, Debug, Clone)]
#[group(required = true, multiple = false)]
pub struct SourceConfig {
    /// Directory of Kubernetes manifests to follow (Namespace, Service, Pod, `EndpointSlice`)
    #[arg(long, env = "WEFT_DIR", value_name = "DIR")]
    pub dir: Option<PathBuf>,

    /// Follow a cluster's API server: the one that this pod runs in, or the one that KUBECONFIG names
    #[arg(long)]
    pub kubernetes: bool,
}

/// What matters with `--kubernetes` alone.
#[derive(Args, Debug, Clone)]
pub struct ClusterConfig {
    /// The control plane's own namespace: for the Secret of the CA and the Lease; authorization policies for the whole mesh stand there, also
    /// without a cluster
    #[arg(long = "kube-namespace", env = "WEFT_KUBE_NAMESPACE", value_name = "NAMESPACE", default_value = weft_core::wellknown::CONTROL_PLANE_NAMESPACE)]
    pub namespace: Namespace,

    /// Secret in that namespace with the CA, laid out as cert-manager does (tls.crt, tls.key, ca.crt); made if it is not there
    #[arg(long = "kube-ca-secret", env = "WEFT_KUBE_CA_SECRET", value_name = "NAME", default_value = "weft-ca")]
    pub ca_secret: String,

    /// Audience that a pod's service-account token must be made for
    #[arg(long = "kube-audience", env = "WEFT_KUBE_AUDIENCE", value_name = "AUDIENCE", default_value = "weft")]
    pub audience: String,

    /// Name of this replica, for the Lease
    #[arg(long = "kube-replica", env = "HOSTNAME", value_name = "NAME", default_value = "weft-control-plane")]
    pub replica: String,
}

impl ClusterConfig {
    /// This replica's pod.
    ///
    /// # Errors
    ///
    /// Where its name is no pod's.
    pub fn pod(&self) -> anyhow::Result<ObjectRef> {
        let name =
            self.replica.parse().map_err(|e| anyhow::anyhow!("--kube-replica {:?} is no name of a pod: {e}", self.replica))?;
        Ok(ObjectRef { namespace: self.namespace.clone(), name })
    }
}

impl Config {
    /// The files of a CA that is somebody else's; none where it is made here.
    pub fn given_ca(&self) -> Option<crate::issue::given::Files> {
        let (chain, key) = (self.ca_chain.clone()?, self.ca_key.clone()?);
        Some(crate::issue::given::Files { chain, key, bundle: self.ca_bundle.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Config, String> {
        Config::try_parse_from(["weft-control-plane", "--state", "/s"].iter().chain(args)).map_err(|e| e.to_string())
    }

    #[test]
    fn exactly_one_source_is_taken() {
        assert!(parse(&["--dir", "/d"]).expect("a source").source.dir.is_some());
        assert!(parse(&["--kubernetes"]).expect("a source").source.kubernetes);
        let neither: &[&str] = &[];
        for args in [neither, &["--dir", "/d", "--kubernetes"]] {
            let e = parse(args).expect_err("not one source");
            assert!(e.contains("--dir") && e.contains("--kubernetes"), "{e}");
        }
    }
}
