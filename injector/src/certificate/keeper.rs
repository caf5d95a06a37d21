//! The certificate's two objects in the cluster, looked at again and again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhook, MutatingWebhookConfiguration};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::time::Instant;

use super::{CertificateError, Current, Made, Serving, bundle, make, unix_now};
use crate::base64;
use crate::config::ClusterConfig;
use crate::status::Status;

/// Between two looks, when all is well.
const PERIOD: Duration = Duration::from_secs(30);
/// Until the next look, when something is not.
const RETRY: Duration = Duration::from_secs(2);
/// How long API servers may take to learn of a new CA bundle, which they watch, before a leaf is served that needs it.
const SETTLE: Duration = Duration::from_secs(5);
/// A leaf that was made this many seconds ago has been vouched for since long: the bundle is written right after it.
const SETTLED: i64 = 60;
/// How long one look may take.
const LOOK: Duration = Duration::from_secs(30);
/// Whose fields these are in the objects.
const MANAGER: &str = "weft-injector";
/// On what belongs to an installation: `weft uninstall` goes by it.
const LABELS: [(&str, &str); 2] = [("app.kubernetes.io/part-of", "weft"), ("app.kubernetes.io/name", "weft-injector")];

/// Keeps a good certificate in use.
pub struct Keeper {
    secrets: Api<Secret>,
    configurations: Api<MutatingWebhookConfiguration>,
    config: ClusterConfig,
    current: Arc<Current>,
    status: Arc<Status>,
    /// The CAs of what is in use, PEM.
    vouched: String,
    settling: Settling,
}

/// How long this replica has known of a CA bundle in the webhook configuration, whoever wrote it there.
#[derive(Default)]
struct Settling {
    seen: Option<(String, Instant)>,
}

impl Settling {
    /// How long `authorities`, which the configuration has at `now`, must stand there yet before a leaf is served that needs them.
    fn wait(&mut self, authorities: &str, now: Instant) -> Duration {
        match &self.seen {
            Some((seen, since)) if seen == authorities => SETTLE.saturating_sub(now.saturating_duration_since(*since)),
            _ => {
                self.seen = Some((authorities.to_owned(), now));
                SETTLE
            }
        }
    }
}

/// What the secret holds.
struct Kept {
    serving: Serving,
    authorities: String,
}

impl Kept {
    fn read(secret: &Secret) -> Result<Self, CertificateError> {
        let part = |name: &str| {
            let bytes = secret.data.as_ref().and_then(|data| data.get(name));
            bytes.ok_or_else(|| CertificateError::Unusable(format!("the secret has no {name}")))
        };
        let serving = Serving::read(&part("tls.crt")?.0, &part("tls.key")?.0)?;
        let authorities = String::from_utf8_lossy(&part("ca.crt")?.0).into_owned();
        Ok(Self { serving, authorities })
    }
}

impl Keeper {
    /// Looks after the objects that `config` names, and puts what it finds into `current`.
    pub fn new(client: &Client, config: ClusterConfig, current: Arc<Current>, status: Arc<Status>) -> Self {
        let secrets = Api::namespaced(client.clone(), config.namespace.as_str());
        let configurations = Api::all(client.clone());
        Self { secrets, configurations, config, current, status, vouched: String::new(), settling: Settling::default() }
    }

    /// Runs until the process ends. What goes wrong is told, and tried again.
    pub async fn run(mut self) {
        loop {
            let wait = match tokio::time::timeout(LOOK, self.look()).await {
                Ok(Ok(wait)) => wait,
                Ok(Err(error)) if was_first(&error) => RETRY,
                Ok(Err(error)) => {
                    tracing::warn!("{error}");
                    RETRY
                }
                Err(_) => {
                    tracing::warn!("the API server did not answer in {} s; what is in use stays in use", LOOK.as_secs());
                    RETRY
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Looks at both objects once, and mends what is amiss; says when to look again.
    async fn look(&mut self) -> Result<Duration, CertificateError> {
        let name = &self.config.webhook_configuration;
        let configuration = self.configurations.get_opt(name).await.map_err(said(format!("reading {name}")))?;
        let kept = self.keep().await?;
        let ours = |hook: &MutatingWebhook| self.is_ours(hook);
        let change = match &configuration {
            Some(configuration) => change_of(configuration, ours, &kept.authorities),
            None => None,
        };
        match change.ok_or_else(|| CertificateError::NoWebhook(name.clone()))? {
            Change::Needed(change) => {
                let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
                let patched = self.configurations.patch(name, &params, &Patch::Strategic(&change)).await;
                patched.map_err(said(format!("writing the CA bundle of {name}")))?;
                tracing::info!(configuration = %name, "CA bundle written");
                Ok(self.settling.wait(&kept.authorities, Instant::now()))
            }
            Change::None => {
                // Another replica may have written it a moment ago. At a start, a leaf that is long made is long vouched for.
                let wait = self.settling.wait(&kept.authorities, Instant::now());
                let long_made = self.vouched.is_empty() && kept.serving.age(unix_now()) > SETTLED;
                if !wait.is_zero() && self.vouched != kept.authorities && !long_made {
                    return Ok(wait);
                }
                self.vouched.clone_from(&kept.authorities);
                self.current.serve(kept.serving);
                self.status.has("certificate");
                Ok(PERIOD)
            }
        }
    }

    fn is_ours(&self, hook: &MutatingWebhook) -> bool {
        let service = hook.client_config.service.as_ref();
        service.is_some_and(|service| service.name == self.config.service && service.namespace == self.config.namespace.as_str())
    }

    /// What the secret holds; what it lacks is made.
    async fn keep(&self) -> Result<Kept, CertificateError> {
        let name = &self.config.tls_secret;
        let (names, now) = (self.config.host_names(), OffsetDateTime::now_utc());
        let found = self.secrets.get_opt(name).await.map_err(said(format!("reading the secret {name}")))?;
        let mut before = Vec::new();
        match found.as_ref().map(Kept::read) {
            Some(Ok(kept)) if !kept.serving.is_due(&names, now.unix_timestamp()) => return Ok(kept),
            Some(Ok(kept)) => before = kept.authorities.into_bytes(),
            Some(Err(error)) => tracing::warn!(secret = %name, "{error}; another is made"),
            None => {}
        }
        let made = make(&names, now, self.config.certificate_life())?;
        // Also what is in use here, in case that the secret was lost.
        let authorities = bundle(&made.authority, &[before.as_slice(), self.vouched.as_bytes()], now.unix_timestamp());
        let serving = Serving::read(made.certificate.as_bytes(), made.key.as_bytes())?;
        let secret = match &found {
            // With its version, so that a write of another replica in between is not lost; and its type cannot change.
            Some(found) => secret(found.metadata.clone(), found.type_.clone(), &made, &authorities),
            None => {
                let labels = LABELS.map(|(label, value)| (label.to_owned(), value.to_owned()));
                let metadata = ObjectMeta { name: Some(name.clone()), labels: Some(labels.into()), ..ObjectMeta::default() };
                secret(metadata, Some("kubernetes.io/tls".to_owned()), &made, &authorities)
            }
        };
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        let written = match found {
            Some(_) => self.secrets.replace(name, &params, &secret).await,
            None => self.secrets.create(&params, &secret).await,
        };
        written.map_err(said(format!("writing the secret {name}")))?;
        tracing::info!(secret = %name, "certificate made");
        Ok(Kept { serving, authorities })
    }
}

fn secret(metadata: ObjectMeta, type_: Option<String>, made: &Made, authorities: &str) -> Secret {
    let parts = [("tls.crt", made.certificate.as_str()), ("tls.key", made.key.as_str()), ("ca.crt", authorities)];
    let data: BTreeMap<String, ByteString> =
        parts.into_iter().map(|(name, text)| (name.to_owned(), ByteString(text.as_bytes().to_vec()))).collect();
    Secret { metadata, data: Some(data), type_, ..Secret::default() }
}

/// What a webhook configuration lacks.
#[derive(Debug, PartialEq)]
enum Change {
    None,
    /// A strategic merge patch, in which webhooks are told apart by their names.
    Needed(Value),
}

/// What is to change for those of the webhooks that are `ours` to have this CA bundle; None where none is ours.
fn change_of(
    configuration: &MutatingWebhookConfiguration,
    ours: impl Fn(&MutatingWebhook) -> bool,
    authorities: &str,
) -> Option<Change> {
    let webhooks: Vec<&MutatingWebhook> = configuration.webhooks.iter().flatten().filter(|hook| ours(hook)).collect();
    if webhooks.is_empty() {
        return None;
    }
    let vouches =
        |hook: &MutatingWebhook| hook.client_config.ca_bundle.as_ref().is_some_and(|bundle| bundle.0 == authorities.as_bytes());
    let text = base64::encode(authorities.as_bytes());
    let amiss: Vec<Value> = webhooks
        .into_iter()
        .filter(|hook| !vouches(hook))
        .map(|hook| json!({ "name": hook.name, "clientConfig": { "caBundle": text } }))
        .collect();
    if amiss.is_empty() {
        return Some(Change::None);
    }
    // The version makes it fail where another has written since.
    let version = json!({ "resourceVersion": configuration.metadata.resource_version });
    Some(Change::Needed(json!({ "metadata": version, "webhooks": amiss })))
}

/// An error of the API server's, with what was tried.
fn said(doing: String) -> impl FnOnce(kube::Error) -> CertificateError {
    move |source| CertificateError::Cluster { doing, source: Box::new(source) }
}

/// Whether another replica was first, which is no fault.
fn was_first(error: &CertificateError) -> bool {
    matches!(error, CertificateError::Cluster { source, .. }
        if matches!(&**source, kube::Error::Api(status) if status.is_conflict() || status.is_already_exists()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configuration() -> MutatingWebhookConfiguration {
        let hook = |name: &str, service: &str, bundle: &str| {
            let service = json!({ "name": service, "namespace": "weft-system", "path": "/inject" });
            let client = json!({ "service": service, "caBundle": base64::encode(bundle.as_bytes()) });
            json!({ "name": name, "clientConfig": client, "admissionReviewVersions": ["v1"], "sideEffects": "None" })
        };
        let webhooks = [hook("a.weft.dev", "weft-injector", "old"), hook("b.example.com", "other", "theirs")];
        serde_json::from_value(json!({ "metadata": { "name": "weft-injector", "resourceVersion": "7" }, "webhooks": webhooks }))
            .expect("a configuration")
    }

    fn ours(hook: &MutatingWebhook) -> bool {
        hook.name.ends_with(".weft.dev")
    }

    #[test]
    fn our_own_webhooks_alone_are_written_and_only_over_what_was_read() {
        let change = change_of(&configuration(), ours, "new").expect("one is ours");
        let hook = json!({ "name": "a.weft.dev", "clientConfig": { "caBundle": base64::encode(b"new") } });
        assert_eq!(change, Change::Needed(json!({ "metadata": { "resourceVersion": "7" }, "webhooks": [hook] })));
        assert_eq!(change_of(&configuration(), ours, "old"), Some(Change::None));
        assert_eq!(change_of(&configuration(), |_| false, "new"), None);
        assert_eq!(change_of(&MutatingWebhookConfiguration::default(), ours, "new"), None);
    }

    #[test]
    fn a_bundle_settles_whoever_wrote_it() {
        let mut settling = Settling::default();
        let start = Instant::now();
        assert_eq!(settling.wait("old", start), SETTLE, "it was just found");
        assert_eq!(settling.wait("old", start + Duration::from_secs(2)), SETTLE.saturating_sub(Duration::from_secs(2)));
        assert_eq!(settling.wait("old", start + SETTLE), Duration::ZERO);
        // Another replica has written a new one since.
        assert_eq!(settling.wait("new", start + SETTLE), SETTLE);
        assert_eq!(settling.wait("new", start + SETTLE * 2), Duration::ZERO);
        // One that is taken back begins anew.
        assert_eq!(settling.wait("old", start + SETTLE * 3), SETTLE);
    }

    #[test]
    fn the_age_of_a_leaf_counts_from_when_it_was_made() {
        let at = 1_800_000_000;
        let made = make(&["x".to_owned()], OffsetDateTime::from_unix_timestamp(at).expect("a time"), Duration::from_secs(3600));
        let made = made.expect("made");
        let serving = Serving::read(made.certificate.as_bytes(), made.key.as_bytes()).expect("it is whole");
        assert_eq!((serving.age(at), serving.age(at + 61)), (0, 61));
    }

    #[test]
    fn a_secret_reads_back_and_one_with_a_part_missing_does_not() {
        let names = vec!["weft-injector.weft-system.svc".to_owned()];
        let made = make(&names, OffsetDateTime::now_utc(), Duration::from_secs(3600)).expect("made");
        let mut secret = secret(ObjectMeta::default(), None, &made, &made.authority);
        let kept = Kept::read(&secret).expect("it is whole");
        assert_eq!((kept.authorities, kept.serving.names), (made.authority.clone(), names));
        for part in ["tls.crt", "tls.key", "ca.crt"] {
            let taken = secret.data.as_mut().and_then(|data| data.remove(part)).expect("it is there");
            assert!(Kept::read(&secret).is_err(), "{part}");
            secret.data.as_mut().expect("it is there").insert(part.to_owned(), taken);
        }
    }
}
