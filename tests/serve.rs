//! The life of `kina serve`, and the commands that ask it, as processes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use kina::admin::v1::{ImportImageRequest, ImportStart, InfoRequest, import_image_request::Part};
use kina::client::Client;
use kina::oci::{Entry, SmallImage};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(10);

fn kina() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kina"));
    for name in ["NOTIFY_SOCKET", "KINA_SOCKET", "KINA_GUEST", "KINA_REGISTRY_CREDENTIALS"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// Directories for a daemon.
struct Place {
    directory: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn socket(&self) -> PathBuf {
        self.path("run/kina.sock")
    }

    fn serve(&self) -> Command {
        let mut command = kina();
        command.arg("serve").arg("--root").arg(self.path("root")).arg("--run").arg(self.path("run"));
        // No pod is made here, so that any file will do.
        command.args(["--guest", "/proc/self/exe", "--cgroup-parent", "/kina-test-serve"]);
        command.arg("--network-config-directory").arg(self.path("net.d"));
        command
    }

    /// Starts a daemon and waits until it answers.
    fn start(&self) -> Daemon {
        let mut command = self.serve();
        let mut daemon = Daemon(command.stderr(Stdio::piped()).spawn().unwrap());
        wait_for("an answer of the daemon", || {
            if let Some(status) = daemon.0.try_wait().unwrap() {
                panic!("{status}: {}", daemon.stderr());
            }
            answers(&self.socket())
        });
        daemon
    }

    /// Runs one of the commands that ask the daemon.
    fn ask(&self, arguments: &[&str]) -> Output {
        kina().args(arguments).arg("--socket").arg(self.socket()).output().unwrap()
    }
}

/// A process that does not outlive its test.
struct Daemon(Child);

impl Daemon {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.0.id().cast_signed()).unwrap(), signal).unwrap();
    }

    fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        wait_for("the daemon's end", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    fn stderr(&mut self) -> String {
        let mut text = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        text
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "no {what} in {PATIENCE:?}");
        std::thread::sleep(PAUSE);
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn answers(socket: &Path) -> bool {
    block_on(async {
        match Client::connect(socket).await {
            Ok(mut client) => client.admin.info(InfoRequest {}).await.is_ok(),
            Err(_) => false,
        }
    })
}

/// A daemon that is expected not to start.
fn refused(command: &mut Command, code: i32) -> String {
    let mut daemon = Daemon(command.stderr(Stdio::piped()).spawn().unwrap());
    let status = daemon.wait();
    let text = daemon.stderr();
    assert_eq!(status.code(), Some(code), "{text}");
    text
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_second_daemon_is_refused_and_told_of_the_first() {
    let place = Place::new();
    let first = place.start();
    let metadata = std::fs::metadata(place.socket()).unwrap();
    assert!(metadata.file_type().is_socket());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o660);
    let error = refused(&mut place.serve(), 1);
    assert!(error.contains(&format!("another kina (process {})", first.0.id())), "{error}");
    assert!(answers(&place.socket()));
}

#[test]
fn what_a_killed_daemon_leaves_is_taken_over() {
    let place = Place::new();
    let mut first = place.start();
    first.signal(Signal::KILL);
    first.wait();
    assert!(place.socket().exists());
    assert!(!answers(&place.socket()));
    place.start();
}

#[test]
fn a_socket_that_another_program_listens_on_is_left_alone() {
    let place = Place::new();
    std::fs::create_dir(place.path("run")).unwrap();
    let other = UnixListener::bind(place.socket()).unwrap();
    let error = refused(&mut place.serve(), 1);
    assert!(error.contains("something else listens on"), "{error}");
    other.set_nonblocking(true).unwrap();
    drop(std::os::unix::net::UnixStream::connect(place.socket()).unwrap());
}

#[test]
fn the_service_manager_hears_of_start_and_stop() {
    let place = Place::new();
    let manager = UnixDatagram::bind(place.path("notify")).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let hear = || {
        let mut message = [0; 4096];
        let length = manager.recv(&mut message).unwrap();
        text(&message[..length])
    };
    let mut command = place.serve();
    command.env("NOTIFY_SOCKET", place.path("notify")).stderr(Stdio::null());
    let mut daemon = Daemon(command.spawn().unwrap());
    assert!(hear().lines().any(|line| line == "READY=1"));
    // Ready means that a call is answered now.
    assert!(answers(&place.socket()));
    daemon.signal(Signal::TERM);
    assert!(hear().lines().any(|line| line == "STOPPING=1"));
    assert_eq!(daemon.wait().code(), Some(0));
    assert!(!place.socket().exists());
}

#[test]
fn calls_under_way_may_end_and_a_second_signal_ends_them() {
    let place = Place::new();
    let mut daemon = place.start();
    block_on(async {
        let mut client = Client::connect(place.socket()).await.unwrap();
        // An import that gets its first message and then nothing.
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let start = Part::Start(ImportStart::default());
        sender.send(ImportImageRequest { part: Some(start) }).await.unwrap();
        let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let mut admin = client.admin.clone();
        let call = tokio::spawn(async move { admin.import_image(stream).await });
        tokio::task::yield_now().await;
        // The same connection: when this is answered, the import has begun.
        client.admin.info(InfoRequest {}).await.unwrap();
        daemon.signal(Signal::TERM);
        let deadline = Instant::now() + PATIENCE;
        while place.socket().exists() {
            assert!(Instant::now() < deadline, "the socket stays");
            tokio::time::sleep(PAUSE).await;
        }
        assert!(daemon.0.try_wait().unwrap().is_none(), "it did not wait for the call");
        let begun = Instant::now();
        daemon.signal(Signal::TERM);
        let status = daemon.wait();
        assert_eq!(status.code(), Some(0));
        assert!(begun.elapsed() < Duration::from_secs(8), "it waited for the call: {:?}", begun.elapsed());
        drop(sender);
        assert!(call.await.unwrap().is_err());
    });
}

/// gRPC's C core (Python, C++, Ruby) says a unix socket's path where others say
/// a host's name. Its bytes, since no client in Rust can be made to.
#[test]
fn a_client_that_takes_the_sockets_path_for_a_host_is_answered() {
    let place = Place::new();
    let _daemon = place.start();
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
    };
    let literal = |name: &str, value: &str| {
        let string = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
        [vec![0x40], string(name), string(value)].concat()
    };
    let headers = [
        literal(":path", "/runtime.v1.RuntimeService/Version"),
        literal(":authority", "tmp%2Fsome%2Fkina.sock"),
        vec![0x83, 0x86],
        literal("content-type", "application/grpc"),
        literal("te", "trailers"),
    ];
    let mut connection = UnixStream::connect(place.socket()).unwrap();
    connection.set_read_timeout(Some(PATIENCE)).unwrap();
    connection.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
    connection.write_all(&frame(4, 0, 0, &[])).unwrap();
    connection.write_all(&frame(1, 4, 1, &headers.concat())).unwrap();
    connection.write_all(&frame(0, 1, 1, &[0; 5])).unwrap();

    let answer = loop {
        let mut head = [0; 9];
        connection.read_exact(&mut head).unwrap();
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        connection.read_exact(&mut payload).unwrap();
        // Not the settings, which are the connection's.
        if head[8] == 1 {
            break head[3];
        }
    };
    assert_eq!(answer, 1, "HEADERS, not RST_STREAM (3)");
}

#[test]
fn mistakes_of_the_caller_are_64_and_say_everything() {
    let place = Place::new();
    let long = place.path(&"x".repeat(120));
    let error = refused(place.serve().arg("--socket").arg(&long), 64);
    assert!(error.contains("at most 103"), "{error}");

    let error = refused(kina().arg("serve").arg("--config").arg(place.path("missing")), 64);
    assert!(error.contains("missing") && error.contains("No such file"), "{error}");

    let file = place.path("bad.toml");
    std::fs::write(&file, "[log]\nformat = \"xml\"\n").unwrap();
    let error = refused(kina().args(["config", "check"]).arg(&file), 64);
    assert!(error.contains("bad.toml") && error.contains("xml") && error.contains("line 2"), "{error}");

    refused(kina().arg("srve"), 64);
}

#[test]
fn a_run_directory_that_cannot_be_made() {
    let place = Place::new();
    std::fs::write(place.path("run"), "").unwrap();
    let error = refused(&mut place.serve(), 1);
    assert!(error.contains("create") && error.contains("run: "), "{error}");
}

#[test]
fn the_configuration_is_shown_and_checked() {
    let place = Place::new();
    let output = kina().args(["config", "default"]).output().unwrap();
    assert!(output.status.success());
    let file = place.path("kina.toml");
    std::fs::write(&file, &output.stdout).unwrap();
    let output = kina().args(["config", "check"]).arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    std::fs::write(&file, "[machine]\ncpus = 7\n").unwrap();
    let shown = text(&kina().args(["config", "show"]).arg(&file).output().unwrap().stdout);
    assert!(shown.contains("cpus = 7") && shown.contains("root = \"/var/lib/kina\""), "{shown}");
}

#[test]
fn images_come_and_go_by_the_command_line() {
    let place = Place::new();
    let daemon = place.start();
    let content = vec![7; 3 << 20];
    let entries = [Entry::File { path: "seven", mode: 0o644, content: &content }];
    let image = SmallImage::new(&entries, &serde_json::json!({ "Cmd": ["/seven"] })).unwrap();
    let archive = place.path("in.tar");
    std::fs::write(&archive, image.archive("localhost/seven:1").unwrap()).unwrap();
    let (archive, out) = (archive.to_str().unwrap().to_owned(), place.path("out.tar"));
    let out = out.to_str().unwrap();

    let output = place.ask(&["image", "import", &archive]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).starts_with("localhost/seven:1 "), "{}", text(&output.stdout));

    let listed = || -> serde_json::Value {
        serde_json::from_slice(&place.ask(&["image", "ls", "--json"]).stdout).unwrap()
    };
    assert_eq!(listed()[0]["tags"][0], "localhost/seven:1");
    let id = listed()[0]["id"].clone();
    assert!(text(&place.ask(&["image", "ls"]).stdout).contains("localhost/seven:1"));

    let output = place.ask(&["image", "export", "localhost/seven:1", out]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let output = place.ask(&["image", "rm", "localhost/seven:1"]);
    assert!(text(&output.stdout).contains("removed"), "{}", text(&output.stderr));
    assert_eq!(listed().as_array().unwrap().len(), 0);

    // What was exported is the same image, under the name it is given.
    let output = place.ask(&["image", "import", out, "--name", "localhost/eight:2"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(listed()[0]["id"], id);
    assert_eq!(listed()[0]["tags"], serde_json::json!(["localhost/eight:2"]));

    // One that is not there does not keep the others.
    let tagged = place.ask(&["image", "tag", "localhost/eight:2", "localhost/ten:1"]);
    assert!(tagged.status.success(), "{tagged:?}");
    let output = place.ask(&["image", "rm", "localhost/nine", "localhost/ten:1", "localhost/eleven"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).starts_with("localhost/ten:1: name removed"), "{output:?}");
    let error = text(&output.stderr);
    assert!(error.contains("\"localhost/nine\" not found") && error.contains("localhost/eleven"), "{error}");
    assert_eq!(error.matches("not found").count(), 2, "{error}");
    assert!(!error.contains("pull"), "nobody who removes wants it: {error}");
    std::fs::write(place.path("bad"), "no archive").unwrap();
    let output = place.ask(&["image", "import", place.path("bad").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stdout));
    let output = place.ask(&["image", "export", "localhost/nine", place.path("nine").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    assert!(!place.path("nine").exists());

    let version = text(&place.ask(&["version"]).stdout);
    assert!(version.contains(&format!("(process {})", daemon.0.id())), "{version}");
}

/// `kina service install` where nothing changed restarts a daemon only if the program
/// has become another since it was started. A stand-in plays systemd.
#[test]
fn a_service_whose_program_was_replaced_is_restarted() {
    let place = Place::new();
    let _daemon = place.start();
    let manager = place.path("manager");
    std::fs::create_dir(&manager).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stand-ins/systemctl");
    std::os::unix::fs::symlink(script, manager.join("systemctl")).unwrap();
    let config = place.path("kina.toml");
    std::fs::write(&config, format!("run = {:?}\n", place.path("run"))).unwrap();
    let program = place.path("kina");
    let be = |version: &str| {
        // Renamed into place, as installers do: the text is never that of half a script.
        let fresh = place.path("kina.new");
        std::fs::write(&fresh, format!("#!/bin/sh\necho '{version}'\n")).unwrap();
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&fresh, &program).unwrap();
    };
    let install = || {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = kina();
        command.args(["service", "install", "--manager", "systemd", "--unit-directory"]);
        command.arg(manager.join("units")).arg("--config").arg(&config).arg("--program").arg(&program);
        let output = command.env("PATH", format!("{}:{path}", manager.display())).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        let calls = std::fs::read_to_string(manager.join("calls")).unwrap();
        std::fs::remove_file(manager.join("calls")).unwrap();
        (text(&output.stdout), calls.contains("restart kina.service"))
    };
    be(text(&kina().arg("--version").output().unwrap().stdout).trim());
    let (said, restarted) = install();
    assert!(restarted && said.contains("wrote "), "{said}");
    let (said, restarted) = install();
    assert!(!restarted && said.contains("runs already"), "{said}");
    be("kina 0.0.0");
    let (said, restarted) = install();
    assert!(restarted && said.contains("there is "), "{said}");
}

/// What a command prints as JSON; it must end with this code.
fn json(place: &Place, arguments: &[&str], code: i32) -> serde_json::Value {
    let output = place.ask(arguments);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output.stdout)))
}

fn import(place: &Place, name: &str, content: &[u8]) {
    let entries = [Entry::File { path: "file", mode: 0o644, content }];
    let image = SmallImage::new(&entries, &serde_json::json!({ "Cmd": [name] })).unwrap();
    let archive = place.path("archive.tar");
    std::fs::write(&archive, image.archive(name).unwrap()).unwrap();
    let output = place.ask(&["image", "import", archive.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn images_are_kept_by_the_command_line() {
    let place = Place::new();
    let _daemon = place.start();
    import(&place, "localhost/one:1", &[1; 300_000]);
    import(&place, "localhost/two:1", b"2");

    let output = place.ask(&["image", "tag", "localhost/one:1", "localhost/other:2"]);
    assert!(output.status.success() && text(&output.stdout).starts_with("sha256:"), "{output:?}");
    let output = place.ask(&["image", "tag", "localhost/none", "localhost/other:2"]);
    assert!(output.status.code() == Some(1) && text(&output.stderr).contains("not found"), "{output:?}");

    let found = json(&place, &["image", "inspect", "localhost/other:2"], 0);
    let image = &found[0];
    assert_eq!(image["tags"], serde_json::json!(["localhost/one:1", "localhost/other:2"]));
    assert_eq!((&image["complete"], &image["containers"]), (&true.into(), &serde_json::json!([])));
    let layer = &image["layers"][0];
    assert!(layer["imageSize"].as_u64().unwrap() > 300_000 && layer["diffId"].is_string(), "{layer}");

    // The parts are the whole, and that is what du and the CRI say.
    let found = json(&place, &["image", "du", "--json"], 0);
    let bytes = |value: &serde_json::Value, key: &str| value[key].as_u64().unwrap();
    let images = found["images"].as_array().unwrap();
    let parts: u64 = images.iter().map(|image| bytes(image, "uniqueBytes")).sum();
    let shared =
        bytes(&found, "sharedBytes") + bytes(&found, "unreferencedBytes") + bytes(&found, "otherBytes");
    let du = |unit: &str| -> u64 {
        let output = Command::new("du").args(["-s", unit]).arg(place.path("root/images")).output().unwrap();
        text(&output.stdout).split_whitespace().next().unwrap().parse().unwrap()
    };
    assert_eq!((images.len(), parts + shared), (2, bytes(&found, "totalBytes")));
    assert_eq!(
        (bytes(&found, "totalBytes"), bytes(&found, "totalInodes")),
        (du("--block-size=1"), du("--inodes"))
    );
    let info = block_on(async {
        let mut client = Client::connect(place.socket()).await.unwrap();
        let request = kina::cri::v1::ImageFsInfoRequest {};
        client.images.image_fs_info(request).await.unwrap().into_inner()
    });
    let info = &info.image_filesystems[0];
    assert_eq!(info.used_bytes.unwrap().value, bytes(&found, "totalBytes"));
    assert_eq!(info.inodes_used.unwrap().value, bytes(&found, "totalInodes"));
    let output = text(&place.ask(&["image", "du"]).stdout);
    assert!(output.contains("RECLAIMABLE") && output.contains("localhost/two:1"), "{output}");

    // Damage is found, and mended from what is here.
    let output = place.ask(&["image", "verify"]);
    assert!(output.status.success() && text(&output.stdout).contains("nothing is wrong"), "{output:?}");
    let hex = layer["diffId"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
    let path = place.path(&format!("root/images/layers/{hex}.erofs"));
    let content = std::fs::read(&path).unwrap();
    let mut damaged = content.clone();
    damaged[9000] ^= 1;
    std::fs::write(&path, damaged).unwrap();
    assert!(place.ask(&["image", "verify", "localhost/two:1"]).status.success());
    let output = place.ask(&["image", "verify", "localhost/one:1"]);
    assert_eq!(output.status.code(), Some(1));
    let (said, advice) = (text(&output.stdout), text(&output.stderr));
    assert!(said.contains(&hex) && said.contains("is corrupt") && said.contains("localhost/one:1"), "{said}");
    assert!(advice.contains("--repair"), "{advice}");
    let report = json(&place, &["image", "verify", "--repair", "--json"], 0);
    assert_eq!(report["findings"][0]["repair"], "done", "{report}");
    assert_eq!(std::fs::read(&path).unwrap(), content);
    assert!(place.ask(&["image", "verify"]).status.success());
    // There is no registry to bring a blob back from.
    let blob = image["manifest"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
    std::fs::remove_file(place.path(&format!("root/images/oci/blobs/sha256/{blob}"))).unwrap();
    let report = json(&place, &["image", "verify", "--repair", "--json"], 1);
    assert_eq!(report["findings"][0]["repair"], "failed", "{report}");
    let output = place.ask(&["image", "verify", "localhost/none"]);
    assert!(output.status.code() == Some(1) && text(&output.stderr).contains("not found"), "{output:?}");

    // Nothing is without a tag, and nothing is old.
    for flags in [&["--dry-run"][..], &[], &["--all", "--until", "1h"]] {
        let pruned = json(&place, &[&["image", "prune", "--json"], flags].concat(), 0);
        assert_eq!((bytes(&pruned, "freedBytes"), &pruned["images"]), (0, &serde_json::json!([])));
    }
    // Without the manifest that was taken away above.
    let found = json(&place, &["image", "du", "--json"], 0);
    let foretold = json(&place, &["image", "prune", "--all", "--dry-run", "--json"], 0);
    assert_eq!(foretold["images"].as_array().unwrap().len(), 2);
    let output = text(&place.ask(&["image", "prune", "--all"]).stdout);
    assert!(output.contains("localhost/two:1: image") && output.ends_with("freed\n"), "{output}");
    assert_eq!(json(&place, &["image", "ls", "--json"], 0), serde_json::json!([]));
    let left = json(&place, &["image", "du", "--json"], 0);
    // The list of images is shorter, too.
    let of_files = |found| bytes(found, "totalBytes") - bytes(found, "otherBytes");
    assert_eq!((of_files(&found) - of_files(&left), of_files(&left)), (bytes(&foretold, "freedBytes"), 0));
}

#[test]
fn without_a_daemon_the_commands_say_so() {
    let place = Place::new();
    let output = place.ask(&["image", "ls"]);
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(error.contains("no kina answers on") && error.contains("kina serve"), "{error}");
    assert!(error.contains("No such file") && !error.contains("transport"), "{error}");
    let output = place.ask(&["version"]);
    assert!(output.status.success());
    assert!(text(&output.stdout).contains("no kina answers on"));
}

#[test]
fn a_reader_that_has_enough_hears_no_complaint() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = kina().args(["config", "default"]).stdout(writer).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    // An answer that is lost is a failure.
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = kina().args(["config", "default"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).starts_with("kina: write to standard output: No space"), "{output:?}");
}
