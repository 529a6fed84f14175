//! A caller that does what the kubelet does: step by step, each repeated until
//! it succeeds.

use kina::cri::v1;
use tonic::{Code, Status};

use crate::harness::{Cri, Daemon, script, wait_until};

/// Ends at once when it is asked to.
const POLITE: &str = "trap 'exit 0' TERM; echo up; while :; do sleep 0.05; done";
/// Has to be killed.
const STUBBORN: &str = "trap '' TERM; echo up; while :; do sleep 1; done";

/// What is to be done, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    RunPod,
    CreateFirst,
    StartFirst,
    CreateSecond,
    StartSecond,
    StopFirst,
    RemoveFirst,
    StopPod,
    RemovePod,
}

impl Step {
    /// A pod's whole life. Its second container runs when it is stopped.
    pub(super) const ALL: [Self; 9] = [
        Self::RunPod,
        Self::CreateFirst,
        Self::StartFirst,
        Self::CreateSecond,
        Self::StartSecond,
        Self::StopFirst,
        Self::RemoveFirst,
        Self::StopPod,
        Self::RemovePod,
    ];

    /// A life that a removal ends, without a stop before it.
    pub(super) const ABRUPT: [Self; 5] =
        [Self::RunPod, Self::CreateFirst, Self::StartFirst, Self::CreateSecond, Self::RemovePod];
}

/// What the caller knows.
#[derive(Debug)]
pub(super) struct Kubelet {
    name: String,
    pod: String,
    first: String,
    second: String,
}

/// What a name stands for in a list.
fn named<'a>(containers: &'a [v1::Container], name: &str) -> Vec<&'a v1::Container> {
    containers
        .iter()
        .filter(|container| container.metadata.as_ref().is_some_and(|metadata| metadata.name == name))
        .collect()
}

impl Kubelet {
    /// Of a pod with that name.
    pub(super) fn of(name: &str) -> Self {
        Self { name: name.to_owned(), pod: String::new(), first: String::new(), second: String::new() }
    }

    pub(super) async fn perform(&mut self, step: Step, cri: &Cri) -> Result<(), Status> {
        match step {
            Step::RunPod => self.pod = cri.run_pod(&cri.pod(&self.name)).await?,
            Step::CreateFirst => self.first = cri.create(&self.pod, script("first", POLITE)).await?,
            Step::StartFirst => cri.start(&self.first).await?,
            Step::CreateSecond => self.second = cri.create(&self.pod, script("second", STUBBORN)).await?,
            Step::StartSecond => cri.start(&self.second).await?,
            Step::StopFirst => cri.stop(&self.first, 30).await?,
            Step::RemoveFirst => cri.remove(&self.first).await?,
            Step::StopPod => cri.stop_pod(&self.pod).await?,
            Step::RemovePod => cri.remove_pod(&self.pod).await?,
        }
        Ok(())
    }

    /// What the daemon tells is what is there, and fits the step that was
    /// interrupted.
    pub(super) async fn check(&self, interrupted: Step, daemon: &Daemon) {
        let cri = daemon.cri();
        let pods = cri.pods(None).await;
        let containers = cri.containers(None).await;
        assert!(pods.len() <= 1, "{pods:?}");
        let ready = pods.iter().find(|pod| pod.state() == v1::PodSandboxState::SandboxReady);
        for name in ["first", "second"] {
            assert!(named(&containers, name).len() <= 1, "{containers:?}");
        }
        let states = |name: &str| named(&containers, name).first().map(|container| container.state());
        use v1::ContainerState::{ContainerCreated, ContainerExited, ContainerRunning};
        let (first, second) = (states("first"), states("second"));
        let fits = match interrupted {
            Step::RunPod => containers.is_empty(),
            Step::CreateFirst => ready.is_some() && matches!(first, None | Some(ContainerCreated)),
            Step::StartFirst => matches!(first, Some(ContainerCreated | ContainerRunning)),
            Step::CreateSecond => {
                first == Some(ContainerRunning) && matches!(second, None | Some(ContainerCreated))
            }
            Step::StartSecond => {
                first == Some(ContainerRunning) && matches!(second, Some(ContainerCreated | ContainerRunning))
            }
            Step::StopFirst => {
                matches!(first, Some(ContainerRunning | ContainerExited)) && second == Some(ContainerRunning)
            }
            Step::RemoveFirst => {
                matches!(first, None | Some(ContainerExited)) && second == Some(ContainerRunning)
            }
            Step::StopPod => !pods.is_empty(),
            Step::RemovePod => ready.is_none(),
        };
        assert!(fits, "interrupted at {interrupted:?}: {pods:?} {containers:?}");
        if !matches!(interrupted, Step::RunPod | Step::StopPod | Step::RemovePod) {
            assert!(ready.is_some(), "interrupted at {interrupted:?}: {pods:?}");
        }
        for pod in &pods {
            let is_ready = pod.state() == v1::PodSandboxState::SandboxReady;
            if is_ready {
                assert!(daemon.place.guest(&pod.id).is_some_and(crate::harness::lives), "{pod:?}");
            } else {
                wait_until("no process in a pod that is NOTREADY", async || {
                    daemon.place.processes(&pod.id).is_empty()
                })
                .await;
            }
            // In a pod that is being torn down a container ends at any moment.
            for container in
                containers.iter().filter(|container| is_ready && container.pod_sandbox_id == pod.id)
            {
                match container.state() {
                    ContainerRunning => {
                        assert_eq!(cri.sh(&container.id, "echo here").await, "here\n", "{container:?}");
                    }
                    // Whether it has a process is its start's affair.
                    ContainerCreated => {}
                    // Its removal may be under way again, and end meanwhile.
                    _ => match cri.find_container_pid(&container.id).await {
                        Ok(pid) => assert_eq!(daemon.place.process(&pod.id, pid), None, "{container:?}"),
                        Err(status) => assert_eq!(status.code(), Code::NotFound, "{status}"),
                    },
                }
            }
        }
        if pods.is_empty() {
            assert_eq!(containers, []);
        }
    }
}
