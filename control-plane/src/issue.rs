//! issue: who a workload is, and the certificate that says so.

pub mod authority;
pub mod ca;
pub mod csr;
pub mod deny;
pub mod given;
pub mod kubernetes;
pub mod service;
pub mod token;
pub mod tokens;
pub mod trust;

use std::io::Write;
use std::path::Path;

/// Writes a file that only its owner may read, durably and all or nothing: a new file, synced, renamed over the old
/// one, the directory synced.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let dir = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = dir.join(format!(".{name}.{}", std::process::id()));
    let written = (|| {
        let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        std::fs::File::open(dir)?.sync_all()
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

/// Creates a directory that only its owner may enter.
pub(crate) fn private_dir(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}
