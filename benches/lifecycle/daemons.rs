//! The two daemons, each on directories of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use kina::client::Client;
use kina::cri::v1;
use kina::cri::v1::image_service_client::ImageServiceClient;
use kina::cri::v1::runtime_service_client::RuntimeServiceClient;
use kina_testkit::images::{self, File as ImageFile};
use serde_json::json;
use tonic::transport::Channel;

use crate::place::Place;

/// The image of the containers.
const IMAGE: &str = "localhost/kina-bench/busybox:1";
/// The image of containerd's sandboxes.
const PAUSE: &str = "localhost/kina-bench/pause:1";

/// Where Debian's network plugins are.
const PLUGINS: &str = "/usr/lib/cni";

/// How long a daemon may take to answer.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// A daemon that answers. It ends with its [`Place`].
#[derive(Clone)]
pub(crate) struct Daemon {
    /// Its name in the report.
    pub(crate) name: &'static str,
    /// Its process.
    pub(crate) pid: u32,
    /// CRI: pods and containers.
    pub(crate) runtime: RuntimeServiceClient<Channel>,
    /// CRI: images.
    pub(crate) images: ImageServiceClient<Channel>,
    /// Below which its pods are.
    pub(crate) cgroup: String,
    /// The image of the containers, as it knows it.
    pub(crate) image: String,
    /// Where its pods log.
    pub(crate) logs: PathBuf,
    /// All of its files.
    pub(crate) directory: PathBuf,
    /// Whether its pods are connected by network plugins.
    pub(crate) connected: bool,
}

impl Daemon {
    /// Starts kina and brings the image in.
    pub(crate) async fn kina(place: &Place, program: &Path, guest: &Path, level: &str) -> Result<Self> {
        Self::kina_with(place, program, guest, level, "").await
    }

    /// The same with a configuration of its own, besides what the flags say.
    pub(crate) async fn kina_with(
        place: &Place,
        program: &Path,
        guest: &Path,
        level: &str,
        configuration: &str,
    ) -> Result<Self> {
        let directory = place.make("k")?;
        let config = directory.join("config.toml");
        let network = format!(
            "{configuration}\n[network]\nconfig_directory = {:?}\nplugin_directories = [{PLUGINS:?}]\ncache_directory = {:?}\n",
            place.networks(),
            directory.join("cni"),
        );
        write(&config, network.as_bytes())?;
        let socket = directory.join("kina.sock");
        let cgroup = format!("{}/k", place.cgroup());
        let mut command = Command::new(program);
        command
            .arg("serve")
            .arg("--config")
            .arg(&config)
            .arg("--root")
            .arg(directory.join("root"))
            .arg("--run")
            .arg(directory.join("run"));
        command.arg("--socket").arg(&socket).arg("--guest").arg(guest);
        command.args(["--cgroup-parent", &cgroup, "--log-level", level, "--log-format", "json"]);
        let pid = spawn(&mut command, &place.log("kina"))?;
        let client = connect(&socket, pid).await?;
        let archive = directory.join("image.tar");
        write(&archive, &images::busybox(IMAGE))?;
        finish(Command::new(program).args(["image", "import"]).arg(&archive).arg("--socket").arg(&socket))?;
        Self::new("kina", pid, client, cgroup, directory, place.connected())
    }

    /// Starts containerd and brings the images in.
    pub(crate) async fn containerd(place: &Place) -> Result<Self> {
        let directory = place.make("c")?;
        let socket = directory.join("c.sock");
        let cgroup = format!("{}/c", place.cgroup());
        let config = directory.join("config.toml");
        write(&config, containerd_config(&directory, &socket, &place.networks()).as_bytes())?;
        let mut command = Command::new("containerd");
        command.arg("--config").arg(&config);
        let pid = spawn(&mut command, &place.log("containerd"))?;
        let client = connect(&socket, pid).await?;
        for (name, image) in [("image", images::busybox(IMAGE)), ("pause", pause()?)] {
            let archive = directory.join(format!("{name}.tar"));
            write(&archive, &image)?;
            let mut command = Command::new("ctr");
            command.arg("--address").arg(&socket).args(["--namespace", "k8s.io", "images", "import"]);
            finish(command.arg(&archive))?;
        }
        Self::new("containerd", pid, client, cgroup, directory, place.connected())
    }

    fn new(
        name: &'static str,
        pid: u32,
        client: Client,
        cgroup: String,
        directory: PathBuf,
        connected: bool,
    ) -> Result<Self> {
        let logs = directory.join("logs");
        fs::create_dir(&logs).with_context(|| format!("create {}", logs.display()))?;
        let Client { runtime, images, .. } = client;
        Ok(Self { name, pid, runtime, images, cgroup, image: IMAGE.to_owned(), logs, directory, connected })
    }

    /// What it says it is.
    pub(crate) async fn version(&self) -> Result<String> {
        let response = self.runtime.clone().version(v1::VersionRequest::default()).await?.into_inner();
        Ok(format!("{} {}", response.runtime_name, response.runtime_version))
    }
}

/// A sandbox image that does nothing. The program must be called `busybox` to
/// take its applet from its arguments.
fn pause() -> Result<Vec<u8>> {
    let busybox = fs::read("/bin/busybox").context("read /bin/busybox (Debian's package busybox-static)")?;
    let files = [ImageFile { path: "busybox", mode: 0o755, content: &busybox }];
    let config = json!({ "Entrypoint": ["/busybox", "sleep", "1000000"] });
    Ok(images::archive(PAUSE, &[&files], config))
}

/// Nothing of it is outside of `directory`, apart from the shims' sockets.
fn containerd_config(directory: &Path, socket: &Path, networks: &Path) -> String {
    let directory = directory.display();
    let socket = socket.display();
    let networks = networks.display();
    format!(
        r#"version = 2
root = "{directory}/root"
state = "{directory}/state"
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{directory}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE}"
  restrict_oom_score_adj = true
  disable_tcp_service = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "{PLUGINS}"
  conf_dir = "{networks}"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"
  default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
  Root = "{directory}/runc"
"#
    )
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    fs::write(path, content).with_context(|| format!("write {}", path.display()))
}

fn spawn(command: &mut Command, log: &Path) -> Result<u32> {
    let log = File::create(log).with_context(|| format!("create {}", log.display()))?;
    let output = log.try_clone()?;
    let child = command
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(log)
        .spawn()
        .with_context(|| format!("start {:?}", command.get_program()))?;
    Ok(child.id())
}

/// Runs a short command to its end.
fn finish(command: &mut Command) -> Result<()> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Waits until the daemon answers over CRI.
async fn connect(socket: &Path, pid: u32) -> Result<Client> {
    let begun = Instant::now();
    loop {
        let failure = match Client::connect(socket).await {
            Ok(mut client) => match client.runtime.version(v1::VersionRequest::default()).await {
                Ok(_) => return Ok(client),
                Err(error) => anyhow::Error::from(error),
            },
            Err(error) => error.into(),
        };
        if begun.elapsed() > START_DEADLINE || !Path::new(&format!("/proc/{pid}/exe")).exists() {
            return Err(failure.context(format!("nothing answers on {}", socket.display())));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
