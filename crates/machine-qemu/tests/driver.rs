//! The driver with real machines.
#![allow(clippy::unwrap_used, unreachable_pub, reason = "a test fails by panicking")]

mod support;

mod vm {
    use std::fs;
    use std::io::ErrorKind;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixListener;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;
    use std::time::{Duration, Instant};

    use kina_machine::conformance::{self, Subject};
    use kina_machine::{Driver, Error, MachineSpec, MachineState, Share, ShareKind};
    use kina_machine_qemu::QemuDriver;
    use kina_model::{ContainerId, PodId};
    use kina_node::{Daemon, Node};
    use kina_testkit::ground;

    use super::support::{DEADLINE, KIND, Place, command, kill};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_driver_conforms() {
        conformance::all(&Place::new().await).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn each_process_that_is_killed_is_named_and_leaves_nothing() {
        let place = Place::new().await;
        for (role, expected) in [
            ("qemu", "QEMU was killed by signal 9"),
            ("virtiofsd", "its process virtiofsd has ended, without which it cannot go on"),
            ("kina-vsock", "its process kina-vsock has ended, without which it cannot go on"),
        ] {
            let (pod, _guest) = place.started().await;
            kill(place.process(&pod, role).await);
            let begin = Instant::now();
            let ended = place.driver.wait(&pod).await.unwrap();
            assert_eq!(ended.reason, expected);
            assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
            assert_eq!(place.driver.wait(&pod).await.unwrap(), ended);
            assert_eq!(place.driver.status(&pod).await.unwrap(), MachineState::Stopped);
            place.driver.destroy(&pod).await.unwrap();
            assert_eq!(place.left(&pod).await, Vec::<String>::new(), "after {role}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_adopted_machine_that_switches_itself_off_says_so() {
        let place = Place::new().await;
        let (pod, guest) = place.started().await;
        // Only the daemon that started QEMU is told how it ended.
        let adopting = place.another();
        guest.shutdown(Duration::ZERO).await.unwrap();
        let ended = tokio::time::timeout(DEADLINE, adopting.wait(&pod)).await.unwrap().unwrap();
        assert_eq!(ended.reason, "its guest has ended");
        adopting.destroy(&pod).await.unwrap();
        assert_eq!(place.left(&pod).await, Vec::<String>::new());
    }

    #[test]
    fn nothing_stays_of_a_killed_test() {
        ground::check_sweep(KIND, "vm::nothing_stays_of_a_killed_test", || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let place = runtime.block_on(async {
                let place = Place::new().await;
                let pod = PodId::random();
                place.driver.create(&place.spec(&pod).await).await.unwrap();
                place.driver.start(&pod).await.unwrap();
                place
            });
            let directory = place.directory.path().to_owned();
            ((runtime, place), directory)
        });
    }

    /// The value of a line of `/proc/<pid>/status`.
    fn status(pid: u32, name: &str) -> String {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim_start_matches(':').split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_machine_is_confined_and_sees_its_shares_only() {
        let place = Place::new().await;
        let (pod, other) = (PodId::random(), PodId::random());
        let spec = place.spec(&pod).await;
        for spec in [&spec, &place.spec(&other).await] {
            place.driver.create(spec).await.unwrap();
        }
        // What a daemon leaves that is killed while it starts a machine.
        let left = Daemon {
            args: vec!["1000".into()],
            ..Daemon::new("/bin/sleep".into(), format!("{}/machine", spec.cgroup))
        };
        let left = place.node.start(&left).await.unwrap();
        assert_eq!(place.driver.status(&pod).await.unwrap(), MachineState::Created);
        place.driver.start(&pod).await.unwrap();
        assert!(!place.node.process_lives(left).await.unwrap(), "what was left over runs");
        let _guest = place.guest(&pod).await;

        confined(&place, &pod, &spec).await;
        // No two machines have one user.
        let users = [&pod, &other].map(|pod| {
            let record = fs::read(place.machine(pod).join("qemu.json")).unwrap();
            serde_json::from_slice::<serde_json::Value>(&record).unwrap()["uid"].clone()
        });
        assert!(users[0].as_u64().unwrap().abs_diff(users[1].as_u64().unwrap()) >= 2, "{users:?}");

        let virtiofsd = place.process(&pod, "virtiofsd").await;
        layers_cannot_be_changed(&place, &pod, virtiofsd).await;
        volumes_come_and_go(&place, &pod, virtiofsd).await;
        for pod in [&pod, &other] {
            place.driver.destroy(pod).await.unwrap();
            assert_eq!(place.left(pod).await, Vec::<String>::new());
        }
        assert_eq!(fs::metadata(place.layer()).unwrap().nlink(), 1);
    }

    async fn confined(place: &Place, pod: &PodId, spec: &MachineSpec) {
        let namespace = fs::metadata(&spec.network.as_ref().unwrap().namespace).unwrap().ino();
        for role in ["qemu", "virtiofsd", "kina-vsock", "console"] {
            let pid = place.process(pod, role).await;
            assert_eq!(status(pid, "NoNewPrivs"), "1", "{role}");
            let network = fs::metadata(format!("/proc/{pid}/ns/net")).unwrap().ino();
            assert_eq!(network, namespace, "{role}");
            let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
            let expected = format!(":{}/machine", spec.cgroup);
            assert!(groups.lines().all(|line| line.ends_with(&expected)), "{role}: {groups}");
        }
        let qemu = place.process(pod, "qemu").await;
        let user = status(qemu, "Uid");
        assert_eq!(user, status(qemu, "Gid"));
        let user: u32 = user.split(' ').next().unwrap().parse().unwrap();
        assert!(place.config.users.contains(&user), "{user}");
        assert_eq!(status(qemu, "Groups"), "");
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            assert_eq!(status(qemu, set), "0000000000000000", "{set}");
        }
        assert_eq!(status(qemu, "Seccomp"), "2");
        assert_eq!(status(place.process(pod, "virtiofsd").await, "Seccomp"), "2");
        for role in ["kina-vsock", "console"] {
            let pid = place.process(pod, role).await;
            // It has rights until it has opened what it works on.
            let deadline = Instant::now() + DEADLINE;
            while status(pid, "Seccomp") != "2" {
                assert!(Instant::now() < deadline, "{role} is not confined");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            for ids in ["Uid", "Gid"] {
                assert_eq!(status(pid, ids), vec![(user + 1).to_string(); 4].join(" "), "{role}");
            }
            assert_eq!(status(pid, "Groups"), "", "{role}");
            for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                assert_eq!(status(pid, set), "0000000000000000", "{role} {set}");
            }
        }
        // QEMU listens nowhere and has nothing open but what it was given.
        for entry in fs::read_dir(format!("/proc/{qemu}/fd")).unwrap() {
            let target = fs::read_link(entry.unwrap().path()).unwrap_or_default();
            let text = target.to_string_lossy();
            let given = ["/dev/null", "/dev/net/tun", "/memfd:", "anon_inode:", "socket:", "pipe:"];
            let files = ["boot/", "disk.ext4", "console.pipe"];
            assert!(
                given.iter().any(|given| text.starts_with(given))
                    || files.iter().any(|file| text.contains(file)),
                "QEMU has {text} open"
            );
        }
    }

    /// As virtiofsd sees it, root that it is: the guest's root has no more.
    async fn layers_cannot_be_changed(place: &Place, pod: &PodId, virtiofsd: u32) {
        let share =
            Share { source: place.layer(), readonly: true, readonly_below: true, kind: ShareKind::Layer };
        let seen = place.driver.share(pod, &share).await.unwrap();
        assert_eq!(seen, Path::new("/share/layers/layer"));
        let root = PathBuf::from(format!("/proc/{virtiofsd}/root"));
        let layer = root.join("layers/layer");
        assert_eq!(fs::read(&layer).unwrap(), b"of all pods");
        assert_eq!(fs::metadata(&layer).unwrap().ino(), fs::metadata(place.layer()).unwrap().ino());
        for refused in [
            fs::OpenOptions::new().write(true).open(&layer).map(drop),
            fs::remove_file(&layer),
            fs::rename(&layer, root.join("layers/moved")),
            fs::hard_link(&layer, root.join("layers/second")),
            fs::set_permissions(&layer, fs::metadata(&layer).unwrap().permissions()),
            fs::write(root.join("layers/new"), "x"),
        ] {
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
        }
        let mut names: Vec<_> =
            fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["layers", "volumes"]);
        assert_eq!(fs::read_dir(root.join("layers")).unwrap().count(), 1);
    }

    /// Images and pods may lie on two file systems, where nothing can be hard-linked.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn layers_of_another_file_system_are_shown_as_they_are() {
        let place = Place::new().await;
        let elsewhere = place.directory.path().join("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        command(&format!("mount -t tmpfs none {}", elsewhere.display()));
        let image = elsewhere.join("image");
        fs::write(&image, "of all pods").unwrap();
        fs::hard_link(&image, place.directory.path().join("link")).unwrap_err();
        let pod = PodId::random();
        place.driver.create(&place.spec(&pod).await).await.unwrap();
        place.driver.start(&pod).await.unwrap();
        let share =
            Share { source: image.clone(), readonly: true, readonly_below: true, kind: ShareKind::Layer };
        // Again, and by another daemon, is the same.
        for driver in [place.driver(), place.driver(), place.another()] {
            assert_eq!(driver.share(&pod, &share).await.unwrap(), Path::new("/share/layers/image"));
        }
        let virtiofsd = place.process(&pod, "virtiofsd").await;
        let seen = PathBuf::from(format!("/proc/{virtiofsd}/root/layers/image"));
        assert_eq!(fs::read(&seen).unwrap(), b"of all pods");
        assert_eq!(fs::metadata(&seen).unwrap().ino(), fs::metadata(&image).unwrap().ino());
        let written = fs::OpenOptions::new().write(true).open(&seen).unwrap_err();
        assert_eq!(written.kind(), ErrorKind::ReadOnlyFilesystem);
        fs::remove_file(&seen).unwrap_err();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert_eq!(mounts.lines().filter(|line| line.contains("/share/layers/image ")).count(), 1);
        place.driver.destroy(&pod).await.unwrap();
        assert_eq!(place.left(&pod).await, Vec::<String>::new());
        assert_eq!(fs::read(&image).unwrap(), b"of all pods");
    }

    async fn volumes_come_and_go(place: &Place, pod: &PodId, virtiofsd: u32) {
        let at = |name: &str| place.directory.path().join(name);
        command(&format!("mkdir -p {0}/v1 {0}/v2 {0}/dir", place.directory.path().display()));
        command(&format!("mknod {} b 7 99", at("block").display()));
        command(&format!("mknod {} c 1 3", at("character").display()));
        let _listener = UnixListener::bind(at("socket")).unwrap();
        fs::write(at("v1/key"), "1").unwrap();
        fs::write(at("v2/key"), "2").unwrap();
        std::os::unix::fs::symlink("../v1", at("dir/..data")).unwrap();
        std::os::unix::fs::symlink("dir", at("link")).unwrap();
        let container = ContainerId::random();
        let share = |name: &str, readonly| Share {
            source: at(name),
            readonly,
            readonly_below: true,
            kind: ShareKind::Volume(container.clone()),
        };
        let view = |seen: PathBuf| {
            PathBuf::from(format!("/proc/{virtiofsd}/root")).join(seen.strip_prefix("/share").unwrap())
        };
        let driver = &place.driver;
        let file = view(driver.share(pod, &share("v1/key", false)).await.unwrap());
        let directory = view(driver.share(pod, &share("link", true)).await.unwrap());
        assert_eq!(directory, view(driver.share(pod, &share("link", true)).await.unwrap()));
        fs::write(&file, "changed").unwrap();
        assert_eq!(fs::read(at("v1/key")).unwrap(), b"changed");
        let refused = fs::write(directory.join("new"), "").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ReadOnlyFilesystem);
        // As Kubernetes changes a ConfigMap: a symlink is replaced.
        std::os::unix::fs::symlink("../v2", at("dir/new")).unwrap();
        fs::rename(at("dir/new"), at("dir/..data")).unwrap();
        assert_eq!(fs::read_link(directory.join("..data")).unwrap(), Path::new("../v2"));

        // What leads to the volumes cannot be changed: a link there would lead the node's next mount out.
        let tree = PathBuf::from(format!("/proc/{virtiofsd}/root"));
        let of_container = tree.join("volumes").join(container.as_str());
        for refused in [
            fs::rename(&of_container, tree.join("volumes/moved")),
            fs::rename(tree.join("volumes"), tree.join("moved")),
            fs::create_dir(tree.join("new")),
            std::os::unix::fs::symlink("/etc", tree.join("volumes/link")),
            std::os::unix::fs::symlink("/etc", of_container.join("link")),
        ] {
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
        }

        for (name, what) in
            [("block", "a block device"), ("character", "a character device"), ("socket", "a socket")]
        {
            match driver.share(pod, &share(name, false)).await.unwrap_err() {
                Error::Share { path, source, .. } => {
                    assert_eq!(path, at(name));
                    let words = source.to_string();
                    assert!(words.contains(what) && words.contains(&*at(name).to_string_lossy()), "{words}");
                }
                error => panic!("{error:?}"),
            }
        }
        // Another daemon takes back what this one has shown.
        place.another().unshare(pod, &container).await.unwrap();
        assert!(!file.exists() && !directory.exists());
        assert_eq!(fs::read(at("v1/key")).unwrap(), b"changed");
        assert_eq!(fs::read_dir(format!("/proc/{virtiofsd}/root/volumes")).unwrap().count(), 0);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_machine_that_the_node_has_no_memory_for_says_so() {
        let place = Place::new().await;
        let pod = PodId::random();
        let spec = place.spec(&pod).await;
        place.driver.create(&spec).await.unwrap();
        place.driver.start(&pod).await.unwrap();
        // QEMU alone takes less, a kernel that boots in it more.
        let files = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        let limit = files.map(|(root, file)| PathBuf::from(format!("{root}{}/machine/{file}", spec.cgroup)));
        let limit = limit.iter().find(|path| path.exists()).unwrap();
        fs::write(limit, "100M").unwrap();
        let ended = tokio::time::timeout(DEADLINE, place.driver.wait(&pod)).await.unwrap();
        assert!(ended.unwrap().reason.starts_with("out of memory on the node"));
        place.driver.destroy(&pod).await.unwrap();
        assert_eq!(place.left(&pod).await, Vec::<String>::new());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_damaged_record_hides_nothing_and_its_machine_can_be_removed() {
        let place = Place::new().await;
        let (pod, other) = (PodId::random(), PodId::random());
        let spec = place.spec(&pod).await;
        place.driver.create(&spec).await.unwrap();
        let process = Daemon {
            args: vec!["1000".into()],
            ..Daemon::new("/bin/sleep".into(), format!("{}/machine", spec.cgroup))
        };
        let process = place.node.start(&process).await.unwrap();
        fs::write(place.machine(&pod).join("qemu.json"), "{\"cgr").unwrap();
        // Others are made all the same.
        place.driver.create(&place.spec(&other).await).await.unwrap();
        let mut found = place.driver.list().await.unwrap();
        found.sort_by_key(|found| found.state == MachineState::Created);
        let found: Vec<_> = found.into_iter().map(|found| (found.pod, found.state)).collect();
        assert_eq!(found, [(pod.clone(), MachineState::Stopped), (other.clone(), MachineState::Created)]);
        let ended = place.driver.wait(&pod).await.unwrap();
        assert!(ended.reason.contains("qemu.json"), "{ended:?}");
        // What the record named is found without it.
        place.driver.stop(&pod, Duration::ZERO).await.unwrap();
        assert!(!place.node.process_lives(process).await.unwrap());
        place.driver.destroy(&pod).await.unwrap();
        // Where its layers are only the record knew: the caller removes them.
        fs::remove_dir_all(place.storage(&pod)).unwrap();
        fs::create_dir(place.storage(&pod)).unwrap();
        place.driver.destroy(&other).await.unwrap();
        for pod in [&pod, &other] {
            assert_eq!(place.left(pod).await, Vec::<String>::new());
        }
    }

    /// A program for x86-64 that only ends, with exit code 7: a header, one
    /// segment, `mov eax, 60; mov edi, 7; syscall` (elf(5)).
    fn program_that_ends() -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
        let numbers = |file: &mut Vec<u8>, numbers: &[u64]| {
            file.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        };
        // Where it begins, where the segments are described, no sections.
        numbers(&mut file, &[0x40_0078, 64, 0]);
        file.extend(b"\0\0\0\0\x40\0\x38\0\x01\0\0\0\0\0\0\0\x01\0\0\0\x05\0\0\0");
        // From the beginning of the file to this address, 132 bytes.
        numbers(&mut file, &[0, 0x40_0000, 0x40_0000, 132, 132, 4096]);
        file.extend(b"\xb8\x3c\0\0\0\xbf\x07\0\0\0\x0f\x05");
        file
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_kernel_that_panics_has_the_last_word() {
        let mut place = Place::new().await;
        let guest = place.directory.path().join("guest");
        fs::write(&guest, program_that_ends()).unwrap();
        let real = std::mem::replace(&mut place.config.guest, guest.clone());
        place.config.cache_directory = place.directory.path().join("cache");
        place.config.disk_bytes = 0;
        place.driver = QemuDriver::open(Arc::new(place.node.clone()), place.config.clone()).await.unwrap();
        // The machine has it; the keeper of its console is the real one.
        fs::remove_file(&guest).unwrap();
        fs::copy(real, &guest).unwrap();
        let pod = PodId::random();
        place.driver.create(&place.spec(&pod).await).await.unwrap();
        place.driver.start(&pod).await.unwrap();
        let ended = tokio::time::timeout(DEADLINE, place.driver.wait(&pod)).await.unwrap().unwrap();
        assert!(ended.reason.contains("panicked: Attempted to kill init! exitcode=0x00000700"), "{ended:?}");
        let console = place.driver.console(&pod, 100_000).await.unwrap();
        assert!(String::from_utf8_lossy(&console).contains("Kernel panic"));
        place.driver.destroy(&pod).await.unwrap();
        assert_eq!(place.left(&pod).await, Vec::<String>::new());
    }
}
