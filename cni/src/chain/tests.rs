use proptest::prelude::*;

use super::*;

const LIST: &str = r#"{"cniVersion": "1.0.0", "name": "bridge", "x": {"plugins": []}, "plugins": [
  {"type": "bridge", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.0.0/24"}]]}, "mtu": 1.50e3},
  {"type": "portmap", "capabilities": {"portMappings": true}}],
  "disableCheck": false}
"#;

fn ours() -> Value {
    entry("/run/weft-cni/agent.sock", &["kube-system".to_owned()])
}

fn put(list: &str) -> String {
    with_entry(list, &ours()).expect("a list").expect("it was not there")
}

fn types(list: &str) -> Vec<String> {
    let list: Value = serde_json::from_str(list).expect("JSON");
    let plugins = list["plugins"].as_array().expect("a list").iter();
    plugins.map(|plugin| plugin["type"].as_str().expect("a type").to_owned()).collect()
}

#[test]
fn the_entry_is_last_and_only_once_and_leaves_no_trace() {
    let chained = put(LIST);
    assert_eq!(types(&chained), ["bridge", "portmap", PLUGIN]);
    assert_eq!(with_entry(&chained, &ours()).expect("a list"), None, "twice is once");
    assert_eq!(without_entry(&chained).expect("a list").as_deref(), Some(LIST), "nothing else was touched");
    assert_eq!(without_entry(LIST).expect("a list"), None);
    let (with, without): (Value, Value) =
        (serde_json::from_str(&chained).expect("JSON"), serde_json::from_str(LIST).expect("JSON"));
    assert_eq!((&with["disableCheck"], &with["x"]), (&without["disableCheck"], &without["x"]));
    assert_eq!(with["plugins"][0], without["plugins"][0]);
    assert_eq!(with["plugins"][2]["exempt"], json!(["kube-system"]));
}

#[test]
fn an_entry_that_says_something_else_is_replaced_where_it_is() {
    let old = LIST.replace(r#"{"type": "portmap""#, r#"{"type": "weft-cni", "socket": "/old"}, {"type": "portmap""#);
    let new = with_entry(&old, &ours()).expect("a list").expect("it is another");
    assert_eq!(types(&new), ["bridge", PLUGIN, "portmap"]);
    assert_eq!(with_entry(&new, &ours()).expect("a list"), None);
    assert_eq!(without_entry(&old).expect("a list").map(|text| types(&text)), Some(vec!["bridge".into(), "portmap".into()]));
}

#[test]
fn of_several_entries_one_is_left() {
    let twice = put(LIST).replace("[\n", "[{\"type\": \"weft-cni\"},\n");
    assert_eq!(types(&twice), [PLUGIN, "bridge", "portmap", PLUGIN]);
    let once = with_entry(&twice, &ours()).expect("a list").expect("there were two");
    assert_eq!(types(&once), ["bridge", "portmap", PLUGIN]);
    assert_eq!(types(&without_entry(&twice).expect("a list").expect("there were two")), ["bridge", "portmap"]);
    let alone = r#"{"plugins": [{"type": "weft-cni"}, {"type": "weft-cni"}]}"#;
    assert_eq!(without_entry(alone).expect("a list").as_deref(), Some(r#"{"plugins": []}"#));
}

#[test]
fn a_single_configuration_becomes_a_list() {
    let single = r#"{"cniVersion": "0.3.1", "name": "net", "type": "bridge", "isGateway": true, "other": [1, {"a": null}]}"#;
    let list: Value = serde_json::from_str(&list_of(single, &ours()).expect("a configuration")).expect("JSON");
    let before: Value = serde_json::from_str(single).expect("JSON");
    assert_eq!((&list["cniVersion"], &list["name"]), (&json!("0.3.1"), &json!("net")));
    assert_eq!(list["plugins"], json!([before, ours()]));
    assert!(matches!(list_of(r#"{"type": "bridge"}"#, &ours()), Err(ChainError::Lacks("name"))));
    assert!(matches!(list_of(r#"{"name": "net"}"#, &ours()), Err(ChainError::Lacks("type"))));
}

#[test]
fn garbage_is_an_error_and_never_a_panic() {
    for text in ["", "{", "[]", "null", "{}", r#"{"plugins": {}}"#, r#"{"plugins": [}"#, "\u{0}", "{\"plugins\": [{}]} x"] {
        assert!(with_entry(text, &ours()).is_err(), "{text:?}");
        assert!(without_entry(text).is_err(), "{text:?}");
        assert!(list_of(text, &ours()).is_err(), "{text:?}");
    }
    assert!(matches!(with_entry(r#"{"plugins": []}"#, &ours()), Err(ChainError::NoPlugins)));
    // Elements that are no plugins are not ours.
    let odd = r#"{"plugins": [1, null, "weft-cni", {"type": 7}]}"#;
    assert_eq!(without_entry(&put(odd)).expect("a list").as_deref(), Some(odd));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from)
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(".{0,6}", inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_put_in_is_taken_out_without_a_trace(
        plugins in proptest::collection::vec(any_json(), 1..5), more in any_json(), pretty in any::<bool>(),
    ) {
        let list = json!({"name": "net", "a": more, "plugins": plugins, "z": {"plugins": [PLUGIN]}});
        let text = if pretty { format!("{list:#}\n") } else { list.to_string() };
        let chained = put(&text);
        prop_assert_eq!(without_entry(&chained).expect("a list"), Some(text));
        prop_assert_eq!(with_entry(&chained, &ours()).expect("a list"), None);
    }

    #[test]
    fn any_text_is_answered(text in ".{0,64}") {
        let _ = (with_entry(&text, &ours()), without_entry(&text), list_of(&text, &ours()));
    }
}
