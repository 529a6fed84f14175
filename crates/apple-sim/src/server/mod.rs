//! The server: `container-apiserver`, with the services of images and networks in it.
//!
//! It keeps what clients see. Machines are not its children's children: a server that ends leaves
//! them running, and the next one takes all containers for stopped, as Apple's does.

mod containers;
mod helper;
mod networks;
mod volumes;

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Code, Problem};
use crate::images::Images;
use crate::place::Place;
use crate::process::PAUSE;
use crate::protocol::{Answer, Request};
use crate::settings::{Settings, Trap};
use crate::wire;
use containers::Containers;
use networks::Networks;

pub(crate) use helper::{ask, deregister};

/// What was said when the server was started.
#[derive(Clone, Debug, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct Roots {
    /// Where its programs lie.
    pub(crate) install_root: String,
    /// Where its logs lie, if that was said.
    pub(crate) log_root: Option<String>,
}

/// The server.
struct Server {
    place: Place,
    images: Images,
    containers: Arc<Containers>,
    networks: Networks,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The process itself.
pub(crate) fn run(root: &Path) -> ExitCode {
    match serve(&Place::new(root)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            drop(writeln!(io::stderr(), "apiserver: {problem}"));
            ExitCode::FAILURE
        }
    }
}

fn serve(place: &Place) -> Result<(), Problem> {
    fs::create_dir_all(place.containers())?;
    fs::create_dir_all(place.volumes())?;
    let networks = Networks::load(place)?;
    let server = Arc::new(Server {
        place: place.clone(),
        images: Images::new(&place.root),
        containers: Arc::new(Containers::load(place)?),
        networks,
    });
    let listener = wire::listen(&place.apiserver("api.sock"))?;
    for stream in listener.incoming() {
        let (stream, server) = (stream?, Arc::clone(&server));
        std::thread::spawn(move || server.talk(&stream));
    }
    Ok(())
}

impl Server {
    fn talk(&self, stream: &UnixStream) {
        while let Ok(Some((request, descriptors))) = wire::receive::<Request>(stream) {
            while self.settings().is_ok_and(|settings| settings.trapped(Trap::ServerHangs)) {
                std::thread::sleep(PAUSE);
            }
            let (answer, files) = match self.handle(request, descriptors) {
                Ok(answered) => answered,
                // Causes are text by the time that they arrive.
                Err(problem) => (Answer::Failed(problem.flattened()), Vec::new()),
            };
            let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
            if wire::send(stream, &answer, &files).is_err() {
                return;
            }
        }
    }

    fn settings(&self) -> Result<Settings, Problem> {
        Settings::load(&self.place.root).map_err(Problem::internal)
    }

    fn handle(&self, request: Request, descriptors: Vec<OwnedFd>) -> Result<(Answer, Vec<OwnedFd>), Problem> {
        let containers = &self.containers;
        let answer = match request {
            Request::Ping => self.health()?,
            Request::ContainerList => Answer::Containers(containers.list()),
            Request::ContainerCreate { configuration, auto_remove, kernel_arguments } => {
                let ipv6_prefixes = self.networks.ipv6_prefixes();
                containers.create(
                    &self.images,
                    *configuration,
                    auto_remove,
                    kernel_arguments,
                    ipv6_prefixes,
                )?;
                Answer::Done
            }
            Request::ContainerBootstrap { id, stdin } => {
                containers.bootstrap(&id, stdin, &descriptors)?;
                Answer::Done
            }
            Request::ContainerStartProcess { id, process } => {
                containers.start_process(&id, &process)?;
                Answer::Done
            }
            Request::ContainerCreateProcess { id, process, configuration, stdin } => {
                containers.create_process(&id, process, configuration, stdin, &descriptors)?;
                Answer::Done
            }
            Request::ContainerWait { id, process } => Answer::Exit(containers.wait(&id, process)?),
            Request::ContainerKill { id, process, signal } => {
                containers.kill(&id, process, signal)?;
                Answer::Done
            }
            Request::ContainerStop { id, timeout, signal } => {
                containers.stop(&id, timeout, signal)?;
                Answer::Done
            }
            Request::ContainerDelete { id, force } => {
                containers.delete(&id, force)?;
                Answer::Done
            }
            Request::ContainerLogs { id } => return Ok((Answer::Done, containers.logs(&id)?)),
            Request::ContainerStats { id } => Answer::Stats(containers.stats(&id)?),
            Request::ImageList => Answer::Images(self.images.list()?),
            Request::ImageLoad { path } => {
                if self.settings()?.trapped(Trap::LoadFails) {
                    return Err(Problem::internal("failed to import image"));
                }
                Answer::Images(self.images.load(Path::new(&path))?)
            }
            Request::ImageTag { image, reference } => {
                self.images.tag(&image, &reference)?;
                Answer::Done
            }
            Request::ImageDelete { reference } => {
                self.images.delete(&reference)?;
                Answer::Done
            }
            // No registry is ever asked.
            Request::ImagePull { reference } => return Err(not_pulled(&reference)),
            Request::NetworkList => Answer::Networks(self.networks.list()),
            Request::NetworkCreate { configuration } => {
                Answer::Networks(vec![self.networks.create(&self.place, configuration)?])
            }
            Request::NetworkDelete { id } => {
                self.networks.delete(&self.place, &id, &containers.list())?;
                Answer::Done
            }
            Request::VolumeList => Answer::Volumes(volumes::list(&self.place)?),
            Request::VolumeCreate { volume } => Answer::Volumes(vec![volumes::create(&self.place, volume)?]),
            Request::VolumeDelete { name } => {
                volumes::delete(&self.place, &name, &containers.list())?;
                Answer::Done
            }
            Request::InstallKernel { path, force } => {
                self.install_kernel(Path::new(&path), force)?;
                Answer::Done
            }
            Request::GetDefaultKernel => {
                let kernel = self.place.kernel();
                if !kernel.exists() {
                    let shown = kernel.display();
                    let message = format!("default kernel not found at {shown}");
                    return Err(Problem::new(Code::NotFound, message));
                }
                Answer::Path(kernel.to_string_lossy().into_owned())
            }
        };
        Ok((answer, Vec::new()))
    }

    fn health(&self) -> Result<Answer, Problem> {
        let roots: Roots = match fs::read(self.place.apiserver("registered")) {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(_) => Roots::default(),
        };
        Ok(Answer::Health {
            // As the URL of a directory.
            app_root: format!("{}/", self.place.root.display()),
            install_root: roots.install_root,
            log_root: roots.log_root,
            version: self.settings()?.version.number().to_owned(),
        })
    }

    fn install_kernel(&self, path: &Path, force: bool) -> Result<(), Problem> {
        let kernel = self.place.kernel();
        if let Some(directory) = kernel.parent() {
            fs::create_dir_all(directory)?;
        }
        if kernel.exists() && !force {
            return Err(Problem::new(Code::Exists, format!("kernel already exists at {}", kernel.display())));
        }
        fs::copy(path, kernel)?;
        Ok(())
    }
}

fn not_pulled(reference: &str) -> Problem {
    let (host, rest) = reference.split_once('/').unwrap_or(("registry-1.docker.io", reference));
    let host = if host == "docker.io" { "registry-1.docker.io" } else { host };
    let (name, tag) = rest.rsplit_once([':', '@']).unwrap_or((rest, "latest"));
    Problem::internal(format!(
        "HTTP request to https://{host}/v2/{name}/manifests/{tag} failed with response: 404 Not Found. Reason: Unknown"
    ))
}
