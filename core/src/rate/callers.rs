//! A bucket for each caller, in a bounded space.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::{Bucket, Rate};
use crate::balance::hash64;
use crate::identity::SpiffeId;

/// Who calls.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Caller {
    /// Who proved this identity.
    Identity(SpiffeId),
    /// Who came in plaintext from this address.
    Address(IpAddr),
}

impl Caller {
    /// What a bucket is known by: IPv6 addresses by their /64, since one host has as many of them as it likes.
    fn key(self) -> Self {
        match self {
            Self::Address(address) => Self::Address(match address.to_canonical() {
                IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
                v4 @ IpAddr::V4(_) => v4,
            }),
            identity @ Self::Identity(_) => identity,
        }
    }

    fn hash(&self, seed: u64) -> u64 {
        match self {
            Self::Identity(id) => [id.trust_domain().as_str(), id.namespace().as_str(), id.service_account().as_str()]
                .iter()
                .fold(seed, |seed, part| hash64(part.as_bytes(), seed)),
            Self::Address(IpAddr::V4(v4)) => hash64(&v4.octets(), seed),
            Self::Address(IpAddr::V6(v6)) => hash64(&v6.octets(), seed),
        }
    }
}

/// How many parts the space has, each with a lock of its own.
const SHARDS: usize = 16;

#[derive(Debug, Default)]
struct Shard {
    buckets: BTreeMap<Caller, Bucket>,
    /// Shared by all who find no place.
    crowd: Bucket,
}

impl Shard {
    fn take(&mut self, caller: Caller, capacity: usize, now: u64, rate: &Rate) -> Result<(), Duration> {
        if let Some(bucket) = self.buckets.get(&caller) {
            return bucket.take(now, rate);
        }
        if self.buckets.len() >= capacity {
            let units = rate.units(now);
            self.buckets.retain(|_, bucket| !bucket.is_full(units));
        }
        if self.buckets.len() >= capacity {
            return self.crowd.take(now, rate);
        }
        self.buckets.entry(caller).or_default().take(now, rate)
    }
}

/// A bucket for each caller of one rate limit, in a bounded space.
///
/// Only a bucket that is full again makes room: it says no more than a new one would. So nobody gets a fresh bucket by driving out their own. While
/// no bucket is full again, all newcomers (of one sixteenth) share one. Identities and addresses have a space each: no flood of addresses
/// touches what an identity has.
#[derive(Debug)]
pub struct Buckets {
    rate: Rate,
    /// Of one shard.
    capacity: usize,
    seed: u64,
    identities: [Mutex<Shard>; SHARDS],
    addresses: [Mutex<Shard>; SHARDS],
}

/// How many callers of each kind usually have a bucket of their own.
pub const CALLERS: usize = 4096;

impl Buckets {
    /// Places for `capacity` identities and as many addresses, rounded up to sixteens; see [`CALLERS`]. `seed` is any number that callers cannot guess.
    pub fn new(rate: Rate, capacity: usize, seed: u64) -> Self {
        let capacity = capacity.div_ceil(SHARDS).max(1);
        Self { rate, capacity, seed, identities: Default::default(), addresses: Default::default() }
    }

    /// Takes one request out of the caller's bucket. If there is none, says how long until there is.
    pub fn take(&self, caller: Caller, now: u64) -> Result<(), Duration> {
        if self.rate.is_no_limit() {
            return Ok(());
        }
        let caller = caller.key();
        let shards = match caller {
            Caller::Identity(_) => &self.identities,
            Caller::Address(_) => &self.addresses,
        };
        let shard = &shards[caller.hash(self.seed) as usize % SHARDS];
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        shard.take(caller, self.capacity, now, &self.rate)
    }

    /// How many callers have a bucket of their own.
    pub fn callers(&self) -> usize {
        let shards = self.identities.iter().chain(&self.addresses);
        shards.map(|s| s.lock().unwrap_or_else(PoisonError::into_inner).buckets.len()).sum()
    }
}
