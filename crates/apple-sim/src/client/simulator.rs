//! `container simulator …`: what is not Apple's.

use std::fs;
use std::io;

use rustix::process::Signal;

use super::{Client, output, system};
use crate::error::{Failure, Problem};
use crate::process;
use crate::protocol::{HelperAnswer, HelperRequest, NetworkAnswer, NetworkRequest, Request};
use crate::runtime::clear;
use crate::server::ask;
use crate::vmnet;

const USAGE: &str = "\
usage: container simulator set SETTING VALUE   change a setting: version, boot-ms, machines,
                                               patience-percent, traps
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
            let mut settings = client.settings.clone();
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
            // The answer may be its end.
            drop(client.ask(&Request::Quit, None));
            process::await_end(&client.place.apiserver("pid"));
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
    if let Ok(bundles) = fs::read_dir(place.containers()) {
        for bundle in bundles {
            let id = bundle?.file_name().to_string_lossy().into_owned();
            clear(&place.group(&id)).map_err(|error| Problem::internal(error.to_string()))?;
        }
    }
    match fs::remove_dir_all(&place.root) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        Ok(()) | Err(_) => Ok(()),
    }
}
