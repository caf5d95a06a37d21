//! What a pod's own programs may call.

use weft_core::policy::{FEATURE_NETWORK_POLICY, OutboundPolicy};
use weft_proto::v1;

use super::Model;
use crate::objects::PodObject;

impl Model {
    /// What a pod may call. Every pod has such a policy: its sidecar waits for it.
    pub(super) fn outbound_of(&self, pod: &PodObject) -> v1::OutboundPolicy {
        let network = self.network_egress(pod);
        let required_features = network.iter().map(|_| FEATURE_NETWORK_POLICY.to_owned()).collect();
        (&OutboundPolicy { required_features, network }).into()
    }
}
