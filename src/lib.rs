//! The kina daemon and its command line.
