//! What picks the pods of a set.

use aws_lc_rs::digest::{SHA256, digest};
use weft_core::Namespace;
use weft_core::network_policy::PeersId;

use crate::objects::network_policy::{Peer, Selector};
use crate::objects::{Labels, PodObject};

/// What picks the pods of a set. Equal selections are one set, whoever names them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Selection {
    pub(super) namespaces: Namespaces,
    pods: Selector,
    /// Only pods that have a TCP port of this name.
    port: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Namespaces {
    One(Namespace),
    With(Selector),
}

impl Selection {
    /// The pods of a peer; none for a block of addresses.
    pub(super) fn of(peer: &Peer, own: &Namespace) -> Option<Self> {
        let Peer::Pods { namespaces, pods } = peer else { return None };
        let namespaces = namespaces.clone().map_or_else(|| Namespaces::One(own.clone()), Namespaces::With);
        Some(Self { namespaces, pods: pods.clone(), port: None })
    }

    /// Every pod.
    pub(super) fn everybody() -> Self {
        Self { namespaces: Namespaces::With(Selector::default()), pods: Selector::default(), port: None }
    }

    pub(super) fn with_port(self, name: &str) -> Self {
        Self { port: Some(name.to_owned()), ..self }
    }

    /// SHA-256 of the selection, the first 64 bits: whoever writes policies cannot make one that has the ID of somebody else's.
    pub(super) fn id(&self) -> PeersId {
        // Debug quotes and escapes every string, so that no two selections are written alike.
        let hash = digest(&SHA256, format!("{self:?}").as_bytes());
        let mut first = [0; 8];
        first.copy_from_slice(&hash.as_ref()[..8]);
        PeersId(u64::from_be_bytes(first))
    }

    /// Whether it has pods of a namespace with these labels.
    pub(super) fn is_in(&self, namespace: &Namespace, labels: &Labels) -> bool {
        match &self.namespaces {
            Namespaces::One(one) => one == namespace,
            Namespaces::With(selector) => selector.selects(labels),
        }
    }

    /// Whether it picks a pod of such a namespace, and by which port, where it is about one.
    pub(super) fn picks(&self, pod: &PodObject) -> Option<Option<u16>> {
        if !self.pods.selects(&pod.labels) {
            return None;
        }
        match &self.port {
            None => Some(None),
            Some(name) => pod.port_named(name).map(Some),
        }
    }
}
