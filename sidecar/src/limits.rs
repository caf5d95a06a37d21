//! What the machine grants: descriptors and processors.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one: each proxied connection takes two.
pub fn raise_open_files() {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((soft, hard)) if soft < hard => {
            if let Err(e) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
                tracing::warn!(error = %e, soft, hard, "the limit of open files cannot be raised");
            }
        }
        Ok(_) => {}
        Err(e) => tracing::warn!(error = %e, "the limit of open files cannot be read"),
    }
}

/// Whether an error says that descriptors, or the kernel's memory for sockets, are short.
pub fn is_short(e: &std::io::Error) -> bool {
    use nix::errno::Errno::{EMFILE, ENFILE, ENOBUFS, ENOMEM};
    [EMFILE, ENFILE, ENOBUFS, ENOMEM].iter().any(|short| e.raw_os_error() == Some(*short as i32))
}

/// How many files may be open at once.
pub fn open_files() -> usize {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| usize::try_from(soft).unwrap_or(usize::MAX))
}

/// How many workers to run: as asked, or as many processors as the cgroup's quota and the affinity mask give.
pub fn workers(asked: usize) -> usize {
    if asked > 0 {
        return asked;
    }
    // The standard library reads affinity and cgroup quota.
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
