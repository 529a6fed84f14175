//! What is different in a virtual machine, or only there.

mod faults;
mod forging;
mod isolation;
mod soak;
mod streams;
mod volumes;
