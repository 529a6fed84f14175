//! The processes of a virtual machine, with the parts of kina's driver for QEMU.
//!
//! All of them are in the machine's control group, which the guard clears when this helper ends.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kina_attachment::{Mac, Namespace, tap};
use kina_machine_qemu::accelerator::{self, ProbeConfig};
use kina_machine_qemu::arguments::{self, Card, Inherited, Qemu, SHARE_TAG, Vsock};
use kina_machine_qemu::boot::{self, BootConfig, BootFiles, CommandLine, KernelFiles};
use kina_machine_qemu::disk;
use kina_node::{Daemon, DaemonNetwork, LocalNode, LocalNodeConfig, Node as _, ProcessIdentity};
use kina_vsock::Address;
use tokio::runtime::Runtime;

use crate::error::Problem;
use crate::place::Place;
use crate::process::{PAUSE, wait_until};
use crate::programs::Programs;
use crate::protocol::HelperAnswer;
use crate::resources::{Attachment, Resources};
use crate::runtime::guard::clear;
use crate::runtime::machine::chain;
use crate::runtime::seam::{Opening, PORT, PROGRAM, ROOT, SHARE};
use crate::values::valid_mac;
use crate::wire;

/// Modules for what Apple's kernels have built in and QEMU's machines do without.
const MODULES: [&str; 3] = ["br_netfilter", "bridge", "macvlan"];
/// How long a device's process may take to listen.
const DEVICE: Duration = Duration::from_secs(10);
/// How long a boot may take until the machine's half listens.
const BOOT: Duration = Duration::from_secs(90);
/// How long one stream may take.
const STREAM: Duration = Duration::from_secs(10);
/// How long a machine may take to switch itself off before it is killed.
const OFF: Duration = Duration::from_secs(8);
/// How long the probe of KVM may take.
const PROBE: Duration = Duration::from_secs(20);
/// The size of root file systems in bytes, of which what is written takes place.
const DISK: u64 = 10 << 30;
/// The user that `kina-vsock` becomes.
const NOBODY: u32 = 65534;
/// How many bytes of the console an error has room for.
const FEW_WORDS: usize = 800;

/// Where one is made.
pub(super) struct Site<'a> {
    pub(super) place: &'a Place,
    pub(super) id: &'a str,
    pub(super) resources: &'a Resources,
    pub(super) programs: &'a Programs,
    /// The tree that the machine sees.
    pub(super) tree: &'a Path,
}

impl Site<'_> {
    fn at(&self, name: &str) -> PathBuf {
        self.place.bundle(self.id).join(name)
    }

    /// What the machine's processes say, the kernel first of all.
    fn console(&self) -> PathBuf {
        self.at("vminitd.log")
    }
}

/// Opens streams to a machine's half.
#[derive(Clone)]
pub(super) struct Dialler {
    runtime: Arc<Runtime>,
    address: Address,
}

impl Dialler {
    /// A stream that begins in some way.
    pub(super) fn open(&self, opening: &Opening) -> io::Result<UnixStream> {
        let stream = self.dial(STREAM)?;
        wire::send(&stream, opening, &[])?;
        Ok(stream)
    }

    fn dial(&self, patience: Duration) -> io::Result<UnixStream> {
        let dialled = self.runtime.block_on(async {
            let stream = kina_vsock::connect(&self.address, patience).await;
            stream.map_err(kina_vsock::Error::into_io)?.into_blocking()
        });
        dialled.map(UnixStream::from)
    }
}

/// A virtual machine. Its owner ends it.
pub(super) struct Hypervisor {
    runtime: Arc<Runtime>,
    node: LocalNode,
    qemu: ProcessIdentity,
    group: String,
    pub(super) dialler: Dialler,
    /// They are there as long as somebody holds them.
    _files: BootFiles,
}

impl Hypervisor {
    /// Makes a container's disk of its root file system, once; what is written to it stays.
    pub(super) fn make_disk(runtime: &Runtime, directory: &Path) -> Result<(), Problem> {
        let (disk, rootfs) = (disk_of(directory), directory.join("rootfs"));
        if disk.exists() {
            return Ok(());
        }
        let node = LocalNode::new(LocalNodeConfig::new(directory.to_owned()));
        let made = runtime.block_on(disk::make(&node, &disk, DISK, Some(&rootfs)));
        match made.map_err(|error| Problem::internal(chain(&error)))? {
            true => Ok(std::fs::remove_dir_all(rootfs)?),
            false => Err(Problem::internal("there is no mke2fs: install e2fsprogs")),
        }
    }

    /// Boots until the machine's half listens. What there is of it when this fails is in the
    /// control group.
    pub(super) fn boot(
        runtime: &Arc<Runtime>,
        site: &Site<'_>,
        cards: Vec<(OwnedFd, Attachment)>,
    ) -> Result<Self, Problem> {
        let said = |error: &dyn std::error::Error| Problem::internal(chain(error));
        let programs = site.programs;
        let cache = programs.cache.clone().unwrap_or_else(|| site.place.root.join("boot"));
        let kernel = match (&programs.kernel, &programs.modules) {
            (Some(image), Some(modules)) => {
                Some(KernelFiles { image: image.clone(), modules: modules.clone() })
            }
            (None, None) => None,
            _ => return Err(Problem::invalid("programs: kernel and modules belong together")),
        };
        let files = boot::prepare(&BootConfig {
            kernel,
            modules: MODULES.map(str::to_owned).into(),
            guest: programs.guest(),
            cache: cache.clone(),
        })
        .map_err(|error| said(&error))?;
        let choice =
            programs.accelerator.as_deref().unwrap_or("auto").parse().map_err(|error| said(&error))?;
        let accelerator = accelerator::choose(
            choice,
            &ProbeConfig {
                qemu: &programs.qemu(),
                files: &files,
                device: Path::new("/dev/kvm"),
                result: &cache.with_extension("accelerator.json"),
                deadline: PROBE,
            },
        )
        .map_err(|error| said(&error))?;

        let node = LocalNode::new(LocalNodeConfig::new(site.place.bundle(site.id)));
        let group = site.place.group(site.id);
        let start = |program: PathBuf, args, inherit| {
            let daemon = Daemon {
                args,
                inherit,
                network: DaemonNetwork::Empty,
                no_new_privileges: true,
                output: Some(site.console()),
                ..Daemon::new(program, group.clone())
            };
            runtime.block_on(node.start(&daemon)).map_err(|error| said(&error))
        };
        let [share_socket, vsock_socket, streams] =
            ["virtiofsd.sock", "vsock.sock", "guest.sock"].map(|name| site.at(name));
        for socket in [&share_socket, &vsock_socket, &streams] {
            drop(std::fs::remove_file(socket));
        }
        let line = arguments::virtiofsd(site.tree, &share_socket, arguments::share_descriptors(), None);
        start(programs.virtiofsd(), line, Vec::new())?;
        start(programs.vsock(), arguments::vsock(&vsock_socket, &streams, NOBODY), Vec::new())?;

        let mut inherited = Inherited::default();
        let kernel = inherited.add(File::open(&files.kernel)?);
        let initramfs = inherited.add(File::open(&files.initramfs)?);
        let disk = OpenOptions::new().read(true).write(true).open(disk_of(&site.place.bundle(site.id)))?;
        let disk = inherited.add(disk);
        let share = inherited.add(device(&share_socket, &site.console())?);
        let vsock = inherited.add(device(&vsock_socket, &site.console())?);
        let mut plugged = Vec::new();
        for (tap, attachment) in cards {
            let mac = Mac(valid_mac(attachment.mac_address.as_deref().unwrap_or_default())?);
            let mtu = attachment.mtu.unwrap_or(1500);
            plugged.push(Card { tap: inherited.add(tap), mac, mtu });
        }
        let rootfs = Place::new(Path::new(ROOT)).bundle(site.id).join("rootfs");
        let line = CommandLine::new(accelerator)
            .pod(site.id)
            .port(PORT)
            .share(SHARE_TAG, SHARE)
            .disk("/dev/vda", &rootfs.to_string_lossy())
            .program(&format!("{SHARE}/{PROGRAM}"))
            .build()
            .map_err(|error| said(&error))?;
        let args = arguments::qemu(&Qemu {
            accelerator,
            cpus: u32::try_from(site.resources.cpus).unwrap_or(1).max(1),
            memory_mib: site.resources.memory_in_bytes >> 20,
            kernel_line: &line,
            kernel,
            initramfs,
            share,
            vsock: Vsock::Device(vsock),
            disk: Some(disk),
            cards: plugged,
        });
        let qemu = start(programs.qemu(), args, inherited.into_all())?;
        let address = Address::Unix { socket: streams, port: PORT };
        let dialler = Dialler { runtime: Arc::clone(runtime), address };
        let hypervisor = Self { runtime: Arc::clone(runtime), node, qemu, group, dialler, _files: files };
        hypervisor.await_listening(&site.console())?;
        Ok(hypervisor)
    }

    fn await_listening(&self, console: &Path) -> Result<(), Problem> {
        let deadline = Instant::now() + BOOT;
        // It waits until the machine's kernel is up, and is refused until its half listens.
        while let Err(error) = self.dialler.dial(BOOT) {
            if !self.lives() || Instant::now() >= deadline {
                let words = last_words(console);
                return Err(Problem::internal(format!("failed to boot: {error}; the console: {words}")));
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    fn lives(&self) -> bool {
        self.runtime.block_on(self.node.process_lives(self.qemu)).unwrap_or(false)
    }

    /// The process that is the machine.
    pub(super) fn pid(&self) -> Option<i32> {
        i32::try_from(self.qemu.pid).ok()
    }

    /// Has the machine switch itself off, or kills it.
    pub(super) fn end(&self) {
        let asked = self.dialler.open(&Opening::End).and_then(|stream| {
            stream.set_read_timeout(Some(OFF))?;
            wire::receive::<HelperAnswer>(&stream).map(drop)
        });
        if asked.is_ok() {
            // Killed next if it takes longer.
            let _ = self
                .runtime
                .block_on(async { tokio::time::timeout(OFF, self.node.wait_process(self.qemu)).await });
        }
        if let Err(error) = clear(&self.group) {
            drop(writeln!(io::stderr(), "end: {}", chain(&error)));
        }
    }
}

fn disk_of(directory: &Path) -> PathBuf {
    directory.join("rootfs.ext4")
}

/// A tap in the namespace of a process, as long as it is open.
pub(super) fn open_tap(runtime: &Runtime, keeper: i32, name: &str) -> Result<OwnedFd, Problem> {
    let opened = runtime.block_on(async {
        let namespace = Namespace::open(format!("/proc/{keeper}/ns/net"))?;
        tap::open_queue(&namespace, &tap::Tap { name: name.to_owned(), ..tap::Tap::new("") }).await
    });
    opened.map_err(|error| Problem::internal(chain(&error)))
}

/// Connects to a device's process, which takes one connection.
fn device(socket: &Path, console: &Path) -> Result<OwnedFd, Problem> {
    let mut connected = wire::connect(socket);
    wait_until(DEVICE, || {
        if connected.is_err() {
            connected = wire::connect(socket);
        }
        connected.is_ok()
    });
    connected.map(OwnedFd::from).map_err(|error| {
        Problem::internal(format!("{}: {error}; the console: {}", socket.display(), last_words(console)))
    })
}

fn last_words(console: &Path) -> String {
    let words = std::fs::read(console).unwrap_or_default();
    String::from_utf8_lossy(&words[words.len().saturating_sub(FEW_WORDS)..]).trim().to_owned()
}
