//! The machine driver that runs a pod on the node's own kernel.
