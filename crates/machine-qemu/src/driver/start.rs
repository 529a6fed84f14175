//! Starting a machine: its devices first, then QEMU.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kina_attachment::{Namespace, tap};
use kina_machine::Error as MachineError;
use kina_model::PodId;
use kina_node::{Account, Daemon, DaemonNetwork, Error as NodeError, ProcessIdentity};
use kina_vsock::Transport;
use tokio::time::Instant;

use super::machines::{CONSOLE, CONSOLE_PIPE, DISK, GUEST_PORT, GUEST_SOCKET, Machines, machine_cgroup};
use super::record::{Record, Started};
use super::shares::IN_GUEST;
use super::streams::{self, Streams};
use crate::arguments::{self, Card, Inherited, Qemu, SHARE_TAG, Vsock};
use crate::boot::CommandLine;
use crate::{Accelerator, Error, disk};

/// The least memory that a machine boots with, in MiB.
const LEAST_MEMORY_MIB: u64 = 128;

/// Where the guest's disk appears in it: the pod's state.
const STATE_IN_GUEST: &str = "/run/kina";

/// Where QEMU meets its devices.
const SHARE_SOCKET: &str = "virtiofsd.sock";
const VSOCK_SOCKET: &str = "vsock.sock";

/// Between two looks whether a device listens.
const PAUSE: Duration = Duration::from_millis(2);

impl Machines {
    /// Starts everything of a machine. What was started when this fails is the
    /// caller's to kill.
    pub(super) async fn boot(&self, pod: &PodId, record: &Record) -> Result<Started, MachineError> {
        let at = |name: &str| self.directory(pod).join(name);
        self.clear(pod, &at).await?;
        let console = self.helper(pod, record, &self.config.guest, None, {
            arguments::console(
                &at(CONSOLE_PIPE),
                &at(CONSOLE),
                self.config.console_limit,
                record.helper_uid(),
            )
        });
        let console = console.await?;
        let output = Some(at(CONSOLE_PIPE));
        let tree = self.tree(pod, &record.storage_directory).root().to_owned();
        let virtiofsd = self.helper(pod, record, &self.config.virtiofsd, output.clone(), {
            arguments::virtiofsd(&tree, &at(SHARE_SOCKET), arguments::share_descriptors(), record.user)
        });
        let virtiofsd = virtiofsd.await?;
        let mut inherited = Inherited::default();
        let (streams, vsock) = self.streams(pod, record, output.clone(), &mut inherited).await?;
        let ready = self.ready();
        let kernel = inherited.add(open(pod, &ready.boot.kernel, false)?);
        let initramfs = inherited.add(open(pod, &ready.boot.initramfs, false)?);
        let disk = self.disk(pod, record).await?.map(|disk| inherited.add(disk));
        let cards = Vec::from_iter(self.card(pod, record, &mut inherited).await?);
        let share = inherited.add(self.device(pod, "virtiofsd", virtiofsd, &at(SHARE_SOCKET)).await?);
        let line = self.kernel_line(pod, disk.is_some())?;
        let args = arguments::qemu(&Qemu {
            accelerator: ready.accelerator,
            cpus: record.cpus,
            memory_mib: (record.memory_bytes >> 20).max(LEAST_MEMORY_MIB),
            kernel_line: &line,
            kernel,
            initramfs,
            share,
            vsock,
            disk,
            cards,
        });
        let qemu = Daemon {
            args,
            user: Some(account(record.uid, ready.accelerator)),
            inherit: inherited.into_all(),
            ..self.daemon(record, &self.config.qemu, output)
        };
        let qemu = self.run(pod, &qemu).await?;
        Ok(Started {
            qemu: qemu.into(),
            virtiofsd: virtiofsd.into(),
            streams,
            console: console.into(),
            accelerator: ready.accelerator,
            kernel: ready.boot.kernel_version.clone(),
            boot_files: ready.boot.digest.clone(),
            disk_bytes: disk.map_or(0, |_| self.config.disk_bytes),
        })
    }

    /// Takes away what an earlier start left, and makes the console's pipe.
    async fn clear(&self, pod: &PodId, at: &impl Fn(&str) -> PathBuf) -> Result<(), MachineError> {
        for name in [SHARE_SOCKET, VSOCK_SOCKET, GUEST_SOCKET, CONSOLE_PIPE] {
            self.remove(pod, &at(name)).await?;
        }
        let made = self.node.create_pipe(&at(CONSOLE_PIPE), 0o600).await;
        made.map_err(|source| MachineError::node(pod, "make the console", source))
    }

    /// A process of a machine, in its cgroup and its network.
    fn daemon(&self, record: &Record, program: &Path, output: Option<PathBuf>) -> Daemon {
        Daemon {
            network: match &record.network {
                Some(network) => DaemonNetwork::Namespace(network.namespace.clone()),
                None => DaemonNetwork::Empty,
            },
            no_new_privileges: true,
            output,
            ..Daemon::new(program.to_owned(), machine_cgroup(record))
        }
    }

    async fn helper(
        &self,
        pod: &PodId,
        record: &Record,
        program: &Path,
        output: Option<PathBuf>,
        args: Vec<OsString>,
    ) -> Result<ProcessIdentity, MachineError> {
        self.run(pod, &Daemon { args, ..self.daemon(record, program, output) }).await
    }

    async fn run(&self, pod: &PodId, daemon: &Daemon) -> Result<ProcessIdentity, MachineError> {
        match self.node.start(daemon).await {
            Ok(process) => Ok(process),
            Err(NodeError::Execute { path, source }) => {
                let reason = format!("{} cannot be executed: {source}", path.display());
                Err(MachineError::Boot { pod: pod.clone(), reason })
            }
            Err(error) => Err(MachineError::node(pod, "start the machine", error)),
        }
    }

    /// What carries the guest's streams, and how QEMU gets it.
    async fn streams(
        &self,
        pod: &PodId,
        record: &Record,
        output: Option<PathBuf>,
        inherited: &mut Inherited,
    ) -> Result<(Streams, Vsock), MachineError> {
        if streams::choose(self.config.streams) == Transport::Kernel {
            let opened = streams::open(record.uid, &self.config.users);
            let (device, cid) = opened.map_err(|source| {
                let source = Error::Read { path: streams::DEVICE.into(), source };
                MachineError::node(pod, "open the kernel's vsock device", source)
            })?;
            return Ok((Streams::Kernel { cid }, Vsock::Kernel { device: inherited.add(device), cid }));
        }
        let at = |name: &str| self.directory(pod).join(name);
        let args = arguments::vsock(&at(VSOCK_SOCKET), &at(GUEST_SOCKET), record.helper_uid());
        let process = self.helper(pod, record, &self.config.vsock, output, args).await?;
        let socket = self.device(pod, "kina-vsock", process, &at(VSOCK_SOCKET)).await?;
        Ok((Streams::Device(process.into()), Vsock::Device(inherited.add(socket))))
    }

    /// A connection to a device's process, once that listens.
    async fn device(
        &self,
        pod: &PodId,
        name: &'static str,
        process: ProcessIdentity,
        socket: &Path,
    ) -> Result<OwnedFd, MachineError> {
        let end = Instant::now() + self.config.device_deadline;
        let failed = |source: io::Error| MachineError::node(pod, "connect a device", source);
        let refusal = loop {
            match self.node.dial(socket).await {
                Ok(stream) => {
                    let stream = stream.into_std().map_err(failed)?;
                    stream.set_nonblocking(false).map_err(failed)?;
                    return Ok(stream.into());
                }
                Err(error @ NodeError::SocketPath { .. }) => {
                    return Err(MachineError::node(pod, "connect a device", error));
                }
                Err(error) => {
                    let lives = self.node.process_lives(process).await;
                    let lives =
                        lives.map_err(|source| MachineError::node(pod, "look for a device", source))?;
                    if !lives {
                        break "has ended".to_owned();
                    }
                    if Instant::now() >= end {
                        break format!("does not listen after {:?} ({error})", self.config.device_deadline);
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
        };
        // The keeper writes what it reads at once, but in its own time.
        let words = self.console(pod, 500).await.unwrap_or_default();
        let words = String::from_utf8_lossy(&words);
        let reason = format!("{name} {refusal}; last words: {}", words.trim().escape_debug());
        Err(MachineError::Boot { pod: pod.clone(), reason })
    }

    async fn disk(&self, pod: &PodId, record: &Record) -> Result<Option<OwnedFd>, MachineError> {
        let Some(template) = &self.ready().template else { return Ok(None) };
        let path = record.storage_directory.join(DISK);
        let copied = disk::copy(&*self.node, template, &path).await;
        copied.map_err(|source| MachineError::node(pod, "make the machine's disk", source))?;
        open(pod, &path, true).map(Some)
    }

    async fn card(
        &self,
        pod: &PodId,
        record: &Record,
        inherited: &mut Inherited,
    ) -> Result<Option<Card>, MachineError> {
        let Some((namespace, tap)) = self.card_of(record) else { return Ok(None) };
        let failed = |source| MachineError::node(pod, "join the network", source);
        let namespace = Namespace::open(&namespace).map_err(failed)?;
        let interface = tap::attach(&namespace, &tap).await.map_err(failed)?;
        let queue = tap::open_queue(&namespace, &tap).await.map_err(failed)?;
        Ok(Some(Card { tap: inherited.add(queue), mac: interface.mac, mtu: interface.mtu }))
    }

    fn kernel_line(&self, pod: &PodId, disk: bool) -> Result<String, MachineError> {
        let mut line = CommandLine::new(self.ready().accelerator)
            .pod(pod.as_str())
            .port(GUEST_PORT)
            .share(SHARE_TAG, IN_GUEST);
        if disk {
            line = line.disk("/dev/vda", STATE_IN_GUEST);
        }
        if self.config.verbose {
            line = line.verbose();
        }
        line.build().map_err(|source| MachineError::node(pod, "make the kernel's command line", source))
    }
}

/// QEMU's user. On KVM it is in the group that may use it.
fn account(uid: u32, accelerator: Accelerator) -> Account {
    let groups = match accelerator {
        Accelerator::Kvm => fs::metadata("/dev/kvm").map(|device| vec![device.gid()]).unwrap_or_default(),
        Accelerator::Tcg => Vec::new(),
    };
    Account { uid, gid: uid, groups }
}

fn open(pod: &PodId, path: &Path, write: bool) -> Result<OwnedFd, MachineError> {
    let opened = OpenOptions::new().read(true).write(write).open(path).map(File::into);
    opened.map_err(|source| {
        MachineError::node(
            pod,
            "open what the machine boots from",
            Error::Read { path: path.to_owned(), source },
        )
    })
}
