//! Ids, specs, states and pure transitions of pods and containers. No IO, no
//! async, no clock: a time comes in as data.

pub mod container;
mod id;
pub mod pod;
mod resolve;
mod signal;
mod spec;
#[cfg(any(test, feature = "test-support"))]
pub mod test_support;

pub use container::{
    ContainerDenied, ContainerEffect, ContainerEvent, ContainerState, Exit, ExitReason, Nanos, Running, Seen,
};
pub use id::{ContainerId, Digest, ParseIdError, PodId};
pub use pod::{MachineSize, PodDenied, PodEffect, PodEvent, PodState, Ready, Reality, StopCause};
pub use resolve::{ImageDefaults, Process, User, resolve_process};
pub use signal::Signal;
pub use spec::{
    AppArmor, ContainerImage, ContainerMetadata, ContainerPid, ContainerSpec, Device, Dns, IdRange,
    ImageVolume, Mount, MountSource, PidMode, Placement, PodMetadata, PodNamespaces, PodSpec, PortMapping,
    Propagation, Resources, RunAs, Seccomp, Security, SelinuxOptions, SpecError, UserNamespace,
};
