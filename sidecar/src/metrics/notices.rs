//! What AUDIT policies and policies in dry run have to say of calls: counted by each worker, for they may match every call.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use weft_core::authorization::Decision;
use weft_core::metrics::histogram::add;
use weft_core::service::ObjectRef;

/// Policies that one worker counts apart, of each kind of notice; what comes later is counted together.
const MOST: usize = 500;

/// What a notice says, in the order of [`Notices::by`].
const WORDS: [&str; 3] = ["audit", "would-deny", "would-allow"];

/// One worker's count of a policy's notices.
#[derive(Debug)]
pub struct NoticeSlots {
    /// None where the default decides, or for all that there is no room for.
    pub policy: Option<ObjectRef>,
    /// What stands for the policy where there is none: `none` or `other`.
    pub otherwise: &'static str,
    pub word: &'static str,
    pub count: AtomicU64,
}

/// One worker's counts.
#[derive(Default)]
pub(super) struct Notices {
    by: [RefCell<HashMap<ObjectRef, Arc<NoticeSlots>>>; 3],
    none: [RefCell<Option<Arc<NoticeSlots>>>; 3],
    other: [RefCell<Option<Arc<NoticeSlots>>>; 3],
    /// Policies that are counted apart.
    apart: Cell<usize>,
}

impl Notices {
    /// Counts what a decision has to say beside its verdict; slots that are made are told.
    pub(super) fn count(&self, decision: &Decision, tell: impl Fn(Arc<NoticeSlots>)) {
        each(decision, |policy, kind| self.one(policy, kind, &tell));
    }

    fn one(&self, policy: Option<&ObjectRef>, kind: usize, tell: &impl Fn(Arc<NoticeSlots>)) {
        let new = |policy: Option<&ObjectRef>, otherwise| {
            let slots = NoticeSlots { policy: policy.cloned(), otherwise, word: WORDS[kind], count: AtomicU64::new(0) };
            let slots = Arc::new(slots);
            tell(slots.clone());
            slots
        };
        let Some(id) = policy else {
            return add(&self.none[kind].borrow_mut().get_or_insert_with(|| new(None, "none")).count, 1);
        };
        let mut by = self.by[kind].borrow_mut();
        if let Some(slots) = by.get(id) {
            return add(&slots.count, 1);
        }
        if self.apart.get() >= MOST {
            return add(&self.other[kind].borrow_mut().get_or_insert_with(|| new(None, "other")).count, 1);
        }
        self.apart.set(self.apart.get() + 1);
        let slots = new(policy, "");
        add(&slots.count, 1);
        by.insert(id.clone(), slots);
    }
}

/// Every notice of a decision: the policy, and the place of its word.
fn each(decision: &Decision, mut say: impl FnMut(Option<&ObjectRef>, usize)) {
    for audited in &decision.audited {
        say(Some(&audited.policy.id), 0);
    }
    if let Some(dry) = &decision.dry_run {
        say(dry.1.matched().map(|m| &m.policy.id), if decision.is_allowed() { 1 } else { 2 });
    }
}

/// The notices of a decision for people, as in `audit shop/cart, would-deny none`; none where there are none.
pub fn words(decision: &Decision) -> Option<Arc<str>> {
    let mut text = String::new();
    each(decision, |policy, kind| {
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(WORDS[kind]);
        text.push(' ');
        match policy {
            Some(id) => text.push_str(&id.to_string()),
            None => text.push_str("none"),
        }
    });
    (!text.is_empty()).then(|| text.into())
}
