//! `AuthorizationPolicy` (`weft.dev/v1alpha1`), to the nouns of `weft_core`. One that cannot be honoured is an object all the same: what it might have
//! refused is to be refused, as far as is known what that is.

mod rules;
mod tokens;

use std::sync::Arc;

use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use weft_core::Namespace;
use weft_core::authorization::policy::{Rule, Target};
use weft_core::authorization::{Action, Policy};
use weft_core::service::ObjectRef;

use super::Labels;
use super::traffic::Wrong;
use rules::RuleSpec;

/// A policy as it was read.
#[derive(Clone, PartialEq, Debug)]
pub struct AuthorizationObject {
    pub id: ObjectRef,
    /// 0 where nobody counts.
    pub generation: i64,
    pub content: Result<Arc<Content>, Unhonoured>,
}

/// What a policy says.
#[derive(Clone, PartialEq, Debug)]
pub struct Content {
    pub scope: Scope,
    /// Bound to all ports; which ones a Service stands for differs by pod.
    pub policy: Policy,
}

/// Which pods a policy is for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Scope {
    Mesh,
    Namespace(Namespace),
    /// Those of a namespace that have all of these labels; at least one.
    Workloads(Namespace, Labels),
    /// Those that a Service selects, at its target ports.
    Service(ObjectRef),
    /// Those that see an ExternalService, for what they ask of it.
    External(ObjectRef),
}

impl Scope {
    /// The same for the wire, and for people.
    pub fn target(&self) -> Target {
        match self {
            Self::Mesh => Target::Mesh,
            Self::Namespace(namespace) => Target::Namespace(namespace.clone()),
            Self::Workloads(namespace, labels) => {
                let pairs: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
                Target::Workloads(namespace.clone(), pairs.join(",").into())
            }
            Self::Service(id) => Target::Service(id.clone()),
            Self::External(id) => Target::External(id.clone()),
        }
    }
}

impl std::fmt::Display for Scope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.target() {
            Target::Namespace(namespace) => write!(f, "Namespace {namespace}"),
            Target::Workloads(namespace, selector) => write!(f, "the pods of namespace {namespace} with {selector}"),
            Target::Service(id) => write!(f, "Service {id}"),
            Target::External(id) => write!(f, "ExternalService {id}"),
            _ => f.write_str("the mesh"),
        }
    }
}

/// A policy that cannot be honoured.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unhonoured {
    /// Of the object, as a path.
    pub field: String,
    pub message: String,
    /// The narrowest that is known to hold all that it was meant for: its target where that can be read, else its namespace.
    pub scope: Scope,
    /// It would have changed no verdict: it says that it is for audit, or a dry run.
    pub is_harmless: bool,
}

/// `spec` of an `AuthorizationPolicy`. A field that is not known is an error.
#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationSpec {
    /// What it is for; at most one of this and `selector`. Default: its namespace.
    #[serde(default, deserialize_with = "given")]
    target_ref: Option<TargetSpec>,
    /// The pods of its namespace that it is for.
    #[serde(default, deserialize_with = "given")]
    selector: Option<SelectorSpec>,
    /// `Allow`, `Deny` or `Audit`. Required.
    action: ActionSpec,
    /// It is judged and told of, and changes no verdict. Default: false.
    #[serde(default)]
    dry_run: bool,
    /// At most 64. Default: none, which matches nothing.
    #[serde(default, deserialize_with = "given")]
    rules: Option<Vec<RuleSpec>>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(deny_unknown_fields)]
struct TargetSpec {
    /// Default: the core group; a mesh and an ExternalService are of weft's own.
    #[serde(default)]
    group: String,
    kind: String,
    /// Required for a Service and an ExternalService.
    name: Option<String>,
}

#[derive(Deserialize, Clone, PartialEq, Eq, Debug)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct SelectorSpec {
    match_labels: Labels,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq, Debug)]
enum ActionSpec {
    Allow,
    Deny,
    Audit,
}

/// The most rules of one policy.
const MAX_RULES: usize = 64;
/// The most bytes that a policy has on the wire.
const MAX_BYTES: usize = 64 << 10;

/// What is there: `null` is somebody's mistake, and does not mean the same as to leave the field out.
pub(super) fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(field: D) -> Result<Option<T>, D::Error> {
    let value = Option::<T>::deserialize(field)?;
    value.map(Some).ok_or_else(|| D::Error::custom("is null: leave it out, or give it a value"))
}

pub(super) fn wrong<T>(field: impl Into<String>, message: impl Into<String>) -> Result<T, Wrong> {
    Err((field.into(), message.into()))
}

impl AuthorizationSpec {
    /// What it says, or the first field below `spec` that cannot be honoured.
    pub fn read(&self, id: &ObjectRef) -> Result<Content, Wrong> {
        let scope = scope(self.target_ref.as_ref(), self.selector.as_ref(), id)?;
        let rules = self.rules.as_deref().unwrap_or_default();
        if rules.len() > MAX_RULES {
            return wrong("rules", format!("{} of them; at most {MAX_RULES} are taken: make several policies", rules.len()));
        }
        let rules = rules.iter().enumerate().map(|(i, rule)| rule.read(&format!("rules[{i}]"), &id.namespace));
        let policy = Policy {
            id: id.clone(),
            target: scope.target(),
            action: match self.action {
                ActionSpec::Allow => Action::Allow,
                ActionSpec::Deny => Action::Deny,
                ActionSpec::Audit => Action::Audit,
            },
            dry_run: self.dry_run,
            rules: rules.collect::<Result<Vec<Rule>, Wrong>>()?,
            ports: None,
            broken: None,
        };
        policy.check().map_err(|e| ("rules".to_owned(), e.to_string()))?;
        let size = weft_proto::policy_bytes(&policy).len();
        if size > MAX_BYTES {
            return wrong("rules", format!("{size} bytes of them; at most {MAX_BYTES} are taken: make several policies"));
        }
        let places = policy.buckets();
        let most = Policy::MAX_BUCKETS;
        if places > most {
            let message = format!(
                "{places} combinations of a caller, a port and a path; at most {most} are taken: make several policies, or name fewer of them"
            );
            return wrong("rules", message);
        }
        Ok(Content { scope, policy })
    }
}

/// What a policy is for.
fn scope(target: Option<&TargetSpec>, selector: Option<&SelectorSpec>, id: &ObjectRef) -> Result<Scope, Wrong> {
    let own = &id.namespace;
    let target = match (target, selector) {
        (Some(_), Some(_)) => return wrong("selector", "stands beside targetRef: write one of them"),
        (None, None) => return Ok(Scope::Namespace(own.clone())),
        (None, Some(selector)) if selector.match_labels.is_empty() => {
            return wrong("selector.matchLabels", "is empty: leave the selector out, and the policy is for its whole namespace");
        }
        (None, Some(selector)) => return Ok(Scope::Workloads(own.clone(), selector.match_labels.clone())),
        (Some(target), None) => target,
    };
    match (target.group.as_str(), target.kind.as_str(), target.name.as_deref()) {
        ("", "Service", None) => wrong("targetRef.name", "missing: which Service of the policy's namespace is meant"),
        ("", "Service", Some(name)) => match name.parse() {
            Ok(name) => Ok(Scope::Service(ObjectRef { namespace: own.clone(), name })),
            Err(e) => wrong("targetRef.name", e.to_string()),
        },
        ("weft.dev", "ExternalService", None) => {
            wrong("targetRef.name", "missing: which ExternalService of the policy's namespace is meant")
        }
        ("weft.dev", "ExternalService", Some(name)) => match name.parse() {
            Ok(name) => Ok(Scope::External(ObjectRef { namespace: own.clone(), name })),
            Err(e) => wrong("targetRef.name", e.to_string()),
        },
        ("", "ExternalService", _) => wrong("targetRef.group", "the group of an ExternalService is weft.dev"),
        ("", "Namespace", name) if name.is_none_or(|name| name == own.as_str()) => Ok(Scope::Namespace(own.clone())),
        ("", "Namespace", _) => wrong("targetRef.name", format!("a policy is for its own namespace alone, which is {own}")),
        ("" | "weft.dev", "Mesh", None) => Ok(Scope::Mesh),
        ("" | "weft.dev", "Mesh", Some(_)) => wrong("targetRef.name", "a mesh has no name: leave it out"),
        (_, "HTTPRoute" | "GRPCRoute", _) => wrong(
            "targetRef.kind",
            "a route cannot be the target of an AuthorizationPolicy: callers route, and may rewrite, a request before it comes in, so that whoever is called cannot tell \
             by which route it came; name the route's Service, or that of its backend, and its hosts and paths in the rules",
        ),
        (group, kind, _) => {
            let short = |text: &str| text.chars().take(60).collect::<String>();
            let message = format!(
                "{:?} of group {:?} is no target: use Service, ExternalService, Namespace or Mesh",
                short(kind),
                short(group)
            );
            wrong("targetRef.kind", message)
        }
    }
}

impl Unhonoured {
    /// Of a `spec` that may be anything: how far it can be read decides what is refused in its stead.
    pub fn new(field: String, message: String, spec: &Value, id: &ObjectRef) -> Self {
        let part = |name: &str| Some(&spec[name]).filter(|part| !part.is_null());
        let target = part("targetRef").map(|t| serde_json::from_value::<TargetSpec>(t.clone())).transpose();
        let selector = part("selector").map(|s| serde_json::from_value::<SelectorSpec>(s.clone())).transpose();
        let read = match (target, selector) {
            (Ok(target), Ok(selector)) if spec.is_object() => scope(target.as_ref(), selector.as_ref(), id).ok(),
            _ => None,
        };
        Self {
            field,
            message,
            scope: read.unwrap_or_else(|| Scope::Namespace(id.namespace.clone())),
            is_harmless: spec["action"] == "Audit" || spec["dryRun"] == true,
        }
    }
}

#[cfg(test)]
mod tests;
