//! What weft's programs may do, asked of the API server as each of them.

use weft_tests::cluster::{CONTROL_PLANE, HOME, INJECTOR, kubectl};

use crate::Mesh;

const WEBHOOKS: &str = "mutatingwebhookconfigurations.admissionregistration.k8s.io";
const OWN_WEBHOOK: &str = "mutatingwebhookconfigurations.admissionregistration.k8s.io/weft-injector";

pub(crate) fn are_the_least(mesh: &Mesh<'_>) {
    let shop = mesh.shop.name();
    // What they need: so it is not for want of such an account that all else is denied.
    for (program, verb, resource, namespace) in [
        (CONTROL_PLANE, "list", "pods", shop),
        (CONTROL_PLANE, "watch", "endpointslices.discovery.k8s.io", shop),
        (CONTROL_PLANE, "watch", "networkpolicies.networking.k8s.io", shop),
        (CONTROL_PLANE, "create", "tokenreviews.authentication.k8s.io", ""),
        (CONTROL_PLANE, "patch", "configmaps/weft-trust-bundle", shop),
        (CONTROL_PLANE, "get", "secrets/weft-ca", HOME),
        (CONTROL_PLANE, "update", "secrets/weft-ca", HOME),
        (CONTROL_PLANE, "watch", "authorizationpolicies.weft.dev", shop),
        (CONTROL_PLANE, "patch", "authorizationpolicies.weft.dev/status", shop),
        (CONTROL_PLANE, "watch", "mtlspolicies.weft.dev", shop),
        (CONTROL_PLANE, "patch", "mtlspolicies.weft.dev/status", shop),
        (CONTROL_PLANE, "watch", "externalservices.weft.dev", shop),
        (CONTROL_PLANE, "patch", "externalservices.weft.dev/status", shop),
        (CONTROL_PLANE, "watch", "trafficpolicies.weft.dev", shop),
        (CONTROL_PLANE, "patch", "trafficpolicies.weft.dev/status", shop),
        (CONTROL_PLANE, "patch", "configmaps/weft-uptake", HOME),
        (CONTROL_PLANE, "create", "events.events.k8s.io", shop),
        (INJECTOR, "watch", "namespaces", ""),
        (INJECTOR, "update", "secrets/weft-injector-tls", HOME),
        (INJECTOR, "patch", OWN_WEBHOOK, ""),
    ] {
        assert!(may(program, verb, resource, namespace), "{program} may not {verb} {resource} in {namespace:?}");
    }
    for (program, verb, resource, namespace) in [
        (CONTROL_PLANE, "list", "secrets", HOME),
        (CONTROL_PLANE, "get", "secrets/weft-injector-tls", HOME),
        (CONTROL_PLANE, "delete", "secrets/weft-ca", HOME),
        (CONTROL_PLANE, "patch", "secrets/weft-ca", HOME),
        (CONTROL_PLANE, "get", "secrets/weft-ca-root", HOME),
        (CONTROL_PLANE, "update", "secrets/weft-injector-tls", HOME),
        (CONTROL_PLANE, "get", "secrets", shop),
        (CONTROL_PLANE, "create", "secrets", shop),
        (CONTROL_PLANE, "get", "configmaps", shop),
        (CONTROL_PLANE, "patch", "configmaps/programs", shop),
        (CONTROL_PLANE, "create", "pods", shop),
        (CONTROL_PLANE, "delete", "pods", shop),
        (CONTROL_PLANE, "create", "pods/exec", shop),
        (CONTROL_PLANE, "create", "leases.coordination.k8s.io", "kube-system"),
        (CONTROL_PLANE, "create", "serviceaccounts/token", shop),
        (CONTROL_PLANE, "delete", "nodes", ""),
        (CONTROL_PLANE, "patch", "events.events.k8s.io", shop),
        (CONTROL_PLANE, "patch", WEBHOOKS, ""),
        (CONTROL_PLANE, "create", "clusterrolebindings.rbac.authorization.k8s.io", ""),
        (CONTROL_PLANE, "impersonate", "users", ""),
        (CONTROL_PLANE, "patch", "authorizationpolicies.weft.dev", shop),
        (CONTROL_PLANE, "patch", "trafficpolicies.weft.dev", shop),
        (CONTROL_PLANE, "create", "trafficpolicies.weft.dev", shop),
        (CONTROL_PLANE, "patch", "customresourcedefinitions.apiextensions.k8s.io", ""),
        (CONTROL_PLANE, "patch", "configmaps/weft-settings", HOME),
        (INJECTOR, "list", "trafficpolicies.weft.dev", shop),
        (INJECTOR, "list", "secrets", HOME),
        (INJECTOR, "get", "secrets/weft-ca", HOME),
        (INJECTOR, "list", "pods", shop),
        (INJECTOR, "create", "pods", shop),
        (INJECTOR, "create", "configmaps", shop),
        (INJECTOR, "patch", "namespaces", ""),
        (INJECTOR, "delete", "nodes", ""),
        (INJECTOR, "create", WEBHOOKS, ""),
        (INJECTOR, "delete", OWN_WEBHOOK, ""),
        (INJECTOR, "patch", WEBHOOKS, ""),
        (INJECTOR, "create", "tokenreviews.authentication.k8s.io", ""),
        (INJECTOR, "create", "clusterrolebindings.rbac.authorization.k8s.io", ""),
    ] {
        assert!(!may(program, verb, resource, namespace), "{program} may {verb} {resource} in {namespace:?}");
    }
}

/// Whether a program may do something; a resource can be `KIND`, `KIND/NAME` or a subresource as `pods/exec`, of a namespace or of the cluster.
#[track_caller]
pub(crate) fn may(program: &str, verb: &str, resource: &str, namespace: &str) -> bool {
    let who = format!("--as=system:serviceaccount:{HOME}:{program}");
    let mut words = vec!["auth", "can-i", verb];
    let (kind, name) = resource.split_once('/').unwrap_or((resource, ""));
    let subresource = format!("--subresource={name}");
    if ["exec", "status", "token"].contains(&name) {
        words.extend([kind, &subresource]);
    } else {
        words.push(resource);
    }
    words.push(&who);
    if !namespace.is_empty() {
        words.extend(["-n", namespace]);
    }
    let output = kubectl(&words);
    match output.stdout.trim() {
        "yes" => true,
        text if text.starts_with("no") => false,
        _ => panic!("kubectl {}: {}{}", words.join(" "), output.stdout, output.stderr),
    }
}
