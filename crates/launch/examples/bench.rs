//! How long create, start, exec and kill take, beside runc on the same machine. Needs root,
//! control groups, busybox-static and runc.
//!
//! `cargo run --release -p kina-launch --example bench [rounds]`, best with
//! `RUSTFLAGS="-C target-feature=+crt-static"` and a `--target`, as the guest is built.
#![cfg_attr(target_os = "linux", allow(clippy::print_stdout, reason = "it prints what it measured"))]

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    linux::main()
}

#[cfg(target_os = "linux")]
mod linux {
    use std::fs;
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::fs::symlink;
    use std::path::{Path, PathBuf};
    use std::process::{Command, Stdio as Pipes};
    use std::time::{Duration, Instant};

    use kina_cgroup::Hierarchy;
    use kina_launch::{Created, ExecPlan, Launcher, Plan, RootFs, Stdio, defaults};
    use oci_spec::runtime::Spec;
    use rustix::process::{WaitId, WaitIdOptions};

    type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

    pub(crate) fn main() -> Outcome<()> {
        let mut arguments = std::env::args().skip(1);
        let first = arguments.next();
        if first.as_deref() == Some("helper") {
            kina_launch::helper_main();
        }
        let rounds: usize = first.map_or(Ok(50), |text| text.parse())?;
        let directory = tempfile::tempdir()?;
        let root = directory.path().join("root");
        fs::create_dir_all(root.join("bin"))?;
        fs::copy("/bin/busybox", root.join("bin/busybox"))?;
        for name in ["sleep", "true"] {
            symlink("busybox", root.join("bin").join(name))?;
        }
        println!("median of {rounds}, milliseconds");
        println!("{:8} {:>8} {:>8} {:>8} {:>12}", "", "create", "start", "exec", "kill+delete");
        show("kina", (0..rounds).map(|_| ours(&root)).collect::<Outcome<_>>()?);
        if Command::new("runc").arg("--version").stdout(Pipes::null()).status().is_ok() {
            show("runc", (0..rounds).map(|_| runcs(directory.path())).collect::<Outcome<_>>()?);
        }
        Ok(())
    }

    fn show(name: &str, rounds: Vec<[Duration; 4]>) {
        let median = |index: usize| {
            let mut times: Vec<Duration> = rounds.iter().map(|round| round[index]).collect();
            times.sort();
            times[times.len() / 2].as_secs_f64() * 1000.0
        };
        let [create, start, exec, kill] = [0, 1, 2, 3].map(median);
        println!("{name:8} {create:8.2} {start:8.2} {exec:8.2} {kill:12.2}");
    }

    fn spec(args: &[&str]) -> Spec {
        let mut spec = defaults::spec();
        if let Some(process) = spec.process_mut() {
            process.set_args(Some(args.iter().map(|arg| (*arg).to_owned()).collect()));
        }
        spec
    }

    fn quiet() -> Outcome<Stdio> {
        let null = || fs::File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from);
        Ok(Stdio::Files { stdin: null()?, stdout: null()?, stderr: null()? })
    }

    fn wait(pidfd: &OwnedFd) -> Outcome<()> {
        rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)?;
        Ok(())
    }

    fn ours(root: &Path) -> Outcome<[Duration; 4]> {
        let launcher = Launcher::new(Path::new("/proc/self/exe"), &["bench", "helper"])?;
        let path = format!("/kina-launch-bench-{}", std::process::id());
        let group = Hierarchy::detect()?.group(&path)?;
        let container = spec(&["/bin/sleep", "1000"]);
        let begin = Instant::now();
        let Created { pidfd, start, .. } = launcher.create(Plan {
            spec: container.clone(),
            rootfs: RootFs::Path(PathBuf::from(root)),
            stdio: quiet()?,
            cgroup: Some(group.clone()),
        })?;
        let created = begin.elapsed();
        let begin = Instant::now();
        start.start()?;
        let started = begin.elapsed();
        let begin = Instant::now();
        let process = spec(&["/bin/true"]).process().clone().ok_or("no process")?;
        let plan = ExecPlan { container: &container, process, stdio: quiet()?, cgroup: Some(group.clone()) };
        let exec = launcher.exec(pidfd.as_fd(), plan)?;
        exec.start.start()?;
        wait(&exec.pidfd)?;
        let executed = begin.elapsed();
        let begin = Instant::now();
        group.kill_all(Duration::from_secs(10))?;
        wait(&pidfd)?;
        group.delete(Duration::from_secs(10))?;
        Ok([created, started, executed, begin.elapsed()])
    }

    fn runcs(bundle: &Path) -> Outcome<[Duration; 4]> {
        let id = format!("kina-launch-bench-{}", std::process::id());
        let mut spec = spec(&["/bin/sleep", "1000"]);
        if let Some(root) = spec.root_mut() {
            root.set_path("root".into());
        }
        fs::write(bundle.join("config.json"), serde_json::to_vec(&spec)?)?;
        let bundle = bundle.to_str().ok_or("no text")?;
        let runc = |args: &[&str]| -> Outcome<Duration> {
            let begin = Instant::now();
            let mut command = Command::new("runc");
            let status = command
                .args(args)
                .stdin(Pipes::null())
                .stdout(Pipes::null())
                .stderr(Pipes::null())
                .status()?;
            if !status.success() {
                return Err(format!("runc {args:?}: {status}").into());
            }
            Ok(begin.elapsed())
        };
        let created = runc(&["create", "--bundle", bundle, &id])?;
        let started = runc(&["start", &id])?;
        let executed = runc(&["exec", &id, "/bin/true"])?;
        let deleted = runc(&["delete", "--force", &id])?;
        Ok([created, started, executed, deleted])
    }
}
