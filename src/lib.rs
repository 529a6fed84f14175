//! The kina daemon and its command line.

pub mod cri;
