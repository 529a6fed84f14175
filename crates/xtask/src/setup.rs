//! `cargo xtask setup`: what the tasks need beyond Rust, installed where missing.
//!
//! Quick and without network when everything is there. Nothing is started, and
//! nothing that is there is changed.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::shell::Workspace;
use crate::{debian, kernel, tools};

/// What a set of tasks needs.
pub(crate) struct Group {
    /// The name on the command line.
    name: &'static str,
    /// Packages of the Debian archive.
    packages: &'static [&'static str],
    /// Programs that PyPI carries.
    wheels: &'static [&'static tools::Wheel],
    /// Programs that are compiled.
    crates: &'static [&'static tools::Crate],
    /// Whether machines are booted, which takes a kernel.
    kernel: bool,
    /// Whether arm64 ones are.
    arm64_kernel: bool,
}

/// Needed to compile anything here: C code in dependencies, the static C library.
const COMPILE: &[&str] = &["gcc", "libc6-dev"];

/// For `cargo xtask demo`: the content of its image, and a registry to pull it from.
pub(crate) const DEMO: Group = Group {
    name: "demo",
    packages: &["busybox-static", "docker-registry"],
    wheels: &[],
    crates: &[],
    kernel: false,
    arm64_kernel: false,
};

/// For `cargo xtask test`.
pub(crate) const TEST: Group = Group {
    name: "test",
    packages: &[
        // Judges the unit of kina's service.
        "systemd",
        // And Homebrew's formula.
        "ruby",
        // Content of test images, and where they are pulled from.
        "busybox-static",
        "docker-registry",
        // Oracles: EROFS images and container confinement.
        "erofs-utils",
        "runc",
        // Network namespaces, and what is in them.
        "iproute2",
        "nftables",
        "containernetworking-plugins",
        // Compiles the AppArmor profiles of containers, for whatever kernel.
        "apparmor",
        // And SELinux policies.
        "secilc",
        // Machines, and the modules of their kernel.
        "qemu-system-x86",
        "kmod",
        "xz-utils",
        // To compile what serves them.
        "libcap-ng-dev",
        "libseccomp-dev",
        "pkg-config",
        // To install ready-made tools.
        "python3",
        "python3-venv",
    ],
    wheels: &[&tools::NEXTEST, &tools::DENY],
    crates: &[&tools::VIRTIOFSD],
    kernel: true,
    arm64_kernel: false,
};

/// For comparing with containerd.
pub(crate) const BENCH: Group = Group {
    name: "bench",
    packages: &["busybox-static", "containerd", "containernetworking-plugins", "iproute2", "runc", "strace"],
    wheels: &[],
    crates: &[],
    kernel: false,
    arm64_kernel: false,
};

/// For `cargo xtask macos`.
pub(crate) const MACOS: Group = Group {
    name: "macos",
    packages: &["debian-archive-keyring", "python3", "python3-venv"],
    wheels: &[&tools::ZIG, &tools::ZIGBUILD],
    crates: &[],
    kernel: false,
    arm64_kernel: false,
};

/// To compile the guest of arm64 machines on another one: its C library and linker.
pub(crate) const ARM64_COMPILER: Group = Group {
    name: "arm64-compiler",
    packages: &["debian-archive-keyring", "gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
    wheels: &[],
    crates: &[],
    kernel: false,
    arm64_kernel: false,
};

/// For an emulated arm64 machine to boot it in.
pub(crate) const ARM64_MACHINE: Group = Group {
    name: "arm64-machine",
    packages: &["debian-archive-keyring", "kmod", "qemu-system-arm"],
    wheels: &[],
    crates: &[],
    kernel: false,
    arm64_kernel: true,
};

const GROUPS: &[Group] = &[DEMO, TEST, BENCH, MACOS, ARM64_COMPILER, ARM64_MACHINE];

/// Packages that come with a service of this name, which is never wanted running.
const SERVICES: &[&str] = &["docker-registry", "containerd", "apparmor"];

/// The command: the groups named, or those of the two main tasks.
pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    if arguments.is_empty() {
        return install(workspace, &[&DEMO, &TEST, &MACOS, &ARM64_COMPILER, &ARM64_MACHINE]);
    }
    let mut groups = Vec::new();
    for argument in arguments {
        match GROUPS.iter().find(|group| group.name == argument) {
            Some(group) => groups.push(group),
            None => {
                let names: Vec<&str> = GROUPS.iter().map(|group| group.name).collect();
                bail!("nothing to set up for `{argument}`; there is {}", names.join(", "));
            }
        }
    }
    install(workspace, &groups)
}

/// Installs what is missing for `groups`.
pub(crate) fn install(workspace: &Workspace, groups: &[&Group]) -> Result<()> {
    let packages = packages(groups);
    if debian::present() {
        let missing = debian::missing(&packages)?;
        if !missing.is_empty() {
            eprintln!("missing packages: {}", missing.join(" "));
            debian::install(&missing)?;
            let services: Vec<&str> =
                missing.iter().copied().filter(|name| SERVICES.contains(name)).collect();
            debian::disable_services(&services)?;
        }
    } else {
        eprintln!(
            "not a Debian system: nothing is installed; these Debian packages say what is needed: {}",
            packages.join(" ")
        );
    }
    for group in groups {
        tools::install_wheels(workspace, group.wheels)?;
        tools::install_crates(workspace, group.crates)?;
        if group.kernel {
            kernel::fetch(workspace)?;
        }
        if group.arm64_kernel {
            kernel::fetch_arm64(workspace)?;
        }
    }
    Ok(())
}

fn packages(groups: &[&Group]) -> Vec<&'static str> {
    let mut packages = COMPILE.to_vec();
    for group in groups {
        packages.extend(group.packages);
    }
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// How tests learn where things are. A test that is run without xtask finds the
/// same files at the same places below the target folder.
pub(crate) fn environment(workspace: &Workspace) -> Vec<(&'static str, PathBuf)> {
    vec![
        ("KINA_TEST_KERNEL", workspace.target("kernel/vmlinuz")),
        ("KINA_TEST_MODULES", workspace.target("kernel/modules")),
        ("KINA_TEST_VIRTIOFSD", tools::crate_program(workspace, &tools::VIRTIOFSD)),
        ("KINA_TEST_VSOCK_DEVICE", workspace.target("debug/kina-vsock")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_that_several_groups_name_is_asked_for_once() {
        let packages = packages(&[&DEMO, &TEST]);
        let count = packages.iter().filter(|name| **name == "busybox-static").count();
        assert_eq!(count, 1);
    }

    #[test]
    fn only_the_benchmark_brings_containerd() {
        for group in GROUPS {
            let brings = group.packages.contains(&"containerd");
            assert_eq!(brings, group.name == "bench", "{}", group.name);
        }
    }
}
