//! The kina daemon and its command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    kina::cli::main()
}
