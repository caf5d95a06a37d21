//! Who holds a certificate, under which anchor, until when; and what each of them has said that it serves and trusts. One entry for each
//! pod, forgotten when its last certificate has expired. Pure: the caller brings the clock, and writes down what must survive a restart.

use std::collections::{BTreeMap, BTreeSet};

use weft_core::service::ObjectRef;
use weft_core::wellknown::CLOCK_SKEW_SECS;

/// The SHA-256 of an anchor, hexadecimal. Empty: it is not known which.
pub type Anchor = String;

/// A certificate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Certificate {
    /// Serial number, hexadecimal.
    pub serial: String,
    /// Seconds since the Unix epoch.
    pub until: i64,
}

/// A certificate with its place in the order of all that were issued: 1 and up; 0 for one of which it is not known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Issued {
    pub certificate: Certificate,
    pub place: u64,
}

/// What a sidecar says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Serial number of the certificate that it serves, hexadecimal.
    pub serial: String,
    /// When that ends, in seconds since the Unix epoch.
    pub until: i64,
    /// The anchor that the certificate leads to.
    pub anchor: Anchor,
    /// The anchors by which it checks others of its own trust domain; none where its version does not tell.
    pub trusted: BTreeSet<Anchor>,
    /// It is not on disk there: after a crash, what it had before is in use again.
    pub unsaved: bool,
}

/// A pod to which certificates were issued.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Holder {
    /// What was issued to it last under each anchor, as long as any that it was given under that anchor lasts.
    pub certificates: BTreeMap<Anchor, Issued>,
    /// What it said last. Lost when the control plane starts again, so that silence is never taken for evidence.
    pub report: Option<Report>,
    /// The place of the certificate that it said to serve last. It may come to serve those that were issued after it, and none before it.
    confirmed: u64,
    /// Streams that are open.
    pub streams: u32,
}

/// Whether a certificate that ends at `until` is still taken by somebody whose clock is a little behind.
pub fn is_good(until: i64, now: i64) -> bool {
    until.saturating_add(CLOCK_SKEW_SECS) >= now
}

/// What has expired is remembered for so many seconds more: the clock may have jumped, and come back.
const REMEMBERED_SECS: i64 = 24 * 3600;

fn is_remembered(until: i64, now: i64) -> bool {
    is_good(until.saturating_add(REMEMBERED_SECS), now)
}

impl Holder {
    /// When its last certificate ends, in seconds since the Unix epoch.
    pub fn until(&self) -> i64 {
        let reported = self.report.as_ref().map_or(0, |r| r.until);
        self.certificates.values().map(|c| c.certificate.until).max().unwrap_or(0).max(reported)
    }

    /// Whether it may still show a certificate that somebody takes.
    pub fn holds(&self, now: i64) -> bool {
        is_good(self.until(), now)
    }

    /// Whether the certificate that it shows may lead to an anchor for which `bad` holds: the one that it said to serve, or one that was issued
    /// to it since, which may be in use or on its way. While it says nothing, or what it says would not outlive a crash, it may show whatever
    /// it was given. Of one that is connected, what has expired counts as well: this machine's clock may have jumped.
    pub fn may_serve(&self, now: i64, bad: impl Fn(&str) -> bool) -> bool {
        let is_good = |until| self.streams > 0 || is_good(until, now);
        self.report.as_ref().is_some_and(|r| is_good(r.until) && bad(&r.anchor))
            || self.certificates.iter().any(|(anchor, issued)| {
                let since = self.report.as_ref().is_none_or(|r| r.unsaved) || issued.place > self.confirmed;
                since && is_good(issued.certificate.until) && bad(anchor)
            })
    }
}

/// Certificates of which no record was made: those of an earlier version, and those whose record could not be written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unrecorded {
    /// When the last of them was issued at the latest, in seconds since the Unix epoch.
    pub issued: i64,
    /// When the last of them ends at the latest.
    pub until: i64,
}

impl Unrecorded {
    /// Both this and another gap.
    #[must_use]
    pub fn and(self, other: Option<Self>) -> Self {
        other.map_or(self, |o| Self { issued: self.issued.max(o.issued), until: self.until.max(o.until) })
    }
}

/// What one pod says on several streams, of which one may be older than another: what holds of all of them. None where one of them says nothing, or there
/// are none.
fn together(reports: Vec<Option<Report>>) -> Option<Report> {
    reports.into_iter().reduce(|all, one| {
        let (mut all, one) = (all?, one?);
        if all.anchor != one.anchor {
            all.anchor.clear();
        }
        all.trusted.retain(|anchor| one.trusted.contains(anchor));
        all.until = all.until.max(one.until);
        all.unsaved |= one.unsaved;
        Some(all)
    })?
}

/// All holders.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ledger {
    holders: BTreeMap<ObjectRef, Holder>,
    unrecorded: Option<Unrecorded>,
    /// How many certificates were issued.
    places: u64,
}

impl Ledger {
    pub fn holders(&self) -> &BTreeMap<ObjectRef, Holder> {
        &self.holders
    }

    pub fn unrecorded(&self) -> Option<Unrecorded> {
        self.unrecorded
    }

    /// A certificate was issued, or is about to be. To be called in the order in which they are.
    pub fn issued(&mut self, pod: ObjectRef, anchor: Anchor, certificate: Certificate) {
        self.places += 1;
        let place = self.places;
        self.holds(pod, anchor, Issued { certificate, place });
    }

    fn holds(&mut self, pod: ObjectRef, anchor: Anchor, mut issued: Issued) {
        let certificates = &mut self.holders.entry(pod).or_default().certificates;
        if let Some(held) = certificates.get(&anchor) {
            issued.certificate.until = issued.certificate.until.max(held.certificate.until);
        }
        certificates.insert(anchor, issued);
    }

    /// What is known to have been issued, in that order.
    pub fn in_order(&self) -> Vec<(&ObjectRef, &Anchor, &Certificate)> {
        let holders = self.holders.iter();
        let mut all: Vec<_> =
            holders.flat_map(|(pod, h)| h.certificates.iter().map(move |(anchor, i)| (i, pod, anchor))).collect();
        all.sort_by_key(|(issued, ..)| issued.place);
        all.into_iter().map(|(issued, pod, anchor)| (pod, anchor, &issued.certificate)).collect()
    }

    /// Certificates were issued, and nobody knows to whom.
    pub fn lost(&mut self, gap: Unrecorded) {
        self.unrecorded = Some(gap.and(self.unrecorded));
    }

    /// What several replicas know, put together: of each pod that counts, what it says to those that it is connected to. Of one that nobody is connected to,
    /// it is known that it may hold a certificate until `until`, and no more.
    pub fn merged(heard: impl IntoIterator<Item = (ObjectRef, Vec<Option<Report>>)>, until: i64) -> Self {
        let mut ledger = Self::default();
        for (pod, reports) in heard {
            let mut holder = Holder { streams: reports.len() as u32, ..Holder::default() };
            holder.report = together(reports);
            if holder.report.is_none() {
                let certificate = Certificate { serial: String::new(), until };
                holder.certificates.insert(Anchor::new(), Issued { certificate, place: 0 });
            }
            ledger.holders.insert(pod, holder);
        }
        ledger
    }

    /// What a pod said is of no use any more.
    pub fn silenced(&mut self, pod: &ObjectRef) {
        if let Some(holder) = self.holders.get_mut(pod) {
            holder.report = None;
        }
    }

    /// A sidecar opened a stream with this certificate.
    pub fn joined(&mut self, pod: &ObjectRef, certificate: Certificate) {
        let is_it = |i: &Issued| i.certificate.serial == certificate.serial;
        if !self.holders.get(pod).is_some_and(|h| h.certificates.values().any(is_it)) {
            self.holds(pod.clone(), Anchor::new(), Issued { certificate, place: 0 });
        }
        self.holders.entry(pod.clone()).or_default().streams += 1;
    }

    /// A stream ended. What was said on it stays.
    pub fn left(&mut self, pod: &ObjectRef) {
        if let Some(holder) = self.holders.get_mut(pod) {
            holder.streams = holder.streams.saturating_sub(1);
        }
    }

    /// A sidecar said what it serves and trusts. Of one that does not tell the anchor, the serial number does.
    pub fn reported(&mut self, pod: &ObjectRef, mut report: Report) {
        let holder = self.holders.entry(pod.clone()).or_default();
        let found = holder.certificates.iter().find(|(_, i)| i.certificate.serial == report.serial);
        // One that is not found is older than what is held; before one that is not kept, any other may be kept.
        holder.confirmed = match found {
            _ if report.unsaved => 0,
            Some((_, issued)) => issued.place,
            None if holder.report.as_ref().is_some_and(|r| r.serial == report.serial) => holder.confirmed,
            None => 0,
        };
        if report.anchor.is_empty()
            && let Some((anchor, _)) = found
        {
            report.anchor.clone_from(anchor);
        }
        holder.report = Some(report);
    }

    /// Forgets what expired a day ago; says whether anything was.
    pub fn purge(&mut self, now: i64) -> bool {
        let certificates = |ledger: &Self| ledger.holders.values().map(|h| h.certificates.len()).sum::<usize>();
        let before = (self.holders.len(), certificates(self));
        for holder in self.holders.values_mut() {
            holder.certificates.retain(|_, i| is_remembered(i.certificate.until, now));
        }
        self.holders.retain(|_, h| h.streams > 0 || is_remembered(h.until(), now));
        let gap = self.unrecorded.take_if(|gap| !is_remembered(gap.until, now)).is_some();
        gap || (self.holders.len(), certificates(self)) != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str) -> ObjectRef {
        format!("shop/{name}").parse().expect("a name")
    }

    fn certificate(serial: &str, until: i64) -> Certificate {
        Certificate { serial: serial.into(), until }
    }

    fn report(serial: &str, until: i64, anchor: &str) -> Report {
        Report { serial: serial.into(), until, anchor: anchor.into(), trusted: BTreeSet::new(), unsaved: false }
    }

    #[test]
    fn what_is_served_is_what_was_said_and_else_what_may_be() {
        let mut ledger = Ledger::default();
        let a = pod("a");
        ledger.issued(a.clone(), "old".into(), certificate("1", 100));
        ledger.issued(a.clone(), "new".into(), certificate("2", 200));
        let serves = |ledger: &Ledger, anchor: &str, now: i64| ledger.holders()[&a].may_serve(now, |x| x == anchor);
        assert!(serves(&ledger, "old", 50) && serves(&ledger, "new", 50), "it said nothing yet");
        ledger.reported(&a, report("2", 200, ""));
        assert_eq!(ledger.holders()[&a].report.as_ref().map(|r| r.anchor.as_str()), Some("new"), "by its serial number");
        assert!(!serves(&ledger, "old", 50) && serves(&ledger, "new", 50));
        ledger.reported(&a, report("1", 100, "old"));
        assert!(serves(&ledger, "old", 50) && serves(&ledger, "new", 50), "the other one may be on its way");
        assert!(serves(&ledger, "old", 120) && !serves(&ledger, "old", 121), "clocks may differ by 20 s");
        assert!(serves(&ledger, "old", i64::MIN) && is_good(i64::MAX, i64::MAX));
        ledger.joined(&a, certificate("1", 100));
        assert!(serves(&ledger, "old", 121), "it is connected: the clock may have jumped");
        ledger.left(&a);
        ledger.issued(a.clone(), "old".into(), certificate("3", 150));
        ledger.reported(&a, report("3", 150, "old"));
        assert!(serves(&ledger, "old", 50) && !serves(&ledger, "new", 50), "what was issued last is in use");
        ledger.reported(&a, Report { unsaved: true, ..report("3", 150, "old") });
        assert!(serves(&ledger, "new", 50), "after a crash it may be back");
    }

    #[test]
    fn one_entry_for_each_pod_until_all_of_its_certificates_are_over() {
        let mut ledger = Ledger::default();
        for i in 0..100 {
            ledger.issued(pod("a"), "old".into(), certificate(&i.to_string(), 100 + i));
        }
        ledger.issued(pod("a"), "old".into(), certificate("shorter", 50));
        assert_eq!(ledger.holders()[&pod("a")].certificates["old"].certificate, certificate("shorter", 199));
        assert_eq!(ledger.holders()[&pod("a")].certificates["old"].place, 101);
        ledger.joined(&pod("b"), certificate("7", 300));
        assert_eq!(
            ledger.holders()[&pod("b")].certificates[""].certificate,
            certificate("7", 300),
            "nobody remembers that it was issued"
        );
        assert!(!ledger.purge(REMEMBERED_SECS + 219) && ledger.purge(REMEMBERED_SECS + 220));
        assert_eq!(ledger.holders().len(), 1);
        let late = REMEMBERED_SECS + 1000;
        assert!(ledger.purge(late) && ledger.holders().len() == 1, "it is connected");
        ledger.left(&pod("b"));
        assert!(ledger.purge(late) && ledger.holders().is_empty());
    }

    #[test]
    fn a_gap_in_the_records_lasts_as_long_as_what_may_be_in_it() {
        let mut ledger = Ledger::default();
        ledger.lost(Unrecorded { issued: 10, until: 100 });
        ledger.lost(Unrecorded { issued: 20, until: 90 });
        assert_eq!(ledger.unrecorded(), Some(Unrecorded { issued: 20, until: 100 }));
        assert!(!ledger.purge(REMEMBERED_SECS + 120) && ledger.purge(REMEMBERED_SECS + 121) && ledger.unrecorded().is_none());
    }
}
