//! The guests' disks: an empty ext4 made once, and a sparse copy for each
//! machine. The simulator of Apple's `container` makes one of each image.

use std::path::{Path, PathBuf};
use std::time::Duration;

use kina_node::{Error as NodeError, Node, Output, Program};

use crate::Error;

/// How long making or copying one may take: both write a few megabytes.
const DEADLINE: Duration = Duration::from_secs(60);
/// Most bytes that are kept of what a program says.
const OUTPUT: usize = 16 * 1024;

fn program(path: &str, args: &[&std::ffi::OsStr]) -> Program {
    Program {
        path: PathBuf::from(path),
        args: args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect(),
        env: vec![("PATH".to_owned(), "/usr/sbin:/usr/bin:/sbin:/bin".to_owned())],
        stdin: Vec::new(),
        deadline: DEADLINE,
        max_output: OUTPUT,
    }
}

async fn run(node: &dyn Node, program: Program, path: &Path) -> Result<(), Error> {
    match node.run(&program).await {
        Ok(Output { code: 0, .. }) => Ok(()),
        Ok(Output { code, stderr, .. }) => Err(Error::Disk {
            path: path.to_owned(),
            program: program.path,
            code,
            words: String::from_utf8_lossy(&stderr).trim().to_owned(),
        }),
        Err(source) => Err(Error::Node { operation: "make a disk", source: Box::new(source) }),
    }
}

/// The file from which disks are copied, made if it is missing. `None` on a
/// node without the program that makes it.
pub(crate) async fn template(node: &dyn Node, cache: &Path, bytes: u64) -> Result<Option<PathBuf>, Error> {
    let path = cache.join(format!("disk-{bytes}.ext4"));
    let found = node.exists(&path).await;
    let found = found.map_err(|source| Error::Node { operation: "make a disk", source: Box::new(source) })?;
    Ok((found || make(node, &path, bytes, None).await?).then_some(path))
}

/// Makes a disk, sparse: empty, or with what is in a directory. It appears when it
/// is finished. `false` on a node without the program that makes it.
///
/// # Errors
/// When the program fails.
pub async fn make(node: &dyn Node, path: &Path, bytes: u64, content: Option<&Path>) -> Result<bool, Error> {
    let failed = |source: NodeError| Error::Node { operation: "make a disk", source: Box::new(source) };
    let mut maker = None;
    for path in ["/sbin/mke2fs", "/usr/sbin/mke2fs"] {
        if node.exists(Path::new(path)).await.map_err(failed)? {
            maker = Some(path);
            break;
        }
    }
    let Some(maker) = maker else { return Ok(false) };
    let mut unfinished = path.to_owned();
    unfinished.set_extension(format!("{}.new", std::process::id()));
    let size = format!("{}k", bytes / 1024);
    let mut args: Vec<&std::ffi::OsStr> = vec![
        "-q".as_ref(),
        "-F".as_ref(),
        "-t".as_ref(),
        "ext4".as_ref(),
        "-m".as_ref(),
        "0".as_ref(),
        // It does not outlive its machine, so there is nothing to recover; and
        // what is not written takes no place on the node.
        "-O".as_ref(),
        "^has_journal,^resize_inode".as_ref(),
        "-E".as_ref(),
        "lazy_itable_init=1,nodiscard,root_owner=0:0".as_ref(),
    ];
    if let Some(content) = content {
        args.extend(["-d".as_ref(), content.as_os_str()]);
    }
    args.extend([unfinished.as_os_str(), size.as_ref()]);
    let made = run(node, program(maker, &args), path).await;
    let renamed = match made {
        Ok(()) => std::fs::rename(&unfinished, path)
            .map_err(|source| Error::Write { path: path.to_owned(), source }),
        Err(error) => Err(error),
    };
    if renamed.is_err() {
        // What failed matters more.
        drop(node.remove_tree(&unfinished).await);
    }
    renamed.map(|()| true)
}

/// Copies the template. A disk that is there already is replaced: nothing in it
/// was ever seen.
pub(crate) async fn copy(node: &dyn Node, template: &Path, disk: &Path) -> Result<(), Error> {
    let args = [
        "--reflink=auto".as_ref(),
        "--sparse=always".as_ref(),
        "--no-preserve=mode".as_ref(),
        template.as_os_str(),
        disk.as_os_str(),
    ];
    run(node, program("/bin/cp", &args), disk).await
}
