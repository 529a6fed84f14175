//! Containers: what they ask for, and what they cannot have.

use super::*;

#[test]
fn a_container_is_kept_whole() {
    let spec = convert_container(container_request()).unwrap();
    assert_eq!((spec.metadata.name.as_str(), spec.metadata.attempt), ("app", 1));
    assert_eq!((spec.image.as_str(), spec.user_specified_image.as_str()), ("sha256:0", "busybox:1"));
    assert_eq!(spec.image_annotations["i"], "1");
    assert_eq!((spec.command.len(), spec.args.len(), spec.working_dir.as_str()), (1, 2, "/srv"));
    assert_eq!(spec.env, [("A".to_owned(), "1".to_owned())]);
    assert!(spec.mounts[0].readonly);
    assert_eq!(spec.devices[0].permissions, "rwm");
    assert_eq!((spec.labels["c"].as_str(), spec.annotations["d"].as_str()), ("app", "e"));
    assert_eq!(spec.log_path, "app/1.log");
    assert!(spec.stdin && spec.stdin_once && spec.tty);
    assert_eq!(spec.resources.oom_score_adj, Some(10));
    assert_eq!(spec.stop_signal, Signal::from_number(10));
    let security = spec.security;
    assert!(!security.privileged && security.readonly_rootfs && security.no_new_privs);
    assert_eq!(security.add_capabilities, ["NET_ADMIN", "SYS_TIME"]);
    assert_eq!(security.drop_capabilities, ["ALL"]);
    assert_eq!(security.ambient_capabilities, ["NET_RAW"]);
    assert_eq!(security.pid, None);
    assert_eq!((security.user, security.group), (Some(RunAs::Uid(1002)), Some(1003)));
    assert_eq!((security.supplemental_groups, security.strict_groups), (vec![7], true));
    assert_eq!(security.masked_paths, Some(vec!["/proc/kcore".to_owned()]));
    assert_eq!(security.readonly_paths, Some(vec!["/proc/sys".to_owned()]));
    assert_eq!(security.seccomp, Seccomp::RuntimeDefault);
    assert_eq!(security.apparmor, AppArmor::RuntimeDefault);
}

#[test]
fn a_container_that_says_little() {
    let mut request = container_request();
    request.sandbox_config = None;
    request.config = Some(v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "a".into(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: "busybox".into(), ..Default::default() }),
        ..Default::default()
    });
    let spec = convert_container(request).unwrap();
    // The CRI: no seccomp profile is none; lists of paths are meant as they are.
    assert_eq!(spec.security.seccomp, Seccomp::Unconfined);
    assert_eq!(spec.security.masked_paths, Some(Vec::new()));
    assert_eq!(spec.security.pid, None);
    assert_eq!((spec.security.user, spec.stop_signal), (None, None));
    assert_eq!(spec.resources, kina_model::Resources::default());
}

type ContainerChange = fn(&mut v1::ContainerConfig);

fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
}

fn pid(config: &mut v1::ContainerConfig) -> &mut v1::NamespaceOption {
    security(config).namespace_options.as_mut().unwrap()
}

fn localhost(reference: &str) -> Option<v1::SecurityProfile> {
    let profile_type = v1::security_profile::ProfileType::Localhost.into();
    Some(v1::SecurityProfile { profile_type, localhost_ref: reference.to_owned() })
}

#[test]
#[allow(deprecated, reason = "older kubelets use the old fields")]
fn containers_that_cannot_be_had() {
    const INVALID: bool = false;
    const UNSUPPORTED: bool = true;
    let cases: &[(bool, &str, &str, ContainerChange)] = &[
        (INVALID, "config.metadata", "missing", |c| c.metadata = None),
        (INVALID, "config.metadata.name", "empty", |c| c.metadata.as_mut().unwrap().name.clear()),
        (INVALID, "config.image", "missing", |c| c.image = None),
        (INVALID, "config.image.image", "empty", |c| c.image.as_mut().unwrap().image.clear()),
        (INVALID, "config.image.runtime_handler", "\"runc\" is unknown", |c| {
            c.image.as_mut().unwrap().runtime_handler = "runc".into();
        }),
        (INVALID, "config.mounts[0].image.runtime_handler", "\"runc\" is unknown", |c| {
            let image =
                v1::ImageSpec { image: "a".into(), runtime_handler: "runc".into(), ..Default::default() };
            let mount = &mut c.mounts[0];
            (mount.image, mount.readonly, mount.propagation) = (Some(image), true, 0);
            mount.host_path.clear();
        }),
        (INVALID, "config.command[0]", "NUL", |c| c.command[0].push('\0')),
        (INVALID, "config.args[1]", "NUL", |c| c.args[1].push('\0')),
        (INVALID, "config.working_dir", "absolute", |c| c.working_dir = "srv".into()),
        (INVALID, "config.envs[0].key", "'='", |c| c.envs[0].key = "A=".into()),
        (INVALID, "config.mounts[0].host_path", "absolute", |c| c.mounts[0].host_path = "x".into()),
        (INVALID, "config.devices[0].permissions", "r, w and m", |c| c.devices[0].permissions = "x".into()),
        (INVALID, "config.log_path", "\"..\"", |c| c.log_path = "../../etc/cron.d/x".into()),
        (INVALID, "config.log_path", "relative", |c| c.log_path = "/etc/cron.d/x".into()),
        (INVALID, "config.linux.resources.cpu_quota", "1000", |c| {
            c.linux.as_mut().unwrap().resources.as_mut().unwrap().cpu_quota = 1;
        }),
        (UNSUPPORTED, "config.windows", "Linux", |c| {
            c.windows = Some(v1::WindowsContainerConfig {
                resources: Some(Default::default()),
                ..Default::default()
            });
        }),
        (UNSUPPORTED, "config.stop_signal", "value 99", |c| c.stop_signal = 99),
        (INVALID, "config.linux.security_context.capabilities.add_capabilities[1]", "NET_ADMIN", |c| {
            security(c).capabilities.as_mut().unwrap().add_capabilities[1] = "CAP_FLY".into();
        }),
        (INVALID, "config.linux.security_context.capabilities.add_ambient_capabilities[0]", "\"ALL\"", |c| {
            security(c).capabilities.as_mut().unwrap().add_ambient_capabilities[0] = "ALL".into();
        }),
        (INVALID, "config.linux.security_context.namespace_options.pid", "RunPodSandbox", |c| {
            pid(c).pid = v1::NamespaceMode::Node.into();
        }),
        (INVALID, "config.linux.security_context.namespace_options.target_id", "missing", |c| {
            pid(c).pid = v1::NamespaceMode::Target.into();
        }),
        (INVALID, "config.linux.security_context.namespace_options.target_id", "not TARGET", |c| {
            pid(c).target_id = "x".into();
        }),
        (INVALID, "config.linux.security_context.namespace_options.network", "RunPodSandbox", |c| {
            pid(c).network = v1::NamespaceMode::Node.into();
        }),
        (INVALID, "config.linux.security_context.namespace_options.ipc", "RunPodSandbox", |c| {
            pid(c).ipc = v1::NamespaceMode::Node.into();
        }),
        (UNSUPPORTED, "config.linux.security_context.namespace_options.network", "POD or NODE", |c| {
            pid(c).network = v1::NamespaceMode::Container.into();
        }),
        (INVALID, "config.linux.security_context.namespace_options.userns_options", "RunPodSandbox", |c| {
            pid(c).userns_options = Some(user_namespace());
        }),
        (INVALID, "config.linux.security_context.namespace_options.userns_options.uids", "0 mappings", |c| {
            pid(c).userns_options = Some(v1::UserNamespace::default());
        }),
        (INVALID, "config.linux.security_context.selinux_options.type", "container_t", |c| {
            security(c).selinux_options =
                Some(v1::SeLinuxOption { r#type: "t:s0".into(), ..Default::default() });
        }),
        (INVALID, "config.linux.security_context.selinux_options.level", "s0:c1,c2", |c| {
            security(c).selinux_options =
                Some(v1::SeLinuxOption { level: "s0 c1".into(), ..Default::default() });
        }),
        (INVALID, "config.linux.security_context.run_as_group", "run_as_username", |c| {
            security(c).run_as_user = None;
        }),
        (INVALID, "config.linux.security_context.run_as_username", "only one", |c| {
            security(c).run_as_username = "www-data".into();
        }),
        (INVALID, "config.linux.security_context.run_as_username", "run_as_group", |c| {
            security(c).run_as_user = None;
            security(c).run_as_username = "www-data:www".into();
        }),
        (INVALID, "config.linux.security_context.supplemental_groups[1]", "no id", |c| {
            security(c).supplemental_groups.push(-1);
        }),
        (UNSUPPORTED, "config.linux.security_context.supplemental_groups_policy", "value 2", |c| {
            security(c).supplemental_groups_policy = 2;
        }),
        (INVALID, "config.linux.security_context.masked_paths[0]", "absolute", |c| {
            security(c).masked_paths[0] = "proc".into();
        }),
        (INVALID, "config.linux.security_context.readonly_paths[0]", "\"..\"", |c| {
            security(c).readonly_paths[0] = "/proc/..".into();
        }),
        (UNSUPPORTED, "config.linux.security_context.seccomp.profile_type", "value 5", |c| {
            security(c).seccomp.as_mut().unwrap().profile_type = 5;
        }),
        (INVALID, "config.linux.security_context.seccomp.localhost_ref", "missing", |c| {
            security(c).seccomp = localhost("");
        }),
        (INVALID, "config.linux.security_context.seccomp.localhost_ref", "not Localhost", |c| {
            security(c).seccomp.as_mut().unwrap().localhost_ref = "/a".into();
        }),
        (INVALID, "config.linux.security_context.seccomp.localhost_ref", "not read", |c| {
            security(c).seccomp = localhost("/p.json");
        }),
        (INVALID, "config.linux.security_context.seccomp_profile_path", "runtime/default", |c| {
            security(c).seccomp = None;
            security(c).seccomp_profile_path = "/p.json".into();
        }),
        (INVALID, "config.linux.security_context.apparmor_profile", "runtime/default", |c| {
            security(c).apparmor = None;
            security(c).apparmor_profile = "mine".into();
        }),
        (INVALID, "config.linux.security_context.apparmor.localhost_ref", "missing", |c| {
            security(c).apparmor = localhost("");
        }),
    ];
    for (unsupported, field, reason, change) in cases {
        let mut request = container_request();
        change(request.config.as_mut().unwrap());
        let error = convert_container(request).expect_err(field);
        assert!(error.to_string().starts_with(&format!("{field}: ")), "{field}: {error}");
        assert!(error.to_string().contains(reason), "{reason}: {error}");
        assert_eq!(matches!(error, SpecError::Unsupported { .. }), *unsupported, "{error}");
    }
    let mut other_directory = container_request();
    other_directory.sandbox_config.as_mut().unwrap().log_directory = "/elsewhere".into();
    let without = PodSpec { log_directory: None, ..pod() };
    for pod in [pod(), without] {
        let error = container_spec(other_directory.clone(), &pod, KERNEL, None).unwrap_err().to_string();
        assert!(error.starts_with("sandbox_config.log_directory: "), "{error}");
    }
}

#[test]
fn privileged_containers() {
    let mut request = container_request();
    let context = security(request.config.as_mut().unwrap());
    context.privileged = true;
    context.seccomp = localhost("/p.json");
    assert_eq!(seccomp_file(&request).unwrap(), None);
    let spec = convert_container(request.clone()).unwrap().security;
    assert_eq!(spec.seccomp, Seccomp::Unconfined);
    assert_eq!((spec.masked_paths, spec.readonly_paths), (Some(Vec::new()), Some(Vec::new())));

    let plain = PodSpec { privileged: false, ..pod() };
    let error = container_spec(request, &plain, KERNEL, None).unwrap_err().to_string();
    assert!(error.starts_with("config.linux.security_context.privileged: "), "{error}");
}

#[test]
fn what_a_container_sees_of_other_processes() {
    use v1::NamespaceMode::{Container, Node, Pod, Target};
    for (of_pod, asked, expected) in [
        (PidMode::Pod, Some(Pod), None),
        (PidMode::Node, Some(Pod), None),
        (PidMode::Node, Some(Node), None),
        (PidMode::Node, Some(Container), Some(ContainerPid::Mode(PidMode::Container))),
        (PidMode::Pod, Some(Container), Some(ContainerPid::Mode(PidMode::Container))),
        (PidMode::Container, Some(Container), None),
        (PidMode::Container, Some(Pod), Some(ContainerPid::Mode(PidMode::Pod))),
        (PidMode::Container, Some(Target), Some(ContainerPid::Target("other".into()))),
        (PidMode::Container, None, None),
    ] {
        let mut pod = pod();
        pod.namespaces.pid = of_pod;
        let mut request = container_request();
        security(request.config.as_mut().unwrap()).namespace_options =
            asked.map(|mode| v1::NamespaceOption {
                pid: mode.into(),
                target_id: if mode == Target { "other".into() } else { String::new() },
                ..Default::default()
            });
        let spec = container_spec(request, &pod, KERNEL, None).unwrap();
        assert_eq!(spec.security.pid, expected, "{of_pod:?} {asked:?}");
    }
}

#[test]
#[allow(deprecated, reason = "older kubelets use the old field")]
fn seccomp_profiles() {
    let ask = |profile: Option<v1::SecurityProfile>, old: &str, text: Option<&str>| {
        let mut request = container_request();
        let context = security(request.config.as_mut().unwrap());
        context.seccomp = profile;
        context.seccomp_profile_path = old.to_owned();
        let file = seccomp_file(&request)?;
        let spec = container_spec(request, &pod(), KERNEL, text.map(ToOwned::to_owned))?;
        Ok::<_, SpecError>((file, spec.security.seccomp))
    };
    let file = Some(PathBuf::from("/var/lib/kubelet/p.json"));
    let text = "{\"defaultAction\":\"SCMP_ACT_ALLOW\"}";
    let own = Seccomp::Localhost(text.to_owned());
    for (profile, old, expected) in [
        (None, "", (None, Seccomp::Unconfined)),
        (None, "unconfined", (None, Seccomp::Unconfined)),
        (None, "runtime/default", (None, Seccomp::RuntimeDefault)),
        (None, "docker/default", (None, Seccomp::RuntimeDefault)),
        (None, "localhost//var/lib/kubelet/p.json", (file.clone(), own.clone())),
        (localhost("/var/lib/kubelet/p.json"), "unconfined", (file.clone(), own.clone())),
        (localhost("localhost//var/lib/kubelet/p.json"), "", (file, own)),
    ] {
        assert_eq!(ask(profile.clone(), old, Some(text)).unwrap(), expected, "{profile:?} {old}");
    }
    let relative = ask(localhost("p.json"), "", Some(text)).unwrap_err().to_string();
    assert!(relative.contains("localhost_ref") && relative.contains("absolute"), "{relative}");
    for bad in ["", "[]", "not json"] {
        let error = ask(localhost("/p.json"), "", Some(bad)).unwrap_err().to_string();
        assert!(error.contains("/p.json is no profile"), "{error}");
    }
}

#[test]
fn selinux_labels() {
    let ask = |options: Option<v1::SeLinuxOption>| {
        let mut request = container_request();
        security(request.config.as_mut().unwrap()).selinux_options = options;
        convert_container(request).unwrap().security.selinux
    };
    let (user, role, kind, level) = ("u".to_owned(), "r".to_owned(), "t_t".to_owned(), "s0:c1,c2".to_owned());
    let options = v1::SeLinuxOption {
        user: user.clone(),
        role: role.clone(),
        r#type: kind.clone(),
        level: level.clone(),
    };
    assert_eq!(ask(Some(options)), Some(SelinuxOptions { user, role, kind, level }));
    for nothing in [None, Some(v1::SeLinuxOption::default())] {
        assert_eq!(ask(nothing), None);
    }
}

#[test]
#[allow(deprecated, reason = "older kubelets use the old field")]
fn apparmor_profiles() {
    let ask = |profile: Option<v1::SecurityProfile>, old: &str| {
        let mut request = container_request();
        let context = security(request.config.as_mut().unwrap());
        context.apparmor = profile;
        context.apparmor_profile = old.to_owned();
        convert_container(request).map(|spec| spec.security.apparmor)
    };
    let unconfined = v1::security_profile::ProfileType::Unconfined.into();
    let unconfined = v1::SecurityProfile { profile_type: unconfined, localhost_ref: String::new() };
    let mine = AppArmor::Localhost("mine".to_owned());
    for (profile, old, expected) in [
        (None, "", AppArmor::Unset),
        (None, "runtime/default", AppArmor::RuntimeDefault),
        (None, "unconfined", AppArmor::Unconfined),
        (None, "localhost/mine", mine.clone()),
        (Some(v1::SecurityProfile::default()), "unconfined", AppArmor::RuntimeDefault),
        (Some(unconfined), "runtime/default", AppArmor::Unconfined),
        (localhost("mine"), "", mine.clone()),
        (localhost("localhost/mine"), "unconfined", mine),
    ] {
        assert_eq!(ask(profile.clone(), old).unwrap(), expected, "{profile:?} {old}");
    }
    let error = ask(localhost("two words"), "").unwrap_err().to_string();
    assert!(error.contains("apparmor.localhost_ref"), "{error}");
}
