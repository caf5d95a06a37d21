//! What a status is to read, given what it reads now. Pure.

use serde_json::{Map, Value, json};

/// The name under which weft writes entries into a list that several controllers share.
pub const CONTROLLER: &str = "weft.dev/controller";

/// A list in a status that has one entry for each thing that an object refers to, of each controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum List {
    /// `status.parents` of a route.
    Parents,
    /// `status.ancestors` of a policy (GEP-713).
    Ancestors,
}

impl List {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Parents => "parents",
            Self::Ancestors => "ancestors",
        }
    }

    const fn reference(self) -> &'static str {
        match self {
            Self::Parents => "parentRef",
            Self::Ancestors => "ancestorRef",
        }
    }

    /// How many entries a status may have; one more is refused by the API server.
    const fn most(self) -> usize {
        match self {
            Self::Parents => 32,
            Self::Ancestors => 16,
        }
    }
}

/// One entry of ours.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry {
    /// What the object refers to, as it spells it.
    pub reference: Value,
    pub conditions: Vec<Condition>,
}

/// A condition, without the time of its last transition: that follows from what stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Condition {
    pub kind: &'static str,
    pub status: bool,
    pub reason: String,
    pub message: String,
    /// The generation of the object that it was made from.
    pub generation: i64,
}

/// The API server takes no longer message.
const MAX_MESSAGE: usize = 32_768;

/// The list as it is to read, or none where it reads so already. Entries of other controllers are left as they are, and where they are.
pub fn merged(list: List, status: &Value, ours: &[Entry], now: &str) -> Option<Vec<Value>> {
    let standing = status[list.name()].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut result: Vec<Value> = standing.iter().filter(|entry| entry["controllerName"] != CONTROLLER).cloned().collect();
    for entry in ours.iter().take(list.most().saturating_sub(result.len())) {
        let before = standing
            .iter()
            .find(|other| other["controllerName"] == CONTROLLER && same(&other[list.reference()], &entry.reference))
            .and_then(|other| other["conditions"].as_array())
            .map(Vec::as_slice)
            .unwrap_or_default();
        result.push(json!({
            list.reference(): entry.reference,
            "controllerName": CONTROLLER,
            "conditions": entry.conditions.iter().map(|c| condition(c, before, now)).collect::<Vec<_>>(),
        }));
    }
    // Their order says nothing.
    let is_same = result.len() == standing.len() && result.iter().all(|entry| standing.contains(entry));
    (!is_same).then_some(result)
}

/// A merge patch (RFC 7386) for the `status` subresource. It names the version that was looked at, so that the server refuses it
/// where somebody else has written meanwhile: the list has no keys by which it could merge.
pub fn patch(list: List, resource_version: &str, entries: Vec<Value>, more: Map<String, Value>) -> Value {
    let mut status = more;
    status.insert(list.name().into(), entries.into());
    json!({ "metadata": { "resourceVersion": resource_version }, "status": status })
}

/// A condition in full. Its time is that of the last change of its status alone.
fn condition(wanted: &Condition, before: &[Value], now: &str) -> Value {
    let status = if wanted.status { "True" } else { "False" };
    let kept = before.iter().find(|c| c["type"] == wanted.kind && c["status"] == status);
    let time = kept.and_then(|c| c["lastTransitionTime"].as_str()).unwrap_or(now);
    let message: String = wanted.message.chars().take(MAX_MESSAGE / 4).collect();
    json!({
        "type": wanted.kind,
        "status": status,
        "reason": wanted.reason,
        "message": message,
        "observedGeneration": wanted.generation,
        "lastTransitionTime": time,
    })
}

/// Whether two references mean the same: the API server adds defaults to what was left out.
fn same(a: &Value, b: &Value) -> bool {
    let text = |value: &Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
    ["group", "kind", "namespace", "name", "sectionName"].iter().all(|field| text(a, field) == text(b, field))
        && a["port"] == b["port"]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, status: bool, generation: i64) -> Entry {
        Entry {
            reference: json!({"group": "", "kind": "Service", "name": name}),
            conditions: vec![Condition {
                kind: "Accepted",
                status,
                reason: if status { "Accepted" } else { "NoMatchingParent" }.into(),
                message: String::new(),
                generation,
            }],
        }
    }

    fn theirs() -> Value {
        json!({"parentRef": {"name": "gateway"}, "controllerName": "example.com/other", "conditions": [{"type": "Odd"}]})
    }

    #[test]
    fn entries_of_others_stay_and_ours_are_replaced() {
        let status = json!({"parents": [theirs()]});
        let parents = merged(List::Parents, &status, &[entry("web", true, 1)], "t1").expect("it is new");
        assert_eq!(parents[0], theirs());
        assert_eq!((parents.len(), &parents[1]["conditions"][0]["lastTransitionTime"]), (2, &json!("t1")));
        assert_eq!(parents[1]["parentRef"], json!({"group": "", "kind": "Service", "name": "web"}));
        assert_eq!(parents[1]["controllerName"], CONTROLLER);

        // Nothing to do, in whatever order they stand.
        let turned = json!({"parents": [parents[1], parents[0]]});
        assert_eq!(merged(List::Parents, &turned, &[entry("web", true, 1)], "t2"), None);

        // Another generation: the same transition. Another status: another one.
        let status = json!({"parents": parents});
        let later = merged(List::Parents, &status, &[entry("web", true, 2)], "t3").expect("the generation is another");
        assert_eq!(later[1]["conditions"][0]["lastTransitionTime"], "t1");
        assert_eq!(later[1]["conditions"][0]["observedGeneration"], 2);
        let later = merged(List::Parents, &status, &[entry("web", false, 2)], "t3").expect("the status is another");
        assert_eq!(later[1]["conditions"][0]["lastTransitionTime"], "t3");

        // It refers to nothing of ours any more.
        assert_eq!(merged(List::Parents, &status, &[], "t4"), Some(vec![theirs()]));
        assert_eq!(merged(List::Parents, &json!({"parents": [theirs()]}), &[], "t5"), None);
        assert_eq!(merged(List::Parents, &Value::Null, &[], "t5"), None);
    }

    #[test]
    fn there_are_never_more_entries_than_the_server_takes() {
        let status = json!({"ancestors": vec![json!({"ancestorRef": {}, "controllerName": "x/y"}); 15]});
        let ours = [entry("a", true, 1), entry("b", true, 1)];
        assert_eq!(merged(List::Ancestors, &status, &ours, "t").expect("one fits").len(), 16);
    }

    #[test]
    fn a_patch_says_what_it_was_made_from() {
        let patch = patch(List::Parents, "77", vec![], Map::new());
        assert_eq!(patch, json!({"metadata": {"resourceVersion": "77"}, "status": {"parents": []}}));
    }
}
