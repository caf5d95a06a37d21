//! Tokens of a call that is thought of.

use std::sync::Arc;
use std::time::SystemTime;

use weft_core::jwt::{Bearer, Claim, Issuer, Keys, Token, TokenFault};
use weft_core::traffic::table::RequestFacts;
use weft_proto::v1;
use weft_tls::tokens::{Jwks, Unverified, assume, read_claims};

use super::{Request, Unexplained, question};

/// What the call is said to bear.
pub(super) enum Borne {
    Nothing,
    /// A token as it is sent.
    Token(Vec<u8>),
    /// Claims of one that is assumed to be valid.
    Claims(Claim),
}

impl Borne {
    pub(super) fn of(call: &v1::ExplainedCall) -> Result<Self, Unexplained> {
        match (call.token.trim_ascii(), &call.claims[..]) {
            ([], []) => Ok(Self::Nothing),
            (token, []) => Ok(Self::Token(token.to_vec())),
            ([], claims) => match read_claims(claims) {
                Ok(claims @ Claim::Object(_)) if claims.member("iss").and_then(Claim::as_text).is_some() => {
                    Ok(Self::Claims(claims))
                }
                Ok(_) => Err(question("the claims are no JSON object with an `iss`, which says whose token it is")),
                Err(why) => Err(question(format!("the claims cannot be read: {why}"))),
            },
            _ => Err(question("a token and claims of one are given: give one of them")),
        }
    }
}

/// A request with what it bears, as a pod that knows these issuers sees it.
pub(super) struct Bearing<'a> {
    request: &'a Request,
    issuers: &'a [Arc<Issuer>],
    /// The issuer whose token it is, by its place, and what it is worth.
    found: Option<(usize, Result<Token, TokenFault>)>,
    /// Something that is no token at all.
    broken: Option<TokenFault>,
    /// What was taken for granted.
    pub(super) note: Option<String>,
}

impl<'a> Bearing<'a> {
    pub(super) fn new(request: &'a Request, issuers: &'a [Arc<Issuer>]) -> Self {
        let mut bearing = Self { request, issuers, found: None, broken: None, note: None };
        let of = |name: Option<&str>| issuers.iter().position(|issuer| name == Some(&*issuer.issuer));
        match &request.borne {
            Borne::Nothing => {}
            Borne::Claims(claims) => {
                bearing.note = Some("the token is assumed to be signed, and valid in time".to_owned());
                let at = of(claims.member("iss").and_then(Claim::as_text));
                bearing.found = at.map(|at| (at, assume(claims.clone(), &issuers[at])));
            }
            Borne::Token(token) => match Unverified::read(token) {
                Err(fault) => bearing.broken = Some(fault),
                Ok(token) => {
                    let Some(at) = of(token.issuer()) else { return bearing };
                    let verified = match &issuers[at].keys {
                        Keys::Inline(set) => match Jwks::read(set.as_bytes()) {
                            Ok(keys) => token.verify(&issuers[at], &keys, now()).map(|verified| verified.token),
                            Err(_) => Err(TokenFault::NoKeys(0)),
                        },
                        Keys::Remote(url) => {
                            let note = format!(
                                "the token is assumed to be signed, and valid in time: its issuer's keys are at {url}, and are not fetched here"
                            );
                            bearing.note = Some(note);
                            token.assume(&issuers[at])
                        }
                    };
                    bearing.found = Some((at, verified));
                }
            },
        }
        bearing
    }
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

impl RequestFacts for Bearing<'_> {
    fn method(&self) -> &[u8] {
        self.request.method()
    }
    fn path(&self) -> &[u8] {
        self.request.path()
    }
    fn query(&self) -> Option<&[u8]> {
        self.request.query()
    }
    fn header_values(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        self.request.header_values(name, each);
    }
    fn fields(&self, each: &mut dyn FnMut(&[u8], &[u8])) {
        self.request.fields(each);
    }
    fn token(&self, issuer: &str) -> Bearer<'_> {
        let Some(at) = self.issuers.iter().position(|i| *i.issuer == *issuer) else {
            return Bearer::Invalid(TokenFault::UnknownIssuer);
        };
        match (&self.broken, &self.found, &self.request.borne) {
            (Some(fault), ..) => Bearer::Invalid(*fault),
            (_, Some((of, Ok(token))), _) if *of == at => Bearer::Valid(token),
            (_, Some((of, Err(fault))), _) if *of == at => Bearer::Invalid(*fault),
            (_, _, Borne::Nothing) => Bearer::Absent,
            _ => Bearer::Other,
        }
    }
}
