//! What a machine uses.

use std::fs;

use super::{Machine, cgroup, locked};
use crate::error::{Code, Problem};
use crate::resources::Stats;
use crate::settings::Trap;

impl Machine {
    /// Figures.
    pub(in crate::runtime) fn stats(&self) -> Result<Stats, Problem> {
        let _turn = locked(&self.turn);
        if self.settings()?.trapped(Trap::StatsFail) {
            return Err(Problem::internal("the simulator was told so"));
        }
        let pid = locked(&self.inner).booted.as_ref().map(|booted| booted.pid);
        let Some(pid) = pid else {
            return Err(Problem::new(Code::InvalidState, "container is not running"));
        };
        let used = self.group.stats().map_err(|error| cgroup(&error))?;
        let (received, sent) = card_bytes(pid);
        let io = self.group.block_devices().map_err(|error| cgroup(&error))?;
        Ok(Stats {
            id: self.id().to_owned(),
            memory_usage_bytes: used.memory_usage,
            memory_limit_bytes: used.memory_limit,
            cpu_usage_usec: used.cpu_usage_ns.map(|nanoseconds| nanoseconds / 1000),
            network_rx_bytes: Some(received),
            network_tx_bytes: Some(sent),
            block_read_bytes: Some(io.iter().map(|device| device.read_bytes).sum()),
            block_write_bytes: Some(io.iter().map(|device| device.written_bytes).sum()),
            num_processes: used.pids.or_else(|| self.group.processes().ok().map(|all| all.len() as u64)),
        })
    }
}

/// Bytes that a machine's cards have received and sent.
fn card_bytes(pid: i32) -> (u64, u64) {
    let table = fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    table.lines().filter_map(|line| line.split_once(':')).filter(|(name, _)| name.trim() != "lo").fold(
        (0, 0),
        |(received, sent), (_, figures)| {
            let figures: Vec<u64> =
                figures.split_whitespace().map(|figure| figure.parse().unwrap_or(0)).collect();
            let figure = |index: usize| figures.get(index).copied().unwrap_or(0);
            (received + figure(0), sent + figure(8))
        },
    )
}
