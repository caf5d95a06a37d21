//! What a pod's own programs may call.

use weft_proto::v1;

use super::Model;
use crate::objects::PodObject;
use crate::watch::Problem;

impl Model {
    /// What a pod may call. Every pod has such a policy: its sidecar waits for it.
    pub(super) fn outbound_of(&self, pod: &PodObject, problems: &mut Vec<Problem>) -> v1::OutboundPolicy {
        let mut outbound = v1::OutboundPolicy::default();
        let (egress, required) = self.egress_of(pod, problems);
        outbound.egress = egress;
        outbound.required_features.extend(required);
        outbound
    }
}
