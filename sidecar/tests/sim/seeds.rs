//! Seeds: each is a whole run of its own, under a clock of its own.

use std::cell::Cell;
use std::sync::Once;
use std::time::Duration;

use tokio::task::LocalSet;
use tokio::time::timeout;

/// Says which seed it was, if the test fails.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("it failed with the seed {0}: WEFT_SIM_SEED={0} runs it alone", self.0);
        }
    }
}

thread_local! {
    static PANICS: Cell<usize> = const { Cell::new(0) };
}

/// Panics on this thread so far: the runtime keeps those of tasks to itself.
fn panics() -> usize {
    static COUNTING: Once = Once::new();
    COUNTING.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.set(PANICS.get() + 1);
            before(info);
        }));
    });
    PANICS.get()
}

/// Runs one seed, for at most a day of its own time.
pub(crate) fn simulate(seed: u64, scenario: &impl AsyncFn(u64)) {
    let _told = Seed(seed);
    let panicked = panics();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let ended = timeout(Duration::from_secs(86_400), Box::pin(scenario(seed))).await;
        ended.expect("something waits for ever");
    });
    drop(local);
    assert_eq!(panics(), panicked, "a task panicked");
}

/// Runs every seed, or the one that the environment names.
pub(crate) fn each_seed(scenario: &impl AsyncFn(u64)) {
    first_seeds(64, scenario);
}

/// Runs so many seeds, or the one that the environment names.
pub(crate) fn first_seeds(count: u64, scenario: &impl AsyncFn(u64)) {
    let seeds = match std::env::var("WEFT_SIM_SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("WEFT_SIM_SEED is a number");
            seed..seed + 1
        }
        Err(_) => 0..count,
    };
    for seed in seeds {
        simulate(seed, scenario);
    }
}
