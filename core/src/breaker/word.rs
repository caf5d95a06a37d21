//! The state of a breaker in one word, so that it changes at once: a time, how often it was doubled, and the phase.

use std::time::Duration;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Since the time.
    Closed,
    /// Until the time; half-open from then on.
    Open,
    /// Half-open, and a probe is on its way since the time.
    Probing,
}

/// Bits 0 and 1 are the phase, 2 to 7 the level, the others those of the time: it is exact to 256 ns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Word(pub(super) u64);

const MAX_LEVEL: u32 = 63;

impl Word {
    /// Closed since ever.
    pub(super) const CLOSED: Self = Self(0);

    pub(super) fn new(phase: Phase, time: u64, level: u32) -> Self {
        Self(time & !0xff | u64::from(level.min(MAX_LEVEL)) << 2).with(phase)
    }

    pub(super) fn with(self, phase: Phase) -> Self {
        Self(self.0 & !3 | phase as u64)
    }

    pub(super) fn phase(self) -> Phase {
        match self.0 & 3 {
            0 => Phase::Closed,
            1 => Phase::Open,
            _ => Phase::Probing,
        }
    }

    pub(super) fn time(self) -> u64 {
        self.0 & !0xff
    }

    /// Whether nobody else is waited for: its time as ejected is over, or a probe was silent for too long.
    pub(super) fn may_be_probed(self, now: u64) -> bool {
        match self.phase() {
            Phase::Closed => false,
            Phase::Open => self.time() <= now,
            Phase::Probing => self.time().saturating_add(super::PATIENCE) <= now,
        }
    }

    /// How many ejections count for the length of the next one.
    pub(super) fn level(self) -> u32 {
        (self.0 >> 2 & 0x3f) as u32
    }

    /// The level that is left after a good time: one less for each `step` since it was closed.
    pub(super) fn level_after(self, now: u64, step: Duration) -> u32 {
        let good = now.saturating_sub(self.time());
        let steps = u128::from(good) / step.as_nanos().max(1);
        self.level().saturating_sub(u32::try_from(steps).unwrap_or(u32::MAX))
    }
}
