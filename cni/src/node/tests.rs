use std::collections::BTreeMap;

use serde_json::json;
use tempfile::TempDir;

use super::*;

const LIST: &str = "{\"name\": \"net\",\n \"plugins\": [{\"type\": \"bridge\"} ] }";
const OTHER: &str = r#"{"name": "other", "plugins": [{"type": "ptp"}]}"#;
const SINGLE: &str = r#"{"cniVersion": "0.3.1", "name": "single", "type": "bridge"}"#;

fn entry() -> Value {
    chain::entry("/run/weft-cni/agent.sock", &[])
}

/// A node with these configurations.
fn node(files: &[(&str, &str)]) -> (Node, TempDir) {
    let root = tempfile::tempdir().expect("a temporary directory");
    let node = Node { bin_dir: root.path().join("bin"), conf_dir: root.path().join("net.d") };
    for directory in [&node.bin_dir, &node.conf_dir] {
        fs::create_dir(directory).expect("it is writable");
    }
    for (name, text) in files {
        fs::write(node.conf_dir.join(name), text).expect("it is writable");
    }
    (node, root)
}

fn files(node: &Node) -> BTreeMap<String, String> {
    let all = fs::read_dir(&node.conf_dir).expect("a directory");
    let named = all.map(|file| {
        let path = file.expect("a file").path();
        (path.file_name().expect("a name").to_string_lossy().into_owned(), fs::read_to_string(path).expect("text"))
    });
    named.collect()
}

fn is_chained(text: &str) -> bool {
    let list: Value = serde_json::from_str(text).expect("JSON");
    list["plugins"].as_array().expect("a list").iter().any(|plugin| plugin["type"] == PLUGIN)
}

#[test]
fn the_first_list_is_joined_and_left_as_it_was() {
    let before = [("10-net.conflist", LIST), ("20-other.conflist", OTHER), ("notes.txt", "-"), ("99-late.conf", SINGLE)];
    let (node, _root) = node(&before);
    fs::set_permissions(node.conf_dir.join("10-net.conflist"), Permissions::from_mode(0o640)).expect("it is ours");
    let original = files(&node);
    let joined = node.join(&entry()).expect("it is writable");
    assert_eq!(joined.file.as_deref(), Some(node.conf_dir.join("10-net.conflist").as_path()));
    assert_eq!(joined.changed.len(), 1);
    assert!(is_chained(&files(&node)["10-net.conflist"]) && !is_chained(&files(&node)["20-other.conflist"]));
    assert_eq!(files(&node).len(), before.len(), "no other file is there, temporary ones included");
    assert_eq!(mode_of(&node.conf_dir.join("10-net.conflist")).mode() & 0o777, 0o640);
    assert_eq!(node.join(&entry()).expect("it is writable").changed, Vec::<PathBuf>::new(), "twice is once");

    // Its owner writes it anew, without us.
    fs::write(node.conf_dir.join("10-net.conflist"), LIST).expect("it is writable");
    assert_eq!(node.join(&entry()).expect("it is writable").changed.len(), 1);

    node.leave().expect("it is writable");
    assert_eq!(files(&node), original);
    assert_eq!(node.leave().expect("it is writable"), Vec::<PathBuf>::new());
}

#[test]
fn a_network_that_comes_first_later_is_joined_instead() {
    let (node, _root) = node(&[("10-net.conflist", LIST)]);
    node.join(&entry()).expect("it is writable");
    fs::write(node.conf_dir.join("05-new.conflist"), OTHER).expect("it is writable");
    let joined = node.join(&entry()).expect("it is writable");
    assert_eq!(joined.changed.len(), 2);
    assert_eq!(files(&node)["10-net.conflist"], LIST);
    assert!(is_chained(&files(&node)["05-new.conflist"]));
}

#[test]
fn a_single_configuration_gets_a_list_that_comes_before_it() {
    let (node, _root) = node(&[("10-net.conf", SINGLE), ("20-other.conflist", OTHER)]);
    let original = files(&node);
    let joined = node.join(&entry()).expect("it is writable");
    let list = node.conf_dir.join("10-net-weft.conflist");
    assert_eq!(joined.file.as_ref(), Some(&list));
    assert_eq!(files(&node).keys().next().map(String::as_str), Some("10-net-weft.conflist"), "runtimes look at it first");
    assert!(is_chained(&files(&node)["10-net-weft.conflist"]) && !is_chained(&files(&node)["20-other.conflist"]));
    assert_eq!(node.join(&entry()).expect("it is writable").changed, Vec::<PathBuf>::new());

    fs::write(node.conf_dir.join("10-net.conf"), SINGLE.replace("bridge", "ptp")).expect("it is writable");
    assert_eq!(node.join(&entry()).expect("it is writable").changed, [list.as_path()], "it follows what it was made of");
    assert!(files(&node)["10-net-weft.conflist"].contains("ptp"));

    fs::remove_file(node.conf_dir.join("10-net.conf")).expect("it is there");
    node.join(&entry()).expect("it is writable");
    assert_eq!(files(&node).keys().collect::<Vec<_>>(), ["20-other.conflist"], "and goes with it");

    fs::write(node.conf_dir.join("10-net.conf"), SINGLE).expect("it is writable");
    node.join(&entry()).expect("it is writable");
    node.leave().expect("it is writable");
    assert_eq!(files(&node), original);
}

#[test]
fn a_file_of_others_is_never_taken_for_ours_by_its_name() {
    let (node, _root) = node(&[("05-weft.conflist", LIST), ("10-net.conf", SINGLE), ("20-my-weft.conflist", OTHER)]);
    let original = files(&node);
    for _ in 0..2 {
        let joined = node.join(&entry()).expect("it is writable");
        assert_eq!(joined.file, Some(node.conf_dir.join("05-weft.conflist")), "it comes first");
        assert_eq!((files(&node).len(), &files(&node)["20-my-weft.conflist"]), (3, &OTHER.to_owned()));
    }
    node.leave().expect("it is writable");
    assert_eq!(files(&node), original);

    // One that has the very name, and can't be used: it is told and left.
    fs::remove_file(node.conf_dir.join("05-weft.conflist")).expect("it is there");
    fs::write(node.conf_dir.join("10-net-weft.conflist"), "{}").expect("it is writable");
    let joined = node.join(&entry()).expect("it is writable");
    assert_eq!((joined.notes.len(), &files(&node)["10-net-weft.conflist"]), (2, &"{}".to_owned()), "{:?}", joined.notes);
}

#[test]
fn what_cannot_be_used_is_told_and_left_alone() {
    let garbage = [("00-broken.conflist", "{"), ("01-empty.conflist", r#"{"plugins": []}"#), ("02-none.conf", "null")];
    let (node, _root) = node(&[&garbage[..], &[("10-net.json", SINGLE)]].concat());
    let joined = node.join(&entry()).expect("it is writable");
    assert_eq!(joined.notes.len(), 3, "{:?}", joined.notes);
    assert_eq!(joined.file, Some(node.conf_dir.join("10-net-weft.conflist")));
    for (name, text) in garbage {
        assert_eq!(files(&node)[name], text);
    }
    fs::write(node.conf_dir.join("03-huge.conflist"), vec![b' '; MAX_CONFIGURATION as usize + 2]).expect("it is writable");
    assert_eq!(node.join(&entry()).expect("it is writable").notes.len(), 4);
}

#[test]
fn without_a_network_there_is_nothing_to_join() {
    let (node, root) = node(&[]);
    assert_eq!(node.join(&entry()).expect("a directory"), Joined::default());
    fs::remove_dir(root.path().join("net.d")).expect("it is empty");
    let error = node.join(&entry()).expect_err("no directory");
    assert!(error.to_string().contains("net.d"), "{error}");
}

#[test]
fn the_program_is_replaced_where_it_differs() {
    let (node, root) = node(&[]);
    let source = root.path().join("source");
    fs::write(&source, "one").expect("it is writable");
    assert!(node.install_program(&source).expect("it is writable"));
    assert!(!node.install_program(&source).expect("it is writable"));
    fs::write(&source, "two").expect("it is writable");
    assert!(node.install_program(&source).expect("it is writable"));
    let program = node.bin_dir.join(PLUGIN);
    assert_eq!(fs::read_to_string(&program).expect("it is there"), "two");
    assert_eq!(mode_of(&program).mode() & 0o777, 0o755);
    assert_eq!(node.leave().expect("it is writable"), [program]);
    assert_eq!(chain::entry("/s", &["a".to_owned()]), json!({"type": "weft-cni", "socket": "/s", "exempt": ["a"]}));
}
