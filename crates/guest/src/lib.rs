//! The process that runs a pod's containers.
