//! Whom nobody is to believe though its certificate is good, and which foreign domains are believed: what manifests say, and what an operator said to this
//! control plane, which is kept in a file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use weft_core::service::ObjectRef;
use weft_core::wellknown::{BACKDATE_SECS, CLOCK_SKEW_SECS, LEAF_LIFETIME_SECS};
use weft_core::{SpiffeId, TrustDomain};
use weft_tls::{Denied, serial};

use super::write_private;
use crate::objects::trust::{DenialObject, MAX_REASON, deniable};
use crate::server::unix_now;

/// Entries that sidecars are sent.
pub const MOST: usize = 10_000;

/// Why a denial cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum DenyError {
    #[error(
        "this control plane keeps no deny list of its own, since what it knows is the cluster's: apply an IdentityDenial, which `weft trust deny add \
         --manifest` prints"
    )]
    NotKept,
    #[error("{text:?} can't be denied: {why}")]
    Subject { text: String, why: String },
    #[error("the reason is longer than {MAX_REASON} characters")]
    Reason,
    #[error("{0} s since the Unix epoch are over already")]
    Past(i64),
    #[error(
        "there would be {0} entries; at most {MOST} are sent to sidecars: let certificates expire, or deny identities instead of serials"
    )]
    Many(usize),
    #[error("{0} is not on this control plane's own list: what an IdentityDenial says is taken back there")]
    NotThere(String),
    #[error("nothing was changed: {path}: {why}")]
    Io { path: PathBuf, why: std::io::Error },
    #[error("{path} is no deny list: {why}: put it back as it was")]
    Damaged { path: PathBuf, why: String },
}

/// What is denied.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Subject {
    Identity(SpiffeId),
    /// As [`weft_tls::serial`] gives it.
    Serial(String),
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Identity(id) => write!(f, "{id}"),
            Self::Serial(serial) => f.write_str(serial),
        }
    }
}

impl std::str::FromStr for Subject {
    type Err = DenyError;
    fn from_str(text: &str) -> Result<Self, DenyError> {
        let read = if text.contains('/') {
            deniable(text).map(Self::Identity)
        } else {
            serial(text).map(Self::Serial).map_err(|e| e.to_string())
        };
        read.map_err(|why| DenyError::Subject { text: text.chars().take(100).collect(), why })
    }
}

/// Why and until when.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Term {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Seconds since the Unix epoch; none: for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<i64>,
}

impl Term {
    fn holds(&self, now: i64) -> bool {
        self.expires.is_none_or(|at| now < at)
    }
}

/// What manifests say.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct Said {
    pub foreign: BTreeMap<TrustDomain, Vec<CertificateDer<'static>>>,
    /// In order of their names.
    pub denials: Vec<Arc<DenialObject>>,
}

/// One entry, and who made it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    pub subject: Subject,
    pub term: Term,
    /// The `IdentityDenial`; none: this control plane's own list.
    pub source: Option<ObjectRef>,
}

/// What is in force.
#[derive(Default, Debug)]
pub struct Effective {
    pub foreign: BTreeMap<TrustDomain, Vec<CertificateDer<'static>>>,
    pub denied: Arc<Denied>,
    pub entries: Vec<Entry>,
    /// Entries that are not in force, because there are too many.
    pub beyond: usize,
}

/// The deny list and the foreign domains.
pub struct Denials {
    inner: Mutex<Inner>,
    effective: watch::Sender<Arc<Effective>>,
}

#[derive(Default)]
struct Inner {
    /// None where nothing is kept.
    path: Option<PathBuf>,
    kept: BTreeMap<Subject, Term>,
    said: Said,
}

impl Default for Denials {
    fn default() -> Self {
        Self { inner: Mutex::default(), effective: watch::Sender::new(Arc::default()) }
    }
}

impl Denials {
    /// Keeps what operators say in a file, and reads what is there.
    ///
    /// # Errors
    ///
    /// Where it cannot be read: who was denied must not be let in because of that.
    pub fn keep_in(&self, path: &Path) -> Result<(), DenyError> {
        let damaged = |why: String| DenyError::Damaged { path: path.to_owned(), why };
        let kept: BTreeMap<String, Term> = match std::fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| damaged(e.to_string()))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(why) => return Err(DenyError::Io { path: path.to_owned(), why }),
        };
        let kept = kept.into_iter().map(|(subject, term)| Ok((subject.parse()?, term)));
        let kept = kept.collect::<Result<_, DenyError>>().map_err(|e| damaged(e.to_string()))?;
        let mut inner = self.lock();
        (inner.path, inner.kept) = (Some(path.to_owned()), kept);
        self.refresh(&inner, unix_now());
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing that holds the lock can leave it half changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is in force.
    pub fn now(&self) -> Arc<Effective> {
        self.effective.borrow().clone()
    }

    /// What is in force, now and whenever it is another.
    pub fn follow(&self) -> watch::Receiver<Arc<Effective>> {
        self.effective.subscribe()
    }

    /// Takes over what manifests say.
    pub fn says(&self, said: Said) {
        let mut inner = self.lock();
        if inner.said != said {
            inner.said = said;
            self.refresh(&inner, unix_now());
        }
    }

    /// Denies, durably; `until` is in seconds since the Unix epoch, 0 for ever. Where no other domain is believed, a serial number is denied
    /// for as long as its certificate can be good, at most.
    ///
    /// # Errors
    ///
    /// Where something cannot be denied, there are too many entries, or the disk is at fault. Then nothing changes.
    pub fn deny(&self, subjects: &[String], reason: &str, until: i64, now: i64) -> Result<(), DenyError> {
        if reason.chars().count() > MAX_REASON {
            return Err(DenyError::Reason);
        }
        if until != 0 && until <= now {
            return Err(DenyError::Past(until));
        }
        // Of another domain, nobody here knows how long its certificates last.
        let is_alone = self.now().foreign.is_empty();
        self.change(|kept, more| {
            for text in subjects {
                let subject: Subject = text.parse()?;
                let life = LEAF_LIFETIME_SECS + BACKDATE_SECS + CLOCK_SKEW_SECS;
                let expires = match (&subject, until) {
                    (Subject::Serial(_), 0) if is_alone => Some(now + life),
                    (_, 0) => None,
                    (_, until) => Some(until),
                };
                kept.insert(subject, Term { reason: reason.to_owned(), expires });
            }
            kept.retain(|_, term| term.holds(now));
            let count = kept.len() + more;
            if count > MOST { Err(DenyError::Many(count)) } else { Ok(()) }
        })
    }

    /// Takes entries off this control plane's own list.
    ///
    /// # Errors
    ///
    /// Where one is not there, or the disk is at fault. Then nothing changes.
    pub fn permit(&self, subjects: &[String]) -> Result<(), DenyError> {
        self.change(|kept, _| {
            for text in subjects {
                let subject: Subject = text.parse()?;
                kept.remove(&subject).ok_or_else(|| DenyError::NotThere(subject.to_string()))?;
            }
            Ok(())
        })
    }

    /// On disk, then in force.
    fn change(&self, change: impl FnOnce(&mut BTreeMap<Subject, Term>, usize) -> Result<(), DenyError>) -> Result<(), DenyError> {
        let mut inner = self.lock();
        let path = inner.path.clone().ok_or(DenyError::NotKept)?;
        let said = inner.said.denials.iter().map(|d| d.identities.len() + d.serials.len()).sum();
        let mut kept = inner.kept.clone();
        change(&mut kept, said)?;
        let text: BTreeMap<String, &Term> = kept.iter().map(|(subject, term)| (subject.to_string(), term)).collect();
        let io = |why: std::io::Error| DenyError::Io { path: path.clone(), why };
        let text = serde_json::to_vec_pretty(&text).map_err(|e| io(e.into()))?;
        write_private(&path, &text).map_err(io)?;
        inner.kept = kept;
        self.refresh(&inner, unix_now());
        Ok(())
    }

    /// Has entries fall out whose time is over.
    pub fn expire(&self, now: i64) {
        let inner = self.lock();
        // The clock may have jumped, and come back: what fell out then is there again.
        let own = inner.kept.values().filter(|term| term.holds(now)).count();
        let holds = |denial: &&Arc<DenialObject>| denial.expires.is_none_or(|end| end > now);
        let said = inner.said.denials.iter().filter(holds).map(|d| d.identities.len() + d.serials.len()).sum::<usize>();
        let before = self.now();
        if before.entries.len() + before.beyond != own + said || before.entries.iter().any(|e| !e.term.holds(now)) {
            self.refresh(&inner, now);
        }
    }

    fn refresh(&self, inner: &Inner, now: i64) {
        let own = inner.kept.iter().map(|(subject, term)| Entry { subject: subject.clone(), term: term.clone(), source: None });
        let said = inner.said.denials.iter().flat_map(|denial| {
            let term = Term { reason: denial.reason.clone(), expires: denial.expires };
            let identities = denial.identities.iter().cloned().map(Subject::Identity);
            let serials = denial.serials.iter().cloned().map(Subject::Serial);
            identities.chain(serials).map(move |subject| Entry { subject, term: term.clone(), source: Some(denial.id.clone()) })
        });
        let mut entries: Vec<Entry> = own.chain(said).filter(|e| e.term.holds(now)).collect();
        let beyond = entries.len().saturating_sub(MOST);
        entries.truncate(MOST);
        let (mut identities, mut serials) = (Vec::new(), Vec::new());
        for entry in &entries {
            match &entry.subject {
                Subject::Identity(id) => identities.push(id.clone()),
                Subject::Serial(serial) => serials.push(serial.clone()),
            }
        }
        let denied = Arc::new(Denied::new(identities, serials));
        if beyond > 0 {
            tracing::error!(beyond, "there are more denials than the {MOST} that sidecars are sent, and some have no effect");
        }
        self.effective.send_replace(Arc::new(Effective { foreign: inner.said.foreign.clone(), denied, entries, beyond }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

    fn denies(denials: &Denials, text: &str) -> bool {
        let subject: Subject = text.parse().expect("good");
        denials.now().entries.iter().any(|e| e.subject == subject)
    }

    #[test]
    fn what_an_operator_says_is_on_disk_before_it_is_in_force() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("denied.json");
        let denials = Denials::default();
        assert!(matches!(denials.deny(&[WEB.into()], "", 0, 1), Err(DenyError::NotKept)));
        denials.keep_in(&path).expect("nothing is there");
        let now = unix_now();
        denials.deny(&[WEB.into(), "00:AB".into()], "stolen", 0, now).expect("good");
        assert!(denials.now().denied.has_identity(&WEB.parse().expect("valid")) && denies(&denials, "ab"));
        assert!(matches!(denials.deny(&["web".into()], "", 0, now), Err(DenyError::Subject { .. })));
        assert!(matches!(denials.deny(&[WEB.into()], "", now, now), Err(DenyError::Past(_))));

        let again = Denials::default();
        again.keep_in(&path).expect("good");
        assert_eq!(again.now().entries, denials.now().entries);
        // A serial falls out when its certificate can be good no more; an identity stays.
        again.expire(now + LEAF_LIFETIME_SECS);
        assert!(denies(&again, "ab"));
        again.expire(now + LEAF_LIFETIME_SECS + 1_000);
        assert!(!denies(&again, "ab") && denies(&again, WEB));

        again.permit(&[WEB.into()]).expect("it is there");
        assert!(!denies(&again, WEB));
        assert!(matches!(again.permit(&[WEB.into()]), Err(DenyError::NotThere(_))));
        std::fs::write(&path, "{").expect("written");
        assert!(matches!(Denials::default().keep_in(&path), Err(DenyError::Damaged { .. })), "nobody is let in by a broken file");
    }

    #[test]
    fn manifests_and_operators_add_up_and_there_are_bounds() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let denials = Denials::default();
        denials.keep_in(&dir.path().join("denied.json")).expect("nothing is there");
        let said = |serials: usize| Said {
            denials: vec![Arc::new(DenialObject {
                id: "weft-system/stolen".parse().expect("valid"),
                identities: vec![],
                serials: (0..serials).map(|i| format!("{:x}", i + 1)).collect(),
                reason: String::new(),
                expires: None,
                unread: vec![],
            })],
            ..Said::default()
        };
        denials.says(said(2));
        denials.deny(&[WEB.into()], "", 0, unix_now()).expect("good");
        assert_eq!((denials.now().denied.len(), denials.now().beyond), (3, 0));
        denials.says(said(MOST));
        assert_eq!((denials.now().denied.len(), denials.now().beyond), (MOST, 1));
        assert!(denies(&denials, WEB), "what an operator said comes first");
        assert!(matches!(denials.deny(&["abcdef".into()], "", 0, unix_now()), Err(DenyError::Many(_))));
        denials.says(Said::default());
        assert_eq!(denials.now().denied.len(), 1);
    }
}
