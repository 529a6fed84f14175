//! What is different in a virtual machine, or only there.

mod apparmor;
mod faults;
mod forging;
mod isolation;
mod soak;
mod streams;
mod volumes;
