//! What the driver's tests run in place of Apple's `container`: the few commands
//! that the driver uses, with the same words and exit codes. A machine is a process
//! that outlives whoever started it, holds the guest's socket, and answers there as
//! a guest does. `crates/apple-sim` is the whole of it; this one needs no rights.
//!
//! ```text
//! $STAND_IN/containers/<id>/{image,labels,pid,log,bootlog,guest.sock}
//!           images          a line for each: name, digest
//!           calls           a line for each command line
//!           traps/<name>    what goes wrong, while the file is there
//! ```
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "part of a test")]
#![allow(clippy::zombie_processes, reason = "a machine outlives who starts it")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

/// An exit code, and what is said on standard error with it.
type Failure = (u8, String);

const DOWN: &str = "XPC connection error: Connection invalid\nEnsure container system service has been started with \
                    `container system start`.";

struct Place(PathBuf);

impl Place {
    fn trap(&self, name: &str) -> bool {
        self.0.join("traps").join(name).exists()
    }

    fn container(&self, id: &str) -> PathBuf {
        self.0.join("containers").join(id)
    }

    fn pid(&self, id: &str) -> Option<i32> {
        pid_in(&self.container(id))
    }

    fn runs(&self, id: &str) -> bool {
        self.pid(id).is_some_and(lives)
    }
}

fn pid_in(directory: &Path) -> Option<i32> {
    fs::read_to_string(directory.join("pid")).ok()?.parse().ok()
}

/// Whether a process is there and is no zombie.
fn lives(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.starts_with(" Z")))
}

fn main() -> ExitCode {
    let place = Place(std::env::var_os("STAND_IN").unwrap().into());
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|word| word == "hold-machine") {
        hold(&place, &words[1], Path::new(&words[2]));
        return ExitCode::SUCCESS;
    }
    let mut calls = File::options().create(true).append(true).open(place.0.join("calls")).unwrap();
    calls.write_all(format!("{}\n", words.join(" ")).as_bytes()).unwrap();
    match answer(&place, &words) {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, said)) => {
            if !said.is_empty() {
                eprintln!("Error: {said}");
            }
            ExitCode::from(code)
        }
    }
}

fn answer(place: &Place, words: &[String]) -> Result<(), Failure> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let down = place.trap("down");
    if place.trap("hang") && words[0] != "--version" {
        std::thread::sleep(Duration::from_secs(1000));
    }
    match words[..] {
        ["--version"] => {
            let version = fs::read_to_string(place.0.join("version")).unwrap_or("1.2.2".to_owned());
            println!("container CLI version {} (build: release, commit: abc)", version.trim());
            return Ok(());
        }
        ["system", "version", ..] => {
            let version = fs::read_to_string(place.0.join("version")).unwrap_or("1.2.2".to_owned());
            println!("{}", json!([{ "appName": "container", "version": version.trim() }]));
            return Ok(());
        }
        _ if down => return Err((1, DOWN.to_owned())),
        _ => {}
    }
    match words[..] {
        ["list", ..] if place.trap("nonsense") => {
            let nonsense = fs::read_to_string(place.0.join("traps/nonsense")).unwrap();
            let (code, text) = nonsense.split_once('\n').unwrap();
            print!("{text}");
            match code.parse().unwrap() {
                0 => Ok(()),
                code => Err((code, String::new())),
            }
        }
        ["list", ..] => {
            let list = list(place);
            let traps = place.0.join("traps");
            // One list is on its way for as long as the test wants.
            if fs::rename(traps.join("late-list"), traps.join("list-waits")).is_ok() {
                while place.trap("list-waits") {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            println!("{list}");
            Ok(())
        }
        ["image", "list", ..] => {
            let mut images = fs::read_to_string(place.0.join("images")).unwrap_or_default();
            if let Ok(digest) = fs::read_to_string(place.0.join("traps/other-digest")) {
                images = images.replace("sha256:22", &digest);
            }
            let images: Vec<Value> = images
                .lines()
                .filter_map(|line| line.split_once(' '))
                .map(|(name, digest)| json!({ "configuration": { "name": name, "descriptor": { "digest": digest } } }))
                .collect();
            println!("{}", Value::from(images));
            Ok(())
        }
        ["image", "load", ..] if place.trap("loads-nothing") => Ok(()),
        ["image", "load", "--input", archive] => {
            load(place, archive);
            Ok(())
        }
        ["image", "delete", name] => {
            let images = fs::read_to_string(place.0.join("images")).unwrap_or_default();
            let left = images.lines().filter(|line| !line.starts_with(&format!("{name} ")));
            fs::write(place.0.join("images"), left.map(|line| format!("{line}\n")).collect::<String>())
                .unwrap();
            Ok(())
        }
        ["run", ..] => match late(place) {
            true => in_service(place, &words),
            false => run(place, &words[1..]),
        },
        ["delete", ..] if place.trap("deletes-nothing") => Ok(()),
        ["delete", "--force", id] => delete(place, id),
        ["logs", "--boot", "-n", _, id] => log(place, id, "bootlog"),
        ["logs", "-n", _, id] => log(place, id, "log"),
        ["exec", "--interactive", id, "/kina-guest", "relay", "--to", "/kina.sock"] => relay(place, id),
        _ => Err((64, format!("Unknown option {words:?}"))),
    }
}

fn list(place: &Place) -> Value {
    let mut listed = Vec::new();
    for entry in fs::read_dir(place.0.join("containers")).into_iter().flatten().flatten() {
        let id = entry.file_name().into_string().unwrap();
        let Ok(image) = fs::read_to_string(entry.path().join("image")) else { continue };
        let labels = fs::read_to_string(entry.path().join("labels")).unwrap_or_default();
        let labels: BTreeMap<&str, &str> = labels.lines().filter_map(|line| line.split_once('=')).collect();
        let runs = place.runs(&id) && !place.trap("forgetful");
        let networks = if runs && !place.trap("no-address") {
            json!([{ "network": "default", "ipv4Address": "192.168.64.3/24" }])
        } else {
            json!([])
        };
        let running = if place.trap("new-words") { "up" } else { "running" };
        let state = if runs { running } else { "stopped" };
        let configuration = json!({ "id": id, "labels": labels, "image": { "reference": image } });
        listed.push(match place.trap("old-json") {
            true => json!({ "configuration": configuration, "status": state, "networks": networks }),
            false => json!({
                "id": id, "configuration": configuration, "status": { "state": state, "networks": networks },
            }),
        });
    }
    listed.into()
}

fn load(place: &Place, archive: &str) {
    let mut tar = tar::Archive::new(File::open(archive).unwrap());
    for entry in tar.entries().unwrap() {
        let mut entry = entry.unwrap();
        if entry.path().unwrap() == Path::new("index.json") {
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            let index: Value = serde_json::from_str(&text).unwrap();
            let name = index["manifests"][0]["annotations"]["io.containerd.image.name"].as_str().unwrap();
            let digest = index["manifests"][0]["digest"].as_str().unwrap();
            let images = fs::read_to_string(place.0.join("images")).unwrap_or_default();
            let others = images.lines().filter(|line| !line.starts_with(&format!("{name} ")));
            let mut images: String = others.map(|line| format!("{line}\n")).collect();
            images.push_str(&format!("{name} {digest}\n"));
            fs::write(place.0.join("images"), images).unwrap();
        }
    }
}

/// Whether one machine is made late: by the service, whatever becomes of who has asked for it.
fn late(place: &Place) -> bool {
    let traps = place.0.join("traps");
    fs::rename(traps.join("late-make"), traps.join("make-waits")).is_ok()
}

fn in_service(place: &Place, words: &[&str]) -> Result<(), Failure> {
    let traps = place.0.join("traps");
    let script = "while [ -e \"$0/make-waits\" ]; do sleep 0.01; done; \"$@\"; : > \"$0/make-done\"";
    let mut service = Command::new("sh");
    service.args(["-c", script]).arg(&traps).arg(std::env::current_exe().unwrap()).args(words);
    service.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
    drop(service.status());
    Ok(())
}

fn run(place: &Place, words: &[&str]) -> Result<(), Failure> {
    let value = |name: &str| {
        let at = words.iter().position(|word| *word == name)?;
        words.get(at + 1).copied()
    };
    let values = |name: &str| {
        let pairs = words.windows(2).filter(|pair| pair[0] == name);
        pairs.map(|pair| pair[1].to_owned()).collect::<Vec<_>>()
    };
    let id = value("--name").unwrap();
    let image = words[words.iter().position(|word| *word == "entry").unwrap() - 1];
    let (socket, _) = value("--publish-socket").unwrap().split_once(':').unwrap();
    if place.container(id).exists() {
        return Err((1, format!("container with id {id} already exists")));
    }
    if !fs::read_to_string(place.0.join("images")).unwrap_or_default().contains(&format!("{image} ")) {
        return Err((1, "HTTP request to URL failed with response: 404 Not Found".to_owned()));
    }
    if let Ok(kernel) = fs::read_to_string(place.0.join("traps/refuse")) {
        return Err((1, kernel));
    }
    if Path::new(socket).exists() {
        return Err((1, format!("host socket {socket} already exists and may be in use")));
    }
    if place.trap("idle") {
        println!("{id}");
        return Ok(());
    }
    let lock = File::create(place.0.join("lock")).unwrap();
    lock.lock().unwrap();
    let directory = place.container(id);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("image"), image).unwrap();
    fs::write(directory.join("labels"), values("--label").join("\n")).unwrap();
    fs::write(directory.join("bootlog"), "the kernel boots\n").unwrap();
    while place.trap("slow-boot") {
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut helper = Command::new(std::env::current_exe().unwrap());
    helper.args(["hold-machine", id, socket]).stdin(Stdio::null()).stdout(Stdio::piped());
    helper.stderr(File::create(directory.join("log")).unwrap()).process_group(0);
    let mut helper = helper.spawn().unwrap();
    // It says a word once it listens; it is nobody's child soon.
    if helper.stdout.take().unwrap().read(&mut [0]).unwrap() == 0 {
        helper.wait().unwrap();
    }
    println!("{id}");
    Ok(())
}

fn delete(place: &Place, id: &str) -> Result<(), Failure> {
    let missing = || {
        let words = format!("container with ID {id} not found");
        (1, format!("internalError: \"failed to delete container\" (cause: \"notFound: \"{words}\"\")"))
    };
    if !place.container(id).join("image").exists() {
        return Err(missing());
    }
    // At once: one that boots finds no place any more, or is found here.
    let directory = place.0.join(format!("deleted-{}-{id}", std::process::id()));
    if fs::rename(place.container(id), &directory).is_err() {
        return Err(missing());
    }
    if let Some(pid) = pid_in(&directory) {
        let _gone = Command::new("kill").args(["-9", &pid.to_string()]).stderr(Stdio::null()).status();
        while lives(pid) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    if let Ok(socket) = fs::read_to_string(directory.join("socket")) {
        drop(fs::remove_file(socket));
    }
    fs::remove_dir_all(directory).unwrap();
    if !place.trap("mute") {
        println!("{id}");
    }
    Ok(())
}

fn log(place: &Place, id: &str, name: &str) -> Result<(), Failure> {
    match fs::read_to_string(place.container(id).join(name)) {
        Ok(text) => {
            print!("{text}");
            Ok(())
        }
        Err(_) => Err((1, format!("container {id} not found"))),
    }
}

fn relay(place: &Place, id: &str) -> Result<(), Failure> {
    if !place.runs(id) || place.trap("forgetful") {
        return Err((1, format!("container {id} is not running")));
    }
    let stream = UnixStream::connect(place.container(id).join("guest.sock"));
    let stream = stream.map_err(|error| (1, error.to_string()))?;
    let mut to = stream.try_clone().unwrap();
    std::thread::spawn(move || {
        drop(io::copy(&mut io::stdin().lock(), &mut to));
        drop(to.shutdown(std::net::Shutdown::Write));
    });
    // Each piece as it comes.
    let (mut from, mut out, mut buffer) = (stream, io::stdout(), [0; 4096]);
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        if out.write_all(&buffer[..length]).and_then(|()| out.flush()).is_err() {
            break;
        }
    }
    Ok(())
}

/// The machine: a guest on its own socket, and Apple's relay to it.
fn hold(place: &Place, id: &str, socket: &Path) {
    let directory = place.container(id);
    // Where it has been deleted meanwhile nobody would find it again.
    if fs::write(directory.join("pid"), std::process::id().to_string()).is_err() {
        return;
    }
    fs::write(directory.join("socket"), socket.as_os_str().as_encoded_bytes()).unwrap();
    let relay = UnixListener::bind(socket).unwrap();
    let guest = UnixListener::bind(directory.join("guest.sock")).unwrap();
    if place.trap("dies-at-once") {
        eprint!("{}", fs::read_to_string(place.0.join("traps/dies-at-once")).unwrap());
        drop(fs::remove_file(socket));
        return;
    }
    println!("!");
    io::stdout().flush().unwrap();
    let of_relay = socket.to_owned();
    std::thread::spawn(move || {
        let mut first = true;
        for stream in relay.incoming().flatten() {
            // The guest does not listen yet: the connection was taken, and ends.
            if std::mem::take(&mut first) {
                continue;
            }
            let socket = of_relay.clone();
            std::thread::spawn(move || serve(stream, &socket));
        }
    });
    for stream in guest.incoming().flatten() {
        let socket = socket.to_owned();
        std::thread::spawn(move || serve(stream, &socket));
    }
}

const PREFACE: usize = 24;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GO_AWAY: u8 = 7;

/// HTTP/2 as far as the tests speak it: SETTINGS, PING; GOAWAY ends the machine.
fn serve(mut stream: UnixStream, socket: &Path) {
    let mut talk = || -> io::Result<()> {
        let mut preface = [0; PREFACE];
        stream.read_exact(&mut preface[..1])?;
        if preface[0] != b'P' {
            return Ok(());
        }
        stream.read_exact(&mut preface[1..])?;
        stream.write_all(&[0, 0, 0, SETTINGS, 0, 0, 0, 0, 0])?;
        loop {
            let mut header = [0; 9];
            stream.read_exact(&mut header)?;
            let mut payload = vec![0; usize::from(header[1]) << 8 | usize::from(header[2])];
            stream.read_exact(&mut payload)?;
            match (header[3], header[4]) {
                (PING, 0) => {
                    header[4] = 1;
                    stream.write_all(&header)?;
                    stream.write_all(&payload)?;
                }
                (GO_AWAY, _) => {
                    eprintln!("kina-guest: the guest has ended: exit status: 0");
                    drop(fs::remove_file(socket));
                    std::process::abort();
                }
                _ => {}
            }
        }
    };
    drop(talk());
}
