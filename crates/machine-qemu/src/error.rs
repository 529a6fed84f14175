use std::path::PathBuf;

/// Why the driver cannot do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file that a machine boots from cannot be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file that a machine boots from cannot be written.
    #[error("write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A module's file is damaged.
    #[error("unpack the kernel's module {path}")]
    Unpack {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: std::io::Error,
    },
    /// A module's file is compressed in a way that is not known here.
    #[error("the kernel's module {path} is neither plain nor compressed with gzip, xz or zstd")]
    CompressionUnknown {
        /// The file.
        path: PathBuf,
    },
    /// There is no kernel for machines.
    #[error(
        "no kernel to boot machines with ({reasons}): install one (Debian: linux-image-cloud-amd64), or name one \
         with machine.qemu.kernel and machine.qemu.kernel_modules"
    )]
    NoKernel {
        /// Which were looked at, and what they lack.
        reasons: String,
    },
    /// A kernel lacks a module.
    #[error(
        "the kernel of {modules} has no module {module}, needed for {purpose}: use another kernel (Debian: \
         linux-image-cloud-amd64), named with machine.qemu.kernel and machine.qemu.kernel_modules"
    )]
    ModuleMissing {
        /// The kernel's folder of modules.
        modules: PathBuf,
        /// The module.
        module: String,
        /// What machines need it for.
        purpose: &'static str,
    },
    /// The image and the modules are of different kernels.
    #[error(
        "the image {image} is of kernel {image_version}, the modules in {modules} of {modules_version}: name both of \
         one kernel with machine.qemu.kernel and machine.qemu.kernel_modules"
    )]
    KernelMismatch {
        /// The image.
        image: PathBuf,
        /// Its version.
        image_version: String,
        /// The folder of modules.
        modules: PathBuf,
        /// Their version.
        modules_version: String,
    },
    /// The directory of made files cannot be used.
    #[error("keep boot files in {path}")]
    Cache {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A value that would become several words of the kernel's command line.
    #[error(
        "{word:?} cannot be one word of a kernel's command line: it has spaces, quotes or control characters"
    )]
    CommandLineWord {
        /// The word.
        word: String,
    },
    /// A kernel's command line is too long.
    #[error("the kernel's command line has {length} bytes, kernels read {limit}: share fewer directories")]
    CommandLineLength {
        /// Its length.
        length: usize,
        /// What is possible.
        limit: usize,
    },
    /// A name that is no accelerator's.
    #[error("no accelerator {name:?}: there are auto, kvm and tcg")]
    AcceleratorUnknown {
        /// The name.
        name: String,
    },
    /// KVM cannot be used.
    #[error(
        "no accelerator: {device} cannot be opened; set machine.qemu.accelerator = \"tcg\" to emulate (slow)"
    )]
    NoKvm {
        /// The device.
        device: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// KVM boots no machine.
    #[error(
        "no accelerator: {device} opens, but {reason}; set machine.qemu.accelerator = \"tcg\" to emulate (slow)"
    )]
    NoAccelerator {
        /// The device.
        device: PathBuf,
        /// What a machine did on it.
        reason: String,
    },
    /// The emulator of a probe does not do what every program does.
    #[error("{program} cannot {operation}")]
    Probe {
        /// The emulator.
        program: PathBuf,
        /// What it was to do.
        operation: &'static str,
        /// Why it did not.
        #[source]
        source: std::io::Error,
    },
    /// The machine's directory is not where this driver looks for it later.
    #[error("machine directory {path} is not {expected}")]
    Directory {
        /// The directory given.
        path: PathBuf,
        /// What it must be.
        expected: PathBuf,
    },
    /// The machine exists with another cgroup.
    #[error("the machine exists in cgroup {existing}, not in {asked}")]
    Cgroup {
        /// Its cgroup.
        existing: String,
        /// The cgroup asked for.
        asked: String,
    },
    /// All users are taken.
    #[error("the {} users from {} on are all taken, two by each machine: allow more", users.len(), users.start)]
    Users {
        /// The users.
        users: std::ops::Range<u32>,
    },
    /// A disk cannot be made.
    #[error("{program} ended with status {code} when making {path}: {words}")]
    Disk {
        /// The disk, or what disks are copied from.
        path: PathBuf,
        /// The program.
        program: PathBuf,
        /// Its exit code.
        code: i32,
        /// What it said.
        words: String,
    },
    /// The node refused an effect.
    #[error("{operation}")]
    Node {
        /// What was being done.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: Box<kina_node::Error>,
    },
}
