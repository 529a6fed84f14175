//! The operations, with plugins in memory.

mod common;

use common::{FakeHost, attachment, failure, good, network};
use kina_cni::{AttachmentId, Check, Cleanup, Error, ErrorCode, Status};
use serde_json::json;

#[tokio::test]
async fn what_is_added_can_be_checked_and_removed() {
    let host = FakeHost::new();
    host.good_plugins(&["bridge", "portmap"]);
    let (cni, network, attachment) = (host.cni(), network("1.1.0", &["bridge", "portmap"]), attachment());

    let result = cni.add(&network, &attachment).await.unwrap();
    assert_eq!(result.ips[0].address.to_string(), "10.1.0.5/16");
    assert_eq!(host.order(), ["ADD bridge", "ADD portmap"]);
    assert_eq!(cni.cached("pods", &attachment.id).await.unwrap().unwrap().attachment, attachment);

    assert_eq!(cni.check(&network, &attachment).await.unwrap(), Check::Passed);
    assert_eq!(host.order(), ["CHECK bridge", "CHECK portmap"]);

    cni.del(&network, &attachment).await.unwrap();
    let calls = host.calls();
    let previous = json!({"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.5/16"}]});
    assert_eq!(calls[0].plugin, "portmap");
    assert_eq!(calls[0].previous(), Some(&previous));
    assert_eq!(calls[1].plugin, "bridge");
    assert_eq!(calls[1].previous(), Some(&previous));
    assert_eq!(cni.cached_attachments().await.unwrap(), []);
    assert!(matches!(cni.check(&network, &attachment).await, Err(Error::NotAttached { .. })));
}

#[tokio::test]
async fn a_failed_add_is_undone() {
    let host = FakeHost::new();
    host.good_plugins(&["bridge"]);
    host.plugin("portmap", |call| match call.command.as_str() {
        "ADD" => failure(11, "busy"),
        _ => good(call),
    });
    let (cni, network) = (host.cni(), network("1.0.0", &["bridge", "portmap"]));
    let error = cni.add(&network, &attachment()).await.unwrap_err();
    assert_eq!(error.cause.code(), Some(ErrorCode::TryAgainLater));
    assert!(matches!(error.cleanup, Cleanup::Done));
    assert_eq!(host.order(), ["ADD bridge", "ADD portmap", "DEL portmap", "DEL bridge"]);

    host.remove_plugin("portmap");
    let error = cni.add(&network, &attachment()).await.unwrap_err();
    assert!(matches!(error.cause, Error::PluginNotFound { .. }));
    assert!(matches!(error.cleanup, Cleanup::NotNeeded));
    assert_eq!(host.order(), [""; 0]);
}

#[tokio::test]
async fn status_stops_at_the_first_that_is_not_ready() {
    let host = FakeHost::new();
    host.good_plugins(&["a", "c"]);
    let (cni, network) = (host.cni(), network("1.1.0", &["a", "b", "c"]));
    host.good_plugins(&["b"]);
    assert_eq!(cni.status(&network).await.unwrap(), Status::Ready);
    host.calls();
    for (code, limited) in [(50, false), (51, true), (7, false)] {
        host.plugin("b", move |_| failure(code, "the agent is away"));
        let error = match cni.status(&network).await.unwrap() {
            Status::NotReady(error) if !limited => error,
            Status::LimitedConnectivity(error) if limited => error,
            other => panic!("{other:?}"),
        };
        assert_eq!((u64::from(error.code), error.message.as_str()), (code, "the agent is away"));
        assert_eq!(host.order(), ["STATUS a", "STATUS b"]);
    }
    let old = common::network("1.0.0", &["a"]);
    assert_eq!(cni.status(&old).await.unwrap(), Status::Unsupported);
    assert_eq!(host.order(), [""; 0]);
}

#[tokio::test]
async fn garbage_is_removed_and_plugins_are_told() {
    let host = FakeHost::new();
    host.good_plugins(&["bridge"]);
    host.plugin("portmap", |call| match call.command.as_str() {
        "GC" => failure(100, "iptables is locked"),
        _ => good(call),
    });
    let (cni, network) = (host.cni(), network("1.1.0", &["portmap", "bridge"]));
    let kept = attachment();
    let mut gone = attachment();
    gone.id.container_id = "pod2".to_owned();
    cni.add(&network, &kept).await.unwrap();
    cni.add(&network, &gone).await.unwrap();
    host.calls();

    let collected = cni.gc(&network, std::slice::from_ref(&kept.id)).await.unwrap();
    assert_eq!(collected.removed, [gone.id]);
    assert!(collected.plugins_told);
    assert_eq!(collected.errors.len(), 1);
    let calls = host.calls();
    let order: Vec<_> = calls.iter().map(|call| format!("{} {}", call.command, call.plugin)).collect();
    assert_eq!(order, ["DEL bridge", "DEL portmap", "GC portmap", "GC bridge"]);
    let valid = json!([{"containerID": "pod1", "ifname": "eth0"}]);
    assert_eq!(calls[3].stdin["cni.dev/valid-attachments"], valid);
    assert_eq!(calls[3].stdin["cni.dev/attachments"], valid);
    let ids: Vec<AttachmentId> =
        cni.cached_attachments().await.unwrap().into_iter().map(|cached| cached.attachment.id).collect();
    assert_eq!(ids, [kept.id]);
}

#[tokio::test]
async fn a_failed_del_after_a_failed_add_is_reported() {
    let host = FakeHost::new();
    host.plugin("bridge", |call| match call.command.as_str() {
        "ADD" => failure(100, "no"),
        _ => failure(101, "not that either"),
    });
    let error = host.cni().add(&network("1.1.0", &["bridge"]), &attachment()).await.unwrap_err();
    let Cleanup::Failed(cleanup) = &error.cleanup else { panic!("{:?}", error.cleanup) };
    let codes = (error.cause.code(), cleanup.code());
    assert_eq!(codes, (Some(ErrorCode::Other(100)), Some(ErrorCode::Other(101))));
}

#[tokio::test]
async fn del_stops_at_a_failure_and_can_be_repeated() {
    let host = FakeHost::new();
    host.good_plugins(&["bridge", "portmap"]);
    let (cni, network, attachment) = (host.cni(), network("1.0.0", &["bridge", "portmap"]), attachment());
    cni.add(&network, &attachment).await.unwrap();
    host.calls();

    host.plugin("portmap", |_| failure(5, "no iptables"));
    cni.del(&network, &attachment).await.unwrap_err();
    assert_eq!(host.order(), ["DEL portmap"]);
    assert!(cni.cached("pods", &attachment.id).await.unwrap().is_some());

    host.good_plugins(&["portmap"]);
    cni.del(&network, &attachment).await.unwrap();
    assert!(host.calls().iter().all(|call| call.previous().is_some()));

    // And once more, as recovery does: now without a result.
    cni.del(&network, &attachment).await.unwrap();
    let calls = host.calls();
    assert_eq!(calls.len(), 2);
    assert!(calls.iter().all(|call| call.previous().is_none()));
}

#[tokio::test]
async fn del_works_with_a_damaged_cache() {
    let host = FakeHost::new();
    host.good_plugins(&["bridge"]);
    let (cni, network, attachment) = (host.cni(), network("1.1.0", &["bridge"]), attachment());
    let file = "/var/lib/cni/results/pods-pod1-eth0";
    for damaged in ["", "{\"kind\": \"cniCacheV1\"", "[]", "{}", "\0\0\0"] {
        host.write(file, damaged);
        assert!(matches!(cni.check(&network, &attachment).await, Err(Error::Cache { .. })), "{damaged:?}");
        cni.del(&network, &attachment).await.unwrap();
        assert_eq!(host.read(file), None);
        let calls = host.calls();
        assert_eq!((calls.len(), calls[0].previous()), (1, None));
    }
}

#[tokio::test]
async fn a_bare_result_of_an_old_libcni_is_used() {
    let host = FakeHost::new();
    host.good_plugins(&["bridge"]);
    let (cni, network, attachment) = (host.cni(), network("1.1.0", &["bridge"]), attachment());
    let old = json!({"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.1.0.5/16"}]});
    host.write("/var/lib/cni/results/pods-pod1-eth0", old.to_string());
    assert_eq!(cni.check(&network, &attachment).await.unwrap(), Check::Passed);
    let new = json!({"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.5/16"}]});
    assert_eq!(host.calls()[0].previous(), Some(&new));
    cni.del(&network, &attachment).await.unwrap();
    assert_eq!(host.calls()[0].previous(), Some(&new));
}

#[tokio::test]
async fn the_configuration_of_the_add_is_used_for_the_del() {
    let host = FakeHost::new();
    host.good_plugins(&["old", "new"]);
    let (cni, attachment) = (host.cni(), attachment());
    let (old, new) = (network("1.0.0", &["old"]), network("1.1.0", &["new"]));
    cni.add(&old, &attachment).await.unwrap();
    host.calls();

    // A caller that has lost all but the names.
    let mut forgotten = kina_cni::Attachment::new("pod1", "eth0", "");
    forgotten.netns = None;
    cni.del_cached("pods", Some(&new), &forgotten).await.unwrap();
    let [call] = host.calls().try_into().unwrap();
    assert_eq!((call.plugin.as_str(), call.stdin["cniVersion"].as_str()), ("old", Some("1.0.0")));
    assert_eq!(call.environment["CNI_NETNS"], "/var/run/netns/pod1");
    assert_eq!(call.environment["CNI_ARGS"], "IgnoreUnknown=1;K8S_POD_NAME=web-0");
    assert_eq!(call.stdin["runtimeConfig"], json!({"mac": "02:00:00:00:00:01"}));

    cni.del_cached("pods", Some(&new), &forgotten).await.unwrap();
    assert_eq!(host.order(), ["DEL new"]);
    let nothing = cni.del_cached("pods", None, &forgotten).await;
    assert!(matches!(nothing, Err(Error::NoConfig { .. })));
}

#[tokio::test]
async fn attachments_with_the_same_file_name_are_told_apart() {
    let host = FakeHost::new();
    host.good_plugins(&["bridge"]);
    let cni = host.cni();
    let mut attachment = attachment();
    attachment.id = AttachmentId { container_id: "x".to_owned(), interface: "y-eth0".to_owned() };
    cni.add(&network("1.1.0", &["bridge"]), &attachment).await.unwrap();
    assert!(cni.cached("pods", &attachment.id).await.unwrap().is_some());
    let other = AttachmentId { container_id: "x-y".to_owned(), interface: "eth0".to_owned() };
    assert!(cni.cached("pods", &other).await.unwrap().is_none());
}

#[tokio::test]
async fn check_can_be_forbidden_or_unknown() {
    let host = FakeHost::new();
    let cni = host.cni();
    let old = cni.check(&network("0.3.1", &["a"]), &attachment()).await.unwrap();
    assert_eq!(old, Check::Unsupported);
    let list =
        json!({"cniVersion": "1.0.0", "name": "pods", "disableCheck": true, "plugins": [{"type": "a"}]});
    let forbidden = kina_cni::Network::from_list(list.to_string().as_bytes()).unwrap();
    assert_eq!(cni.check(&forbidden, &attachment()).await.unwrap(), Check::Disabled);
    let list = json!({"cniVersion": "1.1.0", "name": "pods", "disableGC": true, "plugins": [{"type": "a"}]});
    let forbidden = kina_cni::Network::from_list(list.to_string().as_bytes()).unwrap();
    assert!(!cni.gc(&forbidden, &[]).await.unwrap().plugins_told);
    assert_eq!(host.calls(), []);
}

#[tokio::test]
async fn gc_goes_on_after_failures() {
    let host = FakeHost::new();
    host.good_plugins(&["a", "b"]);
    let (cni, network, mut attachment) = (host.cni(), network("1.1.0", &["a", "b"]), attachment());
    for pod in ["pod1", "pod2"] {
        attachment.id.container_id = pod.to_owned();
        cni.add(&network, &attachment).await.unwrap();
    }
    host.plugin("b", |call| match call.environment["CNI_CONTAINERID"].as_str() {
        "pod1" => failure(100, "no"),
        _ => good(call),
    });
    host.remove_plugin("a");
    host.calls();
    let collected = cni.gc(&network, &[]).await.unwrap();
    // pod1: b fails; pod2: a is missing; GC: a is missing.
    assert_eq!(collected.errors.len(), 3);
    assert_eq!(collected.removed, []);
    assert_eq!(host.order(), ["DEL b", "DEL b", "GC b"]);
    assert_eq!(cni.cached_attachments().await.unwrap().len(), 2);
}

/// Files that a killed process was writing go, with every GC and on demand;
/// nobody else's.
#[tokio::test]
async fn half_written_files_are_removed() {
    let host = FakeHost::new();
    host.good_plugins(&["a"]);
    let (cni, network) = (host.cni(), network("1.0.0", &["a"]));
    cni.add(&network, &attachment()).await.unwrap();
    let results = {
        let files = host.files.lock().unwrap();
        files.keys().next().unwrap().parent().unwrap().to_owned()
    };
    let names = || {
        let files = host.files.lock().unwrap();
        files.keys().filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    let write = |name: &str| host.files.lock().unwrap().insert(results.join(name), b"{".to_vec());
    for name in [".writing-1", ".writing-3600", ".other"] {
        write(name);
    }
    assert_eq!(cni.remove_leftovers().await.unwrap(), 1);
    let left = [".other", ".writing-1", "pods-pod1-eth0"];
    assert_eq!(names(), left);
    write(".writing-3601");
    let valid = [attachment().id];
    assert!(cni.gc(&network, &valid).await.unwrap().errors.is_empty());
    assert_eq!(names(), left);
}

#[tokio::test]
async fn versions_are_asked_once_for_each_executable() {
    let host = FakeHost::new();
    host.good_plugins(&["a", "b"]);
    let (cni, network) = (host.cni(), network("1.1.0", &["a", "b"]));
    cni.validate(&network).await.unwrap();
    cni.clone().validate(&network).await.unwrap();
    assert_eq!(host.order(), ["VERSION a", "VERSION b"]);

    host.plugin("b", |_| common::success(&json!({"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]})));
    let reports = cni.inspect(&network).await;
    assert_eq!(host.order(), ["VERSION b"]);
    assert!(reports[0].problem.is_none());
    assert_eq!(
        reports[1].problem.as_ref().unwrap().to_string(),
        "plugin b does not speak CNI 1.1.0, only 1.0.0"
    );
    host.remove_plugin("a");
    assert_eq!(cni.validate(&network).await.unwrap_err().to_string(), "plugin a is not in /opt/cni/bin");
}

#[tokio::test]
async fn a_version_is_found_that_all_plugins_speak() {
    let host = FakeHost::new();
    host.good_plugins(&["a"]);
    let speaks = |versions: &'static [&'static str]| {
        move |_: &common::Call| {
            common::success(&json!({"cniVersion": "1.1.0", "supportedVersions": versions}))
        }
    };
    let list = json!({
        "cniVersion": "0.3.1", "cniVersions": ["0.4.0", "1.0.0", "1.1.0"], "name": "pods",
        "plugins": [{"type": "a"}, {"type": "b"}],
    });
    let network = kina_cni::Network::from_list(list.to_string().as_bytes()).unwrap();
    let cni = host.cni();
    for (spoken, expected) in
        [(&["1.1.0"][..], "1.1.0"), (&["0.1.0", "0.4.0", "1.0.0"], "1.0.0"), (&["0.3.1", "9.0.0"], "0.3.1")]
    {
        host.plugin("b", speaks(spoken));
        assert_eq!(cni.negotiate(&network).await.unwrap().version().as_str(), expected);
    }
    // What was made in a version is removed in it.
    host.plugin("b", |call| match call.command.as_str() {
        "VERSION" => {
            common::success(&json!({"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0"]}))
        }
        _ => good(call),
    });
    let negotiated = cni.negotiate(&network).await.unwrap();
    cni.add(&negotiated, &attachment()).await.unwrap();
    host.calls();
    cni.del_cached("pods", None, &attachment()).await.unwrap();
    let calls = host.calls();
    assert_eq!(calls.len(), 2);
    assert!(calls.iter().all(|call| call.stdin["cniVersion"] == json!("1.0.0")));

    host.plugin("b", speaks(&["0.2.0"]));
    let Err(Error::PluginVersion { plugin, .. }) = cni.negotiate(&network).await else { panic!() };
    assert_eq!(plugin, "b");
}

#[tokio::test]
async fn odd_answers_to_version() {
    let host = FakeHost::new();
    let cni = host.cni();
    let answer = |answer: serde_json::Value| host.plugin("a", move |_| common::success(&answer));
    answer(json!({"cniVersion": "0.2.0"}));
    assert_eq!(cni.plugin_versions("a").await.unwrap(), ["0.1.0", "0.2.0"]);
    host.plugin("a", |_| failure(4, "unknown CNI_COMMAND: VERSION"));
    assert_eq!(cni.plugin_versions("a").await.unwrap(), ["0.1.0"]);
    for odd in [json!({}), json!([]), json!({"cniVersion": "1.0.0"}), json!({"supportedVersions": ["1"]})] {
        answer(odd);
        assert!(matches!(cni.plugin_versions("a").await, Err(Error::BadResult { .. })));
    }
    assert!(matches!(cni.plugin_versions("../a").await, Err(Error::InvalidName { .. })));
}

#[tokio::test]
async fn nothing_runs_with_wrong_parameters() {
    let host = FakeHost::new();
    host.good_plugins(&["a"]);
    let (cni, network) = (host.cni(), network("1.1.0", &["a"]));
    let refused = async |change: &dyn Fn(&mut kina_cni::Attachment)| {
        let mut attachment = attachment();
        change(&mut attachment);
        let error = cni.add(&network, &attachment).await.unwrap_err();
        assert!(matches!(error.cleanup, Cleanup::NotNeeded));
        error.cause.to_string()
    };
    let long = refused(&|attachment| attachment.id.interface = "a".repeat(16)).await;
    assert_eq!(long, "\"aaaaaaaaaaaaaaaa\" is no valid interface name");
    let bad = refused(&|attachment| attachment.id.container_id = "../pod".to_owned()).await;
    assert_eq!(bad, "\"../pod\" is no valid container id");
    let none = refused(&|attachment| attachment.netns = None).await;
    assert_eq!(none, "container pod1 has no network namespace to add an interface to");
    let pair = ("A".to_owned(), "1;CNI=2".to_owned());
    let argument = refused(&|attachment| attachment.arguments.push(pair.clone())).await;
    assert!(argument.starts_with("the CNI argument \"A\""), "{argument}");
    assert_eq!(host.calls(), []);
}

#[tokio::test(start_paused = true)]
async fn an_executable_that_is_being_written_is_waited_for() {
    use std::sync::atomic::{AtomicU32, Ordering};
    let host = FakeHost::new();
    let tries = AtomicU32::new(0);
    host.plugin("a", move |call| match tries.fetch_add(1, Ordering::Relaxed) {
        0..3 => Err(kina_cni::ExecuteError::Busy),
        _ => good(call),
    });
    let (cni, network) = (host.cni(), network("1.0.0", &["a"]));
    cni.add(&network, &attachment()).await.unwrap();
    assert_eq!(host.calls().len(), 4);
    host.plugin("a", |_| Err(kina_cni::ExecuteError::Busy));
    assert!(matches!(cni.del(&network, &attachment()).await, Err(Error::Busy { .. })));
}
