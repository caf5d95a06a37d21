//! What replicas tell each other of the roots, on its way over the wire.

use std::collections::{BTreeMap, BTreeSet};

use tonic::Status;
use weft_core::service::ObjectRef;
use weft_proto::v1;

use super::ledger::Report;
use super::replicas::Account;

/// What this replica tells.
///
/// # Errors
///
/// Where the state cannot be written.
pub fn to_wire(account: &Account) -> Result<v1::ReplicaTrustResponse, Status> {
    let state = serde_json::to_string(&account.state).map_err(|e| Status::internal(e.to_string()))?;
    let mut places: BTreeMap<&str, u32> = BTreeMap::new();
    let mut anchors = Vec::new();
    let mut sidecars = Vec::with_capacity(account.sidecars.len());
    for (pod, report) in &account.sidecars {
        let mut place = |anchor| {
            *places.entry(anchor).or_insert_with(|| {
                anchors.push(String::from(anchor));
                anchors.len() as u32 - 1
            })
        };
        let mut sidecar =
            v1::ReplicaSidecar { namespace: pod.namespace.to_string(), pod: pod.name.to_string(), ..Default::default() };
        match report {
            None => sidecar.silent = true,
            Some(report) => {
                sidecar.anchor = if report.anchor.is_empty() { 0 } else { place(report.anchor.as_str()) + 1 };
                sidecar.trusted = report.trusted.iter().map(|anchor| place(anchor.as_str())).collect();
                (sidecar.unsaved, sidecar.until) = (report.unsaved, report.until);
            }
        }
        sidecars.push(sidecar);
    }
    Ok(v1::ReplicaTrustResponse { state, anchors, sidecars })
}

/// What another replica told.
///
/// # Errors
///
/// Where it cannot be read.
pub fn from_wire(told: &v1::ReplicaTrustResponse) -> Result<Account, String> {
    let state = serde_json::from_str(&told.state).map_err(|e| format!("its state cannot be read: {e}"))?;
    let anchor =
        |place: u32| told.anchors.get(place as usize).cloned().ok_or_else(|| format!("it names anchor {place}, and has none"));
    let mut sidecars = BTreeMap::new();
    for sidecar in &told.sidecars {
        let bad = |e: weft_core::identity::InvalidName| format!("it names a pod that is none: {e}");
        let pod = ObjectRef { namespace: sidecar.namespace.parse().map_err(bad)?, name: sidecar.pod.parse().map_err(bad)? };
        let report = if sidecar.silent {
            None
        } else {
            let trusted: BTreeSet<String> = sidecar.trusted.iter().map(|place| anchor(*place)).collect::<Result<_, _>>()?;
            let serves = sidecar.anchor.checked_sub(1).map(anchor).transpose()?.unwrap_or_default();
            Some(Report { serial: String::new(), until: sidecar.until, anchor: serves, trusted, unsaved: sidecar.unsaved })
        };
        sidecars.insert(pod, report);
    }
    Ok(Account { state, sidecars })
}

#[cfg(test)]
mod tests {
    use super::super::rotation::State;
    use super::*;

    #[test]
    fn an_account_is_the_same_behind_the_wire() {
        let pod = |name: &str| format!("shop/{name}").parse().expect("a name");
        let report = |anchor: &str, trusted: &[&str]| Report {
            serial: String::new(),
            until: 1000,
            anchor: anchor.into(),
            trusted: trusted.iter().map(ToString::to_string).collect(),
            unsaved: anchor == "new",
        };
        let account = Account {
            state: State::settled("old".into()).begin("new".into(), 7).expect("settled"),
            sidecars: [
                (pod("a"), Some(report("old", &["new", "old"]))),
                (pod("b"), Some(report("new", &["old"]))),
                (pod("c"), Some(report("", &[]))),
                (pod("d"), None),
            ]
            .into(),
        };
        let wire = to_wire(&account).expect("plain");
        assert_eq!(wire.anchors.len(), 2);
        assert_eq!(from_wire(&wire), Ok(account));
        let strange = v1::ReplicaTrustResponse {
            state: serde_json::to_string(&State::settled("old".into())).expect("plain"),
            anchors: vec![],
            sidecars: vec![v1::ReplicaSidecar { namespace: "shop".into(), pod: "a".into(), anchor: 1, ..Default::default() }],
        };
        assert!(from_wire(&strange).is_err());
    }
}
