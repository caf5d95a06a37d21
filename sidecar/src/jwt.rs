//! Tokens of end users: found in a request, verified once, and judged by the same code as everything else that a policy asks.
//!
//! Nothing of a token is ever logged, nor told to anybody but the application.

mod cache;
mod fetch;
mod keys;

use std::rc::Rc;
use std::sync::Arc;

use smallvec::SmallVec;
use weft_core::authorization::is_alike;
use weft_core::jwt::{Bearer, Forward, Issuer, Keys, KeysUrl, Place, TokenFault};
use weft_core::traffic::table::RequestFacts;
use weft_tls::tokens::{Jwks, Unverified, Verified};

use crate::http::RequestHead;
use crate::identity::unix_now;
use crate::worker::Worker;

pub use cache::TokenCache;
pub use fetch::keep;
pub use keys::KeyStore;

/// The issuers whose tokens count for the pod.
#[derive(Default)]
pub struct Issuers {
    list: Vec<Source>,
    /// Every place that one of them has, with those that have it.
    places: Vec<(Place, SmallVec<[usize; 2]>)>,
    strips: bool,
}

impl Issuers {
    /// Whether tokens are looked for in a field of that name.
    pub fn read_from(&self, name: &str) -> bool {
        self.places.iter().any(|(place, _)| place.header.eq_ignore_ascii_case(name))
    }
}

/// An issuer and where its keys are.
struct Source {
    issuer: Arc<Issuer>,
    keys: SourceKeys,
}

enum SourceKeys {
    /// None: they cannot be used, which the control plane should have seen.
    Inline(Option<Jwks>),
    Remote(Arc<str>),
}

impl Issuers {
    pub fn new(list: &[Arc<Issuer>]) -> Self {
        let mut places: Vec<(Place, SmallVec<[usize; 2]>)> = Vec::new();
        for (at, issuer) in list.iter().enumerate() {
            for place in &issuer.places {
                match places.iter_mut().find(|(known, _)| known == place) {
                    Some((_, of)) => of.push(at),
                    None => places.push((place.clone(), SmallVec::from_slice(&[at]))),
                }
            }
        }
        let source = |issuer: &Arc<Issuer>| {
            let keys = match &issuer.keys {
                Keys::Inline(set) => SourceKeys::Inline(Jwks::read(set.as_bytes()).ok()),
                Keys::Remote(url) => SourceKeys::Remote(url.clone()),
            };
            Source { issuer: issuer.clone(), keys }
        };
        let strips = list.iter().any(|issuer| issuer.forward == Forward::Strip);
        Self { list: list.iter().map(source).collect(), places, strips }
    }

    /// Where keys are to be fetched from.
    pub fn remote(&self) -> impl Iterator<Item = &Arc<str>> {
        self.list.iter().filter_map(|s| if let SourceKeys::Remote(url) = &s.keys { Some(url) } else { None })
    }

    fn of(&self, name: &str) -> Option<usize> {
        self.list.iter().position(|s| *s.issuer.issuer == *name)
    }

    /// What a request bears of each issuer.
    fn read(&self, worker: &Worker, head: &RequestHead) -> Vec<State> {
        let mut states = vec![State::Absent; self.list.len()];
        for (place, of) in &self.places {
            let found = match borne(place, head) {
                Borne::Nothing => continue,
                Borne::Several => Err(TokenFault::Several),
                Borne::One(token) => self.look_at(worker, token, of),
            };
            match found {
                Ok(Some((at, state))) => states[at].meet(state),
                Ok(None) => of.iter().for_each(|at| states[*at].meet(State::Other)),
                Err(fault) => of.iter().for_each(|at| states[*at].meet(State::Invalid(fault))),
            }
        }
        states
    }

    /// Whose a token is, of those that may have one at its place, and what it is worth; nothing where it is somebody else's.
    fn look_at(&self, worker: &Worker, token: &[u8], of: &[usize]) -> Result<Option<(usize, State)>, TokenFault> {
        let now = unix_now();
        let generation = (worker.mesh().generation(), worker.shared.keys.generation());
        let id = cache::id(token);
        let mut cache = worker.tokens.borrow_mut();
        if let Some(verified) = cache.find(generation, &id, now) {
            let at = self.of(&verified.token.issuer).filter(|at| of.contains(at));
            return Ok(at.map(|at| (at, State::Valid(verified))));
        }
        let unverified = Unverified::read(token)?;
        let at = unverified.issuer().and_then(|name| self.of(name)).filter(|at| of.contains(at));
        let Some(at) = at else { return Ok(None) };
        Ok(Some((
            at,
            match self.list[at].verify(worker, unverified, now) {
                Ok(verified) => {
                    let verified = Rc::new(verified);
                    cache.keep(generation, id, &verified);
                    State::Valid(verified)
                }
                Err(fault) => State::Invalid(fault),
            },
        )))
    }
}

impl Source {
    fn verify(&self, worker: &Worker, token: Unverified<'_>, now: i64) -> Result<Verified, TokenFault> {
        match &self.keys {
            SourceKeys::Inline(Some(keys)) => token.verify(&self.issuer, keys, now),
            SourceKeys::Inline(None) => Err(TokenFault::NoKeys(0)),
            SourceKeys::Remote(url) => {
                let keys = worker.shared.keys.of(url, now)?;
                let verified = token.verify(&self.issuer, keys.set(), now);
                if matches!(verified, Err(TokenFault::UnknownKey)) {
                    keys.miss();
                }
                verified
            }
        }
    }
}

/// What is known of one issuer's tokens in one request.
#[derive(Clone)]
enum State {
    Absent,
    Other,
    Valid(Rc<Verified>),
    Invalid(TokenFault),
}

impl State {
    /// Something more was found. Of two that could be the issuer's, nobody knows which one the application takes.
    fn meet(&mut self, other: Self) {
        *self = match (std::mem::replace(self, Self::Absent), other) {
            (Self::Absent, other) => other,
            (state, Self::Absent | Self::Other) => state,
            (Self::Other, other) => other,
            (Self::Valid(_) | Self::Invalid(_), Self::Valid(_) | Self::Invalid(_)) => Self::Invalid(TokenFault::Several),
        }
    }
}

enum Borne<'a> {
    Nothing,
    One(&'a [u8]),
    /// More than one field has the name, or one has it in a spelling that some readers take for the same.
    Several,
}

fn borne<'a>(place: &Place, head: &'a RequestHead) -> Borne<'a> {
    let (mut fields, mut found) = (0, None);
    for (_, name, value) in head.fields.iter() {
        if !is_alike(name, place.header.as_bytes()) {
            continue;
        }
        fields += 1;
        let is_exact = name.eq_ignore_ascii_case(place.header.as_bytes());
        if let Some(token) = behind(place, value) {
            // A list of several credentials, of which a reader may take any.
            let is_list = token.contains(&b',');
            found = Some((token, is_exact && !is_list));
        }
    }
    match found {
        None => Borne::Nothing,
        Some((token, true)) if fields == 1 => Borne::One(token),
        Some(_) => Borne::Several,
    }
}

/// What stands behind the prefix. A scheme is in any case, with one space or more behind it (RFC 9110, section 11.4).
fn behind<'a>(place: &Place, value: &'a [u8]) -> Option<&'a [u8]> {
    let prefix = place.prefix.as_bytes();
    if &*place.header != "authorization" {
        return value.strip_prefix(prefix);
    }
    let scheme = prefix.trim_ascii_end();
    let rest = value.get(..scheme.len()).filter(|v| v.eq_ignore_ascii_case(scheme)).map(|_| &value[scheme.len()..])?;
    let is_whole = scheme.is_empty() || rest.is_empty() || rest.first().is_some_and(u8::is_ascii_whitespace);
    is_whole.then(|| rest.trim_ascii_start())
}

/// A request, with what it bears.
struct Bearing<'a> {
    head: &'a RequestHead,
    issuers: &'a Issuers,
    states: Vec<State>,
}

impl RequestFacts for Bearing<'_> {
    fn method(&self) -> &[u8] {
        RequestFacts::method(self.head)
    }

    fn path(&self) -> &[u8] {
        self.head.path()
    }

    fn query(&self) -> Option<&[u8]> {
        self.head.query()
    }

    fn header_values(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        RequestFacts::header_values(self.head, name, each);
    }

    fn fields(&self, each: &mut dyn FnMut(&[u8], &[u8])) {
        RequestFacts::fields(self.head, each);
    }

    fn token(&self, issuer: &str) -> Bearer<'_> {
        match self.issuers.of(issuer).map(|at| &self.states[at]) {
            None => Bearer::Invalid(TokenFault::UnknownIssuer),
            Some(State::Absent) => Bearer::Absent,
            Some(State::Other) => Bearer::Other,
            Some(State::Valid(verified)) => Bearer::Valid(&verified.token),
            Some(State::Invalid(fault)) => Bearer::Invalid(*fault),
        }
    }
}

/// Judges a request with the tokens that it bears.
pub fn with_tokens<T>(worker: &Worker, head: &RequestHead, judge: impl FnOnce(&dyn RequestFacts) -> T) -> T {
    let policy = worker.mesh().inbound.load();
    let none = Issuers::default();
    let issuers = policy.as_ref().map_or(&none, |policy| &policy.issuers);
    let states = issuers.read(worker, head);
    judge(&Bearing { head, issuers, states })
}

/// The head without the tokens that the application is not to see; none where there are none.
pub fn stripped(worker: &Worker, head: &RequestHead) -> Option<Box<RequestHead>> {
    let policy = worker.mesh().inbound.load();
    let issuers = &policy.as_ref().filter(|policy| policy.issuers.strips)?.issuers;
    let states = issuers.read(worker, head);
    let bears = |at: &usize| matches!(states[*at], State::Valid(_) | State::Invalid(_));
    let strips = |at: &usize| issuers.list[*at].issuer.forward == Forward::Strip;
    let hidden = issuers.places.iter().filter(|(_, of)| of.iter().any(|at| strips(at) && bears(at)));
    let hidden: SmallVec<[&Place; 2]> = hidden.map(|(place, _)| place).collect();
    if hidden.is_empty() {
        return None;
    }
    let mut head = Box::new(head.clone());
    head.fields.retain(|_, name, value| {
        !hidden.iter().any(|place| is_alike(name, place.header.as_bytes()) && behind(place, value).is_some())
    });
    Some(head)
}

/// The URL, which the control plane has read before.
fn url(text: &str) -> Result<KeysUrl, String> {
    text.parse().map_err(|e: weft_core::authorization::policy::InvalidClause| e.to_string())
}

#[cfg(test)]
mod tests;
