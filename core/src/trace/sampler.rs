//! Which traces are recorded, decided at their beginning (OpenTelemetry SDK configuration, `OTEL_TRACES_SAMPLER`).

use super::TraceId;

/// What decides where nobody has decided before.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Base {
    On,
    Off,
    /// This share, between 0 and 1, by the trace's identifier: as a bound of its 56 random bits.
    Ratio(u64),
}

/// A sampler.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Sampler {
    base: Base,
    /// What the caller decided holds.
    parent: bool,
}

/// A sampler that is not known, or an argument that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SamplerError {
    /// See there.
    #[error(
        "OTEL_TRACES_SAMPLER: {0:?} is not known: write always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off or \
         parentbased_traceidratio"
    )]
    Unknown(String),
    /// See there.
    #[error("OTEL_TRACES_SAMPLER_ARG: {0:?} is not a number from 0 to 1, as in 0.01")]
    Ratio(String),
}

impl Sampler {
    /// The share of traces that is recorded unless something else is said.
    pub const DEFAULT_RATIO: f64 = 0.01;

    /// By the values of `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`. Without the first, `parentbased_traceidratio`; without the second, 0.01
    /// there, and 1 where a ratio is asked for by name.
    pub fn parse(name: Option<&str>, argument: Option<&str>) -> Result<Self, SamplerError> {
        let ratio = || match argument {
            None if name.is_none() => Ok(Self::DEFAULT_RATIO),
            None => Ok(1.0),
            Some(text) => {
                let ratio = text.parse().ok().filter(|r| (0.0..=1.0).contains(r));
                ratio.ok_or_else(|| SamplerError::Ratio(text.to_owned()))
            }
        };
        let name = name.unwrap_or("parentbased_traceidratio");
        let (parent, base) = name.strip_prefix("parentbased_").map_or((false, name), |base| (true, base));
        let base = match base {
            "always_on" => Base::On,
            "always_off" => Base::Off,
            "traceidratio" => Base::of_ratio(ratio()?),
            _ => return Err(SamplerError::Unknown(name.to_owned())),
        };
        Ok(Self { base, parent })
    }

    /// Whether a request's spans are recorded. `decided` is what its caller says; `trace` is the trace that it is in, or would begin.
    pub fn samples(&self, decided: Option<bool>, trace: TraceId) -> bool {
        if let (true, Some(decided)) = (self.parent, decided) {
            return decided;
        }
        match self.base {
            Base::On => true,
            Base::Off => false,
            Base::Ratio(bound) => trace.randomness() < bound,
        }
    }

    /// Whether a request without a parent can be recorded at all, so that numbers are drawn for it. `decided` as above.
    pub fn begins_traces(&self, decided: Option<bool>) -> bool {
        match decided {
            Some(decided) if self.parent => decided,
            _ => !matches!(self.base, Base::Off | Base::Ratio(0)),
        }
    }
}

impl Base {
    fn of_ratio(ratio: f64) -> Self {
        let whole = 1_u64 << 56;
        if ratio >= 1.0 { Self::On } else { Self::Ratio((ratio * whole as f64) as u64) }
    }
}
