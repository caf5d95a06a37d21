//! A ring of points.

use std::net::SocketAddr;

use super::{endpoint_hash, mix};

/// Points of an endpoint: its share of the keys is within about a tenth of even (one standard deviation is 1/√160).
const POINTS: u32 = 160;

/// A ring of 2^64 places on which every endpoint has points; a key belongs to the next point. When an endpoint goes, only its own keys move.
/// 16 bytes a point, 2.5 KiB an endpoint.
#[derive(Clone, Debug)]
pub struct Ring {
    /// Sorted: the place, and the endpoint's position.
    points: Vec<(u64, u32)>,
}

impl Ring {
    /// A ring of these endpoints; what it answers are their positions.
    pub fn new(endpoints: &[SocketAddr]) -> Self {
        Self::with_points(endpoints, POINTS)
    }

    /// The same, with so many points of each; at least one.
    pub fn with_points(endpoints: &[SocketAddr], points: u32) -> Self {
        let points = points.max(1);
        let hashes = endpoints.iter().map(|e| endpoint_hash(*e)).zip(0u32..);
        let mut points: Vec<(u64, u32)> =
            hashes.flat_map(|(hash, i)| (0..points).map(move |n| (mix(hash, n.into()), i))).collect();
        // Of two on one place, the same is first in whatever order the endpoints came.
        points.sort_unstable_by_key(|(place, i)| (*place, endpoints[*i as usize]));
        Self { points }
    }

    /// The position of the endpoint that `key` (a hash, see [`super::hash64`]) belongs to; none without endpoints.
    pub fn lookup(&self, key: u64) -> Option<usize> {
        self.walk(key).next()
    }

    /// The endpoint that `key` belongs to, then those of the points that follow, once around; an endpoint comes as often as it has points.
    pub fn walk(&self, key: u64) -> impl Iterator<Item = usize> + '_ {
        let (before, after) = self.points.split_at(self.points.partition_point(|(place, _)| *place < key));
        after.iter().chain(before).map(|(_, i)| *i as usize)
    }
}
