//! Pod actors against a fake node, fake machines and fake guests: failure
//! injected at every step, calls given up, stops that overtake starts, restarts
//! of the daemon.

mod lifecycle;
mod recovery;
mod support;
