//! Compiles the guest protocol; there is no `protoc` on the machine, so protox does it.

use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let include = Path::new("../../proto/guest");
    let file = include.join("guest.proto");
    println!("cargo:rerun-if-changed={}", file.display());
    let descriptors = protox::compile([&file], [include])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
