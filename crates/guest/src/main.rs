//! See the library.

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    kina_guest::main()
}

#[cfg(not(target_os = "linux"))]
fn main() -> std::process::ExitCode {
    use std::io::Write;
    drop(writeln!(std::io::stderr(), "kina-guest runs on Linux only"));
    std::process::ExitCode::FAILURE
}
