//! The CA of a cluster: a Secret in the control plane's own namespace, which the first replica makes and all share. So there is
//! one issuing key without a leader.
//!
//! Its keys are those of a `kubernetes.io/tls` Secret as cert-manager writes it, too: `tls.crt` (the issuer, then what stands
//! between it and the root), `tls.key` (the issuer's) and `ca.crt` (the roots that are trusted, one or several). The key of a root that is made here goes into a Secret of
//! its own, which weft may make and never read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use weft_core::TrustDomain;
use weft_core::backoff::Backoff;
use zeroize::Zeroizing;

use super::{MANAGED_BY, MANAGER, within, won};
use crate::issue::ca::{Ca, Made, Pem, Source, make};
use crate::issue::given;
use crate::server::random;

const NEEDS: &str =
    "the CA cannot be read or made, and is tried again; the control plane's Role needs get on this Secret and create on Secrets";

/// How often the Secret is looked at.
const LOOK: Duration = Duration::from_secs(20);

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
            Ok(Some(secret)) => return Ok(Ca::open(domain.clone(), &Source::Text(&pem(&place, secret)?))?),
            Ok(None) => {
                let made = make(domain, "")?;
                let secret = secret(name, &made);
                match within(async { won(api.create(&PostParams::default(), &secret).await) }).await {
                    Ok(true) => {
                        tracing::info!(secret = place, "a new CA was made");
                        keep_root(&api, name, &made).await;
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

/// Looks at the Secret again and again: an issuer that was renewed, as cert-manager does, and other roots in `ca.crt` are taken over while it
/// serves. What cannot be taken over is told once.
pub async fn follow(client: Client, namespace: String, name: String, ca: Arc<Ca>) {
    let api = Api::<Secret>::namespaced(client, &namespace);
    let place = format!("{namespace}/{name}");
    let mut seen = None;
    loop {
        tokio::time::sleep(LOOK).await;
        let secret = match within(api.get_opt(&name)).await {
            Ok(Some(secret)) => secret,
            // Whoever replaces it may delete it first; and what is in use does not need it.
            Ok(None) => continue,
            Err(why) => {
                tracing::debug!(secret = place, "the CA was not looked at: {why}");
                continue;
            }
        };
        let version = secret.metadata.resource_version.clone();
        // What could not be taken over may be another time: certificates have ended meanwhile.
        if seen == version && ca.problem().is_empty() {
            continue;
        }
        seen = version;
        match pem(&place, secret) {
            Ok(pem) => given::settle(&ca, ca.renew(&pem), true, &pem.place),
            Err(e) => {
                if ca.note_problem(e.to_string()) {
                    tracing::warn!("{e}; what was read before stays in use");
                }
            }
        }
    }
}

fn pem(place: &str, secret: Secret) -> Result<Pem, SecretError> {
    let mut data = secret.data.unwrap_or_default();
    let mut text = |key: &'static str| {
        let bytes = data.remove(key).map(|b| b.0);
        let text = bytes.and_then(|b| String::from_utf8(b).ok()).filter(|t| !t.is_empty());
        text.ok_or_else(|| SecretError::Lacks { place: place.to_owned(), key })
    };
    let (chain, roots, key) = (text("tls.crt")?, text("ca.crt")?, Zeroizing::new(text("tls.key")?));
    Ok(Pem { place: format!("Secret {place}"), chain, key, anchors: Some(roots) })
}

fn secret(name: &str, made: &Made) -> Secret {
    let root = made.chain.rfind("-----BEGIN CERTIFICATE-----").map_or("", |at| &made.chain[at..]);
    let data: BTreeMap<String, ByteString> =
        [("tls.crt", made.chain.as_str()), ("tls.key", made.issuer_key.as_str()), ("ca.crt", root)]
            .map(|(key, text)| (key.to_owned(), ByteString(text.as_bytes().to_vec())))
            .into();
    of(name, "kubernetes.io/tls", data)
}

/// Where the root's key is, for whoever renews the issuer by hand.
async fn keep_root(api: &Api<Secret>, name: &str, made: &Made) {
    let key = ByteString(made.root_key.as_bytes().to_vec());
    let secret = of(&format!("{name}-root"), "Opaque", [("root.key".to_owned(), key)].into());
    if let Err(why) = within(async { won(api.create(&PostParams::default(), &secret).await) }).await {
        tracing::warn!("the root's key could not be kept, and is gone: this CA can be replaced, not renewed ({why})");
    }
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
        let ca = |secret: Secret| Ca::open(domain.clone(), &Source::Text(&pem("a/b", secret).expect("whole")));
        let ours = ca(secret("weft-ca", &made)).expect("good");
        // cert-manager's chain ends before the root.
        let mut theirs = secret("weft-ca", &made);
        let data = theirs.data.as_mut().expect("there");
        let root = data["ca.crt"].0.clone();
        let whole = data["tls.crt"].0.clone();
        data.insert("tls.crt".into(), ByteString(whole[..whole.len() - root.len()].to_vec()));
        assert_eq!(ca(theirs).expect("good").anchor_hash(), ours.anchor_hash());
    }

    #[test]
    fn a_secret_that_lacks_a_part_says_which() {
        let domain: TrustDomain = "cluster.local".parse().expect("valid");
        let mut secret = secret("weft-ca", &make(&domain, "").expect("made"));
        secret.data.as_mut().expect("there").remove("ca.crt");
        let e = pem("weft-system/weft-ca", secret).err().expect("incomplete");
        assert!(e.to_string().contains("ca.crt") && e.to_string().contains("weft-system/weft-ca"), "{e}");
    }
}
