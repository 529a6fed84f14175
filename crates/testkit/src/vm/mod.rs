//! Machines in software: QEMU without KVM, a kernel of Debian's, and the guest
//! as the first process of an initramfs of `kina-machine-qemu`'s.
//!
//! ```text
//! test ──▶ Machine ──┬─▶ qemu             microvm or virt, TCG, memory in a memfd
//!            │       ├─▶ kina-vsock       ◀── VsockConnector (gRPC)
//!            │       └─▶ virtiofsd        ◀── a shared folder
//!            └─ drop: all of them killed, the temporary folder removed
//! ```
//!
//! What it takes is installed by `cargo xtask setup test` and found by the
//! variables that xtask sets, or below the target folder ([`Prerequisites`]).

mod machine;
mod prerequisites;
mod process;
mod vsock;

pub use machine::{Boot, Config, GUEST_PORT, Machine, SHARE_IN_GUEST};
pub use prerequisites::{Prerequisites, Processor, arm64_busybox};
pub use process::Process;
pub use vsock::VsockConnector;
