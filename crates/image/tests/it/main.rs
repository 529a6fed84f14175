//! The store against a registry on loopback.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod archives;
mod authentication;
mod certificates;
mod content;
mod credentials;
mod fixtures;
mod hostile;
mod hosts;
mod keeping;
mod kill;
mod registry;
mod resume;
mod sharing;
mod space;
mod store;
mod verify;
