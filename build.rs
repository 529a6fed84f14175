//! Compiles the CRI and the admin interface (there is no `protoc` on the machine,
//! so protox does it) and stamps the version.

use std::error::Error;
use std::path::Path;
use std::process::Command;

fn main() -> Result<(), Box<dyn Error>> {
    compile("proto/cri", "api.proto")?;
    compile("proto/admin", "admin.proto")?;
    stamp_version();
    Ok(())
}

/// Generates messages, servers and clients. Maps become ordered ones, as the
/// model has them; messages that hold secrets get a `Debug` by hand.
fn compile(include: &str, file: &str) -> Result<(), Box<dyn Error>> {
    let path = Path::new(include).join(file);
    println!("cargo:rerun-if-changed={}", path.display());
    let descriptors = protox::compile([&path], [include])?;
    tonic_prost_build::configure()
        .btree_map(".")
        .skip_debug([".runtime.v1.AuthConfig", ".runtime.v1.KeyValue", ".kina.admin.v1.Credentials"])
        .compile_fds(descriptors)?;
    Ok(())
}

/// Sets `KINA_VERSION`: the package's version, with the commit where this is a
/// git work tree and git is at hand.
fn stamp_version() {
    println!("cargo:rerun-if-changed=build.rs");
    // The log of HEAD changes with every commit, HEAD itself with the branch.
    for name in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", name]).filter(|path| Path::new(path).exists()) {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    let version = env!("CARGO_PKG_VERSION");
    match git(&["rev-parse", "--short=12", "HEAD"]) {
        Some(commit) => println!("cargo:rustc-env=KINA_VERSION={version}+{commit}"),
        None => println!("cargo:rustc-env=KINA_VERSION={version}"),
    }
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| text.to_owned())
}
