//! A real guest on a unix socket, and containers of busybox.

use std::os::fd::AsRawFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use kina_attachment::Namespace;
use kina_cgroup::{Group, Hierarchy};
use kina_guest_api::v1::event::What;
use kina_guest_api::{Connect, GuestClient, GuestStream, v1};
use tokio_stream::StreamExt;

/// No test waits longer for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

const APPLETS: [&str; 24] = [
    "sh", "cat", "echo", "sleep", "head", "tail", "id", "ls", "readlink", "hostname", "ps", "grep", "true",
    "env", "touch", "stty", "wc", "kill", "test", "mount", "dd", "seq", "mkdir", "pwd",
];

const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

struct Unix(PathBuf);

#[async_trait]
impl Connect for Unix {
    async fn connect(&self) -> std::io::Result<Box<dyn GuestStream>> {
        Ok(Box::new(tokio::net::UnixStream::connect(&self.0).await?))
    }
}

/// A guest, killed with all of its pod when dropped.
pub(crate) struct Guest {
    pub(crate) process: Child,
    pub(crate) client: GuestClient,
    pub(crate) group: Group,
    /// From the start of the process to the answer of Hello.
    pub(crate) hello_after: Duration,
    pub(crate) directory: tempfile::TempDir,
}

impl Drop for Guest {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
        drop(self.group.kill_all(PATIENCE));
        drop(self.group.delete(PATIENCE));
    }
}

impl Guest {
    pub(crate) async fn start() -> Self {
        Self::start_program(Path::new(env!("CARGO_BIN_EXE_kina-guest"))).await
    }

    pub(crate) async fn start_program(program: &Path) -> Self {
        Self::start_by(program, |mut command| async move { command.spawn().unwrap() }).await
    }

    /// A guest whose machine's network namespace is that one.
    pub(crate) async fn start_in(namespace: &Namespace) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_kina-guest"));
        Self::start_by(program, |mut command| async move {
            namespace.run(move || command.spawn().unwrap()).await.unwrap()
        })
        .await
    }

    async fn start_by<F: Future<Output = Child>>(program: &Path, spawn: impl FnOnce(Command) -> F) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("state")).unwrap();
        rootfs(&directory.path().join("rootfs"));
        let name = directory.path().file_name().unwrap().to_string_lossy().replace('.', "");
        let group = Hierarchy::detect().unwrap().group(&format!("/kina-guest-test-{name}")).unwrap();
        let socket = directory.path().join("guest.sock");
        let begin = Instant::now();
        let mut command = Command::new(program);
        command
            .args(["serve", "--pod", "pod-under-test", "--listen"])
            .arg(format!("unix:{}", socket.display()))
            .args(["--cgroup", group.path(), "--log"])
            .arg(directory.path().join("guest.log"))
            .stdin(Stdio::null());
        let process = spawn(command).await;
        let mut guard = Starting { process: Some(process), group: group.clone() };
        let client = kina_guest_api::connect(Arc::new(Unix(socket)), PATIENCE).await.unwrap();
        let hello_after = begin.elapsed();
        let process = guard.process.take().unwrap();
        Self { process, client, group, hello_after, directory }
    }

    /// A guest with a pod of its own namespaces.
    pub(crate) async fn with_pod() -> Self {
        let guest = Self::start().await;
        guest.client.setup_pod(guest.pod()).await.unwrap();
        guest
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub(crate) fn log(&self, id: &str) -> PathBuf {
        self.directory.path().join(format!("{id}.log"))
    }

    /// The guest's own log, to be shown when a test fails.
    pub(crate) fn journal(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("guest.log")).unwrap_or_default()
    }

    pub(crate) fn pod(&self) -> v1::SetupPodRequest {
        v1::SetupPodRequest {
            pod_id: "pod-under-test".to_owned(),
            hostname: "testpod".to_owned(),
            state_directory: self.state().display().to_string(),
            cgroup_path: self.group.path().to_owned(),
            network: Some(v1::PodNetwork { kind: Some(v1::pod_network::Kind::Loopback(v1::Empty {})) }),
            ipc: v1::NamespaceMode::Pod.into(),
            pid: v1::NamespaceMode::Container.into(),
            uts: v1::NamespaceMode::Pod.into(),
            dns: Some(v1::Dns { servers: vec!["192.0.2.1".to_owned()], ..v1::Dns::default() }),
            ..v1::SetupPodRequest::default()
        }
    }

    /// A container with the default confinement that runs a shell script.
    pub(crate) fn container(&self, id: &str, script: &str) -> v1::CreateContainerRequest {
        let capabilities: Vec<String> = CAPABILITIES.iter().map(|&name| name.to_owned()).collect();
        v1::CreateContainerRequest {
            id: id.to_owned(),
            rootfs: Some(v1::Rootfs {
                layers: vec![v1::Layer {
                    diff_id: format!("sha256:{}", "0".repeat(64)),
                    source: Some(v1::layer::Source::Mounted(
                        self.directory.path().join("rootfs").display().to_string(),
                    )),
                }],
                readonly: false,
                volumes: Vec::new(),
            }),
            process: Some(v1::Process {
                args: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
                bounding: capabilities.clone(),
                effective: capabilities.clone(),
                permitted: capabilities,
                seccomp: Some(v1::Seccomp {
                    profile: Some(v1::seccomp::Profile::RuntimeDefault(v1::Empty {})),
                }),
                ..v1::Process::default()
            }),
            log: Some(v1::LogTarget {
                target: Some(v1::log_target::Target::Path(self.log(id).display().to_string())),
            }),
            ..v1::CreateContainerRequest::default()
        }
    }

    pub(crate) async fn create(&self, request: v1::CreateContainerRequest) -> v1::CreateContainerResponse {
        match self.client.create_container(request).await {
            Ok(created) => created,
            Err(error) => panic!("create: {error}\n{}", self.journal()),
        }
    }

    pub(crate) async fn start_container(&self, id: &str) -> v1::StartContainerResponse {
        let request = v1::StartContainerRequest { id: id.to_owned() };
        match self.client.start_container(request).await {
            Ok(started) => started,
            Err(error) => panic!("start {id}: {error}\n{}", self.journal()),
        }
    }

    /// Creates and starts; returns the pid.
    pub(crate) async fn run(&self, request: v1::CreateContainerRequest) -> u32 {
        let id = request.id.clone();
        self.create(request).await;
        self.start_container(&id).await.pid
    }

    /// Creates, starts and waits for the end.
    pub(crate) async fn run_to_end(&self, request: v1::CreateContainerRequest) -> v1::Exit {
        let id = request.id.clone();
        self.run(request).await;
        self.wait(&id).await
    }

    /// The exit of a container, as an event.
    pub(crate) async fn wait(&self, id: &str) -> v1::Exit {
        let mut events = self.client.events(0).await.unwrap();
        let exit = async {
            loop {
                let event = events.next().await.unwrap().unwrap();
                if let Some(What::Exited(exited)) = event.what
                    && exited.id == id
                {
                    return exited.exit.unwrap();
                }
            }
        };
        match tokio::time::timeout(PATIENCE, exit).await {
            Ok(exit) => exit,
            Err(_) => panic!("{id} does not end\n{}", self.journal()),
        }
    }

    pub(crate) async fn kill(&self, id: &str, signal: u32) {
        let request = v1::SignalContainerRequest { id: id.to_owned(), signal, all: false };
        self.client.signal_container(request).await.unwrap();
    }

    pub(crate) async fn delete(&self, id: &str) {
        let request = v1::DeleteContainerRequest { id: id.to_owned() };
        self.client.delete_container(request).await.unwrap();
    }

    /// What a container has written, without the records' heads.
    pub(crate) fn output(&self, id: &str) -> String {
        contents(&std::fs::read_to_string(self.log(id)).unwrap())
    }

    /// Runs a script in a container and returns what it says.
    pub(crate) async fn exec(&self, id: &str, script: &str) -> String {
        let args = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let output = match self.client.exec_sync(id, args, Some(PATIENCE), 1 << 20).await {
            Ok(output) => output,
            Err(error) => panic!("exec in {id}: {error}\n{}", self.journal()),
        };
        assert_eq!(output.code, 0, "{script}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Waits until a file of a container's log says something.
    pub(crate) async fn wait_for_output(&self, id: &str, text: &str) {
        let log = self.log(id);
        wait_until(&format!("{id} to say {text:?}"), || {
            std::fs::read_to_string(&log).is_ok_and(|log| contents(&log).contains(text))
        })
        .await;
    }
}

/// A network namespace of the test's own. It has no name: it goes with its descriptors.
pub(crate) struct Net {
    file: std::fs::File,
    pub(crate) namespace: Namespace,
}

impl Net {
    pub(crate) fn new() -> Self {
        let make = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            std::fs::File::open("/proc/thread-self/ns/net").unwrap()
        };
        let file = std::thread::spawn(make).join().unwrap();
        let namespace = Namespace::open(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
        Self { file, namespace }
    }

    /// Its path for other processes.
    pub(crate) fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Runs `ip` in it and returns what it says.
    pub(crate) async fn ip(&self, arguments: &str) -> String {
        let words: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
        let run = self.namespace.run(move || Command::new("ip").args(words).output().unwrap());
        let output = run.await.unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ip {arguments}: {complaint}");
        String::from_utf8(output.stdout).unwrap()
    }
}

/// Kills a guest that does not come up.
struct Starting {
    process: Option<Child>,
    group: Group,
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            drop(process.kill());
            drop(process.wait());
            drop(self.group.kill_all(PATIENCE));
            drop(self.group.delete(PATIENCE));
        }
    }
}

/// The contents of CRI log records.
pub(crate) fn contents(log: &str) -> String {
    log.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned() + "\n").collect()
}

pub(crate) async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A root filesystem with a shell in it.
fn rootfs(at: &Path) {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .map(Path::new)
        .into_iter()
        .find(|path| path.exists())
        .expect("no busybox: apt-get install busybox-static");
    for directory in ["bin", "etc", "proc", "sys", "dev", "tmp", "root"] {
        std::fs::create_dir_all(at.join(directory)).unwrap();
    }
    std::fs::copy(busybox, at.join("bin/busybox")).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_kina-guest"), at.join("bin/kina-guest")).unwrap();
    for applet in APPLETS {
        symlink("busybox", at.join("bin").join(applet)).unwrap();
    }
    std::fs::write(at.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n").unwrap();
    std::fs::write(at.join("etc/group"), "root:x:0:\nwww:x:34:\nextra:x:50:web\n").unwrap();
}
