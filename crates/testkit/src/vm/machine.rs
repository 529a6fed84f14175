//! One machine and the processes that serve it.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use kina_guest_api::GuestClient;
use kina_machine_qemu::Accelerator;
use kina_machine_qemu::boot::{BootFiles, CommandLine};
use tempfile::TempDir;

use super::process::wait_until;
use super::{Prerequisites, Process, Processor, VsockConnector};

/// The port that the guest listens on.
pub const GUEST_PORT: u32 = 1024;
/// Where the guest sees the shared folder.
pub const SHARE_IN_GUEST: &str = "/share";

/// The shared folder's name between QEMU and the guest.
const SHARE_TAG: &str = "share";
/// How long the devices' processes may take to listen.
const DEVICE_PATIENCE: Duration = Duration::from_secs(10);
/// How often a machine that boots is looked after.
const LOOK_AFTER: Duration = Duration::from_millis(50);
/// The longest line of a console that is kept, and the most lines.
const LINE_LIMIT: u64 = 4096;
const LINES_LIMIT: usize = 4096;

/// What a machine shall be like.
#[derive(Clone, Debug)]
pub struct Config {
    /// The pod it is for.
    pub pod_id: String,
    /// The folder that it sees at [`SHARE_IN_GUEST`].
    pub share: PathBuf,
    /// Its memory in MiB; the host gives it when it is touched.
    pub memory_mib: u32,
    /// Further words for its kernel.
    pub kernel_words: Vec<String>,
}

impl Config {
    /// One of 512 MiB.
    pub fn new(pod_id: &str, share: PathBuf) -> Self {
        Self { pod_id: pod_id.to_owned(), share, memory_mib: 512, kernel_words: Vec::new() }
    }
}

/// When a boot came where, counted from the call of [`Machine::boot`].
#[derive(Clone, Debug, Default)]
pub struct Boot {
    /// Kernel and initramfs were there.
    pub files: Duration,
    /// The devices' processes listened, and QEMU was started.
    pub devices: Duration,
    /// The kernel's first line.
    pub kernel: Option<Duration>,
    /// The kernel ran the guest as its first process.
    pub init: Option<Duration>,
    /// The guest listened.
    pub guest: Option<Duration>,
}

/// A machine that was started. Dropped, it ends with everything that serves it.
#[derive(Debug)]
pub struct Machine {
    // In the order of their end: QEMU, its devices, the folder of their sockets.
    qemu: Process,
    devices: [Process; 2],
    console: Console,
    files_ready: Duration,
    devices_ready: Duration,
    begin: Instant,
    directory: TempDir,
    _files: BootFiles,
}

impl Machine {
    /// Starts a machine; it boots while this returns.
    ///
    /// # Errors
    /// When a file cannot be made or a process does not start.
    pub fn boot(prerequisites: &Prerequisites, config: &Config) -> Result<Self> {
        let begin = Instant::now();
        // A socket's path has 107 bytes; the system's folder of temporary files may be far away.
        let directory = tempfile::Builder::new()
            .prefix("kina-vm.")
            .tempdir_in("/tmp")
            .context("make a folder for the machine's sockets")?;
        let at = |name: &str| directory.path().join(name);
        let files = prerequisites.boot_files()?;
        let files_ready = begin.elapsed();

        let mut share = Process::start(
            "virtiofsd",
            Command::new(&prerequisites.virtiofsd)
                .args(["--sandbox", "chroot", "--rlimit-nofile", "0", "--log-level", "warn"])
                .args(["--readonly", "--shared-dir"])
                .arg(&config.share)
                .arg("--socket-path")
                .arg(at("share")),
        )?;
        let mut vsock = Process::start(
            "kina-vsock",
            Command::new(&prerequisites.vsock_device)
                .arg("--vhost")
                .arg(at("vsock"))
                .arg("--host")
                .arg(at("guest")),
        )?;
        // The socket of kina-vsock is there once it accepts connections.
        let is_there: fn(&Path) -> Result<bool> = |socket| Ok(socket.exists());
        for (process, socket, ready) in
            [(&mut share, at("share"), listens as _), (&mut vsock, at("vsock"), is_there)]
        {
            wait_until(&format!("{} listens", socket.display()), DEVICE_PATIENCE, || {
                if let Some(status) = process.ended()? {
                    bail!("the device of {} has ended: {status}", socket.display());
                }
                ready(&socket)
            })?;
        }
        let devices_ready = begin.elapsed();
        let mut command = qemu(prerequisites, &files, config, directory.path())?;
        let mut qemu = Process::start("qemu", command.stdout(Stdio::piped()).stderr(Stdio::inherit()))?;
        let output = qemu.take_output().context("QEMU has no standard output")?;
        let console = Console::watch(output)?;
        Ok(Self {
            qemu,
            devices: [share, vsock],
            console,
            files_ready,
            devices_ready,
            begin,
            directory,
            _files: files,
        })
    }

    /// Dials the guest, which comes up meanwhile.
    ///
    /// # Errors
    /// When it is not there after `patience`, or the machine has ended; with what
    /// the console shows.
    pub async fn guest(&mut self, patience: Duration) -> Result<GuestClient> {
        let mut connecting = pin!(kina_guest_api::connect(Arc::new(self.connector()), patience));
        let error = loop {
            tokio::select! {
                connected = &mut connecting => match connected {
                    Ok(guest) => return Ok(guest),
                    Err(error) => break anyhow::Error::new(error),
                },
                () = tokio::time::sleep(LOOK_AFTER) => if let Some(status) = self.qemu.ended()? {
                    break anyhow::anyhow!("the machine has ended: {status}");
                },
            }
        };
        let console = self.console();
        Err(error.context(format!("{:?}\n{console}\nno guest after {:?}", self.progress(), self.age())))
    }

    /// Dials the guest, once each time.
    pub fn connector(&self) -> VsockConnector {
        VsockConnector::new(self.socket(), GUEST_PORT)
    }

    /// The vsock device's socket on the host.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("guest")
    }

    /// How far the boot has come.
    pub fn progress(&self) -> Boot {
        let at = |words: &str| Some(self.console.when(words)?.saturating_duration_since(self.begin));
        Boot {
            files: self.files_ready,
            devices: self.devices_ready,
            kernel: at("Linux version"),
            init: at("Run /init"),
            guest: at("listens on"),
        }
    }

    /// Since the machine was asked for.
    pub fn age(&self) -> Duration {
        self.begin.elapsed()
    }

    /// What the console has shown, for messages.
    pub fn console(&self) -> String {
        self.console.text()
    }

    /// Waits until the machine has switched itself off, and ends what served it.
    /// Returns how QEMU ended.
    ///
    /// # Errors
    /// When it is still on after `patience`, or when something of it is left.
    pub fn off(mut self, patience: Duration) -> Result<ExitStatus> {
        let status = self.qemu.wait(patience)?;
        self.devices.iter_mut().for_each(Process::kill);
        wait_until("nothing of the machine is left", DEVICE_PATIENCE, || {
            let processes = [&self.qemu, &self.devices[0], &self.devices[1]];
            Ok(!processes.iter().any(|process| process.is_left()))
        })?;
        let path = self.directory.path().to_owned();
        self.directory.close().with_context(|| format!("remove {}", path.display()))?;
        Ok(status)
    }
}

/// The emulator's command line.
fn qemu(
    prerequisites: &Prerequisites,
    files: &BootFiles,
    config: &Config,
    directory: &Path,
) -> Result<Command> {
    let at = |name: &str| directory.join(name).display().to_string();
    let (machine, cpu, line) = match prerequisites.processor {
        Processor::X86 => {
            let accelerator = Accelerator::Tcg;
            (accelerator.machine(), accelerator.cpu(), CommandLine::new(accelerator))
        }
        // Signatures of pointers by the standard's own cipher take an emulated
        // processor longer than everything else. The words for emulated processors
        // are x86's.
        Processor::Arm => (
            "virt,accel=tcg,gic-version=3".to_owned(),
            "max,pauth-impdef=on",
            CommandLine::new(Accelerator::Kvm),
        ),
    };
    let mut line =
        line.verbose().pod(&config.pod_id).port(GUEST_PORT).share(SHARE_TAG, SHARE_IN_GUEST).build()?;
    for word in &config.kernel_words {
        line.push(' ');
        line.push_str(word);
    }
    let mut command = Command::new(&prerequisites.qemu);
    if prerequisites.processor == Processor::Arm {
        line.push_str(" console=ttyAMA0");
        // As microvm's are: devices of virtio before 1.0 share no directories.
        command.args(["-global", "virtio-mmio.force-legacy=false"]);
    }
    command
        .args(["-machine", &format!("{machine},memory-backend=memory")])
        .args(["-cpu", cpu, "-smp", "1"])
        .args(["-m", &format!("{}M", config.memory_mib)])
        // The devices' processes map the memory.
        .args(["-object", &format!("memory-backend-memfd,id=memory,size={}M,share=on", config.memory_mib)])
        .args(["-no-user-config", "-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"])
        .arg("-kernel")
        .arg(&files.kernel)
        .arg("-initrd")
        .arg(&files.initramfs)
        .args(["-append", &line])
        .args(["-chardev", &format!("socket,id=vsock,path={}", at("vsock"))])
        .args(["-device", "vhost-user-vsock-device,chardev=vsock"])
        .args(["-chardev", &format!("socket,id=share,path={}", at("share"))])
        .args(["-device", &format!("vhost-user-fs-device,chardev=share,tag={SHARE_TAG}")]);
    Ok(command)
}

/// Whether a socket with that path accepts connections. Asking by connecting
/// would take the one connection that a device accepts.
fn listens(socket: &Path) -> Result<bool> {
    /// `__SO_ACCEPTCON` of include/linux/net.h, as the table shows it.
    const ACCEPTS: &str = "00010000";
    let table = std::fs::read_to_string("/proc/net/unix").context("read /proc/net/unix")?;
    let path = socket.display().to_string();
    Ok(table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(3) == Some(&ACCEPTS) && fields.last() == Some(&path.as_str())
    }))
}

/// What a machine prints, line by line, and when.
#[derive(Debug)]
struct Console {
    lines: Arc<Mutex<Vec<(Instant, String)>>>,
    reader: Option<JoinHandle<()>>,
}

impl Console {
    fn watch(output: ChildStdout) -> Result<Self> {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&lines);
        let reader = std::thread::Builder::new()
            .name("console".to_owned())
            .spawn(move || read_lines(output, &kept))
            .context("start a thread for the console")?;
        Ok(Self { lines, reader: Some(reader) })
    }

    fn when(&self, words: &str) -> Option<Instant> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().find(|(_, line)| line.contains(words)).map(|(when, _)| *when)
    }

    fn text(&self) -> String {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(|(_, line)| format!("{line}\n")).collect()
    }
}

impl Drop for Console {
    /// The machine has ended before: its output ends.
    fn drop(&mut self) {
        if let Some(reader) = self.reader.take() {
            drop(reader.join());
        }
    }
}

fn read_lines(output: ChildStdout, lines: &Mutex<Vec<(Instant, String)>>) {
    let mut output = BufReader::new(output);
    loop {
        let mut line = Vec::new();
        match output.by_ref().take(LINE_LIMIT).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                if lines.len() < LINES_LIMIT {
                    lines.push((Instant::now(), text));
                }
            }
        }
    }
}
