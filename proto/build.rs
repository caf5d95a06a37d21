//! Compiles the `.proto` files without a system `protoc`.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "authorization",
        "egress",
        "issue",
        "network_policy",
        "object",
        "report",
        "traffic",
        "discovery",
        "operator",
        "replica",
        "state",
    ]
    .map(|name| format!("weft/v1/{name}.proto"));
    println!("cargo:rerun-if-changed=weft/v1");
    println!("cargo:rerun-if-changed=spiffe");
    let descriptors = protox::compile(files, ["."])?;
    let out = std::env::var("OUT_DIR")?;
    std::fs::write(Path::new(&out).join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    // Apart, since the control plane's reflection shows the others.
    let workload = protox::compile(["spiffe/workload.proto"], ["."])?;
    tonic_prost_build::configure().bytes(".").compile_fds(workload)?;
    Ok(())
}
