//! Calls out of the mesh: to a workload of another mesh, over mutual TLS with each side's anchors for the other's domain; and what ends them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use weft_certs::{Authority, LeafKind, LeafSpec};
use weft_core::authorization::Authorization;
use weft_core::egress::{
    Egress, Endpoint, External, ExternalPort, ExternalProtocol, Origination, Peer as Peers, Resolution, Server,
};
use weft_core::network_policy::{Isolation, Policy};
use weft_core::policy::OutboundPolicy;
use weft_sidecar::io::{Network, Socket};
use weft_sidecar::mesh::Identity;
use weft_sidecar::pool::Buffers;
use weft_sidecar::stream::{Shared as Peer, Stream};
use weft_tls::{Denied, Svid, TrustBundle};
use zeroize::Zeroizing;

use crate::backend::{Backend, PORT};
use crate::calls::ask;
use crate::peers::{Conversation, Message};
use crate::seeds::first_seeds;
use crate::world::{A, CALLER, Plan, Sidecar, config};

/// Outside of the caller's mesh.
const EAST: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 7));
const STOCK: &str = "spiffe://east.example/ns/shop/sa/stock";

/// Two meshes, each with an authority of its own.
struct World {
    network: Network,
    home: Authority,
    east: Authority,
    caller: Sidecar,
    callee: Sidecar,
    backend: Rc<Backend>,
}

fn bundle(of: &[&Authority]) -> TrustBundle {
    let mut bundle = TrustBundle::default();
    for authority in of {
        bundle.insert(authority.trust_domain().clone(), vec![authority.root_der()]).expect("an anchor");
    }
    bundle
}

fn identity(generation: u64, authority: &Authority, id: &str, bundle: TrustBundle) -> Identity {
    let leaf = authority.leaf(&LeafSpec::new(LeafKind::Valid, id));
    let key = Zeroizing::new(leaf.key_der.secret_der().to_vec());
    Identity::new(generation, Svid::new(leaf.chain_der.clone(), key).expect("an SVID"), Arc::new(bundle))
}

impl World {
    fn new(seed: u64) -> Self {
        let plan = Plan::smooth(seed);
        let network = Network::new(plan.seed, plan.shape);
        network.set_latency(A, EAST, plan.latency);
        let (home, east) = (Authority::new("cluster.local"), Authority::new("east.example"));
        let theirs = identity(1, &east, STOCK, bundle(&[&east, &home]));
        let callee = Sidecar::start(&network, &plan, config(EAST, 1, &[]), theirs, None);
        let backend = Backend::new(&network, EAST);
        let ours = identity(1, &home, CALLER, bundle(&[&home, &east]));
        let caller = Sidecar::start(&network, &plan, config(A, 1, &[]), ours, None);
        caller.shared.mesh.is_of(CALLER.parse().expect("an identity"));
        Self { network, home, east, caller, callee, backend }
    }

    fn trust(&self, generation: u64, bundle: TrustBundle) {
        self.caller.shared.mesh.adopt(Arc::new(identity(generation, &self.home, CALLER, bundle)));
    }

    async fn client(&self) -> Conversation {
        let socket = self.network.host(A).connect(SocketAddr::new(EAST, PORT)).await.expect("the sidecar accepts");
        Conversation::new(Peer(Rc::new(Stream::plain(Socket::Memory(socket), Buffers::default()))))
    }

    /// One request on a connection of its own.
    async fn ask(&self) -> Message {
        let mut client = self.client().await;
        self.on(&mut client).await
    }

    async fn on(&self, client: &mut Conversation) -> Message {
        // The host is the address: nothing has to be looked up.
        client.say(format!("GET /ok/1 HTTP/1.1\r\nhost: {EAST}:{PORT}\r\n\r\n").as_bytes()).await;
        client.answer().await.expect("an answer")
    }

    async fn refused(&self) -> Option<String> {
        let answer = self.ask().await;
        (answer.status() != 200).then(|| answer.field("weft-error").unwrap_or_default().to_owned())
    }

    async fn end(mut self) {
        sleep(Duration::from_secs(1_000)).await;
        self.caller.end().await;
        self.callee.end().await;
    }
}

fn external(name: &str, origination: Option<Origination>) -> External {
    External {
        id: format!("shop/{name}").parse().expect("a name"),
        is_mesh_wide: false,
        hosts: vec![EAST.to_string().parse().expect("a host")],
        ports: vec![ExternalPort { port: PORT, target: PORT, protocol: ExternalProtocol::Http }],
        origination,
        resolution: Resolution::Static(vec![Endpoint { address: EAST, port: None }]),
        authorization: Authorization::default(),
    }
}

fn peers(identities: &[&str]) -> External {
    let server = Server::Peer(Peers::read(identities).expect("peers"));
    external("stock", Some(Origination { sni: None, server }))
}

fn outbound(externals: Vec<External>, network: Option<Isolation>) -> OutboundPolicy {
    let externals = externals.into_iter().map(Arc::new).collect();
    OutboundPolicy {
        egress: Egress { externals, ..Egress::default() },
        network: network.map(Arc::new),
        ..OutboundPolicy::default()
    }
}

#[test]
fn a_workload_of_another_mesh_is_called_by_its_identity() {
    first_seeds(4, &async |seed| {
        let world = World::new(seed);
        let mesh = &world.caller.shared.mesh;
        mesh.govern_outbound(outbound(vec![peers(&[STOCK])], None));
        assert_eq!(world.refused().await, None);
        let seen = world.backend.seen.borrow()[0].field("weft-client-id").map(str::to_owned);
        assert_eq!(seen.as_deref(), Some(CALLER), "the other mesh knows who calls");

        for (identities, reason) in [
            (&["spiffe://east.example/*"][..], None),
            (&["spiffe://east.example/ns/shop/sa/other"], Some("upstream-identity")),
            (&["spiffe://west.example/*"], Some("upstream-untrusted")),
            (&["spiffe://cluster.local/*"], Some("upstream-untrusted")),
            (&[STOCK, "spiffe://east.example/ns/shop/sa/other"], None),
        ] {
            mesh.govern_outbound(outbound(vec![peers(identities)], None));
            assert_eq!(world.refused().await.as_deref(), reason, "{identities:?}");
        }
        let denied = Denied::new([STOCK.parse().expect("an identity")], []);
        let both = || bundle(&[&world.home, &world.east]);
        world.trust(2, both().denying(Arc::new(denied)));
        assert_eq!(world.refused().await.as_deref(), Some("upstream-denied"));
        world.trust(3, bundle(&[&world.home]));
        assert_eq!(world.refused().await.as_deref(), Some("upstream-untrusted"));
        world.trust(4, both());
        assert_eq!(world.refused().await, None);
        world.end().await;
    });
}

#[test]
fn what_a_change_is_not_about_stays_open_and_what_it_forbids_does_not() {
    first_seeds(4, &async |seed| {
        let world = World::new(seed);
        let mesh = &world.caller.shared.mesh;
        let other = |name: &str| External { hosts: vec!["a.example".parse().expect("a host")], ..external(name, None) };
        mesh.govern_outbound(outbound(vec![peers(&[STOCK]), other("a")], None));
        let mut client = world.client().await;
        assert_eq!(world.on(&mut client).await.status(), 200);
        let before = world.network.connections();
        // Another external service comes, and the pooled connection is used again.
        mesh.govern_outbound(outbound(vec![peers(&[STOCK]), other("b")], None));
        assert_eq!(world.on(&mut client).await.status(), 200);
        assert_eq!(world.network.connections(), before, "nothing was opened anew");
        // The pool has none any more once this very one is gone.
        mesh.govern_outbound(outbound(vec![other("b")], None));
        sleep(Duration::from_secs(6)).await;
        assert!(world.network.connections() < before, "the connection is ended");

        mesh.govern_outbound(outbound(vec![peers(&[STOCK])], None));
        assert_eq!(world.on(&mut client).await.status(), 200);
        let policy = Policy { id: "shop/closed".parse().expect("a name"), rules: vec![], broken: None };
        let closed = || Some(Isolation { policies: vec![Arc::new(policy.clone())] });
        mesh.govern_outbound(outbound(vec![peers(&[STOCK])], closed()));
        let answer = world.on(&mut client).await;
        assert_eq!((answer.status(), answer.field("weft-error")), (403, Some("network-policy")));
        assert_eq!(ask(&mut world.client().await, "GET /", &[], None).await.map(|a| a.status()), Some(403));
        world.end().await;
    });
}
