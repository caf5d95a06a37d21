//! The CA of a cluster: a Secret in the control plane's own namespace, which the first replica makes and all share. So there is
//! one issuing key without a leader.
//!
//! Its keys are those of a `kubernetes.io/tls` Secret as cert-manager writes it, too: `tls.crt` (the issuer, then what stands
//! between it and the root), `tls.key` (the issuer's) and `ca.crt` (the roots that are trusted, one or several). What a rotation keeps stands beside them
//! ([`parts`](crate::issue::trust::parts)). The key of a root that is made here goes into a Secret of its own, which weft may make and never read.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use weft_core::TrustDomain;
use weft_core::backoff::Backoff;
use zeroize::Zeroizing;

use super::{MANAGED_BY, MANAGER, within, won};
use crate::issue::ca::{Ca, Source, make};
use crate::issue::given;
use crate::issue::trust::parts::Parts;
use crate::issue::trust::shared::Stored;
use crate::server::random;

const NEEDS: &str =
    "the CA cannot be read or made, and is tried again; the control plane's Role needs get on this Secret and create on Secrets";

/// Why the Secret cannot be used; the API server being away is none of these, and is waited for.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("Secret {place} lacks {key}, or it is no text: it needs tls.crt, tls.key and ca.crt, as cert-manager writes them")]
    Lacks { place: String, key: &'static str },
    #[error(transparent)]
    Ca(#[from] crate::issue::ca::CaError),
}

/// Opens the CA from its Secret, or makes both. Waits as long as the API server does not answer or does not allow it.
pub async fn open(client: Client, namespace: &str, name: &str, domain: &TrustDomain) -> Result<Ca, SecretError> {
    let api = Api::<Secret>::namespaced(client, namespace);
    let place = format!("{namespace}/{name}");
    let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(15));
    loop {
        match within(api.get_opt(name)).await {
            Ok(Some(secret)) => return opened(&stored(&place, secret)?, domain),
            Ok(None) => {
                let made = make(domain, "")?;
                let secret = secret(name, &Parts::made(format!("Secret {place}"), &made), None);
                match within(async { won(api.create(&PostParams::default(), &secret).await) }).await {
                    Ok(true) => {
                        tracing::info!(secret = place, "a new CA was made");
                        if let Err(why) = keep_root(&api, &format!("{name}-root"), &made.root_key).await {
                            tracing::warn!(
                                "the root's key could not be kept, and is gone: this CA can be replaced, not renewed ({why})"
                            );
                        }
                    }
                    // Another replica was faster: what it made is read now.
                    Ok(false) => continue,
                    Err(why) => tracing::warn!(secret = place, "{NEEDS} ({why})"),
                }
            }
            Err(why) => tracing::warn!(secret = place, "{NEEDS} ({why})"),
        }
        tokio::time::sleep(backoff.next_wait(random()).max(Duration::from_millis(50))).await;
    }
}

/// The CA as the Secret has it: one that weft has made may be in the middle of a rotation.
fn opened(stored: &Stored, domain: &TrustDomain) -> Result<Ca, SecretError> {
    let given = stored.parts.given()?;
    if !stored.ours || !stored.parts.is_one_root() {
        return Ok(Ca::open(domain.clone(), &Source::Text(&given))?);
    }
    // What it signs must be believed, whosever it is.
    given::standing(domain, &given)?;
    Ok(Ca::open(domain.clone(), &Source::Shared(&stored.parts.roots()?))?)
}

/// The CA's Secret as it was read.
pub fn stored(place: &str, secret: Secret) -> Result<Stored, SecretError> {
    let ours = secret.metadata.labels.as_ref().and_then(|l| l.get(MANAGED_BY)).is_some_and(|v| v == MANAGER);
    let version = secret.metadata.resource_version.unwrap_or_default();
    let texts = secret.data.unwrap_or_default().into_iter();
    let texts: BTreeMap<_, _> =
        texts.filter_map(|(key, bytes)| Some((key, Zeroizing::new(String::from_utf8(bytes.0).ok()?)))).collect();
    for key in ["tls.crt", "ca.crt", "tls.key"] {
        if texts.get(key).is_none_or(|text| text.is_empty()) {
            return Err(SecretError::Lacks { place: place.to_owned(), key });
        }
    }
    Ok(Stored { parts: Parts { place: format!("Secret {place}"), texts }, version, ours })
}

/// The CA's Secret as it is to be written: in place of that of `version`, or as a new one.
pub fn secret(name: &str, parts: &Parts, version: Option<&str>) -> Secret {
    let texts = parts.texts.iter().map(|(key, text)| (key.clone(), ByteString(text.as_bytes().to_vec())));
    let mut secret = of(name, "kubernetes.io/tls", texts.collect());
    secret.metadata.resource_version = version.map(str::to_owned);
    secret
}

/// Puts a root's key where its owner finds it, for whoever renews the issuer by hand.
pub async fn keep_root(api: &Api<Secret>, name: &str, root_key: &str) -> Result<(), String> {
    let key = ByteString(root_key.as_bytes().to_vec());
    let secret = of(name, "Opaque", [("root.key".to_owned(), key)].into());
    within(async { won(api.create(&PostParams::default(), &secret).await) }).await.map(drop)
}

fn of(name: &str, kind: &str, data: BTreeMap<String, ByteString>) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some([(MANAGED_BY.to_owned(), MANAGER.to_owned())].into()),
            ..ObjectMeta::default()
        },
        type_: Some(kind.into()),
        data: Some(data),
        ..Secret::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_read_again_and_so_is_what_cert_manager_writes() {
        let domain: TrustDomain = "cluster.local".parse().expect("valid");
        let made = make(&domain, "").expect("made");
        let made = secret("weft-ca", &Parts::made("a/b".into(), &made), Some("7"));
        let ca = |secret: Secret| opened(&stored("a/b", secret).expect("whole"), &domain);
        let whole = stored("a/b", made.clone()).expect("whole");
        assert_eq!((whole.ours, whole.version.as_str()), (true, "7"));
        let ours = ca(made.clone()).expect("good");
        // cert-manager's chain ends before the root.
        let mut theirs = made;
        theirs.metadata.labels = None;
        assert!(!stored("a/b", theirs.clone()).expect("whole").ours);
        let data = theirs.data.as_mut().expect("there");
        let root = data["ca.crt"].0.clone();
        let whole = data["tls.crt"].0.clone();
        data.insert("tls.crt".into(), ByteString(whole[..whole.len() - root.len()].to_vec()));
        assert_eq!(ca(theirs).expect("good").anchor_hash(), ours.anchor_hash());
    }

    #[test]
    fn a_secret_that_lacks_a_part_says_which() {
        let domain: TrustDomain = "cluster.local".parse().expect("valid");
        let made = Parts::made("a/b".into(), &make(&domain, "").expect("made"));
        let mut secret = secret("weft-ca", &made, None);
        secret.data.as_mut().expect("there").remove("ca.crt");
        let e = stored("weft-system/weft-ca", secret).err().expect("incomplete");
        assert!(e.to_string().contains("ca.crt") && e.to_string().contains("weft-system/weft-ca"), "{e}");
    }
}
