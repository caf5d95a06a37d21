//! What the other end may send on one stream: credit goes back as what came is passed on, and more of it to a stream whose reader keeps up.

/// The largest window of a stream, in bytes.
pub const LARGEST: u32 = 1024 * 1024;
/// A window is doubled when so many of it were passed on.
const PASSED_TO_GROW: u64 = 4;

/// What all streams of a connection may be granted together beyond the beginning of their windows, in bytes, and what of it is left.
#[derive(Debug)]
pub struct Extra(pub u32);

/// A stream's window.
#[derive(Debug, Default)]
pub struct Window {
    /// What the other end may still send.
    allowed: u32,
    size: u32,
    /// Passed on, and not given back.
    passed: u32,
    /// Passed on since it has its size.
    since: u64,
}

impl Window {
    /// One of so many bytes.
    pub fn new(size: u32) -> Self {
        Self { allowed: size, size, ..Self::default() }
    }

    /// So much is coming; false where that is more than was granted.
    pub fn takes(&mut self, n: u32) -> bool {
        self.allowed.checked_sub(n).map(|left| self.allowed = left).is_some()
    }

    /// What is granted at once, in bytes.
    #[cfg(test)]
    pub fn size(&self) -> u32 {
        self.size
    }

    /// What may still come, and what was passed on and not given back.
    #[cfg(test)]
    pub fn whole(&self) -> u32 {
        self.allowed + self.passed
    }

    /// What the other end may still send.
    pub fn allowed(&self) -> u32 {
        self.allowed
    }

    /// So much was passed on; whether credit is worth a frame of its own.
    pub fn passes(&mut self, n: u32) -> bool {
        self.passed += n;
        self.since += u64::from(n);
        self.passed >= self.size.min(LARGEST) / 2
    }

    /// Whether credit is to go where something goes anyway.
    pub fn is_worth_adding(&self) -> bool {
        self.passed >= self.size / 4
    }

    /// The credit that goes back. `waits` is what came and was not read yet: who keeps up has read the most of it, and is granted more as far as `extra` goes.
    pub fn give_back(&mut self, waits: usize, extra: &mut Extra) -> u32 {
        let mut credit = std::mem::take(&mut self.passed);
        let keeps_up = waits <= self.size as usize / 2 && self.since >= PASSED_TO_GROW * u64::from(self.size);
        if keeps_up && self.size < LARGEST && self.size <= extra.0 {
            extra.0 -= self.size;
            credit += self.size;
            self.size *= 2;
            self.since = 0;
        }
        self.allowed += credit;
        credit
    }

    /// The stream is over: what it was granted beyond `beginning` may be another's.
    pub fn ends(&self, beginning: u32, extra: &mut Extra) {
        extra.0 += self.size - beginning;
    }
}
