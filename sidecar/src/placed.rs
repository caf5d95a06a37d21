//! Futures on the heap.

use std::pin::Pin;

/// What `make` gives, on the heap, made where it lies. `Box::pin` has it made on the stack, and copies all of it, though most of a future is not in use yet: for what each connection or request
/// needs, and is large.
#[inline(always)]
#[expect(clippy::inline_always, reason = "only then is it made in place")]
pub fn placed<F: Future>(make: impl FnOnce() -> F) -> Pin<Box<F>> {
    Box::into_pin(Box::write(Box::new_uninit(), make()))
}
