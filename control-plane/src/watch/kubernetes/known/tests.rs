use serde_json::{Value, json};

use super::*;

fn service(name: &str, ip: &str) -> Received {
    received(&json!({
        "metadata": {"name": name, "namespace": "shop", "resourceVersion": "7"},
        "spec": {"clusterIP": ip, "ports": [{"port": 80}]},
    }))
}

fn received(value: &Value) -> Received {
    serde_json::from_value::<Lean>(value.clone()).expect("every object is read").read(Kind::Service)
}

fn names(batch: &Batch) -> Vec<String> {
    let name = |c: &Change| match c {
        Change::Upsert(o) => format!("+{}", o.key().id.name),
        Change::Delete(k) => format!("-{}", k.id.name),
    };
    batch.changes.iter().map(name).collect()
}

fn known(kinds: &[Kind]) -> Known {
    Known::new(kinds, Arc::default())
}

/// One that follows services alone, with `listed` in its first list.
fn after_first_list(listed: &[Received]) -> (Known, Instant) {
    let (mut known, now) = (known(&[Kind::Service]), Instant::now());
    known.hear(Kind::Service, Event::Listing, now);
    for received in listed {
        known.hear(Kind::Service, Event::Listed(received.clone()), now);
    }
    known.hear(Kind::Service, Event::Complete, now);
    let batch = known.take(now).expect("the first sight of all");
    assert!(batch.complete);
    assert_eq!(names(&batch).len(), listed.len());
    (known, now)
}

#[test]
fn nothing_is_delivered_before_every_kind_has_been_read() {
    let (mut known, now) = (known(&[Kind::Service, Kind::Pod]), Instant::now());
    for event in [Event::Listing, Event::Listed(service("web", "10.0.0.1")), Event::Complete] {
        known.hear(Kind::Service, event, now);
    }
    known.hear(Kind::Pod, Event::Failed("forbidden".into()), now);
    let batch = known.take(now).expect("a problem");
    assert_eq!((batch.complete, batch.changes.len()), (false, 0));
    assert_eq!(batch.problems[0].to_string(), "v1/Pod: forbidden");
    assert!(known.take(now).is_none(), "told once");

    // A kind that was never read keeps its problem, however long it takes.
    assert!(known.take(now + 10 * FAILURE_STANDS).is_none());
    known.hear(Kind::Pod, Event::Listing, now);
    assert!(known.take(now).is_none(), "a list that begins shows nothing");
    known.hear(Kind::Pod, Event::Complete, now);
    let batch = known.take(now).expect("the first sight of all");
    assert!(batch.complete && batch.problems.is_empty());
    assert_eq!(names(&batch), ["+web"]);
}

#[test]
fn an_empty_cluster_is_complete_too() {
    after_first_list(&[]);
}

#[test]
fn changes_that_come_together_are_one_and_those_that_change_nothing_none() {
    let (mut known, now) = after_first_list(&[service("web", "10.0.0.1")]);
    known.hear(Kind::Service, Event::Put(service("web", "10.0.0.1")), now);
    assert_eq!(known.waiting(), 0);
    for n in 2..9 {
        known.hear(Kind::Service, Event::Put(service("web", &format!("10.0.0.{n}"))), now);
    }
    assert_eq!(known.waiting(), 1);
    known.hear(Kind::Service, Event::Gone(service("web", "10.0.0.8")), now);
    assert_eq!(names(&known.take(now).expect("a change")), ["-web"]);
}

#[test]
fn what_a_later_list_lacks_is_gone_and_what_it_brings_anew_is_there() {
    let (mut known, now) = after_first_list(&[service("a", "10.0.0.1"), service("b", "10.0.0.2")]);
    known.hear(Kind::Service, Event::Listing, now);
    known.hear(Kind::Service, Event::Listed(service("a", "10.0.0.1")), now);
    // It broke off, and begins anew: what it brought does not count.
    known.hear(Kind::Service, Event::Listing, now);
    known.hear(Kind::Service, Event::Listed(service("b", "10.0.0.2")), now);
    known.hear(Kind::Service, Event::Listed(service("c", "10.0.0.3")), now);
    known.hear(Kind::Service, Event::Complete, now);
    assert_eq!(names(&known.take(now).expect("changes")), ["-a", "+c"]);
}

#[test]
fn an_object_that_cannot_be_read_keeps_its_last_good_version_and_says_so() {
    let (mut known, now) = after_first_list(&[service("web", "10.0.0.1")]);
    let broken = received(&json!({
        "metadata": {"name": "web", "namespace": "shop", "resourceVersion": "8"}, "spec": {"ports": [{"port": "eighty"}]},
    }));
    known.hear(Kind::Service, Event::Put(broken.clone()), now);
    let batch = known.take(now).expect("a problem");
    assert!(batch.changes.is_empty(), "the last good version stands");
    let p = &batch.problems[0];
    assert_eq!((p.place.as_str(), p.field.as_str()), ("Service shop/web", "spec.ports[0].port"));
    // It stands in a later list, still broken: it is not gone.
    known.hear(Kind::Service, Event::Listing, now);
    known.hear(Kind::Service, Event::Listed(broken.clone()), now);
    known.hear(Kind::Service, Event::Complete, now);
    assert!(known.take(now).is_none());
    // It is not in the next one: both go.
    known.hear(Kind::Service, Event::Listing, now);
    known.hear(Kind::Service, Event::Complete, now);
    let batch = known.take(now).expect("it is gone");
    assert_eq!((names(&batch), batch.problems.len()), (vec!["-web".to_owned()], 0));
}

#[test]
fn a_failure_ends_with_the_next_event_or_when_it_is_not_repeated() {
    let (mut known, now) = after_first_list(&[]);
    known.hear(Kind::Service, Event::Failed("away".into()), now);
    assert_eq!(known.take(now).expect("a problem").problems.len(), 1);
    assert!(known.take(now + FAILURE_STANDS / 2).is_none());
    assert_eq!(known.take(now + FAILURE_STANDS).expect("no problem").problems.len(), 0);
    known.hear(Kind::Service, Event::Failed("away".into()), now);
    assert_eq!(known.take(now).expect("a problem").problems.len(), 1);
    known.hear(Kind::Service, Event::Put(service("web", "10.0.0.1")), now);
    assert_eq!(known.take(now).expect("a change").problems.len(), 0);
}

fn route(name: &str, version: u32) -> Received {
    let value = json!({
        "metadata": {"name": name, "namespace": "shop", "resourceVersion": version.to_string(), "generation": 3},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "web"}],
            "rules": [{"backendRefs": [{"name": "web", "port": 80}]}],
        },
        "status": {"parents": []},
    });
    serde_json::from_value::<Lean>(value).expect("every object is read").read(Kind::HttpRoute)
}

#[test]
fn a_kind_that_the_cluster_does_not_have_is_waited_for_a_moment() {
    let (mut known, now) = (known(&[Kind::Service, Kind::HttpRoute]), Instant::now());
    known.hear(Kind::Service, Event::Complete, now);
    known.hear(Kind::HttpRoute, Event::Absent, now);
    assert!(!known.take(now).expect("the first sight").complete, "the server may have just started");
    // It is there, and fails: what was seen before says nothing.
    known.hear(Kind::HttpRoute, Event::Failed("away".into()), now + ABSENCE_SHOWS);
    known.hear(Kind::HttpRoute, Event::Absent, now + ABSENCE_SHOWS);
    assert!(known.take(now).is_none_or(|batch| !batch.complete));
    known.hear(Kind::HttpRoute, Event::Absent, now + 2 * ABSENCE_SHOWS);
    let batch = known.take(now).expect("everything");
    assert!(batch.complete && batch.problems.is_empty(), "{batch:?}");
    // It comes later.
    known.hear(Kind::HttpRoute, Event::Put(route("canary", 1)), now);
    assert_eq!(names(&known.take(now).expect("a change")), ["+canary"]);
}

#[test]
fn a_kind_that_cannot_be_read_is_waited_for_whatever_it_is() {
    // Sidecars hold routes that this replica would take for deleted.
    for kind in [Kind::Pod, Kind::HttpRoute, Kind::TrafficPolicy] {
        let (mut known, now) = (known(&[Kind::Service, kind]), Instant::now());
        known.hear(Kind::Service, Event::Complete, now);
        for secs in [0, 15, 60, 3600] {
            let now = now + Duration::from_secs(secs);
            known.hear(kind, Event::Failed("forbidden".into()), now);
            let batch = known.take(now);
            assert!(batch.is_none_or(|batch| !batch.complete && batch.problems.len() == 1), "{kind:?} after {secs} s");
        }
        known.hear(kind, Event::Complete, now);
        assert!(known.take(now).expect("everything").complete);
    }
}

#[test]
fn a_failure_long_ago_does_not_make_an_absence_stand() {
    let (mut known, now) = (known(&[Kind::HttpRoute]), Instant::now());
    for event in [Event::Listing, Event::Listed(route("canary", 7)), Event::Complete] {
        known.hear(Kind::HttpRoute, event, now);
    }
    known.take(now).expect("all");
    known.hear(Kind::HttpRoute, Event::Failed("away".into()), now);
    known.hear(Kind::HttpRoute, Event::Absent, now + ABSENCE_STANDS + Duration::from_secs(10));
    assert!(known.take(now).is_none_or(|batch| batch.changes.is_empty()), "it is absent since just now");
}

#[test]
fn a_kind_that_is_absent_for_a_moment_keeps_its_objects() {
    let (statuses, now) = (Arc::<Statuses>::default(), Instant::now());
    let mut known = Known::new(&[Kind::HttpRoute], statuses.clone());
    let canary = route("canary", 7);
    let key = canary.key.clone().expect("a name");
    for event in [Event::Listing, Event::Listed(canary.clone()), Event::Complete] {
        known.hear(Kind::HttpRoute, event, now);
    }
    assert_eq!(names(&known.take(now).expect("all")), ["+canary"]);
    let standing = statuses.get(&key).expect("its status is noted");
    assert_eq!((standing.resource_version.as_str(), standing.generation), ("7", 3));

    known.hear(Kind::HttpRoute, Event::Absent, now);
    known.hear(Kind::HttpRoute, Event::Absent, now + ABSENCE_STANDS / 2);
    assert!(known.take(now).is_none());
    // It was there in between: the time begins anew.
    known.hear(Kind::HttpRoute, Event::Put(canary), now + ABSENCE_STANDS / 2);
    known.hear(Kind::HttpRoute, Event::Absent, now + ABSENCE_STANDS);
    assert!(known.take(now).is_none());
    known.hear(Kind::HttpRoute, Event::Absent, now + 2 * ABSENCE_STANDS);
    assert_eq!(names(&known.take(now).expect("it is gone")), ["-canary"]);
    assert_eq!(statuses.get(&key), None);
}

fn authorization(name: &str) -> Received {
    let value = json!({
        "metadata": {"name": name, "namespace": "shop", "resourceVersion": "3", "generation": 1}, "spec": {"action": "Deny"},
    });
    serde_json::from_value::<Lean>(value).expect("every object is read").read(Kind::AuthorizationPolicy)
}

#[test]
fn policies_that_close_stay_though_their_kind_is_absent() {
    let (mut known, now) = (known(&[Kind::AuthorizationPolicy]), Instant::now());
    for event in [Event::Listing, Event::Listed(authorization("p")), Event::Complete] {
        known.hear(Kind::AuthorizationPolicy, event, now);
    }
    assert_eq!(names(&known.take(now).expect("all")), ["+p"]);
    for secs in [0, 30, 3600] {
        let now = now + Duration::from_secs(secs);
        known.hear(Kind::AuthorizationPolicy, Event::Absent, now);
        let batch = known.take(now);
        assert!(batch.is_none_or(|b| b.changes.is_empty() && b.problems[0].message.contains("stays in force")), "after {secs} s");
    }
    // The server lists them, and it is not there.
    for event in [Event::Listing, Event::Complete] {
        known.hear(Kind::AuthorizationPolicy, event, now);
    }
    let batch = known.take(now).expect("it is gone");
    assert_eq!((names(&batch), batch.problems), (vec!["-p".to_owned()], vec![]));
}

#[test]
fn a_replica_that_starts_waits_longer_for_policies_that_close() {
    let (mut known, now) = (known(&[Kind::AuthorizationPolicy]), Instant::now());
    for secs in [0, 2, 29] {
        known.hear(Kind::AuthorizationPolicy, Event::Absent, now + Duration::from_secs(secs));
        assert!(known.take(now).is_none_or(|batch| !batch.complete), "after {secs} s");
    }
    known.hear(Kind::AuthorizationPolicy, Event::Absent, now + ABSENCE_STANDS);
    assert!(known.take(now).expect("a cluster may do without").complete);
}
