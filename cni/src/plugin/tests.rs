use std::cell::RefCell;

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// A call for a pod, with the variables that the runtime sets.
fn environment(command: &str, arguments: &str) -> Environment {
    Environment::read(|name| {
        let value = match name {
            "CNI_COMMAND" => command,
            "CNI_CONTAINERID" => "c1",
            "CNI_NETNS" => "/var/run/netns/c1",
            "CNI_ARGS" => arguments,
            _ => return None,
        };
        Some(value.to_owned())
    })
}

const POD: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=7";

/// A configuration as the runtime passes it, with the result of the specification's own example (section 5).
fn input(version: &str) -> Value {
    json!({
        "cniVersion": version,
        "name": "dbnet",
        "type": "weft-cni",
        "socket": "/run/weft-cni/agent.sock",
        "exempt": ["kube-system", "weft-system"],
        "runtimeConfig": {"portMappings": []},
        "prevResult": {
            "cniVersion": version,
            "ips": [{"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 2}],
            "routes": [{"dst": "0.0.0.0/0"}],
            "interfaces": [
                {"name": "cni0", "mac": "00:11:22:33:44:55"},
                {"name": "veth3243", "mac": "55:44:33:22:11:11"},
                {"name": "eth0", "mac": "99:88:77:66:55:44", "sandbox": "/var/run/netns/blue"},
            ],
            "dns": {"nameservers": ["10.1.0.1"]},
        },
    })
}

/// The outcome of a call, where the agent answers so, and what the agent was asked.
fn called(environment: &Environment, input: &Value, answer: &Answer) -> (Result<Option<Value>, CniError>, Vec<Question>) {
    let asked = RefCell::new(Vec::new());
    let ask = |socket: &str, question: &Question, netns: &str| {
        assert_eq!((socket, netns), ("/run/weft-cni/agent.sock", "/var/run/netns/c1"));
        asked.borrow_mut().push(question.clone());
        Ok(answer.clone())
    };
    let outcome = call(environment, input.to_string().as_bytes(), &ask);
    (outcome, asked.into_inner())
}

fn code_of(outcome: Result<Option<Value>, CniError>) -> Code {
    outcome.expect_err("a failure").code
}

fn later() -> Answer {
    Answer::Later { why: "the API server does not answer".to_owned() }
}

#[test]
fn an_add_asks_the_agent_and_passes_the_result_on_unchanged() {
    for version in protocol::VERSIONS {
        for answer in [Answer::InForce, Answer::Left { why: "not in the mesh".to_owned() }] {
            let (outcome, asked) = called(&environment("ADD", POD), &input(version), &answer);
            assert_eq!(outcome.expect("success").as_ref(), Some(&input(version)["prevResult"]));
            let question =
                Question { task: Task::Add, namespace: "shop".to_owned(), name: "web-1".to_owned(), uid: Some("7".to_owned()) };
            assert_eq!(asked, [question]);
        }
    }
}

#[test]
fn an_add_that_the_agent_cannot_settle_is_to_be_tried_again() {
    let (outcome, _) = called(&environment("ADD", POD), &input("1.0.0"), &later());
    let error = outcome.expect_err("a failure");
    let shown = error.shown(Some("1.0.0"));
    assert_eq!((&shown["cniVersion"], &shown["code"]), (&json!("1.0.0"), &json!(11)));
    let said = shown["msg"].as_str().expect("a message");
    assert!(said.contains("shop/web-1") && said.contains("API server"), "{said}");

    let refused = Answer::Refused { why: "its annotation was changed".to_owned() };
    assert_eq!(code_of(called(&environment("ADD", POD), &input("1.0.0"), &refused).0), Code::Refused);
}

#[test]
fn an_agent_that_is_not_there_lets_exempt_namespaces_through_and_nobody_else() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut configuration = input("1.0.0");
    configuration["socket"] = json!(directory.path().join("nobody.sock"));
    let call_from = |namespace: &str| {
        let arguments = format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=p");
        let mut environment = environment("ADD", &arguments);
        environment.netns = "/proc/self/ns/net".to_owned();
        call(&environment, configuration.to_string().as_bytes(), &ask)
    };
    for namespace in ["kube-system", "weft-system"] {
        assert!(call_from(namespace).expect("success").is_some(), "{namespace}");
    }
    for namespace in ["shop", "kube-system-2", "default"] {
        let error = call_from(namespace).expect_err("a failure");
        assert_eq!(error.code, Code::TryAgain, "{namespace}");
        assert!(error.message.contains("DaemonSet weft-cni"), "{error}");
    }
}

#[test]
fn what_is_no_pod_of_kubernetes_is_let_through() {
    let (outcome, asked) = called(&environment("ADD", ""), &input("1.0.0"), &later());
    assert!(outcome.expect("success").is_some() && asked.is_empty());
}

#[test]
fn check_asks_and_the_others_do_not() {
    let (outcome, asked) = called(&environment("CHECK", POD), &input("1.0.0"), &Answer::InForce);
    assert_eq!((outcome, asked[0].task), (Ok(None), Task::Check));
    let gone = Answer::Refused { why: "its rules are gone".to_owned() };
    assert_eq!(code_of(called(&environment("CHECK", POD), &input("1.0.0"), &gone).0), Code::NotInForce);
    assert_eq!(code_of(called(&environment("CHECK", POD), &input("0.3.1"), &gone).0), Code::Version);

    // A DEL succeeds whatever is there: the namespace may be gone, and there is no prevResult before 0.4.0.
    let mut bare = input("0.3.1");
    bare.as_object_mut().expect("an object").retain(|key, _| key == "cniVersion" || key == "name" || key == "type");
    for (command, version) in [("DEL", "0.3.1"), ("DEL", "1.1.0"), ("STATUS", "1.1.0"), ("GC", "1.1.0")] {
        bare["cniVersion"] = json!(version);
        let mut environment = environment(command, POD);
        environment.netns = String::new();
        let (outcome, asked) = called(&environment, &bare, &later());
        assert_eq!((outcome, asked), (Ok(None), Vec::new()), "{command}");
    }
    assert_eq!(code_of(called(&environment("STATUS", POD), &input("1.0.0"), &gone).0), Code::Version);
}

#[test]
fn version_tells_what_is_spoken() {
    let answer = call(&environment("VERSION", ""), br#"{"cniVersion": "1.0.0"}"#, &|_, _, _| unreachable!());
    let expected = json!({"cniVersion": "1.0.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]});
    assert_eq!(answer, Ok(Some(expected)));
}

#[test]
fn what_is_malformed_has_the_code_for_it() {
    let of = |command: &str, arguments: &str, change: &dyn Fn(&mut Value)| {
        let mut input = input("1.0.0");
        change(&mut input);
        code_of(called(&environment(command, arguments), &input, &Answer::InForce).0)
    };
    assert_eq!(of("PUT", POD, &|_| {}), Code::Environment);
    assert_eq!(of("", POD, &|_| {}), Code::Environment);
    assert_eq!(of("ADD", "K8S_POD_NAMESPACE=shop", &|_| {}), Code::Environment);
    assert_eq!(of("ADD", POD, &|input| input["cniVersion"] = json!("0.2.0")), Code::Version);
    assert_eq!(of("ADD", POD, &|input| input["cniVersion"] = json!(1)), Code::Version);
    assert_eq!(of("ADD", POD, &|input| input["prevResult"] = Value::Null), Code::Configuration);
    assert_eq!(of("ADD", POD, &|input| input["socket"] = json!(7)), Code::Configuration);
    for garbage in [&b""[..], b"{", b"[]", b"null", b"\xff", b"{\"cniVersion\": \"1.0.0\"} x"] {
        let outcome = call(&environment("ADD", POD), garbage, &|_, _, _| unreachable!());
        assert_eq!(outcome.expect_err("a failure").code, Code::Decode);
    }
}

proptest! {
    #[test]
    fn no_input_panics(command in "(ADD|CHECK|DEL|VERSION|GC|.{0,4})", arguments in ".{0,40}", input in ".{0,80}") {
        let _ = call(&environment(&command, &arguments), input.as_bytes(), &|_, _, _| Ok(Answer::InForce));
    }
}
