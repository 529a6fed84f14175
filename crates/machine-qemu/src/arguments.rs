//! The command lines of a machine's processes. The simulator of Apple's `container`
//! boots machines with them, too.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use kina_attachment::Mac;
use kina_model::{IdRange, UserNamespace};

use crate::Accelerator;

/// The number of the first descriptor that a daemon inherits.
const FIRST_DESCRIPTOR: usize = 3;

/// Most files that virtiofsd may have open.
const SHARE_DESCRIPTORS: u64 = 1_000_000;

/// The shared tree's name between QEMU and the guest.
pub const SHARE_TAG: &str = "share";

/// What QEMU is given; each `Descriptor` is one that it inherits.
pub struct Qemu<'a> {
    /// How it runs the processor.
    pub accelerator: Accelerator,
    /// How many processors there are.
    pub cpus: u32,
    /// The memory, in MiB.
    pub memory_mib: u64,
    /// The kernel's command line.
    pub kernel_line: &'a str,
    /// The kernel.
    pub kernel: Descriptor,
    /// Its first file system.
    pub initramfs: Descriptor,
    /// Connected to virtiofsd.
    pub share: Descriptor,
    /// What carries streams.
    pub vsock: Vsock,
    /// What the guest sees as `/dev/vda`, open for reading and writing.
    pub disk: Option<Descriptor>,
    /// The network's, in the order in which the guest finds them.
    pub cards: Vec<Card>,
}

/// What the guest's streams come in by.
pub enum Vsock {
    /// Connected to the process that is the device.
    Device(Descriptor),
    /// The kernel's device, opened, with the guest's address set.
    Kernel {
        /// The device.
        device: Descriptor,
        /// The address.
        cid: u32,
    },
}

/// A network card.
pub struct Card {
    /// A queue of its tap.
    pub tap: Descriptor,
    /// What it shows.
    pub mac: Mac,
    /// Its largest packet, in bytes.
    pub mtu: u32,
}

/// The descriptors that QEMU inherits.
#[derive(Default)]
pub struct Inherited(Vec<Arc<OwnedFd>>);

impl Inherited {
    /// One more.
    pub fn add(&mut self, descriptor: impl Into<OwnedFd>) -> Descriptor {
        self.0.push(Arc::new(descriptor.into()));
        Descriptor(self.0.len() - 1)
    }

    /// All of them, in order.
    pub fn into_all(self) -> Vec<Arc<OwnedFd>> {
        self.0
    }
}

/// An inherited descriptor, by its place among them.
#[derive(Clone, Copy)]
pub struct Descriptor(usize);

impl Descriptor {
    fn number(self) -> usize {
        FIRST_DESCRIPTOR + self.0
    }

    fn path(self) -> String {
        format!("/proc/self/fd/{}", self.number())
    }
}

/// Everything that QEMU uses it is given as a descriptor, but for programs and
/// libraries: the user that it runs as can open nothing of kina's.
#[must_use]
pub fn qemu(qemu: &Qemu<'_>) -> Vec<OsString> {
    let mut args: Vec<String> = Vec::new();
    let mut option = |name: &str, value: String| args.extend([name.to_owned(), value]);
    option("-machine", format!("{},memory-backend=memory", qemu.accelerator.machine()));
    option("-cpu", qemu.accelerator.cpu().to_owned());
    option("-smp", qemu.cpus.to_string());
    option("-m", format!("{}M", qemu.memory_mib));
    // The devices' processes map the memory.
    option("-object", format!("memory-backend-memfd,id=memory,size={}M,share=on", qemu.memory_mib));
    option("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".to_owned());
    option("-display", "none".to_owned());
    option("-serial", "stdio".to_owned());
    option("-kernel", qemu.kernel.path());
    option("-initrd", qemu.initramfs.path());
    option("-append", qemu.kernel_line.to_owned());
    match qemu.vsock {
        Vsock::Device(socket) => {
            option("-chardev", format!("socket,id=vsock,fd={}", socket.number()));
            option("-device", "vhost-user-vsock-device,chardev=vsock".to_owned());
        }
        Vsock::Kernel { device, cid } => {
            option("-device", format!("vhost-vsock-device,guest-cid={cid},vhostfd={}", device.number()));
        }
    }
    option("-chardev", format!("socket,id=share,fd={}", qemu.share.number()));
    option("-device", format!("vhost-user-fs-device,chardev=share,tag={SHARE_TAG}"));
    if let Some(disk) = qemu.disk {
        option("-add-fd", format!("fd={},set=1", disk.number()));
        let block = "driver=raw,node-name=disk,discard=unmap,file.driver=file,file.filename=/dev/fdset/1,\
                     file.discard=unmap,file.locking=off";
        option("-blockdev", block.to_owned());
        // A node whose disk is full shows in the guest as an error, not as a halt.
        option("-device", "virtio-blk-device,drive=disk,werror=report,rerror=report".to_owned());
    }
    for (index, Card { tap, mac, mtu }) in qemu.cards.iter().enumerate() {
        option("-netdev", format!("tap,id=card{index},fd={}", tap.number()));
        option("-device", format!("virtio-net-device,netdev=card{index},mac={mac},host_mtu={mtu}"));
    }
    args.extend(["-no-user-config", "-nodefaults", "-no-reboot"].map(str::to_owned));
    args.into_iter().map(OsString::from).collect()
}

/// How many files virtiofsd may have open: as many as this process could.
#[must_use]
pub fn share_descriptors() -> u64 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    limit.unwrap_or(SHARE_DESCRIPTORS).min(SHARE_DESCRIPTORS)
}

/// virtiofsd keeps root's rights over files, as pods have files of many
/// owners, and gives up the rest by itself. `descriptors` is how many files it
/// may have open. With `user` it shows owners as ids of the pod's user namespace: kernels
/// before 6.12 cannot map a mount of what it serves.
#[must_use]
pub fn virtiofsd(tree: &Path, socket: &Path, descriptors: u64, user: Option<UserNamespace>) -> Vec<OsString> {
    let descriptors = descriptors.to_string();
    let mut args: Vec<OsString> = vec!["--shared-dir".into(), tree.into()];
    args.extend(["--socket-path".into(), socket.into()]);
    let fixed = [
        // What is bound into the tree later is seen there, too.
        "--sandbox",
        "chroot",
        // Two mounts in it may have files with the same number.
        "--announce-submounts",
        "--xattr",
        "--cache",
        "auto",
        "--log-level",
        "error",
        "--rlimit-nofile",
        &descriptors,
    ];
    args.extend(fixed.map(OsString::from));
    if let Some(UserNamespace { uids, gids }) = user {
        for (option, IdRange { inside, outside, length }) in
            [("--translate-uid", uids), ("--translate-gid", gids)]
        {
            args.extend([option.into(), format!("map:{outside}:{inside}:{length}").into()]);
        }
    }
    args
}

/// The vsock device, which becomes `user`.
#[must_use]
pub fn vsock(device: &Path, host: &Path, user: u32) -> Vec<OsString> {
    let user = user.to_string();
    vec!["--vhost".into(), device.into(), "--host".into(), host.into(), "--user".into(), user.into()]
}

/// The keeper of the console: reads `pipe`, keeps the end of it in `file`, as `user`.
pub(crate) fn console(pipe: &Path, file: &Path, limit: usize, user: u32) -> Vec<OsString> {
    let [limit, user] = [limit.to_string(), user.to_string()];
    vec![
        "console".into(),
        "--from".into(),
        pipe.into(),
        "--to".into(),
        file.into(),
        "--limit".into(),
        limit.into(),
        "--user".into(),
        user.into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(disk: bool, card: bool) -> String {
        line_with(disk, card, Vsock::Device(Descriptor(3)))
    }

    fn line_with(disk: bool, card: bool, vsock: Vsock) -> String {
        let args = qemu(&Qemu {
            accelerator: Accelerator::Kvm,
            cpus: 2,
            memory_mib: 300,
            kernel_line: "quiet kina.pod=p",
            kernel: Descriptor(0),
            initramfs: Descriptor(1),
            share: Descriptor(2),
            vsock,
            disk: disk.then_some(Descriptor(4)),
            cards: Vec::from_iter(card.then_some(Card {
                tap: Descriptor(5),
                mac: Mac([2, 0, 0, 0, 0, 1]),
                mtu: 1400,
            })),
        });
        let args: Vec<String> = args.into_iter().map(|arg| arg.into_string().unwrap()).collect();
        args.join(" ")
    }

    #[test]
    fn the_kernels_vsock_is_given_open() {
        let line = line_with(false, false, Vsock::Kernel { device: Descriptor(3), cid: 65_537 });
        assert!(line.contains("-device vhost-vsock-device,guest-cid=65537,vhostfd=6"), "{line}");
        assert!(!line.contains("vhost-user-vsock") && !line.contains("id=vsock"), "{line}");
    }

    #[test]
    fn shares_are_mapped_for_a_user_namespace() {
        let line = |user| {
            let args = virtiofsd(Path::new("/tree"), Path::new("/socket"), 100, user);
            args.into_iter().map(|arg| arg.into_string().unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert!(!line(None).contains("translate"));
        let range = |outside| IdRange { inside: 0, outside, length: 65536 };
        let mapped = line(Some(UserNamespace { uids: range(100_000), gids: range(300_000) }));
        let expected = " --translate-uid map:100000:0:65536 --translate-gid map:300000:0:65536";
        assert!(mapped.ends_with(expected), "{mapped}");
    }

    #[test]
    fn qemu_gets_what_is_there() {
        let all = line(true, true);
        for part in [
            "-smp 2 -m 300M",
            "size=300M,share=on",
            "-sandbox on,",
            "-kernel /proc/self/fd/3 -initrd /proc/self/fd/4 -append quiet kina.pod=p",
            "-chardev socket,id=vsock,fd=6",
            "-chardev socket,id=share,fd=5",
            "-add-fd fd=7,set=1",
            "werror=report,rerror=report",
            "-netdev tap,id=card0,fd=8 -device virtio-net-device,netdev=card0,mac=02:00:00:00:00:01,host_mtu=1400",
            "-nodefaults",
        ] {
            assert!(all.contains(part), "no {part:?} in {all}");
        }
        let least = line(false, false);
        assert!(!least.contains("-blockdev") && !least.contains("-netdev"), "{least}");
    }
}
