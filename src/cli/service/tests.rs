//! What is written, how it is read back, and what is asked of the managers, which
//! stand-ins play.

use std::process::Command;

use clap::Parser as _;
use plist::Value;
use tempfile::TempDir;

use super::agent::{Printed, printed};
use super::unit::{Shown, UNIT, shown};
use super::*;
use crate::cli;

const HOME: &str = "/Users/you";

fn on(program: &str) -> Service {
    Service { program: program.into(), config: None }
}

fn configured() -> Service {
    Service { program: "/opt/homebrew/bin/kina".into(), config: Some("/Users/you/my kina.toml".into()) }
}

/// Whether kina's own command line takes these words.
fn is_understood(words: &[String]) -> bool {
    let parsed = cli::Arguments::try_parse_from(words);
    matches!(parsed, Ok(cli::Arguments { command: cli::Command::Serve(_) }))
}

/// Compares a file of the source tree with what is rendered now, or writes it.
fn matches_file(name: &str, rendered: &[u8]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("launchd").join(name);
    if std::env::var_os("KINA_UPDATE_DOCS").is_some() {
        fs::write(&path, rendered).unwrap();
    }
    let there = fs::read(&path).unwrap_or_default();
    assert!(there == rendered, "launchd/{name} is out of date; run this test with KINA_UPDATE_DOCS=1");
}

#[test]
fn the_agent_of_a_mac() {
    let home = Path::new(HOME);
    let xml = agent::render(&on("/opt/homebrew/bin/kina"), home).unwrap();
    matches_file("kina.daemon.plist", &xml);
    let list = Value::from_reader_xml(&xml[..]).unwrap();
    let list = list.as_dictionary().unwrap();
    let get = |key: &str| list.get(key).unwrap();
    assert_eq!(get("Label").as_string(), Some("kina.daemon"));
    assert_eq!(get("RunAtLoad").as_boolean(), Some(true));
    assert_eq!(get("AbandonProcessGroup").as_boolean(), Some(true));
    let keep = get("KeepAlive").as_dictionary().unwrap();
    assert_eq!(keep.get("SuccessfulExit").unwrap().as_boolean(), Some(false));
    let limits = get("SoftResourceLimits").as_dictionary().unwrap();
    assert!(limits.get("NumberOfFiles").unwrap().as_signed_integer() >= Some(4096));
    let path = get("EnvironmentVariables").as_dictionary().unwrap().get("PATH").unwrap();
    let path: Vec<&str> = path.as_string().unwrap().split(':').collect();
    assert!(path.contains(&"/usr/local/bin") && path.contains(&"/opt/homebrew/bin"), "{path:?}");
    for key in ["StandardOutPath", "StandardErrorPath"] {
        assert_eq!(get(key).as_string(), agent::log(home).to_str());
    }
    assert_eq!(agent::program(&xml).as_deref(), Some(Path::new("/opt/homebrew/bin/kina")));
    assert_eq!(agent::program(b"<plist/>"), None);
}

#[test]
fn what_launchd_runs_is_what_kina_understands() {
    let service = Service { config: Some("/Users/a & <b>/\"c\".toml".into()), ..configured() };
    let xml = agent::render(&service, Path::new(HOME)).unwrap();
    let list = Value::from_reader_xml(&xml[..]).unwrap();
    let words = list.as_dictionary().unwrap().get("ProgramArguments").unwrap().as_array().unwrap();
    let words: Vec<String> = words.iter().map(|word| word.as_string().unwrap().to_owned()).collect();
    assert_eq!(words, service.command());
    assert!(is_understood(&words), "{words:?}");
    assert!(!is_understood(&["kina".to_owned(), "serve".to_owned(), "--label".to_owned()]));
}

#[test]
fn the_unit_of_systemd() {
    let unit = unit::render(&on("/usr/bin/kina")).unwrap();
    matches_file(UNIT, unit.as_bytes());
    for line in ["Type=notify", "KillMode=process", "Delegate=yes", "RuntimeDirectoryPreserve=yes"] {
        assert!(unit.lines().any(|one| one == line), "{line}");
    }
    // The directories are kina's own, by the names that systemd gives them.
    let value = |key: &str| unit.lines().find_map(|line| line.strip_prefix(key)).unwrap();
    let linux = crate::config::Locations::of("linux", Path::new("/root"));
    assert_eq!(Path::new("/run").join(value("RuntimeDirectory=")), linux.run);
    assert_eq!(Path::new("/var/lib").join(value("StateDirectory=")), linux.root);
    // The exit code for mistakes is the command line's.
    assert_eq!(value("RestartPreventExitStatus="), cli::USAGE.to_string());
}

#[test]
fn what_systemd_runs_is_what_kina_understands() {
    let unit = unit::render(&configured()).unwrap();
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    // Words in quotes are one, as systemd has it.
    let words: Vec<String> = line
        .split('"')
        .enumerate()
        .flat_map(|(index, part)| match index % 2 {
            0 => part.split_whitespace().map(str::to_owned).collect::<Vec<_>>(),
            _ => vec![part.to_owned()],
        })
        .collect();
    assert_eq!(words, configured().command());
    assert!(is_understood(&words), "{words:?}");
    for odd in ["/a$b", "/a%b", "/a\"b", "/a\\b", "/a\nb"] {
        let error = unit::render(&on(odd)).unwrap_err().to_string();
        assert!(error.contains("use another path"), "{error}");
    }
}

#[test]
fn systemd_takes_the_unit() {
    if std::env::consts::OS != "linux" {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join(UNIT);
    let verify = |unit: &str| {
        fs::write(&file, unit).unwrap();
        let said = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&file).output();
        let said = said.expect("systemd-analyze, of Debian's package systemd");
        let words = String::from_utf8_lossy(&said.stderr).into_owned();
        // What is said of the machine's own units is no matter of this one.
        let ours = words.lines().filter(|line| line.contains(UNIT)).map(str::to_owned).collect::<Vec<_>>();
        (ours, said.status.success())
    };
    let program = std::env::current_exe().unwrap();
    let unit = unit::render(&on(&program.display().to_string())).unwrap();
    assert_eq!(verify(&unit), (Vec::new(), true));
    assert_ne!(verify(&unit.replace("KillMode=process", "KillMode=nobody")).0, Vec::<String>::new());
}

#[test]
fn what_the_managers_print() {
    let text = "gui/501/kina.daemon = {\n\tstate = spawn scheduled\n\tlast exit code = 78: EX_CONFIG\n\
                \t\tpid = 3\n}\n";
    assert_eq!(
        printed(text),
        Printed {
            state: "spawn scheduled".to_owned(),
            pid: None,
            last_exit: Some("78: EX_CONFIG".to_owned())
        }
    );
    assert_eq!(printed("").state, "unknown");
    assert_eq!(shown(""), Shown::default());
    assert_eq!(shown("MainPID=0\nResult=signal\n").pid, None);
}

#[test]
fn a_program_of_homebrew_is_named_by_its_link() {
    let directory = tempfile::tempdir().unwrap();
    let versioned = directory.path().join("Cellar/kina/0.1.0/bin/kina");
    assert_eq!(lasting(&versioned), versioned);
    let link = directory.path().join("bin/kina");
    fs::create_dir_all(link.parent().unwrap()).unwrap();
    fs::write(&link, "").unwrap();
    assert_eq!(lasting(&versioned), link);
    assert_eq!(lasting(Path::new("/usr/bin/kina")), Path::new("/usr/bin/kina"));
}

/// A host on which a stand-in plays the manager.
struct Stage {
    directory: TempDir,
    host: Host,
}

impl Stage {
    fn new(tool: &str, user: u32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stand-ins").join(tool);
        std::os::unix::fs::symlink(script, directory.path().join(tool)).unwrap();
        let host =
            Host { user, home: directory.path().join("home"), search: vec![directory.path().to_owned()] };
        Self { directory, host }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The calls since the last time this was asked, but for mere questions.
    fn calls(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("calls")).unwrap_or_default();
        let _ = fs::remove_file(self.path("calls"));
        let calls = text.lines().filter(|line| !line.starts_with("print ") && !line.starts_with("show "));
        calls.map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn launchd_installs_and_removes_and_both_again() {
    let stage = Stage::new("launchctl", 501);
    let launchd = Launchd::new(&stage.host).unwrap();
    assert_eq!(launchd.status().await.unwrap().state, "not installed");

    let service = configured();
    let file = agent::file(&stage.host.home);
    let load = ["enable gui/501/kina.daemon".to_owned(), format!("bootstrap gui/501 {}", file.display())];
    let said = launchd.install(&service, false).await.unwrap();
    assert!(said[0].starts_with("wrote "), "{said:?}");
    assert_eq!(stage.calls(), load);
    assert_eq!(fs::read(&file).unwrap(), agent::render(&service, &stage.host.home).unwrap());
    assert!(agent::log(&stage.host.home).parent().unwrap().is_dir());
    let status = launchd.status().await.unwrap();
    assert_eq!((status.running, status.pid, status.last_exit.as_deref()), (true, Some(4711), Some("1")));
    assert_eq!(status.program.as_deref(), Some(service.program.as_path()));

    // The same again changes nothing.
    assert!(launchd.install(&service, false).await.unwrap()[0].contains("already"));
    assert_eq!(stage.calls(), [""; 0]);

    // The same file with another program in it is started anew.
    launchd.install(&service, true).await.unwrap();
    assert_eq!(stage.calls(), [&["bootout gui/501/kina.daemon".to_owned()], &load[..]].concat());

    // Another one takes its place once the first is gone.
    launchd.install(&on("/usr/local/bin/kina"), false).await.unwrap();
    assert_eq!(stage.calls()[0], "bootout gui/501/kina.daemon");
    assert_eq!(agent::program(&fs::read(&file).unwrap()).unwrap(), Path::new("/usr/local/bin/kina"));

    // Installed and not loaded, as after a bootout by hand.
    fs::remove_file(stage.path("loaded")).unwrap();
    assert_eq!(launchd.status().await.unwrap().state, "installed, and not loaded");
    launchd.install(&on("/usr/local/bin/kina"), false).await.unwrap();
    assert_eq!(stage.calls(), load);

    assert_eq!(launchd.uninstall().await.unwrap().len(), 2);
    assert!(!file.exists() && !stage.path("loaded").exists());
    assert!(launchd.uninstall().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_service_that_does_not_go_is_not_taken_for_the_new_one() {
    let stage = Stage::new("launchctl", 501);
    let mut launchd = Launchd::new(&stage.host).unwrap();
    launchd.install(&on("/old"), false).await.unwrap();
    launchd.patience = Duration::ZERO;
    for _ in 0..2 {
        // It stays, however often it is told.
        fs::remove_file(stage.path("going")).ok();
        let error = launchd.install(&on("/new"), false).await.unwrap_err().to_string();
        assert!(error.contains("the service is still there"), "{error}");
    }
    let there = fs::read(agent::file(&stage.host.home)).unwrap();
    assert_eq!(agent::program(&there).unwrap(), Path::new("/old"));
}

#[tokio::test]
async fn launchd_s_refusals_are_explained() {
    let stage = Stage::new("launchctl", 501);
    let launchd = Launchd::new(&stage.host).unwrap();
    for (refusal, expected) in [
        ("Bootstrap failed: 125: Domain does not support specified action", "ssh makes no such session"),
        ("Bootstrap failed: 5: Input/output error", "launchctl print gui/501/kina.daemon"),
    ] {
        fs::write(stage.path("refusal"), refusal).unwrap();
        let error = launchd.install(&configured(), false).await.unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(refusal), "{error}");
    }
    let root = Host { user: 0, ..stage.host.clone() };
    assert!(Launchd::new(&root).err().unwrap().to_string().contains("without sudo"));
    let nowhere = Host { search: Vec::new(), ..stage.host.clone() };
    assert!(Launchd::new(&nowhere).err().unwrap().to_string().contains("there is no launchctl"));
}

#[tokio::test]
async fn systemd_installs_and_removes_and_both_again() {
    let stage = Stage::new("systemctl", 0);
    let systemd = Systemd::new(&stage.host, &stage.path("units")).unwrap();
    assert_eq!(systemd.status().await.unwrap().state, "not installed");

    let service = on("/usr/bin/kina");
    let file = stage.path("units").join(UNIT);
    systemd.install(&stage.host, &service, false).await.unwrap();
    assert_eq!(stage.calls(), ["daemon-reload", "enable kina.service", "restart kina.service"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), unit::render(&service).unwrap());
    let status = systemd.status().await.unwrap();
    assert_eq!((status.running, status.pid), (true, Some(4711)));
    assert_eq!(status.state, "active (running), enabled");
    assert_eq!(status.file.as_deref(), Some(file.as_path()));

    // The same again does not restart the daemon; another one does.
    assert!(systemd.install(&stage.host, &service, false).await.unwrap()[0].contains("already"));
    assert_eq!(stage.calls(), ["daemon-reload", "enable kina.service"]);
    for (service, outdated, said) in [(&service, true, "there is "), (&configured(), false, "wrote ")] {
        let lines = systemd.install(&stage.host, service, outdated).await.unwrap();
        assert!(lines[0].starts_with(said), "{lines:?}");
        assert_eq!(stage.calls().last().unwrap(), "restart kina.service");
    }

    assert_eq!(systemd.uninstall(&stage.host).await.unwrap().len(), 2);
    assert_eq!(stage.calls(), ["disable --now kina.service", "daemon-reload", "reset-failed kina.service"]);
    assert!(!file.exists());
    assert!(systemd.uninstall(&stage.host).await.unwrap().is_empty());
    assert_eq!(stage.calls(), [""; 0]);
}

#[tokio::test]
async fn systemd_s_refusals_are_explained() {
    let stage = Stage::new("systemctl", 0);
    let systemd = Systemd::new(&stage.host, &stage.path("units")).unwrap();
    fs::write(stage.path("refusal"), "Job for kina.service failed.").unwrap();
    let error = systemd.install(&stage.host, &on("/p"), false).await.unwrap_err().to_string();
    assert!(error.starts_with("systemctl restart kina.service"), "{error}");
    assert!(error.contains("Job for kina.service failed."), "{error}");
    fs::remove_file(stage.path("units").join(UNIT)).unwrap();

    fs::write(stage.path("package"), "").unwrap();
    let error = systemd.uninstall(&stage.host).await.unwrap_err().to_string();
    assert!(error.contains("which a package brought"), "{error}");
    assert_eq!(systemd.status().await.unwrap().last_exit.as_deref(), Some("64 (exit-code)"));

    let user = Host { user: 1000, ..stage.host.clone() };
    for refused in [systemd.install(&user, &on("/p"), false).await, systemd.uninstall(&user).await] {
        assert!(refused.unwrap_err().to_string().contains("only root"));
    }
    let nowhere = Host { search: Vec::new(), ..stage.host.clone() };
    let error = Systemd::new(&nowhere, Path::new("/d")).err().unwrap().to_string();
    assert!(error.contains("there is no systemctl"), "{error}");
}

#[tokio::test]
async fn a_daemon_that_does_not_come_is_told_of() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let error = first_answer(&socket, Duration::from_millis(1)).await.unwrap_err().to_string();
    assert!(error.contains("kina service logs") && error.contains("no kina answers"), "{error}");
    assert_eq!(first_answer(&socket, Duration::ZERO).await.unwrap(), None);
    // One that takes connections and says nothing.
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let error = first_answer(&socket, Duration::from_millis(50)).await.unwrap_err().to_string();
    assert!(error.contains("does not answer"), "{error}");
}

#[tokio::test]
async fn without_an_answer_no_daemon_is_outdated() {
    let directory = tempfile::tempdir().unwrap();
    assert!(!outdated(&directory.path().join("s"), Path::new("/bin/false")).await);
}

#[test]
fn what_would_be_done_is_said() {
    let host = Host { user: 501, home: HOME.into(), search: Vec::new() };
    let text = launchd::plan(&host, &configured()).unwrap();
    assert!(text.contains("\n# /Users/you/Library/LaunchAgents/kina.daemon.plist\n<?xml"), "{text}");
    assert!(text.ends_with("bootstrap gui/501 /Users/you/Library/LaunchAgents/kina.daemon.plist"), "{text}");
    let text = systemd::plan(Path::new("/d"), &configured()).unwrap();
    assert!(text.starts_with("# /d/kina.service\n"), "{text}");
}
