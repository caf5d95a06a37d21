//! Which node a pod is on, and which zone the node is in. Newer API servers write the zone on the pod; else endpoint slices tell
//! it of every node that has an endpoint.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use weft_core::service::ObjectRef;

use crate::objects::{EndpointSliceObject, PodObject, SliceEndpoint};
use crate::snapshot::Place;

/// What pods and slices tell of places.
#[derive(Default)]
pub(super) struct Places {
    /// How many endpoints tell which zone of a node. Where they differ, the first zone by name holds.
    zones: HashMap<Arc<str>, BTreeMap<Arc<str>, usize>>,
    on_node: HashMap<Arc<str>, BTreeSet<ObjectRef>>,
}

impl Places {
    /// Where a pod runs.
    pub(super) fn of(&self, pod: &PodObject) -> Place {
        let node: Arc<str> = pod.spec.node_name.as_deref().unwrap_or_default().into();
        let zone = if pod.zone().is_empty() { self.zone(&node).unwrap_or_default() } else { pod.zone().into() };
        Place { node, zone }
    }

    /// A node's zone.
    pub(super) fn zone(&self, node: &str) -> Option<Arc<str>> {
        self.zones.get(node)?.keys().next().cloned()
    }

    pub(super) fn pods_on(&self, node: &str) -> impl Iterator<Item = &ObjectRef> {
        self.on_node.get(node).into_iter().flatten()
    }

    /// Notes the zones that are known of a slice's nodes, before the slice changes.
    pub(super) fn note(&self, slice: &EndpointSliceObject, nodes: &mut BTreeMap<Arc<str>, Option<Arc<str>>>) {
        for (node, _) in slice.endpoints.iter().filter_map(SliceEndpoint::place) {
            if !nodes.contains_key(node) {
                nodes.insert(node.into(), self.zone(node));
            }
        }
    }

    pub(super) fn add_pod(&mut self, pod: &PodObject) {
        if let Some(node) = &pod.spec.node_name {
            self.on_node.entry(node.as_str().into()).or_default().insert(pod.id.clone());
        }
    }

    pub(super) fn forget_pod(&mut self, pod: &PodObject) {
        if let Some(node) = pod.spec.node_name.as_deref()
            && let Some(pods) = self.on_node.get_mut(node)
        {
            pods.remove(&pod.id);
            if pods.is_empty() {
                self.on_node.remove(node);
            }
        }
    }

    pub(super) fn add_slice(&mut self, slice: &EndpointSliceObject) {
        for (node, zone) in slice.endpoints.iter().filter_map(SliceEndpoint::place) {
            *self.zones.entry(node.into()).or_default().entry(zone.into()).or_default() += 1;
        }
    }

    pub(super) fn forget_slice(&mut self, slice: &EndpointSliceObject) {
        for (node, zone) in slice.endpoints.iter().filter_map(SliceEndpoint::place) {
            let Some(zones) = self.zones.get_mut(node) else { continue };
            if let Some(count) = zones.get_mut(zone) {
                *count -= 1;
                if *count == 0 {
                    zones.remove(zone);
                }
            }
            if zones.is_empty() {
                self.zones.remove(node);
            }
        }
    }
}
