//! Policies, written as YAML with a comment for each reason.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use weft_core::Namespace;

use super::{Caller, Operations, Plan, Rule, Seen, Target, named};

/// Bounds of one policy, as the control plane has them: rules, entries of `to`, and values of one list.
const RULES: usize = 64;
const ENTRIES: usize = 32;
const VALUES: usize = 256;

pub(super) fn manifests(plan: &Plan) -> String {
    let mut out = String::new();
    let namespaces: BTreeSet<&Namespace> = plan.keys().map(Target::namespace).collect();
    for namespace in namespaces {
        let _ = write!(
            out,
            "---\n# What no other policy allows is refused: in {namespace} nothing else was called.\napiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\n\
             metadata: {{name: suggested-nothing-else, namespace: {namespace}}}\nspec: {{action: Allow}}\n"
        );
        let mut taken = BTreeSet::new();
        for (target, callers) in plan.iter().filter(|(target, _)| target.namespace() == namespace) {
            let rules: Vec<String> = callers.iter().flat_map(|(caller, rule)| written(caller, rule)).collect();
            for part in rules.chunks(RULES) {
                let name = fresh(target, &mut taken);
                policy(&mut out, target, &name, part);
            }
        }
    }
    out
}

fn policy(out: &mut String, target: &Target, name: &str, rules: &[String]) {
    let _ = write!(
        out,
        "---\napiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {}}}\nspec:\n",
        target.namespace()
    );
    match target {
        Target::Service(id) => {
            let _ = writeln!(out, "  targetRef: {{kind: Service, name: {}}}", id.name);
        }
        Target::Pods(_, labels) => {
            let _ = writeln!(out, "  # No Service leads to the port.\n  selector: {{matchLabels: {}}}", json!(labels));
        }
    }
    out.push_str("  action: Allow\n  rules:\n");
    for rule in rules {
        out.push_str(rule);
    }
}

/// A name that no policy of the namespace has yet.
fn fresh(target: &Target, taken: &mut BTreeSet<String>) -> String {
    let base = match target {
        Target::Service(id) => id.name.to_string(),
        Target::Pods(_, labels) => {
            let value = labels.get("app").or_else(|| labels.get("app.kubernetes.io/name")).or_else(|| labels.values().next());
            let plain = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' };
            value.map_or_else(String::new, |v| v.to_ascii_lowercase().chars().map(plain).collect())
        }
    };
    let base = base.trim_matches('-');
    let mut number = 0;
    loop {
        number += 1;
        let behind = if number == 1 { String::new() } else { format!("-{number}") };
        let name = format!("suggested-{base}{behind}");
        let name = if base.is_empty() || named(&name).is_none() { format!("suggested{behind}") } else { name };
        if taken.insert(name.clone()) {
            return name;
        }
    }
}

/// The rules of one caller: as many as its operations need.
fn written(caller: &Caller, rule: &Rule) -> Vec<String> {
    let (from, note) = match caller {
        Caller::Account(namespace, name) => (format!("serviceAccounts: [{}]", json!(format!("{namespace}/{name}"))), ""),
        Caller::Principal(id) => (format!("principals: [{}]", json!(id)), ""),
        Caller::Plaintext(ip) => {
            let bits = if ip.is_ipv4() { 32 } else { 128 };
            (
                format!("unauthenticated: true, ipBlocks: [{}]", json!(format!("{ip}/{bits}"))),
                " It proves no identity: bring it into the mesh.",
            )
        }
    };
    let entries: Vec<String> = rule.ports.iter().flat_map(|(port, operations)| entries(*port, operations)).collect();
    let parts = entries.chunks(ENTRIES).map(|part| {
        let to: String = part.concat();
        format!("  # {}{note}\n  - from: [{{{from}}}]\n    to:\n{to}", reason(&rule.seen))
    });
    parts.collect()
}

fn reason(seen: &Seen) -> String {
    let calls = if seen.count == 1 { "call" } else { "calls" };
    format!("{} {calls}, from {} to {}.", seen.count, when(seen.first), when(seen.last))
}

/// Seconds since the Unix epoch, as a time in UTC.
fn when(seconds: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp(seconds).ok().and_then(|time| time.format(&Rfc3339).ok());
    time.unwrap_or_else(|| seconds.to_string())
}

/// Entries of `to`.
fn entries(port: u16, operations: &Operations) -> Vec<String> {
    if operations.bytes {
        let more = if operations.requests.is_empty() && operations.grpc.is_empty() { "" } else { ", and HTTP" };
        return vec![format!(
            "    # Bytes that are not HTTP{more}: of them nothing but the port can be asked.\n    - {{ports: [{port}]}}\n"
        )];
    }
    // Methods with the same paths stand together.
    let mut by_paths: BTreeMap<&BTreeSet<String>, Vec<&String>> = BTreeMap::new();
    for (method, paths) in &operations.requests {
        by_paths.entry(paths).or_default().push(method);
    }
    let mut all = Vec::new();
    for (paths, methods) in by_paths {
        let paths: Vec<&String> = paths.iter().collect();
        for (methods, paths) in methods.chunks(VALUES).flat_map(|m| paths.chunks(VALUES).map(move |p| (m, p))) {
            all.push(format!("    - {{ports: [{port}], methods: {}, paths: {}}}\n", json!(methods), json!(paths)));
        }
    }
    let calls: Vec<String> = operations
        .grpc
        .iter()
        .map(|(service, method)| format!("{{service: {}, method: {}}}", json!(service), json!(method)))
        .collect();
    for part in calls.chunks(VALUES) {
        all.push(format!("    - {{ports: [{port}], methods: [\"POST\"], grpc: [{}]}}\n", part.join(", ")));
    }
    all
}
