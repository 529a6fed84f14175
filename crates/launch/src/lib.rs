//! Starts one process in namespaces, a cgroup and a root filesystem, confined by an OCI runtime spec.
