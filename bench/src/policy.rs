//! `weft-bench policy`: what a decision costs with few and with many policies, without any network.
//!
//! Each `AuthorizationPolicy` lets one caller, and everybody, GET below one path. Each `NetworkPolicy` lets the pods of one set and one block of addresses
//! call one port; who is asked about is let in by the last of them, or by none.

use std::hint::black_box;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use prost::Message as _;
use weft_core::SpiffeId;
use weft_core::authorization::policy::{Operation, PathMatch, Peer, Principal, Rule, Target};
use weft_core::authorization::{Action, Authorization, Compiled, Connection, Judge, Policy, Posture};
use weft_core::network_policy::{
    End, Isolation, Member, PeerSets, PeerTerm, PeersId, Policy as NetworkPolicy, PortTerm, Rule as NetworkRule,
};
use weft_core::service::ObjectRef;
use weft_core::traffic::table::RequestFacts;
use weft_proto::v1;
use weft_tls::{Denied, LeafInfo};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many policies a pod has, one run each
    #[arg(long, value_delimiter = ',', default_values_t = [0, 1, 10, 100, 1000])]
    policies: Vec<usize>,
    /// How many entries the deny list has, one run each
    #[arg(long, value_delimiter = ',', default_values_t = [0, 10, 1000, 10000])]
    denied: Vec<usize>,
}

const REQUESTS: u32 = 1_000_000;
const CONNECTIONS: u32 = 10_000;
const PUSHES: u32 = 100;

pub(crate) struct Get(pub(crate) &'static [u8]);

impl RequestFacts for Get {
    fn method(&self) -> &[u8] {
        b"GET"
    }
    fn path(&self) -> &[u8] {
        self.0
    }
    fn query(&self) -> Option<&[u8]> {
        None
    }
    fn fields(&self, each: &mut dyn FnMut(&[u8], &[u8])) {
        each(b"host", b"cart.shop:80");
    }
    fn header_values(&self, name: &str, each: &mut dyn FnMut(&[u8])) {
        if name == "host" {
            each(b"cart.shop:80");
        }
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    authorization(args)?;
    println!();
    network(args)?;
    println!();
    denials(args)
}

fn authorization(args: &Args) -> anyhow::Result<()> {
    println!("policies  compiled in  connection  request allowed  request denied, with its reasons");
    for n in &args.policies {
        let own: SpiffeId = "spiffe://td/ns/shop/sa/cart".parse()?;
        let caller: SpiffeId = "spiffe://td/ns/shop/sa/app-0".parse()?;
        let policies = (0..*n).map(policy).collect::<anyhow::Result<_>>()?;
        let authorization = Authorization { posture: Posture::AllowAll, policies, ..Authorization::default() };
        let begun = Instant::now();
        let compiled = Arc::new(Compiled::new(&authorization, own));
        let compiling = begun.elapsed();
        let source = "10.0.0.9".parse()?;
        let judge = || Judge::new(compiled.clone(), Connection::new(80, Some(caller.clone()), source));
        let connection = each(CONNECTIONS, || drop(black_box(judge())));
        let judge = judge();
        let ask = |path| drop(black_box(judge.judge(Some(black_box(&Get(path))))));
        let allowed = each(REQUESTS, || ask(b"/p0/some/thing"));
        let denied = each(CONNECTIONS, || ask(b"/other"));
        println!("{n:8}  {compiling:>11.1?}  {connection:>10.1?}  {allowed:>15.1?}  {denied:>15.1?}");
    }
    Ok(())
}

fn network(args: &Args) -> anyhow::Result<()> {
    println!("network policies  connection let in by the last  connection denied, with its reasons");
    // Without a policy a pod is not isolated, and nothing is judged.
    for n in args.policies.iter().filter(|n| **n > 0) {
        let isolation = Isolation { policies: (0..*n).map(network_policy).collect::<anyhow::Result<_>>()? };
        let pod: ObjectRef = "shop/app-0".parse()?;
        let member = || Member { pod: pod.clone(), identity: None, port: None };
        let set = |i: usize| (0..10).map(|j| (member_address(i, j), member())).collect();
        let sets: PeerSets = (0..*n).map(|i| (PeersId(i as u64), Arc::new(set(i)))).collect();
        let judge = |address| {
            let end = End { address, proved: None };
            drop(black_box(isolation.judge(&sets, black_box(&end), 80)));
        };
        let last = member_address(n - 1, 9);
        let allowed = each(CONNECTIONS, || judge(last));
        let denied = each(CONNECTIONS, || judge([192, 0, 2, 1].into()));
        println!("{n:16}  {allowed:>28.1?}  {denied:>36.1?}");
    }
    Ok(())
}

fn member_address(set: usize, place: u8) -> IpAddr {
    let [high, low] = (set as u16).to_be_bytes();
    [10, high, low, place].into()
}

pub(crate) fn network_policy(i: usize) -> anyhow::Result<Arc<NetworkPolicy>> {
    let block = PeerTerm::Block { cidr: format!("172.16.{}.0/24", i % 256).parse()?, except: vec![] };
    let rule =
        NetworkRule { place: 0, peers: vec![block, PeerTerm::Set(PeersId(i as u64))], ports: vec![PortTerm::Range(80, 80)] };
    Ok(Arc::new(NetworkPolicy { id: format!("shop/n{i:05}").parse()?, rules: vec![rule], broken: None }))
}

/// Of the entries one half are identities, the other one serial numbers.
fn denials(args: &Args) -> anyhow::Result<()> {
    println!("denied  handshake  push: bytes  encoded in  read in  a kept connection looked up");
    for n in &args.denied {
        let identities = (0..n.div_ceil(2)).map(|i| format!("spiffe://td/ns/shop/sa/stolen-{i}").parse());
        let serials = (0..n / 2).map(|i| format!("{:x}", (i as u128 + 1) << 64));
        let denied = Denied::new(identities.collect::<Result<Vec<SpiffeId>, _>>()?, serials);
        let leaf = |i: usize| -> anyhow::Result<LeafInfo> {
            let id = format!("spiffe://td/ns/shop/sa/app-{i}").parse()?;
            Ok(LeafInfo { id, pod: None, serial: format!("{i:032x}"), not_before: 0, not_after: i64::MAX })
        };
        let one = leaf(0)?;
        let handshake = each(REQUESTS, || _ = black_box(denied.has(black_box(&one))));
        let encode = || v1::Denied::from(&denied).encode_to_vec();
        let wire = encode();
        let encoded = each(PUSHES, || drop(black_box(encode())));
        let read = || v1::Denied::decode(&wire[..]).ok().and_then(|wire| Denied::try_from(&wire).ok());
        anyhow::ensure!(read().as_ref() == Some(&denied), "what was sent is read");
        let decoded = each(PUSHES, || drop(black_box(read())));
        // Each push has a sidecar look at what is open: a thousand connections of a thousand peers here.
        let open = (1..=1000).map(leaf).collect::<anyhow::Result<Vec<_>>>()?;
        let looked_up = each(PUSHES, || open.iter().for_each(|leaf| _ = black_box(denied.has(leaf)))) / 1000;
        println!("{n:6}  {handshake:>9.1?}  {:>11}  {encoded:>10.1?}  {decoded:>7.1?}  {looked_up:>27.1?}", wire.len());
    }
    Ok(())
}

fn each(times: u32, what: impl Fn()) -> Duration {
    let begun = Instant::now();
    for _ in 0..times {
        what();
    }
    begun.elapsed() / times
}

pub(crate) fn policy(i: usize) -> anyhow::Result<Arc<Policy>> {
    let one = Peer { principals: vec![format!("spiffe://td/ns/shop/sa/app-{i}").parse()?], ..Peer::default() };
    let all = Peer { principals: vec![Principal::Any], ..Peer::default() };
    let path = PathMatch::prefix(&format!("/p{i}")).ok().context("a path")?;
    let to = vec![Operation { methods: vec!["GET".into()], paths: vec![path], ..Operation::default() }];
    Ok(Arc::new(Policy {
        id: format!("shop/p{i:05}").parse()?,
        target: Target::Mesh,
        action: Action::Allow,
        dry_run: false,
        broken: None,
        rules: vec![Rule { from: vec![one], to: to.clone() }, Rule { from: vec![all], to }],
        ports: None,
    }))
}
