//! Capabilities by name and number.

use std::collections::HashSet;

use oci_spec::runtime::{Capability, LinuxCapabilities};

use crate::order::{CapabilitySets, Warning};

/// `linux/capability.h`, in the order of the numbers.
const NUMBERED: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// How many capabilities are known here.
pub(crate) const COUNT: usize = NUMBERED.len();

/// The sets as bits, without what is not in `available`; that is warned of, once each.
pub(crate) fn sets(
    capabilities: &LinuxCapabilities,
    available: u64,
    warnings: &mut Vec<Warning>,
) -> CapabilitySets {
    let mut missing = 0;
    let mut bits = |set: &Option<HashSet<Capability>>| {
        let wanted = NUMBERED
            .iter()
            .enumerate()
            .filter(|(_, capability)| set.as_ref().is_some_and(|set| set.contains(*capability)))
            .fold(0_u64, |bits, (number, _)| bits | 1 << number);
        missing |= wanted & !available;
        wanted & available
    };
    let sets = CapabilitySets {
        bounding: bits(capabilities.bounding()),
        effective: bits(capabilities.effective()),
        permitted: bits(capabilities.permitted()),
        inheritable: bits(capabilities.inheritable()),
        ambient: bits(capabilities.ambient()),
    };
    for (number, capability) in NUMBERED.iter().enumerate() {
        if missing & 1 << number != 0 {
            warnings.push(Warning::UnavailableCapability { name: format!("CAP_{capability}") });
        }
    }
    sets
}

/// What the calling process may give away: its permitted set; in a user namespace of its own a
/// process may give away all that the kernel knows.
pub(crate) fn available(user_namespace: bool) -> std::io::Result<u64> {
    if user_namespace {
        let last: u32 = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")?
            .trim()
            .parse()
            .map_err(|_| std::io::ErrorKind::InvalidData)?;
        return Ok(u64::MAX >> (63 - last.min(63)));
    }
    let status = std::fs::read_to_string("/proc/thread-self/status")?;
    let set = |name: &str| {
        status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .and_then(|value| u64::from_str_radix(value.trim(), 16).ok())
            .ok_or(std::io::ErrorKind::InvalidData)
    };
    Ok(set("CapPrm:")? & set("CapBnd:")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernels() {
        // From linux/capability.h: the ends and a few between.
        let number = |wanted: Capability| NUMBERED.iter().position(|known| *known == wanted);
        assert_eq!(number(Capability::Chown), Some(0));
        assert_eq!(number(Capability::NetAdmin), Some(12));
        assert_eq!(number(Capability::SysAdmin), Some(21));
        assert_eq!(number(Capability::SysResource), Some(24));
        assert_eq!(number(Capability::Syslog), Some(34));
        assert_eq!(number(Capability::CheckpointRestore), Some(40));
    }

    #[test]
    fn what_is_not_available_is_left_out_and_told_once() {
        let wanted: HashSet<_> = [Capability::Chown, Capability::SysResource].into();
        let mut capabilities = LinuxCapabilities::default();
        capabilities.set_bounding(Some(wanted.clone()));
        capabilities.set_effective(Some(wanted));
        let mut warnings = Vec::new();
        let sets = sets(&capabilities, 1, &mut warnings);
        assert_eq!((sets.bounding, sets.effective), (1, 1));
        let name = "CAP_SYS_RESOURCE".to_owned();
        let expected = Warning::UnavailableCapability { name };
        assert!(warnings.contains(&expected));
    }
}
