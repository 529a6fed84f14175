//! Three kernels, and what the root of one guest finds of the rest.

use kina::cri::v1;

use crate::harness::{Cri, Daemon, machine, script, with_security};

const FOREVER: &str = "sleep 1000";
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A pod whose container may do all that root of its machine may.
async fn privileged(cri: &Cri, name: &str) -> (String, String) {
    let mut config = cri.pod(name);
    let context = config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
    context.privileged = true;
    let pod = cri.run_pod(&config).await.unwrap();
    let root = with_security(script("root", FOREVER), |context| context.privileged = true);
    let container = cri.run(&pod, root).await;
    (pod, container)
}

#[tokio::test]
async fn every_pod_has_a_kernel_of_its_own() {
    machine::use_vm();
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let mut boots = vec![std::fs::read_to_string(BOOT_ID).unwrap()];
    let node = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    println!("node: {} {}", node.trim(), boots[0].trim());
    for name in ["a", "b"] {
        let pod = cri.make_pod(name).await;
        let one = cri.run(&pod, script("one", FOREVER)).await;
        let seen = cri.sh(&one, &format!("uname -r; cat /proc/cmdline {BOOT_ID}")).await;
        println!("pod {name}: {seen}");
        let [release, line, boot] = seen.lines().collect::<Vec<_>>()[..] else { panic!("{seen}") };
        assert_ne!(release, node.trim());
        assert!(line.contains(&format!("kina.pod={pod}")), "{line}");
        // What the daemon says of it is what the kernel says.
        let status = cri.pod_status(&pod).await.unwrap();
        assert!(status.info.values().any(|info| info.contains(boot)), "{:?}", status.info);
        assert_eq!(status.status.unwrap().runtime_handler, "vm");
        boots.push(boot.to_owned());
    }
    boots.sort();
    boots.dedup();
    assert_eq!(boots.len(), 3);
    daemon.leave_nothing().await;
}

/// The files of the share as the guest's root mounts it anew.
async fn mounted_anew(cri: &Cri, root: &str, at: &str) -> String {
    cri.sh(root, &format!("mkdir {at} && mount -t virtiofs share {at} && find {at}")).await
}

/// Whether every file of the images is as it was, and what `kina image verify` says.
async fn verify(daemon: &Daemon) -> (bool, String) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_kina"));
    command.args(["image", "verify", "--socket"]).arg(daemon.place.socket());
    let output = command.output().await.unwrap();
    (output.status.success(), format!("{output:?}"))
}

/// Container root with everything allowed is root of the machine; it may break
/// its own machine, and finds nothing of other pods or of the node.
#[tokio::test]
async fn root_of_a_guest_finds_its_own_pod_only() {
    machine::use_vm();
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let secrets = daemon.place.path("shared");
    for name in ["a", "b"] {
        std::fs::create_dir_all(secrets.join(name)).unwrap();
        std::fs::write(secrets.join(name).join("secret"), format!("secret of {name}\n")).unwrap();
    }
    let (pod, root) = privileged(&cri, "a").await;
    let other = cri.make_pod("b").await;
    // Linux gives whoever mounts the share anew the part of it that was joined last:
    // the layers now, a volume below.
    let layers = mounted_anew(&cri, &root, "/layers").await;
    println!("pod a's root sees of the node, before there is a volume:\n{layers}");
    assert!(layers.lines().count() >= 2, "{layers}");
    assert!(!layers.contains("secret"), "{layers}");
    for (pod, name) in [(&pod, "a"), (&other, "b")] {
        let mut container = script("with-secret", FOREVER);
        container.mounts = vec![v1::Mount {
            host_path: secrets.join(name).display().to_string(),
            container_path: "/secret".to_owned(),
            readonly: true,
            ..v1::Mount::default()
        }];
        let container = cri.run(pod, container).await;
        assert_eq!(cri.sh(&container, "cat /secret/secret").await, format!("secret of {name}\n"));
    }
    let volume = mounted_anew(&cri, &root, "/volume").await;
    println!("pod a's root sees of the node, after there is one:\n{volume}");
    let found = cri.sh(&root, "find /layers /volume -name secret -type f | xargs cat").await;
    assert_eq!(found, "secret of a\n");
    // Layers are other pods' too, and the volume was shared to be read: neither is to
    // be written, replaced or removed.
    let attempts = "for f in $(find /layers /volume -type f); do \
        { echo x >> $f; } 2>/dev/null && echo wrote $f; \
        rm $f 2>/dev/null && echo removed $f; \
        chmod 777 $f 2>/dev/null && echo changed $f; done; \
        for d in $(find /layers /volume -type d); do \
        touch $d/new 2>/dev/null && echo made $d/new; \
        mount -o remount,rw $d 2>/dev/null && touch $d/new 2>/dev/null && echo made $d/new; done; true";
    assert_eq!(cri.sh(&root, attempts).await, "");
    let (verified, said) = verify(&daemon).await;
    assert!(verified, "{said}");
    // Symlinks that leave the tree end in the guest's own files.
    let status =
        cri.exec(&root, crate::harness::shell("cat /volume/../../../etc/shadow /proc/1/root/etc/shadow"), 0);
    let stolen = String::from_utf8(status.await.unwrap().stdout).unwrap();
    let shadow = std::fs::read_to_string("/etc/shadow").unwrap();
    assert!(!shadow.lines().any(|line| !line.is_empty() && stolen.contains(line)), "{stolen}");
    for path in [daemon.place.socket(), daemon.place.config().root.clone()] {
        let test = format!("test -e {} && echo there; true", path.display());
        assert_eq!(cri.sh(&root, &test).await, "");
    }
    // It may end its own machine: that pod fails, the other does not notice.
    let _cut_off = cri.exec(&root, crate::harness::shell("echo c > /proc/sysrq-trigger"), 10).await;
    cri.wait_not_ready(&pod).await;
    assert!(cri.is_ready(&other).await);
    daemon.leave_nothing().await;
}
