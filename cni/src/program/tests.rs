use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::PLUGIN;

const LIST: &str = r#"{"name": "net", "plugins": [{"type": "bridge"}]}"#;

/// An ELF program with these types of program headers, and nothing else.
fn elf(kinds: &[u32]) -> Vec<u8> {
    let mut bytes = vec![0; 64 + 56 * kinds.len()];
    bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
    bytes[32] = 64;
    bytes[54] = 56;
    bytes[56] = kinds.len() as u8;
    for (index, kind) in kinds.iter().enumerate() {
        bytes[64 + 56 * index..][..4].copy_from_slice(&kind.to_le_bytes());
    }
    bytes
}

/// A node with one network, and a program to put there.
fn node(program: &[u8]) -> (Node, PathBuf, TempDir) {
    let root = tempfile::tempdir().expect("a temporary directory");
    let node = Node { bin_dir: root.path().join("bin"), conf_dir: root.path().join("net.d") };
    for directory in [&node.bin_dir, &node.conf_dir] {
        fs::create_dir(directory).expect("it is writable");
    }
    fs::write(node.conf_dir.join("10-net.conflist"), LIST).expect("it is writable");
    let source = root.path().join("program");
    fs::write(&source, program).expect("it is writable");
    (node, source, root)
}

fn list(node: &Node) -> String {
    fs::read_to_string(node.conf_dir.join("10-net.conflist")).expect("it is there")
}

fn entry() -> Value {
    json!({"type": PLUGIN})
}

#[test]
fn a_program_that_asks_for_a_loader_needs_libraries() {
    let (_node, path, _root) = node(&elf(&[1, 2, 1]));
    let of = |bytes: &[u8]| {
        fs::write(&path, bytes).expect("it is writable");
        needs_libraries(&path)
    };
    assert!(!of(&elf(&[1, 2, 1])).expect("a program"));
    assert!(of(&elf(&[6, 3, 1])).expect("a program"));
    for bad in [&elf(&[1, 3])[..64 + 50], b"#!/bin/sh", b""] {
        assert!(of(bad).is_err(), "{bad:?}");
    }
    let mut far = elf(&[1]);
    far[32..40].fill(0xff);
    assert!(of(&far).is_err());
}

#[test]
fn what_may_not_run_on_the_node_is_put_there_only_when_it_is_told_to() {
    let (node, path, _root) = node(&elf(&[3]));
    let why = node.join_with(&mut Program::at(path.clone(), false), &entry()).expect_err("it needs a loader");
    assert!(why.contains("C library") && why.contains("crt-static"), "{why}");
    assert_eq!((node.program().exists(), list(&node)), (false, LIST.to_owned()));
    node.join_with(&mut Program::at(path, true), &entry()).expect("it is told to");
    assert!(node.program().exists() && list(&node).contains(PLUGIN));
}

#[test]
fn a_program_that_is_taken_away_or_changed_comes_back_before_the_chain_is_joined() {
    let (node, path, _root) = node(&elf(&[1]));
    let mut program = Program::at(path.clone(), false);
    node.join_with(&mut program, &entry()).expect("it is writable");
    assert_eq!(program.place(&node), Ok(false));
    let is_right = || fs::read(node.program()).expect("it is there") == fs::read(&path).expect("it is there");

    fs::remove_file(node.program()).expect("it is there");
    node.join_with(&mut program, &entry()).expect("it is writable");
    assert!(is_right());
    fs::write(node.program(), "another").expect("it is writable");
    assert_eq!(program.place(&node), Ok(true));
    assert!(is_right());
    fs::set_permissions(node.program(), fs::Permissions::from_mode(0o644)).expect("it is ours");
    assert_eq!(program.place(&node), Ok(true), "nobody could start it");
    assert_eq!(fs::metadata(node.program()).expect("it is there").mode() & 0o777, 0o755);
}

#[test]
fn a_chain_does_not_name_a_program_that_is_not_there() {
    let (node, path, _root) = node(&elf(&[1]));
    let mut program = Program::at(path, false);
    node.join_with(&mut program, &entry()).expect("it is writable");
    assert!(list(&node).contains(PLUGIN));
    fs::remove_dir_all(&node.bin_dir).expect("it is there");
    let why = node.join_with(&mut program, &entry()).expect_err("it can't be put anywhere");
    assert!(why.contains("can't be put"), "{why}");
    assert_eq!(list(&node), LIST);
    // One of before goes on where the new one can't take its place.
    fs::create_dir(&node.bin_dir).expect("it is writable");
    node.join_with(&mut program, &entry()).expect("it is writable");
    program = Program { unfit: Some("it is unfit".to_owned()), ..program };
    node.join_with(&mut program, &entry()).expect_err("it is unfit");
    assert!(list(&node).contains(PLUGIN));
}
