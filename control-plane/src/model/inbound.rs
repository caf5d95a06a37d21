//! A pod's inbound policy, and what its services declare of its ports.

use std::collections::BTreeMap;

use weft_core::authorization::Authorization;
use weft_core::policy::{FEATURE_NETWORK_POLICY, FEATURE_RATE_LIMIT, InboundPolicy};
use weft_core::protocol::AppProtocol;
use weft_core::wellknown;

use super::Model;
use super::endpoints::{target_port, tcp_ports};
use crate::objects::PodObject;
use crate::snapshot::modes::PodModes;

impl Model {
    /// What a pod's sidecar must know, without who may call what.
    pub(super) fn inbound_of(&self, pod: &PodObject, modes: &PodModes) -> InboundPolicy {
        let (protocols, rates) = (self.declared(pod), self.rates_of(pod));
        let network = self.network_ingress(pod);
        let required = (!rates.is_empty()).then(|| FEATURE_RATE_LIMIT.to_owned());
        let required = required.into_iter().chain(network.iter().map(|_| FEATURE_NETWORK_POLICY.to_owned()));
        let zone = self.places.of(pod).zone;
        InboundPolicy {
            mode: modes.mode,
            port_modes: modes.ports.iter().map(|(port, mode, _)| (*port, *mode)).collect(),
            protocols,
            required_features: required.collect(),
            rates,
            zone,
            // Written where policies are bytes already: see `authorize`.
            authorization: Authorization::default(),
            issuers: vec![],
            network,
        }
    }

    /// Whether the namespace keeps its pods from being more permissive than itself.
    pub(super) fn forbids_permissive(&self, pod: &PodObject) -> bool {
        let words = self.namespaces.get(&pod.id.namespace).and_then(|n| n.annotations.get(wellknown::ANNOTATION_FORBID));
        words.is_some_and(|words| words.split(',').any(|w| wellknown::FORBID_PERMISSIVE.contains(&w.trim())))
    }

    /// What the services that select a pod declare for its ports.
    pub(super) fn declared(&self, pod: &PodObject) -> Vec<(u16, AppProtocol)> {
        let mut found: BTreeMap<u16, AppProtocol> = BTreeMap::new();
        for service in self.services.get(&pod.id.namespace).into_iter().flat_map(BTreeMap::values) {
            if !service.spec.selects(&pod.labels) {
                continue;
            }
            for p in tcp_ports(service) {
                let protocol = AppProtocol::from_declaration(p.app_protocol.as_deref(), p.name.as_deref());
                if let (Some(target), true) = (target_port(p, pod), protocol != AppProtocol::Detect) {
                    found.entry(target).or_insert(protocol);
                }
            }
        }
        found.into_iter().collect()
    }
}
