use std::collections::{BTreeMap, BTreeSet};

use weft_core::policy::MtlsMode;

use super::*;
use crate::model::Model;
use crate::snapshot::Entry;
use crate::watch::{Change, parse};

mod network;

fn service(namespace: &str, name: &str, ip: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n"
    )
}

fn route(namespace: &str, name: &str, to: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n  parentRefs: [{{group: '', kind: Service, name: web, namespace: shop}}]\n  rules: [{{backendRefs: [{{name: {to}, namespace: shop, port: 80}}]}}]\n"
    )
}

const POLICY: &str = "---\napiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: api, namespace: shop}\nspec: {targetRef: {name: api}}\n";

/// A model with its hub, and one stream.
struct World {
    model: Model,
    hub: Arc<Hub>,
    session: Session,
    updates: mpsc::Receiver<Result<v1::WatchResponse, Status>>,
}

impl World {
    /// The sidecar's pod stands in `namespace`.
    fn new(namespace: &str, features: &[&str], manifests: &str) -> Self {
        let mesh = Entry::new(Body::Mesh(v1::Mesh::default()));
        let model = Model::new("td".parse().expect("valid"), MtlsMode::Permissive, mesh.clone(), mesh);
        let hub = Hub::new(model.snapshot().clone());
        let (out, updates) = mpsc::channel(16);
        let pod: ObjectRef = format!("{namespace}/caller").parse().expect("a name");
        let session = Session {
            sub: hub.join(Some(pod.clone()), v1::SidecarStatus::default()),
            seat: None,
            traffic: Traffic::new(hub.clone(), Duration::ZERO)
                .join(Some(pod.clone()), &"spiffe://td/ns/front/sa/caller".parse().expect("an identity")),
            tells_traffic: false,
            out,
            held: HashMap::new(),
            bases: HashMap::new(),
            peers: HashMap::new(),
            set_hash: SetHash::default(),
            sent: 0,
            acknowledged: 0,
            unconfirmed: VecDeque::new(),
            heartbeat: Duration::from_secs(5),
            place: Place::default(),
            viewer: Viewer { namespace: Some(pod.namespace.clone()), pod: Some(pod) },
            routes: false,
            knows_peers: true,
            fronts: HashSet::new(),
            budget: Budget { tokens: MAX_NAMES as f64, at: Instant::now() },
        };
        let mut world = Self { model, hub, session, updates };
        world.apply(manifests);
        world.hear(Message::Hello(v1::Hello {
            features: features.iter().map(ToString::to_string).collect(),
            ..Default::default()
        }));
        world
    }

    fn apply(&mut self, manifests: &str) {
        let changes = parse::parse("test", manifests).expect("good manifests").into_iter().map(Change::Upsert).collect();
        let changed = self.model.apply(changes);
        self.hub.publish(self.model.snapshot().clone(), &changed);
    }

    fn hear(&mut self, message: Message) {
        self.session.hear(v1::WatchRequest { message: Some(message) }).expect("a good message");
    }

    fn subscribe(&mut self, name: &str) {
        self.hear(Message::Subscribe(v1::Subscribe { names: vec![name.to_owned()] }));
    }

    /// What is sent, update by update.
    async fn sent(&mut self) -> Vec<Vec<v1::Resource>> {
        // What was found in the first look is looked at again.
        for _ in 0..3 {
            self.session.flush().await.expect("the stream goes on");
        }
        let mut all = Vec::new();
        while let Ok(message) = self.updates.try_recv() {
            match message.expect("no error").message {
                Some(v1::watch_response::Message::Update(update)) => all.push(update.resources),
                other => panic!("{other:?}"),
            }
        }
        all
    }

    /// The names in the one update that is sent.
    async fn one_update(&mut self) -> Vec<String> {
        let mut updates = self.sent().await;
        assert_eq!(updates.len(), 1, "{updates:?}");
        updates.remove(0).into_iter().map(|r| r.name).collect()
    }
}

fn manifests() -> String {
    service("shop", "web", "10.0.0.1") + &service("shop", "api", "10.0.0.2") + &service("shop", "db", "10.0.0.3") + POLICY
}

const FEATURES: &[&str] = &["mtls-mode/v1", "routes/v1"];

#[tokio::test]
async fn one_lookup_is_one_update_with_routes_before_their_service() {
    let to_itself = route("shop", "api-route", "db").replace("name: web", "name: api");
    let mut world = World::new("other", FEATURES, &(manifests() + &route("shop", "web-route", "api") + &to_itself));
    world.sent().await;
    world.subscribe("address/10.0.0.1");
    let names = world.one_update().await;
    assert_eq!(
        names,
        [
            "address/10.0.0.1",
            "policy/shop/api",
            "routes/shop/web",
            "service/shop/api",
            "service/shop/web",
            "endpoints/shop/api",
            "endpoints/shop/web"
        ],
        "the backend's own routes do not count, nor where they lead"
    );
    // A backend that is called by itself has its routes as well, from then on.
    world.subscribe("address/10.0.0.2");
    let names = world.one_update().await;
    assert_eq!(names, ["address/10.0.0.2", "routes/shop/api", "service/shop/db", "endpoints/shop/db"]);
}

#[tokio::test]
async fn a_new_route_comes_with_all_that_it_brings_in_one_update() {
    let mut world = World::new("shop", FEATURES, &manifests());
    world.sent().await;
    world.subscribe("address/10.0.0.1");
    assert_eq!(world.one_update().await, ["address/10.0.0.1", "service/shop/web", "endpoints/shop/web"]);
    world.apply(&route("shop", "web-route", "api"));
    let updates = world.sent().await;
    let [update] = &updates[..] else { panic!("{updates:?}") };
    let names: BTreeMap<&str, &v1::Resource> = update.iter().map(|r| (r.name.as_str(), r)).collect();
    let expected = ["endpoints/shop/api", "policy/shop/api", "routes/shop/web", "service/shop/api", "service/shop/web"];
    assert_eq!(names.keys().copied().collect::<Vec<_>>(), expected);
    let Some(Body::Service(web)) = &names["service/shop/web"].body else { panic!("{names:?}") };
    assert!(web.has_routes && !web.has_policy);
    let Some(Body::Service(api)) = &names["service/shop/api"].body else { panic!("{names:?}") };
    assert!(!api.has_routes && api.has_policy);
}

#[tokio::test]
async fn the_callers_own_namespace_decides_whose_routes_it_sees() {
    let all = manifests() + &route("shop", "of-producer", "api") + &route("away", "of-consumer", "db");
    for (namespace, expected) in [("shop", "of-producer"), ("away", "of-consumer"), ("third", "of-producer")] {
        let mut world = World::new(namespace, FEATURES, &all);
        world.sent().await;
        world.subscribe("address/10.0.0.1");
        let updates = world.sent().await;
        let routes = updates.iter().flatten().find(|r| r.name == "routes/shop/web").and_then(|r| r.body.as_ref());
        let Some(Body::Routes(routes)) = routes else { panic!("{updates:?}") };
        let names: Vec<&str> = routes.routes.iter().filter_map(|r| Some(r.id.as_ref()?.name.as_str())).collect();
        assert_eq!(names, [expected], "{namespace}");
    }
}

#[tokio::test]
async fn a_sidecar_that_knows_no_routes_gets_none() {
    let mut world = World::new("shop", &["mtls-mode/v1"], &(manifests() + &route("shop", "web-route", "api")));
    world.sent().await;
    world.subscribe("address/10.0.0.1");
    assert_eq!(world.one_update().await, ["address/10.0.0.1", "service/shop/web", "endpoints/shop/web"]);
}

#[tokio::test]
async fn what_was_unsubscribed_does_not_come_back_with_a_change() {
    let mut world = World::new("shop", FEATURES, &(manifests() + &route("shop", "web-route", "api")));
    world.sent().await;
    world.subscribe("address/10.0.0.1");
    world.sent().await;
    let gone = ["address/10.0.0.1", "service/shop/web", "endpoints/shop/web", "routes/shop/web", "policy/shop/web"];
    world.hear(Message::Unsubscribe(v1::Unsubscribe { names: gone.map(str::to_owned).to_vec() }));
    world.apply(&route("shop", "web-route", "db"));
    assert_eq!(world.sent().await, Vec::<Vec<v1::Resource>>::new());
    // What the routes brought stands until it is unsubscribed, too: the sidecar knows what it still needs.
    world.apply(&service("shop", "api", "10.0.0.9"));
    assert_eq!(world.one_update().await, ["service/shop/api"]);
}

#[tokio::test]
async fn a_stream_that_is_resumed_gets_what_it_lacks() {
    let mut world = World::new("shop", FEATURES, &(manifests() + &route("shop", "web-route", "api")));
    world.sent().await;
    world.subscribe("address/10.0.0.1");
    let sent = world.sent().await;
    let held: Vec<v1::Held> = sent
        .iter()
        .flatten()
        .map(|r| v1::Held { name: r.name.clone(), version: r.version })
        .filter(|h| h.name != "routes/shop/web")
        .collect();
    let mut again = World::new("shop", FEATURES, &(manifests() + &route("shop", "web-route", "api")));
    again.sent().await;
    let hello = v1::Hello { features: FEATURES.iter().map(ToString::to_string).collect(), held, ..Default::default() };
    again.hear(Message::Hello(hello));
    let names: BTreeSet<String> = again.sent().await.into_iter().flatten().map(|r| r.name).collect();
    // The trust bundle and the facts of the mesh were not among what is held.
    assert_eq!(names, ["mesh", "trust", "routes/shop/web"].map(str::to_owned).into());
}

#[tokio::test]
async fn a_policy_for_pods_counts_those_that_have_acknowledged_it() {
    let pod =
        "---\napiVersion: v1\nkind: Pod\nmetadata: {name: caller, namespace: shop}\nspec: {containers: [{name: weft-sidecar}]}\n";
    let policy = |kind: &str, generation: u32, spec: &str| {
        format!(
            "---\napiVersion: weft.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: a, namespace: shop, generation: {generation}}}\nspec: {spec}\n"
        )
    };
    let elsewhere =
        "---\napiVersion: weft.dev/v1alpha1\nkind: MtlsPolicy\nmetadata: {name: a, namespace: away}\nspec: {mode: strict}\n";
    let deny = |generation| policy("AuthorizationPolicy", generation, "{action: Deny, rules: [{to: [{ports: [1]}]}]}");
    let mut world = World::new("shop", FEATURES, &(pod.to_owned() + elsewhere + &deny(1)));
    let counted = |world: &World, kind, id: &str| {
        let key = crate::objects::ObjectKey { kind, id: id.parse().expect("a name") };
        let count = world.hub.policy_counts(100)[&key];
        (count.version, count.subscribed, count.applied)
    };
    let authorization = crate::objects::Kind::AuthorizationPolicy;
    let modes = crate::objects::Kind::MtlsPolicy;
    world.sent().await;
    assert_eq!(counted(&world, authorization, "shop/a"), (1, 1, 0), "it is sent, and nothing was said of it");
    let nonce = world.session.sent;
    world.hear(Message::Ack(v1::Ack { nonce, ..Default::default() }));
    assert_eq!(counted(&world, authorization, "shop/a"), (1, 1, 1));
    assert_eq!(counted(&world, modes, "away/a"), (0, 0, 0), "it is for others");

    world.apply(&policy("MtlsPolicy", 7, "{mode: strict}"));
    world.sent().await;
    assert_eq!(counted(&world, modes, "shop/a"), (7, 1, 0));
    let sent = world.hub.snapshot().inbound[&"shop/caller".parse::<ObjectRef>().expect("a name")].version;
    let rejected = vec![v1::Rejected { name: "inbound".into(), version: sent.0, reason: "no".into() }];
    let nonce = world.session.sent;
    world.hear(Message::Ack(v1::Ack { nonce, rejected, ..Default::default() }));
    assert_eq!(counted(&world, modes, "shop/a"), (7, 1, 0), "what was rejected is not in force");
    world.apply(&policy("MtlsPolicy", 8, "{mode: permissive}"));
    world.sent().await;
    let nonce = world.session.sent;
    world.hear(Message::Ack(v1::Ack { nonce, ..Default::default() }));
    assert_eq!(counted(&world, modes, "shop/a"), (8, 1, 1));
}
