//! A table that is filled evenly (Eisenbud and others, "Maglev", NSDI 2016, section 3.4).

use std::net::SocketAddr;

use super::{GOLDEN, endpoint_hash, mix};

/// The size of the table; a prime, and a hundred times as many as endpoints. Each way through the table takes in every place.
const SIZE: u32 = 65_537;
/// A smaller one will do for up to so many endpoints.
const FEW: usize = 40;
const SIZE_FOR_FEW: u32 = 4093;

/// A table of places that endpoints take in turns, each by an order of its own: every endpoint has the same number of places, give or take one.
/// When an endpoint goes, its keys move, and a few of the others'. 4 bytes a place: 16 KiB for up to 40 endpoints, 256 KiB for more;
/// the step between the two moves most keys.
#[derive(Clone, Debug)]
pub struct Maglev {
    /// The endpoint's position at each place. Empty without endpoints.
    table: Vec<u32>,
}

impl Maglev {
    /// A table of these endpoints; what it answers are their positions.
    pub fn new(endpoints: &[SocketAddr]) -> Self {
        Self::with_size(endpoints, if endpoints.len() > FEW { SIZE } else { SIZE_FOR_FEW })
    }

    /// The same, of `size` places. It must be a prime, or an order might never meet a free place. With more endpoints than places, some get none.
    pub(super) fn with_size(endpoints: &[SocketAddr], size: u32) -> Self {
        const FREE: u32 = u32::MAX;
        if endpoints.is_empty() || size == 0 {
            return Self { table: Vec::new() };
        }
        // In the order of their addresses, so that the table is the same in whatever order the endpoints came.
        let mut turns: Vec<(u32, u32, u32)> = (0u32..)
            .zip(endpoints)
            .map(|(i, e)| {
                let hash = endpoint_hash(*e);
                let at = hash % u64::from(size);
                let step = mix(hash, GOLDEN) % u64::from(size - 1).max(1) + 1;
                (i, at as u32, step as u32)
            })
            .collect();
        turns.sort_by_key(|(i, ..)| endpoints[*i as usize]);
        let mut table = vec![FREE; size as usize];
        let mut left = size;
        'fill: loop {
            for (i, at, step) in &mut turns {
                // A prime and a step below it meet every place; one is free.
                while table[*at as usize] != FREE {
                    *at = ((u64::from(*at) + u64::from(*step)) % u64::from(size)) as u32;
                }
                table[*at as usize] = *i;
                left -= 1;
                if left == 0 {
                    break 'fill;
                }
            }
        }
        Self { table }
    }

    /// The position of the endpoint that `key` (a hash, see [`super::hash64`]) belongs to; none without endpoints.
    pub fn lookup(&self, key: u64) -> Option<usize> {
        // `% 0` is what an empty table would ask for.
        let place = key.checked_rem(self.table.len() as u64)?;
        Some(self.table[place as usize] as usize)
    }

    /// The endpoint that `key` belongs to, then those that it belongs to when it is hashed again, without end.
    pub fn walk(&self, key: u64) -> impl Iterator<Item = usize> + '_ {
        (0u64..).map_while(move |n| self.lookup(if n == 0 { key } else { mix(key, n) }))
    }

    #[cfg(test)]
    pub(super) fn places(&self) -> impl Iterator<Item = usize> + '_ {
        self.table.iter().map(|i| *i as usize)
    }
}
