//! What one replica tells another of the sidecars that are connected to it, on its way over the wire.

use std::collections::BTreeMap;
use std::time::Duration;

use weft_proto::v1;
use weft_proto::v1::replica_end::End;

use super::traffic::{Look, Node, Pair, Refusal, Sums};

/// What a replica knows, and no other.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Account {
    pub look: Look,
    /// Those that are connected to it.
    pub sidecars: Vec<v1::SidecarStatus>,
}

impl Node {
    fn told(&self) -> v1::ReplicaEnd {
        let end = match self {
            Self::Service(id) => End::Service(id.to_string()),
            Self::Account(id) => End::Account(id.to_string()),
            Self::Plaintext => End::Plaintext(true),
            Self::Outside(name) => End::Outside(name.to_string()),
        };
        v1::ReplicaEnd { end: Some(end) }
    }

    fn read(end: Option<&v1::ReplicaEnd>) -> Result<Self, String> {
        match end.and_then(|end| end.end.as_ref()) {
            Some(End::Service(id)) => {
                id.parse().map(Self::Service).map_err(|e| format!("it names a service that is none: {id:?}: {e}"))
            }
            Some(End::Account(id)) => Ok(Self::Account(id.as_str().into())),
            Some(End::Plaintext(_)) => Ok(Self::Plaintext),
            Some(End::Outside(name)) => Ok(Self::Outside(name.as_str().into())),
            None => Err("it names an end of an edge of which this version does not know".to_owned()),
        }
    }
}

impl Sums {
    fn told(&self) -> v1::ReportedEdge {
        let error = |(reason, count): (&&str, &u64)| v1::ReportedError { reason: (*reason).to_owned(), count: *count };
        v1::ReportedEdge {
            requests: self.requests,
            failed: self.failed,
            client_errors: self.client_errors,
            connections: self.connections,
            bytes_received: self.received,
            bytes_sent: self.sent,
            retries: self.retries,
            latency: self.latency.to_vec(),
            errors: self.errors.iter().map(error).collect(),
            ..Default::default()
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What this replica tells.
pub fn to_wire(account: &Account) -> v1::ReplicaTrafficResponse {
    let Account { look, sidecars } = account;
    let mut both: BTreeMap<&Pair, (Option<&Sums>, Option<&Sums>)> = BTreeMap::new();
    look.window.iter().for_each(|(pair, sums)| both.entry(pair).or_default().0 = Some(sums));
    look.totals.iter().for_each(|(pair, sums)| both.entry(pair).or_default().1 = Some(sums));
    let pair = |(pair, (window, total)): (&Pair, (Option<&Sums>, Option<&Sums>))| v1::ReplicaPair {
        from: Some(pair.from.told()),
        to: Some(pair.to.told()),
        mutual_tls: pair.mutual_tls,
        window: window.map(Sums::told),
        total: total.map(Sums::told),
    };
    let series = |(to, slots): (&Node, &Vec<(u64, u64)>)| {
        let (requests, failed) = slots.iter().copied().unzip();
        v1::ReplicaSeries { to: Some(to.told()), requests, failed }
    };
    let refusal = |r: &Refusal| v1::ReplicaRefusal { sidecar: r.sidecar.clone(), told: Some(r.told.clone()) };
    v1::ReplicaTrafficResponse {
        covered_millis: millis(look.covered),
        pairs: both.into_iter().map(pair).collect(),
        series: look.series.iter().map(series).collect(),
        refusals: look.refusals.iter().map(refusal).collect(),
        edges_left_out: look.left_out.0,
        refusals_left_out: look.left_out.1,
        sidecars: sidecars.iter().cloned().map(short).collect(),
    }
}

/// Without what a sidecar says in words of its own: here it counts how often it does.
fn short(mut status: v1::SidecarStatus) -> v1::SidecarStatus {
    status.rejected.iter_mut().for_each(|problem| *problem = v1::Problem::default());
    status
}

/// What another replica told.
///
/// # Errors
///
/// Where it cannot be read.
pub fn from_wire(told: v1::ReplicaTrafficResponse) -> Result<Account, String> {
    let mut look = Look {
        covered: Duration::from_millis(told.covered_millis),
        left_out: (told.edges_left_out, told.refusals_left_out),
        ..Look::default()
    };
    for said in &told.pairs {
        let (from, to) = (Node::read(said.from.as_ref())?, Node::read(said.to.as_ref())?);
        let pair = Pair { from, to, mutual_tls: said.mutual_tls };
        if let Some(window) = &said.window {
            look.window.insert(pair.clone(), Sums::of(window));
        }
        if let Some(total) = &said.total {
            look.totals.insert(pair, Sums::of(total));
        }
    }
    for said in told.series {
        look.series.insert(Node::read(said.to.as_ref())?, said.requests.into_iter().zip(said.failed).collect());
    }
    let refusal = |r: v1::ReplicaRefusal| Some(Refusal { sidecar: r.sidecar, told: r.told? });
    look.refusals = told.refusals.into_iter().filter_map(refusal).collect();
    Ok(Account { look, sidecars: told.sidecars })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_the_same_behind_the_wire() {
        let sums = |requests: u64| {
            let mut latency = [0; weft_core::metrics::histogram::CLASSIC];
            latency[3] = requests;
            Sums { requests, failed: 1, received: 7, sent: 8, latency, errors: [("overloaded", 2)].into(), ..Sums::default() }
        };
        let pair = |from: Node, to: Node| Pair { from, to, mutual_tls: true };
        let web = Node::Service("shop/web".parse().expect("a name"));
        let (called, gone) =
            (pair(Node::Plaintext, web.clone()), pair(Node::Account("shop/a".into()), Node::Outside("x y".into())));
        let told = v1::ReportedRefusal { reference: "7".into(), at: 5, ..Default::default() };
        let look = Look {
            covered: Duration::from_millis(8_500),
            window: [(called.clone(), sums(5))].into(),
            totals: [(called, sums(50)), (gone, sums(3))].into(),
            series: [(web, vec![(1, 0), (5, 1)])].into(),
            refusals: vec![Refusal { sidecar: "shop/web-0".into(), told }],
            left_out: (1, 2),
        };
        let rejects = |message: &str| v1::SidecarStatus {
            namespace: "shop".into(),
            pod: "web-0".into(),
            rejected: vec![v1::Problem { message: message.into(), ..Default::default() }],
            ..Default::default()
        };
        let told = to_wire(&Account { look: look.clone(), sidecars: vec![rejects("a long story")] });
        assert_eq!(from_wire(told), Ok(Account { look, sidecars: vec![rejects("")] }));
        let pair = |from| v1::ReplicaPair { from, to: Some(Node::Plaintext.told()), ..Default::default() };
        for strange in [None, Some(v1::ReplicaEnd { end: None }), Some(v1::ReplicaEnd { end: Some(End::Service("none".into())) })]
        {
            let told = v1::ReplicaTrafficResponse { pairs: vec![pair(strange)], ..Default::default() };
            assert!(from_wire(told).is_err());
        }
    }
}
