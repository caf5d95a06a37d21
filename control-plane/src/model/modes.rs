//! The mTLS mode of each pod and port.
//!
//! The nearest word is followed: what is said of the port itself, then of the workload (an `MtlsPolicy` with a selector, or the pod's annotation), then of
//! the namespace (an `MtlsPolicy` without one, or the namespace's annotation), then of the mesh (an `MtlsPolicy` without a selector in the namespace of the
//! installation), and last what the control plane was told. Of a port, too, the nearest word goes first. Where two of one level differ, the
//! stricter one holds, and the status of the other policy says so. Of a policy that cannot be honoured the last version that could be stays in force;
//! without one, every port of the pods that it may be for is strict.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use weft_core::Namespace;
use weft_core::policy::MtlsMode;
use weft_core::service::ObjectRef;
use weft_core::wellknown::{self, CONTROL_PLANE_NAMESPACE};

use super::Model;
use super::status::{Outcome, Refusal};
use crate::objects::authorization::Scope;
use crate::objects::mtls::{Meant, Modes, MtlsObject, Selector};
use crate::objects::traffic::ParentRef;
use crate::objects::{Kind, ObjectKey, PodObject};
use crate::snapshot::modes::{Level, PodModes, SetBy};
use crate::watch::Problem;

/// All policies about modes.
pub(super) struct MtlsPolicies {
    /// The namespace of the installation.
    home: Namespace,
    held: BTreeMap<ObjectRef, Held>,
    by_namespace: HashMap<Namespace, BTreeSet<ObjectRef>>,
    overruled: Overruled,
}

impl Default for MtlsPolicies {
    fn default() -> Self {
        Self::new(CONTROL_PLANE_NAMESPACE.parse().expect("it is a namespace"))
    }
}

/// A version that can be honoured, and its generation.
#[derive(Clone)]
pub(super) struct Good {
    modes: Arc<Modes>,
    generation: i64,
}

struct Held {
    object: Arc<MtlsObject>,
    /// It, or the last one before it that could be honoured.
    good: Option<Good>,
}

/// Policies whose word does not hold at some pods, since a stricter one of the same level does.
#[derive(Default)]
struct Overruled {
    /// By policy, then by pod: by whom.
    policies: BTreeMap<ObjectRef, BTreeMap<ObjectRef, String>>,
    pods: HashMap<ObjectRef, BTreeSet<ObjectRef>>,
    /// Policies of which this is another since it was last asked.
    touched: BTreeSet<ObjectRef>,
}

impl Overruled {
    /// All that is to be said of one pod, in place of what was said before.
    fn note(&mut self, pod: &ObjectRef, now: BTreeMap<ObjectRef, String>) {
        let before = self.pods.remove(pod).unwrap_or_default();
        for gone in before.iter().filter(|policy| !now.contains_key(*policy)) {
            if let Some(pods) = self.policies.get_mut(gone) {
                pods.remove(pod);
                if pods.is_empty() {
                    self.policies.remove(gone);
                }
            }
            self.touched.insert(gone.clone());
        }
        if now.is_empty() {
            return;
        }
        self.pods.insert(pod.clone(), now.keys().cloned().collect());
        for (policy, by) in now {
            let pods = self.policies.entry(policy.clone()).or_default();
            if pods.insert(pod.clone(), by.clone()).as_ref() != Some(&by) {
                self.touched.insert(policy);
            }
        }
    }
}

/// The pods that a policy is for.
enum Pods<'a> {
    /// Without a selector.
    Whole,
    Selected(&'a Selector),
    /// Any of its namespace.
    Any,
}

impl Held {
    fn pods(&self) -> Pods<'_> {
        match (&self.good, &self.object.content) {
            (Some(Good { modes, .. }), _) | (None, Ok(modes)) => modes.selector.as_ref().map_or(Pods::Whole, Pods::Selected),
            (None, Err(why)) => match &why.pods {
                Meant::All => Pods::Whole,
                Meant::Selected(selector) => Pods::Selected(selector),
                Meant::Unknown => Pods::Any,
            },
        }
    }
}

impl MtlsPolicies {
    pub(super) fn new(home: Namespace) -> Self {
        Self { home, held: BTreeMap::new(), by_namespace: HashMap::new(), overruled: Overruled::default() }
    }

    /// The last version of a policy that could be honoured.
    pub(super) fn last_good(&self, id: &ObjectRef) -> Option<Good> {
        self.held.get(id)?.good.clone()
    }

    /// Takes a policy in. Where it cannot be honoured, `last` stays in force.
    pub(super) fn insert(&mut self, object: Arc<MtlsObject>, last: Option<Good>) {
        let good = match &object.content {
            Ok(modes) => Some(Good { modes: modes.clone(), generation: object.generation }),
            Err(_) => last,
        };
        let id = object.id.clone();
        self.by_namespace.entry(id.namespace.clone()).or_default().insert(id.clone());
        self.held.insert(id, Held { object, good });
    }

    pub(super) fn remove(&mut self, id: &ObjectRef) {
        self.held.remove(id);
        if let Some(all) = self.by_namespace.get_mut(&id.namespace) {
            all.remove(id);
            if all.is_empty() {
                self.by_namespace.remove(&id.namespace);
            }
        }
    }

    /// Policies that are for a pod.
    pub(super) fn ids_of<'a>(&'a self, pod: &'a PodObject) -> impl Iterator<Item = &'a ObjectRef> {
        self.of(pod).map(|(id, ..)| id)
    }

    /// Policies that are for a pod, with the level of each.
    fn of<'a>(&'a self, pod: &'a PodObject) -> impl Iterator<Item = (&'a ObjectRef, &'a Held, Level)> {
        let namespaces = [&pod.id.namespace, &self.home];
        let apart = usize::from(pod.id.namespace != self.home);
        let ids = namespaces.into_iter().take(1 + apart).filter_map(|n| self.by_namespace.get(n)).flatten();
        ids.filter_map(|id| {
            let held = self.held.get(id)?;
            let level = match held.pods() {
                Pods::Whole if id.namespace == self.home => Level::Mesh,
                Pods::Whole => Level::Namespace,
                Pods::Selected(selector) => {
                    let picks = id.namespace == pod.id.namespace && selector.selects(&pod.labels);
                    picks.then_some(Level::Workload)?
                }
                Pods::Any => (id.namespace == pod.id.namespace).then_some(Level::Workload)?,
            };
            Some((id, held, level))
        })
    }
}

/// What is said of one thing: the word, and by whom. Of one level.
#[derive(Default)]
struct Said(Vec<(MtlsMode, SetBy)>);

impl Said {
    /// The stricter word; policies that say the other one are `overruled`.
    fn holds(&self, overruled: &mut BTreeMap<ObjectRef, String>) -> Option<(MtlsMode, SetBy)> {
        let strict = self.0.iter().find(|(mode, _)| *mode == MtlsMode::Strict);
        let (mode, by) = strict.or(self.0.first())?;
        for (other, loser) in &self.0 {
            if let (true, SetBy::Policy(id, _)) = (other != mode, loser) {
                overruled.entry(id.clone()).or_insert_with(|| format!("{by} says {mode}"));
            }
        }
        Some((*mode, by.clone()))
    }
}

/// What is said of a pod at one level.
#[derive(Default)]
struct AtLevel {
    whole: Said,
    ports: BTreeMap<u16, Said>,
}

impl Model {
    /// The pods that a policy about modes is for.
    pub(super) fn touched_by_modes(&self, id: &ObjectRef) -> Vec<ObjectRef> {
        let Some(held) = self.modes.held.get(id) else { return vec![] };
        let own = || self.pods.get(&id.namespace).into_iter().flat_map(BTreeMap::values);
        match held.pods() {
            Pods::Whole if id.namespace == self.modes.home => {
                self.pods.values().flat_map(BTreeMap::values).map(|p| p.id.clone()).collect()
            }
            Pods::Whole | Pods::Any => own().map(|p| p.id.clone()).collect(),
            Pods::Selected(selector) => own().filter(|p| selector.selects(&p.labels)).map(|p| p.id.clone()).collect(),
        }
    }

    /// The modes of a pod, and which policies another one of their level overrules there. A word of an annotation that is no mode means strict, and
    /// is reported.
    pub(super) fn modes_of(&self, pod: &PodObject, problems: &mut Vec<Problem>) -> (PodModes, BTreeMap<ObjectRef, String>) {
        let mut overruled = BTreeMap::new();
        let mut levels: [AtLevel; 3] = Default::default();
        for (id, held, level) in self.modes.of(pod) {
            let Some(Good { modes, .. }) = &held.good else {
                let by = SetBy::Broken(id.clone());
                return (PodModes { mode: MtlsMode::Strict, by, ports: vec![] }, overruled);
            };
            let here = &mut levels[level as usize];
            let by = SetBy::Policy(id.clone(), level);
            here.whole.0.extend(modes.mode.map(|mode| (mode, by.clone())));
            for (port, mode) in &modes.ports {
                here.ports.entry(*port).or_default().0.push((*mode, by.clone()));
            }
        }
        let [mut workload, mut namespace, mesh] = levels;
        namespace.whole.0.extend(self.namespace_word(&pod.id.namespace, problems));
        let further = namespace.whole.holds(&mut overruled).or_else(|| mesh.whole.holds(&mut overruled));
        let around = further.unwrap_or((self.default_mode, SetBy::Default));
        if let Err(ports) = self.pod_words(pod, around.0, &mut workload, problems) {
            let by = SetBy::Pod { ports };
            return (PodModes { mode: MtlsMode::Strict, by, ports: vec![] }, overruled);
        }
        let (mode, by) = workload.whole.holds(&mut overruled).unwrap_or(around);
        let mut ports: BTreeMap<u16, (MtlsMode, SetBy)> = BTreeMap::new();
        for level in [&workload, &namespace, &mesh] {
            for (port, said) in &level.ports {
                if let (false, Some(held)) = (ports.contains_key(port), said.holds(&mut overruled)) {
                    ports.insert(*port, held);
                }
            }
        }
        let ports = ports.into_iter().map(|(port, (mode, by))| (port, mode, by)).collect();
        (PodModes { mode, by, ports }, overruled)
    }

    /// What a namespace's annotation says.
    fn namespace_word(&self, name: &Namespace, problems: &mut Vec<Problem>) -> Option<(MtlsMode, SetBy)> {
        let word = self.namespaces.get(name)?.annotations.get(wellknown::ANNOTATION_MTLS)?;
        let mode = read(&format!("Namespace {name}"), wellknown::ANNOTATION_MTLS, word, problems);
        Some((mode, SetBy::Namespace(name.clone())))
    }

    /// What a pod's annotations say. `Err`: which port is meant cannot be known, so that all of them are strict.
    fn pod_words(
        &self,
        pod: &PodObject,
        around: MtlsMode,
        workload: &mut AtLevel,
        problems: &mut Vec<Problem>,
    ) -> Result<(), bool> {
        let place = format!("Pod {}", pod.id);
        // The injector refuses such a pod; its annotations may change afterwards.
        let bound = around == MtlsMode::Strict && self.forbids_permissive(pod);
        let limited = |mode, ports| match mode {
            MtlsMode::Permissive if bound => (MtlsMode::Strict, SetBy::Forbidden(pod.id.namespace.clone())),
            mode => (mode, SetBy::Pod { ports }),
        };
        if let Some(word) = pod.annotations.get(wellknown::ANNOTATION_MTLS) {
            workload.whole.0.push(limited(read(&place, wellknown::ANNOTATION_MTLS, word, problems), false));
        }
        let pairs = pod.annotations.get(wellknown::ANNOTATION_MTLS_PORTS).map(String::as_str).unwrap_or_default();
        let mut outcome = Ok(());
        for pair in pairs.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
            let (port, word) = pair.split_once('=').unwrap_or((pair, ""));
            let mode = read(&place, wellknown::ANNOTATION_MTLS_PORTS, word.trim(), problems);
            match port.trim().parse::<u16>() {
                Ok(port) if port != 0 => workload.ports.entry(port).or_default().0.push(limited(mode, true)),
                _ => {
                    read(&place, wellknown::ANNOTATION_MTLS_PORTS, pair, problems);
                    outcome = Err(true);
                }
            }
        }
        outcome
    }

    /// Notes which policies a pod does not follow, for their status.
    pub(super) fn note_overruled(&mut self, pod: &ObjectRef, by: BTreeMap<ObjectRef, String>) {
        self.modes.overruled.note(pod, by);
    }

    /// Policies that other pods follow now than when this was last called.
    pub(super) fn take_overruled(&mut self) -> impl Iterator<Item = ObjectKey> + use<> {
        let touched = std::mem::take(&mut self.modes.overruled.touched);
        touched.into_iter().map(|id| ObjectKey { kind: Kind::MtlsPolicy, id })
    }

    /// What became of a policy: always one entry, for what it is attached to.
    pub(super) fn modes_entry(&self, key: &ObjectKey) -> Option<(i64, ParentRef, Outcome)> {
        let held = self.modes.held.get(&key.id)?;
        let mut outcome = Outcome::default();
        if let Err(why) = &held.object.content {
            let refusal = |message| Refusal::new("Invalid", why.field.clone(), message);
            match &held.good {
                Some(good) => outcome.fallen_back = Some((refusal(why.message.clone()), good.generation)),
                None => {
                    let whose = match held.pods() {
                        Pods::Whole if key.id.namespace == self.modes.home => "of the mesh",
                        Pods::Whole | Pods::Any => "of its namespace",
                        Pods::Selected(_) => "that it selects",
                    };
                    let message = format!("{}; until it is mended, every port of the pods {whose} is strict", why.message);
                    outcome.refused = Some(refusal(message));
                }
            }
        }
        if let Some(pods) = self.modes.overruled.policies.get(&key.id)
            && let Some((pod, by)) = pods.first_key_value()
        {
            let others = if pods.len() > 1 { format!(" and {} more", pods.len() - 1) } else { String::new() };
            let message = format!("at Pod {pod}{others} it does not hold: {by}, and of one level the stricter holds");
            outcome.overruled = Some(Refusal::new("Conflicted", "spec", message));
        }
        let scope = match held.pods() {
            Pods::Whole if key.id.namespace == self.modes.home => Scope::Mesh,
            _ => Scope::Namespace(key.id.namespace.clone()),
        };
        Some((held.object.generation, self.attached_to(&scope), outcome))
    }
}

/// The mode that an annotation says.
fn read(place: &str, field: &str, word: &str, problems: &mut Vec<Problem>) -> MtlsMode {
    word.parse().unwrap_or_else(|e: weft_core::policy::InvalidMode| {
        problems.push(Problem {
            place: place.to_owned(),
            field: format!("metadata.annotations[{field:?}]"),
            message: format!("{e}; strict is in force until then"),
        });
        MtlsMode::Strict
    })
}
