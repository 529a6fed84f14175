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
