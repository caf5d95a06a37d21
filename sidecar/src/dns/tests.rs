use std::net::IpAddr;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A as Address, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use proptest::prelude::*;
use weft_core::egress::Host;

use super::*;

fn name(text: &str) -> Name {
    Name::from_ascii(text).expect("a name")
}

fn reply(query: &[u8], records: Vec<Record>) -> Vec<u8> {
    let read = Message::from_vec(query).expect("a query");
    let mut reply = Message::new(read.metadata.id, MessageType::Response, OpCode::Query);
    reply.metadata.response_code = ResponseCode::NoError;
    reply.queries = read.queries.clone();
    reply.answers = records;
    reply.to_vec().expect("it can be written")
}

fn a(of: &str, ttl: u32, ip: [u8; 4]) -> Record {
    Record::from_rdata(name(of), ttl, RData::A(Address::from(std::net::Ipv4Addr::from(ip))))
}

fn alias(of: &str, ttl: u32, to: &str) -> Record {
    Record::from_rdata(name(of), ttl, RData::CNAME(CNAME(name(to))))
}

#[test]
fn a_question_of_ours_is_one_to_others() {
    let query = message::question("api.example.com", message::AAAA).expect("a name");
    let read = Message::from_vec(&query).expect("it can be read");
    assert_eq!(read.queries, [Query::query(name("api.example.com."), RecordType::AAAA)]);
    assert!(read.metadata.recursion_desired && message::is_query(&query));
    assert_eq!(message::question_of(&query).and_then(message::name_of), Some(("api.example.com".to_owned(), message::AAAA)));
    for bad in ["", ".", "a..b", &"x".repeat(64), &["a"; 200].join(".")] {
        assert!(message::question(bad, message::A).is_none(), "{bad:?}");
    }
}

#[test]
fn only_what_follows_from_the_question_is_an_address() {
    let query = message::question("www.example.com", message::A).expect("a name");
    let records = vec![
        alias("www.example.com.", 300, "cdn.example.net."),
        a("cdn.example.net.", 20, [203, 0, 113, 1]),
        a("cdn.example.net.", 900, [203, 0, 113, 2]),
        a("evil.example.org.", 900, [203, 0, 113, 66]),
    ];
    let found = answer::addresses(&query, &reply(&query, records)).expect("it says something");
    let ip = |last: u8| IpAddr::from([203, 0, 113, last]);
    assert_eq!(found, [(ip(1), 20), (ip(2), 300)]);
    let circle = vec![alias("www.example.com.", 1, "b.example."), alias("b.example.", 1, "www.example.com.")];
    assert_eq!(answer::addresses(&query, &reply(&query, circle)), Ok(vec![]));
}

#[test]
fn names_that_lead_nowhere_say_why() {
    let query = message::question("a.example", message::A).expect("a name");
    let coded = |code| {
        let mut message = Message::from_vec(&reply(&query, vec![])).expect("a reply");
        message.metadata.response_code = code;
        answer::addresses(&query, &message.to_vec().expect("it can be written"))
    };
    assert_eq!(coded(ResponseCode::NXDomain), Err(NoAnswer::NotFound));
    assert!(matches!(coded(ResponseCode::ServFail), Err(NoAnswer::Failed(_))));
    let failed = || Err(NoAnswer::Failed("x".into()));
    let reason = |v4, v6| settled("a.example", v4, v6).map_err(|e| e.reason());
    let found = vec![(IpAddr::from([203, 0, 113, 1]), 5)];
    assert_eq!(reason(Ok(found.clone()), Err(NoAnswer::Silent)), Ok(found));
    assert_eq!(reason(Ok(vec![]), Ok(vec![])), Err(Reason::NameWithoutAddress));
    assert_eq!(reason(Ok(vec![]), Err(NoAnswer::Silent)), Err(Reason::NameServerSilent));
    assert_eq!(reason(failed(), Ok(vec![])), Err(Reason::NameServerFailed));
    assert_eq!(reason(failed(), Err(NoAnswer::NotFound)), Err(Reason::NameNotFound));
    assert_eq!(reason(Err(NoAnswer::NotFound), failed()), Err(Reason::NameNotFound));
}

#[test]
fn what_is_fixed_is_answered_without_asking_anybody() {
    use std::sync::Arc;
    use weft_core::authorization::Authorization;
    use weft_core::egress::{Egress, Endpoint, External, ExternalPort, ExternalProtocol, Resolution, Table};

    let endpoint = |text: &str| Endpoint { address: text.parse().expect("an address"), port: None };
    let external = External {
        id: "shop/db".parse().expect("an id"),
        is_mesh_wide: false,
        hosts: vec!["db.example".parse().expect("a host"), "*.db.example".parse().expect("a host")],
        ports: vec![ExternalPort { port: 5432, target: 5432, protocol: ExternalProtocol::Tcp }],
        origination: None,
        resolution: Resolution::Static(vec![endpoint("203.0.113.1"), endpoint("203.0.113.2")]),
        authorization: Authorization::default(),
    };
    let egress = Egress { externals: vec![Arc::new(external)], ..Egress::default() };
    let table = Table::new(&egress, &"spiffe://td/ns/shop/sa/web".parse().expect("an identity"), None);
    let ask = |host: &str, kind| message::with_id(&message::question(host, kind).expect("a name"), 7);
    let query = ask("DB.example", message::A);
    let told = fixed::answer(&table, &query).expect("it is fixed");
    assert!(message::answers(&query, &told));
    let read = Message::from_vec(&told).expect("it can be read");
    assert_eq!((read.metadata.response_code, read.metadata.recursion_available), (ResponseCode::NoError, true));
    let found = [IpAddr::from([203, 0, 113, 1]), IpAddr::from([203, 0, 113, 2])].map(|ip| (ip, 5));
    assert_eq!(answer::addresses(&query, &told).expect("addresses"), found);
    let other = ask("db.example", message::AAAA);
    let none = fixed::answer(&table, &other).expect("it is fixed");
    assert_eq!(answer::addresses(&other, &none), Ok(vec![]), "it exists, without addresses of that family");
    let mut chaos = query.clone();
    *chaos.last_mut().expect("a class") = 3;
    for asked in [ask("a.db.example", message::A), ask("example", message::A), ask("db.example", 15), chaos] {
        assert_eq!(fixed::answer(&table, &asked), None, "somebody else is asked");
    }
}

#[test]
fn an_answer_is_known_by_id_kind_and_question() {
    let query = message::with_id(&message::question("a.example", message::A).expect("a name"), 7);
    let good = reply(&query, vec![a("a.example.", 5, [203, 0, 113, 1])]);
    assert!(message::answers(&query, &good));
    assert!(!message::answers(&query, &message::with_id(&good, 8)), "another id");
    assert!(!message::answers(&query, &query), "a question");
    let other = message::with_id(&message::question("b.example", message::A).expect("a name"), 7);
    assert!(!message::answers(&query, &reply(&other, vec![])), "another question");
    let failure = message::failure(&query).expect("an answer");
    assert!(message::answers(&query, &failure));
    assert_eq!(Message::from_vec(&failure).expect("it can be read").metadata.response_code, ResponseCode::ServFail);
    let cut = message::truncated(&good).expect("an answer");
    assert!(message::answers(&query, &cut) && message::is_truncated(&cut));
    assert!(Message::from_vec(&cut).expect("it can be read").answers.is_empty());
}

#[test]
fn name_servers_are_read_as_the_c_library_reads_them() {
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    let text = "# comment\nsearch a b\nnameserver 10.0.0.1\nnameserver  fe80::1%eth0 # x\nnameserver host\nnameserver 10.0.0.3\nnameserver 10.0.0.4\n";
    assert_eq!(conf::parse(text), [ip("10.0.0.1"), ip("fe80::1"), ip("10.0.0.3")]);
    assert_eq!(conf::parse(""), [ip("127.0.0.1")]);
}

#[tokio::test(start_paused = true)]
async fn what_was_learned_is_bounded_and_ends() {
    let (learned, ip) = (Learned::default(), IpAddr::from([203, 0, 113, 1]));
    let host = |i: usize| Host::read(&format!("h{i}.example")).expect("a host");
    for i in 0..20 {
        learned.learn(&host(i), ip, 1);
    }
    let names = learned.names(ip);
    assert_eq!((names.len(), &names[0]), (8, &host(19)));
    for i in 0..10_000_u32 {
        learned.learn(&host(0), IpAddr::from(i.to_be_bytes()), 100 + i / 10);
    }
    assert!(!learned.names(IpAddr::from(9_999_u32.to_be_bytes())).is_empty());
    tokio::time::advance(Duration::from_secs(30)).await;
    learned.learn(&host(1), ip, 0);
    tokio::time::advance(Duration::from_secs(59)).await;
    assert_eq!(learned.names(ip), [host(1)], "a program may still use it");
    tokio::time::advance(Duration::from_secs(2)).await;
    assert!(learned.names(ip).is_empty());
}

proptest! {
    #[test]
    fn no_bytes_are_too_strange(query in proptest::collection::vec(any::<u8>(), 0..120), answer in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = message::is_query(&query);
        let _ = message::answers(&query, &answer);
        let _ = message::failure(&query);
        let _ = message::truncated(&query);
        let _ = message::answer(&query, &[IpAddr::from([203, 0, 113, 1])], 5);
        let _ = message::question_of(&query).and_then(message::name_of);
        let _ = answer::addresses(&query, &answer);
        let good = message::question("a.example", message::A).expect("a name");
        let _ = answer::addresses(&good, &answer);
    }
}
