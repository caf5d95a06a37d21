//! Everything at once, for many seeds: whatever breaks, each answer is whole or an error, and nothing is held at the end.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::{JoinSet, spawn_local};
use tokio::time::{sleep, timeout};
use weft_core::authorization::{Action, Authorization};
use weft_core::traffic::TrafficPolicy;
use weft_core::traffic::policy::{Balancer, Fault, HashKey, Limits, Outlier, RetryBudget};
use weft_core::traffic::route::{BackendTarget, Filter, Mirror, Retry, RouteKind, Rule, Session, SessionKind, Timeouts};

use crate::authorization;
use crate::backend::{Asked, Reply, status};
use crate::calls::{ask, call};
use crate::lab::{Lab, Setup, endpoint, pod, rule};
use crate::peers::{Random, payload};
use crate::retries::retry;
use crate::seeds::each_seed;
use crate::world::{A, Plan, inbound_policy};

fn maybe<T>(random: &Random, value: impl FnOnce() -> T) -> Option<T> {
    (random.below(2) == 0).then(value)
}

fn policy(random: &Random) -> TrafficPolicy {
    let limit = |most| maybe(random, || 1 + random.below(most) as u32);
    let delay = maybe(random, || Duration::from_millis(random.below(300)));
    TrafficPolicy {
        balancer: match random.below(6) {
            0 => Balancer::P2cEwma,
            1 => Balancer::LeastRequest,
            2 => Balancer::RoundRobin,
            3 => Balancer::Random,
            4 => Balancer::RingHash(HashKey::Header("x-id".into())),
            _ => Balancer::Maglev(HashKey::Source),
        },
        slow_start: maybe(random, || Duration::from_secs(3)),
        outlier: maybe(random, || Outlier {
            consecutive_failures: random.below(4) as u32,
            success_rate: random.below(100) as u8,
            minimum_volume: 3,
            base_ejection: Duration::from_millis(500),
            max_ejected: 1 + random.below(100) as u8,
            ..Outlier::default()
        }),
        limits: Limits { requests: limit(30), requests_per_endpoint: limit(10), pending: limit(10), ..Limits::default() },
        faults: maybe(random, || vec![Fault { headers: vec![], millionths: 100_000, delay, abort: None }]).unwrap_or_default(),
        retry_budget: RetryBudget { percent: random.below(101) as u8, ..RetryBudget::default() },
        ..TrafficPolicy::default()
    }
}

fn rules(random: &Random) -> Vec<Rule> {
    let target = BackendTarget::Service { id: "shop/mirror".parse().expect("a name"), port: 80 };
    let kind = if random.below(2) == 0 { SessionKind::Cookie } else { SessionKind::Header };
    let lasts = |random: &Random| maybe(random, || Duration::from_millis(50 + random.below(3_000)));
    vec![Rule {
        filters: maybe(random, || Filter::Mirror(Mirror { target, numerator: 1, denominator: 2 })).into_iter().collect(),
        timeouts: Timeouts { request: lasts(random), backend_request: lasts(random) },
        retry: maybe(random, || Retry { any_method: false, ..retry(&[502, 503, 504], &[14], random.below(4) as u32) }),
        session: maybe(random, || Session { name: "sid".into(), kind, absolute: None, idle: None, permanent: false }),
        ..rule(&[(0, 1 + random.below(3) as u32), (1, random.below(3) as u32)])
    }]
}

/// Answers what was sent to it, mostly.
fn moody(random: Random) -> impl Fn(&Asked) -> Reply {
    move |asked| {
        let body = asked.body.clone();
        let well = Reply::Answer { status: 200, fields: vec![], body, after: Duration::from_millis(random.below(40)) };
        match random.below(20) {
            0 => Reply::Reset,
            1 => Reply::Refuse,
            2 => Reply::Never,
            3 => status(503).with("retry-after", "1"),
            4 => status(500),
            5 => well.after(Duration::from_secs(2)),
            _ => well,
        }
    }
}

/// Changes policies, routes and endpoints, and breaks links and backends, for three seconds.
fn stir(lab: &Rc<Lab>, seed: u64, mesh: bool) {
    let (lab, random) = (Rc::clone(lab), Random::new(seed + 1_000));
    spawn_local(async move {
        for _ in 0..30 {
            sleep(Duration::from_millis(random.below(200))).await;
            let n = random.below(6) as u8;
            match random.below(9) {
                0 => lab.policy(random.below(3) as usize, policy(&random)),
                1 => lab.route(0, RouteKind::Http, rules(&random)),
                2 => lab.routes(0, vec![]),
                3 => {
                    let first = u8::from(random.below(2) == 0);
                    lab.endpoints(0, (first..3).map(|n| endpoint(n, mesh)).collect());
                }
                4 => lab.network.reset(A, pod(n)),
                5 => lab.network.partition(A, pod(n)),
                6 => lab.backends[usize::from(n)].down(),
                7 => lab.backends[usize::from(n)].up(),
                _ => lab.network.heal(A, pod(n)),
            }
        }
        for n in 0..8 {
            lab.network.heal(A, pod(n));
        }
    });
}

#[test]
fn whatever_breaks_nothing_is_held_at_the_end() {
    each_seed(&async |seed| {
        let (mesh, random) = (seed % 2 == 1, Random::new(seed));
        let setup = if mesh { Setup::mesh(seed, &[3, 3, 2]) } else { Setup::plain(seed, &[3, 3, 2]) };
        // Every fourth seed cuts bytes in pieces.
        let plan = if seed % 4 == 3 { Plan::new(seed) } else { setup.plan };
        let lab = Rc::new(Lab::new(Setup { plan, ..setup }.workers(1 + seed % 3)));
        for (n, backend) in (0..).zip(&lab.backends) {
            backend.does(moody(Random::new(seed * 10 + n)));
        }
        lab.policy(0, policy(&random));
        lab.route(0, RouteKind::Http, rules(&random));
        for callee in &lab.callees {
            let forbids = authorization::policy("forbids", Action::Deny, vec![], vec![authorization::below("/forbidden")]);
            callee.govern(inbound_policy(Authorization { policies: vec![forbids], ..Authorization::default() }));
        }
        stir(&lab, seed, mesh);
        let mut clients = JoinSet::new();
        let good = Rc::new(Cell::new(0));
        for n in 0..12u64 {
            let (lab, random, good) = (Rc::clone(&lab), Random::new(seed * 100 + n), Rc::clone(&good));
            clients.spawn_local(async move {
                let send = if n % 2 == 0 { timeout(Duration::from_secs(5), lab.http2(0)).await.ok() } else { None };
                for i in 0..8 {
                    let id = n * 100 + i;
                    sleep(Duration::from_millis(random.below(300))).await;
                    let patience = if random.below(4) == 0 { random.below(200) } else { 60_000 };
                    let body = payload(id, random.below(plan.amount()));
                    let forbidden = mesh && random.below(6) == 0;
                    let line = if forbidden { "PUT /forbidden/1" } else { random.one_of(&["POST /", "PUT /"]) };
                    let request = one(&lab, send.as_ref(), id, line, &body);
                    let answered = timeout(Duration::from_millis(patience), request).await.unwrap_or(false);
                    assert!(!(forbidden && answered), "{id} was let in");
                    good.set(good.get() + u32::from(answered));
                }
            });
        }
        while let Some(client) = clients.join_next().await {
            client.expect("no panic");
        }
        assert!(good.get() > 5, "{} of 96 were answered: this tests nothing", good.get());
        sleep(Duration::from_secs(60)).await;
        // Whatever broke, nothing went by the policy.
        for backend in &lab.backends {
            assert!(!backend.seen.borrow().iter().any(|asked| asked.target.starts_with("/forbidden")), "{}", backend.ip);
        }
        // Nothing was sent more often than it may be: two sidecars, three attempts or so each, and a copy.
        for id in 0..1_200 {
            let times = lab.times(id);
            assert!(times <= 16, "{id} arrived {times} times");
        }
        let budget = lab.service(0).view.load().standing.budget.left(lab.now());
        assert!(budget >= 100, "{budget} repetitions are left after a minute");
        Rc::into_inner(lab).expect("everybody has ended").end().await;
    });
}

/// One exchange, and whether all went well; an answer of the application's is whole.
async fn one(lab: &Lab, send: Option<&h2::client::SendRequest<bytes::Bytes>>, id: u64, line: &str, body: &[u8]) -> bool {
    let id = id.to_string();
    let fields = [("x-id", id.as_str())];
    let answered = if let Some(send) = send {
        let Ok(called) = call(send, line, &fields, body).await else { return false };
        (called.status, called.field("weft-error").is_some(), called.body)
    } else {
        let mut client = lab.client(0).await;
        let Some(answer) = ask(&mut client, line, &fields, Some(body)).await else { return false };
        (answer.status(), answer.field("weft-error").is_some(), answer.body)
    };
    let good = answered.0 == 200;
    match answered {
        (200, false, echo) => assert!(echo == body, "{} of {} bytes look whole", echo.len(), body.len()),
        (500 | 503, false, _) => {}
        (status, own, _) => assert!(own && status >= 400, "{status} without a reason"),
    }
    good
}
