//! The machines of pods, for the command line.

use kina_machine::MachineState;
use kina_model::{PodState, StopCause};

use crate::admin::v1;
use crate::error::Error;
use crate::machines::MachineReport;
use crate::runtime::Runtime;

/// The longest console that is shown, in bytes.
const CONSOLE_LIMIT: usize = 1 << 20;

pub(super) async fn list(runtime: &Runtime, pod: &str) -> Result<v1::ListMachinesResponse, Error> {
    let reports = if pod.is_empty() { runtime.machines().await } else { vec![runtime.machine(pod).await?] };
    Ok(v1::ListMachinesResponse { machines: reports.into_iter().map(machine).collect() })
}

fn machine(report: MachineReport) -> v1::Machine {
    let MachineReport { pod, state, details, problem } = report;
    let metadata = &pod.spec.metadata;
    let (ready, ended) = match &pod.state {
        PodState::Ready(ready) => (Some(ready), String::new()),
        PodState::Stopping(cause) | PodState::StopFailed { cause, .. } | PodState::Stopped(cause) => {
            (None, end(cause))
        }
        PodState::Starting | PodState::Removing | PodState::Removed => (None, String::new()),
    };
    let size = ready.and_then(|ready| ready.size);
    v1::Machine {
        pod: pod.id.to_string(),
        namespace: metadata.namespace.clone(),
        name: metadata.name.clone(),
        driver: pod.machine.to_owned(),
        state: match state {
            Some(MachineState::Created) => "created",
            Some(MachineState::Running) => "running",
            Some(MachineState::Stopped) => "ended",
            None => "none",
        }
        .to_owned(),
        memory_bytes: size.map_or(0, |size| size.memory_bytes),
        cpus: size.map_or(0, |size| size.cpus),
        boot_id: ready.map(|ready| ready.boot_id.clone()).unwrap_or_default(),
        kernel: ready.map(|ready| ready.kernel.clone()).unwrap_or_default(),
        ended,
        processes: details
            .processes
            .into_iter()
            .map(|process| v1::MachineProcess {
                role: process.role.to_owned(),
                pid: process.pid,
                memory_bytes: process.memory_bytes,
                cpu_nanos: process.cpu_nanos,
            })
            .collect(),
        facts: details
            .facts
            .into_iter()
            .map(|(name, value)| v1::MachineFact { name: name.to_owned(), value })
            .collect(),
        problem,
    }
}

fn end(cause: &StopCause) -> String {
    match cause {
        StopCause::Asked => "the pod was stopped".to_owned(),
        StopCause::StartFailed(reason) => format!("the pod did not start: {reason}"),
        StopCause::MachineEnded(reason) => reason.clone(),
        StopCause::Rebooted => "the node was rebooted".to_owned(),
    }
}

pub(super) async fn console(
    runtime: &Runtime,
    request: v1::MachineConsoleRequest,
) -> Result<v1::MachineConsoleResponse, Error> {
    let limit = usize::try_from(request.limit_bytes).unwrap_or(usize::MAX).min(CONSOLE_LIMIT);
    let (pod, console) = runtime.machine_console(&request.pod, limit).await?;
    Ok(v1::MachineConsoleResponse { pod: pod.to_string(), console })
}
