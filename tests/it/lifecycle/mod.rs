//! What pods and containers do when nothing is killed.

mod calls;
mod cdi;
mod exec;
mod images;
mod mounts;
mod output;
mod process;
mod resources;
mod sharing;
mod user_namespaces;
