//! Which rule a request to one port of a service falls under, in the order of precedence that Gateway API gives.
//!
//! All rules of all routes of the port stand in one order (`order`), whatever route they come from:
//! - **`HTTPRoute`**: an exact path; then a regular expression, the longest first; then a prefix, the longest first. On ties: a method, more
//!   header fields, more query parameters, the older route, `NAMESPACE/NAME` by alphabet, the first rule, its first match. Gateway API leaves the
//!   place of regular expressions open: here they come before prefixes, because they must match the whole path, and a catch-all `/` would hide them.
//! - **`GRPCRoute`**: more characters of the service, more of the method, more header fields; then as above. An exact text comes before a regular
//!   expression, that before nothing said.
//! - **`TLSRoute`**: an exact host name, then the longest wildcard, then routes without host names; then as above.
//! - **`TCPRoute`**: the oldest route.
//!
//! **Both `HTTPRoute` and `GRPCRoute` on one port.** At a gateway's listener one of them would be refused. A service has no listeners, and one port may
//! well serve both: gRPC requests (by `content-type`) are asked of the gRPC rules first, and of the HTTP rules where none of those matches.
//! The rules of the two kinds are never merged. Requests that are not gRPC never match a `GRPCRoute`.
//!
//! **Paths are compared as they were sent.** Nothing is decoded, no dot segment is resolved, no slashes are merged: what the destination would see is what
//! is matched. Routes are no security boundary; authorization stands at the destination.
//!
//! The cost of a look-up does not grow with the number of paths: exact paths are hashed, prefixes stand in a tree of path elements. It grows
//! with the regular expressions, and with the matches that share one path and differ in fields only. Nothing is allocated, except where a regular
//! expression is asked of repeated fields or of escaped parameters of more than 512 bytes in sum.

use std::sync::Arc;

use super::route::{Match, PathMatch, Route, RouteKind, Rule};
use crate::jwt::{Bearer, TokenFault};

mod facts;
mod grpc;
mod hosts;
mod order;
mod paths;
#[cfg(test)]
mod tests;

pub use facts::{any_field_holds, header_holds, query_value};

/// What the routes need to know of a request.
pub trait RequestFacts {
    /// The method, as sent.
    fn method(&self) -> &[u8];
    /// The path, without the query; `*` for `OPTIONS *`, empty for CONNECT.
    fn path(&self) -> &[u8];
    /// What stands after the `?`, where there is one.
    fn query(&self) -> Option<&[u8]>;
    /// Gives the value of every field of this name (lower case), in order. `host` should give the authority where there is no such field.
    fn header_values(&self, name: &str, each: &mut dyn FnMut(&[u8]));
    /// Gives the name, in any case, and the value of every field, in order.
    fn fields(&self, each: &mut dyn FnMut(&[u8], &[u8]));
    /// What it bears of an issuer's tokens. Who has not looked knows nothing, and what depends on it is refused.
    fn token(&self, issuer: &str) -> Bearer<'_> {
        let _ = issuer;
        Bearer::Invalid(TokenFault::Unread)
    }
    /// Whether it is gRPC, gRPC-Web included: the `content-type` begins with `application/grpc`.
    fn is_grpc(&self) -> bool {
        let mut grpc = false;
        self.header_values("content-type", &mut |value| {
            grpc |= value.get(..GRPC.len()).is_some_and(|start| start.eq_ignore_ascii_case(GRPC));
        });
        grpc
    }
}

const GRPC: &[u8] = b"application/grpc";

/// One rule of a table.
#[derive(Clone, Debug)]
pub struct CompiledRule {
    /// The route that it is of.
    pub route: Arc<Route>,
    /// Its place among the rules of its route, from 0.
    pub index: usize,
    /// Its place among all rules of the table, from 0: for state that is kept per rule beside the table.
    pub id: usize,
}

impl CompiledRule {
    /// The rule.
    pub fn rule(&self) -> &Rule {
        &self.route.rules[self.index]
    }
}

/// What the routes say of a request or connection.
#[derive(Clone, Copy, Debug)]
pub enum Verdict<'t> {
    /// It falls under this rule.
    Rule {
        /// The rule.
        rule: &'t CompiledRule,
        /// What of the rule's matches the path fell under: what a rewrite of the prefix refers to.
        matched: &'t PathMatch,
    },
    /// The port has no routes of this kind: it goes to the service itself.
    NoRoutes,
    /// The port has routes, and none is for it: HTTP 404, gRPC UNIMPLEMENTED; a connection is refused.
    NoMatch,
}

/// The routes of one port of a service, as one caller sees them. Immutable; made anew when a route changes.
#[derive(Debug)]
pub struct RouteTable {
    rules: Vec<CompiledRule>,
    http: Option<paths::PathIndex>,
    grpc: Option<grpc::GrpcIndex>,
    tls: Option<hosts::HostIndex>,
    tcp: Option<Entry>,
}

/// One match of one rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    /// Place in `RouteTable::rules`.
    rule: u32,
    /// Place in the rule's matches.
    nth: u32,
}

impl RouteTable {
    /// Compiles those of `routes` that are attached to `port`, in any order. The routes are all that this caller has to obey: which routes of which
    /// namespace are (a consumer's before the producer's) is decided before.
    pub fn new(routes: &[Arc<Route>], port: u16) -> Self {
        let mut routes: Vec<&Arc<Route>> = routes.iter().filter(|r| r.ports.is_empty() || r.ports.contains(&port)).collect();
        routes.sort_by_cached_key(|route| order::age(route));

        let mut rules = Vec::new();
        let mut http = Vec::new();
        let mut grpc = Vec::new();
        let mut tls = Vec::new();
        let mut tcp = None;
        for route in &routes {
            for (index, rule) in route.rules.iter().enumerate() {
                let at = rules.len() as u32;
                rules.push(CompiledRule { route: Arc::clone(route), index, id: rules.len() });
                let matches = (0u32..).zip(&rule.matches).map(|(nth, m)| (m, Entry { rule: at, nth }));
                match route.kind {
                    RouteKind::Http => http.extend(matches),
                    RouteKind::Grpc => grpc.extend(matches),
                    // The rules of these have no matches of their own: only the first can ever be reached.
                    RouteKind::Tls if index == 0 => tls.push((route.hostnames.as_slice(), Entry { rule: at, nth: 0 })),
                    RouteKind::Tcp if index == 0 => tcp = tcp.or(Some(Entry { rule: at, nth: 0 })),
                    RouteKind::Tls | RouteKind::Tcp => {}
                }
            }
        }
        // The sorts are stable: what ties stays in the order of the routes' age, of rules and of matches.
        http.sort_by_cached_key(|(m, _)| order::http(m));
        grpc.sort_by_cached_key(|(m, _)| order::grpc(m));
        Self {
            http: has(&routes, RouteKind::Http).then(|| paths::PathIndex::new(&http)),
            grpc: has(&routes, RouteKind::Grpc).then(|| grpc::GrpcIndex::new(&grpc)),
            tls: has(&routes, RouteKind::Tls).then(|| hosts::HostIndex::new(&tls)),
            tcp,
            rules,
        }
    }

    /// Whether requests must be seen to be routed: some route is an `HTTPRoute` or a `GRPCRoute`.
    pub fn needs_requests(&self) -> bool {
        self.http.is_some() || self.grpc.is_some()
    }

    /// All rules, by [`CompiledRule::id`].
    pub fn rules(&self) -> &[CompiledRule] {
        &self.rules
    }

    /// The rule of an HTTP or gRPC request.
    pub fn http<'t>(&'t self, request: &impl RequestFacts) -> Verdict<'t> {
        if !self.needs_requests() {
            return Verdict::NoRoutes;
        }
        let path = request.path();
        let holds = |entry: &Entry| facts::holds(self.matched(*entry), request);
        let grpc = self.grpc.as_ref().filter(|_| request.is_grpc()).and_then(|index| index.find(path, holds));
        let found = grpc.or_else(|| self.http.as_ref().and_then(|index| index.find(path, holds)));
        match found {
            Some(entry) => Verdict::Rule { rule: &self.rules[entry.rule as usize], matched: &self.matched(entry).path },
            None => Verdict::NoMatch,
        }
    }

    /// The rule of a TLS connection of the application's own, by the server name that it asks for. Where there are no `TLSRoute`s, [`Self::tcp`] is asked
    /// next.
    pub fn tls(&self, sni: Option<&str>) -> Verdict<'_> {
        match &self.tls {
            Some(index) => self.connection(index.find(sni)),
            None => Verdict::NoRoutes,
        }
    }

    /// The rule of a connection of which nothing is known.
    pub fn tcp(&self) -> Verdict<'_> {
        if self.tcp.is_some() { self.connection(self.tcp) } else { Verdict::NoRoutes }
    }

    fn connection(&self, found: Option<Entry>) -> Verdict<'_> {
        static ANY: PathMatch = PathMatch::Any;
        match found {
            None => Verdict::NoMatch,
            Some(entry) => Verdict::Rule { rule: &self.rules[entry.rule as usize], matched: &ANY },
        }
    }

    fn matched(&self, entry: Entry) -> &Match {
        &self.rules[entry.rule as usize].rule().matches[entry.nth as usize]
    }
}

fn has(routes: &[&Arc<Route>], kind: RouteKind) -> bool {
    routes.iter().any(|route| route.kind == kind)
}
