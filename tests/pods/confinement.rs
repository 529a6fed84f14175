//! What containers are confined by, where their kernel has it.

use kina::error::{Error, chain};
use kina_guest_api::v1::Features;
use kina_model::{AppArmor, ContainerSpec, Placement, PodSpec, Security, SelinuxOptions, SpecError};

use crate::support::{World, container_spec, pod_spec};

const POLICY: &[u8] = b"compiled";

fn with(name: &str, apparmor: AppArmor, privileged: bool) -> ContainerSpec {
    let security = Security { apparmor, privileged, ..Security::default() };
    ContainerSpec { security, ..container_spec(name) }
}

/// The node's kernel has no say: each guest's has.
#[tokio::test]
async fn apparmor_profiles_by_what_is_asked_and_what_there_is() {
    let world = World::new();
    let daemon = world.daemon_with_vm().await;
    let mine = || AppArmor::Localhost("mine".to_owned());
    let (none, own) = (("", &b""[..]), ("kina-default", POLICY));
    // Whether there is a compiler, what is asked for, and what a container gets that is not
    // privileged, and one that is.
    let cases = [
        (false, AppArmor::Unset, none, none),
        (false, AppArmor::RuntimeDefault, ("kina-default", b""), none),
        (false, AppArmor::Unconfined, none, none),
        (true, AppArmor::Unset, own, none),
        (true, AppArmor::RuntimeDefault, own, none),
        (true, AppArmor::Unconfined, none, none),
        (true, mine(), ("mine", b""), ("mine", b"")),
    ];
    for placement in [Placement::Vm, Placement::Shared] {
        let name = placement.handler();
        let pod = |kind: &str| PodSpec {
            placement,
            privileged: true,
            handler: name.to_owned(),
            ..pod_spec(&format!("{name}-{kind}"))
        };
        world.guests.have_features(Features { apparmor: true, ..Features::default() });
        let able = daemon.run_pod(pod("able")).await.unwrap();
        for (index, (compiler, asked, plain, privileged)) in cases.iter().enumerate() {
            // Once compiled it is kept: the second kernel needs no compiler.
            if *compiler {
                world.node.compile_apparmor(POLICY);
            } else if placement == Placement::Shared {
                continue;
            }
            for (is_privileged, expected) in [(false, plain), (true, privileged)] {
                let container = with(&format!("{index}-{is_privileged}"), asked.clone(), is_privileged);
                let id = daemon.create_container(able.as_str(), container).await.unwrap();
                let process = world.guests.request(&able, id.as_str()).unwrap().process.unwrap();
                let got = (process.apparmor_profile.as_str(), &process.apparmor_policy[..]);
                assert_eq!(got, *expected, "{name} {compiler} {asked:?} {is_privileged}");
            }
        }

        world.guests.have_features(Features::default());
        let unable = daemon.run_pod(pod("unable")).await.unwrap();
        for (index, asked) in
            [AppArmor::Unset, AppArmor::RuntimeDefault, AppArmor::Unconfined].into_iter().enumerate()
        {
            let container = with(&index.to_string(), asked, false);
            let id = daemon.create_container(unable.as_str(), container).await.unwrap();
            let process = world.guests.request(&unable, id.as_str()).unwrap().process.unwrap();
            assert_eq!(process.apparmor_profile, "");
        }
        let refused =
            daemon.create_container(unable.as_str(), with("mine", mine(), false)).await.unwrap_err();
        assert!(matches!(refused, Error::Spec(SpecError::Unsupported { .. })), "{refused}");
        let text = chain(&refused);
        assert!(text.contains("apparmor.localhost_ref") && text.contains("\"mine\""), "{text}");
    }
}

fn label(level: &str) -> Option<SelinuxOptions> {
    Some(SelinuxOptions { level: level.to_owned(), ..SelinuxOptions::default() })
}

/// A container's own, else its pod's; a privileged one has none unless it asks for one.
#[tokio::test]
async fn selinux_labels_by_what_is_asked_and_what_there_is() {
    let world = World::new();
    let daemon = world.daemon_with_vm().await;
    let labelled = |name: &str, selinux: Option<SelinuxOptions>, privileged| ContainerSpec {
        security: Security { selinux, privileged, ..Security::default() },
        ..container_spec(name)
    };
    for placement in [Placement::Vm, Placement::Shared] {
        let handler = placement.handler();
        let pod = |kind: &str, selinux| PodSpec {
            placement,
            handler: handler.to_owned(),
            privileged: true,
            selinux,
            ..pod_spec(&format!("{handler}-{kind}"))
        };
        world.guests.have_features(Features { selinux: true, ..Features::default() });
        let with = daemon.run_pod(pod("with", label("s0:c1"))).await.unwrap();
        let without = daemon.run_pod(pod("without", None)).await.unwrap();
        for (index, (pod, own, privileged, expected)) in [
            (&with, None, false, Some("s0:c1")),
            (&with, label("s0:c2"), false, Some("s0:c2")),
            (&with, None, true, None),
            (&with, label("s0:c2"), true, Some("s0:c2")),
            (&without, None, false, None),
            (&without, label("s0:c2"), false, Some("s0:c2")),
        ]
        .into_iter()
        .enumerate()
        {
            let container = labelled(&index.to_string(), own, privileged);
            let id = daemon.create_container(pod.as_str(), container).await.unwrap();
            let process = world.guests.request(pod, id.as_str()).unwrap().process.unwrap();
            assert_eq!(process.selinux.map(|label| label.level).as_deref(), expected, "{handler} {index}");
        }

        world.guests.have_features(Features::default());
        let error = daemon.run_pod(pod("unable", label("s0"))).await.unwrap_err();
        assert!(matches!(error, Error::Spec(SpecError::Unsupported { .. })), "{error}");
        assert!(error.to_string().starts_with("config.linux.security_context.selinux_options: "), "{error}");
        let unable = daemon.run_pod(pod("unable", None)).await.unwrap();
        let refused = daemon.create_container(unable.as_str(), labelled("a", label("s0"), false)).await;
        let refused = refused.unwrap_err();
        assert!(matches!(refused, Error::Spec(SpecError::Unsupported { .. })), "{refused}");
        daemon.create_container(unable.as_str(), labelled("b", None, false)).await.unwrap();
    }
}
