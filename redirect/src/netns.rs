//! Another network namespace, entered for one piece of work.

use std::io;
use std::os::fd::BorrowedFd;
use std::panic::resume_unwind;
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::error::RedirectError;

/// Does `work` in the network namespace that `namespace` is open on, as [`apply`](crate::apply()) for a pod from outside of it.
///
/// The work has a thread of its own, since a thread enters a namespace for good: nothing else of this process is moved, and
/// what the work starts runs in there, too. Takes `CAP_SYS_ADMIN`.
pub fn within<T: Send>(namespace: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> Result<T, RedirectError> {
    let entered = thread::scope(|scope| {
        let thread = thread::Builder::new().name("weft-netns".to_owned()).spawn_scoped(scope, || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        })?;
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    });
    entered.map_err(|error: io::Error| RedirectError::NotEntered(error))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_no_network_namespace_is_not_entered() {
        let file = File::open("/dev/null").expect("every machine has it");
        assert!(matches!(within(file.as_fd(), || ()), Err(RedirectError::NotEntered(_))));
    }
}
