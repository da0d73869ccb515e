//! Generates the messages of `proto/`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["packets.proto"], ["proto"])?;
    let mut config = prost_build::Config::new();
    // A probe's accounts are part of what an engine records.
    config.type_attribute("v1.Accounts", "#[derive(serde::Serialize, serde::Deserialize)]");
    config.bytes(["."]).compile_fds(files)?;
    Ok(())
}
