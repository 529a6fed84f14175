//! Compiles the CRI and admin interfaces.
fn main() {}
