//! What a program logs, changed while it runs.

use tracing_subscriber::filter::Targets;
use tracing_subscriber::{Registry, reload};

use crate::outlet::Outlet;

/// The filter in force. It is back to what `--log` says when the program starts anew. Clones are of one and the same.
#[derive(Clone, Debug)]
pub struct Levels(Option<reload::Handle<Targets, Registry>>, Option<Outlet>);

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
        let parsed = match filter.parse::<Targets>() {
            Ok(parsed) => parsed,
            Err(e) => return wrong(&e.to_string()),
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
        for bad in ["", "a=b=c", &"x".repeat(LONGEST + 1)] {
            assert!(levels.set(bad).is_err(), "{bad}");
        }
        assert_eq!(levels.now().as_deref(), Some("h2=warn,debug"));
        assert!(Levels::fixed().set("info").is_err());
    }
}
