//! `weft-bench policy`: what a decision costs with few and with many `AuthorizationPolicies`, without any network. Each policy lets one caller, and everybody, GET below one path.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use weft_core::SpiffeId;
use weft_core::authorization::policy::{Operation, PathMatch, Peer, Principal, Rule, Target};
use weft_core::authorization::{Action, Authorization, Compiled, Connection, Judge, Policy, Posture};
use weft_core::traffic::table::RequestFacts;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many policies a pod has, one run each
    #[arg(long, value_delimiter = ',', default_values_t = [0, 1, 10, 100, 1000])]
    policies: Vec<usize>,
}

const REQUESTS: u32 = 1_000_000;
const CONNECTIONS: u32 = 10_000;

struct Get(&'static [u8]);

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

fn each(times: u32, what: impl Fn()) -> Duration {
    let begun = Instant::now();
    for _ in 0..times {
        what();
    }
    begun.elapsed() / times
}

fn policy(i: usize) -> anyhow::Result<Arc<Policy>> {
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
