//! Many paths that differ in one place only, as one.

use std::collections::{BTreeMap, BTreeSet};

/// What stands for any one segment.
const ANY: &str = "{any}";

/// Paths, where more than `most` of them differ in one segment, as a template; where more than `most` are left after that, all that lie below the first segment
/// that they share, as its prefix. What is given are normalised paths; what comes out allows all of them, and more.
pub(super) fn collapsed(paths: BTreeSet<String>, most: usize) -> BTreeSet<String> {
    let mut paths = paths;
    while paths.len() > most {
        let Some(next) = templated(&paths, most) else { break };
        paths = next;
    }
    if paths.len() <= most {
        return paths;
    }
    let mut by_first: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in paths {
        let first = path[1..].split('/').next().unwrap_or_default().to_owned();
        by_first.entry(first).or_default().insert(path);
    }
    let fold = |(first, all): (String, BTreeSet<String>)| match first.as_str() {
        "" | ANY => all,
        _ if all.len() > most => BTreeSet::from([format!("/{first}/*")]),
        _ => all,
    };
    by_first.into_iter().flat_map(fold).collect()
}

/// The largest group of paths that differ in one segment, as one template; none where no group is larger than `most`.
fn templated(paths: &BTreeSet<String>, most: usize) -> Option<BTreeSet<String>> {
    let mut groups: BTreeMap<String, Vec<&String>> = BTreeMap::new();
    for path in paths {
        let segments: Vec<&str> = path[1..].split('/').collect();
        for (i, segment) in segments.iter().enumerate() {
            // A variable is never empty.
            if segment.is_empty() || *segment == ANY {
                continue;
            }
            let mut template = segments.clone();
            template[i] = ANY;
            groups.entry(format!("/{}", template.join("/"))).or_default().push(path);
        }
    }
    let (template, group) = groups.into_iter().filter(|(_, group)| group.len() > most).max_by_key(|(_, group)| group.len())?;
    let mut next: BTreeSet<String> = paths.iter().filter(|path| !group.contains(path)).cloned().collect();
    next.insert(template);
    Some(next)
}
