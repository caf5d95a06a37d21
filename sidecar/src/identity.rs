//! Getting a certificate, and a new one at two thirds of its life, each with a new key.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio::sync::watch;
use weft_core::SpiffeId;
use weft_core::backoff::{Backoff, renewal_delay};
use weft_proto::v1;
use weft_proto::v1::certificates_client::CertificatesClient;
use weft_proto::v1::issue_request::Attestation;
use weft_tls::{PendingKey, Svid, TrustBundle};

use crate::config::Config;
use crate::control::{self, Trust, chain};
use crate::mesh::{Identity, Mesh};

/// The identity in use; every change is seen by whoever watches.
pub type Current = watch::Receiver<Option<Arc<Identity>>>;

/// Keeps the mesh's identity: joins if there is none, then renews for ever.
pub struct Keeper {
    config: Config,
    mesh: Arc<Mesh>,
    current: watch::Sender<Option<Arc<Identity>>>,
    generation: u64,
    key: Option<PendingKey>,
}

pub fn random() -> u64 {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random number generator works");
    u64::from_le_bytes(bytes)
}

pub fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

impl Keeper {
    pub fn new(config: Config, mesh: Arc<Mesh>) -> (Self, Current) {
        let (current, watched) = watch::channel(None);
        (Self { config, mesh, current, generation: 0, key: None }, watched)
    }

    /// Puts a certificate and bundle to use.
    pub fn adopt(&mut self, svid: Svid, bundle: Arc<TrustBundle>) {
        self.generation += 1;
        let identity = Arc::new(Identity::new(self.generation, svid, bundle));
        let info = identity.svid.info();
        tracing::info!(id = %info.id, serial = %info.serial, not_after = info.not_after, "certificate in use");
        self.mesh.identity.store(Some(identity.clone()));
        self.current.send_replace(Some(identity));
    }

    /// Runs until the process ends. Failures are retried with jitter; a certificate that is still valid stays in use.
    pub async fn run(mut self, mut bundles: watch::Receiver<Option<Arc<TrustBundle>>>) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
        let mut failing_since: Option<i64> = None;
        loop {
            let wait = match (self.current.borrow().as_ref(), failing_since) {
                (None, None) => Duration::ZERO,
                (_, Some(_)) => backoff.next_wait(random()),
                (Some(identity), None) => until_renewal(&identity.svid),
            };
            tokio::select! {
                biased;
                changed = bundles.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let (bundle, current) = (bundles.borrow_and_update().clone(), self.current.borrow().clone());
                    if let (Some(bundle), Some(current)) = (bundle, current)
                        && *bundle != *current.bundle
                    {
                        self.adopt(current.svid.clone(), bundle);
                    }
                    continue;
                }
                () = sleep_by_wall_clock(wait) => {}
            }
            match self.issue().await {
                Ok((svid, bundle)) => {
                    failing_since = None;
                    backoff.reset();
                    self.key = None;
                    self.adopt(svid, bundle);
                }
                Err(e) => {
                    let since = *failing_since.get_or_insert_with(unix_now);
                    let held = self.current.borrow().as_ref().map(|i| i.svid.info().not_after - unix_now());
                    if let Some(left) = held {
                        tracing::warn!(since, valid_for_s = left, "renewal failed, the certificate stays in use: {e:#}");
                    } else {
                        tracing::warn!(since, "no certificate yet: {e:#}");
                    }
                }
            }
        }
    }

    async fn issue(&mut self) -> anyhow::Result<(Svid, Arc<TrustBundle>)> {
        let id = SpiffeId::new(
            self.config.identity.trust_domain.clone(),
            self.config.identity.identity.namespace.clone(),
            self.config.identity.identity.name.as_str().parse().context("--identity")?,
        );
        let current = self.current.borrow().clone();
        let held = current.filter(|i| i.svid.info().not_after > unix_now());
        let files = &self.config.identity;
        let (channel, attestation) = if let (Some(token), Some(anchors)) = (&files.token_file, &files.anchors_file) {
            let (token, anchors) = (text(token, "service-account token")?, Arc::new(self.anchors(anchors)?));
            // The server is known by the anchors as they stand now, not by those of the certificate that is to be replaced.
            (control::connect(&self.config, Trust::Anchors(&anchors)).await?, Attestation::KubernetesToken(token))
        } else if let Some(identity) = &held {
            let channel = control::connect(&self.config, Trust::Bundle(&identity.svid, &identity.bundle)).await?;
            (channel, Attestation::Renewal(v1::Renewal {}))
        } else {
            let token = self.join_token()?;
            let Some(anchor) = token.split('.').nth(3) else {
                bail!("the join token is malformed: pass it whole, as `weft token create` printed it");
            };
            (control::connect(&self.config, Trust::Pinned(anchor)).await?, Attestation::JoinToken(token))
        };
        // A lost answer is asked for again with the same key, which a join token allows; a new issue has a new key.
        if self.key.is_none() {
            self.key = Some(PendingKey::generate()?);
        }
        let key = self.key.as_ref().context("made just above")?;
        let request = v1::IssueRequest { csr: key.request(&id)?.into(), attestation: Some(attestation) };
        let mut client = CertificatesClient::new(channel);
        let answer = tokio::time::timeout(Duration::from_secs(10), client.issue(request))
            .await
            .context("the control plane did not answer in 10 s")?
            .map_err(|status| anyhow::anyhow!("the control plane refused: {} ({:?})", status.message(), status.code()))?
            .into_inner();
        let chain = answer.chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let svid = key.with_chain(chain)?;
        if svid.info().id != id {
            bail!("the control plane issued {} where {id} was asked for", svid.info().id);
        }
        let bundle = TrustBundle::try_from(answer.trust_bundle.as_ref().context("the answer has no trust bundle")?)?;
        Ok((svid, Arc::new(bundle)))
    }

    fn join_token(&self) -> anyhow::Result<String> {
        let path = self.config.identity.join_token_file.as_ref().context(
            "there is no certificate, and neither --token-file with --anchors-file nor --join-token-file says how to get one",
        )?;
        text(path, "join token")
    }

    /// The anchors as they stand: whoever runs the mesh replaces the file when a root is added or removed.
    fn anchors(&self, path: &Path) -> anyhow::Result<TrustBundle> {
        let read = || anyhow::Ok(CertificateDer::pem_slice_iter(&std::fs::read(path)?).collect::<Result<Vec<_>, _>>()?);
        let anchors = read().with_context(|| format!("the anchors {}", path.display()))?;
        TrustBundle::new(self.config.identity.trust_domain.clone(), anchors)
            .with_context(|| format!("the anchors {}", path.display()))
    }
}

/// What a file holds as it stands: the kubelet replaces a projected token well before it expires.
fn text(path: &Path, what: &str) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("the {what} {}", path.display()))?;
    Ok(text.trim().to_owned())
}

fn until_renewal(svid: &Svid) -> Duration {
    let info = svid.info();
    // From the start of what is left of its life, so that a restart does not renew at once.
    let life = Duration::from_secs((info.not_after - info.not_before - weft_core::wellknown::BACKDATE_SECS).max(60) as u64);
    let due = info.not_before + weft_core::wellknown::BACKDATE_SECS + renewal_delay(life, random()).as_secs() as i64;
    Duration::from_secs((due - unix_now()).max(0) as u64)
}

/// Sleeps by wall time: a machine that was suspended wakes up late by the monotonic clock, and certificates do not wait.
async fn sleep_by_wall_clock(wait: Duration) {
    let due = unix_now().saturating_add(wait.as_secs() as i64);
    if wait < Duration::from_secs(60) {
        return tokio::time::sleep(wait).await;
    }
    while unix_now() < due {
        tokio::time::sleep(Duration::from_secs(30).min(wait)).await;
    }
}

/// What is served, for status: told to the control plane.
pub fn serving(identity: &Identity) -> v1::ServedCertificate {
    v1::ServedCertificate { serial: identity.svid.info().serial.clone(), not_after: identity.svid.info().not_after }
}

/// For logs of other rooms.
pub fn describe(e: &tonic::Status) -> String {
    match std::error::Error::source(e) {
        Some(cause) => format!("{}: {}", e.message(), chain(cause)),
        None => e.message().to_owned(),
    }
}
