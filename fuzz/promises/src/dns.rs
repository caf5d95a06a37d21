//! DNS messages: those that the sidecar passes on, and those that the control plane answers.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use weft_control_plane::dns::Zone;
use weft_control_plane::hub::Hub;
use weft_control_plane::model::Model;
use weft_control_plane::snapshot::Entry;
use weft_control_plane::watch::{Change, parse};
use weft_core::policy::MtlsMode;
use weft_proto::v1;
use weft_proto::v1::resource::Body;
use weft_sidecar::dns::{answer, message};

const HEADER: usize = 12;

/// The first two bytes are the length of a query; an answer to it follows.
pub fn dns(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return };
    let (query, answer) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
    passed_on(query);
    passed_on(answer);
    learned(query, answer);
    answered(query);
    answered(answer);
}

/// What is changed of a message is what is meant to be, and nothing else.
fn passed_on(bytes: &[u8]) {
    let renamed = message::with_id(bytes, 0x1234);
    assert_eq!(renamed.len(), bytes.len());
    if bytes.len() >= 2 {
        assert_eq!((message::id(&renamed), &renamed[2..]), (Some(0x1234), &bytes[2..]));
    }
    let Some(question) = message::question_of(bytes) else {
        assert!(!message::is_query(bytes) && message::failure(bytes).is_none() && message::truncated(bytes).is_none());
        return;
    };
    assert_eq!(question, &bytes[HEADER..HEADER + question.len()]);
    if let Some((name, kind)) = message::name_of(question) {
        assert_eq!(name, name.to_ascii_lowercase());
        // Our own question for that name is the same one, but for case and class.
        if let Some(own) = (!name.is_empty()).then(|| message::question(&name, kind)).flatten() {
            let own = message::question_of(&own).expect("a question").to_vec();
            let class = own.len() - 2;
            assert!(own[..class].eq_ignore_ascii_case(&question[..class]), "{name}");
        }
    }
    let cut = message::truncated(bytes).expect("it has a question");
    assert!(message::is_truncated(&cut) && cut.len() <= bytes.len() && message::question_of(&cut) == Some(question));
    let failure = message::failure(bytes).expect("it has a question");
    assert!(message::answers(bytes, &failure) && !message::is_query(&failure), "what is refused is answered, once");
    assert!(!message::answers(bytes, bytes) || !message::is_query(bytes), "a query answers nothing");
}

/// No address is learned that the answer does not have, nor from a message that answers something else.
fn learned(query: &[u8], told: &[u8]) {
    let Ok(found) = answer::addresses(query, told) else { return };
    for (ip, _) in found {
        let is_there = match ip {
            IpAddr::V4(ip) => told.windows(4).any(|bytes| bytes == ip.octets()),
            IpAddr::V6(ip) => told.windows(16).any(|bytes| bytes == ip.octets()),
        };
        assert!(is_there, "{ip}");
    }
}

/// The control plane answers queries alone, under their id and within the limit.
fn answered(query: &[u8]) {
    static ZONE: OnceLock<Zone> = OnceLock::new();
    let zone = ZONE.get_or_init(zone);
    for limit in [Some(512), None] {
        let Some(answer) = zone.answer(query, limit) else { continue };
        assert_eq!(message::id(&answer), message::id(query));
        assert!(query[2] & 0x80 == 0 && answer[2] & 0x80 != 0, "a response is not answered, and an answer is one");
        // What asks for more by EDNS says so itself (RFC 6891): 64 KiB at most.
        assert!(u16::try_from(answer.len()).is_ok(), "{} bytes", answer.len());
        assert_eq!(zone.answer(&answer, limit), None, "answers are not answered");
    }
}

fn zone() -> Zone {
    let mesh = Entry::new(Body::Mesh(v1::Mesh::default()));
    let domain = "cluster.local".parse().expect("a trust domain");
    let mut model = Model::new(domain, MtlsMode::Permissive, mesh.clone(), mesh);
    let objects = parse::parse("shop.yaml", include_str!("../../seeds/manifest/shop.yaml")).expect("good manifests");
    model.apply(objects.into_iter().map(Change::Upsert).collect());
    let hub: Arc<Hub> = Hub::new(model.snapshot().clone());
    Zone::new("cluster.local", hub)
}
