//! Commands about the services (`Sources/ContainerCommands/System`).

use std::fs;
use std::io::{self, Write};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use super::{Client, MINUTE, TEN_SECONDS, container, output};
use crate::arguments::Matches;
use crate::error::{Failure, Problem};
use crate::place::Place;
use crate::protocol::{Answer, Request};
use crate::server::{Roots, deregister};
use crate::{process, shape, values};

pub(super) fn start(client: &Client, matches: &Matches) -> Result<(), Failure> {
    let place = match matches.one("app-root") {
        Some(root) => Place::new(&values::absolute(root)),
        None => client.place.clone(),
    };
    let client = Client { place, settings: client.settings.clone(), stream: std::cell::RefCell::new(None) };
    fs::create_dir_all(client.place.apiserver(""))?;
    let absolute = |key: &str| matches.one(key).map(|path| values::absolute(path).display().to_string());
    let roots = Roots {
        install_root: absolute("install-root").unwrap_or_else(|| "/usr/local/".to_owned()),
        log_root: absolute("log-root"),
    };
    fs::write(client.place.apiserver("registered"), serde_json::to_vec(&roots)?)?;
    let limit = matches.number::<f64>("timeout").unwrap_or(60.0).clamp(0.001, 86_400.0);
    client.ping(Some(Duration::from_secs_f64(limit))).map_err(|problem| {
        Problem::internal(format!("failed to get a response from apiserver: {problem}"))
    })?;
    if client.place.kernel().exists() || matches.flag("disable-kernel-install") {
        return Ok(());
    }
    if !matches.flag("enable-kernel-install") && !asked_for_kernel()? {
        return Ok(());
    }
    let kernel = client.place.apiserver("kernel");
    fs::write(&kernel, "the simulator runs no kernel\n")?;
    let path = kernel.to_string_lossy().into_owned();
    client.ask(&Request::InstallKernel { path, force: false }, None)?;
    Ok(())
}

/// Asks on standard input, which a caller without one waits for in vain.
fn asked_for_kernel() -> Result<bool, Problem> {
    let question = "No default kernel configured.\nInstall the recommended default kernel? [Y/n]: ";
    output::print(question)?;
    let mut line = String::new();
    if io::stdin().read_line(&mut line)? == 0 {
        return Err(Problem::internal("failed to read user input"));
    }
    Ok(matches!(line.trim().to_lowercase().as_str(), "" | "y" | "yes"))
}

pub(super) fn stop(client: &Client) -> Result<(), Failure> {
    if client.is_registered()
        && client.ping(Some(Duration::from_secs(5))).is_ok()
        && let Ok(Answer::Containers(containers)) = client.ask(&Request::ContainerList, TEN_SECONDS)
    {
        for one in containers {
            if let Err(problem) = container::stop_one(client, &one.configuration.id, 5, None) {
                writeln!(io::stderr(), "failed to stop all containers [error={problem}]")?;
            }
        }
    }
    end_services(&client.place)?;
    Ok(())
}

/// Ends every process of an application root, also those that nobody knows of any more.
pub(super) fn end_services(place: &Place) -> Result<(), Problem> {
    drop(fs::remove_file(place.apiserver("registered")));
    // Nobody is about to start the server again.
    let _launch = Client::launch_lock(place);
    process::end(&place.apiserver("pid"), Signal::TERM);
    if let Ok(bundles) = fs::read_dir(place.containers()) {
        for bundle in bundles {
            deregister(place, &bundle?.file_name().to_string_lossy());
        }
    }
    process::end(&place.network("pid"), Signal::TERM);
    process::end_unrecorded(&place.root)?;
    for socket in [place.apiserver("api.sock"), place.network("net.sock")] {
        drop(fs::remove_file(socket));
    }
    Ok(())
}

pub(super) fn status(client: &Client, matches: &Matches) -> Result<u8, Failure> {
    if !client.is_registered() {
        let text = "apiserver is not running and not registered with launchd";
        output::render(matches, &shape::no_status("unregistered"), || text.to_owned())?;
        return Ok(1);
    }
    let Ok(Answer::Health { app_root, install_root, log_root, .. }) = client.ping(TEN_SECONDS) else {
        output::render(matches, &shape::no_status("not running"), || "apiserver is not running".to_owned())?;
        return Ok(1);
    };
    let payload = shape::status(&app_root, &install_root, log_root.as_deref(), client.release());
    output::render(matches, &payload, || {
        let field = |name: &str, key: &str| {
            vec![name.to_owned(), payload.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()]
        };
        shape::table(&[
            vec!["FIELD".to_owned(), "VALUE".to_owned()],
            field("status", "status"),
            field("appRoot", "appRoot"),
            field("installRoot", "installRoot"),
            field("logRoot", "logRoot"),
            field("apiserver.version", "apiServerVersion"),
            field("apiserver.commit", "apiServerCommit"),
            field("apiserver.build", "apiServerBuild"),
            field("apiserver.appName", "apiServerAppName"),
        ])
    })?;
    Ok(0)
}

pub(super) fn version(client: &Client, matches: &Matches) -> Result<(), Failure> {
    let server = client.ping(Some(Duration::from_secs(2))).is_ok();
    let payload = shape::versions(server, client.release());
    Ok(output::render(matches, &payload, || {
        let word = |version: &Value, key: &str| version[key].as_str().unwrap_or_default().to_owned();
        let rows = payload
            .as_array()
            .into_iter()
            .flatten()
            .map(|one| ["appName", "version", "buildType", "commit"].map(|key| word(one, key)).to_vec());
        output::listed(matches, &["COMPONENT", "VERSION", "BUILD", "COMMIT"], rows.collect())
    })?)
}

pub(super) fn kernel_set(client: &Client, matches: &Matches) -> Result<(), Failure> {
    client.ping(TEN_SECONDS)?;
    if matches.flag("recommended") {
        let kernel = client.place.apiserver("kernel");
        fs::write(&kernel, "the simulator runs no kernel\n")?;
        return install(client, &kernel.to_string_lossy(), matches.flag("force"));
    }
    if matches.one("tar").is_some() {
        let message = "the simulator takes no archives with kernels: use --binary alone";
        return Err(Problem::internal(message).into());
    }
    if matches.one("digest").is_some() {
        return Err(Failure::usage("'--digest' can only be used with '--tar'"));
    }
    let Some(binary) = matches.one("binary") else {
        return Err(Failure::usage("missing argument '--binary'"));
    };
    if let Some(other) = matches.one("arch").filter(|arch| !matches!(*arch, "arm64" | "amd64")) {
        let message = format!("unsupported architecture {other}");
        return Err(Problem::new(crate::error::Code::Unsupported, message).into());
    }
    install(client, &values::absolute(binary).to_string_lossy(), matches.flag("force"))
}

fn install(client: &Client, path: &str, force: bool) -> Result<(), Failure> {
    client.ask(&Request::InstallKernel { path: path.to_owned(), force }, MINUTE)?;
    Ok(())
}
