//! The matches of `GRPCRoute`s, by service and method.

use super::Entry;
use super::paths::FixedMap;
use crate::traffic::route::{Match, PathMatch, StringMatch};

/// Every list is in the order of precedence; so are the lists: the exact service, regular expressions for it, any service.
#[derive(Default, Debug)]
pub(super) struct GrpcIndex {
    services: FixedMap<Methods>,
    regex: Vec<Entry>,
    any: Methods,
}

/// The matches of one service, or of any.
#[derive(Default, Debug)]
struct Methods {
    exact: FixedMap<Vec<Entry>>,
    /// Regular expressions for the method, then any.
    other: Vec<Entry>,
}

impl GrpcIndex {
    /// `matches` in the order of precedence.
    pub(super) fn new(matches: &[(&Match, Entry)]) -> Self {
        let mut index = Self::default();
        for (m, entry) in matches {
            let (service, method) = match &m.path {
                PathMatch::Grpc { service, method } => (service.as_ref(), method.as_ref()),
                PathMatch::Any => (None, None),
                // No `GRPCRoute` has it; it matches nothing.
                _ => continue,
            };
            match service {
                Some(StringMatch::Exact(service)) => {
                    index.services.entry(service.as_bytes().into()).or_default().push(method, *entry);
                }
                Some(StringMatch::Regex(_)) => index.regex.push(*entry),
                None => index.any.push(method, *entry),
            }
        }
        index
    }

    /// The first match for the path that `holds` in all else (and in its expressions).
    pub(super) fn find(&self, path: &[u8], holds: impl Fn(&Entry) -> bool) -> Option<Entry> {
        let (service, method) = split(path).unwrap_or_default();
        let exact = self.services.get(service).into_iter().flat_map(|methods| methods.of(method));
        exact.chain(&self.regex).chain(self.any.of(method)).find(|entry| holds(entry)).copied()
    }
}

impl Methods {
    fn push(&mut self, method: Option<&StringMatch>, entry: Entry) {
        match method {
            Some(StringMatch::Exact(method)) => self.exact.entry(method.as_bytes().into()).or_default().push(entry),
            Some(StringMatch::Regex(_)) | None => self.other.push(entry),
        }
    }

    fn of(&self, method: &[u8]) -> impl Iterator<Item = &Entry> {
        self.exact.get(method).into_iter().flatten().chain(&self.other)
    }
}

/// Service and method of `/service/method`, at the last slash; none where the path is not of that form.
pub(super) fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    let path = path.strip_prefix(b"/")?;
    let slash = path.iter().rposition(|byte| *byte == b'/')?;
    Some((&path[..slash], &path[slash + 1..])).filter(|(service, method)| !service.is_empty() && !method.is_empty())
}
