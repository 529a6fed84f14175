//! `kina service`: the daemon as a service of launchd or systemd.

mod agent;
mod launchd;
mod systemd;
#[cfg(test)]
mod tests;
mod unit;

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::program::{self, Said};
use super::text::table;
use super::{print_line, show, socket};
use crate::admin::v1::InfoRequest;
use crate::client::Client;
use crate::config::{Config, home};
use launchd::Launchd;
use systemd::Systemd;

/// How long launchctl or systemctl may take. `systemctl restart` waits for a
/// daemon that stops (30 s) and one that starts (300 s).
const TOOL_DEADLINE: Duration = Duration::from_secs(360);

/// How long a program may take to say its version, and a daemon that is not waited for.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// How long the last look may take, however little patience is left.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// Between two looks whether the daemon answers.
const PAUSE: Duration = Duration::from_millis(100);

/// Where launchd's property list is, if the service is installed.
pub(super) fn agent_file(home: &Path) -> PathBuf {
    agent::file(home)
}

/// Flags, and what to do.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The service manager [default: launchd on a Mac, systemd elsewhere].
    #[arg(long, global = true)]
    manager: Option<Manager>,
    /// Where systemd's unit lies.
    #[arg(long, global = true, default_value = systemd::DIRECTORY, value_name = "DIRECTORY")]
    unit_directory: PathBuf,
    #[command(subcommand)]
    command: Command,
}

/// What runs services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Manager {
    /// macOS: an agent in the session of the user.
    Launchd,
    /// Linux: a unit of the system.
    Systemd,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Have the daemon started now and always. A service that is there is brought
    /// up to date; pods go on meanwhile.
    Install(Install),
    /// Stop the daemon and have it started no more. Pods go on.
    Uninstall,
    /// Tell whether the service is installed and runs, and whether the daemon answers.
    Status {
        #[command(flatten)]
        daemon: socket::DaemonSocket,
        /// JSON, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Print the daemon's log.
    Logs {
        /// So many lines, counted from the end.
        #[arg(long, short = 'n', default_value_t = 100, value_name = "COUNT")]
        lines: u32,
        /// Go on with what is logged from now on.
        #[arg(long, short)]
        follow: bool,
    },
}

#[derive(Debug, clap::Args)]
struct Install {
    /// Configuration file of the daemon [default: as `kina serve` has it].
    #[arg(long)]
    config: Option<PathBuf>,
    /// The kina program that the service runs [default: this one].
    #[arg(long)]
    program: Option<PathBuf>,
    /// Print what would be written and done, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Seconds to wait for the daemon's first answer; 0 does not wait.
    #[arg(long, default_value_t = 30, value_name = "SECONDS")]
    wait: u64,
}

/// The service is not as it should be; its status says how.
#[derive(Debug, thiserror::Error)]
#[error("the service does not run; `kina service install` installs it, `kina service logs` tells more")]
struct NotRunning;

/// The service: what runs, and how it is configured. Paths are absolute.
#[derive(Clone, Debug)]
struct Service {
    program: PathBuf,
    config: Option<PathBuf>,
}

impl Service {
    /// The command line.
    fn command(&self) -> Vec<String> {
        let mut words = vec![self.program.display().to_string(), "serve".to_owned()];
        if let Some(config) = &self.config {
            words.extend(["--config".to_owned(), config.display().to_string()]);
        }
        words
    }
}

/// Whose service it is, and where programs are.
#[derive(Clone, Debug)]
struct Host {
    user: u32,
    home: PathBuf,
    search: Vec<PathBuf>,
}

impl Host {
    fn here() -> Self {
        Self { user: rustix::process::geteuid().as_raw(), home: home(), search: program::search_path() }
    }

    fn tool(&self, name: &str, remedy: &str) -> anyhow::Result<Tool> {
        match program::find(name, &self.search) {
            Some(program) => Ok(Tool { program }),
            None => bail!("there is no {name} on this machine: {remedy}"),
        }
    }
}

/// launchctl or systemctl.
struct Tool {
    program: PathBuf,
}

impl Tool {
    async fn ask(&self, arguments: &[&str]) -> anyhow::Result<Said> {
        program::ask(&self.program, arguments, TOOL_DEADLINE).await
    }

    /// Fails when the tool does, with what it said.
    async fn must(&self, arguments: &[&str]) -> anyhow::Result<Said> {
        let said = self.ask(arguments).await?;
        if said.status.success() {
            return Ok(said);
        }
        let name = self.program.file_name().unwrap_or_default().to_string_lossy();
        bail!("{name} {} ({}): {}", arguments.join(" "), said.status, said.words())
    }
}

/// What is known of the service.
#[derive(Debug, serde::Serialize)]
struct Status {
    manager: &'static str,
    name: String,
    /// Where it is written down; nothing if it is not.
    file: Option<PathBuf>,
    /// What it runs, where the file says so in a form that is read.
    program: Option<PathBuf>,
    running: bool,
    state: String,
    pid: Option<u32>,
    last_exit: Option<String>,
    log: String,
}

/// Runs one of the commands.
pub(super) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { manager, unit_directory, command } = arguments;
    let native = if std::env::consts::OS == "macos" { Manager::Launchd } else { Manager::Systemd };
    let manager = manager.unwrap_or(native);
    let host = Host::here();
    socket::block_on(async move {
        match command {
            Command::Install(install) => {
                let service = service(&install)?;
                let config = Config::load(service.config.as_deref())?;
                config.check()?;
                if install.dry_run {
                    print_line(&match manager {
                        Manager::Launchd => launchd::plan(&host, &service)?,
                        Manager::Systemd => systemd::plan(&unit_directory, &service)?,
                    })?;
                    return Ok(());
                }
                let socket = config.socket_path();
                let outdated = outdated(&socket, &service.program).await;
                let lines = match manager {
                    Manager::Launchd => Launchd::new(&host)?.install(&service, outdated).await?,
                    Manager::Systemd => {
                        Systemd::new(&host, &unit_directory)?.install(&host, &service, outdated).await?
                    }
                };
                lines.iter().try_for_each(|line| print_line(line))?;
                let version = first_answer(&socket, Duration::from_secs(install.wait)).await?;
                version.iter().try_for_each(|version| print_line(&format!("kina {version} answers")))?;
                Ok(())
            }
            Command::Uninstall => {
                let lines = match manager {
                    Manager::Launchd => Launchd::new(&host)?.uninstall().await?,
                    Manager::Systemd => Systemd::new(&host, &unit_directory)?.uninstall(&host).await?,
                };
                if lines.is_empty() {
                    print_line("the service is not installed")?;
                }
                lines.iter().try_for_each(|line| print_line(line))?;
                Ok(())
            }
            Command::Status { daemon, json } => {
                let status = match manager {
                    Manager::Launchd => Launchd::new(&host)?.status().await?,
                    Manager::Systemd => Systemd::new(&host, &unit_directory)?.status().await?,
                };
                let socket = daemon.path()?;
                let answer = version(&socket, ANSWER_DEADLINE).await;
                let mut value = serde_json::to_value(&status)?;
                value["socket"] = socket.display().to_string().into();
                value["daemon"] = answer.clone().ok().into();
                show(json, &value, || report(&status, &socket, answer.as_ref().map_err(String::as_str)))?;
                if status.running && answer.is_ok() { Ok(()) } else { Err(NotRunning.into()) }
            }
            Command::Logs { lines, follow } => logs(manager, &host, lines, follow).await,
        }
    })
}

/// What shall run, from the flags.
fn service(install: &Install) -> anyhow::Result<Service> {
    let program = match &install.program {
        Some(program) => std::path::absolute(program)?,
        None => lasting(&std::env::current_exe().context("where this program is")?),
    };
    if !program.is_file() {
        bail!("--program: there is no {}", program.display());
    }
    let config = install.config.as_ref().map(std::path::absolute).transpose()?;
    Ok(Service { program, config })
}

/// Where a program will be after an update, too: Homebrew keeps each version in
/// a directory of its own, and a link to the latest beside it.
fn lasting(program: &Path) -> PathBuf {
    let cellar = program.ancestors().find(|path| path.file_name().is_some_and(|name| name == "Cellar"));
    let link = cellar.and_then(Path::parent).zip(program.file_name());
    let link = link.map(|(prefix, name)| prefix.join("bin").join(name));
    link.filter(|link| link.is_file()).unwrap_or_else(|| program.to_owned())
}

/// The version of the daemon on a socket, or why there is none. One that starts
/// takes a connection before it answers.
async fn version(socket: &Path, deadline: Duration) -> Result<String, String> {
    let ask = async {
        let mut client = Client::connect(socket).await.map_err(|error| error.to_string())?;
        match client.admin.info(InfoRequest {}).await {
            Ok(answer) => Ok(answer.into_inner().version),
            Err(status) => Err(status.message().to_owned()),
        }
    };
    let late = |_| Err(format!("what listens on {} does not answer", socket.display()));
    tokio::time::timeout(deadline, ask).await.unwrap_or_else(late)
}

/// Whether the daemon that runs is of another version than the program that shall:
/// the file was replaced under it. What cannot be told is no reason to restart one.
async fn outdated(socket: &Path, program: &Path) -> bool {
    let Ok(running) = version(socket, ANSWER_DEADLINE).await else { return false };
    match program::ask(program, &["--version"], ANSWER_DEADLINE).await {
        Ok(said) if said.status.success() => said.stdout.trim() != format!("kina {running}"),
        _ => false,
    }
}

/// Waits for the daemon. Without patience it is not asked.
async fn first_answer(socket: &Path, patience: Duration) -> anyhow::Result<Option<String>> {
    if patience.is_zero() {
        return Ok(None);
    }
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match version(socket, left.max(LAST_LOOK)).await {
            Ok(version) => return Ok(Some(version)),
            Err(reason) if Instant::now() >= deadline => {
                bail!(
                    "the service is installed, and the daemon did not answer in {patience:?}: {reason}; see \
                     `kina service logs` and `kina doctor`"
                )
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

/// The status for people.
fn report(status: &Status, socket: &Path, answer: Result<&String, &str>) -> String {
    let path = |path: &Option<PathBuf>| path.as_ref().map_or("-".to_owned(), |it| it.display().to_string());
    let mut rows = vec![
        ("service", format!("{} ({})", status.name, status.manager)),
        ("file", path(&status.file)),
        ("state", status.state.clone()),
    ];
    if let Some(program) = &status.program {
        let missing = if program.is_file() { "" } else { ", which is not there" };
        rows.push(("program", format!("{}{missing}", program.display())));
    }
    if let Some(pid) = status.pid {
        rows.push(("process", pid.to_string()));
    }
    if let Some(exit) = &status.last_exit {
        rows.push(("last exit", exit.clone()));
    }
    rows.push((
        "daemon",
        match answer {
            Ok(version) => format!("kina {version} answers on {}", socket.display()),
            Err(reason) => reason.to_owned(),
        },
    ));
    rows.push(("log", status.log.clone()));
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    table(&rows)
}

/// Prints the log by the program that is made for it, which talks to this terminal.
async fn logs(manager: Manager, host: &Host, lines: u32, follow: bool) -> anyhow::Result<()> {
    let lines = lines.to_string();
    let (tool, mut arguments) = match manager {
        Manager::Launchd => {
            let log = agent::log(&host.home);
            if !log.exists() {
                bail!("there is no {}: the service has not run yet", log.display());
            }
            (
                host.tool("tail", "it belongs to the system")?,
                vec!["-n".to_owned(), lines, log.display().to_string()],
            )
        }
        Manager::Systemd => {
            let remedy = "the log is where the service's manager puts it";
            let words = ["--unit", unit::UNIT, "--lines", &lines, "--no-pager"];
            (host.tool("journalctl", remedy)?, words.map(str::to_owned).to_vec())
        }
    };
    if follow {
        // tail -F goes on when the file is rotated.
        arguments.insert(0, if manager == Manager::Launchd { "-F" } else { "--follow" }.to_owned());
    }
    let status = tokio::process::Command::new(&tool.program)
        .args(&arguments)
        .status()
        .await
        .with_context(|| format!("start {}", tool.program.display()))?;
    if !status.success() {
        bail!("{} failed: {status}", tool.program.display());
    }
    Ok(())
}

/// Writes a file that others only read: whole, or not at all.
fn write(file: &Path, content: &[u8]) -> anyhow::Result<()> {
    let context = || format!("write {}", file.display());
    let directory = file.parent().with_context(context)?;
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    let fresh = file.with_extension("new");
    fs::write(&fresh, content).with_context(context)?;
    fs::set_permissions(&fresh, Permissions::from_mode(0o644)).with_context(context)?;
    fs::rename(&fresh, file).with_context(context)
}

/// Removes a file. Says whether there was one.
fn remove(file: &Path) -> anyhow::Result<bool> {
    match fs::remove_file(file) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("remove {}", file.display())),
    }
}
