//! How the program is linked. Its addresses that are set when it starts are packed (RELR) where the C library of this machine can read that, which is
//! glibc from 2.36 on: half a megabyte less on disk, and in the memory of every sidecar. Such a program starts on no older glibc: who builds for one says `WEFT_RELR=0`.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let of = |name: &str| std::env::var(name).unwrap_or_default();
    println!("cargo::rerun-if-env-changed=WEFT_RELR");
    // What is built for another machine is linked as it always was: what that has is not known here.
    if of("TARGET") == of("HOST")
        && of("CARGO_CFG_TARGET_ENV") == "gnu"
        && of("WEFT_RELR") != "0"
        && glibc().is_some_and(|version| version >= (2, 36))
    {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The version of this machine's glibc, as `getconf` tells it: `glibc 2.36`.
fn glibc() -> Option<(u32, u32)> {
    let told = Command::new("getconf").arg("GNU_LIBC_VERSION").output().ok()?;
    let told = String::from_utf8(told.stdout).ok()?;
    let (major, minor) = told.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.split('.').next()?.parse().ok()?))
}
