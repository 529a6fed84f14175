//! Processes beside the first.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use kina_cgroup::Group;
use kina_launch::{ExecPlan, Stdio};

use super::signals::exit_code;
use super::{Ground, Machine, Phase, cgroup, launch, locked};
use crate::error::{Code, Problem};
use crate::resources::Process;
use crate::runtime::spec;
use crate::runtime::streams::Given;
use crate::settings::Trap;

/// A process other than the first.
pub(super) struct Extra {
    configuration: Process,
    given: Option<Given>,
    pub(super) pidfd: Option<Arc<OwnedFd>>,
}

impl Machine {
    /// Prepares one more process.
    pub(in crate::runtime) fn create_process(
        &self,
        process: &str,
        configuration: Process,
        given: Given,
    ) -> Result<(), Problem> {
        let _turn = locked(&self.turn);
        let mut inner = locked(&self.inner);
        if !matches!(inner.phase, Phase::Running | Phase::Booted) {
            return Err(Problem::new(Code::InvalidState, "cannot exec: container is not running"));
        }
        let extra = Extra { configuration, given: Some(given), pidfd: None };
        if inner.extras.insert(process.to_owned(), extra).is_some() {
            return Err(Problem::invalid(format!("process {process} already exists")));
        }
        Ok(())
    }

    pub(super) fn start_extra(self: &Arc<Self>, process: &str) -> Result<(), Problem> {
        if self.settings()?.trapped(Trap::ExecFails) {
            return Err(Problem::internal("failed to exec process: the simulator was told so"));
        }
        let missing = || Problem::new(Code::NotFound, format!("process with id {process}"));
        let (configuration, given, first) = {
            let mut inner = locked(&self.inner);
            let first = inner.booted.as_ref().map(|booted| Arc::clone(&booted.pidfd)).ok_or_else(missing)?;
            let extra = inner.extras.get_mut(process).ok_or_else(missing)?;
            (extra.configuration.clone(), extra.given.take().ok_or_else(missing)?, first)
        };
        let group = self.group_of_first()?;
        let container = locked(&self.spec).clone().ok_or_else(missing)?;
        let own_kernel = matches!(self.ground, Ground::OwnKernel(_));
        let capabilities = spec::capabilities(&self.bundle.configuration, own_kernel)?;
        let made = spec::process(&configuration, &capabilities, &self.rootfs())?;
        let (stdio, given) =
            if configuration.terminal { (Stdio::Terminal, Some(given)) } else { (given.directly()?, None) };
        let plan = ExecPlan { container: &container, process: made, stdio, cgroup: Some(group) };
        let created = self.launcher.exec(first.as_fd(), plan).map_err(|error| launch(&error))?;
        let pidfd = Arc::new(created.pidfd);
        let copies = match (created.terminal, given) {
            (Some(terminal), Some(given)) => Some(given.terminal(terminal, None)?),
            (_, _) => None,
        };
        let started = created.start.start().map_err(|error| launch(&error));
        if let Some(extra) = locked(&self.inner).extras.get_mut(process) {
            extra.pidfd = Some(Arc::clone(&pidfd));
        }
        let (machine, process) = (Arc::clone(self), process.to_owned());
        std::thread::spawn(move || {
            let code = exit_code(&pidfd);
            if let Some(copies) = copies {
                copies.wait();
            }
            // In this order: who waits finds one or the other.
            machine.tell_exit(&process, code);
            locked(&machine.inner).extras.remove(&process);
        });
        started
    }

    /// The control group that the first process is in: it may have moved into one below the
    /// machine's, and others join it there (`ManagedProcess.swift`, `loadFromPid`).
    fn group_of_first(&self) -> Result<Group, Problem> {
        let pid = locked(&self.inner).booted.as_ref().map_or(0, |booted| booted.pid);
        let table = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let paths = table.lines().filter_map(|line| line.splitn(3, ':').nth(2));
        let below = paths.filter(|path| path.starts_with(self.group.path())).max_by_key(|path| path.len());
        let Some(path) = below else {
            return Ok(self.group.clone());
        };
        let group = self.group.hierarchy().group(path).map_err(|error| cgroup(&error))?;
        // The machine may have made it in the hierarchies only that it sees.
        group.create().map_err(|error| cgroup(&error))?;
        Ok(group)
    }
}
