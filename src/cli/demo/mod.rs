//! `kina demo`: the first five minutes with kina. It needs nothing but this
//! executable and the guest, and leaves nothing.

mod children;
mod logs;
mod pod;
mod room;
mod story;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::text::bytes;
use super::{UsageError, print_error, socket};
use crate::admin::v1 as admin;
use crate::client::Client;
use crate::config::Config;
use crate::cri::v1;
use crate::elf::{Verdict, look_at};
use crate::oci::{Entry, SmallImage};
use crate::traces::Trace;
use children::{Daemon, Registry, tail};
use pod::Pod;
use room::Room;
use story::{Facts, Story};

/// The largest guest that is put into an image, in bytes.
const GUEST_LIMIT: u64 = 256 << 20;

/// Requests that are waited for while no daemon runs.
const ALONE: usize = 5;

/// Flags of `kina demo`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The kina-guest executable [default: as `kina serve` finds it].
    #[arg(long, env = "KINA_GUEST")]
    guest: Option<PathBuf>,
    /// Leave the daemon and the pod running at the end.
    #[arg(long)]
    keep: bool,
    /// A line of JSON for each step, for programs.
    #[arg(long)]
    json: bool,
    /// Where the throwaway directory is made; the shorter the better, because
    /// paths of sockets have a limit.
    #[arg(long, default_value = "/tmp")]
    directory: PathBuf,
}

/// Runs the demo.
pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if std::env::consts::OS != "linux" {
        bail!("the demo runs pods on the node's own kernel, which has to be Linux");
    }
    if !rustix::process::geteuid().is_root() {
        return Err(UsageError("the demo makes namespaces and mounts: it needs root".to_owned()).into());
    }
    socket::block_on(demo(arguments))
}

async fn demo(arguments: &Arguments) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let guest = guest(arguments)?;
    let mut story = Story::new(arguments.json);
    for room in Room::leftovers(&arguments.directory)? {
        story.say(&format!("An earlier demo was killed; cleaning {}.", room.path().display()))?;
        room.clear()?;
    }
    let room = Room::new(&arguments.directory)?;
    story.say(&format!(
        "kina {}: a pod, from nothing to nothing.\nEverything lies in {} and goes away at the end.\n ",
        env!("KINA_VERSION"),
        room.path().display()
    ))?;
    let mut stage = Stage { room: &room, guest, daemon: None, registry: None, keep: arguments.keep };
    let result = tokio::select! {
        result = stage.play(&mut story) => result,
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow::anyhow!("interrupted")),
    };
    if arguments.keep && result.is_ok() {
        return Ok(());
    }
    if result.is_err() && !arguments.json {
        print_error(&format!("the demo failed; the daemon's last lines:\n{}", tail(&room.daemon_log())));
    }
    // Ends the processes that still run.
    drop(stage);
    let path = room.path().to_owned();
    let cleared = tokio::task::spawn_blocking(move || room.clear()).await?;
    match (&result, &cleared) {
        (Ok(()), Ok(())) => {
            let text = format!("{} is gone. That was it.", path.display());
            story.end(true, &text)?;
        }
        _ => story.end(false, "The demo failed.")?,
    }
    result.and(cleared)
}

/// The guest program, checked: it is also the demo image's only program.
fn guest(arguments: &Arguments) -> anyhow::Result<PathBuf> {
    let path = match &arguments.guest {
        Some(path) => path.clone(),
        None => Config::default().guest_program().context("--guest names the kina-guest to use")?,
    };
    let path = path.canonicalize().with_context(|| format!("find the guest {}", path.display()))?;
    match look_at(&path).with_context(|| format!("read {}", path.display()))? {
        Verdict::Static => Ok(path),
        Verdict::Dynamic => {
            bail!("{} is linked dynamically; `cargo xtask guest` builds a static one", path.display())
        }
        Verdict::NotElf => bail!("{} is no program for this machine", path.display()),
    }
}

/// What the demo has under way.
struct Stage<'a> {
    room: &'a Room,
    guest: PathBuf,
    daemon: Option<Daemon>,
    registry: Option<Registry>,
    keep: bool,
}

impl Stage<'_> {
    async fn play(&mut self, story: &mut Story) -> anyhow::Result<()> {
        let image = self.image()?;
        let mut reference = "localhost/kina-demo:1".to_owned();
        story
            .step(
                "Make an image",
                "One layer with one static program, pushed to a registry on loopback if Debian's \
                 docker-registry is here; else it becomes an OCI archive.",
                async {
                    let facts = Facts::default();
                    let size = bytes(image.layer_bytes() as u64);
                    self.registry = Registry::start(self.room).await?;
                    let Some(registry) = &self.registry else {
                        return Ok(facts.text(format!("An archive: layer of {size}.")));
                    };
                    let address = registry.address;
                    reference = format!("{address}/kina-demo:1");
                    push(image.clone(), address).await?;
                    Ok(facts.text(format!("{reference}: layer of {size}.")))
                },
            )
            .await?;

        let mut client = None;
        story
            .step(
                "Start the daemon",
                "`kina serve`, with a root, a socket and a cgroup of its own. The kubelet or crictl \
                 would talk to that socket exactly as this demo does: CRI v1 over gRPC.",
                async {
                    self.write_config()?;
                    let (daemon, connected) = Daemon::start(self.room).await?;
                    let facts = version(&connected, daemon.id()).await?;
                    self.daemon = Some(daemon);
                    client = Some(connected);
                    Ok(facts)
                },
            )
            .await?;
        let mut client = client.context("the daemon was not started")?;

        story
            .step(
                "Bring the image in",
                "The layer is checked against its digest and turned into one read-only EROFS image, \
                 straight from the stream. All containers of the image share it, and its page cache.",
                bring_in(&mut client, &image, &reference, self.registry.is_some()),
            )
            .await?;

        let mut pod = Pod::new(&self.room.logs(), &reference);
        story
            .step(
                "Run a pod",
                "Its machine here is the node's own kernel: a network namespace, and one kina-guest \
                 that will outlive the daemon. (Virtual machines come next.)",
                pod.run(&mut client),
            )
            .await?;
        story
            .step(
                "Start two containers",
                "A server, and a client that asks it ten times a second. They share the pod's network: \
                 127.0.0.1 is the same for both, and nobody else is on it.",
                pod.start(&mut client),
            )
            .await?;
        story
            .step(
                "Read their logs",
                "In the CRI's format, written by the guest, so that no daemon is needed for it.",
                pod.logs(),
            )
            .await?;
        story
            .step(
                "Run a command in a container",
                "ExecSync, as a kubelet's probe does. The command gets exactly the confinement of its \
                 container.",
                pod.exec(&mut client),
            )
            .await?;
        story
            .step(
                "Ask for the pod's status",
                "Which machine it runs on is no secret.",
                pod.status(&mut client, &self.room.path().display().to_string()),
            )
            .await?;

        story
            .step(
                "Kill the daemon (-9)",
                "An update, a crash or the OOM killer must not touch pods. Now nobody serves the socket.",
                async {
                    let daemon = self.daemon.take().context("the daemon was not started")?;
                    let id = daemon.id();
                    daemon.kill().await?;
                    let seen = pod.seen()?;
                    pod.wait_for_requests(seen + ALONE).await?;
                    ensure!(Client::connect(self.room.socket()).await.is_err(), "somebody answers on the socket");
                    Ok(Facts::default().text(format!(
                        "Process {id} is dead. The client has asked {ALONE} more times since, and got its answers."
                    )))
                },
            )
            .await?;
        story
            .step(
                "Start a new daemon",
                "It compares its records with what really runs, and adopts it.",
                async {
                    let (daemon, connected) = Daemon::start(self.room).await?;
                    let id = daemon.id();
                    self.daemon = Some(daemon);
                    client = connected;
                    Ok(Facts::default().text(format!("Process {id} answers.")))
                },
            )
            .await?;
        story
            .step(
                "See that the pod never noticed",
                "Same processes, same start times, and not a line of the logs lost or doubled.",
                pod.unharmed(&mut client),
            )
            .await?;

        if self.keep {
            return self.leave(story);
        }
        let before = self.room.traces();
        story
            .step(
                "Stop and remove everything",
                "Pod, image, daemon. Every call may be repeated; the kubelet does that.",
                async {
                    pod.remove(&mut client).await?;
                    let image = v1::ImageSpec { image: reference.clone(), ..v1::ImageSpec::default() };
                    client.images.remove_image(v1::RemoveImageRequest { image: Some(image) }).await?;
                    let images =
                        client.images.list_images(v1::ListImagesRequest::default()).await?.into_inner();
                    ensure!(images.images.is_empty(), "{} images are left", images.images.len());
                    drop(client);
                    let daemon = self.daemon.take().context("the daemon was not started")?;
                    let status = daemon.stop().await?;
                    ensure!(status.success(), "the daemon ended with {status}");
                    if let Some(registry) = self.registry.take() {
                        registry.stop().await?;
                    }
                    Ok(Facts::default().text("Stopped with SIGTERM, exit code 0."))
                },
            )
            .await?;
        story
            .step("Prove that nothing is left", "Asked of the kernel, not of kina's records.", async {
                nothing_left(&before, &self.room.traces())
            })
            .await
    }

    fn image(&self) -> anyhow::Result<SmallImage> {
        let size = std::fs::metadata(&self.guest)?.len();
        ensure!(size <= GUEST_LIMIT, "{} has {}", self.guest.display(), bytes(size));
        let program = std::fs::read(&self.guest).context("read the guest")?;
        let directory = |path| Entry::Directory { path, mode: 0o755 };
        let file = |path, content| Entry::File { path, mode: 0o644, content };
        let entries = [
            directory("dev"),
            directory("etc"),
            file("etc/group", &b"root:x:0:\nnobody:x:65534:\n"[..]),
            file("etc/passwd", &b"root:x:0:0:root:/:/kina-demo\nnobody:x:65534:65534::/:/kina-demo\n"[..]),
            Entry::File { path: "kina-demo", mode: 0o755, content: &program },
            directory("proc"),
            directory("sys"),
            Entry::Directory { path: "tmp", mode: 0o1777 },
        ];
        let config =
            json!({ "Entrypoint": ["/kina-demo", "demo"], "Env": ["PATH=/"], "User": "65534:65534" });
        Ok(SmallImage::new(&entries, &config)?)
    }

    fn write_config(&self) -> anyhow::Result<()> {
        let mut config = self.room.config(&self.guest);
        config.image.plain_http.extend(self.registry.as_ref().map(|registry| registry.address.to_string()));
        std::fs::write(self.room.path().join("config.toml"), toml::to_string_pretty(&config)?)?;
        Ok(())
    }

    /// Leaves the daemon and the pod to the user.
    fn leave(&mut self, story: &Story) -> anyhow::Result<()> {
        // What is not dropped is not killed.
        std::mem::forget(self.daemon.take());
        std::mem::forget(self.registry.take());
        let socket = self.room.socket();
        let socket = socket.display();
        story.end(true, "Left running, as asked.")?;
        story.say(&format!(
            "crictl --runtime-endpoint unix://{socket} pods\nkina image ls --socket {socket}\n\
             The next `kina demo` removes it."
        ))?;
        Ok(())
    }
}

async fn push(image: SmallImage, registry: SocketAddr) -> anyhow::Result<()> {
    let push = move || image.push(registry, "kina-demo", "1");
    tokio::task::spawn_blocking(push).await?.context("push the image")
}

async fn version(client: &Client, pid: u32) -> anyhow::Result<Facts> {
    let mut client = client.clone();
    let answer = client.runtime.version(v1::VersionRequest::default()).await?.into_inner();
    Ok(Facts::default().text(format!(
        "Process {pid}: {} {}, CRI {}.",
        answer.runtime_name, answer.runtime_version, answer.runtime_api_version
    )))
}

async fn bring_in(
    client: &mut Client,
    image: &SmallImage,
    reference: &str,
    registry: bool,
) -> anyhow::Result<Facts> {
    if registry {
        let image = v1::ImageSpec { image: reference.to_owned(), ..v1::ImageSpec::default() };
        let request = v1::PullImageRequest { image: Some(image), ..v1::PullImageRequest::default() };
        client.images.pull_image(request).await.context("pull the image")?;
    } else {
        use admin::import_image_request::Part;
        let archive = image.archive(reference)?;
        let start = Part::Start(admin::ImportStart::default());
        let chunks = archive.chunks(crate::admin::CHUNK_LIMIT / 4).map(|chunk| Part::Chunk(chunk.to_vec()));
        let messages: Vec<_> = std::iter::once(start)
            .chain(chunks)
            .map(|part| admin::ImportImageRequest { part: Some(part) })
            .collect();
        client.admin.import_image(tokio_stream::iter(messages)).await.context("import the image")?;
    }
    let images = client.images.list_images(v1::ListImagesRequest::default()).await?.into_inner().images;
    let image = images.first().context("the image is not in the list")?;
    Ok(Facts::default().text(format!(
        "{} by {}, id {}.",
        image.repo_tags.join(", "),
        if registry { "PullImage" } else { "import" },
        super::text::short(&image.id)
    )))
}

/// Compares the machine with what it was while the pod ran. Without something
/// then, nothing now would prove nothing.
fn nothing_left(before: &[Trace], after: &[Trace]) -> anyhow::Result<Facts> {
    if !after.is_empty() {
        let list: Vec<String> = after.iter().map(|trace| format!("{trace:?}")).collect();
        bail!("something is left:\n{}", list.join("\n"));
    }
    let mut facts = Facts::default();
    for (kind, name) in Trace::KINDS.iter().enumerate() {
        let count = before.iter().filter(|trace| trace.kind() == kind).count();
        // Kernels that mount files need no loop devices.
        ensure!(count > 0 || *name == "loop devices", "no {name} were seen while the pod ran");
        facts = facts.line(format!("{name:18}  {count:2} while the pod ran, 0 now"));
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_listed() {
        let before = [
            Trace::Process { pid: 1, command: String::new() },
            Trace::Mount("/a".into()),
            Trace::NetworkNamespace("/b".into()),
            Trace::Cgroup("/c".into()),
            Trace::File("/d".into()),
        ];
        assert!(nothing_left(&before, &[]).is_ok());
        let error = nothing_left(&before, &before[1..2]).unwrap_err().to_string();
        assert!(error.contains("Mount(\"/a\")"), "{error}");
        // A look that sees nothing proves nothing.
        assert!(nothing_left(&before[1..], &[]).unwrap_err().to_string().contains("no processes were seen"));
    }
}
