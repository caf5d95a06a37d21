//! The program: which files it writes, with which modes, and what it refuses.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

fn weft_certs(out: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weft-certs")).arg("--out").arg(out).args(arguments).output().expect("the program starts")
}

fn succeed(out: &Path, arguments: &[&str]) -> String {
    let output = weft_certs(out, arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("paths in UTF-8")
}

fn fail(out: &Path, arguments: &[&str]) -> String {
    let output = weft_certs(out, arguments);
    assert!(!output.status.success(), "it should have failed");
    String::from_utf8(output.stderr).expect("messages in UTF-8")
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("it was written").permissions().mode() & 0o777
}

#[test]
fn keys_are_their_owners_alone() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let out = scratch.path().join("made/deep");
    let said = succeed(&out, &["--id", "spiffe://cluster.local/ns/shop/sa/web"]);

    for name in ["root.pem", "issuer.pem", "issuer.key", "shop_web.pem", "shop_web.key"] {
        let path = out.join(name);
        assert!(said.lines().any(|line| Path::new(line) == path), "{name} is not told of in {said}");
        if Path::new(&name).extension().is_some_and(|e| e == "key") {
            assert_eq!(mode(&path), 0o600, "{name}");
        }
    }
    assert_eq!(said.lines().count(), 5);
    assert_eq!(mode(&out), 0o700);
    assert_eq!(mode(&scratch.path().join("made")), 0o700);
}

#[test]
fn nothing_is_replaced_unless_asked() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let out = scratch.path();
    fs::write(out.join("issuer.key"), "precious").expect("a file of someone's own");
    fs::set_permissions(out.join("issuer.key"), fs::Permissions::from_mode(0o644)).expect("it is ours");

    let said = fail(out, &[]);
    assert!(said.contains("issuer.key") && said.contains("--force"), "{said}");
    assert_eq!(fs::read_to_string(out.join("issuer.key")).expect("it is still there"), "precious");
    assert!(!out.join("root.pem").exists(), "a refusal leaves the directory as it was");

    succeed(out, &["--force"]);
    assert_ne!(fs::read_to_string(out.join("issuer.key")).expect("it is there"), "precious");
    assert_eq!(mode(&out.join("issuer.key")), 0o600, "the old file's mode must not stay");
}

#[test]
fn every_kind_for_every_identity() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let ids = ["--id", "spiffe://td/ns/a/sa/b", "--id", "spiffe://td/ns/c/sa/d", "--id", "spiffe://td/ns/a/sa/b"];
    let said = succeed(scratch.path(), &[&["--trust-domain", "td", "--kind", "all", "--kind", "expired"][..], &ids[..]].concat());
    assert_eq!(said.lines().count(), 3 + 2 * 2 * weft_certs::LeafKind::ALL.len());
    assert!(scratch.path().join("c_d_foreign-root.key").exists());
}

#[test]
fn without_an_identity_there_is_a_default_one() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    succeed(scratch.path(), &["--kind", "expired"]);
    assert!(scratch.path().join("default_default_expired.pem").exists());
    assert!(!scratch.path().join("default_default.pem").exists());
}

#[test]
fn errors_name_the_culprit() {
    let scratch = tempfile::tempdir().expect("a scratch directory");
    for (arguments, culprit) in [
        (&["--kind", "shiny"][..], "shiny"),
        (&["--trust-domain", "Not A Domain"][..], "Not A Domain"),
        (&["--id", "https://example.com"][..], "https://example.com"),
        (&["--id", "spiffe://other/ns/a/sa/b"][..], "--trust-domain"),
    ] {
        let said = fail(scratch.path(), arguments);
        assert!(said.contains(culprit), "{said}");
    }
    assert_eq!(fs::read_dir(scratch.path()).expect("it is there").count(), 0, "an error leaves nothing behind");
}
