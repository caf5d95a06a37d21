//! Whole sidecars on a network in memory, under a clock that moves only while everything waits: from an application through two
//! sidecars to another, with faults, for many seeds. A seed fixes how bytes are cut, what is held back and when what breaks; of
//! TLS's own random numbers it fixes nothing, so that two runs of a seed differ in single bytes' places.
//!
//! `WEFT_SIM_SEED=N` runs one seed.

mod authorization;
mod backend;
mod balance;
mod breaker;
mod calls;
mod chaos;
mod closed;
mod deserted;
mod drain;
mod expiry;
mod federation;
mod grpc;
mod idle;
mod lab;
mod limits;
mod linked;
mod links;
mod mirrors;
mod network_policy;
mod opaque;
mod paths;
mod peers;
mod quiet;
mod rates;
mod requests;
mod retries;
mod routes;
mod seeds;
mod sessions;
mod storm;
mod timeouts;
mod traces;
mod workers;
mod world;
