//! `FederatedTrustDomain` and `IdentityDenial` (`weft.dev/v1alpha1`): whose identities are believed, and whose are not.

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;
use weft_core::service::ObjectRef;
use weft_core::{SpiffeId, TrustDomain};
use weft_tls::{TrustBundle, serial};

use super::Moment;

/// Anchors of one foreign domain.
const MAX_ANCHORS: usize = 16;
/// The longest bundle, in bytes.
const MAX_BUNDLE: usize = 64 * 1024;
/// Entries of one denial.
const MAX_ENTRIES: usize = 10_000;
/// Characters of a reason.
pub const MAX_REASON: usize = 300;
/// Faults of one denial that are told of one by one.
const MAX_TOLD: usize = 10;

/// A foreign trust domain whose identities are believed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FederationObject {
    pub id: ObjectRef,
    pub domain: TrustDomain,
    /// 1 to 16.
    pub anchors: Vec<CertificateDer<'static>>,
}

/// Identities and certificates that are refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DenialObject {
    pub id: ObjectRef,
    pub identities: Vec<SpiffeId>,
    /// As [`weft_tls::serial`] gives them.
    pub serials: Vec<String>,
    pub reason: String,
    /// Seconds since the Unix epoch; none: for ever.
    pub expires: Option<i64>,
    /// What is wrong with entries that are not among these, and with the reason; 11 at most. A slip in one entry must not let those in that the
    /// others name.
    pub unread: Vec<Wrong>,
}

/// What is wrong: a field of `spec`, and why.
pub type Wrong = (String, String);

/// `spec` of a `FederatedTrustDomain`. A field that is not known is an error.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FederationSpec {
    trust_domain: String,
    /// PEM.
    bundle: String,
}

/// `spec` of an `IdentityDenial`. A field that is not known is an error.
#[derive(Deserialize, Clone, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct DenialSpec {
    #[serde(default)]
    identities: Vec<String>,
    #[serde(default)]
    serials: Vec<String>,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    expires: Option<Moment>,
}

#[expect(clippy::needless_pass_by_value, reason = "what is wrong comes as an error or as a text")]
fn wrong(field: impl Into<String>, why: impl ToString) -> Wrong {
    (field.into(), why.to_string())
}

impl FederationSpec {
    /// # Errors
    ///
    /// Where the name is none, or the bundle holds no certificates, too many, or something that cannot be an anchor.
    pub fn read(self, id: ObjectRef) -> Result<FederationObject, Wrong> {
        let domain: TrustDomain = self.trust_domain.parse().map_err(|e| wrong("trustDomain", e))?;
        if self.bundle.len() > MAX_BUNDLE {
            return Err(wrong("bundle", format!("{} bytes; at most {MAX_BUNDLE} are read", self.bundle.len())));
        }
        let anchors = CertificateDer::pem_slice_iter(self.bundle.as_bytes()).collect::<Result<Vec<_>, _>>();
        let anchors = anchors.map_err(|e| wrong("bundle", format!("it is no PEM: {e}")))?;
        if anchors.is_empty() || anchors.len() > MAX_ANCHORS {
            return Err(wrong("bundle", format!("it holds {} certificates where 1 to {MAX_ANCHORS} are read", anchors.len())));
        }
        TrustBundle::new(domain.clone(), anchors.clone()).map_err(|e| wrong("bundle", e))?;
        Ok(FederationObject { id, domain, anchors })
    }
}

impl DenialSpec {
    /// Entries that cannot be denied are left out, and told of in `unread`: neither identity nor serial number, or a control plane's identity.
    ///
    /// # Errors
    ///
    /// Where there are no entries, or too many.
    pub fn read(self, id: ObjectRef) -> Result<DenialObject, Wrong> {
        let count = self.identities.len() + self.serials.len();
        if count == 0 || count > MAX_ENTRIES {
            return Err(wrong(
                "identities",
                format!("{count} identities and serials; 1 to {MAX_ENTRIES} are read in one object"),
            ));
        }
        let mut unread = Vec::new();
        let identities = readable("identities", &self.identities, deniable, &mut unread);
        let serials = readable("serials", &self.serials, |text| serial(text).map_err(|e| e.to_string()), &mut unread);
        let mut reason = self.reason;
        if let Some((end, _)) = reason.char_indices().nth(MAX_REASON) {
            reason.truncate(end);
            unread.push(wrong("reason", format!("it is longer than {MAX_REASON} characters, and cut")));
        }
        if unread.len() > MAX_TOLD {
            let more = unread.len() - MAX_TOLD;
            unread.truncate(MAX_TOLD);
            unread.push(wrong("identities", format!("{more} more entries, of these and of serials, cannot be read")));
        }
        Ok(DenialObject { id, identities, serials, reason, expires: self.expires.map(|m| m.0), unread })
    }
}

fn readable<T>(field: &str, texts: &[String], read: impl Fn(&str) -> Result<T, String>, unread: &mut Vec<Wrong>) -> Vec<T> {
    let mut good = Vec::with_capacity(texts.len());
    for (i, text) in texts.iter().enumerate() {
        match read(text) {
            Ok(entry) => good.push(entry),
            Err(why) => unread.push(wrong(format!("{field}[{i}]"), why)),
        }
    }
    good
}

/// An identity that may be denied: without the control plane's, sidecars would hear of nothing any more, the end of the denial included.
///
/// # Errors
///
/// Where it is none.
pub fn deniable(text: &str) -> Result<SpiffeId, String> {
    let id: SpiffeId = text.parse().map_err(|e: weft_core::identity::InvalidName| e.to_string())?;
    if id.is_control_plane() {
        return Err(format!("{id} is a control plane's: without it no sidecar would hear of anything any more"));
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> ObjectRef {
        "weft-system/x".parse().expect("valid")
    }

    #[test]
    fn what_cannot_be_a_denial_says_where_by_table() {
        let good = r#"{"identities": ["spiffe://cluster.local/ns/shop/sa/web"], "serials": ["00:AB"], "expires": "2026-01-31T12:00:00Z"}"#;
        let read = serde_json::from_str::<DenialSpec>(good).expect("good").read(id()).expect("good");
        assert_eq!((read.serials[0].as_str(), read.expires), ("ab", Some(1_769_860_800)));
        assert_eq!(read.unread, []);
        let (at, why) = serde_json::from_str::<DenialSpec>("{}").expect("it has the shape").read(id()).expect_err("nobody");
        assert_eq!(at, "identities", "{why}");
        // The entries beside a bad one are in force.
        let long = format!(r#"{{"serials": ["1"], "reason": "{}"}}"#, "ü".repeat(MAX_REASON + 1));
        for (spec, fields, in_force) in [
            (r#"{"identities": ["web"]}"#, &["identities[0]"][..], 0),
            (r#"{"identities": ["spiffe://cluster.local/ns/weft-system/sa/weft-control-plane"]}"#, &["identities[0]"], 0),
            (
                r#"{"identities": ["spiffe://cluster.local/ns/shop/sa/web", ""], "serials": ["1", "x"]}"#,
                &["identities[1]", "serials[1]"],
                2,
            ),
            (&long, &["reason"], 1),
        ] {
            let read = serde_json::from_str::<DenialSpec>(spec).expect("it has the shape").read(id()).expect(spec);
            assert_eq!(read.unread.iter().map(|(field, _)| field.as_str()).collect::<Vec<_>>(), fields);
            assert_eq!(read.identities.len() + read.serials.len(), in_force, "{spec}");
            assert!(read.reason.chars().count() <= MAX_REASON);
        }
        let many = DenialSpec { identities: vec![], serials: vec!["x".into(); 500], reason: String::new(), expires: None };
        let told = many.read(id()).expect("it can be read").unread;
        assert_eq!(told.len(), MAX_TOLD + 1, "{told:?}");
        assert!(serde_json::from_str::<DenialSpec>(r#"{"identitys": []}"#).is_err(), "a misspelt field would deny nobody");
    }

    #[test]
    fn what_cannot_be_a_foreign_domain_says_where_by_table() {
        let spec = |domain: &str, bundle: &str| FederationSpec { trust_domain: domain.into(), bundle: bundle.into() };
        let made = crate::issue::ca::make(&"east.example".parse().expect("valid"), "").expect("made");
        assert_eq!(spec("east.example", &made.chain).read(id()).expect("good").anchors.len(), 2);
        let junk = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (given, field) in [
            (spec("East", &made.chain), "trustDomain"),
            (spec("east.example", ""), "bundle"),
            (spec("east.example", junk), "bundle"),
            (spec("east.example", &made.chain.repeat(9)), "bundle"),
            (spec("east.example", &"x".repeat(MAX_BUNDLE + 1)), "bundle"),
        ] {
            assert_eq!(given.read(id()).expect_err(field).0, field);
        }
    }
}
