//! What `make demo` shows a newcomer: every claim holds.

use std::process::Command;

use serde_json::Value;

#[test]
fn every_claim_of_the_demo_holds() {
    weft_tests::require(&["curl"]);
    let output = Command::new(weft_tests::weft("weft")).args(["demo", "--rootless", "--json"]).output().expect("weft runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}\n{said}", String::from_utf8_lossy(&output.stdout));
    let told: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let claims = told["claims"].as_array().expect("a list");
    assert!(claims.len() == 9 && claims.iter().all(|claim| claim["ok"] == true), "{told:#}");
}
