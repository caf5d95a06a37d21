//! The CA as texts by name, as a Secret holds it, and what a rotation makes of them.
//!
//! ```text
//! tls.crt tls.key     the root that issues: its issuer with its chain, and the issuer's key
//! ca.crt              the roots that are trusted, that which was there first before that which is to follow
//! trust.json          which root is in use, which is to follow, and how far that is; without it, the one that issues
//! other.crt other.key the root that does not issue, while there are two
//! cross.pem           the issuer of the root that is to follow under the root that it follows, where there is one
//! back.pem            the issuer that it follows under it
//! ```
//!
//! So at any time the first three are a CA as cert-manager would write it, and an earlier version of weft takes it over as such. All is replaced at once.

use std::collections::BTreeMap;

use weft_core::TrustDomain;
use zeroize::Zeroizing;

use super::super::authority::{self, Authority, Made, Pem, certificates};
use super::super::ca::CaError;
use super::roots::{Following, Roots, new_root};
use super::rotation::State;

const CHAIN: &str = "tls.crt";
const KEY: &str = "tls.key";
const ANCHORS: &str = "ca.crt";
const STATE: &str = "trust.json";
const OTHER_CHAIN: &str = "other.crt";
const OTHER_KEY: &str = "other.key";
const CROSS: &str = "cross.pem";
const BACK: &str = "back.pem";

/// The texts, and where they stand.
#[derive(Clone)]
pub struct Parts {
    /// For errors.
    pub place: String,
    pub texts: BTreeMap<String, Zeroizing<String>>,
}

impl Parts {
    /// A CA that was made.
    pub fn made(place: String, made: &Made) -> Self {
        let root = certificates(&made.chain).last().unwrap_or_default();
        let texts = [(CHAIN, made.chain.clone()), (KEY, made.issuer_key.clone()), (ANCHORS, Zeroizing::new(root))];
        Self { place, texts: texts.map(|(name, text)| (name.to_owned(), text)).into() }
    }

    fn text(&self, name: &str) -> Result<&Zeroizing<String>, CaError> {
        let why = || CaError::State { place: self.place.clone(), why: format!("{name} is not there") };
        self.texts.get(name).ok_or_else(why)
    }

    fn pem(&self, chain: &str, key: &str) -> Result<Pem, CaError> {
        let place = format!("{} ({chain}, {key})", self.place);
        Ok(Pem { place, chain: self.text(chain)?.to_string(), key: self.text(key)?.clone(), anchors: None })
    }

    /// How far a rotation is; none where there was none yet.
    ///
    /// # Errors
    ///
    /// Where that cannot be read.
    pub fn written(&self) -> Result<Option<State>, CaError> {
        let bad = |e: serde_json::Error| CaError::State { place: format!("{} ({STATE})", self.place), why: e.to_string() };
        self.texts.get(STATE).map(|text| serde_json::from_str(text).map_err(bad)).transpose()
    }

    /// Whether these are roots that weft can rotate: one, or those of a rotation. Several roots without a rotation were put there by somebody else.
    pub fn is_one_root(&self) -> bool {
        let anchors = self.texts.get(ANCHORS).map_or(0, |text| certificates(text).count());
        self.texts.contains_key(STATE) || anchors == 1
    }

    /// The roots.
    ///
    /// # Errors
    ///
    /// Where one is no CA, or not the one that the state names.
    pub fn roots(&self) -> Result<Roots, CaError> {
        let issuing = self.issuing()?;
        let state = match self.written()? {
            Some(state) => state,
            None => State::settled(Authority::read(&issuing)?.anchor().to_owned()),
        };
        let Some(next) = &state.next else { return Roots::read(state, &self.place, &issuing, None) };
        let other = self.pem(OTHER_CHAIN, OTHER_KEY)?;
        let (current, next) = if *state.issuing() == next.anchor { (other, issuing) } else { (issuing, other) };
        let certificate = |name: &str| self.texts.get(name).map(|text| text.as_str());
        let following = Following { pem: &next, cross: certificate(CROSS), back: certificate(BACK) };
        Roots::read(state, &self.place, &current, Some(following))
    }

    /// The chain of the root that issues, which may end below it where the roots stand beside it.
    fn issuing(&self) -> Result<Pem, CaError> {
        let mut pem = self.pem(CHAIN, KEY)?;
        let anchors: Vec<String> = self.texts.get(ANCHORS).map(|text| certificates(text).collect()).unwrap_or_default();
        if let [root] = &anchors[..]
            && certificates(&pem.chain).last().as_ref() != Some(root)
        {
            pem.chain.push_str(root);
        }
        Ok(pem)
    }

    /// The same with a new root that is to follow, in the state that `begin` makes of its hash; beside it the new root's own key, which is not
    /// among the parts.
    ///
    /// # Errors
    ///
    /// Where it cannot be made, or the parts are no CA.
    pub fn with_new_root(&self, domain: &TrustDomain) -> Result<(Self, String, Zeroizing<String>), CaError> {
        let (made, new, anchor) = new_root(domain)?;
        let old = self.issuing()?;
        let mut parts = self.clone();
        let mut put = |name: &str, text: Zeroizing<String>| drop(parts.texts.insert(name.to_owned(), text));
        // The old root's key is not here, so that there is no certificate the other way round.
        put(BACK, Zeroizing::new(authority::cross(&old, &new, &made.root_key)?));
        put(OTHER_CHAIN, made.chain.clone());
        put(OTHER_KEY, made.issuer_key.clone());
        parts.texts.remove(CROSS);
        Ok((parts, anchor, made.root_key))
    }

    /// The same in another state: what it does not name goes.
    ///
    /// # Errors
    ///
    /// Where a root is not there that it names.
    pub fn in_state(&self, state: &State) -> Result<Self, CaError> {
        let mut held = vec![self.issuing()?];
        if self.texts.contains_key(OTHER_CHAIN) {
            held.push(self.pem(OTHER_CHAIN, OTHER_KEY)?);
        }
        let of = |anchor: &str| {
            let is_it = |pem: &&Pem| Authority::read(pem).is_ok_and(|a| a.anchor() == anchor);
            let why = || CaError::State { place: self.place.clone(), why: format!("the root {anchor} is not there") };
            held.iter().find(is_it).ok_or_else(why)
        };
        let root = |pem: &Pem| certificates(&pem.chain).last().unwrap_or_default();
        let issuing = of(state.issuing())?;
        let mut anchors = root(of(&state.current)?);
        let mut texts: BTreeMap<String, Zeroizing<String>> = BTreeMap::new();
        let mut put = |name: &str, text: Zeroizing<String>| drop(texts.insert(name.to_owned(), text));
        put(CHAIN, Zeroizing::new(issuing.chain.clone()));
        put(KEY, issuing.key.clone());
        if let Some(next) = &state.next {
            let next = of(&next.anchor)?;
            anchors.push_str(&root(next));
            let other = if std::ptr::eq(next, issuing) { of(&state.current)? } else { next };
            put(OTHER_CHAIN, Zeroizing::new(other.chain.clone()));
            put(OTHER_KEY, other.key.clone());
            for name in [CROSS, BACK] {
                if let Some(text) = self.texts.get(name) {
                    put(name, text.clone());
                }
            }
        }
        put(ANCHORS, Zeroizing::new(anchors));
        let state = serde_json::to_string_pretty(state);
        let state = state.map_err(|e| CaError::State { place: self.place.clone(), why: e.to_string() })?;
        put(STATE, Zeroizing::new(state));
        Ok(Self { place: self.place.clone(), texts })
    }

    /// As a CA that somebody gives.
    ///
    /// # Errors
    ///
    /// Where a part is not there.
    pub fn given(&self) -> Result<Pem, CaError> {
        let (chain, key) = (self.text(CHAIN)?.to_string(), self.text(KEY)?.clone());
        Ok(Pem { place: self.place.clone(), chain, key, anchors: Some(self.text(ANCHORS)?.to_string()) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::authority::make;
    use super::super::super::ca::{Ca, Source};
    use super::super::rotation::Phase;
    use super::*;

    fn domain() -> TrustDomain {
        "cluster.local".parse().expect("valid")
    }

    #[test]
    fn in_every_phase_the_parts_are_a_ca_as_an_earlier_version_reads_it() {
        let made = make(&domain(), "").expect("made");
        let parts = Parts::made("weft-system/weft-ca".into(), &made);
        let settled = parts.roots().expect("good").state;
        let old = settled.current.clone();
        assert!(settled.next.is_none() && parts.is_one_root());
        let (with_new, new, _) = parts.with_new_root(&domain()).expect("made");
        let spreading = settled.begin(new.clone(), 7).expect("nothing is under way");
        let mut reissuing = spreading.clone();
        reissuing.next.as_mut().expect("begun").phase = Phase::Reissuing;
        let mut parts = with_new.in_state(&spreading).expect("whole");
        for (state, issues, trusts) in [
            (&spreading, &old, vec![&old, &new]),
            (&reissuing, &new, vec![&old, &new]),
            (&spreading, &old, vec![&old, &new]),
            (&reissuing, &new, vec![&old, &new]),
            (&State::settled(new.clone()), &new, vec![&new]),
        ] {
            parts = parts.in_state(state).expect("whole");
            let roots = parts.roots().expect("good");
            assert_eq!(roots.state, *state);
            let ours = Ca::open(domain(), &Source::Shared(&roots)).expect("good");
            let theirs = Ca::open(domain(), &Source::Text(&parts.given().expect("whole"))).expect("good");
            for ca in [ours, theirs] {
                let hashes: Vec<String> = ca.now().bundle.hashes(ca.domain()).collect();
                assert_eq!((&ca.anchor_hash(), hashes.iter().collect::<Vec<_>>()), (issues, trusts.clone()));
            }
        }
        assert_eq!(parts.texts.keys().collect::<Vec<_>>(), ["ca.crt", "tls.crt", "tls.key", "trust.json"]);
        assert!(parts.in_state(&State::settled(old)).is_err(), "it is gone");
    }

    #[test]
    fn a_chain_that_ends_below_the_root_is_rotated_too() {
        let made = make(&domain(), "").expect("made");
        let mut parts = Parts::made("here".into(), &made);
        let issuer = certificates(&made.chain).next().expect("a certificate");
        parts.texts.insert(CHAIN.into(), Zeroizing::new(issuer));
        let (with_new, new, _) = parts.with_new_root(&domain()).expect("made");
        let state = parts.roots().expect("good").state.begin(new, 0).expect("settled");
        assert_eq!(with_new.in_state(&state).expect("whole").roots().expect("good").state, state);
    }

    #[test]
    fn a_state_that_cannot_be_read_or_does_not_fit_is_refused() {
        let mut parts = Parts::made("here".into(), &make(&domain(), "").expect("made"));
        parts.texts.insert(STATE.into(), Zeroizing::new("{".into()));
        assert!(parts.roots().is_err());
        let other = serde_json::to_string(&State::settled("0".repeat(64))).expect("text");
        parts.texts.insert(STATE.into(), Zeroizing::new(other));
        assert!(parts.roots().err().expect("another root").to_string().contains("it names the root"));
    }
}
