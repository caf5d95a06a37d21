//! The roots that a state names, wherever they are kept, and what follows from them.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use weft_core::TrustDomain;
use weft_core::hex::hex;
use weft_proto::v1;
use weft_tls::TrustBundle;

use super::super::authority::{self, Authority, Made, Pem};
use super::super::ca::{CaError, Standing};
use super::super::tokens::TokenKeys;
use super::rotation::State;

/// The roots that a state names, each believed by those as well who know the other one alone.
pub struct Roots {
    pub state: State,
    current: Arc<Authority>,
    next: Option<Arc<Authority>>,
}

/// The root that is to follow, as text.
pub struct Following<'a> {
    pub pem: &'a Pem,
    /// Its issuer under the root that it follows, PEM, where there is one.
    pub cross: Option<&'a str>,
    /// The issuer that it follows under it, PEM, where there is one.
    pub back: Option<&'a str>,
}

impl Roots {
    /// Reads them; `place` is where the state stands, for errors.
    ///
    /// # Errors
    ///
    /// Where one is no CA, or not the one that the state names.
    pub fn read(state: State, place: &str, current: &Pem, next: Option<Following<'_>>) -> Result<Self, CaError> {
        let read = |anchor: &str, pem: &Pem| {
            let authority = Authority::read(pem)?;
            if authority.anchor() != anchor {
                let why = format!("it names the root {anchor}, and {} holds {}", pem.place, authority.anchor());
                return Err(CaError::State { place: place.to_owned(), why });
            }
            Ok(authority)
        };
        let current = read(&state.current, current)?;
        let (named, following) = match (&state.next, next) {
            (Some(named), Some(following)) => (named, following),
            (None, _) => return Ok(Self { state, current: Arc::new(current), next: None }),
            (Some(named), None) => {
                let why = format!("it names the root {}, which is not there", named.anchor);
                return Err(CaError::State { place: place.to_owned(), why });
            }
        };
        let next = read(&named.anchor, following.pem)?;
        let bad = |why: String| CaError::Pem { place: following.pem.place.clone(), why };
        let certificate = |text: Option<&str>| {
            text.map(|text| CertificateDer::from_pem_slice(text.as_bytes()).map_err(|e| bad(e.to_string()))).transpose()
        };
        let with = |authority: Authority, cross: Option<CertificateDer<'static>>, other: &CertificateDer<'static>| match cross {
            Some(cross) => authority.crossed(cross, other.clone()),
            None => authority,
        };
        let (old_root, new_root) = (current.root().clone(), next.root().clone());
        let current = Arc::new(with(current, certificate(following.back)?, &new_root));
        let next = Arc::new(with(next, certificate(following.cross)?, &old_root));
        Ok(Self { state, current, next: Some(next) })
    }

    /// The roots that are trusted, that which was there first before that which is to follow.
    pub fn authorities(&self) -> impl Iterator<Item = &Arc<Authority>> {
        std::iter::once(&self.current).chain(&self.next)
    }

    /// What follows from them.
    ///
    /// # Errors
    ///
    /// Where an anchor is no certificate.
    pub fn standing(&self, domain: &TrustDomain) -> Result<Standing, CaError> {
        let authority = self.authorities().find(|a| a.anchor() == self.state.issuing()).unwrap_or(&self.current).clone();
        let bundle = TrustBundle::new(domain.clone(), self.authorities().map(|a| a.root().clone()).collect())?;
        let issuing = self
            .state
            .next
            .as_ref()
            .map(|next| v1::Issuing { anchor: authority.anchor().to_owned(), spread_seconds: next.spread_seconds });
        let others = self.authorities().filter(|a| a.anchor() != authority.anchor());
        let others = others.map(|a| a.token_key(domain)).collect::<Result<_, _>>()?;
        let tokens = TokenKeys::new(authority.token_key(domain)?, others);
        let anchors_pem = self.authorities().map(|a| a.anchor_pem()).collect();
        Ok(Standing { authority, bundle: Arc::new(bundle), anchors_pem, issuing, tokens })
    }
}

/// A root that is to follow: its keys, its issuer as it is read, and its hash.
///
/// # Errors
///
/// Where it cannot be made.
pub fn new_root(domain: &TrustDomain) -> Result<(Made, Pem, String), CaError> {
    let mut tag = [0; 3];
    aws_lc_rs::rand::fill(&mut tag).expect("the system's random number generator works");
    let made = authority::make(domain, &hex(&tag))?;
    let place = "the root that was made just now";
    let new = Pem { place: place.into(), chain: made.chain.to_string(), key: made.issuer_key.clone(), anchors: None };
    let anchor = Authority::read(&new)?.anchor().to_owned();
    Ok((made, new, anchor))
}
