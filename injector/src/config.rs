//! Everything that can be set, in one table.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser};
use weft_core::wellknown::{CONTROL_PLANE_NAMESPACE, DEFAULT_TRUST_DOMAIN, PORT_INJECTOR};
use weft_core::{Namespace, TrustDomain};

use crate::{InjectorOptions, NativeSidecars, Redirect};

/// weft's injector: the admission webhook that gives pods their sidecars.
#[derive(Parser, Debug, Clone)]
#[command(name = "weft-injector", version)]
pub struct Config {
    /// What pods are given.
    #[command(flatten)]
    pub inject: InjectConfig,
    /// How the webhook is served.
    #[command(flatten)]
    pub serve: ServeConfig,
    /// What is the injector's own in the cluster.
    #[command(flatten)]
    pub cluster: ClusterConfig,

    /// What is logged (tracing filter), to standard error
    #[arg(long, env = "WEFT_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,
}

/// What pods are given.
#[derive(Args, Debug, Clone)]
pub struct InjectConfig {
    /// Image with `weft-sidecar`, for the sidecar
    #[arg(long, env = "WEFT_SIDECAR_IMAGE", value_name = "IMAGE")]
    pub sidecar_image: String,

    /// Image with `weft-redirect`, for the init container; the sidecar's without it
    #[arg(long, env = "WEFT_REDIRECT_IMAGE", value_name = "IMAGE")]
    pub redirect_image: Option<String>,

    /// When nodes pull these images
    #[arg(long, env = "WEFT_IMAGE_PULL_POLICY", value_name = "POLICY", default_value = "IfNotPresent", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub image_pull_policy: String,

    /// The control plane, as pods reach it
    #[arg(long, env = "WEFT_CONTROL_PLANE", value_name = "HOST:PORT", default_value = "weft-control-plane.weft-system.svc:4700")]
    pub control_plane: String,

    /// Trust domain of the mesh
    #[arg(long, env = "WEFT_TRUST_DOMAIN", value_name = "DOMAIN", default_value = DEFAULT_TRUST_DOMAIN)]
    pub trust_domain: TrustDomain,

    /// Config map with the trust bundle, in every namespace that is injected
    #[arg(long, env = "WEFT_TRUST_BUNDLE", value_name = "NAME", default_value = "weft-trust-bundle")]
    pub trust_bundle: String,

    /// Sidecars as init containers that stay: auto (from Kubernetes 1.32 on, when every node has them), always or never
    #[arg(long, env = "WEFT_NATIVE_SIDECARS", value_name = "WHEN", default_value = "auto")]
    pub native_sidecars: NativeSidecars,

    /// Who redirects a pod's traffic: init (an init container) or cni (the CNI plugin)
    #[arg(long, env = "WEFT_REDIRECT", value_name = "WHO", default_value = "init")]
    pub redirect: Redirect,

    /// Variables of the telemetry of sidecars whose pod and namespace say nothing of it (`weft.dev/telemetry`): NAME=VALUE, joined by semicolons
    #[arg(long, env = "WEFT_TELEMETRY", value_name = "VARIABLES", default_value = "", value_parser = telemetry)]
    pub telemetry: Telemetry,
}

/// Variables, as they were read.
#[derive(Debug, Clone)]
pub struct Telemetry(pub Vec<(String, String)>);

fn telemetry(text: &str) -> Result<Telemetry, String> {
    let variables = crate::telemetry::variables(text)?;
    if variables.iter().any(|(name, _)| name == weft_core::telemetry::TAP) {
        return Err(format!(
            "{} is for each pod or namespace to allow, by its annotation weft.dev/telemetry",
            weft_core::telemetry::TAP
        ));
    }
    Ok(Telemetry(variables))
}

/// How the webhook is served.
#[derive(Args, Debug, Clone)]
pub struct ServeConfig {
    /// Port for the webhook, over TLS, on every address
    #[arg(long, env = "WEFT_PORT", value_name = "PORT", default_value_t = PORT_INJECTOR)]
    pub port: u16,

    /// Port for /live, /ready and /metrics, on every address
    #[arg(long, env = "WEFT_STATUS_PORT", value_name = "PORT", default_value_t = 4781)]
    pub status_port: u16,

    /// Seconds for which a webhook that was told to stop goes on answering new connections, while the API server learns of it
    #[arg(long, env = "WEFT_DRAIN_SECONDS", value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(0..=60))]
    pub drain_seconds: u64,
}

/// What is the injector's own in the cluster.
#[derive(Args, Debug, Clone)]
pub struct ClusterConfig {
    /// The injector's own namespace
    #[arg(long, env = "WEFT_NAMESPACE", value_name = "NAMESPACE", default_value = CONTROL_PLANE_NAMESPACE)]
    pub namespace: Namespace,

    /// The service by which the API server calls the webhook
    #[arg(long, env = "WEFT_SERVICE", value_name = "NAME", default_value = "weft-injector")]
    pub service: String,

    /// The webhook configuration to keep the CA bundle of
    #[arg(long, env = "WEFT_WEBHOOK_CONFIGURATION", value_name = "NAME", default_value = "weft-injector")]
    pub webhook_configuration: String,

    /// The secret with the webhook's certificate; made where it is not there
    #[arg(long, env = "WEFT_TLS_SECRET", value_name = "NAME", default_value = "weft-injector-tls")]
    pub tls_secret: String,

    /// Hours that a certificate of the webhook lives; it is made anew after two thirds of them
    #[arg(long, env = "WEFT_CERTIFICATE_HOURS", value_name = "HOURS", default_value_t = 2160, value_parser = clap::value_parser!(u32).range(1..=87_600))]
    pub certificate_hours: u32,

    /// Serve without a cluster, from a directory with `tls.crt`, `tls.key` and `namespaces/NAME.json`
    #[arg(long, env = "WEFT_DIR", value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

impl InjectConfig {
    /// The options that follow, for a server that has native sidecars or not, with the injector in `own`.
    pub fn options(&self, native_sidecar: bool, own: &Namespace) -> InjectorOptions {
        let mut options = InjectorOptions::new(&self.sidecar_image, &self.control_plane);
        if let Some(image) = &self.redirect_image {
            options.redirect_image.clone_from(image);
        }
        options.image_pull_policy.clone_from(&self.image_pull_policy);
        options.trust_domain = self.trust_domain.clone();
        options.trust_bundle.clone_from(&self.trust_bundle);
        options.native_sidecar = native_sidecar;
        options.redirect = self.redirect;
        options.telemetry.clone_from(&self.telemetry.0);
        options.protected.insert(own.clone());
        options
    }
}

impl ClusterConfig {
    /// The names that the API server knows the webhook by.
    pub fn host_names(&self) -> Vec<String> {
        let (service, namespace) = (&self.service, &self.namespace);
        vec![format!("{service}.{namespace}.svc"), format!("{service}.{namespace}.svc.cluster.local")]
    }

    /// How long a certificate lives.
    pub fn certificate_life(&self) -> Duration {
        Duration::from_secs(u64::from(self.certificate_hours) * 3600)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_table_of_flags_is_sound() {
        Config::command().debug_assert();
        let config = Config::try_parse_from(["weft-injector", "--sidecar-image=weft:1", "--redirect=cni"]).expect("well formed");
        let options = config.inject.options(false, &config.cluster.namespace);
        assert_eq!((options.redirect_image.as_str(), options.redirect, options.native_sidecar), ("weft:1", Redirect::Cni, false));
        assert_eq!(config.cluster.host_names()[0], "weft-injector.weft-system.svc");
        let refused = Config::try_parse_from(["weft-injector", "--sidecar-image=weft:1", "--telemetry=WEFT_TAP=bodies"]);
        assert!(refused.expect_err("it is not for all pods at once").to_string().contains("weft.dev/telemetry"));
    }
}
