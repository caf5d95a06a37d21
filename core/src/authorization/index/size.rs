//! How large the index of policies gets, known before it is made.

use super::bucket::ports_of;
use super::who::Who;
use crate::authorization::policy::{Authorization, Operation, Policy, Rule};

impl Policy {
    /// The most [`Policy::buckets`] of a policy that is to be used.
    pub const MAX_BUCKETS: u64 = 10_000;

    /// How many places its rules take in the index: of each rule, the values by which callers are found, times the ports, times the paths of each port
    /// (an operation without paths counts as one). Walks the policy once and makes nothing of that size.
    pub fn buckets(&self) -> u64 {
        self.rules.iter().map(|rule| self.buckets_of(rule)).fold(0, u64::saturating_add)
    }

    fn buckets_of(&self, rule: &Rule) -> u64 {
        let count = |n: usize| n as u64;
        let whos = rule.from.iter().map(|peer| count(Who::of(peer).len())).sum::<u64>();
        let places = |operation: Option<&Operation>| {
            let paths = operation.map_or(1, |o| o.paths.len().max(1));
            count(ports_of(self, operation).len()).saturating_mul(count(paths))
        };
        let operations = rule.to.iter().map(|operation| places(Some(operation))).fold(0, u64::saturating_add);
        let whos = if rule.from.is_empty() { 1 } else { whos };
        whos.saturating_mul(if rule.to.is_empty() { places(None) } else { operations })
    }
}

impl Authorization {
    /// The most [`Authorization::buckets`] of a pod: some hundred bytes each.
    pub const MAX_BUCKETS: u64 = 200_000;

    /// How many places its policies take in the index together.
    pub fn buckets(&self) -> u64 {
        self.policies.iter().map(|policy| policy.buckets()).fold(0, u64::saturating_add)
    }
}
