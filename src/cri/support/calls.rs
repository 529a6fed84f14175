//! The calls of the interface, and what kina does with each.

/// A call of the CRI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its name in the protocol file.
    pub name: &'static str,
    /// What its answer rests on, or that there is none.
    pub answer: Answer,
}

/// How a call is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// As the interface says; in short what it does here.
    Full(&'static str),
    /// With `Unimplemented`, always; why.
    Unimplemented(&'static str),
}

use Answer::{Full, Unimplemented};

const NO_CHECKPOINTS: &str = "neither a machine's state nor that of processes is kept";

const fn call(name: &'static str, answer: Answer) -> Call {
    Call { name, answer }
}

/// The calls of `RuntimeService`, in the order of the interface.
pub const RUNTIME: &[Call] = &[
    call("Version", Full("the runtime's name and version")),
    call("RunPodSandbox", Full("boots the pod's machine and connects it; repeated, it finds the same pod")),
    call("StopPodSandbox", Full("ends everything in the pod and its network; stopping twice succeeds")),
    call("RemovePodSandbox", Full("stops the pod and forgets it; removing twice succeeds")),
    call("PodSandboxStatus", Full("from the last snapshot, with the containers' statuses and a timestamp")),
    call("ListPodSandbox", Full("from snapshots; never waits for a pod")),
    call("StreamPodSandboxes", Full("the same in pieces of about 1 MiB")),
    call("CreateContainer", Full("makes all of the container but its process")),
    call(
        "StartContainer",
        Full("sets the process up and lets it go; what fails ends the container (`StartError`)"),
    ),
    call("StopContainer", Full("the stop signal, then SIGKILL after the timeout; stopping twice succeeds")),
    call("RemoveContainer", Full("kills and forgets it; removing twice succeeds")),
    call("ListContainers", Full("from snapshots; never waits for a pod")),
    call("StreamContainers", Full("the same in pieces of about 1 MiB")),
    call("ContainerStatus", Full("from the last snapshot")),
    call(
        "UpdateContainerResources",
        Full("changes limits of a container that has not ended; what is unset stays"),
    ),
    call("ReopenContainerLog", Full("opens the log's path anew, after whoever rotates has renamed the file")),
    call("ExecSync", Full("at most 16 MiB of output in one answer; the deadline kills the command")),
    call("Exec", Full("a URL that works once, for a minute; SPDY/3.1 or WebSocket")),
    call("Attach", Full("a URL that works once, for a minute; SPDY/3.1 or WebSocket")),
    call("PortForward", Full("a URL that works once, for a minute; SPDY/3.1 or WebSocket")),
    call("ContainerStats", Full("asked of the pod's guest")),
    call("ListContainerStats", Full("asked of all guests at once; running containers only")),
    call("StreamContainerStats", Full("the same in pieces of about 1 MiB")),
    call("PodSandboxStats", Full("asked of the pod's guest")),
    call("ListPodSandboxStats", Full("asked of all guests at once; ready pods only")),
    call("StreamPodSandboxStats", Full("the same in pieces of about 1 MiB")),
    call("UpdateRuntimeConfig", Full("checks the range and logs it; network plugins have their own")),
    call("Status", Full("whether pods can be made and get a network; handlers and their features")),
    call("CheckpointContainer", Unimplemented(NO_CHECKPOINTS)),
    call("CheckpointPod", Unimplemented(NO_CHECKPOINTS)),
    call("RestorePod", Unimplemented(NO_CHECKPOINTS)),
    call(
        "GetContainerEvents",
        Full("until the reader goes; one that is 4096 events behind is told and ended"),
    ),
    call("ListMetricDescriptors", Full("what ListPodSandboxMetrics tells")),
    call("ListPodSandboxMetrics", Full("what pods use, by cAdvisor's names")),
    call("StreamPodSandboxMetrics", Full("the same in pieces of about 1 MiB")),
    call("RuntimeConfig", Full("the cgroup driver: cgroupfs")),
    call("UpdatePodSandboxResources", Full("makes the pod's virtual machine larger where that is possible")),
];

/// The calls of `ImageService`, in the order of the interface.
pub const IMAGE: &[Call] = &[
    call("ListImages", Full("images whose layers are all here")),
    call("StreamImages", Full("the same in pieces of about 1 MiB")),
    call("ImageStatus", Full("an unknown image is an empty answer")),
    call("PullImage", Full("the answer names the image by its id")),
    call("RemoveImage", Full("with all its names; removing twice succeeds")),
    call("ImageFsInfo", Full("the file systems of images and of writable layers")),
];
