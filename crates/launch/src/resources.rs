//! Limits, from the spec's form to the control group's.

use kina_cgroup::{DeviceKind, DeviceRule, HugepageLimit, Resources, ThrottleDevice};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, LinuxResources, LinuxThrottleDevice};

use crate::Error;

/// Converts `linux.resources`. For updates of a running container too.
///
/// # Errors
/// [`Error::Refused`] for a field that cannot be honoured.
pub fn resources(spec: &LinuxResources) -> Result<Resources, Error> {
    let refused = |field: &'static str| Err(Error::refused(field, "not supported"));
    if spec.network().is_some() {
        return refused("linux.resources.network");
    }
    if spec.rdma().as_ref().is_some_and(|rdma| !rdma.is_empty()) {
        return refused("linux.resources.rdma");
    }
    let mut out = Resources::default();
    if let Some(cpu) = spec.cpu() {
        if cpu.realtime_runtime().is_some_and(|value| value != 0) {
            return refused("linux.resources.cpu.realtimeRuntime");
        }
        if cpu.realtime_period().is_some_and(|value| value != 0) {
            return refused("linux.resources.cpu.realtimePeriod");
        }
        out.cpu_shares = cpu.shares();
        out.cpu_quota = cpu.quota();
        out.cpu_period = cpu.period();
        out.cpu_burst = cpu.burst();
        out.cpu_idle = cpu.idle();
        out.cpuset_cpus = cpu.cpus().clone();
        out.cpuset_mems = cpu.mems().clone();
    }
    if let Some(memory) = spec.memory() {
        if memory.kernel().is_some_and(|value| value > 0) {
            return refused("linux.resources.memory.kernel");
        }
        if memory.kernel_tcp().is_some_and(|value| value > 0) {
            return refused("linux.resources.memory.kernelTCP");
        }
        out.memory_limit = memory.limit();
        out.memory_swap_limit = memory.swap();
        out.memory_reservation = memory.reservation();
        out.memory_swappiness = memory.swappiness();
        out.oom_kill_disable = memory.disable_oom_killer();
    }
    out.pids_limit = spec.pids().as_ref().map(|pids| pids.limit());
    for limit in spec.hugepage_limits().iter().flatten() {
        out.hugepage_limits
            .push(HugepageLimit { page_size: limit.page_size().clone(), limit: limit.limit() });
    }
    if let Some(block) = spec.block_io() {
        if block.leaf_weight().is_some() {
            return refused("linux.resources.blockIO.leafWeight");
        }
        if block.weight_device().as_ref().is_some_and(|devices| !devices.is_empty()) {
            return refused("linux.resources.blockIO.weightDevice");
        }
        out.blkio_weight = block.weight();
        out.throttle_read_bps = throttles(block.throttle_read_bps_device())?;
        out.throttle_write_bps = throttles(block.throttle_write_bps_device())?;
        out.throttle_read_iops = throttles(block.throttle_read_iops_device())?;
        out.throttle_write_iops = throttles(block.throttle_write_iops_device())?;
    }
    for rule in spec.devices().iter().flatten() {
        out.devices.push(device(rule)?);
    }
    for (file, value) in spec.unified().iter().flatten() {
        out.unified.insert(file.clone(), value.clone());
    }
    Ok(out)
}

fn throttles(devices: &Option<Vec<LinuxThrottleDevice>>) -> Result<Vec<ThrottleDevice>, Error> {
    let number = |value: i64| {
        u32::try_from(value).map_err(|_| {
            let reason = format!("{value} is not a device number");
            Error::refused("linux.resources.blockIO", &reason)
        })
    };
    devices
        .iter()
        .flatten()
        .map(|device| {
            Ok(ThrottleDevice {
                major: number(device.major())?,
                minor: number(device.minor())?,
                rate: device.rate(),
            })
        })
        .collect()
}

fn device(rule: &LinuxDeviceCgroup) -> Result<DeviceRule, Error> {
    const FIELD: &str = "linux.resources.devices";
    let kind = match rule.typ().unwrap_or(LinuxDeviceType::A) {
        LinuxDeviceType::A => DeviceKind::All,
        LinuxDeviceType::B => DeviceKind::Block,
        LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Character,
        LinuxDeviceType::P => return Err(Error::refused(FIELD, "a FIFO is not a device")),
    };
    // -1 is how some write "any".
    let number = |number: Option<i64>| match number {
        None | Some(-1) => Ok(None),
        Some(value) => u32::try_from(value)
            .map(Some)
            .map_err(|_| Error::refused(FIELD, &format!("{value} is not a device number"))),
    };
    let access = rule.access().as_deref().unwrap_or("rwm");
    if let Some(bad) = access.chars().find(|letter| !"rwm".contains(*letter)) {
        return Err(Error::refused(FIELD, &format!("{bad:?} is not an access")));
    }
    Ok(DeviceRule {
        allow: rule.allow(),
        kind,
        major: number(rule.major())?,
        minor: number(rule.minor())?,
        read: access.contains('r'),
        write: access.contains('w'),
        mknod: access.contains('m'),
    })
}
