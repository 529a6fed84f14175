//! The daemon and the guest are killed at every point; what runs is adopted,
//! what is half made is cleaned, and in the end nothing is left.

mod daemon;
mod guest;
mod kubelet;
