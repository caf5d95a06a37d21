//! A service that fails wholly gets a fifth more than it was asked for, and ten a second, and no more.

use std::rc::Rc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use weft_core::traffic::route::{Retry, RouteKind, Rule};

use crate::backend::{Reply, grpc, status};
use crate::calls::{ask, grpc_call};
use crate::lab::{Lab, Setup, rule};
use crate::retries::retry;
use crate::seeds::first_seeds;

const CLIENTS: u64 = 20;
const LASTS: Duration = Duration::from_secs(15);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Failing {
    Status,
    Reset,
    /// Every second request on a connection that is there already.
    ResetLater,
    Refused,
    Grpc,
    RefusedStream,
}

/// Has clients ask for as long as it lasts, five times a second each; gives how many requests there were.
async fn load(lab: &Rc<Lab>, failing: Failing) -> u64 {
    let mut clients = JoinSet::new();
    let ends = Instant::now() + LASTS;
    for n in 0..CLIENTS {
        let lab = Rc::clone(lab);
        clients.spawn_local(async move {
            sleep(Duration::from_millis(n * 7)).await;
            let grpc = matches!(failing, Failing::Grpc | Failing::RefusedStream);
            let send = if grpc { Some(lab.http2(0).await) } else { None };
            let (mut asked, mut kept) = (0, None);
            while Instant::now() < ends {
                let next = Instant::now() + Duration::from_millis(200);
                asked += 1;
                if let Some(send) = &send {
                    let called = grpc_call(send, n * 1_000 + asked, &[]).await.expect("an answer");
                    assert_eq!(called.code, Some(14));
                } else {
                    // A client whose connection was closed comes back, as a program would.
                    let mut client = match kept.take() {
                        Some(client) => client,
                        None => lab.client(0).await,
                    };
                    let answer = ask(&mut client, "GET /", &[], None).await.expect("an answer");
                    kept = (answer.field("connection") != Some("close")).then_some(client);
                }
                sleep_until(next).await;
            }
            asked
        });
    }
    let mut asked = 0;
    while let Some(count) = clients.join_next().await {
        asked += count.expect("no panic");
    }
    asked
}

#[test]
fn repetitions_stay_within_the_budget_however_it_fails() {
    use Failing::{Grpc, Refused, RefusedStream, Reset, ResetLater, Status};
    for (n, (failing, mesh)) in [
        (Status, false),
        (Status, true),
        (Reset, false),
        (Reset, true),
        (ResetLater, false),
        (ResetLater, true),
        (Refused, true),
        (Grpc, false),
        (RefusedStream, false),
        (RefusedStream, true),
    ]
    .into_iter()
    .enumerate()
    {
        first_seeds(1, &async |seed| {
            let setup = if mesh { Setup::mesh(seed, &[3]) } else { Setup::plain(seed, &[3]) };
            let lab = Rc::new(Lab::new(setup.workers(1 + 3 * (n as u64 % 2))));
            for backend in &lab.backends {
                backend.does(move |a| match failing {
                    Status => status(503),
                    ResetLater if a.nth % 2 == 0 => status(200),
                    Reset | ResetLater | Refused => Reply::Reset,
                    Grpc => grpc(14),
                    RefusedStream => Reply::Refuse,
                });
                if failing == Refused {
                    backend.down();
                }
            }
            let retry = Retry { any_method: true, ..retry(&[503], &[14], 5) };
            lab.route(0, RouteKind::Http, vec![Rule { retry: Some(retry), ..rule(&[(0, 1)]) }]);
            let asked = load(&lab, failing).await as f64;
            let tries: u64 = lab.caller.shared.metrics.edges().iter().map(|e| e.retries).sum();
            let arrived = lab.count() as f64;
            // Ten a second for as long as it lasted, and for the window that it ended in.
            let most = asked * 0.2 + 10.0 * (LASTS.as_secs_f64() + 10.0);
            assert!(tries as f64 <= most, "{failing:?}, mesh {mesh}: {tries} repetitions of {asked} requests");
            // Of those that died on a kept connection, the endpoints' sidecars repeat a tenth, and two a second each.
            let there = if mesh { (asked + most) * 0.1 + 3.0 * 2.0 * (LASTS.as_secs_f64() + 10.0) } else { 0.0 };
            assert!(arrived <= asked + most + there, "{failing:?}, mesh {mesh}: {arrived} of {asked} arrived");
            assert!(tries > 0, "{failing:?}: nothing was repeated");
            Rc::into_inner(lab).expect("every client has ended").end().await;
        });
    }
}
