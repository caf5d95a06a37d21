//! What a program logs, changed while it runs.

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::{Registry, reload};

use crate::outlet::Outlet;

/// The filter in force. It is back to what `--log` says when the program starts anew. Clones are of one and the same.
#[derive(Clone, Debug)]
pub struct Levels(Option<reload::Handle<Targets, Registry>>, Option<Outlet>);

/// What a filter lets by: levels, and `TARGET=LEVEL`, joined by commas; of nothing at all, errors. An error says what is no part of one.
pub(crate) fn read(filter: &str) -> Result<Targets, String> {
    let mut parts = filter.split(',').map(str::trim).filter(|part| !part.is_empty()).peekable();
    if parts.peek().is_none() {
        return Ok(Targets::new().with_default(LevelFilter::ERROR));
    }
    parts.try_fold(Targets::new(), |targets, part| {
        let level_of = |text: &str| text.parse::<LevelFilter>().ok().filter(|_| !text.is_empty());
        if let Some(level) = level_of(part) {
            return Ok(targets.with_default(level));
        }
        let (target, level) = part.split_once('=').unwrap_or((part, "trace"));
        if target.is_empty() || !target.bytes().all(|b| b.is_ascii_alphanumeric() || b"_:-.".contains(&b)) {
            return Err(format!("{target:?} is no target"));
        }
        let level = level_of(level).ok_or_else(|| format!("{level:?} is no level (off, error, warn, info, debug, trace)"))?;
        Ok(targets.with_target(target, level))
    })
}

/// The longest filter that is taken, in bytes.
pub(crate) const LONGEST: usize = 1_024;

impl Levels {
    /// Of a log that is written to `outlet`.
    pub fn new(handle: reload::Handle<Targets, Registry>, outlet: Option<Outlet>) -> Self {
        Self(Some(handle), outlet)
    }

    /// Lines that nobody took in time.
    pub fn lost(&self) -> u64 {
        self.1.as_ref().map_or(0, Outlet::dropped)
    }

    /// Where somebody else decides what is logged, as in tests.
    pub fn fixed() -> Self {
        Self(None, None)
    }

    /// The filter in force.
    pub fn now(&self) -> Option<String> {
        self.0.as_ref()?.with_current(ToString::to_string).ok()
    }

    /// Puts another filter in force: a level, or `TARGET=LEVEL,…` as in `info,weft_sidecar::discovery=debug`. An error says what is wrong with it.
    pub fn set(&self, filter: &str) -> Result<(), String> {
        let wrong = |why: &str| Err(format!("{filter:?} is no filter: {why}: write info, or info,weft_sidecar::discovery=debug"));
        if filter.is_empty() || filter.len() > LONGEST {
            return wrong("it is empty or too long");
        }
        let parsed = match read(filter) {
            Ok(parsed) => parsed,
            Err(why) => return wrong(&why),
        };
        let Some(handle) = &self.0 else { return Err("what is logged is fixed here".to_owned()) };
        handle.reload(parsed).map_err(|e| e.to_string())?;
        tracing::info!(filter, "what is logged was changed");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_takes_the_place_of_another_or_says_why_not() {
        let (_layer, handle) = reload::Layer::<_, Registry>::new("info".parse::<Targets>().expect("a filter"));
        let levels = Levels::new(handle, None);
        assert!(levels.set("debug,h2=warn").is_ok());
        assert_eq!(levels.now().as_deref(), Some("h2=warn,debug"));
        for bad in
            ["", "a=b=c", "h2=", "info,[request]=debug", "info,[request{path=/}]", "info,h2 =warn", &"x".repeat(LONGEST + 1)]
        {
            assert!(levels.set(bad).is_err(), "{bad}");
        }
        assert_eq!(levels.now().as_deref(), Some("h2=warn,debug"));
        for (good, is) in [
            ("info,", "info"),
            ("info,,h2=warn", "h2=warn,info"),
            ("info, h2=off", "h2=off,info"),
            ("OFF", "off"),
            ("h2", "h2=trace"),
            (",", "error"),
        ] {
            assert_eq!(levels.set(good), Ok(()), "{good}");
            assert_eq!(levels.now().as_deref(), Some(is), "{good}");
        }
        assert!(Levels::fixed().set("info").is_err());
    }
}
