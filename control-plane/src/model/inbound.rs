//! A pod's inbound policy, and what its services declare of its ports.

use std::collections::BTreeMap;

use weft_core::authorization::Authorization;
use weft_core::policy::{FEATURE_NETWORK_POLICY, FEATURE_RATE_LIMIT, InboundPolicy, MtlsMode};
use weft_core::protocol::AppProtocol;
use weft_core::wellknown;

use super::Model;
use super::endpoints::{target_port, tcp_ports};
use crate::objects::PodObject;
use crate::watch::Problem;

impl Model {
    /// Mode by port, pod, namespace, mesh: the nearest wins. A word that is no mode means strict, and is reported.
    pub(super) fn inbound_of(&self, pod: &PodObject, problems: &mut Vec<Problem>) -> InboundPolicy {
        let mut mode = |place: String, field: &str, word: &str| {
            word.parse().unwrap_or_else(|e: weft_core::policy::InvalidMode| {
                problems.push(Problem {
                    place,
                    field: format!("metadata.annotations[{field:?}]"),
                    message: format!("{e}; strict is in force until then"),
                });
                MtlsMode::Strict
            })
        };
        let of_namespace =
            self.namespaces.get(&pod.id.namespace).and_then(|n| Some((n, n.annotations.get(wellknown::ANNOTATION_MTLS)?)));
        let pod_place = format!("Pod {}", pod.id);
        let around = match of_namespace {
            Some((ns, word)) => mode(format!("Namespace {}", ns.name), wellknown::ANNOTATION_MTLS, word),
            None => self.default_mode,
        };
        // The injector refuses such a pod; its annotations may change afterwards.
        let bound = around == MtlsMode::Strict && self.forbids_permissive(pod);
        let mut mode = |place: String, field: &str, word: &str| match mode(place, field, word) {
            MtlsMode::Permissive if bound => MtlsMode::Strict,
            other => other,
        };
        let whole = match pod.annotations.get(wellknown::ANNOTATION_MTLS) {
            Some(word) => mode(pod_place.clone(), wellknown::ANNOTATION_MTLS, word),
            None => around,
        };
        let mut port_modes = Vec::new();
        let mut whole_override = None;
        for pair in pod.annotations.get(wellknown::ANNOTATION_MTLS_PORTS).map(String::as_str).unwrap_or_default().split(',') {
            let pair = pair.trim();
            if pair.is_empty() {
                continue;
            }
            let (port, word) = pair.split_once('=').unwrap_or((pair, ""));
            let m = mode(pod_place.clone(), wellknown::ANNOTATION_MTLS_PORTS, word.trim());
            match port.trim().parse::<u16>() {
                Ok(port) if port != 0 => port_modes.push((port, m)),
                // Which port was meant cannot be known: all of them are strict until it is mended.
                _ => whole_override = Some(mode(pod_place.clone(), wellknown::ANNOTATION_MTLS_PORTS, pair)),
            }
        }
        let (mode, port_modes) = whole_override.map_or((whole, port_modes), |strict| (strict, vec![]));
        let (protocols, rates) = (self.declared(pod), self.rates_of(pod));
        let network = self.network_ingress(pod);
        let required = (!rates.is_empty()).then(|| FEATURE_RATE_LIMIT.to_owned());
        let required = required.into_iter().chain(network.iter().map(|_| FEATURE_NETWORK_POLICY.to_owned()));
        let zone = self.places.of(pod).zone;
        InboundPolicy {
            mode,
            port_modes,
            protocols,
            required_features: required.collect(),
            rates,
            zone,
            // Written where policies are bytes already: see `authorize`.
            authorization: Authorization::default(),
            network,
        }
    }

    /// Whether the namespace keeps its pods from being more permissive than itself.
    fn forbids_permissive(&self, pod: &PodObject) -> bool {
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
