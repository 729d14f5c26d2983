//! Generates the agent's messages and service from `proto/`, without protoc.

#[cfg(not(feature = "agent"))]
fn main() {}

#[cfg(feature = "agent")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    ttrpc_codegen::Codegen::new()
        .input("proto/agent.proto")
        .input("proto/storage.proto")
        .include("proto")
        .rust_protobuf()
        .customize(ttrpc_codegen::Customize {
            async_all: true,
            ..Default::default()
        })
        .rust_protobuf_customize(ttrpc_codegen::ProtobufCustomize::default().lite_runtime(true))
        .run()?;
    // The generated files begin with inner attributes, so they can be modules but not included.
    let modules = std::path::Path::new(&std::env::var("OUT_DIR")?).join("modules.rs");
    std::fs::write(
        modules,
        "pub mod agent;\npub mod agent_ttrpc;\npub mod storage;\n",
    )?;
    Ok(())
}
