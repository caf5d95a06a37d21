//! The reference: every policy, rule, peer and operation in turn, as a reader of `authorization.rs` would do it by hand. Texts are compared as texts. It
//! shares nothing with the evaluator but the nouns and what a path is.

use super::super::path::normalise;
use super::super::token::{ClaimMatch, TokenMatch};
use super::*;

/// What the reference says: the verdict, what kind of cause, and the first rule that decided.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Told {
    pub(super) verdict: Verdict,
    pub(super) cause: &'static str,
    pub(super) by: Option<(String, usize, Option<usize>, Option<usize>)>,
}

/// A caller, as text.
pub(super) struct Call<'a> {
    pub(super) own: &'a SpiffeId,
    pub(super) port: u16,
    pub(super) caller: Option<&'a SpiffeId>,
    pub(super) source: std::net::IpAddr,
    pub(super) request: Option<&'a Request>,
}

/// True, false, or why it is neither.
type Kleene = Result<bool, &'static str>;

pub(super) fn decide(authorization: &Authorization, call: &Call<'_>, dry: bool) -> Told {
    let mut policies: Vec<&Arc<Policy>> = authorization.policies.iter().collect();
    policies.sort_by_key(|p| (p.id.namespace.to_string(), p.id.name.to_string()));
    policies.retain(|p| p.ports.as_ref().is_none_or(|ports| ports.contains(&call.port)) && (dry || !p.dry_run));
    let of = |action| policies.iter().filter(move |p| p.action == action).copied();
    let told = |verdict, cause, by| Told { verdict, cause, by };

    let (denied, unclear_deny) = first(of(Action::Deny), call);
    if denied.is_some() {
        return told(Verdict::Denied, "matched", denied);
    }
    let (otherwise, unclear_allow) = if of(Action::Allow).next().is_some() {
        match first(of(Action::Allow), call) {
            (Some(by), _) => (told(Verdict::Allowed, "matched", Some(by)), None),
            (None, unclear) => (told(Verdict::Denied, "none-allows", None), unclear),
        }
    } else {
        let same = |id: &SpiffeId| id.trust_domain() == call.own.trust_domain() && id.namespace() == call.own.namespace();
        let allowed = match authorization.posture {
            Posture::AllowAll => true,
            Posture::AllowAuthenticated => call.caller.is_some(),
            Posture::AllowSameNamespace => call.caller.is_some_and(same),
            Posture::Deny => false,
        };
        (told(if allowed { Verdict::Allowed } else { Verdict::Denied }, "default", None), None)
    };
    // What is unclear counts only where it could make a difference.
    match (otherwise.verdict, unclear_allow, unclear_deny) {
        (Verdict::Denied, None, _) => otherwise,
        (_, _, Some((by, why))) | (_, Some((by, why)), None) => told(Verdict::Denied, why, Some(by)),
        (_, None, None) => otherwise,
    }
}

/// Names of the AUDIT policies that match.
pub(super) fn audited(authorization: &Authorization, call: &Call<'_>) -> Vec<String> {
    let audits = authorization.policies.iter().filter(|p| p.action == Action::Audit);
    let bound = audits.filter(|p| p.ports.as_ref().is_none_or(|ports| ports.contains(&call.port)));
    let mut names: Vec<_> = bound.filter(|p| first([*p].into_iter(), call).0.is_some()).map(|p| p.id.to_string()).collect();
    names.sort();
    names
}

type Place = (String, usize, Option<usize>, Option<usize>);

/// The first place that is true; the first that is neither.
fn first<'a>(policies: impl Iterator<Item = &'a Arc<Policy>>, call: &Call<'_>) -> (Option<Place>, Option<(Place, &'static str)>) {
    let mut unclear = None;
    for policy in policies {
        for (nth, rule) in policy.rules.iter().enumerate() {
            for peer in places(rule.from.len()) {
                for operation in places(rule.to.len()) {
                    let place = (policy.id.to_string(), nth, peer, operation);
                    let who = peer.map_or(Ok(true), |at| peer_holds(&rule.from[at], policy.action, call));
                    let held = and(who, operation.map_or(Ok(true), |at| operation_holds(&rule.to[at], policy.action, call)));
                    match held {
                        Ok(true) => return (Some(place), None),
                        Ok(false) => {}
                        Err(why) => {
                            unclear.get_or_insert((place, why));
                        }
                    }
                }
            }
        }
    }
    (None, unclear)
}

fn places(n: usize) -> Vec<Option<usize>> {
    if n == 0 { vec![None] } else { (0..n).map(Some).collect() }
}

fn peer_holds(p: &Peer, action: Action, call: &Call<'_>) -> Kleene {
    let text = call.caller.map(ToString::to_string);
    let domain = format!("spiffe://{}/", call.own.trust_domain());
    let local = text.as_ref().and_then(|t| t.strip_prefix(&domain)).map(|t| t.split('/').collect::<Vec<_>>());
    let is_principal = |list: &[Principal]| {
        list.iter().any(|p| {
            let (p, text) = (p.to_string(), text.as_deref().unwrap_or_default());
            p.strip_suffix('*').map_or(text == p, |begin| text.starts_with(begin))
        })
    };
    let is_namespace = |list: &[crate::Namespace]| local.as_ref().is_some_and(|l| list.iter().any(|n| n.as_str() == l[1]));
    let is_account =
        |list: &[Account]| local.as_ref().is_some_and(|l| list.iter().any(|a| a.to_string() == format!("{}/{}", l[1], l[3])));
    let is_source = |list: &[ipnet::IpNet]| list.iter().any(|net| net.contains(&call.source.to_canonical()));

    let mut given = false;
    let mut all = true;
    let mut clause = |is_given: bool, about_identity: bool, holds: bool| {
        given |= is_given;
        all &= !is_given || (holds && (!about_identity || text.is_some()));
    };
    clause(!p.principals.is_empty(), true, is_principal(&p.principals));
    clause(!p.not_principals.is_empty(), true, !is_principal(&p.not_principals));
    clause(!p.namespaces.is_empty(), true, is_namespace(&p.namespaces));
    clause(!p.not_namespaces.is_empty(), true, !is_namespace(&p.not_namespaces));
    clause(!p.service_accounts.is_empty(), true, is_account(&p.service_accounts));
    clause(!p.not_service_accounts.is_empty(), true, !is_account(&p.not_service_accounts));
    clause(!p.ip_blocks.is_empty(), false, is_source(&p.ip_blocks));
    clause(!p.not_ip_blocks.is_empty(), false, !is_source(&p.not_ip_blocks));
    clause(p.unauthenticated, false, text.is_none());
    let mut held = Ok(all && (given || p.jwt.is_some() || p.not_jwt.is_some()));
    if let Some(wanted) = &p.jwt {
        held = and(held, bears(wanted, true, action, call));
    }
    if let Some(wanted) = &p.not_jwt {
        held = and(held, bears(wanted, false, action, call));
    }
    held
}

/// Whether there is such a token, or there is none.
fn bears(wanted: &TokenMatch, such: bool, action: Action, call: &Call<'_>) -> Kleene {
    let Some(request) = call.request else { return Err("not-http") };
    let token = match request.tokens.iter().find(|(issuer, _)| *issuer == &*wanted.issuer) {
        Some((_, Borne::Invalid(_))) if action == Action::Allow => return Ok(false),
        Some((_, Borne::Invalid(_))) => return Err("token"),
        Some((_, Borne::Valid(token))) => Some(token),
        Some((_, Borne::Other)) | None => None,
    };
    let is = token.is_some_and(|token| {
        let subject = wanted.subject.as_ref().is_none_or(|s| token.subject.as_ref().is_some_and(|t| **t == **s));
        let audience = wanted.audiences.is_empty() || wanted.audiences.iter().any(|a| token.audiences.contains(&(&**a).into()));
        subject && audience && wanted.claims.iter().all(|c| claim_is(c, token))
    });
    Ok(is == such)
}

fn claim_is(wanted: &ClaimMatch, token: &Token) -> bool {
    let mut claim = &token.claims;
    for name in wanted.path.names() {
        let Claim::Object(members) = claim else { return false };
        let Some((_, member)) = members.iter().find(|(n, _)| **n == *name) else { return false };
        claim = member;
    }
    let texts = match claim {
        Claim::Null => return false,
        Claim::Text(scope) if wanted.path.to_string() == "scope" => scope.split(' ').map(str::to_owned).collect(),
        Claim::Text(text) => vec![text.to_string()],
        Claim::List(list) => list.iter().filter_map(Claim::as_text).map(str::to_owned).collect(),
        _ => vec![],
    };
    wanted.values.is_empty() || texts.iter().any(|t| wanted.values.iter().any(|v| **v == **t))
}

fn operation_holds(o: &Operation, action: Action, call: &Call<'_>) -> Kleene {
    if *o == Operation::default() {
        return Ok(false);
    }
    let mut held = Ok((o.ports.is_empty() || o.ports.contains(&call.port)) && !o.not_ports.contains(&call.port));
    let mut clause = |given: bool, holds: &dyn Fn(&Request) -> Kleene| {
        if given {
            held = and(held, call.request.map_or(Err("not-http"), holds));
        }
    };
    clause(!o.methods.is_empty(), &|r| method_among(r, &o.methods));
    clause(!o.not_methods.is_empty(), &|r| method_among(r, &o.not_methods).map(|is| !is));
    clause(!o.hosts.is_empty(), &|r| host_among(r, &o.hosts));
    clause(!o.not_hosts.is_empty(), &|r| host_among(r, &o.not_hosts).map(|is| !is));
    clause(!o.paths.is_empty(), &|r| path_of(r).map(|path| o.paths.iter().any(|p| path_is(p, &path))));
    clause(!o.not_paths.is_empty(), &|r| path_of(r).map(|path| !o.not_paths.iter().any(|p| path_is(p, &path))));
    clause(!o.grpc.is_empty(), &|r| path_of(r).map(|path| o.grpc.iter().any(|g| call_is(g, &path))));
    clause(!o.headers.is_empty(), &|r| Ok(o.headers.iter().all(|h| header_is(h, action, r))));
    held
}

/// False decides, whatever the other one is; of two that are neither, the first is told.
fn and(a: Kleene, b: Kleene) -> Kleene {
    match (a, b) {
        (Ok(false), _) | (_, Ok(false)) => Ok(false),
        (Err(why), _) | (Ok(true), Err(why)) => Err(why),
        (Ok(true), Ok(true)) => Ok(true),
    }
}

fn method_among(r: &Request, list: &[Arc<str>]) -> Kleene {
    let exact = list.iter().any(|m| **m == *r.method);
    let alike = list.iter().any(|m| m.to_uppercase() == r.method.to_uppercase());
    if alike && !exact { Err("method") } else { Ok(exact) }
}

fn path_of(r: &Request) -> Result<String, &'static str> {
    let path = normalise(r.path.as_bytes()).map_err(|_| "path")?;
    Ok(String::from_utf8(path.into_owned()).expect("it is UTF-8"))
}

fn path_is(p: &PathMatch, path: &str) -> bool {
    match p {
        PathMatch::Exact(text) => path == &**text,
        PathMatch::Prefix(text) if &**text == "/" => path.starts_with('/'),
        PathMatch::Prefix(text) => path == &**text || path.starts_with(&format!("{text}/")),
        PathMatch::Template(text) => {
            let (sent, asked): (Vec<_>, Vec<_>) = (path.split('/').collect(), text.split('/').collect());
            let is = |(s, a): (&&str, &&str)| if a.starts_with('{') { !s.is_empty() } else { s == a };
            sent.len() == asked.len() && sent.iter().zip(&asked).all(is)
        }
    }
}

fn call_is(g: &GrpcMatch, path: &str) -> bool {
    let Some((service, method)) = path.strip_prefix('/').and_then(|p| p.rsplit_once('/')) else { return false };
    let is = |asked: &Option<Arc<str>>, sent: &str| asked.as_ref().is_none_or(|a| **a == *sent);
    (g.service.is_some() || g.method.is_some())
        && !service.is_empty()
        && !method.is_empty()
        && is(&g.service, service)
        && is(&g.method, method)
}

fn host_among(r: &Request, list: &[HostMatch]) -> Kleene {
    let hosts: Vec<_> = r.headers.iter().filter(|(n, _)| n == "host").map(|(_, v)| v.to_lowercase()).collect();
    let host = match &hosts[..] {
        [] => return Ok(false),
        [host] if host.contains('@') => return Err("host"),
        [host] => host.split(':').next().unwrap_or_default().trim_end_matches('.').to_owned(),
        _ => return Err("host"),
    };
    Ok(list.iter().any(|h| match h {
        HostMatch::Exact(name) => **name == *host,
        HostMatch::Suffix(suffix) => host.ends_with(&format!(".{suffix}")) && host.len() > suffix.len() + 1,
    }))
}

fn header_is(h: &HeaderMatch, action: Action, r: &Request) -> bool {
    let is_alike = |n: &str| n.to_lowercase().replace('_', "-") == h.name.replace('_', "-");
    let alike: Vec<_> = r.headers.iter().filter(|(n, _)| is_alike(n)).collect();
    let values: Vec<_> = alike.iter().map(|(_, v)| v.clone()).collect();
    let is = |v: &String| match &h.value {
        HeaderValue::Exact(text) => **text == **v,
        HeaderValue::Prefix(text) => v.starts_with(&**text),
        HeaderValue::Present => true,
    };
    match action {
        Action::Allow => alike.iter().all(|(n, _)| n.to_lowercase() == *h.name) && !values.is_empty() && is(&values.join(",")),
        Action::Deny | Action::Audit => values.iter().any(is),
    }
}
