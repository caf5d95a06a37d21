//! Who is let in at a listener: a connection is accepted first and counted then, so that the slow ones of one source keep nobody
//! else out.
//!
//! A connection **waits** while the server waits for its peer: in its handshake, between requests, or before it has proved who
//! it is. The rest are **served**. One that waits may be made to give way to another. One that is served is not, unless it is said to
//! [share](Guest::shares), since it may last for ever: where there is no room left, it gives way to a source that has notably less.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::metrics::{Family, Labels, Metric, table};

#[cfg(test)]
mod tests;

/// An honest peer waits no longer than this where there is a crowd, in nanoseconds: older ones give way to the next of the same
/// source, younger ones do not. Otherwise many who come at once would throw each other out, and none would get through.
pub const PATIENCE: u64 = 1_000_000_000;
/// Refusals are told once in this time at most, in nanoseconds.
const TELL: u64 = 1_000_000_000;

/// What counts as one source: an IPv4 address, or an IPv6 network of 64 bits, any address of which one host may take.
pub fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & (!0 << 64)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// How many connections a listener takes. None of these may be 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once.
    pub most: usize,
    /// Of these, from one source.
    pub most_of_one: usize,
    /// Connections that wait, at once.
    pub waiting: usize,
    /// Of these, from one source.
    pub waiting_of_one: usize,
}

impl Limits {
    /// `most` connections, of which one source has a quarter: for a port where many different sources call.
    pub fn quarter(most: usize) -> Self {
        Self::share(most, most / 4)
    }

    /// `most` connections, of which one source has all but a quarter: for a port with one honest source, which must never be
    /// held up, and whatever else may reach it.
    pub fn all_but_a_quarter(most: usize) -> Self {
        Self::share(most, most - most / 4)
    }

    fn share(most: usize, of_one: usize) -> Self {
        let (most, of_one) = (most.max(1), of_one.max(1));
        Self { most, most_of_one: of_one, waiting: most, waiting_of_one: of_one }
    }
}

/// Why a connection is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shed {
    /// Its source has as many as one source may.
    Source,
    /// There are as many as there may be, and no source has notably more than this one.
    Total,
}

impl Shed {
    /// The reason in a word, as metrics have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Total => "total",
        }
    }
}

/// A connection that is not taken: close it at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Why.
    pub why: Shed,
    /// How many were refused since this was last told, with this one; none if it was told less than a second ago.
    pub tell: Option<u64>,
}

/// What a door has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Connections that are open.
    pub open: u64,
    /// Connections that were refused for [`Shed::Source`].
    pub refused_source: u64,
    /// Connections that were refused for [`Shed::Total`].
    pub refused_total: u64,
    /// Connections that gave way to another.
    pub evicted: u64,
}

impl Counts {
    /// Connections that were closed by the door, by reason, as metrics have them.
    pub fn closed(&self) -> [(&'static str, u64); 3] {
        [(Shed::Source.as_str(), self.refused_source), (Shed::Total.as_str(), self.refused_total), ("gave-way", self.evicted)]
    }
}

/// What is told of a program's doors: the connections that are `open`, and those that were `closed` because there were too many. Each door has the name
/// of its port.
pub fn families<'a>(
    open: &'static Metric,
    closed: &'static Metric,
    doors: impl Iterator<Item = (&'a str, Counts)>,
) -> [Family; 2] {
    let (mut open, mut closed) = (Family::new(open), Family::new(closed));
    for (port, counts) in doors {
        let labels = Labels::new().and(table::PORT_NAME, port.to_owned());
        open.counts(labels.clone(), counts.open);
        for (reason, count) in counts.closed() {
            closed.counts(labels.clone().and(table::REASON, reason), count);
        }
    }
    [open, closed]
}

/// Counts a listener's connections. `E` is what ends one of them: who is told to let a connection give way gets it back.
#[derive(Debug)]
pub struct Door<E> {
    limits: Limits,
    state: Mutex<State<E>>,
}

#[derive(Debug)]
struct State<E> {
    sources: BTreeMap<IpAddr, Held>,
    /// By source, the time since when it waits, and ticket.
    waiting: BTreeMap<(IpAddr, u64, u64), E>,
    /// By source and ticket: those that are served and share.
    sharing: BTreeMap<(IpAddr, u64), E>,
    /// By ticket: since when it waits; none for one that is served.
    guests: BTreeMap<u64, Option<u64>>,
    next: u64,
    counts: Counts,
    told: Option<u64>,
    untold: u64,
}

/// What one source has.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    all: usize,
    waiting: usize,
}

/// A connection that was let in.
#[derive(Debug)]
pub struct Admitted<E> {
    /// Its place, until it is dropped. It waits.
    pub guest: Guest<E>,
    /// Ends the connection that gives way to it: its place is taken already.
    pub gives_way: Option<E>,
}

/// A connection's place at a door.
#[derive(Debug)]
pub struct Guest<E> {
    door: Arc<Door<E>>,
    source: IpAddr,
    ticket: u64,
    end: E,
}

impl<E> Door<E> {
    /// A door with nobody behind it.
    pub fn new(limits: Limits) -> Arc<Self> {
        let state = State {
            sources: BTreeMap::new(),
            waiting: BTreeMap::new(),
            sharing: BTreeMap::new(),
            guests: BTreeMap::new(),
            next: 0,
            counts: Counts::default(),
            told: None,
            untold: 0,
        };
        Arc::new(Self { limits, state: Mutex::new(state) })
    }

    /// What it has done so far.
    pub fn counts(&self) -> Counts {
        let state = self.state();
        Counts { open: state.guests.len() as u64, ..state.counts }
    }

    fn state(&self) -> MutexGuard<'_, State<E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E: Clone> Door<E> {
    /// Lets in a connection that was accepted at `now` (nanoseconds of a monotonic clock), or not. `end` is what ends it.
    pub fn admit(self: &Arc<Self>, from: IpAddr, now: u64, end: E) -> Result<Admitted<E>, Refused> {
        let source = source(from);
        let limits = self.limits;
        let mut state = self.state();
        let mine = state.held(source);
        let mut gives_way = None;
        if mine.all >= limits.most_of_one || mine.waiting >= limits.waiting_of_one {
            let slow = state.oldest(source).filter(|(_, since, _)| now.saturating_sub(*since) >= PATIENCE);
            gives_way = slow.and_then(|place| state.evict(place));
            if gives_way.is_none() {
                return Err(state.refuse(Shed::Source, now));
            }
        } else if state.guests.len() >= limits.most || state.waiting.len() >= limits.waiting {
            // Less than that would only turn the crowd around.
            let crowd = state.crowd().filter(|(_, waiting)| *waiting > mine.waiting + 1);
            let oldest = crowd.and_then(|(source, _)| state.oldest(source));
            gives_way = oldest.and_then(|place| state.evict(place));
            if gives_way.is_none() && state.waiting.len() < limits.waiting {
                let most = state.sharing_most().filter(|(_, all)| *all > mine.all + 1);
                gives_way = most.and_then(|(place, _)| state.evict_sharing(place));
            }
            if gives_way.is_none() {
                return Err(state.refuse(Shed::Total, now));
            }
        }
        let ticket = state.next;
        state.next += 1;
        state.sources.entry(source).or_default().all += 1;
        state.guests.insert(ticket, None);
        state.waits(source, ticket, now, end.clone());
        drop(state);
        Ok(Admitted { guest: Guest { door: Arc::clone(self), source, ticket, end }, gives_way })
    }
}

impl<E: Clone> Guest<E> {
    /// From now on it is served, and gives way to nobody.
    pub fn is_served(&self) {
        let mut state = self.door.state();
        if let Some(since) = state.guests.get_mut(&self.ticket).and_then(Option::take) {
            state.waits_no_more((self.source, since, self.ticket));
        }
    }

    /// The same, but for one that may stay for ever and ask for nothing: where there is no room left, it gives way to a source that has
    /// notably less. So a few sources cannot keep all others out, and one that has as little as any is never touched.
    pub fn shares(&self) {
        self.is_served();
        let mut state = self.door.state();
        if state.guests.contains_key(&self.ticket) {
            state.sharing.insert((self.source, self.ticket), self.end.clone());
        }
    }

    /// From `now` on it waits.
    pub fn waits(&self, now: u64) {
        let mut state = self.door.state();
        if let Some(None) = state.guests.get(&self.ticket) {
            state.sharing.remove(&(self.source, self.ticket));
            state.waits(self.source, self.ticket, now, self.end.clone());
        }
    }
}

impl<E> Drop for Guest<E> {
    fn drop(&mut self) {
        let mut state = self.door.state();
        // One that gave way is gone already.
        let Some(place) = state.guests.get(&self.ticket).copied() else { return };
        if let Some(since) = place {
            state.waits_no_more((self.source, since, self.ticket));
        }
        state.leaves(self.source, self.ticket);
    }
}

impl<E> State<E> {
    fn held(&self, source: IpAddr) -> Held {
        self.sources.get(&source).copied().unwrap_or_default()
    }

    fn waits(&mut self, source: IpAddr, ticket: u64, now: u64, end: E) {
        self.guests.insert(ticket, Some(now));
        self.waiting.insert((source, now, ticket), end);
        self.sources.entry(source).or_default().waiting += 1;
    }

    fn waits_no_more(&mut self, place: (IpAddr, u64, u64)) -> Option<E> {
        let end = self.waiting.remove(&place)?;
        if let Some(held) = self.sources.get_mut(&place.0) {
            held.waiting -= 1;
        }
        Some(end)
    }

    fn leaves(&mut self, source: IpAddr, ticket: u64) {
        self.guests.remove(&ticket);
        self.sharing.remove(&(source, ticket));
        let Some(held) = self.sources.get_mut(&source) else { return };
        held.all -= 1;
        if held.all == 0 {
            self.sources.remove(&source);
        }
    }

    fn evict(&mut self, place: (IpAddr, u64, u64)) -> Option<E> {
        let end = self.waits_no_more(place)?;
        self.leaves(place.0, place.2);
        self.counts.evicted += 1;
        Some(end)
    }

    fn evict_sharing(&mut self, (source, ticket): (IpAddr, u64)) -> Option<E> {
        let end = self.sharing.remove(&(source, ticket))?;
        self.leaves(source, ticket);
        self.counts.evicted += 1;
        Some(end)
    }

    /// Of those that share, the oldest of the source with the most connections, and how many these are.
    fn sharing_most(&self) -> Option<((IpAddr, u64), usize)> {
        let mut most: Option<((IpAddr, u64), usize)> = None;
        let mut at = self.sharing.first_key_value();
        while let Some((place, _)) = at {
            let all = self.held(place.0).all;
            if most.is_none_or(|(_, others)| all > others) {
                most = Some((*place, all));
            }
            at = self.sharing.range((Excluded((place.0, u64::MAX)), Unbounded)).next();
        }
        most
    }

    /// Of a source, the one that waits longest.
    fn oldest(&self, source: IpAddr) -> Option<(IpAddr, u64, u64)> {
        let mut places = self.waiting.range((source, 0, 0)..=(source, u64::MAX, u64::MAX));
        places.next().map(|(place, _)| *place)
    }

    /// The source with the most that wait, and how many these are.
    fn crowd(&self) -> Option<(IpAddr, usize)> {
        let mut most: Option<(IpAddr, usize)> = None;
        let mut at = self.waiting.first_key_value();
        while let Some(((source, ..), _)) = at {
            let waiting = self.held(*source).waiting;
            if most.is_none_or(|(_, others)| waiting > others) {
                most = Some((*source, waiting));
            }
            at = self.waiting.range((Excluded((*source, u64::MAX, u64::MAX)), Unbounded)).next();
        }
        most
    }

    fn refuse(&mut self, why: Shed, now: u64) -> Refused {
        match why {
            Shed::Source => self.counts.refused_source += 1,
            Shed::Total => self.counts.refused_total += 1,
        }
        self.untold += 1;
        let due = self.told.is_none_or(|at| now.saturating_sub(at) >= TELL);
        let tell = due.then(|| std::mem::take(&mut self.untold));
        if due {
            self.told = Some(now);
        }
        Refused { why, tell }
    }
}
