//! A route's rules, from its author's spelling to the nouns of `weft_core`. What cannot be honoured is refused with its field; a reference that leads
//! nowhere is no refusal, but answered with an error where it is used.

mod filters;
mod matches;

use std::sync::Arc;

use weft_core::service::ObjectRef;
use weft_core::traffic::route::{Backend, BackendTarget, Match, PathMatch, Retry, Rule, Session, Timeouts};

use crate::model::status::Refusal;
use crate::objects::traffic::{self, BackendRef, RouteObject, Rules};

/// A word of a choice, or another value, that is not known.
pub(super) const UNSUPPORTED: &str = "UnsupportedValue";
/// Filters that must not stand in one rule.
pub(super) const INCOMPATIBLE: &str = "IncompatibleFilters";
/// A reference to something that is no Service.
pub(super) const INVALID_KIND: &str = "InvalidKind";

/// Repetitions of a rule whose author names none.
const ATTEMPTS: u32 = 1;
/// The most that are taken.
const MAX_ATTEMPTS: u32 = 100;
/// What Gateway API takes of weights at most.
const MAX_WEIGHT: u32 = 1_000_000;

/// `"true"`: methods that are not idempotent are repeated as well.
pub const ANNOTATION_ANY_METHOD: &str = "weft.dev/retry-any-method";
/// How often a request is repeated at most where `retry.attempts` does not say it, which a `GRPCRoute` cannot; 1 to 100, default 1.
pub const ANNOTATION_ATTEMPTS: &str = "weft.dev/retry-attempts";
/// gRPC status codes that are repeated, joined by commas: numbers from 1 to 16, or names as `unavailable`.
pub const ANNOTATION_GRPC_CODES: &str = "weft.dev/retry-grpc-codes";

/// Finds what a reference names, or says why it leads nowhere. The field of the refusal is left to the caller.
pub(super) type Resolve<'a> = dyn Fn(&BackendRef) -> Result<(ObjectRef, u16), Refusal> + 'a;

/// Reads all rules. What leads nowhere is added to `unresolved`.
pub(super) fn read(route: &RouteObject, resolve: &Resolve<'_>, unresolved: &mut Vec<Refusal>) -> Result<Vec<Rule>, Refusal> {
    let retries = Retries::read(route)?;
    let mut reader = Reader { resolve, unresolved, retries };
    let rules: Vec<Rule> = match &route.rules {
        Rules::Http(rules) => reader.all(rules, matches::http)?,
        Rules::Grpc(rules) => reader.all(rules, matches::grpc)?,
        Rules::Opaque(rules) => reader.all(rules, |_, _| Ok(Match::default()))?,
    };
    if rules.is_empty() {
        return Err(Refusal::new(UNSUPPORTED, "spec.rules", "missing: a route needs a rule"));
    }
    for (i, host) in route.hostnames.iter().enumerate() {
        matches::hostname(host, true, &format!("spec.hostnames[{i}]"))?;
    }
    Ok(rules)
}

/// What the annotations say.
struct Retries {
    any_method: bool,
    attempts: u32,
    grpc_codes: Option<Vec<u8>>,
}

impl Retries {
    fn read(route: &RouteObject) -> Result<Self, Refusal> {
        let field = |name: &str| format!("metadata.annotations[{name:?}]");
        let any_method = match route.annotations.get(ANNOTATION_ANY_METHOD).map(String::as_str) {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return Err(Refusal::new(UNSUPPORTED, field(ANNOTATION_ANY_METHOD), "neither \"true\" nor \"false\"")),
        };
        let attempts = route
            .annotations
            .get(ANNOTATION_ATTEMPTS)
            .map_or(Some(ATTEMPTS), |text| text.parse().ok().filter(|n| (1..=MAX_ATTEMPTS).contains(n)));
        let attempts = attempts.ok_or_else(|| {
            Refusal::new(UNSUPPORTED, field(ANNOTATION_ATTEMPTS), format!("no whole number from 1 to {MAX_ATTEMPTS}"))
        })?;
        let codes = route.annotations.get(ANNOTATION_GRPC_CODES).map(|list| {
            let words = list.split(',').map(str::trim).filter(|w| !w.is_empty());
            words.map(|word| grpc_code(word).ok_or(word)).collect::<Result<Vec<u8>, &str>>()
        });
        let grpc_codes = codes.transpose().map_err(|word| {
            let word: String = word.chars().take(40).collect();
            Refusal::new(UNSUPPORTED, field(ANNOTATION_GRPC_CODES), format!("{word:?} is no gRPC status, as 14 or unavailable"))
        })?;
        Ok(Self { any_method, attempts, grpc_codes })
    }

    /// The retry of a rule, which the annotations add to.
    fn of(&self, spec: Option<&traffic::Retry>, field: &str) -> Result<Option<Retry>, Refusal> {
        if spec.is_none() && self.grpc_codes.is_none() {
            return Ok(None);
        }
        let codes = spec.map(|r| r.codes.clone()).unwrap_or_default();
        if let Some(i) = codes.iter().position(|c| !(400..=599).contains(c)) {
            return Err(Refusal::new(UNSUPPORTED, format!("{field}.codes[{i}]"), format!("{} is not from 400 to 599", codes[i])));
        }
        let attempts = spec.and_then(|r| r.attempts).unwrap_or(self.attempts);
        if attempts > MAX_ATTEMPTS {
            return Err(Refusal::new(
                UNSUPPORTED,
                format!("{field}.attempts"),
                format!("{attempts} is more than {MAX_ATTEMPTS}"),
            ));
        }
        Ok(Some(Retry {
            codes,
            grpc_codes: self.grpc_codes.clone().unwrap_or_default(),
            attempts,
            backoff: spec.and_then(|r| r.backoff).map(|t| t.0),
            any_method: self.any_method,
        }))
    }
}

/// Numbers and names of gRPC status codes.
fn grpc_code(word: &str) -> Option<u8> {
    const NAMES: [&str; 16] = [
        "cancelled",
        "unknown",
        "invalid-argument",
        "deadline-exceeded",
        "not-found",
        "already-exists",
        "permission-denied",
        "resource-exhausted",
        "failed-precondition",
        "aborted",
        "out-of-range",
        "unimplemented",
        "internal",
        "unavailable",
        "data-loss",
        "unauthenticated",
    ];
    let plain = word.to_ascii_lowercase().replace('_', "-");
    let named = NAMES.iter().position(|name| *name == plain).map(|i| i as u8 + 1);
    named.or_else(|| word.parse().ok().filter(|code| (1..=16).contains(code)))
}

struct Reader<'a> {
    resolve: &'a Resolve<'a>,
    unresolved: &'a mut Vec<Refusal>,
    retries: Retries,
}

impl Reader<'_> {
    fn all<M: Kind>(
        &mut self,
        rules: &[traffic::Rule<M>],
        read: impl Fn(&M, &str) -> Result<Match, Refusal>,
    ) -> Result<Vec<Rule>, Refusal> {
        rules.iter().enumerate().map(|(i, rule)| self.rule(rule, &read, &format!("spec.rules[{i}]"))).collect()
    }

    fn rule<M: Kind>(
        &mut self,
        rule: &traffic::Rule<M>,
        read: impl Fn(&M, &str) -> Result<Match, Refusal>,
        field: &str,
    ) -> Result<Rule, Refusal> {
        let mut matches = Vec::with_capacity(rule.matches.len().max(1));
        for (i, one) in rule.matches.iter().enumerate() {
            matches.push(read(one, &format!("{field}.matches[{i}]"))?);
        }
        if matches.is_empty() {
            let path = if M::HTTP { PathMatch::Prefix("/".into()) } else { PathMatch::Any };
            matches.push(Match { path, ..Match::default() });
        }
        let inner = format!("{field}.filters");
        let mut lost = Vec::new();
        let filters = self.filters(&rule.filters, M::HTTP, &matches, &inner, &mut lost)?;
        if filters::redirects(&filters) && !rule.backend_refs.is_empty() {
            return Err(Refusal::new(INCOMPATIBLE, inner, "a rule that redirects has no backendRefs"));
        }
        let mut backends = Vec::with_capacity(rule.backend_refs.len());
        for (i, backend) in rule.backend_refs.iter().enumerate() {
            backends.push(self.backend(backend, M::HTTP, &matches, &format!("{field}.backendRefs[{i}]"))?);
        }
        // Whatever the filter would have done must not be left undone: its requests are answered with an error.
        let (filters, backends) = match lost.first() {
            Some(why) => {
                let target = BackendTarget::Unresolved(why.text().into());
                (vec![], vec![Backend { target, weight: 1, filters: vec![] }])
            }
            None => (filters, backends),
        };
        self.unresolved.append(&mut lost);
        Ok(Rule {
            name: rule.name.as_deref().map(Arc::from),
            filters,
            matches,
            backends,
            timeouts: timeouts(rule.timeouts.as_ref(), field)?,
            retry: self.retries.of(rule.retry.as_ref(), &format!("{field}.retry"))?,
            session: session(rule, field)?,
        })
    }

    fn backend(&mut self, backend: &BackendRef, http: bool, matches: &[Match], field: &str) -> Result<Backend, Refusal> {
        let weight = backend.weight.unwrap_or(1);
        if weight > MAX_WEIGHT {
            return Err(Refusal::new(UNSUPPORTED, format!("{field}.weight"), format!("{weight} is more than {MAX_WEIGHT}")));
        }
        let mut lost = Vec::new();
        let mut filters = self.filters(&backend.filters, http, matches, &format!("{field}.filters"), &mut lost)?;
        let mut target = self.target(backend, field);
        if let Some(why) = lost.first() {
            target = BackendTarget::Unresolved(why.text().into());
            filters.clear();
            self.unresolved.append(&mut lost);
        }
        Ok(Backend { target, weight, filters })
    }

    fn target(&mut self, reference: &BackendRef, field: &str) -> BackendTarget {
        match (self.resolve)(reference) {
            Ok((id, port)) => BackendTarget::Service { id, port },
            Err(mut why) => {
                field.clone_into(&mut why.field);
                let text = why.text();
                self.unresolved.push(why);
                BackendTarget::Unresolved(text.into())
            }
        }
    }
}

/// What the matches of a rule are of.
trait Kind {
    const HTTP: bool;
}

impl Kind for traffic::HttpMatch {
    const HTTP: bool = true;
}

impl Kind for traffic::GrpcMatch {
    const HTTP: bool = false;
}

impl Kind for traffic::NoMatch {
    const HTTP: bool = false;
}

fn timeouts(spec: Option<&traffic::Timeouts>, field: &str) -> Result<Timeouts, Refusal> {
    let Some(spec) = spec else { return Ok(Timeouts::default()) };
    let (request, backend_request) = (spec.request.map(|t| t.0), spec.backend_request.map(|t| t.0));
    if let (Some(all), Some(one)) = (request, backend_request)
        && !all.is_zero()
        && one > all
    {
        let field = format!("{field}.timeouts.backendRequest");
        return Err(Refusal::new(UNSUPPORTED, field, "more than timeouts.request, which bounds all attempts together"));
    }
    Ok(Timeouts { request, backend_request })
}

fn session<M>(rule: &traffic::Rule<M>, field: &str) -> Result<Option<Session>, Refusal> {
    let spec = rule.session_persistence.as_ref();
    spec.map(|s| traffic::session(s, &format!("{field}.sessionPersistence")))
        .transpose()
        .map_err(|(field, message)| Refusal::new(UNSUPPORTED, field, message))
}
