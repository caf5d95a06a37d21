//! Everything that a cluster holds, to compare it with what it holds later.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{kubectl, must, soon, when};

/// What changes by itself.
const VOLATILE: [&str; 7] =
    ["certificatesigningrequests", "componentstatuses", "endpoints", "endpointslices", "events", "leases", "pods"];
/// The same in any object's metadata.
const COUNTED: [&str; 4] = ["generation", "managedFields", "resourceVersion", "selfLink"];
/// Who leads, in a cluster whose programs write it into objects of other kinds than Lease.
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";

/// Objects by kind and name. Their uids are part of them: one that was deleted and made again is another one.
#[derive(Debug)]
pub struct Inventory(BTreeMap<String, Value>);

impl Inventory {
    /// What there is, once it stays as it is: a cluster that has just started still makes objects of its own.
    #[track_caller]
    pub fn settled() -> Self {
        let mut last = Self::take();
        soon("the cluster rests", || {
            let before = std::mem::replace(&mut last, Self::take());
            let differences = before.differences(&last);
            when(differences.is_empty(), || differences.join(", "))
        });
        last
    }

    /// What there is now.
    #[track_caller]
    pub fn take() -> Self {
        let kinds = must(&["api-resources", "--verbs=list", "-o", "name"]);
        let lasts = |kind: &&str| {
            let plural = kind.split('.').next().unwrap_or(kind);
            !VOLATILE.contains(&plural) && !kind.ends_with(".metrics.k8s.io")
        };
        let kinds: Vec<&str> = kinds.lines().filter(lasts).collect();
        let output = kubectl(&["get", &kinds.join(","), "--all-namespaces", "-o", "json"]);
        // What it printed is not shown: among the objects are secrets.
        assert!(output.status.success(), "not everything on the cluster can be listed: {}", output.stderr);
        let list: Value = serde_json::from_str(&output.stdout).expect("kubectl prints JSON where it is asked to");
        let objects = list["items"].as_array().expect("a list has items");
        assert!(objects.len() > kinds.len(), "no cluster has as little as {} objects", objects.len());
        Self(objects.iter().map(|object| (key(object), lasting(object.clone()))).collect())
    }

    /// What is there only before, only after, or has changed: by name alone.
    pub fn differences(&self, after: &Self) -> Vec<String> {
        let gone = self.0.keys().filter(|key| !after.0.contains_key(*key)).map(|key| format!("- {key}"));
        let came = after.0.keys().filter(|key| !self.0.contains_key(*key)).map(|key| format!("+ {key}"));
        let changed = self.0.iter().filter(|(key, object)| after.0.get(*key).is_some_and(|other| other != *object));
        gone.chain(came).chain(changed.map(|(key, _)| format!("~ {key}"))).collect()
    }
}

fn key(object: &Value) -> String {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    format!("{} {} {}/{}", text("/apiVersion"), text("/kind"), text("/metadata/namespace"), text("/metadata/name"))
}

/// An object without what changes by itself.
fn lasting(mut object: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.retain(|field, _| !COUNTED.contains(&field.as_str()));
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove(LEADER);
        }
    }
    object
}
