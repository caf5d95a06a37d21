//! Which endpoint gets the next request.
//!
//! A [`Chooser`] is what a service's policy asks for; it asks [`Candidates`] about each endpoint. Whatever the way of choosing, an endpoint
//! that is ejected, or that this request has tried, gets it only when nothing better is there.

mod choice;
mod ewma;
mod hash;
mod warm;
mod zone;

pub use choice::{Candidates, Chooser, Standing, choose};
pub use ewma::{DECAY, PeakEwma};
pub use hash::{Maglev, Ring, hash64, rendezvous};
pub use warm::slow_start_weight;
pub use zone::spill;

#[cfg(test)]
mod simulation;
