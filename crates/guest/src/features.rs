//! What this kernel can do, asked once.

use std::path::Path;

use kina_cgroup::{Hierarchy, Layout};
use kina_guest_api::v1;

/// Probes the kernel. In a machine of the pod's own, user namespaces are tried, on the file
/// system that `state` is on; on the node's kernel the daemon has tried them once for all.
pub(crate) fn probe(hierarchy: Option<&Hierarchy>, state: Option<&Path>) -> v1::Features {
    let cgroup_mode = match hierarchy.map(Hierarchy::layout) {
        Some(Layout::V1) => v1::CgroupMode::V1,
        Some(Layout::Hybrid) => v1::CgroupMode::Hybrid,
        Some(Layout::V2) => v1::CgroupMode::V2,
        None => v1::CgroupMode::Unspecified,
    };
    v1::Features {
        user_namespaces: number("/proc/sys/user/max_user_namespaces").is_some_and(|n| n > 0)
            && state.is_none_or(|state| kina_userns::probe(state).is_ok()),
        apparmor: crate::apparmor::enabled(),
        selinux: crate::selinux::enabled(),
        seccomp: text("/proc/sys/kernel/seccomp/actions_avail").contains("errno"),
        recursive_read_only: has_mount_setattr(),
        cgroup_mode: cgroup_mode.into(),
    }
}

/// The kernel's boot id.
pub(crate) fn boot_id() -> String {
    text("/proc/sys/kernel/random/boot_id")
}

fn text(path: &str) -> String {
    std::fs::read_to_string(path).map_or_else(|_| String::new(), |text| text.trim().to_owned())
}

fn number(path: &str) -> Option<u64> {
    text(path).parse().ok()
}

#[allow(unsafe_code, reason = "a probe that no crate has")]
fn has_mount_setattr() -> bool {
    // SAFETY: no pointer is given; a kernel that has the call refuses the size.
    let result = unsafe {
        libc::syscall(libc::SYS_mount_setattr, -1, std::ptr::null::<u8>(), 0, std::ptr::null::<u8>(), 0)
    };
    result == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
}
