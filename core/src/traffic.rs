//! How requests to a service are treated by their caller's sidecar: routes, and the service's traffic policy.
//!
//! [`route`] says where a request may go and what is done to it on the way; [`policy`] says how a service's endpoints are chosen among, how
//! much they are given, and when they are left alone. [`table`] finds the rule of a request, [`apply`] says what the rule does to it, and
//! [`session`] keeps a session with its endpoint.

pub mod apply;
pub mod policy;
pub mod route;
pub mod session;
pub mod table;

pub use policy::TrafficPolicy;
pub use route::Route;
pub use table::{RouteTable, Verdict};
