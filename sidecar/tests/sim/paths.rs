//! Every known way round a policy about paths, through two sidecars: refused, or forwarded byte by byte as it was sent.

use std::collections::BTreeMap;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use weft_core::authorization::PathDefect::{self, *};
use weft_core::authorization::{Action, Authorization};

use crate::authorization::{below, policy};
use crate::backend::status;
use crate::lab::{Lab, Setup};
use crate::seeds::simulate;
use crate::world::inbound_policy;

/// What is sent, and the path that it is taken for, or why it is taken for none.
const ATTEMPTS: &[(&str, Result<&str, PathDefect>)] = include!("../../../core/src/authorization/path/attempts.in");

/// A pod where everybody may do anything, but with `/admin`.
fn lab(seed: u64) -> Lab {
    let lab = Lab::new(Setup::mesh(seed, &[1]));
    lab.backends[0].does(|_| status(200));
    let forbids = policy("admin", Action::Deny, vec![], vec![below("/admin")]);
    lab.callees[0].govern(inbound_policy(Authorization { policies: vec![forbids], ..Authorization::default() }));
    lab
}

/// Whether it may arrive. What stands for no path may not, nor what is `/admin` or below it.
fn may_arrive(expected: &Result<&str, PathDefect>) -> bool {
    expected.is_ok_and(|path| path != "/admin" && !path.starts_with("/admin/"))
}

/// The targets that arrived since there were so many.
fn arrived(lab: &Lab, before: usize) -> Vec<String> {
    lab.backends[0].seen.borrow()[before..].iter().map(|asked| asked.target.clone()).collect()
}

#[test]
fn over_http1() {
    simulate(1, &async |seed| {
        let lab = lab(seed);
        let mut told = BTreeMap::new();
        for (raw, expected) in ATTEMPTS {
            let before = lab.count();
            let mut client = lab.client(0).await;
            client.say(format!("GET {raw} HTTP/1.1\r\nhost: api\r\nconnection: close\r\n\r\n").as_bytes()).await;
            let status = client.answer().await.map(|answer| answer.status());
            let arrived = arrived(&lab, before);
            if may_arrive(expected) {
                assert_eq!((status, arrived), (Some(200), vec![(*raw).to_owned()]), "{raw:?}");
            } else {
                // What is no request at all is bytes, which a policy about paths lets nobody send: a reset.
                assert!(matches!(status, None | Some(400 | 403)) && arrived.is_empty(), "{raw:?}: {status:?}, {arrived:?}");
            }
            *told.entry(status).or_insert(0) += 1;
        }
        // Most come as far as the policy, which says so.
        assert!(told[&Some(403)] > 40 && told[&Some(200)] > 10, "{told:?}");
        lab.end().await;
    });
}

/// A frame of HTTP/2 (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}

/// A request whose fields are written as they are (RFC 7541, section 6.2.2): a client's library would refuse some of them.
fn request(path: &str) -> Vec<u8> {
    let fields = [(":method", "GET"), (":scheme", "http"), (":authority", "api"), (":path", path)];
    let block = fields.iter().flat_map(|(name, value)| {
        let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
        [vec![0], text(name), text(value)].concat()
    });
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[]), frame(1, 5, 1, &block.collect::<Vec<_>>())].concat()
}

#[test]
fn over_http2() {
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const GOAWAY: u8 = 7;
    simulate(1, &async |seed| {
        let lab = lab(seed);
        let mut answered = 0;
        for (raw, expected) in ATTEMPTS {
            let before = lab.count();
            let mut peer = lab.dial(0).await;
            peer.write_all(&request(raw)).await.expect("it is heard");
            // The first word about the request: an answer, or an end.
            let word = loop {
                let mut head = [0; 9];
                if peer.read_exact(&mut head).await.is_err() {
                    break GOAWAY;
                }
                let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
                let mut payload = vec![0; length as usize];
                peer.read_exact(&mut payload).await.expect("a whole frame");
                if [HEADERS, RST_STREAM, GOAWAY].contains(&head[3]) {
                    break head[3];
                }
            };
            drop(peer);
            let arrived = arrived(&lab, before);
            if may_arrive(expected) {
                assert_eq!((word, arrived), (HEADERS, vec![(*raw).to_owned()]), "{raw:?}");
            } else {
                assert!(arrived.is_empty(), "{raw:?}: {arrived:?}");
            }
            answered += usize::from(word == HEADERS);
        }
        assert!(answered > 50, "{answered} of {} were answered: the rest was no request", ATTEMPTS.len());
        assert!(lab.callees[0].shared.denials.all().len() > 30, "the policy was asked");
        lab.end().await;
    });
}
