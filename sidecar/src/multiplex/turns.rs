//! Whose turn it is to write, where more is to go out than the connection takes: each that waits puts a [`QUANTUM`] in before the next.

use std::collections::VecDeque;
use std::task::Waker;

use super::{Streams, wake};

/// Bytes that wait to go out, beyond which writers wait for their turn.
pub const FULL: usize = 128 * 1024;
/// Below so many, waiting writers get a turn.
pub const LOW: usize = 64 * 1024;
/// Bytes that go in at one turn, where others wait.
pub const QUANTUM: usize = 16 * 1024;
/// Bytes that wait to go out, beyond which nothing more is read.
pub const CHOKED: usize = FULL + 256 * 1024;
/// A turn that was not used when the driver has looked so often is void: whoever has it was woken before.
const PASSES: u32 = 2;

/// What streams are kept as.
pub trait Written {
    /// Whoever writes it, while that one waits.
    fn writer(&mut self) -> &mut Option<Waker>;
}

/// The streams of a connection that want to write and may not yet.
#[derive(Default)]
pub struct Turns {
    /// Those that wait for room, or for credit of the connection.
    queue: VecDeque<u32>,
    /// Those that have a turn and have not used it, and since when: as many as [`FULL`] has quanta, at the most.
    granted: Vec<(u32, u32)>,
    /// How often the driver has looked.
    pass: u32,
}

impl Turns {
    /// Whether nobody waits, and nobody has a turn.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.granted.is_empty()
    }

    /// How many bytes a stream may put in now, where `waiting` are to go out and the peer takes `credit` more on the connection. None: it waits until [`Self::hand_out`] wakes it.
    pub fn ask(&mut self, stream: u32, waiting: usize, credit: usize) -> Option<usize> {
        if self.is_empty() && waiting < FULL && credit > 0 {
            return Some((FULL - waiting).max(QUANTUM).min(credit));
        }
        let turn = self.granted.iter().position(|(granted, _)| *granted == stream);
        let place = self.queue.iter().position(|queued| *queued == stream);
        let others_wait = self.queue.len() + self.granted.len() > usize::from(turn.is_some() || place.is_some());
        // Where nothing waits to go out, nobody is held up, and nothing would have the turns go on.
        let is_free = turn.is_some() || !others_wait || waiting == 0;
        if let Some(at) = turn {
            self.granted.remove(at);
        }
        if credit == 0 || waiting >= FULL || !is_free {
            match (turn, place) {
                // It was first, and is so still.
                (Some(_), _) => self.queue.push_front(stream),
                (None, Some(_)) => {}
                (None, None) => self.queue.push_back(stream),
            }
            return None;
        }
        if let Some(at) = place {
            self.queue.remove(at);
        }
        Some(if others_wait { QUANTUM } else { (FULL - waiting).max(QUANTUM) }.min(credit))
    }

    /// A stream does not want to write for now. True if it had a turn, which is another's then.
    pub fn give_up(&mut self, stream: u32) -> bool {
        if let Some(at) = self.granted.iter().position(|(granted, _)| *granted == stream) {
            self.granted.remove(at);
            return true;
        }
        if let Some(at) = self.queue.iter().position(|queued| *queued == stream) {
            self.queue.remove(at);
        }
        false
    }

    /// Has those write who wait longest, as many as there is room and credit for. True where the driver is to look again though nothing is to go out:
    /// somebody may not use a turn.
    #[must_use]
    pub fn hand_out(&mut self, streams: &mut Streams<impl Written>, waiting: usize, credit: usize) -> bool {
        while let Some(next) = self.give(waiting, credit) {
            if let Some(stream) = streams.get_mut(&next) {
                wake(stream.writer());
            }
        }
        self.is_owed(waiting)
    }

    /// Gives a turn to who waits longest, where there is room and credit for one more; its writer is to be woken.
    fn give(&mut self, waiting: usize, credit: usize) -> Option<u32> {
        if self.is_empty() {
            return None;
        }
        if waiting == 0 {
            // Nothing holds up who has had a turn for long and has not used it: that one waits for something else, and nobody waits for it.
            self.granted.retain(|(_, since)| self.pass.wrapping_sub(*since) < PASSES);
        }
        let room = FULL.saturating_sub(waiting).min(credit);
        if self.granted.len() >= room.div_ceil(QUANTUM) {
            return None;
        }
        let next = self.queue.pop_front()?;
        self.granted.push((next, self.pass));
        Some(next)
    }

    /// The driver looks. True where turns are to be handed out for that reason alone.
    #[must_use]
    pub fn pass(&mut self, waiting: usize) -> bool {
        self.pass = self.pass.wrapping_add(1);
        self.is_owed(waiting)
    }

    fn is_owed(&self, waiting: usize) -> bool {
        waiting == 0 && !self.granted.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MUCH: usize = usize::MAX;

    #[test]
    fn one_who_is_alone_fills_the_room() {
        let mut turns = Turns::default();
        assert_eq!(turns.ask(1, 0, MUCH), Some(FULL));
        assert_eq!(turns.ask(1, FULL - 1, MUCH), Some(QUANTUM), "it is not cut into crumbs");
        assert_eq!(turns.ask(1, 0, 10), Some(10));
        assert!(turns.is_empty());
    }

    #[test]
    fn those_who_wait_get_a_quantum_each_in_their_order() {
        let mut turns = Turns::default();
        for stream in [1, 2, 3, 2] {
            assert_eq!(turns.ask(stream, FULL, MUCH), None);
        }
        assert_eq!(turns.give(FULL, MUCH), None, "there is no room");
        let given: Vec<_> = std::iter::from_fn(|| turns.give(LOW - 1, MUCH)).collect();
        assert_eq!(given, [1, 2, 3]);
        // Whoever runs first leaves the others their turn.
        assert_eq!(turns.ask(4, LOW - 1, MUCH), None);
        assert_eq!([3, 1, 2].map(|stream| turns.ask(stream, LOW - 1, MUCH)), [Some(QUANTUM); 3]);
        assert_eq!(turns.give(LOW - 1, MUCH), Some(4));
        // Nobody waits for the room that the last one takes.
        assert_eq!(turns.ask(4, LOW, MUCH), Some(FULL - LOW));
    }

    #[test]
    fn a_turn_that_comes_too_soon_stays_the_first() {
        let mut turns = Turns::default();
        assert_eq!([1, 2].map(|stream| turns.ask(stream, FULL, MUCH)), [None; 2]);
        assert_eq!(turns.give(0, QUANTUM), Some(1));
        assert_eq!(turns.give(0, QUANTUM), None, "there is no credit for two");
        assert_eq!(turns.ask(1, 0, 0), None);
        assert_eq!(turns.give(0, QUANTUM), Some(1));
    }

    #[test]
    fn a_turn_that_nobody_uses_holds_up_nobody() {
        let mut turns = Turns::default();
        let all: Vec<u32> = (0..20).collect();
        assert!(all.iter().all(|stream| turns.ask(*stream, FULL, MUCH).is_none()));
        let mut given = Vec::new();
        for _ in 0..20 {
            let _ = turns.pass(0);
            given.extend(std::iter::from_fn(|| turns.give(0, MUCH)));
        }
        assert_eq!(given, all);
        assert!(turns.give(0, MUCH).is_none() && turns.is_empty());
    }

    #[test]
    fn what_is_given_up_is_anothers() {
        let mut turns = Turns::default();
        assert_eq!([1, 2, 3].map(|stream| turns.ask(stream, FULL, MUCH)), [None; 3]);
        assert_eq!(turns.give(0, QUANTUM), Some(1));
        assert!(!turns.give_up(2), "it had none");
        assert!(turns.give_up(1));
        assert_eq!(turns.give(0, QUANTUM), Some(3));
    }
}
