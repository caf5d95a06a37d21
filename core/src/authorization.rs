//! Whether a call may come in, by who calls and what is asked for, and why not.
//!
//! **The order of evaluation.** DENY policies come first: if one that is bound to the port has a rule that matches, the call is denied. Then, if any ALLOW
//! policy is bound to the port, one of them must have a rule that matches, else the call is denied. If none is bound to it, the default posture
//! decides. The order of policies and rules never changes a verdict; of several that match, the first by namespace, name and place is told. AUDIT
//! policies, and policies in dry run, never change a verdict either: that an AUDIT matches, and that dry runs in force would have given another
//! verdict, is told. A clause that cannot be judged is neither true nor false: one about HTTP where the bytes are not HTTP, one about a path that
//! could be taken for another path, one about a host where none is named clearly, one about a method that is listed in another case, and, but in an
//! ALLOW, which it does not match then, one about a token that does not count. If the
//! verdict depends on it, the call is denied for that reason; if another rule or clause decides whatever it were, that is the verdict. Before a
//! connection's first request all about HTTP is such a clause, so that a connection is allowed, denied, or depends on each of its requests
//! ([`Outcome`]).
//!
//! **Identity.** A clause about identity, negated or not, never matches a caller without one. Namespaces and service accounts are those of the
//! pod's own trust domain: an identity of another domain is matched by principals alone.
//!
//! **Tokens** say who the end user is, not which workload calls. So a clause about one may match a caller without an identity, and stands beside the
//! clauses about identity in one peer where both are meant.
//!
//! **Cost.** [`Compiled`] finds the rules that could be about a caller by port and by the clause that says most of it (principal, service account,
//! namespace, network), and among many of these by path. [`Judge`] does the first part once for a connection. So a call costs what the rules about its
//! caller and path cost, however many others there are.

mod clause;
mod decision;
mod index;
mod judge;
mod parse;
pub mod path;
pub mod policy;
pub mod token;

pub use clause::{Connection, Unclear, is_alike};
pub use decision::{Cause, Challenge, Considered, Decision, Failed, Match, Nearest, Verdict};
pub use index::Compiled;
pub use judge::{Judge, Outcome};
pub use path::PathDefect;
pub use policy::{Action, Authorization, Policy, Posture, PostureFrom};

#[cfg(test)]
mod tests;
