//! What a container runs: its specification over its image's defaults, as
//! Kubernetes defines it (kubernetes.io, "Define a Command and Arguments for a
//! Container"; environment and working directory likewise).

use serde::{Deserialize, Serialize};

use crate::{ContainerSpec, RunAs, Signal, SpecError};

/// What an image says of the process to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageDefaults {
    /// Program and first arguments.
    pub entrypoint: Vec<String>,
    /// Further arguments.
    pub cmd: Vec<String>,
    /// `KEY=value`.
    pub env: Vec<String>,
    /// Working directory.
    pub working_dir: String,
    /// `user`, `uid`, `user:group` or `uid:gid`.
    pub user: String,
    /// A signal's name or number.
    pub stop_signal: String,
}

/// Who a process shall be; names are resolved in the container's root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum User {
    /// A user id.
    Uid(u32),
    /// As an image's USER is written.
    Named(String),
}

/// The process of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Program and arguments; at least one.
    pub args: Vec<String>,
    /// `KEY=value`, each key once.
    pub env: Vec<String>,
    /// Absolute working directory.
    pub cwd: String,
    /// Who it is.
    pub user: User,
    /// What ends it politely.
    pub stop_signal: Signal,
}

/// Every process has a PATH; an image that sets none gets this one.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the container runs.
///
/// # Errors
/// When neither the specification nor the image names a program, when the
/// working directory is not absolute, when a group is given without a user, or
/// when the image's stop signal is unknown.
pub fn resolve_process(spec: &ContainerSpec, image: &ImageDefaults) -> Result<Process, SpecError> {
    let mut args = if spec.command.is_empty() { image.entrypoint.clone() } else { spec.command.clone() };
    if !spec.args.is_empty() {
        args.extend(spec.args.iter().cloned());
    } else if spec.command.is_empty() {
        args.extend(image.cmd.iter().cloned());
    }
    if args.is_empty() {
        return Err(SpecError::invalid(
            "config.command",
            "neither the container nor its image names a program to run; set command or args",
        ));
    }

    let cwd = match (spec.working_dir.as_str(), image.working_dir.as_str()) {
        ("", "") => "/".to_owned(),
        ("", from_image) if from_image.starts_with('/') => from_image.to_owned(),
        // Docker reads an image's relative directory from the root.
        ("", from_image) => format!("/{from_image}"),
        (own, _) if own.starts_with('/') => own.to_owned(),
        (own, _) => {
            return Err(SpecError::invalid("config.working_dir", format!("{own:?} is not an absolute path")));
        }
    };

    let user = match &spec.security.user {
        Some(RunAs::Uid(uid)) => User::Uid(*uid),
        Some(RunAs::Name(name)) => User::Named(name.clone()),
        None if spec.security.group.is_some() => {
            return Err(SpecError::invalid(
                "config.linux.security_context.run_as_group",
                "needs run_as_user or run_as_username",
            ));
        }
        None if image.user.is_empty() => User::Uid(0),
        None => User::Named(image.user.clone()),
    };

    let stop_signal = match spec.stop_signal {
        Some(signal) => signal,
        None if image.stop_signal.is_empty() => Signal::TERM,
        None => image.stop_signal.parse()?,
    };

    Ok(Process { args, env: environment(spec, image), cwd, user, stop_signal })
}

/// The image's environment, then the container's; the last of each key wins
/// and takes the place of the first.
fn environment(spec: &ContainerSpec, image: &ImageDefaults) -> Vec<String> {
    let mut all: Vec<(String, String)> = Vec::new();
    let mut set = |key: &str, value: &str| match all.iter_mut().find(|(known, _)| known == key) {
        Some((_, slot)) => value.clone_into(slot),
        None => all.push((key.to_owned(), value.to_owned())),
    };
    for entry in &image.env {
        let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
        set(key, value);
    }
    for (key, value) in &spec.env {
        set(key, value);
    }
    let mut env: Vec<String> = all.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    if !env.iter().any(|entry| entry.starts_with("PATH=")) {
        env.insert(0, DEFAULT_PATH.to_owned());
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::container;

    fn image() -> ImageDefaults {
        ImageDefaults {
            entrypoint: vec!["/entry".into()],
            cmd: vec!["default".into()],
            env: vec!["PATH=/bin".into(), "A=image".into()],
            working_dir: "/srv".into(),
            user: "www-data".into(),
            stop_signal: "SIGQUIT".into(),
        }
    }

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    /// The table of the Kubernetes documentation: image entrypoint and cmd,
    /// container command and args, and what runs.
    #[test]
    fn command_and_args() {
        for (command, args, expected) in [
            (&[][..], &[][..], &["/entry", "default"][..]),
            (&["/own"], &[], &["/own"]),
            (&[], &["own"], &["/entry", "own"]),
            (&["/own"], &["arg"], &["/own", "arg"]),
        ] {
            let mut spec = container("c", "image");
            spec.command = strings(command);
            spec.args = strings(args);
            assert_eq!(resolve_process(&spec, &image()).unwrap().args, strings(expected));
        }
    }

    #[test]
    fn nothing_to_run_is_refused() {
        let error = resolve_process(&container("c", "image"), &ImageDefaults::default()).unwrap_err();
        assert!(error.to_string().starts_with("config.command: "), "{error}");
    }

    #[test]
    fn the_container_overrides_the_image() {
        let mut spec = container("c", "image");
        spec.env = vec![("A".into(), "own".into()), ("B".into(), "1".into()), ("B".into(), "2".into())];
        let process = resolve_process(&spec, &image()).unwrap();
        assert_eq!(process.env, strings(&["PATH=/bin", "A=own", "B=2"]));
        assert_eq!(process.cwd, "/srv");
        assert_eq!(process.user, User::Named("www-data".into()));
        assert_eq!(process.stop_signal.to_string(), "SIGQUIT");

        spec.working_dir = "/own".into();
        spec.security.user = Some(RunAs::Uid(0));
        spec.stop_signal = Some(Signal::KILL);
        let process = resolve_process(&spec, &image()).unwrap();
        assert_eq!(
            (process.cwd.as_str(), process.user, process.stop_signal),
            ("/own", User::Uid(0), Signal::KILL)
        );
    }

    #[test]
    fn bad_requests_name_the_field() {
        let mut spec = container("c", "image");
        spec.working_dir = "relative".into();
        assert!(resolve_process(&spec, &image()).unwrap_err().to_string().contains("config.working_dir"));
        let mut spec = container("c", "image");
        spec.security.group = Some(1);
        assert!(resolve_process(&spec, &image()).unwrap_err().to_string().contains("run_as_group"));
    }

    #[test]
    fn a_path_is_always_set() {
        let mut spec = container("c", "image");
        spec.command = strings(&["/x"]);
        assert_eq!(resolve_process(&spec, &ImageDefaults::default()).unwrap().env, strings(&[DEFAULT_PATH]));
    }
}
