//! What is done to a request and its answer.

use std::sync::Arc;

use weft_core::traffic::route::{BackendTarget, Filter, HeaderChange, Match, Mirror, PathChange, PathMatch, Redirect, Rewrite};

use super::matches::hostname;
use super::{INCOMPATIBLE, INVALID_KIND, Reader, Refusal, UNSUPPORTED};
use crate::objects::traffic::{self, is_token};

/// Fields that say where a message ends or who handles it: they are the sidecar's.
const KEPT: [&str; 9] =
    ["connection", "content-length", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade", "host"];

fn refuse<T>(field: impl Into<String>, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::new(UNSUPPORTED, field, message))
}

/// Whether a rule's filters answer by themselves.
pub(super) fn redirects(filters: &[Filter]) -> bool {
    filters.iter().any(|f| matches!(f, Filter::Redirect(_)))
}

impl Reader<'_> {
    /// Reads filters in order. One that only its own kind of object could say is added to `lost`.
    pub(super) fn filters(
        &mut self,
        list: &[traffic::Filter],
        http: bool,
        matches: &[Match],
        field: &str,
        lost: &mut Vec<Refusal>,
    ) -> Result<Vec<Filter>, Refusal> {
        let mut filters = Vec::with_capacity(list.len());
        for (i, filter) in list.iter().enumerate() {
            let field = format!("{field}[{i}]");
            let missing = |name: &str| Refusal::new(UNSUPPORTED, format!("{field}.{name}"), "missing: the type needs it");
            let kind = filter.kind.as_str();
            if kind != "RequestMirror" && list[..i].iter().any(|other| other.kind == kind) && kind != "ExtensionRef" {
                return Err(Refusal::new(INCOMPATIBLE, format!("{field}.type"), format!("{kind} stands twice")));
            }
            match (kind, http) {
                ("RequestHeaderModifier", _) => {
                    let change = filter.request_header_modifier.as_ref().ok_or_else(|| missing("requestHeaderModifier"))?;
                    filters.push(Filter::RequestHeaders(headers(change, &format!("{field}.requestHeaderModifier"))?));
                }
                ("ResponseHeaderModifier", _) => {
                    let change = filter.response_header_modifier.as_ref().ok_or_else(|| missing("responseHeaderModifier"))?;
                    filters.push(Filter::ResponseHeaders(headers(change, &format!("{field}.responseHeaderModifier"))?));
                }
                ("RequestMirror", _) => {
                    let mirror = filter.request_mirror.as_ref().ok_or_else(|| missing("requestMirror"))?;
                    filters.extend(self.mirror(mirror, &format!("{field}.requestMirror"))?);
                }
                ("RequestRedirect", true) => {
                    let spec = filter.request_redirect.as_ref().ok_or_else(|| missing("requestRedirect"))?;
                    filters.push(Filter::Redirect(redirect(spec, matches, &format!("{field}.requestRedirect"))?));
                }
                ("URLRewrite", true) => {
                    let spec = filter.url_rewrite.as_ref().ok_or_else(|| missing("urlRewrite"))?;
                    let field = format!("{field}.urlRewrite");
                    if let Some(host) = &spec.hostname {
                        hostname(host, false, &format!("{field}.hostname"))?;
                    }
                    filters.push(Filter::Rewrite(Rewrite {
                        hostname: spec.hostname.as_deref().map(Arc::from),
                        path: spec.path.as_ref().map(|p| path(p, matches, &format!("{field}.path"))).transpose()?,
                    }));
                }
                ("ExtensionRef", _) => lost.push(Refusal::new(INVALID_KIND, field, "no filter of another kind is known to weft")),
                (other, _) => {
                    let other: String = other.chars().take(60).collect();
                    return refuse(
                        format!("{field}.type"),
                        format!("{other:?} is no filter that weft has for this kind of route"),
                    );
                }
            }
        }
        if redirects(&filters) && filters.iter().any(|f| matches!(f, Filter::Rewrite(_))) {
            return Err(Refusal::new(INCOMPATIBLE, field, "a redirect and a rewrite cannot stand in one rule"));
        }
        Ok(filters)
    }

    /// A mirror to what cannot be found is left out, as the standard asks.
    fn mirror(&mut self, spec: &traffic::Mirror, field: &str) -> Result<Option<Filter>, Refusal> {
        let (numerator, denominator) = match (spec.percent, spec.fraction) {
            (None, None) => (100, 100),
            (Some(percent), None) => (percent, 100),
            (None, Some(f)) => (f.numerator, f.denominator.unwrap_or(100)),
            (Some(_), Some(_)) => return refuse(field, "either percent or fraction, not both"),
        };
        if denominator == 0 || numerator > denominator {
            return refuse(field, "the share of requests must be from none to all of them");
        }
        Ok(match self.target(&spec.backend_ref, &format!("{field}.backendRef")) {
            BackendTarget::Unresolved(_) => None,
            target @ BackendTarget::Service { .. } => Some(Filter::Mirror(Mirror { target, numerator, denominator })),
        })
    }
}

fn headers(spec: &traffic::HeaderChange, field: &str) -> Result<HeaderChange, Refusal> {
    let name = |name: &str, field: String| -> Result<Arc<str>, Refusal> {
        let lower = name.to_ascii_lowercase();
        if !is_token(&lower) {
            let shown: String = name.chars().take(60).collect();
            return refuse(field, format!("{shown:?} is no name of a header field"));
        }
        if KEPT.contains(&lower.as_str()) || lower.replace('_', "-").starts_with("weft-") {
            return refuse(field, format!("{lower} is not for routes to change: use URLRewrite for the host name"));
        }
        Ok(lower.into())
    };
    let fields = |list: &[traffic::HeaderField], what: &str| {
        let mut all: Vec<(Arc<str>, Arc<str>)> = Vec::with_capacity(list.len());
        for (i, f) in list.iter().enumerate() {
            let at = |part: &str| format!("{field}.{what}[{i}].{part}");
            let name = name(&f.name, at("name"))?;
            if f.value.bytes().any(|b| (b < 0x20 && b != b'\t') || b == 0x7f) {
                return refuse(at("value"), "a control character, which no header field may have");
            }
            // Of several entries with one name, the first counts.
            if !all.iter().any(|(n, _)| *n == name) {
                all.push((name, f.value.trim().into()));
            }
        }
        Ok(all)
    };
    let mut remove = Vec::with_capacity(spec.remove.len());
    for (i, text) in spec.remove.iter().enumerate() {
        remove.push(name(text, format!("{field}.remove[{i}]"))?);
    }
    Ok(HeaderChange { set: fields(&spec.set, "set")?, add: fields(&spec.add, "add")?, remove })
}

fn path(spec: &traffic::PathChange, matches: &[Match], field: &str) -> Result<PathChange, Refusal> {
    let given = |value: Option<&String>, name: &str| -> Result<Arc<str>, Refusal> {
        let value = value.ok_or_else(|| Refusal::new(UNSUPPORTED, format!("{field}.{name}"), "missing: the type needs it"))?;
        if value.bytes().any(|b| b <= 0x20 || b == 0x7f || b == b'#' || b == b'?') {
            return refuse(format!("{field}.{name}"), "no path: it has a space, a control character, ? or #");
        }
        Ok(value.as_str().into())
    };
    match spec.kind.as_str() {
        "ReplaceFullPath" => Ok(PathChange::Full(given(spec.replace_full_path.as_ref(), "replaceFullPath")?)),
        "ReplacePrefixMatch" => {
            if !matches.iter().all(|m| matches!(m.path, PathMatch::Prefix(_) | PathMatch::Any)) {
                return refuse(format!("{field}.type"), "ReplacePrefixMatch needs every match of the rule to be a PathPrefix");
            }
            Ok(PathChange::Prefix(given(spec.replace_prefix_match.as_ref(), "replacePrefixMatch")?))
        }
        other => {
            let other: String = other.chars().take(60).collect();
            refuse(format!("{field}.type"), format!("{other:?} is neither ReplaceFullPath nor ReplacePrefixMatch"))
        }
    }
}

fn redirect(spec: &traffic::Redirect, matches: &[Match], field: &str) -> Result<Redirect, Refusal> {
    if spec.scheme.as_deref().is_some_and(|s| s != "http" && s != "https") {
        return refuse(format!("{field}.scheme"), "neither http nor https");
    }
    if let Some(host) = &spec.hostname {
        hostname(host, false, &format!("{field}.hostname"))?;
    }
    if spec.port == Some(0) {
        return refuse(format!("{field}.port"), "0 is not a port: use 1 to 65535");
    }
    let status = spec.status_code.unwrap_or(302);
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        return refuse(format!("{field}.statusCode"), format!("{status} is none of 301, 302, 303, 307 and 308"));
    }
    Ok(Redirect {
        scheme: spec.scheme.as_deref().map(Arc::from),
        hostname: spec.hostname.as_deref().map(Arc::from),
        path: spec.path.as_ref().map(|p| path(p, matches, &format!("{field}.path"))).transpose()?,
        port: spec.port,
        status,
    })
}
