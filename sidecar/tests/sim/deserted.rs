//! Callers that go away: what is done for them ends at once, wherever it stands.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use weft_core::traffic::TrafficPolicy;
use weft_core::traffic::policy::Fault;
use weft_core::traffic::route::{Retry, RouteKind, Rule};

use crate::backend::{Reply, status};
use crate::lab::{Lab, Setup, pod, rule};
use crate::retries::retry;
use crate::seeds::first_seeds;
use crate::world::A;

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: api\r\n\r\n";

/// Begins a request, and goes away after a while.
async fn come_and_go(lab: &Lab, http2: bool, stays: Duration) -> Instant {
    if http2 {
        let mut send = lab.http2(0).await.ready().await.expect("open");
        let request = http::Request::get("http://api/").body(()).expect("a valid request");
        let (response, _) = send.send_request(request, true).expect("it is sent");
        sleep(stays).await;
        drop(response);
    } else {
        let mut client = lab.client(0).await;
        client.say(GET).await;
        sleep(stays).await;
        client.peer.0.reset();
    }
    Instant::now()
}

#[test]
fn what_is_answered_for_nobody_is_called_off_at_once() {
    first_seeds(16, &async |seed| {
        let (mesh, http2) = (seed % 2 == 1, seed % 4 >= 2);
        let lab = Lab::new(if mesh { Setup::mesh(seed, &[2]) } else { Setup::plain(seed, &[2]) });
        for slow in [false, true] {
            lab.backends.iter().for_each(|b| {
                b.does(move |_| if slow { status(200).after(Duration::from_secs(50)) } else { Reply::Never });
            });
            let left = come_and_go(&lab, http2, Duration::from_secs(1)).await;
            sleep(Duration::from_millis(20)).await;
            let deserted: Vec<_> = lab.backends.iter().flat_map(|b| b.deserted.borrow_mut().split_off(0)).collect();
            assert_eq!(deserted.len(), 1, "HTTP/2 {http2}, mesh {mesh}");
            assert!(deserted[0] >= left && deserted[0] - left <= Duration::from_millis(5), "{:?}", deserted[0] - left);
        }
        lab.end().await;
    });
}

#[test]
fn nothing_is_sent_for_somebody_who_has_gone() {
    first_seeds(16, &async |seed| {
        let http2 = seed % 2 == 1;
        let lab = Lab::plain(seed, &[2]);
        // During a fault's delay.
        let delay = Some(Duration::from_secs(5));
        let faults = vec![Fault { headers: vec![], millionths: 1_000_000, delay, abort: None }];
        lab.policy(0, TrafficPolicy { faults, ..TrafficPolicy::default() });
        come_and_go(&lab, http2, Duration::from_secs(1)).await;
        sleep(Duration::from_secs(10)).await;
        assert_eq!(lab.count(), 0, "after a delay");
        // During a pause before a repetition.
        lab.policy(0, TrafficPolicy::default());
        lab.backends.iter().for_each(|b| b.does(|_| status(503)));
        let retry = Retry { backoff: Some(Duration::from_secs(5)), ..retry(&[503], &[], 3) };
        lab.route(0, RouteKind::Http, vec![Rule { retry: Some(retry), ..rule(&[(0, 1)]) }]);
        come_and_go(&lab, http2, Duration::from_secs(1)).await;
        sleep(Duration::from_secs(100)).await;
        assert_eq!(lab.count(), 1, "after a pause");
        // While a connection opens.
        lab.route(0, RouteKind::Http, vec![rule(&[(0, 1)])]);
        sleep(Duration::from_secs(1_000)).await;
        for n in 0..2 {
            lab.network.partition(A, pod(n));
        }
        come_and_go(&lab, http2, Duration::from_millis(500)).await;
        sleep(Duration::from_millis(5)).await;
        let view = lab.service(0).view.load_full();
        assert!(view.endpoints.iter().all(|e| e.health.load.in_flight() == 0), "somebody still waits for a connection");
        for n in 0..2 {
            lab.network.heal(A, pod(n));
        }
        sleep(Duration::from_secs(10)).await;
        assert_eq!(lab.count(), 1, "after a connection");
        lab.end().await;
    });
}
