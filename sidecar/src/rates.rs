//! How many requests the pod's application takes, by whom: what its services' traffic policies allow.

use std::sync::Arc;
use std::time::Duration;

use weft_core::failure::{Answer, Failure, Reason};
use weft_core::rate::{Bucket, Buckets, CALLERS, Caller, Rate};
use weft_core::traffic::policy::{RateLimit, RateScope};
use weft_core::traffic::table::any_field_holds;

use crate::http::RequestHead;
use crate::http::caller::HttpCaller;

/// The rates of one inbound policy, and what of them is used up.
#[derive(Debug)]
pub struct Rates(Vec<Arc<Limit>>);

#[derive(Debug)]
struct Limit {
    config: RateLimit,
    rate: Rate,
    used: Used,
}

#[derive(Debug)]
enum Used {
    ByAll(Bucket),
    ByCaller(Box<Buckets>),
}

impl Rates {
    /// None where there are none. A limit that stays as it was goes on where it stands.
    pub fn new(config: &[RateLimit], before: Option<&Self>) -> Option<Self> {
        // Each goes on as one alone: two that are alike are two all the same.
        let mut before: Vec<_> = before.map(|b| b.0.clone()).unwrap_or_default();
        let mut same = |c: &RateLimit| before.iter().position(|l| l.config == *c).map(|at| before.swap_remove(at));
        let mut limits: Vec<_> = config.iter().map(|c| same(c).unwrap_or_else(|| Arc::new(Limit::new(c)))).collect();
        // What one caller may not is not taken from what all have together.
        limits.sort_by_key(|limit| limit.config.by == RateScope::All);
        (!limits.is_empty()).then_some(Self(limits))
    }

    /// Takes a request to `port` out of every rate that is about it; a failure if one is used up.
    pub fn check(&self, port: u16, caller: &HttpCaller, head: &RequestHead, now: u64) -> Result<(), Failure> {
        for limit in self.0.iter().filter(|l| l.is_about(port, caller, head)) {
            limit.take(caller, now).map_err(|wait| {
                Failure::mesh(Reason::RateLimited)
                    .detail(format!("the rate limit {} is used up for {wait:?}", limit.config.name))
                    .answered(Answer { retry_after: Some(wait), ..Answer::default() })
            })?;
        }
        Ok(())
    }
}

impl Limit {
    fn new(config: &RateLimit) -> Self {
        let rate = Rate::new(config.requests, config.per, config.burst);
        let used = match config.by {
            RateScope::All => Used::ByAll(Bucket::default()),
            RateScope::Caller => Used::ByCaller(Box::new(Buckets::new(rate, CALLERS, crate::identity::random()))),
        };
        Self { config: config.clone(), rate, used }
    }

    fn is_about(&self, port: u16, caller: &HttpCaller, head: &RequestHead) -> bool {
        let c = &self.config;
        (c.ports.is_empty() || c.ports.contains(&port))
            && (c.principals.is_empty() || caller.identity().is_some_and(|id| c.principals.contains(id)))
            && c.headers.iter().all(|m| any_field_holds(m, head))
    }

    fn take(&self, caller: &HttpCaller, now: u64) -> Result<(), Duration> {
        match &self.used {
            Used::ByAll(bucket) => bucket.take(now, &self.rate),
            Used::ByCaller(buckets) => {
                let who = caller.identity().map_or(Caller::Address(caller.address), |id| Caller::Identity(id.clone()));
                buckets.take(who, now)
            }
        }
    }
}
