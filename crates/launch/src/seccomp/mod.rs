//! Seccomp profiles as the OCI runtime specification writes them, compiled to a filter.
//!
//! The filter is a binary search over ranges of system call numbers, one per architecture, so
//! that a profile of several hundred names becomes a short program. It decides as libseccomp
//! does, which is what profiles are written for:
//!
//! - a system call of an architecture that the profile does not list kills the process;
//! - an unconditional rule outranks conditional ones of the same system call;
//! - conditions on different arguments must all hold, several on one argument are alternatives;
//! - names that an architecture does not have are skipped.
//!
//! If the default action refuses, a system call newer than every one that the profile names
//! answers ENOSYS (the C library then falls back to an older one), as runc arranges.

mod compile;
mod table;

pub(crate) use compile::{Filter, Instruction, compile};

#[cfg(test)]
mod tests;
