//! The redirect without any privilege in the pod: a chained CNI plugin, and the agent on each node that works for it.
//!
//! ```text
//!  container runtime ── ADD ──▶ weft-cni (plugin) ── pod's name, its network namespace ──▶ weft-cni (agent) ── GET pod ──▶ API server
//!        ▲                            │                       Unix socket, root only             │
//!        └───── prevResult as it was ─┘                                                          └─▶ redirect, in the namespace
//! ```
//!
//! The plugin ([`plugin`]) is what the runtime starts for each pod, and knows nothing: it hands the pod's network namespace, as an
//! open file, to the agent. The agent decides about the pod ([`pod`]), applies the redirect, keeps the plugin in the runtime's
//! chain ([`chain`], [`node`]), and has pods made anew that started before it was there ([`repair`]). So no token lies on the node's
//! disk, the node needs no packet filter's programs, and the agent needs neither the node's processes nor its network.
//!
//! # Who waits when the agent is away
//!
//! A pod of the mesh must not run without its redirect. Two things see to that, each by itself: an init container without privileges
//! in the pod proves the redirect before anything else starts, and the plugin fails an ADD that the agent does not answer, with the
//! code by which the runtime tries again. The second is for order, not for safety: were such pods let through, each would fail its
//! proof and be deleted, over and over, as long as the agent is away, and Jobs would use up their attempts.
//!
//! The plugin cannot tell which pods are in the mesh, so those that are not wait, too. They wait for the time that the agent's pod
//! takes to start: at the start of a node, and while the `DaemonSet` is brought to another version. What runs already notices nothing.
//! Pods of the namespaces that the injector never touches (`kube-system` and its like, weft's own) are let through without a
//! question: none of them is ever in the mesh, and the agent, the network and DNS are among them, so that a node always comes up.
//!
//! For the same reasons the agent joins the chain only once the API server has answered it, stays in the chain when its pod is
//! replaced, and leaves it when its `DaemonSet` is gone ([`leave`]).
#![warn(missing_docs)]

pub mod agent;
pub mod chain;
pub mod config;
pub mod install;
pub mod leave;
pub mod node;
pub mod plugin;
pub mod pod;
pub mod program;
pub mod protocol;
pub mod repair;
pub mod status;
pub mod wire;

/// The plugin's file, and its `type` in a network configuration.
pub const PLUGIN: &str = "weft-cni";
/// Where the agent listens, by the same path on the node and in its container.
pub const SOCKET: &str = "/run/weft-cni/agent.sock";
