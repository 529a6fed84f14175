//! See the library.

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    kina_apple_sim::main()
}

#[cfg(not(target_os = "linux"))]
fn main() -> std::process::ExitCode {
    use std::io::Write;
    drop(writeln!(std::io::stderr(), "the simulator of `container` runs on Linux only"));
    std::process::ExitCode::FAILURE
}
