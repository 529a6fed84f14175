//! A container's making, and that of its process when it is started.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use kina_cgroup::Group;
use kina_guest_api::v1;
use kina_launch::{Created, LimitedPlan, Plan, RootFs};
use kina_log::Stream;
use tokio::task::JoinHandle;

use crate::attach::{Input, InputEnds};
use crate::container::{Container, Made, Process, now_nanos, open_log, start_pumps};
use crate::error::Error;
use crate::guest::{CGROUP_PATIENCE, Guest, child_group, watch_end};
use crate::image_volume::ImageVolume;
use crate::layers::LayerUse;
use crate::pod::Pod;
use crate::process;
use crate::rootfs::{self, WritableLayer};
use crate::selinux::Labels;
use crate::spec::{self, PidNamespace};
use crate::streams::Streams;
use crate::user::Accounts;

impl Guest {
    /// Makes all of a container but its process. Blocks. What it made is undone when a step fails.
    pub(crate) fn prepare(
        &self,
        request: &v1::CreateContainerRequest,
        pod: &Pod,
        pid: &PidNamespace,
    ) -> Result<Prepared, Error> {
        let id = &request.id;
        let request_rootfs = request.rootfs.as_ref().ok_or_else(|| Error::invalid("rootfs", "is missing"))?;
        let request_process =
            request.process.as_ref().ok_or_else(|| Error::invalid("process", "is missing"))?;
        crate::apparmor::provide(request_process)?;
        let labels = Labels::of(request_process.selinux.as_ref())?;
        let files = labels.files.as_deref();
        let log = open_log(id, request.log.as_ref())?;
        let group = child_group(&pod.group, id)?;
        let mut layers = Vec::new();
        let mut lower = Vec::new();
        for layer in &request_rootfs.layers {
            lower.push(self.layer(pod, layer, &mut layers)?);
        }
        let directory = pod.state_directory.join("containers").join(id);
        let mut undo = Undo::new(group.clone(), WritableLayer::create(directory, pod.root)?);
        let root = rootfs::assemble(id, &lower, undo.writable(), pod.namespaces.user.as_ref(), files)?;
        let identity = Accounts::read(&root)?.resolve(request_process.user.as_ref())?;
        for group in std::iter::once(&identity.gid).chain(&identity.groups) {
            pod.ids.outside("process.user", identity.uid, *group)?;
        }
        let owns_pid_namespace = matches!(pid, PidNamespace::Own);
        let images = self.images(request, pod, undo.writable(), files, &mut layers)?;
        let (spec, held) = spec::build(request, pod, &identity, pid, &self.hierarchy, &images, &labels)?;
        let streams = Streams::open(request_process.terminal, request.stdin, pod.root)?;
        let plan = Plan {
            spec: spec.clone(),
            rootfs: RootFs::Detached(root),
            stdio: streams.child,
            cgroup: Some(group.clone()),
        };
        let plan = LimitedPlan::new(plan).map_err(|source| Error::Launch { id: id.clone(), source })?;
        let stop_signal = if request.stop_signal == 0 { 15 } else { request.stop_signal };
        Ok(Prepared {
            made: Made {
                spec: spec::for_exec(spec),
                group,
                stop_signal,
                root: pod.root,
                log,
                created_at_nanos: now_nanos(),
                owns_pid_namespace,
                writable: undo.keep(),
                layers: Mutex::new(layers),
                audience: Arc::default(),
            },
            process: PreparedProcess {
                plan,
                held,
                images,
                outputs: streams.outputs,
                input: InputEnds { stdin: streams.stdin, terminal: None, once: request.stdin_once },
                terminal_input: request.stdin,
            },
            response: v1::CreateContainerResponse {
                uid: identity.uid,
                gid: identity.gid,
                supplemental_groups: identity.groups,
            },
        })
    }

    /// Sets up the process of a container, and has it run its program. Returns when that began, in
    /// nanoseconds since the epoch. Blocks; must be called in the runtime.
    pub(crate) fn launch(
        self: &Arc<Self>,
        container: &Arc<Container>,
        prepared: PreparedProcess,
    ) -> Result<i64, Error> {
        let failed = |source| Error::Launch { id: container.id.clone(), source };
        let PreparedProcess { plan, held, images, outputs, input, terminal_input } = prepared;
        let created = self.launcher.set_up(plan);
        drop((held, images));
        let Created { pid, pidfd, start, terminal, warnings } = created.map_err(failed)?;
        let streams =
            container.made("start").and_then(|made| streams(made, terminal, outputs, input, terminal_input));
        let (pumps, input) = match streams {
            Ok(streams) => streams,
            Err(error) => {
                // Ends it; it is a child of the guest.
                drop(start);
                tokio::spawn(async move { drop(process::wait(&pidfd).await) });
                return Err(error);
            }
        };
        container.set_process(Process {
            pid: pid.unsigned_abs(),
            pidfd,
            pumps: Mutex::new(pumps),
            input: Arc::new(input),
            warnings: warnings.iter().map(ToString::to_string).collect(),
        });
        tokio::spawn(watch_end(Arc::clone(self), Arc::clone(container)));
        // Taken before: a program may have ended before its start is known to have succeeded.
        let started_at_nanos = now_nanos();
        start.start().map_err(failed)?;
        Ok(started_at_nanos)
    }

    /// The images that the container mounts, in the order of its mounts.
    fn images(
        &self,
        request: &v1::CreateContainerRequest,
        pod: &Pod,
        writable: &WritableLayer,
        label: Option<&str>,
        uses: &mut Vec<LayerUse>,
    ) -> Result<Vec<ImageVolume>, Error> {
        let asked = request.mounts.iter().filter_map(|mount| Some((mount, mount.image.as_ref()?)));
        let mut open = |index: usize, image: &v1::ImageVolume| {
            let lower = image.layers.iter().map(|layer| self.layer(pod, layer, uses));
            let lower = lower.collect::<Result<Vec<_>, _>>()?;
            let (place, user) = (writable.image_volume(index), pod.namespaces.user.as_ref());
            ImageVolume::open(&request.id, &lower, &image.sub_path, &place, user, label)
        };
        let opened = asked.enumerate().map(|(index, (mount, image))| {
            let destination = || mount.destination.clone();
            open(index, image)
                .map_err(|source| Error::ImageVolume { destination: destination(), source: Box::new(source) })
        });
        opened.collect()
    }

    /// Where a layer is mounted; mounts it when it comes as an image.
    fn layer(&self, pod: &Pod, layer: &v1::Layer, uses: &mut Vec<LayerUse>) -> Result<PathBuf, Error> {
        match &layer.source {
            Some(v1::layer::Source::Mounted(path)) => Ok(path.into()),
            Some(v1::layer::Source::Image(image)) => {
                let directory = pod.state_directory.join("layers");
                let used = self.layers.mount(&directory, &layer.diff_id, Path::new(image))?;
                let path = used.path().to_owned();
                uses.push(used);
                Ok(path)
            }
            None => Err(Error::invalid("rootfs.layers", "one has no source")),
        }
    }
}

/// A container without its process.
pub(crate) struct Prepared {
    pub(crate) made: Made,
    pub(crate) process: PreparedProcess,
    pub(crate) response: v1::CreateContainerResponse,
}

/// What is needed to set up a container's process.
#[derive(Debug)]
pub(crate) struct PreparedProcess {
    plan: LimitedPlan,
    /// What the plan names by descriptor.
    held: Vec<OwnedFd>,
    images: Vec<ImageVolume>,
    outputs: Vec<(Stream, OwnedFd)>,
    input: InputEnds,
    /// Whether a terminal takes input.
    terminal_input: bool,
}

/// Connects a new process' streams with the container's log, audience and input.
fn streams(
    made: &Made,
    terminal: Option<OwnedFd>,
    mut outputs: Vec<(Stream, OwnedFd)>,
    mut input: InputEnds,
    terminal_input: bool,
) -> Result<(Vec<JoinHandle<()>>, Input), Error> {
    if let Some(terminal) = terminal {
        let copy = || terminal.try_clone().map_err(|e| Error::system("duplicate a terminal", e));
        input.stdin = terminal_input.then(copy).transpose()?;
        input.terminal = Some(copy()?);
        outputs.push((Stream::Stdout, terminal));
    }
    let input = Input::new(input)?;
    Ok((start_pumps(outputs, &made.log, &made.audience)?, input))
}

/// Removes a container's cgroup and writable layer unless it is kept.
struct Undo {
    group: Group,
    writable: Option<WritableLayer>,
}

impl Undo {
    fn new(group: Group, writable: WritableLayer) -> Self {
        Self { group, writable: Some(writable) }
    }

    fn writable(&self) -> &WritableLayer {
        self.writable.as_ref().expect("it is only taken at the end, by keep")
    }

    fn keep(&mut self) -> WritableLayer {
        self.writable.take().expect("it is kept once")
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        if let Some(writable) = self.writable.take() {
            // The error that led here is the one to tell.
            drop(self.group.delete(CGROUP_PATIENCE));
            drop(writable.remove());
        }
    }
}
