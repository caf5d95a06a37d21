//! What is to go out on a connection, in room that a worker's connections share: most have nothing to send at any moment.

use std::cell::RefCell;
use std::mem::take;

use super::turns::FULL;

/// Room that a worker keeps for whoever sends next, in bytes.
const KEPT: usize = 1024 * 1024;

thread_local! {
    /// The room that nobody uses just now: it grew with what went out, and its pages are there.
    static ROOM: RefCell<Room> = const { RefCell::new(Room { vectors: Vec::new(), octets: 0 }) };
}

struct Room {
    vectors: Vec<Vec<u8>>,
    octets: usize,
}

impl Room {
    fn take(&mut self) -> Vec<u8> {
        let vector = self.vectors.pop().unwrap_or_default();
        self.octets -= vector.capacity();
        vector
    }

    fn give(&mut self, mut vector: Vec<u8>) {
        if vector.capacity() > 0 && self.octets + vector.capacity() <= KEPT {
            vector.clear();
            self.octets += vector.capacity();
            self.vectors.push(vector);
        }
    }
}

/// What is to go out, of which the beginning may be gone.
#[derive(Default)]
pub struct Outgoing {
    octets: Vec<u8>,
    sent: usize,
}

impl Outgoing {
    /// Where more is put.
    pub fn octets(&mut self) -> &mut Vec<u8> {
        if self.octets.capacity() == 0 {
            self.octets = ROOM.with_borrow_mut(Room::take);
        }
        &mut self.octets
    }

    /// What has not gone yet.
    pub fn rest(&self) -> &[u8] {
        &self.octets[self.sent..]
    }

    /// Bytes that have not gone yet.
    pub fn waiting(&self) -> usize {
        self.octets.len() - self.sent
    }

    /// Whether what stands at `place` has not gone yet.
    pub fn is_here(&self, place: usize) -> bool {
        place >= self.sent && place < self.octets.len()
    }

    /// Takes back what was put behind `place`.
    pub fn truncate(&mut self, place: usize) {
        self.octets.truncate(place);
        if self.waiting() == 0 {
            self.leave_room();
        }
    }

    /// Who has nothing to send keeps no room.
    fn leave_room(&mut self) {
        self.sent = 0;
        ROOM.with_borrow_mut(|room| room.give(take(&mut self.octets)));
    }

    /// So much has gone; true if that moved what is left.
    pub fn sent(&mut self, n: usize) -> bool {
        self.sent += n;
        if self.waiting() == 0 {
            self.leave_room();
            return true;
        }
        // As much is moved as has gone, at the most: whoever takes little at a time does not have us keep it all.
        if self.sent > FULL.max(self.waiting()) {
            self.octets.drain(..self.sent);
            self.sent = 0;
            return true;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_goes_round_among_those_who_send() {
        let (mut one, mut other) = (Outgoing::default(), Outgoing::default());
        one.octets().extend_from_slice(&vec![1; 100_000]);
        let room = one.octets().capacity();
        assert!(!one.sent(10) && one.is_here(10) && !one.is_here(9));
        assert_eq!(one.rest(), vec![1; 99_990]);
        assert!(one.sent(99_990));
        assert_eq!((one.octets.capacity(), one.waiting()), (0, 0), "who has nothing to send keeps nothing");
        other.octets().extend_from_slice(&[2; 10]);
        assert_eq!((other.octets.capacity(), other.rest()), (room, &[2; 10][..]));
        other.truncate(4);
        assert_eq!(other.rest(), [2; 4]);
        other.truncate(0);
        assert_eq!(other.octets.capacity(), 0);
    }

    #[test]
    fn no_more_room_is_kept_than_is_worth_it() {
        let mut all: Vec<Outgoing> = (0..8).map(|_| Outgoing::default()).collect();
        for outgoing in &mut all {
            outgoing.octets().extend_from_slice(&vec![0; KEPT / 4]);
        }
        for outgoing in &mut all {
            outgoing.sent(KEPT / 4);
        }
        assert_eq!(ROOM.with_borrow(|room| (room.vectors.len(), room.octets)), (4, KEPT));
        all[0].octets().extend_from_slice(&vec![0; 2 * KEPT]);
        all[0].sent(2 * KEPT);
        assert_eq!(ROOM.with_borrow(|room| (room.vectors.len(), room.octets)), (3, KEPT / 4 * 3));
    }
}
