//! The data plane: accept → detect → identify → authorize → route → balance → connect → relay.

pub mod admin;
pub mod admission;
pub mod config;
pub mod connect;
pub mod control;
pub mod detect;
pub mod discovery;
pub mod http;
pub mod identity;
pub mod inbound;
pub mod io;
pub mod limits;
pub mod mesh;
pub mod metrics;
pub mod outbound;
pub mod pool;
pub mod probe;
pub mod relay;
pub mod route;
pub mod saved;
pub mod serve;
pub mod service;
pub mod stream;
pub mod worker;
