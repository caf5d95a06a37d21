use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::super::ledger::{Certificate, Unrecorded};
use super::super::living::Living;
use super::*;

fn pod(name: &str) -> ObjectRef {
    format!("shop/{name}").parse().expect("a name")
}

/// Each has its end as its serial number.
fn certificate(until: i64) -> Certificate {
    Certificate { serial: until.to_string(), until }
}

fn report(anchor: &str, until: i64, trusted: &[&str]) -> Report {
    let trusted = trusted.iter().map(ToString::to_string).collect();
    Report { serial: until.to_string(), until, anchor: anchor.into(), trusted, unsaved: false }
}

fn evidence(ledger: &Ledger, now: i64) -> Evidence<'_> {
    Evidence { ledger, lives: &|_| true, now }
}

fn shown(missing: &[Missing]) -> Vec<(String, Why)> {
    missing.iter().map(|m| (m.pod.as_ref().map_or_else(|| "?".into(), ToString::to_string), m.why)).collect()
}

/// Two pods with certificates of "old" until 1000.
fn mesh() -> Ledger {
    let mut ledger = Ledger::default();
    for name in ["a", "b"] {
        ledger.issued(pod(name), "old".into(), certificate(1000));
        ledger.joined(&pod(name), certificate(1000));
        ledger.reported(&pod(name), report("old", 1000, &["old"]));
    }
    ledger
}

#[test]
fn a_root_is_replaced_step_by_step_as_the_evidence_comes() {
    let mut ledger = mesh();
    let state = State::settled("old".into());
    assert_eq!(state.finish(evidence(&ledger, 1)), Err(Refusal::Settled));
    let state = state.begin("new".into(), 1).expect("nothing is under way");
    assert_eq!(state.begin("newer".into(), 1), Err(Refusal::UnderWay));
    assert_eq!(state.trusted().collect::<Vec<_>>(), ["old", "new"]);
    assert_eq!(state.issuing(), "old");
    assert_eq!(
        shown(&state.missing(evidence(&ledger, 2))),
        [("shop/a".into(), Why::NotTrustedYet), ("shop/b".into(), Why::NotTrustedYet)]
    );
    ledger.reported(&pod("a"), Report { unsaved: true, ..report("old", 1000, &["old", "new"]) });
    assert_eq!(state.missing(evidence(&ledger, 2))[0].why, Why::NotKept);
    ledger.reported(&pod("a"), report("old", 1000, &["old", "new"]));
    assert_eq!(state.step(evidence(&ledger, 3)), None);
    assert_eq!(state.finish(evidence(&ledger, 3)), Err(Refusal::NotIssuing(1)));
    ledger.reported(&pod("b"), report("old", 1000, &["new", "old"]));

    let state = state.step(evidence(&ledger, 4)).expect("all trust both");
    assert_eq!((state.issuing().as_str(), state.next.as_ref().map(|n| n.since)), ("new", Some(4)));
    assert_eq!(state.step(evidence(&ledger, 5)), None, "the last step is a person's");
    assert_eq!(state.finish(evidence(&ledger, 5)), Err(Refusal::StillServed(2)));
    ledger.issued(pod("a"), "new".into(), certificate(2000));
    ledger.reported(&pod("a"), report("new", 2000, &["new", "old"]));
    assert_eq!(shown(&state.missing(evidence(&ledger, 6))), [("shop/b".into(), Why::NotReplacedYet)]);
    assert_eq!(state.finish(evidence(&ledger, 1020)), Err(Refusal::StillServed(1)), "clocks may differ by 20 s");
    assert_eq!(state.finish(evidence(&ledger, 9999)), Err(Refusal::StillServed(1)), "it is connected: the clock may have jumped");
    ledger.left(&pod("b"));
    assert_eq!(state.finish(evidence(&ledger, 1021)), Ok(State::settled("new".into())), "it has expired");
}

#[test]
fn those_who_are_missing_are_told_by_name_and_reason_and_can_be_given_up() {
    let mut ledger = mesh();
    ledger.left(&pod("a"));
    ledger.reported(&pod("b"), report("", 1000, &[]));
    ledger.issued(pod("gone"), "old".into(), certificate(1000));
    ledger.lost(Unrecorded { issued: 0, until: 500 });
    let lives = |p: &ObjectRef| *p != pod("gone");
    let evidence = |now| Evidence { ledger: &ledger, lives: &lives, now };
    let state = State::settled("old".into()).begin("new".into(), 1).expect("nothing is under way");
    assert_eq!(
        shown(&state.missing(evidence(2))),
        [("shop/a".into(), Why::Away), ("shop/b".into(), Why::DoesNotTell), ("?".into(), Why::Unrecorded)]
    );
    assert_eq!(state.give_up(Some(&pod("x")), evidence(2)), Err(Refusal::NotMissing("shop/x".into())));
    assert_eq!(State::settled("old".into()).give_up(None, evidence(2)), Err(Refusal::Settled));
    let state = state.give_up(Some(&pod("a")), evidence(2)).expect("it is missing");
    let state = state.give_up(Some(&pod("b")), evidence(2)).expect("it is missing");
    assert_eq!(state.give_up(Some(&pod("b")), evidence(2)), Ok(state.clone()), "given up again");
    assert_eq!(state.step(evidence(2)), None, "certificates without a record");
    assert!(state.step(evidence(521)).is_some(), "they have expired");
    let state = state.give_up(None, evidence(2)).expect("they are missing");
    assert!(state.step(evidence(2)).is_some());
    let text = serde_json::to_string(&state).expect("written");
    assert!(text.contains(r#""givenUp":["shop/a","shop/b"]"#), "{text}");
    assert_eq!(serde_json::from_str::<State>(&text).expect("read"), state);
}

#[test]
fn an_abort_goes_back_and_keeps_the_new_anchor_while_it_is_served() {
    let mut ledger = mesh();
    let spreading = State::settled("old".into()).begin("new".into(), 1).expect("nothing is under way");
    let back = spreading.abort(evidence(&ledger, 2)).expect("under way");
    assert_eq!(back.step(evidence(&ledger, 2)), Some(State::settled("old".into())), "nobody had anything of the new one");

    for name in ["a", "b"] {
        ledger.reported(&pod(name), report("old", 1000, &["old", "new"]));
    }
    let reissuing = spreading.step(evidence(&ledger, 3)).expect("all trust both");
    ledger.issued(pod("a"), "new".into(), certificate(2000));
    ledger.reported(&pod("a"), report("new", 2000, &["old", "new"]));
    let back = reissuing.abort(evidence(&ledger, 4)).expect("under way");
    assert_eq!((back.issuing().as_str(), back.trusted().count()), ("old", 2));
    assert_eq!(back.abort(evidence(&ledger, 5)), Ok(back.clone()), "once is enough");
    assert_eq!(back.finish(evidence(&ledger, 5)), Err(Refusal::Aborting));
    assert_eq!(back.begin("newer".into(), 5), Err(Refusal::Aborting));
    assert_eq!(shown(&back.missing(evidence(&ledger, 5))), [("shop/a".into(), Why::NotReplacedYet)]);
    ledger.lost(Unrecorded { issued: 0, until: 900 });
    ledger.issued(pod("a"), "old".into(), certificate(2001));
    ledger.reported(&pod("a"), report("old", 2001, &["old", "new"]));
    assert_eq!(
        back.step(evidence(&ledger, 6)),
        Some(State::settled("old".into())),
        "what is without a record is older than the new root"
    );
    ledger.lost(Unrecorded { issued: 2, until: 900 });
    assert_eq!(back.step(evidence(&ledger, 6)), None, "it may be of the new root");
}

#[test]
fn sidecars_are_given_time_by_their_number() {
    let mut ledger = Ledger::default();
    for i in 0..10_000 {
        let name = pod(&format!("p{i}"));
        ledger.issued(name.clone(), "old".into(), certificate(1000));
        ledger.reported(&name, report("old", 1000, &["old", "new"]));
    }
    let state = State::settled("old".into()).begin("new".into(), 1).expect("nothing is under way");
    let state = state.step(evidence(&ledger, 2)).expect("all trust both");
    assert_eq!(state.next.map(|n| n.spread_seconds), Some(100));
}

/// What may happen in a mesh.
#[derive(Clone, Copy, Debug)]
enum Event {
    Join(usize),
    Renew(usize),
    /// Issued, and the answer is on its way, or lost.
    Issue(usize),
    /// The answer is there after all.
    Adopt(usize),
    Connect(usize),
    Disconnect(usize),
    /// The bundle comes, and is in force before it is told.
    Push(usize),
    /// What is in use is written to the sidecar's disk.
    Save(usize),
    /// It goes on with what is on its disk.
    Crash(usize),
    Report(usize),
    Die(usize),
    GiveUp(usize),
    /// The model lacks those of whom the bit is set, since their manifests cannot be read.
    Restart(u8),
    /// The model has everybody.
    Read,
    Later(i64),
    Begin,
    Step,
    Finish,
    Abort,
}

fn event() -> impl Strategy<Value = Event> {
    let some = || 0..4_usize;
    prop_oneof![
        3 => some().prop_map(Event::Join),
        3 => some().prop_map(Event::Renew),
        2 => some().prop_map(Event::Issue),
        2 => some().prop_map(Event::Adopt),
        4 => some().prop_map(Event::Connect),
        1 => some().prop_map(Event::Disconnect),
        5 => some().prop_map(Event::Push),
        6 => some().prop_map(Event::Report),
        5 => some().prop_map(Event::Save),
        1 => some().prop_map(Event::Crash),
        1 => some().prop_map(Event::Die),
        1 => some().prop_map(Event::GiveUp),
        1 => (0..16_u8).prop_map(Event::Restart),
        2 => Just(Event::Read),
        2 => (1..80_i64).prop_map(Event::Later),
        2 => Just(Event::Begin),
        4 => Just(Event::Step),
        2 => Just(Event::Finish),
        1 => Just(Event::Abort),
    ]
}

/// A sidecar as it is, whatever the control plane believes.
#[derive(Clone, Default)]
struct Sidecar {
    serial: i64,
    anchor: Anchor,
    until: i64,
    trusted: BTreeSet<Anchor>,
    connected: bool,
    /// What was issued last and has not come: serial number, anchor, end, and the bundle beside it. A bundle that is pushed meanwhile is put in
    /// force after it.
    awaited: Option<(i64, Anchor, i64, BTreeSet<Anchor>)>,
    /// Nobody waits for it: until the rotation is over in which that was said, and it has joined again.
    given_up: bool,
    /// On its disk: serial number, anchor, end, and what it trusts.
    saved: Option<(i64, Anchor, i64, BTreeSet<Anchor>)>,
}

struct World {
    state: State,
    ledger: Ledger,
    sidecars: [Option<Sidecar>; 4],
    now: i64,
    serial: i64,
    /// How many rotations there were.
    roots: u32,
    living: Living,
    start: Instant,
    /// Of whom the manifest cannot be read.
    hidden: [bool; 4],
}

/// How long a leaf lives in these worlds.
const LIFE: i64 = 100;

impl World {
    fn new() -> Self {
        Self {
            state: State::settled("root".into()),
            ledger: Ledger::default(),
            sidecars: Default::default(),
            now: 1_000,
            serial: 0,
            roots: 0,
            living: Living::default(),
            start: Instant::now(),
            hidden: [false; 4],
        }
    }

    fn issue(&mut self, i: usize) -> Sidecar {
        self.serial += 1;
        let (anchor, until) = (self.state.issuing().clone(), self.now + LIFE);
        self.ledger.issued(pod(&i.to_string()), anchor.clone(), Certificate { serial: self.serial.to_string(), until });
        Sidecar {
            serial: self.serial,
            anchor,
            until,
            trusted: self.state.trusted().cloned().collect(),
            connected: false,
            awaited: None,
            given_up: self.state.next.as_ref().is_some_and(|n| n.given_up.contains(&pod(&i.to_string()))),
            saved: None,
        }
    }

    fn happen(&mut self, event: Event) {
        let living = std::mem::take(&mut self.living);
        let in_model: [bool; 4] = std::array::from_fn(|i| self.sidecars[i].is_some() && !self.hidden[i]);
        let lives = |p: &ObjectRef| living.lives(p, p.name.to_string().parse().is_ok_and(|i: usize| in_model[i]));
        let evidence = Evidence { ledger: &self.ledger, lives: &lives, now: self.now };
        let next = match event {
            Event::Begin => {
                // Each rotation has a root of its own.
                self.roots += 1;
                self.state.begin(format!("root{}", self.roots), self.now).ok()
            }
            Event::Step => self.state.step(evidence),
            Event::Finish => self.state.finish(evidence).ok(),
            Event::Abort => self.state.abort(evidence).ok(),
            Event::GiveUp(i) => {
                let given_up = self.state.give_up(Some(&pod(&i.to_string())), evidence).ok();
                if let (Some(_), Some(sidecar)) = (&given_up, &mut self.sidecars[i]) {
                    sidecar.given_up = true;
                }
                given_up
            }
            _ => None,
        };
        if let Some(next) = next {
            self.check(&next);
            self.state = next;
        }
        self.living = living;
        match event {
            Event::Join(i) if self.sidecars[i].is_none() => self.sidecars[i] = Some(self.issue(i)),
            Event::Renew(i) if self.sidecars[i].is_some() => {
                let (before, fresh) = (self.sidecars[i].take().expect("there"), self.issue(i));
                self.sidecars[i] =
                    Some(Sidecar { connected: before.connected, given_up: before.given_up, saved: before.saved, ..fresh });
            }
            Event::Issue(i) if self.sidecars[i].is_some() => {
                let fresh = self.issue(i);
                if let Some(sidecar) = &mut self.sidecars[i] {
                    sidecar.awaited = Some((fresh.serial, fresh.anchor, fresh.until, fresh.trusted));
                }
            }
            Event::Save(i) => {
                if let Some(s) = &mut self.sidecars[i] {
                    s.saved = Some((s.serial, s.anchor.clone(), s.until, s.trusted.clone()));
                }
            }
            // Without anything on its disk it has no certificate any more: it joins anew.
            Event::Crash(i) => {
                self.talk(Event::Disconnect(i), i);
                self.sidecars[i] = self.sidecars[i].take().and_then(|s| {
                    let (serial, anchor, until, trusted) = s.saved.clone()?;
                    Some(Sidecar { serial, anchor, until, trusted, awaited: None, ..s })
                });
            }
            Event::Adopt(i) => {
                if let Some(sidecar) = &mut self.sidecars[i]
                    && let Some(awaited) = sidecar.awaited.take()
                {
                    (sidecar.serial, sidecar.anchor, sidecar.until, sidecar.trusted) = awaited;
                }
            }
            Event::Read => self.hidden = [false; 4],
            Event::Restart(hidden) => {
                self.living = Living::default();
                self.hidden = std::array::from_fn(|i| hidden & (1 << i) != 0);
                // What was issued is in the journal; what was said is not.
                let mut ledger = Ledger::default();
                for (pod, anchor, certificate) in self.ledger.in_order() {
                    ledger.issued(pod.clone(), anchor.clone(), certificate.clone());
                }
                ledger.purge(self.now);
                self.ledger = ledger;
                self.sidecars.iter_mut().flatten().for_each(|s| s.connected = false);
            }
            Event::Later(seconds) => {
                self.now += seconds;
                self.ledger.purge(self.now);
            }
            Event::Connect(i) | Event::Disconnect(i) | Event::Push(i) | Event::Report(i) | Event::Die(i) => self.talk(event, i),
            _ => {}
        }
        self.look(Duration::ZERO);
        if matches!(event, Event::Read) {
            self.look(Duration::from_secs(60));
        }
        self.check_handshakes();
    }

    /// The control plane looks at its model.
    fn look(&self, later: Duration) {
        let pods: Vec<ObjectRef> =
            (0..4).filter(|i| self.sidecars[*i].is_some() && !self.hidden[*i]).map(|i| pod(&i.to_string())).collect();
        self.living.look(pods.iter(), self.hidden == [false; 4], self.start + later);
    }

    fn talk(&mut self, event: Event, i: usize) {
        let Some(sidecar) = &mut self.sidecars[i] else { return };
        let name = pod(&i.to_string());
        match event {
            Event::Connect(_) if !sidecar.connected => {
                sidecar.connected = true;
                self.ledger.joined(&name, Certificate { serial: sidecar.serial.to_string(), until: sidecar.until });
            }
            Event::Push(_) if sidecar.connected => {
                let trusted = self.state.trusted().cloned().collect();
                match &mut sidecar.awaited {
                    Some(awaited) => awaited.3 = trusted,
                    None => sidecar.trusted = trusted,
                }
            }
            Event::Report(_) if sidecar.connected => {
                let trusted = sidecar.trusted.clone();
                let (serial, until, anchor) = (sidecar.serial.to_string(), sidecar.until, sidecar.anchor.clone());
                let kept = sidecar.saved.as_ref().is_some_and(|(s, _, _, t)| *s == sidecar.serial && *t == sidecar.trusted);
                self.ledger.reported(&name, Report { serial, until, anchor, trusted, unsaved: !kept });
            }
            Event::Disconnect(_) | Event::Die(_) => {
                if std::mem::take(&mut sidecar.connected) {
                    self.ledger.left(&name);
                }
                if matches!(event, Event::Die(_)) {
                    self.sidecars[i] = None;
                }
            }
            _ => {}
        }
    }

    /// Those who count, and serve a certificate that somebody takes.
    fn serving(&self) -> impl Iterator<Item = &Sidecar> {
        self.sidecars.iter().flatten().filter(|s| !s.given_up && is_good(s.until, self.now))
    }

    fn check(&self, next: &State) {
        let trusted: Vec<_> = next.trusted().collect();
        for gone in self.state.trusted().filter(|a| !trusted.contains(a)) {
            assert!(self.serving().all(|s| s.anchor != *gone), "{gone} is removed while it is served");
        }
        if next.issuing() != self.state.issuing() {
            assert!(
                self.serving().all(|s| s.trusted.contains(next.issuing())),
                "{} issues, and not all trust it",
                next.issuing()
            );
        }
    }

    /// Each takes the certificate of every other, at any time.
    fn check_handshakes(&self) {
        for server in self.serving() {
            assert!(
                self.serving().all(|client| client.trusted.contains(&server.anchor)),
                "a handshake fails in {:?}",
                self.state
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    /// Whatever happens: no anchor is removed while it is served, no root issues that not all trust, and no handshake fails.
    #[test]
    fn no_order_of_events_breaks_the_mesh(events in proptest::collection::vec(event(), 0..150)) {
        let mut world = World::new();
        for event in events {
            world.happen(event);
        }
    }

    /// A mesh in which everybody answers comes to the end, from wherever it stands, without anybody being given up.
    #[test]
    fn who_answers_is_never_in_the_way(events in proptest::collection::vec(event(), 0..60), finish in any::<bool>()) {
        let mut world = World::new();
        for event in events.into_iter().chain([Event::Begin]) {
            world.happen(event);
        }
        for _ in 0..3 {
            world.happen(Event::Read);
            for i in 0..4 {
                for event in [Event::Join(i), Event::Renew(i), Event::Connect(i), Event::Push(i), Event::Save(i), Event::Report(i)] {
                    world.happen(event);
                }
            }
            world.happen(Event::Step);
            world.happen(if finish { Event::Finish } else { Event::Abort });
        }
        world.happen(Event::Step);
        prop_assert!(world.state.next.is_none(), "{:?}", world.state);
    }
}
