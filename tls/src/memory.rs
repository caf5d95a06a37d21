//! The memory of a process that holds private keys: nobody else gets to see it.

use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};

/// Has the kernel write no core file of this process nor hand one to a program, and keeps other processes of the same user from reading its memory
/// (`ptrace(2)`, `/proc/PID/mem`, and what else of `/proc/PID` is the owner's alone). Who is root may.
///
/// # Errors
///
/// Where the kernel refuses.
pub fn keep_private() -> nix::Result<()> {
    // core(5): a program behind a pipe in core_pattern is handed a core whatever the limit is, but where it is 1; a file of one byte is not written.
    // One that is 0 already, and must not be raised, is as good where cores are files.
    let _ = setrlimit(Resource::RLIMIT_CORE, 1, 1);
    // prctl(2), PR_SET_DUMPABLE: no core, however cores are written.
    prctl::set_dumpable(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::resource::getrlimit;

    #[test]
    fn nobody_sees_the_memory_of_a_process_that_keeps_it_private() {
        keep_private().expect("the kernel does it");
        assert_eq!(prctl::get_dumpable(), Ok(false));
        let (soft, hard) = getrlimit(Resource::RLIMIT_CORE).expect("a limit");
        assert!(soft <= 1 && hard <= 1, "{soft} {hard}");
    }
}
