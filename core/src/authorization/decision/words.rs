//! Clauses in words. What a caller sent is quoted and cut: it may be anything.

use std::fmt::{self, Write};

use super::nearest::judged;
use super::{Failed, Match};
use crate::authorization::clause::{Connection, Facts, Held, Unclear};
use crate::authorization::policy::{Action, Operation, Peer};
use crate::authorization::token::TokenMatch;
use crate::identity::SpiffeId;
use crate::jwt::Bearer;

/// Values that are told of one list.
const MOST: usize = 4;
/// Characters that are told of one value that a caller sent.
const LONGEST: usize = 100;

/// A clause by its name, and what it asks for.
pub(super) type Given = (&'static str, String);

fn list<T: ToString>(values: &[T]) -> String {
    let mut text = values.iter().take(MOST).map(ToString::to_string).collect::<Vec<_>>().join(" or ");
    if values.len() > MOST {
        let _ = write!(text, " or {} more", values.len() - MOST);
    }
    text
}

fn given(all: impl IntoIterator<Item = Given>) -> Vec<Given> {
    all.into_iter().filter(|(_, text)| !text.is_empty()).collect()
}

/// The given clauses of a peer.
pub(super) fn peer(p: &Peer) -> Vec<Given> {
    given([
        ("principals", list(&p.principals)),
        ("notPrincipals", list(&p.not_principals)),
        ("namespaces", list(&p.namespaces)),
        ("notNamespaces", list(&p.not_namespaces)),
        ("serviceAccounts", list(&p.service_accounts)),
        ("notServiceAccounts", list(&p.not_service_accounts)),
        ("ipBlocks", list(&p.ip_blocks)),
        ("notIpBlocks", list(&p.not_ip_blocks)),
        ("unauthenticated", if p.unauthenticated { "true".to_owned() } else { String::new() }),
        ("jwt", p.jwt.as_ref().map(ToString::to_string).unwrap_or_default()),
        ("notJwt", p.not_jwt.as_ref().map(ToString::to_string).unwrap_or_default()),
    ])
}

/// The given clauses of an operation.
pub(super) fn operation(o: &Operation) -> Vec<Given> {
    given([
        ("ports", list(&o.ports)),
        ("notPorts", list(&o.not_ports)),
        ("hosts", list(&o.hosts)),
        ("notHosts", list(&o.not_hosts)),
        ("methods", list(&o.methods)),
        ("notMethods", list(&o.not_methods)),
        ("paths", list(&o.paths)),
        ("notPaths", list(&o.not_paths)),
        ("grpc", list(&o.grpc)),
        ("headers", list(&o.headers)),
    ])
}

fn wanted(clauses: &[Given], name: &str) -> String {
    clauses.iter().find(|(n, _)| *n == name).map(|(_, text)| text.clone()).unwrap_or_default()
}

/// What of a peer does not hold.
pub(super) fn failed_peer(p: &Peer, action: Action, c: &Connection, own: &SpiffeId, facts: &Facts<'_>) -> Vec<Failed> {
    let clauses = peer(p);
    let failing = p.failing(c, own).map(|clause| {
        let found = if clause.ends_with("Blocks") { c.source.to_string() } else { c.caller_text().to_owned() };
        Failed { clause, wanted: wanted(&clauses, clause), found }
    });
    let tokens = p.about_tokens(action, facts).filter(|(_, held)| *held != Held::Yes).map(|(clause, held)| {
        let about = if clause == "jwt" { &p.jwt } else { &p.not_jwt };
        let found = match (held, about) {
            (Held::Unclear(why), _) => format!("unknown: {why}"),
            (_, Some(about)) => bearer(about, facts),
            (_, None) => String::new(),
        };
        Failed { clause, wanted: wanted(&clauses, clause), found }
    });
    let mut failed: Vec<_> = failing.chain(tokens).collect();
    if p.is_empty() {
        failed.push(Failed { clause: "from", wanted: "something".to_owned(), found: "an entry with nothing in it".to_owned() });
    }
    failed
}

/// What of an operation does not hold, or cannot be judged.
pub(super) fn failed_operation(o: &Operation, action: Action, c: &Connection, facts: &Facts<'_>) -> Vec<Failed> {
    let clauses = operation(o);
    let failing = judged(o, action, c, facts).map(|(clause, held)| {
        let found = match held {
            Held::Unclear(Unclear::Path(defect)) => format!("{}, which {defect}", path(facts)),
            Held::Unclear(why) => format!("unknown: {why}"),
            Held::Yes | Held::No => found(clause, c, facts),
        };
        Failed { clause, wanted: wanted(&clauses, clause), found }
    });
    let mut failed: Vec<_> = failing.collect();
    if o.is_empty() {
        failed.push(Failed { clause: "to", wanted: "something".to_owned(), found: "an entry with nothing in it".to_owned() });
    }
    failed
}

fn found(clause: &str, c: &Connection, facts: &Facts<'_>) -> String {
    match clause {
        "ports" | "notPorts" => c.port.to_string(),
        "methods" | "notMethods" => facts.request().map_or_else(String::new, |r| quoted(r.method())),
        "hosts" | "notHosts" => facts.host().ok().flatten().map_or_else(|| "none".to_owned(), |h| quoted(h.as_bytes())),
        "headers" => "otherwise".to_owned(),
        _ => path(facts),
    }
}

/// What a request bears, without anything that stands in it.
fn bearer(about: &TokenMatch, facts: &Facts<'_>) -> String {
    let Some(request) = facts.request() else { return String::new() };
    match request.token(&about.issuer) {
        Bearer::Absent => "no token".to_owned(),
        Bearer::Other => "a token of an issuer that is not asked for".to_owned(),
        Bearer::Valid(token) => about.lack(token).map_or_else(|| "such a token".to_owned(), |lack| format!("a token {lack}")),
        Bearer::Invalid(fault) => format!("a token that {fault}"),
    }
}

fn path(facts: &Facts<'_>) -> String {
    facts.request().map_or_else(String::new, |r| quoted(r.path()))
}

/// A text that a caller sent.
fn quoted(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let cut: String = text.chars().take(LONGEST).collect();
    if cut.len() < text.len() { format!("{cut:?}…") } else { format!("{cut:?}") }
}

/// What a match matched by, in brackets.
pub(super) struct Clauses<'a>(pub(super) &'a Match);

impl fmt::Display for Clauses<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.clause();
        if text.is_empty() { Ok(()) } else { write!(f, " ({text})") }
    }
}
