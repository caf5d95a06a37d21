//! Keys that stay with their endpoint: a ring of points, a Maglev table, and highest random weight.

use std::net::{IpAddr, SocketAddr};

mod maglev;
mod ring;

pub use maglev::Maglev;
pub use ring::Ring;

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Spreads every bit over all bits; one to one.
const fn spread(mut x: u64) -> u64 {
    // The finalizer of splitmix64.
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

const fn mix(state: u64, word: u64) -> u64 {
    spread(state ^ word.wrapping_add(GOLDEN))
}

/// A hash of 64 bits: the same in every process and on every machine, well spread, not cryptographic. `seed` makes it another function.
pub fn hash64(bytes: &[u8], seed: u64) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let state = words.iter().fold(mix(seed, bytes.len() as u64), |state, word| mix(state, u64::from_le_bytes(*word)));
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(state, u64::from_le_bytes(last))
}

fn mix_address(seed: u64, ip: IpAddr) -> u64 {
    let bits = match ip {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    mix(mix(seed, bits as u64), (bits >> 64) as u64)
}

/// What an endpoint is in rings and tables: by its address and port alone, so that every sidecar has the same.
fn endpoint_hash(endpoint: SocketAddr) -> u64 {
    mix(mix_address(GOLDEN, endpoint.ip()), endpoint.port().into())
}

/// The candidate that a client stays with: highest random weight. A client moves only if its own endpoint goes, or one comes that is
/// its new highest. None if there is no candidate.
pub fn rendezvous(client: IpAddr, candidates: impl Iterator<Item = IpAddr>) -> Option<usize> {
    let weight = |endpoint: IpAddr| mix_address(mix_address(GOLDEN, client), endpoint);
    candidates.enumerate().max_by_key(|(_, endpoint)| (weight(*endpoint), *endpoint)).map(|(i, _)| i)
}

#[cfg(test)]
mod tests;
