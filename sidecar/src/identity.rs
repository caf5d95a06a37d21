//! Getting a certificate, and a new one at two thirds of its life, each with a new key.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use tokio::sync::watch;
use tokio::time::Instant;
use weft_core::SpiffeId;
use weft_core::backoff::{Backoff, renewal_delay};
use weft_core::failure::chain;
use weft_proto::v1;
use weft_proto::v1::certificates_client::CertificatesClient;
use weft_proto::v1::issue_request::Attestation;
use weft_tls::{PendingKey, Svid, TrustBundle};

use crate::config::Config;
use crate::control::{self, Trust};
use crate::mesh::{Identity, Mesh};

/// The longest time over which a renewal may be spread, in seconds: a certificate must not expire meanwhile.
const LONGEST_SPREAD: u32 = 3600;

/// The identity in use; every change is seen by whoever watches.
pub type Current = watch::Receiver<Option<Arc<Identity>>>;

/// What discovery brings of trust.
#[derive(Clone, Debug, PartialEq)]
pub struct Trusted {
    pub bundle: Arc<TrustBundle>,
    /// While the root is rotated: under which anchor certificates are issued, and how fast whoever has another is to renew.
    pub issuing: Option<v1::Issuing>,
}

/// Keeps the mesh's identity: joins if there is none, then renews for ever.
pub struct Keeper {
    config: Config,
    mesh: Arc<Mesh>,
    current: watch::Sender<Option<Arc<Identity>>>,
    generation: u64,
    key: Option<PendingKey>,
    asked: Asked,
    /// The next certificate is asked for with the join token, though there is one.
    rejoin: bool,
    /// When the application's first certificate is asked for, and how long after a failure.
    hand_at: Instant,
    hand_again: Backoff,
}

/// A renewal that the control plane asked for, because it issues under another anchor now.
struct Asked {
    /// The anchor that it named last.
    anchor: String,
    /// When this sidecar's turn is.
    due: Option<Instant>,
    /// Another replica than the one that asked may answer, and not have the new anchor yet.
    again: Backoff,
}

impl Default for Asked {
    fn default() -> Self {
        Self { anchor: String::new(), due: None, again: Backoff::new(Duration::from_secs(2), Duration::from_secs(3600)) }
    }
}

impl Asked {
    /// Notes what the control plane says; `random` picks the moment. Asked the same again, the moment stays, and so does what was done.
    fn hear(&mut self, issuing: Option<&v1::Issuing>, serving: &str, random: u64, now: Instant) {
        let Some(issuing) = issuing else {
            *self = Self::default();
            return;
        };
        if issuing.anchor == self.anchor {
            return;
        }
        self.anchor.clone_from(&issuing.anchor);
        let spread = Duration::from_secs(issuing.spread_seconds.min(LONGEST_SPREAD).into());
        let fraction = (random >> 11) as f64 / (1_u64 << 53) as f64;
        self.due = (issuing.anchor != serving).then(|| now + spread.mul_f64(fraction));
        self.again.reset();
    }

    /// Notes what a renewal brought: where it does not lead to the anchor that was named, it is asked for again, ever more seldom. True where it does.
    fn answered(&mut self, serving: &str, random: u64, now: Instant) -> bool {
        let is_it = self.anchor.is_empty() || self.anchor == serving;
        self.due = (!is_it).then(|| now + self.again.next_wait(random));
        is_it
    }
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
        let keeper = Self {
            config,
            mesh,
            current,
            generation: 0,
            key: None,
            asked: Asked::default(),
            rejoin: false,
            hand_at: Instant::now(),
            hand_again: Backoff::new(Duration::from_millis(200), Duration::from_secs(30)),
        };
        (keeper, watched)
    }

    /// Puts a certificate and bundle to use.
    pub fn adopt(&mut self, svid: Svid, bundle: Arc<TrustBundle>) {
        self.generation += 1;
        let identity = Arc::new(Identity::new(self.generation, svid, bundle));
        let info = identity.svid.info();
        tracing::info!(id = %info.id, serial = %info.serial, not_after = info.not_after, anchor = %identity.anchor, "certificate in use");
        self.mesh.adopt(identity.clone());
        self.current.send_replace(Some(identity));
    }

    /// Runs until the process ends. Failures are retried with jitter; a certificate that is still valid stays in use.
    pub async fn run(mut self, mut trust: watch::Receiver<Option<Trusted>>) {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(30));
        let mut failing_since: Option<i64> = None;
        if self.doubts() {
            // Mostly, the token is older than the certificate. If it is not, the renewal fails, and the token is tried next.
            tracing::info!(
                "the join token is newer than the certificate that was kept, or names another anchor: renewing it at once"
            );
            self.asked.due = Some(Instant::now());
        }
        loop {
            let wait = match (self.current.borrow().as_ref(), failing_since) {
                (None, None) => Duration::ZERO,
                (_, Some(_)) => backoff.next_wait(random()),
                (Some(identity), None) => self.until_renewal(&identity.svid),
            };
            let mesh = self.mesh.clone();
            let lacks = self.current.borrow().is_some() && mesh.handing.svid.borrow().is_none() && !self.joins();
            tokio::select! {
                biased;
                changed = trust.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let told = trust.borrow_and_update().clone();
                    self.take_over(told);
                    continue;
                }
                () = async {
                    mesh.handing.asked().await;
                    tokio::time::sleep_until(self.hand_at).await;
                }, if lacks => {
                    self.hand().await;
                    continue;
                }
                () = sleep_by_wall_clock(wait) => {}
            }
            match self.renew().await {
                Ok((svid, bundle)) => {
                    failing_since = None;
                    backoff.reset();
                    self.rejoin = false;
                    self.mesh.renewal_failing_since.store(0, Relaxed);
                    // What the stream said last may be newer than what another replica answers, and is not said again.
                    let told = trust.borrow().as_ref().map(|told| told.bundle.clone());
                    let told = told.filter(|told| {
                        self.mesh.connected.load(Relaxed) && told.vouching(svid.chain(), UnixTime::now()).is_some()
                    });
                    self.adopt(svid, told.unwrap_or(bundle));
                    let serving = self.current.borrow().as_ref().map(|i| i.anchor.clone()).unwrap_or_default();
                    if !self.asked.answered(&serving, random(), Instant::now()) {
                        tracing::info!(%serving, asked = %self.asked.anchor, "the new certificate leads to another anchor than was asked for: who issued it is a replica that has not heard yet");
                    }
                }
                Err(e) => {
                    self.rejoin = !self.rejoin && self.doubts();
                    let since = *failing_since.get_or_insert_with(unix_now);
                    let held = self.current.borrow().as_ref().map(|i| i.svid.info().not_after - unix_now());
                    if let Some(left) = held {
                        self.tell_failing(since);
                        tracing::warn!(since, valid_for_s = left, "renewal failed, the certificate stays in use: {e:#}");
                    } else {
                        tracing::warn!(since, "no certificate yet: {e:#}");
                    }
                }
            }
        }
    }

    /// A certificate that was kept may lead to a root that the mesh has left behind: then the control plane would not take it for a proof. A
    /// join token names the root of its day. Where that is another one, it is tried in turn with the certificate, which is to be renewed at once when
    /// the process begins; what is kept serves meanwhile.
    fn doubts(&self) -> bool {
        let current = self.current.borrow();
        let (Some(current), Ok(token)) = (current.as_ref(), self.join_token()) else { return false };
        // One that was written after the certificate was issued may be there because that one is denied.
        let path = self.config.identity.join_token_file.as_ref();
        let written = path.and_then(|path| std::fs::metadata(path).ok()?.modified().ok());
        let written = written.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map_or(0, |at| at.as_secs() as i64);
        written > current.svid.info().not_before + weft_core::wellknown::BACKDATE_SECS
            || token.split('.').nth(3).is_some_and(|anchor| anchor != current.anchor)
    }

    /// Whether the next certificate comes by the join token, which is good for one key: the sidecar's own.
    fn joins(&self) -> bool {
        let files = &self.config.identity;
        let by_token_file = files.token_file.is_some() && files.anchors_file.is_some();
        let holds = self.current.borrow().as_ref().is_some_and(|i| i.svid.info().not_after > unix_now());
        !by_token_file && (self.rejoin || !holds)
    }

    /// Puts the anchors in force that discovery brought, and notes whether a renewal is asked for.
    fn take_over(&mut self, told: Option<Trusted>) {
        let current = self.current.borrow().clone();
        let (Some(told), Some(current)) = (told, current) else { return };
        if *told.bundle != *current.bundle {
            self.adopt(current.svid.clone(), told.bundle);
        }
        let serving = self.current.borrow().as_ref().map(|i| i.anchor.clone()).unwrap_or_default();
        self.asked.hear(told.issuing.as_ref(), &serving, random(), Instant::now());
    }

    /// When the next certificate is due: as its life goes, or sooner because the control plane asked for it.
    fn until_renewal(&self, svid: &Svid) -> Duration {
        let due = until_renewal(svid);
        self.asked.due.map_or(due, |asked| due.min(asked.saturating_duration_since(Instant::now())))
    }

    /// Has whoever tells the control plane what is served say that renewal fails: once.
    fn tell_failing(&self, since: i64) {
        if self.mesh.renewal_failing_since.swap(since, Relaxed) != since {
            self.current.send_modify(|_| {});
        }
    }

    /// A new certificate for the sidecar, and, before that, one for the application if it has ever asked: whoever serves a certificate that was issued
    /// later has none left that was issued before, the application's included, and so says the record of what was issued.
    async fn renew(&mut self) -> anyhow::Result<(Svid, Arc<TrustBundle>)> {
        let application = if self.mesh.handing.is_asked() && self.current.borrow().is_some() && !self.joins() {
            let key = PendingKey::generate()?;
            let issued =
                self.issue(&key, true).await.inspect_err(|e| tracing::warn!("no certificate for the application: {e:#}"));
            issued.ok().map(|(svid, _)| svid)
        } else {
            None
        };
        // A lost answer is asked for again with the same key, which a join token allows; a new issue has a new key.
        let key = match self.key.take() {
            Some(key) => key,
            None => PendingKey::generate()?,
        };
        let issued = self.issue(&key, false).await;
        match &issued {
            Err(_) => self.key = Some(key),
            Ok((svid, bundle)) if self.mesh.handing.is_asked() => {
                // One that leads elsewhere would not outlive the rotation that has moved on between the two: `hand` gets another, as where there is none.
                let leads = |svid: &Svid| bundle.vouching(svid.chain(), UnixTime::now());
                self.mesh.handing.svid.send_replace(application.filter(|own| leads(own) == leads(svid)));
                self.hand_at = Instant::now();
            }
            Ok(_) => {}
        }
        issued
    }

    /// The application has asked for the first time.
    async fn hand(&mut self) {
        let issued = match PendingKey::generate() {
            Ok(key) => self.issue(&key, true).await,
            Err(e) => Err(e.into()),
        };
        match issued {
            // It would not outlive the rotation that the replica that answers has not heard of yet.
            Ok((svid, bundle))
                if !self.asked.anchor.is_empty()
                    && bundle.vouching(svid.chain(), UnixTime::now()).is_none_or(|anchor| anchor != self.asked.anchor) =>
            {
                self.hand_at = Instant::now() + self.hand_again.next_wait(random());
            }
            Ok((svid, _)) => {
                tracing::info!(serial = %svid.info().serial, "the application has a certificate of its own");
                self.mesh.handing.svid.send_replace(Some(svid));
            }
            Err(e) => {
                tracing::warn!("no certificate for the application yet: {e:#}");
                self.hand_at = Instant::now() + self.hand_again.next_wait(random());
            }
        }
    }

    async fn issue(&mut self, key: &PendingKey, application: bool) -> anyhow::Result<(Svid, Arc<TrustBundle>)> {
        let id = SpiffeId::new(
            self.config.identity.trust_domain.clone(),
            self.config.identity.identity.namespace.clone(),
            self.config.identity.identity.name.as_str().parse().context("--identity")?,
        );
        let current = self.current.borrow().clone();
        let held = current.filter(|i| i.svid.info().not_after > unix_now() && !self.rejoin);
        let files = &self.config.identity;
        let (channel, attestation) = if let (Some(token), Some(anchors)) = (&files.token_file, &files.anchors_file) {
            let token = text(token, "service-account token")?;
            // The server is known by the anchors as they stand now, not by those of the certificate that is to be replaced: while there is a stream, by what it
            // says, since the kubelet may bring the file a minute later.
            let told = self.current.borrow().as_ref().map(|i| i.bundle.clone()).filter(|_| self.mesh.connected.load(Relaxed));
            let anchors = match told {
                Some(bundle) => bundle,
                None => Arc::new(self.anchors(anchors)?),
            };
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
        let request = v1::IssueRequest { csr: key.request(&id)?.into(), attestation: Some(attestation), application };
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
        if application && svid.info().pod.is_some() {
            bail!("the control plane is older, and knows no certificates for applications: upgrade it");
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

/// What is served and trusted, for the control plane. `saved` is the generation that is on disk.
pub fn serving(identity: &Identity, renewal_failing_since: i64, saved: u64) -> v1::ServedCertificate {
    let info = identity.svid.info();
    v1::ServedCertificate {
        serial: info.serial.clone(),
        not_after: info.not_after,
        anchor: identity.anchor.clone(),
        trusted: identity.bundle.hashes(info.id.trust_domain()).collect(),
        renewal_failing_since,
        unsaved: saved < identity.generation,
    }
}

/// For logs of other rooms.
pub fn describe(e: &tonic::Status) -> String {
    match std::error::Error::source(e) {
        Some(cause) => format!("{}: {}", e.message(), chain(cause)),
        None => e.message().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_is_asked_for_has_a_moment_of_its_own_and_is_done_once() {
        let now = Instant::now();
        let issuing = |anchor: &str| v1::Issuing { anchor: anchor.into(), spread_seconds: 100 };
        let mut asked = Asked::default();
        asked.hear(Some(&issuing("old")), "old", 0, now);
        assert_eq!(asked.due, None, "it has one already");
        asked.hear(Some(&issuing("new")), "old", u64::MAX / 2, now);
        let due = asked.due.expect("it has another") - now;
        assert!((49..=50).contains(&due.as_secs()), "{due:?}");
        asked.hear(Some(&issuing("new")), "old", 0, now);
        assert_eq!(asked.due.map(|d| d - now), Some(due), "the moment stays");
        assert!(!asked.answered("old", u64::MAX, now), "a replica that has not heard of it yet has issued it");
        let again = asked.due.expect("it is asked for again") - now;
        assert!(Duration::from_secs(1) < again && again <= Duration::from_secs(2), "{again:?}");
        assert!(!asked.answered("old", u64::MAX, now));
        assert!(asked.due.is_some_and(|due| due - now > again), "later and later");
        assert!(asked.answered("new", 0, now));
        assert_eq!(asked.due, None);
        asked.hear(Some(&issuing("new")), "new", 0, now);
        assert_eq!(asked.due, None, "it was done");
        asked.hear(Some(&issuing("old")), "new", 0, now);
        assert_eq!(asked.due, Some(now), "the control plane went back");
        asked.hear(None, "new", 0, now);
        assert_eq!(asked.due, None);
        assert!(asked.answered("new", 0, now), "nobody asks for anything");
        let forever = v1::Issuing { anchor: "new".into(), spread_seconds: u32::MAX };
        asked.hear(Some(&forever), "old", u64::MAX, now);
        assert!(asked.due.is_some_and(|d| d - now <= Duration::from_secs(3600)), "within a certificate's life");
    }
}
