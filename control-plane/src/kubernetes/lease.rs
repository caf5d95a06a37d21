//! Which replica writes to the cluster: the one that holds a Lease (`coordination.k8s.io/v1`). Nothing that sidecars need hangs
//! on it, and what is written is the same whoever writes it, so that two holders for a moment do no harm.
//!
//! Clocks of different machines are never compared: a lease is taken over once this replica has seen it unchanged for its whole
//! duration, by its own clock.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::{explain, won};
use crate::server::random;

pub const NAME: &str = "weft-control-plane";
const DURATION_SECS: i32 = 15;
const RENEW: Duration = Duration::from_secs(4);
const CALL: Duration = Duration::from_secs(3);
/// A holder that could not renew for this long stops to be one, before anyone else may take over.
const GIVE_UP: Duration = Duration::from_secs(10);

/// What to do about a lease.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    /// It is nobody's any more.
    Take,
    /// It is ours.
    Renew,
    /// It is another's.
    Wait,
}

/// What was seen of another's lease, and since when it has not changed.
struct Seen {
    holder: String,
    renewed: Option<MicroTime>,
    since: Instant,
}

/// One replica's way to the lease.
struct Election {
    api: Api<Lease>,
    me: String,
    seen: Option<Seen>,
}

impl Election {
    fn step(&mut self, spec: &LeaseSpec, now: Instant) -> Step {
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder == self.me {
            return Step::Renew;
        }
        if holder.is_empty() {
            return Step::Take;
        }
        match &self.seen {
            Some(seen) if seen.holder == holder && seen.renewed == spec.renew_time => {
                let duration = Duration::from_secs(spec.lease_duration_seconds.unwrap_or(DURATION_SECS).max(1) as u64);
                if now.duration_since(seen.since) >= duration { Step::Take } else { Step::Wait }
            }
            _ => {
                self.seen = Some(Seen { holder: holder.to_owned(), renewed: spec.renew_time.clone(), since: now });
                Step::Wait
            }
        }
    }

    /// Takes or renews the lease where that may be done; whether it is ours then.
    async fn attempt(&mut self) -> kube::Result<bool> {
        let time = || Some(MicroTime(Timestamp::now()));
        let Some(mut lease) = self.api.get_opt(NAME).await? else {
            let spec = LeaseSpec {
                holder_identity: Some(self.me.clone()),
                lease_duration_seconds: Some(DURATION_SECS),
                acquire_time: time(),
                renew_time: time(),
                lease_transitions: Some(0),
                ..LeaseSpec::default()
            };
            let metadata = ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() };
            return won(self.api.create(&PostParams::default(), &Lease { metadata, spec: Some(spec) }).await);
        };
        let step = self.step(lease.spec.get_or_insert_default(), Instant::now());
        if step == Step::Wait {
            return Ok(false);
        }
        let spec = lease.spec.get_or_insert_default();
        if step == Step::Take {
            spec.holder_identity = Some(self.me.clone());
            spec.acquire_time = time();
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(1));
        }
        spec.lease_duration_seconds = Some(DURATION_SECS);
        spec.renew_time = time();
        // It carries the version that was read: if somebody was faster, the server says so.
        won(self.api.replace(NAME, &PostParams::default(), &lease).await)
    }

    /// Gives it back, so that another need not wait.
    async fn release(&self) -> kube::Result<()> {
        let Some(mut lease) = self.api.get_opt(NAME).await? else { return Ok(()) };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() == Some(self.me.as_str()) {
            spec.holder_identity = None;
            self.api.replace(NAME, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }
}

/// Tries to hold the lease, and tells whether it does, until `stop`; then it is given back.
pub async fn hold(client: Client, namespace: String, me: String, leading: watch::Sender<bool>, stop: CancellationToken) {
    let mut election = Election { api: Api::namespaced(client, &namespace), me, seen: None };
    let mut renewed: Option<Instant> = None;
    let mut failing = false;
    loop {
        let began = Instant::now();
        let outcome = match tokio::time::timeout(CALL, election.attempt()).await {
            Ok(Ok(held)) => Ok(held),
            Ok(Err(e)) => Err(explain(&e)),
            Err(_) => Err("the API server takes too long".into()),
        };
        match outcome {
            Ok(held) => {
                renewed = held.then_some(began);
                failing = false;
            }
            Err(why) => {
                if !failing {
                    tracing::warn!("the Lease {namespace}/{NAME} cannot be held ({why}); it is tried again");
                }
                failing = true;
                renewed = renewed.filter(|at| at.elapsed() < GIVE_UP);
            }
        }
        leading.send_if_modified(|l| {
            let changed = *l != renewed.is_some();
            *l = renewed.is_some();
            changed
        });
        // Not all replicas at once.
        let wait = RENEW.mul_f64(0.9 + 0.2 * ((random() >> 11) as f64 / (1_u64 << 53) as f64));
        tokio::select! {
            () = sleep(wait) => {}
            () = stop.cancelled() => break,
        }
    }
    leading.send_replace(false);
    if renewed.is_some() {
        let _ = tokio::time::timeout(CALL, election.release()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(holder: &str, renewed: i64) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            renew_time: Some(MicroTime(Timestamp::from_second(renewed).expect("a time"))),
            ..LeaseSpec::default()
        }
    }

    #[tokio::test]
    async fn a_lease_is_taken_over_when_it_was_seen_unchanged_for_its_duration_whatever_its_clock_says() {
        let mut config = kube::Config::new("http://127.0.0.1:1".parse().expect("an address"));
        config.root_cert = Some(vec![]);
        let client = Client::try_from(config).expect("nothing is asked");
        let mut election = Election { api: Api::namespaced(client, "weft-system"), me: "a".into(), seen: None };
        let start = Instant::now();
        let at = |secs| start + Duration::from_secs(secs);
        assert_eq!(election.step(&LeaseSpec::default(), at(0)), Step::Take);
        assert_eq!(election.step(&spec("a", 5), at(0)), Step::Renew);
        // The holder's clock is an hour behind, or ahead: it is the change that counts.
        assert_eq!(election.step(&spec("b", 1_000), at(0)), Step::Wait);
        assert_eq!(election.step(&spec("b", 1_005), at(10)), Step::Wait);
        assert_eq!(election.step(&spec("b", 1_005), at(24)), Step::Wait);
        assert_eq!(election.step(&spec("b", 1_005), at(25)), Step::Take);
        assert_eq!(election.step(&spec("c", 1_005), at(26)), Step::Wait, "somebody else took it");
    }
}
