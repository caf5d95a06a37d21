//! weft on the cluster: put there as a user does, and away again whatever happens.

use super::{Cluster, IMAGE, must, namespace, quietly, weft};

/// weft's own namespace.
pub const HOME: &str = "weft-system";
/// The Deployments in it, whose pods and service accounts are named alike.
pub const CONTROL_PLANE: &str = "weft-control-plane";
/// See [`CONTROL_PLANE`].
pub const INJECTOR: &str = "weft-injector";
/// The `DaemonSet` of the CNI plugin's agents, where it is chosen.
pub const CNI: &str = "weft-cni";
/// Everything that an installation has outside of its namespace.
const OUTSIDE: &str = "mutatingwebhookconfigurations,clusterroles,clusterrolebindings,customresourcedefinitions";

/// An installation.
#[derive(Debug)]
pub struct Installed {
    is_there: bool,
}

impl Installed {
    /// `weft install | kubectl apply -f -`, with these flags besides, until all programs are ready.
    ///
    /// # Panics
    ///
    /// Where there is one already: it is somebody else's, and would be gone afterwards.
    #[track_caller]
    pub fn from_nothing(cluster: &Cluster, flags: &[&str]) -> Self {
        Self::is_nowhere();
        let mut words = vec!["install", "--kube-version", &cluster.version];
        words.extend(IMAGE);
        words.extend(flags);
        if cluster.own {
            // It has native sidecars, which its version does not tell.
            words.extend(["--native-sidecars", "always"]);
        }
        let manifests = weft(&words).good();
        // From here on there is something to remove.
        let installed = Self { is_there: true };
        cluster.apply(None, &manifests);
        for program in [CONTROL_PLANE, INJECTOR] {
            Self::is_ready(program);
        }
        installed
    }

    /// `weft install --apply`, with these flags besides, in weft's namespace with these objects in it; and what it says.
    ///
    /// # Panics
    ///
    /// As [`Installed::from_nothing`].
    #[track_caller]
    pub fn by_apply(cluster: &Cluster, flags: &[&str], objects: &[String]) -> (Self, String) {
        Self::is_nowhere();
        must(&["create", "namespace", HOME]);
        let installed = Self { is_there: true };
        for object in objects {
            cluster.apply(Some(HOME), object);
        }
        let mut words = vec!["install", "--apply"];
        words.extend(IMAGE);
        words.extend(flags);
        let said = weft(&words).good();
        (installed, said)
    }

    #[track_caller]
    fn is_nowhere() {
        let found = must(&["get", "namespace", HOME, "--ignore-not-found", "-o", "name"]);
        let others = must(&["get", OUTSIDE, "-l", "app.kubernetes.io/part-of=weft", "-o", "name"]);
        let found = format!("{found}{others}");
        assert!(found.is_empty(), "weft is on this cluster already: remove it first (weft uninstall --apply)\n{found}");
    }

    /// Waits until the CNI plugin's agents are there and ready, on every node.
    #[track_caller]
    pub fn is_on_every_node() {
        must(&["-n", HOME, "rollout", "status", &format!("daemonset/{CNI}"), "--timeout=180s"]);
    }

    /// Waits until all pods of a Deployment of weft's are there and ready.
    #[track_caller]
    pub fn is_ready(program: &str) {
        must(&["-n", HOME, "rollout", "status", &format!("deployment/{program}"), "--timeout=180s"]);
    }

    /// `weft uninstall --apply`, and what it says.
    #[track_caller]
    pub fn remove(mut self) -> String {
        let said = weft(&["uninstall", "--apply", "--yes", "--timeout", "2m"]).good();
        self.is_there = false;
        said
    }
}

impl Drop for Installed {
    /// Not by `weft uninstall`, which may be what fails. The webhook goes first, so that nothing has to wait for it.
    fn drop(&mut self) {
        if !self.is_there {
            return;
        }
        if std::thread::panicking() {
            namespace::show(HOME);
        }
        quietly(&["delete", OUTSIDE, "-l", "app.kubernetes.io/part-of=weft", "--timeout=60s"]);
        quietly(&["delete", "namespace", HOME, "--ignore-not-found", "--timeout=120s"]);
        quietly(&["delete", "configmaps", "--all-namespaces", "-l", "app.kubernetes.io/managed-by=weft-control-plane"]);
    }
}
