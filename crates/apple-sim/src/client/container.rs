//! Commands about containers (`Sources/ContainerCommands/Container`).

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Client, TEN_SECONDS, configure, output};
use crate::arguments::Matches;
use crate::error::{Code, Failure, Problem};
use crate::protocol::{Answer, Request};
use crate::resources::{Snapshot, State, Stats};
use crate::settings::Release;
use crate::{shape, values};

/// Between the two looks that `stats` takes.
const STATS_PAUSE: Duration = Duration::from_secs(2);
/// Between two looks at a log that is followed.
const FOLLOW_PAUSE: Duration = Duration::from_millis(50);

/// All containers.
fn all(client: &Client) -> Result<Vec<Snapshot>, Problem> {
    match client.ask(&Request::ContainerList, TEN_SECONDS) {
        Ok(Answer::Containers(containers)) => Ok(containers),
        Ok(_) => Err(Problem::internal("no containers")),
        Err(problem) => Err(Problem::because("failed to list containers", &problem)),
    }
}

fn get(client: &Client, id: &str) -> Result<Snapshot, Problem> {
    all(client)?
        .into_iter()
        .find(|container| container.configuration.id == id)
        .ok_or_else(|| Problem::new(Code::NotFound, format!("get failed: container {id} not found")))
}

fn new_id(client: &Client, matches: &Matches) -> Result<String, Problem> {
    let id = matches.one("name").map_or_else(configure::generated_name, |name| Ok(name.to_owned()))?;
    if configure::valid_name(&id, client.release()) {
        return Ok(id);
    }
    Err(Problem::invalid(format!("container ID {id} is not a valid container ID")))
}

/// This command's own streams, as a process gets them.
fn streams(stdin: bool, detach: bool, terminal: bool) -> Result<Vec<OwnedFd>, Problem> {
    let mut streams = Vec::new();
    if stdin {
        streams.push(io::stdin().as_fd().try_clone_to_owned()?);
    }
    if !detach {
        streams.push(io::stdout().as_fd().try_clone_to_owned()?);
        if !terminal {
            streams.push(io::stderr().as_fd().try_clone_to_owned()?);
        }
    }
    Ok(streams)
}

pub(super) fn run(client: &Client, matches: &Matches) -> Result<u8, Failure> {
    client.ping(TEN_SECONDS)?;
    let id = new_id(client, matches)?;
    if get(client, &id).is_ok() {
        return Err(Problem::new(Code::Exists, format!("container with id {id} already exists")).into());
    }
    configure::create(client, matches, &id)?;
    let outcome = boot_and_start(client, matches, &id);
    if outcome.is_err() {
        // What keeps it from being deleted is not told.
        drop(client.ask(&Request::ContainerDelete { id: id.clone(), force: false }, None));
    }
    outcome.map_err(Failure::from)
}

fn boot_and_start(client: &Client, matches: &Matches, id: &str) -> Result<u8, Problem> {
    let (detach, stdin) = (matches.flag("detach"), matches.flag("interactive"));
    let streams = streams(stdin && !detach, detach, matches.flag("tty"))?;
    bootstrap(client, id, stdin && !detach, &streams)?;
    configure::write_id(matches, id)?;
    start_process(client, id, id)?;
    if detach {
        output::line(id)?;
        return Ok(0);
    }
    wait(client, id, id)
}

fn bootstrap(client: &Client, id: &str, stdin: bool, streams: &[OwnedFd]) -> Result<(), Problem> {
    let request = Request::ContainerBootstrap { id: id.to_owned(), stdin };
    let streams: Vec<_> = streams.iter().map(AsFd::as_fd).collect();
    client
        .ask_with(&request, &streams, None)
        .map(drop)
        .map_err(|problem| Problem::because("failed to bootstrap container", &problem))
}

fn start_process(client: &Client, id: &str, process: &str) -> Result<(), Problem> {
    let request = Request::ContainerStartProcess { id: id.to_owned(), process: process.to_owned() };
    client.ask(&request, None).map(drop)
}

/// Waits for a process; its exit code is the command's.
fn wait(client: &Client, id: &str, process: &str) -> Result<u8, Problem> {
    let request = Request::ContainerWait { id: id.to_owned(), process: process.to_owned() };
    match client.ask(&request, None)? {
        Answer::Exit(code) => Ok(u8::try_from(code & 0xff).unwrap_or(u8::MAX)),
        _ => Err(Problem::internal("no exit code")),
    }
}

pub(super) fn create(client: &Client, matches: &Matches) -> Result<(), Failure> {
    client.ping(TEN_SECONDS)?;
    let id = new_id(client, matches)?;
    configure::create(client, matches, &id)?;
    configure::write_id(matches, &id)?;
    Ok(output::line(&id)?)
}

pub(super) fn start(client: &Client, matches: &Matches) -> Result<u8, Failure> {
    let id = matches.positional(0);
    let (attach, interactive) = (matches.flag("attach"), matches.flag("interactive"));
    let detach = !attach && !interactive;
    let container = get(client, id)?;
    if container.status == State::Running {
        if !detach {
            let message = "attach is currently unsupported on already running containers";
            return Err(Problem::invalid(message).into());
        }
        output::line(id)?;
        return Ok(0);
    }
    for mount in &container.configuration.mounts {
        let shared = matches!(mount.kind, crate::resources::FilesystemKind::Virtiofs {});
        if shared && !std::path::Path::new(&mount.source).exists() {
            let message = format!("mount source path '{}' does not exist", mount.source);
            return Err(Problem::new(Code::InvalidState, message).into());
        }
    }
    let started = || {
        let terminal = container.configuration.init_process.terminal;
        bootstrap(client, id, interactive, &streams(interactive, detach, terminal)?)?;
        start_process(client, id, id)?;
        if detach {
            output::line(id)?;
            return Ok(0);
        }
        wait(client, id, id)
    };
    let outcome = started();
    if outcome.is_err() {
        // What keeps it from being stopped is not told.
        drop(client.ask(&Request::ContainerStop { id: id.to_owned(), timeout: 5, signal: None }, None));
    }
    outcome.map_err(Failure::from)
}

/// The containers that a command is about, which `--all` replaces.
fn chosen(matches: &Matches) -> Result<&[String], Problem> {
    let ids = matches.positionals();
    match (ids.is_empty(), matches.flag("all")) {
        (true, false) => Err(Problem::invalid("no containers specified and --all not supplied")),
        (false, true) => {
            Err(Problem::invalid("explicitly supplied container IDs conflict with the --all flag"))
        }
        (_, _) => Ok(ids),
    }
}

/// Does something with each, prints those that it was done with, and tells of all the others.
fn each(
    ids: impl IntoIterator<Item = String>,
    mut act: impl FnMut(&str) -> Result<(), Problem>,
) -> Result<(), Failure> {
    let mut problems = Vec::new();
    for id in ids {
        match act(&id) {
            Ok(()) => output::line(&id)?,
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(Failure::aggregate(&problems)) }
}

fn ids(containers: Vec<Snapshot>) -> Vec<String> {
    containers.into_iter().map(|container| container.configuration.id).collect()
}

pub(super) fn stop(client: &Client, matches: &Matches) -> Result<(), Failure> {
    let chosen = chosen(matches)?;
    let wanted = if matches.flag("all") { ids(all(client)?) } else { chosen.to_vec() };
    let timeout = matches.number("time").unwrap_or(5);
    each(wanted, |id| stop_one(client, id, timeout, matches.one("signal")))
}

/// Stops one container.
pub(super) fn stop_one(client: &Client, id: &str, timeout: i32, signal: Option<&str>) -> Result<(), Problem> {
    let request = Request::ContainerStop { id: id.to_owned(), timeout, signal: signal.map(str::to_owned) };
    client
        .ask(&request, None)
        .map(drop)
        .map_err(|problem| Problem::because("failed to stop container", &problem))
}

pub(super) fn kill(client: &Client, matches: &Matches) -> Result<(), Failure> {
    let chosen = chosen(matches)?;
    let wanted = if matches.flag("all") {
        ids(all(client)?.into_iter().filter(|container| container.status == State::Running).collect())
    } else {
        chosen.to_vec()
    };
    let signal = matches.one("signal").unwrap_or("KILL");
    each(wanted, |id| {
        let request =
            Request::ContainerKill { id: id.to_owned(), process: id.to_owned(), signal: signal.to_owned() };
        client
            .ask(&request, None)
            .map(drop)
            .map_err(|problem| Problem::because("failed to kill container", &problem))
    })
}

pub(super) fn delete(client: &Client, matches: &Matches) -> Result<(), Failure> {
    let chosen = chosen(matches)?;
    let force = matches.flag("force");
    let wanted: BTreeSet<String> = if matches.flag("all") {
        let deletable = |container: &Snapshot| force || container.status != State::Running;
        ids(all(client)?.into_iter().filter(deletable).collect()).into_iter().collect()
    } else {
        chosen.iter().cloned().collect()
    };
    each(wanted, |id| {
        client
            .ask(&Request::ContainerDelete { id: id.to_owned(), force }, None)
            .map(drop)
            .map_err(|problem| Problem::because("failed to delete container", &problem))
    })
}

pub(super) fn list(client: &Client, matches: &Matches) -> Result<(), Failure> {
    let mut containers = all(client)?;
    containers.retain(|container| matches.flag("all") || container.status == State::Running);
    let payload: Value =
        containers.iter().map(|container| shape::container(container, client.release())).collect();
    let header = ["ID", "IMAGE", "OS", "ARCH", "STATE", "IP", "CPUS", "MEMORY", "STARTED"];
    Ok(output::render(matches, &payload, || {
        output::listed(matches, &header, containers.iter().map(row).collect())
    })?)
}

fn row(container: &Snapshot) -> Vec<String> {
    let configuration = &container.configuration;
    let addresses: Vec<&str> =
        container.networks.iter().map(|network| network.ipv4_address.as_str()).collect();
    vec![
        configuration.id.clone(),
        configuration.image.reference.clone(),
        configuration.platform.os.clone(),
        configuration.platform.architecture.clone(),
        container.status.word().to_owned(),
        addresses.join(","),
        configuration.resources.cpus.to_string(),
        format!("{} MB", configuration.resources.memory_in_bytes >> 20),
        container.started_date.map_or_else(String::new, shape::iso8601),
    ]
}

pub(super) fn inspect(client: &Client, matches: &Matches) -> Result<(), Failure> {
    let wanted: BTreeSet<&String> = matches.positionals().iter().collect();
    let found: Vec<Snapshot> =
        all(client)?.into_iter().filter(|container| wanted.contains(&container.configuration.id)).collect();
    let old = client.release() < Release::V1_0_0;
    if found.len() != wanted.len() && !old {
        let known: BTreeSet<&String> = found.iter().map(|container| &container.configuration.id).collect();
        let missing: Vec<&str> = wanted.difference(&known).map(|id| id.as_str()).collect();
        let message = format!("container not found: {}", missing.join(", "));
        return Err(Problem::new(Code::NotFound, message).into());
    }
    let payload: Value =
        found.iter().map(|container| shape::container(container, client.release())).collect();
    Ok(output::line(&shape::inspected(&payload, client.release()))?)
}

pub(super) fn exec(client: &Client, matches: &Matches) -> Result<u8, Failure> {
    let id = matches.positional(0);
    let container = get(client, id)?;
    ensure_running(&container)?;
    let Some((executable, arguments)) = matches.positionals().get(1..).and_then(<[String]>::split_first)
    else {
        return Err(Problem::invalid("no command specified for exec").into());
    };
    let (detach, terminal) = (matches.flag("detach"), matches.flag("tty"));
    let mut configuration = container.configuration.init_process.clone();
    configuration.executable.clone_from(executable);
    configuration.arguments = arguments.to_vec();
    configuration.terminal = terminal;
    configuration.environment.extend(values::environment(&[], matches)?);
    if let Some(directory) = matches.one("workdir") {
        configuration.working_directory = directory.to_owned();
    }
    let (user, groups) = values::user(matches, configuration.user.clone());
    configuration.user = user;
    configuration.supplemental_groups.extend(groups);
    let process = configure::generated_name()?;
    let stdin = matches.flag("interactive") && !detach;
    let request =
        Request::ContainerCreateProcess { id: id.to_owned(), process: process.clone(), configuration, stdin };
    let streams = streams(stdin, detach, terminal)?;
    let streams: Vec<_> = streams.iter().map(AsFd::as_fd).collect();
    client
        .ask_with(&request, &streams, None)
        .map_err(|problem| Problem::because("failed to create process in container", &problem))?;
    start_process(client, id, &process)?;
    if detach {
        output::line(id)?;
        return Ok(0);
    }
    Ok(wait(client, id, &process)?)
}

fn ensure_running(container: &Snapshot) -> Result<(), Problem> {
    if container.status == State::Running {
        return Ok(());
    }
    let message = format!("container {} is not running", container.configuration.id);
    Err(Problem::new(Code::InvalidState, message))
}

pub(super) fn logs(client: &Client, matches: &Matches) -> Result<(), Failure> {
    let id = matches.positional(0);
    let (_, files) = client
        .ask_with(&Request::ContainerLogs { id: id.to_owned() }, &[], None)
        .map_err(|problem| Problem::because(format!("failed to get logs for container {id}"), &problem))?;
    let file = files.into_iter().nth(usize::from(matches.flag("boot")));
    let mut file = File::from(file.ok_or_else(|| Problem::internal("no log fds returned"))?);
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Problem::internal("failed to convert container logs to utf8"))?;
    match matches.number::<usize>("num-lines") {
        Some(count) => {
            let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
            for line in &lines[lines.len().saturating_sub(count)..] {
                output::print(&format!("{line}\n"))?;
            }
        }
        None if text.is_empty() => {}
        None => output::print(&format!("{}\n", text.trim_matches(['\n', '\r'])))?,
    }
    if matches.flag("follow") { follow(file) } else { Ok(()) }
}

/// Goes on until somebody ends this command. A log that was truncated is read from its new end.
fn follow(mut file: File) -> Result<(), Failure> {
    loop {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        if bytes.is_empty() {
            let end = file.metadata()?.len();
            if end < file.stream_position()? {
                file.seek(SeekFrom::Start(end))?;
            }
            std::thread::sleep(FOLLOW_PAUSE);
            continue;
        }
        let text = String::from_utf8_lossy(&bytes);
        for line in text.lines().filter(|line| !line.is_empty()) {
            let mut stdout = io::stdout().lock();
            writeln!(stdout, "{line}")?;
            stdout.flush()?;
        }
    }
}

pub(super) fn stats(client: &Client, matches: &Matches) -> Result<(), Failure> {
    let wanted = matches.positionals();
    let mut containers = all(client)?;
    if let Some(missing) =
        wanted.iter().find(|id| !containers.iter().any(|container| container.configuration.id == **id))
    {
        return Err(Problem::new(Code::NotFound, format!("no such container: {missing}")).into());
    }
    containers.retain(|container| {
        container.status == State::Running
            && (wanted.is_empty() || wanted.contains(&container.configuration.id))
    });
    let sample = |id: &str| match client.ask(&Request::ContainerStats { id: id.to_owned() }, None) {
        Ok(Answer::Stats(stats)) => Some(stats),
        // Containers that have none are left out.
        Ok(_) | Err(_) => None,
    };
    let first: Vec<Stats> =
        containers.iter().filter_map(|container| sample(&container.configuration.id)).collect();
    if !first.is_empty() {
        std::thread::sleep(client.settings.patience(STATS_PAUSE));
    }
    let second: Vec<Stats> =
        first.iter().map(|stats| sample(&stats.id).unwrap_or_else(|| stats.clone())).collect();
    let payload = json!(second);
    Ok(output::render(matches, &payload, || {
        let number =
            |figure: Option<u64>| figure.map_or_else(|| "--".to_owned(), |figure| figure.to_string());
        let rows = second.iter().map(|stats| {
            vec![
                stats.id.clone(),
                number(stats.cpu_usage_usec),
                format!("{} / {}", number(stats.memory_usage_bytes), number(stats.memory_limit_bytes)),
                format!("{} / {}", number(stats.network_rx_bytes), number(stats.network_tx_bytes)),
                format!("{} / {}", number(stats.block_read_bytes), number(stats.block_write_bytes)),
                number(stats.num_processes),
            ]
        });
        let header = ["Container ID", "Cpu %", "Memory Usage", "Net Rx/Tx", "Block I/O", "Pids"];
        output::listed(matches, &header, rows.collect())
    })?)
}
