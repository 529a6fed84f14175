//! `container simulator …`: what is not Apple's.

use std::fs;
use std::io;
use std::path::Path;

use rustix::process::Signal;

use super::{Client, output, system};
use crate::error::{Failure, Problem};
use crate::protocol::{Bundle, HelperAnswer, HelperRequest, NetworkAnswer, NetworkRequest};
use crate::runtime::clear;
use crate::server::ask;
use crate::settings::Settings;
use crate::{process, vmnet, wire};

const USAGE: &str = "\
usage: container simulator set SETTING VALUE   change a setting: version, boot-ms, machines,
                                               patience-percent, traps, kind, programs
       container simulator show                the settings in force
       container simulator netns               the path of the namespace that machines are reached in
       container simulator pid ID              the first process of a container's machine
       container simulator crash server        kill the server
       container simulator crash helper ID     kill the process that keeps a container
       container simulator restart             end the server; the next command starts it again
       container simulator sweep               end every process, and remove the application root";

pub(super) fn run(client: &Client, words: &[String]) -> Result<(), Failure> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["set", setting, value] => {
            // Without what the environment says: that is not for good.
            let mut settings = Settings::saved(&client.place.root).map_err(Failure::Plain)?;
            settings.set(setting, value).map_err(Failure::Plain)?;
            Ok(settings.save(&client.place.root)?)
        }
        ["show"] => Ok(output::line(&serde_json::to_string_pretty(&client.settings)?)?),
        ["netns"] => {
            let answer = vmnet::ask(&vmnet::connect(&client.place)?, &NetworkRequest::Where)?;
            match answer {
                NetworkAnswer::Process(id) => Ok(output::line(&format!("/proc/{id}/ns/net"))?),
                other => Err(Problem::internal(format!("unexpected: {other:?}")).into()),
            }
        }
        ["pid", id] => match ask(&client.place, id, &HelperRequest::State, &[])? {
            HelperAnswer::State { pid: Some(pid), .. } => Ok(output::line(&pid.to_string())?),
            other => Err(Problem::internal(format!("no process: {other:?}")).into()),
        },
        ["crash", "server"] => {
            process::end(&client.place.apiserver("pid"), Signal::KILL);
            Ok(())
        }
        ["crash", "helper", id] => {
            let bundle = client.place.bundle(id);
            process::end(&bundle.join("helper.pid"), Signal::KILL);
            process::await_end(&bundle.join("guard.pid"));
            Ok(())
        }
        ["restart"] => {
            process::end(&client.place.apiserver("pid"), Signal::TERM);
            Ok(())
        }
        ["sweep"] => sweep(client),
        _ => Err(Failure::Plain(USAGE.to_owned())),
    }
}

/// Ends and removes everything, whatever state it is in.
fn sweep(client: &Client) -> Result<(), Failure> {
    let place = &client.place;
    system::end_services(place)?;
    for bundle in fs::read_dir(place.containers()).into_iter().flatten() {
        let bundle = bundle?;
        clear(&place.group(&bundle.file_name().to_string_lossy()))
            .map_err(|error| Problem::internal(error.to_string()))?;
        remove_sockets(&bundle.path());
    }
    match fs::remove_dir_all(&place.root) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes the published sockets of a container whose keeper was killed. One that somebody
/// listens on is another's.
fn remove_sockets(bundle: &Path) {
    let content = fs::read(bundle.join("bundle.json")).unwrap_or_default();
    let Ok(bundle) = serde_json::from_slice::<Bundle>(&content) else { return };
    for socket in bundle.configuration.published_sockets {
        let path = Path::new(&socket.host_path);
        if wire::connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
            drop(fs::remove_file(path));
        }
    }
}
