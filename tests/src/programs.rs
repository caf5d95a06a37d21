//! Where programs are: weft's own beside the tests, the peers' on this machine.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The Debian package of each peer's program.
const PACKAGES: [(&str, &str); 21] = [
    ("chromium", "chromium"),
    ("curl", "curl"),
    ("initdb", "postgresql"),
    ("iperf3", "iperf3"),
    ("mariadb", "mariadb-client"),
    ("mariadb-install-db", "mariadb-server"),
    ("mariadbd", "mariadb-server"),
    ("mountpoint", "util-linux"),
    ("nginx", "nginx-light"),
    ("nft", "nftables"),
    ("nmap", "nmap"),
    ("nsenter", "util-linux"),
    ("openssl", "openssl"),
    ("prometheus", "prometheus"),
    ("promtool", "prometheus"),
    ("psql", "postgresql-client"),
    ("redis-cli", "redis-tools"),
    ("redis-server", "redis-server"),
    ("tcpdump", "tcpdump"),
    ("testssl", "testssl.sh"),
    ("unshare", "util-linux"),
];

/// One of weft's own programs. A test runs from `TARGET/PROFILE/deps`, and they are one directory up.
pub fn weft(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a test knows where it is");
    let dir = test.parent().and_then(Path::parent).expect("a test lies two directories deep");
    let path = dir.join(name);
    assert!(path.is_file(), "{} is not there: run `cargo build --workspace --bins` first, or `make test`", path.display());
    path
}

/// A directory of weft's programs in which a shell script stands in the place of one, and the `weft` in it. In the script
/// `@SIDECAR@`, `@CONTROL_PLANE@` and `@REDIRECT@` stand for the real ones.
pub(crate) fn with_script(directory: &Path, program: &str, script: &str) -> PathBuf {
    fs::create_dir(directory).expect("a fresh directory takes another");
    for name in ["weft-control-plane", "weft-redirect", "weft-sidecar"].into_iter().filter(|name| *name != program) {
        symlink(weft(name), directory.join(name)).expect("a fresh directory takes a link");
    }
    // No symbolic link: it looks for the others beside its own file.
    let own = directory.join("weft");
    fs::hard_link(weft("weft"), &own).or_else(|_| fs::copy(weft("weft"), &own).map(drop)).expect("a program can be copied");
    let instead = directory.join(program);
    let real = |name: &str| format!("'{}'", weft(name).display());
    let script = script
        .replace("@SIDECAR@", &real("weft-sidecar"))
        .replace("@CONTROL_PLANE@", &real("weft-control-plane"))
        .replace("@REDIRECT@", &real("weft-redirect"));
    fs::write(&instead, format!("#!/bin/sh\nset -eu\n{}\n", script.trim())).expect("a fresh directory takes a file");
    fs::set_permissions(&instead, fs::Permissions::from_mode(0o755)).expect("it is ours");
    own
}

/// Takes away what weft's programs would read from the environment besides their flags.
pub(crate) fn without_settings(command: &mut Command) {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"WEFT_")) {
        command.env_remove(name);
    }
}

/// Where peers' programs may be: `PATH`, and where Debian keeps servers and databases.
pub(crate) fn search_path() -> OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    directories.extend(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    if let Ok(versions) = fs::read_dir("/usr/lib/postgresql") {
        directories.extend(versions.flatten().map(|version| version.path().join("bin")));
    }
    std::env::join_paths(directories).unwrap_or(path)
}

fn find(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&search_path()).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// Makes sure that peers' programs are there.
///
/// # Panics
///
/// Where one is missing: a test that cannot run has failed, and says what to install.
#[track_caller]
pub fn require(programs: &[&str]) {
    let package = |name: &str| {
        PACKAGES.iter().find(|(program, _)| *program == name).map_or_else(|| name.to_owned(), |(_, p)| (*p).to_owned())
    };
    let missing: Vec<String> = programs.iter().filter(|name| find(name).is_none()).map(|name| package(name)).collect();
    assert!(missing.is_empty(), "programs are missing: apt install {} (`make test` does it)", missing.join(" "));
}

/// The interpreter of the Python peers: `PYTHON`, or the one that `make test` prepares, or the system's.
pub(crate) fn python() -> PathBuf {
    if let Some(chosen) = std::env::var_os("PYTHON").filter(|chosen| !chosen.is_empty()) {
        return PathBuf::from(chosen);
    }
    let prepared = repository().join(".cache/venv/bin/python3");
    if prepared.is_file() { prepared } else { find("python3").unwrap_or_else(|| PathBuf::from("python3")) }
}

/// Makes sure that the Python peers have what they import.
///
/// # Panics
///
/// Where the interpreter or a module is missing.
#[track_caller]
pub fn require_modules(modules: &[&str]) {
    let python = python();
    let output = Command::new(&python).arg("-c").arg(format!("import {}", modules.join(", "))).output();
    let good = output.is_ok_and(|output| output.status.success());
    assert!(
        good,
        "{} cannot import {}: python3 -m venv .cache/venv && .cache/venv/bin/pip install grpcio websockets 'pyjwt[crypto]' spiffe rotel (`make test` does it)",
        python.display(),
        modules.join(", ")
    );
}

/// Where the peers' own files are.
pub(crate) fn peers() -> PathBuf {
    repository().join("tests/peers")
}

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package lies in the repository")
}
