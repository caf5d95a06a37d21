use std::sync::Arc;

use super::policy::*;
use super::*;
use crate::identity::SpiffeId;
use crate::jwt::{Bearer, Claim, Token, TokenFault};
use crate::traffic::table::RequestFacts;

mod equal;
mod naive;
mod order;
mod random;
mod size;
mod telling;
mod tokens;

/// A request, of texts.
#[derive(Clone, Debug, Default)]
struct Request {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    /// What it bears, by issuer.
    tokens: Vec<(&'static str, Borne)>,
}

/// What a request bears of an issuer.
#[derive(Clone, Debug)]
enum Borne {
    Other,
    Valid(Token),
    Invalid(TokenFault),
}

impl Request {
    fn get(path: &str) -> Self {
        Self { method: "GET".into(), path: path.into(), headers: vec![("host".into(), "cart.shop:80".into())], tokens: vec![] }
    }
}

impl RequestFacts for Request {
    fn method(&self) -> &[u8] {
        self.method.as_bytes()
    }
    fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }
    fn query(&self) -> Option<&[u8]> {
        None
    }
    fn header_values(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).for_each(|(_, value)| each(value.as_bytes()));
    }
    fn fields(&self, each: &mut dyn FnMut(&[u8], &[u8])) {
        self.headers.iter().for_each(|(name, value)| each(name.as_bytes(), value.as_bytes()));
    }
    fn token(&self, issuer: &str) -> Bearer<'_> {
        match self.tokens.iter().find(|(i, _)| *i == issuer).map(|(_, borne)| borne) {
            None => Bearer::Absent,
            Some(Borne::Other) => Bearer::Other,
            Some(Borne::Valid(token)) => Bearer::Valid(token),
            Some(Borne::Invalid(fault)) => Bearer::Invalid(*fault),
        }
    }
}

fn id(text: &str) -> SpiffeId {
    text.parse().expect("an identity")
}

fn own() -> SpiffeId {
    id("spiffe://td/ns/shop/sa/cart")
}

fn connection(port: u16, caller: Option<&str>) -> Connection {
    Connection::new(port, caller.map(id), "10.0.0.9".parse().expect("an address"))
}

fn policy(name: &str, action: Action, rules: Vec<Rule>) -> Policy {
    let id = format!("shop/{name}").parse().expect("a name");
    Policy { id, target: Target::Mesh, action, dry_run: false, rules, ports: None, broken: None }
}

fn rule(from: Vec<Peer>, to: Vec<Operation>) -> Rule {
    Rule { from, to }
}

fn from(principal: &str) -> Peer {
    Peer { principals: vec![principal.parse().expect("a principal")], ..Peer::default() }
}

fn paths(list: &[PathMatch]) -> Operation {
    Operation { paths: list.to_vec(), ..Operation::default() }
}

fn below(path: &str) -> PathMatch {
    PathMatch::prefix(path).expect("a path")
}

fn judge(posture: Posture, policies: Vec<Policy>, connection: Connection) -> Judge {
    let policies = policies.into_iter().map(Arc::new).collect();
    let authorization = Authorization { posture, posture_from: PostureFrom::Mesh, policies };
    Judge::new(Arc::new(Compiled::new(&authorization, own())), connection)
}
