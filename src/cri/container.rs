//! Containers as asked for.

use std::path::{Path, PathBuf};

use kina_model::{ContainerMetadata, ContainerSpec, PodSpec, Resources, Signal, SpecError};

use super::security::Kernel;
use super::{check, image, mounts, resources, security, v1};

const SECURITY: &str = "config.linux.security_context";

/// The seccomp profile on the node whose text [`container_spec`] needs, if any.
///
/// # Errors
/// When the request's reference to it makes no sense.
pub fn seccomp_file(request: &v1::CreateContainerRequest) -> Result<Option<PathBuf>, SpecError> {
    let linux = request.config.as_ref().and_then(|config| config.linux.as_ref());
    match linux.and_then(|linux| linux.security_context.as_ref()) {
        Some(context) => security::seccomp_file(SECURITY, context),
        None => Ok(None),
    }
}

/// The container that a request asks for in that pod, with the text of its
/// [`seccomp_file`].
///
/// # Errors
/// The first field that makes no sense or cannot be had.
pub fn container_spec(
    request: v1::CreateContainerRequest,
    pod: &PodSpec,
    kernel: Kernel,
    seccomp_text: Option<String>,
) -> Result<ContainerSpec, SpecError> {
    let v1::CreateContainerRequest { pod_sandbox_id: _, config, sandbox_config } = request;
    same_pod(sandbox_config, pod)?;
    let v1::ContainerConfig {
        metadata,
        image,
        command,
        args,
        working_dir,
        envs,
        mounts: mount_messages,
        devices,
        labels,
        annotations,
        log_path,
        stdin,
        stdin_once,
        tty,
        linux,
        windows,
        cdi_devices,
        stop_signal,
    } = check::required("config", config)?;

    let v1::ContainerMetadata { name, attempt } = check::required("config.metadata", metadata)?;
    if name.is_empty() {
        return Err(SpecError::invalid("config.metadata.name", "is empty; a container needs a name"));
    }
    check::text("config.metadata.name", &name)?;
    let mut image = check::required("config.image", image)?;
    let image_annotations = std::mem::take(&mut image.annotations);
    let user_specified_image = std::mem::take(&mut image.user_specified_image);
    let image = image::image_name("config.image", image)?;
    if windows.is_some_and(|windows| windows != v1::WindowsContainerConfig::default()) {
        return Err(SpecError::unsupported("config.windows", "kina runs Linux containers only"));
    }
    check::texts("config.command", &command)?;
    check::texts("config.args", &args)?;
    if !working_dir.is_empty() {
        check::text("config.working_dir", &working_dir)?;
        if !working_dir.starts_with('/') {
            let reason = format!("{working_dir:?} is not an absolute path");
            return Err(SpecError::invalid("config.working_dir", reason));
        }
    }
    if !log_path.is_empty() {
        check::path_below("config.log_path", &log_path)?;
    }
    let v1::LinuxContainerConfig { resources, security_context } = linux.unwrap_or_default();
    Ok(ContainerSpec {
        metadata: ContainerMetadata { name, attempt },
        image,
        user_specified_image,
        image_annotations,
        command,
        args,
        working_dir,
        env: environment(envs)?,
        mounts: mount_messages
            .into_iter()
            .enumerate()
            .map(|(index, mount)| {
                let field = format!("config.mounts[{index}]");
                mounts::mount(&field, mount, kernel.recursive_read_only, pod.namespaces.user)
            })
            .collect::<Result<_, _>>()?,
        devices: devices
            .into_iter()
            .enumerate()
            .map(|(index, device)| mounts::device(&format!("config.devices[{index}]"), device))
            .collect::<Result<_, _>>()?,
        cdi_devices: cdi_devices.into_iter().map(|v1::CdiDevice { name }| name).collect(),
        labels,
        annotations,
        log_path,
        stdin,
        stdin_once,
        tty,
        resources: match resources {
            Some(resources) => resources::resources("config.linux.resources", resources)?,
            None => Resources::default(),
        },
        security: security::security(SECURITY, security_context.unwrap_or_default(), pod, seccomp_text)?,
        stop_signal: stop_signal_of("config.stop_signal", stop_signal)?,
    })
}

/// The pod's configuration was fixed by RunPodSandbox; callers repeat it here.
/// A log directory that differs would lose the logs.
fn same_pod(config: Option<v1::PodSandboxConfig>, pod: &PodSpec) -> Result<(), SpecError> {
    const FIELD: &str = "sandbox_config.log_directory";
    let directory = config.map(|config| config.log_directory).unwrap_or_default();
    match &pod.log_directory {
        _ if directory.is_empty() => Ok(()),
        Some(own) if Path::new(&directory) == own => Ok(()),
        Some(own) => {
            let reason = format!("{directory:?} differs from the pod's own, {:?}", own.display());
            Err(SpecError::invalid(FIELD, reason))
        }
        None => {
            let reason = format!("{directory:?}, but the pod was made without one; name it in RunPodSandbox");
            Err(SpecError::invalid(FIELD, reason))
        }
    }
}

/// Errors never show a value: it may be a secret.
fn environment(variables: Vec<v1::KeyValue>) -> Result<Vec<(String, String)>, SpecError> {
    let variable = |(index, v1::KeyValue { key, value }): (usize, v1::KeyValue)| {
        let field = format!("config.envs[{index}]");
        if key.is_empty() || key.contains(['=', '\0']) {
            let reason = format!("{key:?} is no name of a variable: it is empty, or holds '=' or NUL");
            return Err(SpecError::invalid(format!("{field}.key"), reason));
        }
        match String::from_utf8(value) {
            Ok(value) if !value.contains('\0') => Ok((key, value)),
            Ok(_) => {
                Err(SpecError::invalid(format!("{field}.value"), format!("of {key} holds a NUL character")))
            }
            Err(_) => Err(SpecError::unsupported(
                format!("{field}.value"),
                format!("of {key} is not UTF-8; write the bytes in base64, say"),
            )),
        }
    };
    variables.into_iter().enumerate().map(variable).collect()
}

/// `None` leaves the image's.
fn stop_signal_of(field: &str, value: i32) -> Result<Option<Signal>, SpecError> {
    let signal: v1::Signal = check::known(field, value)?;
    if signal == v1::Signal::RuntimeDefault {
        return Ok(None);
    }
    let name = signal.as_str_name().trim_start_matches("SIGNAL_");
    let name = name.replace("PLUS", "+").replace("MINUS", "-");
    name.parse().map(Some).map_err(|_| SpecError::invalid(field, format!("{name} is no signal of Linux")))
}

/// The signal as a container's status says it.
pub(super) fn signal_message(signal: Signal) -> v1::Signal {
    const REAL_TIME: std::ops::RangeInclusive<u8> = 34..=64;
    let name = match signal.number() {
        34 => "SIGRTMIN".to_owned(),
        64 => "SIGRTMAX".to_owned(),
        number @ 35..=49 => format!("SIGRTMINPLUS{}", number - REAL_TIME.start()),
        number @ 50..=63 => format!("SIGRTMAXMINUS{}", REAL_TIME.end() - number),
        _ => signal.to_string(),
    };
    // Two numbers have no name: the C library keeps them to itself.
    v1::Signal::from_str_name(&format!("SIGNAL_{name}")).unwrap_or(v1::Signal::RuntimeDefault)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stop_signal_is_known() {
        assert_eq!(stop_signal_of("s", 0).unwrap(), None);
        for (value, number) in [(1, 6), (2, 14), (23, 15), (13, 9), (35, 34), (50, 49), (51, 50), (65, 64)] {
            assert_eq!(stop_signal_of("s", value).unwrap().unwrap().number(), number, "{value}");
        }
        for value in 1..=65 {
            let signal = stop_signal_of("s", value).unwrap().unwrap();
            let back = stop_signal_of("s", signal_message(signal).into()).unwrap();
            assert_eq!(back, Some(signal), "{value}");
        }
        assert!(stop_signal_of("s", 66).is_err());
        assert!(stop_signal_of("s", -1).is_err());
    }

    #[test]
    fn environment_errors_keep_values_to_themselves() {
        let ask = |key: &str, value: &[u8]| {
            environment(vec![v1::KeyValue { key: key.to_owned(), value: value.to_owned() }])
        };
        assert_eq!(ask("A", b"x=y").unwrap(), [("A".to_owned(), "x=y".to_owned())]);
        for (key, value, field) in [
            ("", &b"secret"[..], "config.envs[0].key: "),
            ("A=B", b"secret", "config.envs[0].key: "),
            ("A", b"secret\0", "config.envs[0].value: "),
            ("A", b"secret\xff", "config.envs[0].value: "),
        ] {
            let error = ask(key, value).unwrap_err().to_string();
            assert!(error.starts_with(field) && !error.contains("secret"), "{error}");
        }
    }
}
