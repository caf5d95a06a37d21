//! Connections that idle: no more than there is room for, however many endpoints there are, and none that has ended.

use std::time::Duration;

use tokio::time::sleep;

use crate::calls::{ask, call};
use crate::lab::{Lab, Setup};
use crate::seeds::first_seeds;
use crate::world::A;

const MOST: usize = 16;

#[test]
fn connections_to_many_endpoints_leave_room_for_others() {
    first_seeds(16, &async |seed| {
        let (mesh, http2) = (seed % 2 == 1, seed % 4 >= 2);
        let mut setup = if mesh { Setup::mesh(seed, &[40]) } else { Setup::plain(seed, &[40]) };
        setup.plan.options = &["--max-idle=16"];
        let lab = Lab::new(setup);
        // One that says nothing would be taken for something else, and have a connection of its own.
        let mut client = if http2 { None } else { Some(lab.client(0).await) };
        let shared = if http2 { Some(lab.http2(0).await) } else { None };
        for n in 0..200 {
            let status = match (&shared, &mut client) {
                (Some(shared), _) => call(shared, "GET /", &[], b"").await.expect("it is answered").status,
                (None, Some(client)) => ask(client, "GET /", &[], None).await.expect("it is answered").status(),
                (None, None) => unreachable!("one of them asks"),
            };
            assert_eq!(status, 200);
            // What is let go of ends by itself.
            sleep(Duration::from_secs(1)).await;
            let open = lab.network.connections_of(A);
            assert!(open <= MOST, "{open} after {n}: HTTP/2 {http2}, mesh {mesh}");
        }
        let reached = lab.backends.iter().filter(|b| b.count() > 0).count();
        assert!(reached > MOST && lab.network.connections_of(A) > MOST / 2, "connections are kept still: {reached}");
        drop((client, shared));
        lab.end().await;
    });
}

#[test]
fn what_has_ended_at_the_other_end_is_not_held() {
    first_seeds(8, &async |seed| {
        let lab = Lab::new(Setup::either(seed, &[8]));
        let mut client = lab.client(0).await;
        for _ in 0..80 {
            assert_eq!(ask(&mut client, "GET /", &[], None).await.expect("it is answered").status(), 200);
        }
        assert!(lab.network.connections_of(A) > 1);
        for backend in &lab.backends {
            lab.network.reset(A, backend.ip);
        }
        // As often as it is looked.
        sleep(Duration::from_secs(6)).await;
        assert_eq!(lab.network.connections_of(A), 0);
        drop(client);
        lab.end().await;
    });
}
