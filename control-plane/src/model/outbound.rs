//! What a pod's own programs may call.

use weft_proto::v1;

use super::Model;
use crate::objects::PodObject;

impl Model {
    /// What a pod may call. Every pod has such a policy: its sidecar waits for it.
    #[expect(clippy::unused_self, clippy::trivially_copy_pass_by_ref, reason = "what is written into it comes from objects")]
    pub(super) fn outbound_of(&self, _pod: &PodObject) -> v1::OutboundPolicy {
        v1::OutboundPolicy::default()
    }
}
