// What the ways of choosing do to latency: a deterministic simulation of queues.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use super::{Candidates, Chooser, PeakEwma, Standing};
use crate::traffic::policy::Balancer;

const MS: u64 = 1_000_000;
const ENDPOINTS: usize = 10;
// Requests that an endpoint works on at once; others wait.
const AT_ONCE: usize = 8;
// What a request takes at a fast endpoint: 5 to 15 ms, 10 on average.
const WORK: std::ops::Range<u64> = 5 * MS..15 * MS;

struct Server {
    load: PeakEwma,
    slow: u64,
    busy: usize,
    waiting: VecDeque<u64>,
}

struct Servers<'a>(&'a [Server], u64);

impl Candidates for Servers<'_> {
    fn count(&self) -> usize {
        self.0.len()
    }
    fn avoid(&self, _: usize) -> bool {
        false
    }
    fn standing(&self, _: usize) -> Standing {
        Standing::Well
    }
    fn load(&self, i: usize) -> f64 {
        self.0[i].load.load(self.1)
    }
    fn in_flight(&self, i: usize) -> u32 {
        self.0[i].load.in_flight()
    }
}

// The 99th percentile of latency over 30 s, after 2 s to warm up. `load` is the share of what ten fast endpoints can do; the first endpoint is `slow` times as slow.
fn p99(balancer: &Balancer, slow: u64, load: f64) -> Duration {
    let mut state = 0x0123_4567_89ab_cdef_u64;
    let mut random = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 1
    };
    let chooser = Chooser::new(balancer, &[], 0);
    let mut servers: Vec<Server> = (0..ENDPOINTS)
        .map(|i| Server { load: PeakEwma::new(0), slow: if i == 0 { slow } else { 1 }, busy: 0, waiting: VecDeque::new() })
        .collect();
    let gap = (10 * MS) as f64 / (ENDPOINTS * AT_ONCE) as f64 / load;
    // Who ends when, and when that one came.
    let mut ends: BinaryHeap<Reverse<(u64, usize, u64)>> = BinaryHeap::new();
    let (mut next, mut latencies) = (0, Vec::new());
    while next < 32_000 * MS {
        match ends.peek() {
            Some(&Reverse((now, i, came))) if now <= next => {
                ends.pop();
                let latency = now - came;
                servers[i].load.answer(now, Duration::from_nanos(latency));
                servers[i].load.end();
                servers[i].busy -= 1;
                if came > 2000 * MS {
                    latencies.push(latency);
                }
                if let Some(came) = servers[i].waiting.pop_front() {
                    servers[i].busy += 1;
                    let work = WORK.start + random() % (WORK.end - WORK.start);
                    ends.push(Reverse((now + work * servers[i].slow, i, came)));
                }
            }
            _ => {
                let now = next;
                let i = chooser.choose(&Servers(&servers, now), None, &mut random).expect("there are ten");
                servers[i].load.begin();
                if servers[i].busy < AT_ONCE {
                    servers[i].busy += 1;
                    let work = WORK.start + random() % (WORK.end - WORK.start);
                    ends.push(Reverse((now + work * servers[i].slow, i, now)));
                } else {
                    servers[i].waiting.push_back(now);
                }
                // Arrivals as independent callers make them.
                let even = ((random() >> 10) as f64 + 1.0) / (1_u64 << 53) as f64;
                next += (-even.ln() * gap) as u64;
            }
        }
    }
    // Who still waits has waited so long at the least.
    let now = next;
    latencies.extend(servers.iter().flat_map(|s| &s.waiting).filter(|came| **came > 2000 * MS).map(|came| now - came));
    latencies.sort_unstable();
    Duration::from_nanos(latencies[latencies.len() * 99 / 100])
}

// One of ten is ten times as slow. At 5, 30 and 60 % of what ten fast ones can do.
#[test]
fn a_slow_endpoint_is_hardly_felt() {
    for load in [0.05, 0.3, 0.6] {
        let [fast, p2c] = [1, 10].map(|slow| p99(&Balancer::P2cEwma, slow, load));
        let turns = p99(&Balancer::RoundRobin, 10, load);
        assert!(p2c <= fast * 2, "at {load}: {p2c:?} with a slow one, {fast:?} without");
        assert!(turns >= fast * 5 && turns >= p2c * 3, "at {load}: in turn {turns:?}, by latency {p2c:?}, all fast {fast:?}");
    }
}
