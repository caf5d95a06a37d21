//! A shop on a real cluster, from `weft install` to `weft uninstall`, by the commands that people type. `make cluster-test` runs it.
//!
//! One installation serves all stories, so they are one test, and those of the CNI plugin another; each begins with what it is about on standard error. Everything
//! is in namespaces of the test's own, and is removed whatever happens.

mod admission;
mod attestation;
mod authorization;
mod cni;
mod install;
mod looks;
mod outage;
mod policies;
mod probes;
mod repair;
mod replicas;
mod rights;
mod rotation;
mod routes;
mod strict;
mod traffic;
mod uninstall;
mod variant;

use install::Redirect;
use weft_tests::cluster::{Cluster, Installed, Inventory, Namespace};

/// The shop's Deployments, whose pods are in the mesh.
const APPS: [&str; 6] = ["banner", "cache", "client", "echo", "health", "web"];

/// weft on the cluster, and two namespaces.
struct Mesh<'a> {
    cluster: &'a Cluster,
    redirect: Redirect,
    /// In the mesh.
    shop: Namespace,
    /// Outside of it, with some of the same programs.
    plain: Namespace,
    /// Whose the CA is, where somebody made one before.
    root: Option<variant::Root>,
    installed: Installed,
}

impl Mesh<'_> {
    /// A pod of the shop to call from.
    #[track_caller]
    fn client(&self) -> String {
        self.shop.pods("client").swap_remove(0)
    }

    /// A pod outside of the mesh to call from.
    #[track_caller]
    fn stranger(&self) -> String {
        self.plain.pods("client").swap_remove(0)
    }
}

#[test]
fn a_shop_is_meshed_and_the_cluster_is_left_as_it_was() {
    let cluster = Cluster::connect();
    let before = story("what there is on the cluster", Inventory::settled);
    let mesh = story("weft is installed, and a shop put in the mesh", || install::everything(&cluster, Redirect::Init));
    story("calls are on mutual TLS, and know their caller", || traffic::is_mutual_tls(&mesh));
    story("nothing that was said is on the wire", || traffic::is_not_in_the_clear(&mesh));
    story("commands tell what there is, and levels change", || looks::tell_what_there_is(&mesh));
    story("strict: who is not in the mesh is refused", || strict::strangers_are_refused(&mesh));
    story("strict: the kubelet's probes find what the app is, and so do sidecars", || strict::probes_tell_of_the_app(&mesh));
    story("strict: probes of every sort find an app that is down, hung, slow or sick", || probes::find_what_the_app_is(&mesh));
    story("a rolling restart and a lost control plane cost no request", || outage::costs_no_request(&mesh));
    story("a Job ends", || outage::a_job_ends(&mesh));
    story("each replica of the control plane serves all there is", || replicas::serve_alike(&mesh));
    story("control plane and injector are rolled under load, and no request fails", || replicas::are_rolled_under_load(&mesh));
    story("policies tell with how many sidecars they are in force", || routes::policies_tell_how_far_they_have_come(&mesh));
    story("a namespace that denies by default lets in whom a policy allows, and the kubelet's probes", || {
        authorization::decides_who_may_call(&mesh);
    });
    story("network policies, modes and egress hold as without a cluster", || policies::hold(&mesh));
    story("Gateway API comes, routes are followed and have conditions", || routes::routes_are_followed(&mesh));
    story("what somebody spoils is made good", || repair::makes_good_what_is_spoilt(&mesh));
    story("a pod that cannot be meshed says so, one that would weaken the mesh is refused", || {
        admission::is_told_and_refused(&mesh);
    });
    story("pods that slipped by are found", || admission::who_slipped_by_is_found(&mesh));
    story("no webhook: nobody outside of the mesh notices", || outage::of_the_webhook(&mesh));
    story("a pod's token is good in that pod alone", || attestation::is_of_the_pod(&mesh));
    story("weft may do what it needs, and no more", || rights::are_the_least(&mesh));
    story("weft leaves, and leaves nothing behind", || uninstall::leaves_nothing(mesh, &before));
}

#[test]
fn with_the_cni_plugin_pods_need_no_privilege_and_the_nodes_are_left_as_they_were() {
    let cluster = Cluster::connect();
    let node = cni::Files::of(&cluster);
    let before = story("what there is on the cluster", Inventory::settled);
    let mesh = story("weft is installed with the CNI plugin, and a shop put in the mesh", || {
        install::everything(&cluster, Redirect::Cni)
    });
    story("no pod has any privilege for its redirect", || cni::pods_have_no_privilege(&mesh));
    story("calls are on mutual TLS, and know their caller", || traffic::is_mutual_tls(&mesh));
    story("nothing that was said is on the wire", || traffic::is_not_in_the_clear(&mesh));
    story("a Job ends", || outage::a_job_ends(&mesh));
    story("the agent may do what it needs, and no more", || cni::rights_are_the_least(&mesh));
    story("what the agent logs changes", || looks::levels_change(&["cni"], &weft_tests::cluster::context()));
    story("without the agent pods wait, and those that came round it are made anew", || cni::agent_is_away(&mesh, &node));
    story("weft leaves, and leaves nothing behind", || uninstall::leaves_nothing(mesh, &before));
    story("nor on the node", || node.are_as_they_were(&cluster));
}

#[test]
fn another_installation_than_the_default_works_and_leaves_what_is_not_its_own() {
    let cluster = Cluster::connect();
    let before = story("what there is on the cluster", Inventory::settled);
    let mesh = story("weft is installed by --apply, with a CA of one's own and sidecars as ordinary containers", || {
        variant::everything(&cluster)
    });
    story("calls are on mutual TLS, from pods with ordinary containers", || variant::is_mutual_tls(&mesh));
    story("an issuer that is renewed is taken over, another root is not", || variant::follows_its_secret(&mesh));
    story("no injector, and a webhook that lets pods by: they are found", || variant::lets_pods_by(&mesh));
    story("an upgrade shows what it would change, and changes it under load", || variant::is_upgraded(&mesh));
    story("weft leaves, and leaves what is not its own", || variant::leaves_what_is_not_its_own(mesh, &before));
}

#[test]
fn the_root_is_replaced_by_replicas_under_load_and_no_request_fails() {
    let cluster = Cluster::connect();
    let before = story("what there is on the cluster", Inventory::settled);
    let mesh = story("weft is installed, and a shop put in the mesh", || install::everything(&cluster, Redirect::Init));
    story("a root follows another, and a replica is killed in the middle", || rotation::costs_nothing(&mesh));
    story("calls are on mutual TLS, and know their caller", || traffic::is_mutual_tls(&mesh));
    story("weft leaves, and leaves nothing behind", || uninstall::leaves_nothing(mesh, &before));
}

fn story<T>(what: &str, tell: impl FnOnce() -> T) -> T {
    eprintln!("=== {what}");
    tell()
}
