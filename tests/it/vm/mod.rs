//! What is different in a virtual machine, or only there.

mod faults;
mod isolation;
mod logs;
mod volumes;
