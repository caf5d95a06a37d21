use std::collections::VecDeque;

use proptest::prelude::*;

use super::super::rotation::Evidence;
use super::*;

fn pod(name: &str) -> ObjectRef {
    format!("shop/{name}").parse().expect("a name")
}

fn replica(i: usize) -> ObjectRef {
    format!("weft-system/r{i}").parse().expect("a name")
}

fn report(anchor: &str, trusted: &[&str]) -> Report {
    let trusted = trusted.iter().map(ToString::to_string).collect();
    Report { serial: String::new(), until: 1000, anchor: anchor.into(), trusted, unsaved: false }
}

fn account(state: &State, sidecars: &[(&str, Option<Report>)]) -> Account {
    Account { state: state.clone(), sidecars: sidecars.iter().map(|(name, report)| (pod(name), report.clone())).collect() }
}

fn told(i: usize, said: Result<Account, Unheard>) -> Told {
    Told { replica: replica(i), said }
}

fn spreading() -> State {
    State::settled("old".into()).begin("new".into(), 0).expect("settled")
}

fn whys(missing: &[Missing]) -> Vec<(String, Why)> {
    missing.iter().map(|m| (m.pod.as_ref().map(ToString::to_string).unwrap_or_default(), m.why)).collect()
}

#[test]
fn a_step_waits_for_every_replica_and_then_for_what_was_under_way() {
    let state = spreading();
    let mut watch = Watch::default();
    let mut look = |all: &[Told], at: u64| {
        let now = Duration::from_secs(at);
        whys(&watch.look(&state, all, vec![], &replica(0), (now, at as i64)))
    };
    let here = || told(0, Ok(account(&state, &[])));
    let behind = told(1, Ok(account(&State::settled("old".into()), &[])));
    assert_eq!(look(&[here(), behind], 0), [("weft-system/r1".into(), Why::ReplicaBehind)]);
    assert_eq!(look(&[here(), told(1, Err(Unheard::Older))], 1), [("weft-system/r1".into(), Why::ReplicaOlder)]);
    let silent = || told(1, Err(Unheard::Silent("it is away".into())));
    assert_eq!(look(&[here(), silent()], 100), [("weft-system/r1".into(), Why::ReplicaSilent)]);
    // Whom others were given up by is no part of the phase.
    let mut other = state.clone();
    other.next.as_mut().expect("begun").unrecorded_given_up = true;
    let both = || [here(), told(1, Ok(account(&other, &[])))];
    assert_eq!(look(&both(), 101), [("weft-system/r0".into(), Why::Settling)]);
    assert_eq!(look(&both(), 145), [("weft-system/r0".into(), Why::Settling)]);
    assert_eq!(look(&both(), 146), []);
    assert_eq!(look(&[here(), silent()], 147), [("weft-system/r1".into(), Why::ReplicaSilent)], "what it knows is missing");
    assert_eq!(look(&[here()], 148), [], "it is gone, and issued nothing as the phase before since");
    assert_eq!(look(&[], 149).len(), 1, "who does not know of itself knows nothing");
}

#[test]
fn a_later_phase_is_waited_for_anew() {
    let (first, mut watch) = (spreading(), Watch::default());
    let none = Ledger::default();
    let second = first.abort(Evidence { ledger: &none, lives: &|_| true, now: 1 }).expect("under way");
    for (state, at, wanted) in [(&first, 0, 1), (&first, 45, 0), (&second, 46, 1), (&second, 90, 1), (&second, 91, 0)] {
        let all = [told(0, Ok(account(state, &[])))];
        let found = watch.look(state, &all, vec![], &replica(0), (Duration::from_secs(at), 0));
        assert_eq!(found.len(), wanted, "{at}");
    }
}

#[test]
fn who_is_nowhere_connected_is_missing_and_of_two_accounts_the_worse_counts() {
    let state = spreading();
    let must = ["a", "b", "c", "d"].map(pod).into();
    let all = [
        told(0, Ok(account(&state, &[("a", Some(report("old", &["new", "old"]))), ("b", Some(report("old", &["old"])))]))),
        told(1, Ok(account(&state, &[("b", Some(report("old", &["new", "old"]))), ("c", None)]))),
        told(2, Err(Unheard::Older)),
    ];
    let ledger = put_together(&all, &must, 1000);
    let missing = state.missing(Evidence { ledger: &ledger, lives: &|_| true, now: 0 });
    let wanted = [("b", Why::NotTrustedYet), ("c", Why::NotTrustedYet), ("d", Why::Away)];
    assert_eq!(whys(&missing), wanted.map(|(name, why)| (format!("shop/{name}"), why)));
    let mut given_up = state.clone();
    for name in ["b", "c", "d"] {
        given_up = given_up.give_up(Some(&pod(name)), Evidence { ledger: &ledger, lives: &|_| true, now: 0 }).expect("missing");
    }
    assert!(given_up.step(Evidence { ledger: &ledger, lives: &|_| true, now: 0 }).is_some());
}

/// A sidecar waits so long for a certificate; a stream is silent for so long at most.
const ISSUE: u64 = 10;
const SILENCE: u64 = 30;
const REPLICAS: usize = 3;
const PODS: usize = 3;

/// Something that is under way, and since when.
struct Way<T> {
    since: u64,
    what: T,
}

struct Replica {
    /// None while it does not run; its pod is there all the same.
    state: Option<State>,
    /// Not heard, though it runs: the network between replicas is cut.
    cut: bool,
    watch: Watch,
    heard: BTreeMap<usize, Option<Report>>,
}

struct Sidecar {
    serves: Anchor,
    trusted: BTreeSet<Anchor>,
    /// Which replica, and which of the streams that it ever had.
    stream: Option<usize>,
    /// A certificate with the bundle that comes with it.
    asked: Option<Way<(Anchor, BTreeSet<Anchor>)>>,
    /// Bundles that were pushed, and reports that were sent, in order.
    pushed: VecDeque<Way<BTreeSet<Anchor>>>,
    said: VecDeque<Way<Report>>,
}

struct World {
    now: u64,
    made: usize,
    shared: State,
    replicas: Vec<Replica>,
    sidecars: Vec<Sidecar>,
    /// Roots that were removed.
    steps: usize,
}

#[derive(Clone, Debug)]
enum Event {
    Time(u64),
    /// A replica looks at what is shared.
    Look(usize),
    Step(usize),
    Rotate(usize),
    Finish(usize),
    Abort(usize),
    Crash(usize),
    Start(usize),
    Cut(usize),
    Mend(usize),
    Connect(usize, usize),
    Leave(usize),
    Ask(usize, usize),
    Arrive(usize),
    Push(usize),
    Report(usize),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let (r, p) = (0..REPLICAS, 0..PODS);
    let one = prop_oneof![
        4 => (1..50_u64).prop_map(Event::Time),
        3 => r.clone().prop_map(Event::Look),
        6 => r.clone().prop_map(Event::Step),
        2 => r.clone().prop_map(Event::Rotate),
        3 => r.clone().prop_map(Event::Finish),
        1 => r.clone().prop_map(Event::Abort),
        1 => r.clone().prop_map(Event::Crash),
        2 => r.clone().prop_map(Event::Start),
        1 => r.clone().prop_map(Event::Cut),
        2 => r.clone().prop_map(Event::Mend),
        4 => (p.clone(), r.clone()).prop_map(|(p, r)| Event::Connect(p, r)),
        1 => p.clone().prop_map(Event::Leave),
        5 => (p.clone(), r).prop_map(|(p, r)| Event::Ask(p, r)),
        5 => p.clone().prop_map(Event::Arrive),
        6 => p.clone().prop_map(Event::Push),
        6 => p.prop_map(Event::Report),
    ];
    proptest::collection::vec(one, 1..250)
}

fn trusted(state: &State) -> BTreeSet<Anchor> {
    state.trusted().cloned().collect()
}

impl World {
    fn new() -> Self {
        let shared = State::settled("root0".into());
        let replica = |_| Replica { state: Some(shared.clone()), cut: false, watch: Watch::default(), heard: BTreeMap::new() };
        let sidecar = |_| Sidecar {
            serves: "root0".into(),
            trusted: trusted(&shared),
            stream: None,
            asked: None,
            pushed: VecDeque::new(),
            said: VecDeque::new(),
        };
        let (replicas, sidecars) = ((0..REPLICAS).map(replica).collect(), (0..PODS).map(sidecar).collect());
        Self { now: 0, made: 0, shared, replicas, sidecars, steps: 0 }
    }

    fn happens(&mut self, event: &Event) {
        match *event {
            Event::Time(seconds) => self.passes(seconds),
            Event::Look(r) => self.sync(r),
            Event::Step(r) => self.change(r, State::step),
            Event::Rotate(r) if self.runs(r) => {
                self.sync(r);
                self.made += 1;
                if let Ok(begun) = self.shared.begin(format!("root{}", self.made), self.now as i64) {
                    self.shared = begun;
                    self.sync(r);
                }
            }
            Event::Finish(r) => self.change(r, |state, evidence| state.finish(evidence).ok()),
            Event::Abort(r) if self.runs(r) => {
                let none = Ledger::default();
                if let Ok(aborted) = self.shared.abort(Evidence { ledger: &none, lives: &|_| true, now: 0 }) {
                    self.shared = aborted;
                    self.sync(r);
                }
            }
            Event::Crash(r) => {
                self.replicas[r] = Replica { state: None, cut: false, watch: Watch::default(), heard: BTreeMap::new() };
                for p in 0..PODS {
                    if self.sidecars[p].stream == Some(r) {
                        self.leaves(p);
                    }
                }
            }
            Event::Start(r) if !self.runs(r) => self.replicas[r].state = Some(self.shared.clone()),
            Event::Cut(r) => self.replicas[r].cut = true,
            Event::Mend(r) => self.replicas[r].cut = false,
            Event::Connect(p, r) if self.runs(r) => {
                self.leaves(p);
                self.sidecars[p].stream = Some(r);
                self.replicas[r].heard.insert(p, None);
                self.says(p);
                self.push(r, p);
            }
            Event::Leave(p) => self.leaves(p),
            Event::Ask(p, r) if self.sidecars[p].asked.is_none() => {
                if let Some(state) = &self.replicas[r].state {
                    self.sidecars[p].asked = Some(Way { since: self.now, what: (state.issuing().clone(), trusted(state)) });
                }
            }
            Event::Arrive(p) => {
                if let Some(Way { what: (serves, bundle), .. }) = self.sidecars[p].asked.take() {
                    let sidecar = &mut self.sidecars[p];
                    // What the stream has said counts where it trusts the certificate.
                    if sidecar.stream.is_none() || !sidecar.trusted.contains(&serves) {
                        sidecar.trusted = bundle;
                    }
                    sidecar.serves = serves;
                    self.says(p);
                }
            }
            Event::Push(p) => {
                if let Some(bundle) = self.sidecars[p].pushed.pop_front() {
                    self.sidecars[p].trusted = bundle.what;
                    self.says(p);
                }
            }
            Event::Report(p) => {
                if let (Some(said), Some(r)) = (self.sidecars[p].said.pop_front(), self.sidecars[p].stream) {
                    self.replicas[r].heard.insert(p, Some(said.what));
                }
            }
            _ => {}
        }
    }

    fn runs(&self, r: usize) -> bool {
        self.replicas[r].state.is_some()
    }

    /// A certificate is waited for no longer, and streams end that carry nothing.
    fn passes(&mut self, seconds: u64) {
        self.now += seconds;
        let now = self.now;
        for p in 0..PODS {
            let sidecar = &mut self.sidecars[p];
            sidecar.asked.take_if(|way| now - way.since > ISSUE);
            let stuck = |since: Option<u64>| since.is_some_and(|since| now - since > SILENCE);
            if stuck(sidecar.pushed.front().map(|w| w.since)) || stuck(sidecar.said.front().map(|w| w.since)) {
                self.leaves(p);
            }
        }
    }

    fn leaves(&mut self, p: usize) {
        if let Some(r) = self.sidecars[p].stream.take() {
            self.replicas[r].heard.remove(&p);
        }
        self.sidecars[p].pushed.clear();
        self.sidecars[p].said.clear();
    }

    fn says(&mut self, p: usize) {
        let now = self.now;
        let sidecar = &mut self.sidecars[p];
        if sidecar.stream.is_some() {
            let what = Report {
                serial: String::new(),
                until: i64::MAX,
                anchor: sidecar.serves.clone(),
                trusted: sidecar.trusted.clone(),
                unsaved: false,
            };
            sidecar.said.push_back(Way { since: now, what });
        }
    }

    fn push(&mut self, r: usize, p: usize) {
        if let Some(state) = &self.replicas[r].state {
            let what = trusted(state);
            self.sidecars[p].pushed.push_back(Way { since: self.now, what });
        }
    }

    /// A replica takes over what is shared.
    fn sync(&mut self, r: usize) {
        let Some(state) = &self.replicas[r].state else { return };
        if *state != self.shared {
            self.replicas[r].state = Some(self.shared.clone());
            let connected: Vec<usize> = self.replicas[r].heard.keys().copied().collect();
            for p in connected {
                self.push(r, p);
            }
        }
    }

    /// A replica asks the others, and takes the step that follows.
    fn change(&mut self, r: usize, decide: impl FnOnce(&State, Evidence<'_>) -> Option<State>) {
        if !self.runs(r) {
            return;
        }
        let mut all = Vec::new();
        for other in 0..REPLICAS {
            let is_heard = self.runs(other) && (other == r || !self.replicas[other].cut && !self.replicas[r].cut);
            let said = if is_heard {
                self.sync(other);
                let heard = &self.replicas[other].heard;
                let name = |p: &usize| pod(&format!("p{p}"));
                let sidecars = heard.iter().map(|(p, report)| (name(p), report.clone())).collect();
                Ok(Account { state: self.shared.clone(), sidecars })
            } else {
                Err(Unheard::Silent(String::new()))
            };
            all.push(told(other, said));
        }
        let must = (0..PODS).map(|p| pod(&format!("p{p}"))).collect();
        let ledger = put_together(&all, &must, i64::MAX);
        let (shared, now) = (self.shared.clone(), Duration::from_secs(self.now));
        let blocked = self.replicas[r].watch.look(&shared, &all, vec![], &replica(r), (now, 0));
        let evidence = Evidence { ledger: &ledger, lives: &|_| true, now: 0 };
        if blocked.is_empty()
            && let Some(state) = decide(&shared, evidence)
        {
            self.steps += usize::from(state.next.is_none());
            self.shared = state;
            self.sync(r);
        }
    }

    /// Every handshake between two sidecars would succeed.
    fn check(&self) -> Result<(), TestCaseError> {
        for (i, a) in self.sidecars.iter().enumerate() {
            for (j, b) in self.sidecars.iter().enumerate() {
                let serves = &a.serves;
                prop_assert!(
                    b.trusted.contains(serves),
                    "p{j} trusts {:?}, and p{i} serves {serves}: {:?}",
                    b.trusted,
                    self.shared
                );
            }
        }
        Ok(())
    }

    /// All goes well for a while.
    fn goes_well(&mut self) {
        for _ in 0..6 {
            for r in 0..REPLICAS {
                for event in [Event::Start(r), Event::Mend(r), Event::Look(r)] {
                    self.happens(&event);
                }
            }
            for p in 0..PODS {
                for event in [Event::Connect(p, p % REPLICAS), Event::Ask(p, (p + 1) % REPLICAS), Event::Arrive(p)] {
                    self.happens(&event);
                }
                for _ in 0..8 {
                    self.happens(&Event::Push(p));
                    self.happens(&Event::Report(p));
                }
            }
            self.happens(&Event::Step(0));
            self.happens(&Event::Finish(0));
            self.happens(&Event::Time(SETTLES.as_secs()));
            for p in 0..PODS {
                while !self.sidecars[p].pushed.is_empty() || !self.sidecars[p].said.is_empty() {
                    self.happens(&Event::Push(p));
                    self.happens(&Event::Report(p));
                }
            }
            self.happens(&Event::Step(0));
            self.happens(&Event::Finish(0));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_becomes_of_replicas_every_handshake_succeeds_and_a_rotation_ends(events in events()) {
        let mut world = World::new();
        for event in &events {
            world.happens(event);
            world.check()?;
        }
        world.goes_well();
        world.check()?;
        prop_assert!(world.shared.next.is_none(), "{:?}", world.shared);
    }
}

#[test]
fn rotations_do_come_to_their_end_in_the_simulation() {
    let mut world = World::new();
    world.happens(&Event::Rotate(1));
    world.goes_well();
    assert_eq!((world.shared.current.as_str(), world.steps), ("root1", 1));
}
