use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{DEADLINE, Subject, directory, ok, printed, refused, run, shell};
use crate::{Bind, Error, PathKind, Program};

/// Files are read within a limit and replaced whole; what is not there is said
/// so.
///
/// # Panics
/// When the node breaks the rule.
pub async fn files_are_read_and_replaced(subject: &dyn Subject) {
    let node = subject.node();
    let root = directory(subject, "files").await;

    let nested = root.join("a/b");
    ok("make directories", node.create_directory(&nested, 0o710).await);
    ok("make directories again", node.create_directory(&nested, 0o700).await);
    let modes = printed(subject, &format!("cd {}; stat -c %a a a/b", root.display())).await;
    assert_eq!(modes, "710\n710", "modes of new directories");

    let file = nested.join("file");
    assert!(!ok("exists", node.exists(&file).await));
    assert!(refused("read", node.read_file(&file, 10).await).is_not_found());
    ok("write", node.write_file(&file, b"first", 0o640).await);
    ok("write", node.write_file(&file, b"second", 0o604).await);
    assert!(ok("exists", node.exists(&file).await));
    assert_eq!(ok("read", node.read_file(&file, 6).await), b"second");
    match refused("read beyond the limit", node.read_file(&file, 5).await) {
        Error::TooLarge { limit, .. } => assert_eq!(limit, 5),
        error => panic!("read beyond the limit: {error}"),
    }
    assert_eq!(ok("read the end", node.read_end(&file, 3).await), b"ond");
    assert_eq!(ok("read the end", node.read_end(&file, 100).await), b"second");
    assert!(refused("read the end", node.read_end(&root.join("none"), 10).await).is_not_found());
    assert_eq!(printed(subject, &format!("stat -c %a {}", file.display())).await, "604");
    assert_eq!(ok("list", node.list_directory(&nested).await), ["file"], "a temporary file stays");
    assert!(ok("list", node.list_directory(&root.join("none")).await).is_empty());

    run(subject, &format!("mkfifo {0}/pipe; ln -s a/b {0}/link", root.display())).await;
    let facts = ok("inspect", node.inspect_path(&root.join("link")).await);
    assert_eq!((facts.kind, facts.mode), (PathKind::Directory, 0o710));
    assert!(facts.real.ends_with("a/b"), "{facts:?}");
    let mountpoint = printed(subject, &format!("stat -c %m {}", root.display())).await;
    assert_eq!(facts.mount.mountpoint, Path::new(&mountpoint));
    assert!(!facts.has_mounts_below);
    assert_eq!(ok("inspect", node.inspect_path(&root.join("pipe")).await).kind, PathKind::Pipe);
    assert!(refused("inspect", node.inspect_path(&root.join("none")).await).is_not_found());
    let begin = Instant::now();
    refused("read of a pipe", node.read_file(&root.join("pipe"), 10).await);
    refused("read of a pipe's end", node.read_end(&root.join("pipe"), 10).await);
    assert!(begin.elapsed() < DEADLINE, "reading a pipe waits for its writer");

    for _ in 0..2 {
        ok("link", node.hard_link(&file, &root.join("second")).await);
    }
    refused("a link onto another file", node.hard_link(&file, &root.join("pipe")).await);
    assert_eq!(ok("read", node.read_file(&root.join("second"), 6).await), b"second");
    for _ in 0..2 {
        ok("rename", node.rename(&root.join("second"), &root.join("third")).await);
    }
    assert_eq!(ok("read", node.read_file(&root.join("third"), 6).await), b"second");
    refused("rename into nothing", node.rename(&root.join("third"), &root.join("none/third")).await);

    refused("write into nothing", node.write_file(&root.join("none/file"), b"", 0o600).await);
    refused("directory on a file", node.create_directory(&file, 0o700).await);
    ok("remove", node.remove_tree(&root).await);
}

/// Trees are measured and removed without following links; files with two
/// names count once.
///
/// # Panics
/// When the node breaks the rule.
pub async fn trees_are_measured_and_removed(subject: &dyn Subject) {
    let node = subject.node();
    let root = directory(subject, "trees").await;
    let script = "mkdir -p outside tree/deep/er tree/many; echo kept > outside/file; \
        ln -s ../outside tree/link; ln -s file outside/own; mkfifo tree/pipe; \
        dd if=/dev/zero of=tree/deep/er/data bs=1024 count=64 2>/dev/null; \
        ln tree/deep/er/data tree/again; \
        cd tree/many && seq 1100 | xargs mkdir";
    printed(subject, &format!("cd {} && {script}", root.display())).await;
    let tree = root.join("tree");

    let usage = ok("usage", node.usage(&tree).await);
    // The tree, deep, er, many, link, pipe, data; and the many.
    assert_eq!(usage.used_inodes, 7 + 1100);
    let expected = printed(subject, &format!("du -s --block-size=1 {}", tree.display())).await;
    let expected: u64 = expected.split_whitespace().next().and_then(|text| text.parse().ok()).unwrap_or(0);
    assert_eq!(usage.used_bytes, expected, "bytes as du(1) counts them");
    let mountpoint = printed(subject, &format!("stat -c %m {}", tree.display())).await;
    assert_eq!(usage.mountpoint, Path::new(&mountpoint));
    let file = ok("usage of a file", node.usage(&tree.join("again")).await);
    assert_eq!(file.used_inodes, 1);
    assert!(refused("usage", node.usage(&root.join("none")).await).is_not_found());

    ok("remove a link", node.remove_tree(&root.join("outside/own")).await);
    ok("remove a tree", node.remove_tree(&tree).await);
    ok("remove a tree again", node.remove_tree(&tree).await);
    ok("remove below nothing", node.remove_tree(&tree.join("a/b")).await);
    assert!(!ok("exists", node.exists(&tree).await));
    assert_eq!(ok("read", node.read_file(&root.join("outside/file"), 10).await), b"kept\n");
    ok("remove", node.remove_tree(&root).await);
}

/// Programs get exactly what they are given, and end in time.
///
/// # Panics
/// When the node breaks the rule.
pub async fn programs_are_bounded(subject: &dyn Subject) {
    let node = subject.node();
    let given = Program {
        stdin: b"input".to_vec(),
        env: vec![("ONE".to_owned(), "1 and".to_owned())],
        ..shell("echo \"$ONE $HOME\"; /bin/cat; echo wrong >&2; exit 7")
    };
    let output = ok("run", node.run(&given).await);
    assert_eq!(output.code, 7);
    assert_eq!(output.stdout, b"1 and \ninput");
    assert_eq!(output.stderr, b"wrong\n");
    assert_eq!(run(subject, "kill -9 $$").await.code, 137, "a signal is not told as 128 more");

    // More input than a pipe holds, for a program that reads none of it.
    let unread = Program { stdin: vec![b'x'; 1 << 20], ..shell("exit 3") };
    assert_eq!(ok("run", node.run(&unread).await).code, 3);

    let missing = Program { path: "/nonexistent/program".into(), ..shell("") };
    match refused("a missing program", node.run(&missing).await) {
        Error::Execute { source, .. } => assert_eq!(source.kind(), ErrorKind::NotFound),
        error => panic!("a missing program: {error}"),
    }

    let loud = Program { max_output: 1000, ..shell("while :; do echo aaaaaaaaaaaaaaaa; done") };
    match refused("a loud program", node.run(&loud).await) {
        Error::ProgramOutput { limit, .. } => assert_eq!(limit, 1000),
        error => panic!("a loud program: {error}"),
    }

    let root = directory(subject, "programs").await;
    let file = root.join("pids");
    // It and its child are killed together.
    let script = format!("sleep 1000 & echo $$ $! > {}; wait", file.display());
    let slow = Program { deadline: Duration::from_millis(300), ..shell(&script) };
    match refused("a slow program", node.run(&slow).await) {
        Error::ProgramDeadline { deadline, .. } => assert_eq!(deadline, slow.deadline),
        error => panic!("a slow program: {error}"),
    }
    let pids = ok("read", node.read_file(&file, 100).await);
    let pids = String::from_utf8_lossy(&pids).trim().to_owned();
    assert_gone(subject, &pids).await;

    // Dropped in the middle: likewise.
    let waiting = root.join("waiting");
    let script = format!("echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000", waiting.display());
    let program = shell(&script);
    let started = async {
        while !ok("exists", node.exists(&waiting).await) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        result = node.run(&program) => panic!("it ends by itself: {result:?}"),
        () = started => {}
    }
    let pid = ok("read", node.read_file(&waiting, 100).await);
    assert_gone(subject, String::from_utf8_lossy(&pid).trim()).await;
    ok("remove", node.remove_tree(&root).await);
}

/// That processes are dead, or zombies until they are reaped.
async fn assert_gone(subject: &dyn Subject, pids: &str) {
    let script = format!("for pid in {pids}; do grep -h ^State: /proc/$pid/status 2>/dev/null; done; true");
    let begin = Instant::now();
    loop {
        let states = printed(subject, &script).await;
        if states.lines().all(|state| state.contains('Z')) {
            return;
        }
        assert!(begin.elapsed() < DEADLINE, "processes {pids} live on: {states}");
    }
}

/// Binds show their source, read-only where asked, and go with what is below
/// them; only files and directories are bound. Links are of one file.
///
/// # Panics
/// When the node breaks the rule.
pub async fn binds_come_and_go(subject: &dyn Subject) {
    let node = subject.node();
    let root = directory(subject, "binds").await;
    let at = |name: &str| root.join(name);
    let script = "mkdir -p from/below to; echo one > from/file; ln -s from link; mount -t tmpfs tmpfs from/below; \
        echo two > from/below/file";
    printed(subject, &format!("cd {} && {script}", root.display())).await;
    let bind = |source: &str, target: &str, readonly: bool, recursive: bool| Bind {
        source: at(source),
        target: at(target),
        readonly,
        readonly_below: true,
        recursive,
    };
    assert!(ok("inspect", node.inspect_path(&at("from")).await).has_mounts_below);
    // Itself first, so that nothing spreads from it.
    ok("bind", node.bind(&bind("to", "to", false, false)).await);
    for _ in 0..2 {
        ok("bind", node.bind(&bind("link", "to/all", true, true)).await);
        ok("bind", node.bind(&bind("from", "to/top", false, false)).await);
        ok("bind", node.bind(&bind("from/file", "to/file", true, false)).await);
    }
    let count = format!("grep -c {}/to /proc/self/mountinfo", root.display());
    assert_eq!(printed(subject, &count).await, "5", "mounts: to, all, all/below, top, file");
    assert_eq!(ok("read", node.read_file(&at("to/all/file"), 10).await), b"one\n");
    assert_eq!(ok("read", node.read_file(&at("to/all/below/file"), 10).await), b"two\n");
    assert!(!ok("exists", node.exists(&at("to/top/below/file")).await), "a bind that is not recursive");
    for readonly in ["to/all/file", "to/all/below/file", "to/file"] {
        let script = format!("echo x > {}", at(readonly).display());
        assert_ne!(run(subject, &script).await.code, 0, "{readonly} can be written");
    }
    let top = Bind { readonly_below: false, ..bind("from", "to/only-top", true, true) };
    ok("bind", node.bind(&top).await);
    assert_ne!(run(subject, &format!("echo x > {}", at("to/only-top/file").display())).await.code, 0);
    ok("write", node.write_file(&at("to/only-top/below/new"), b"", 0o600).await);
    ok("unbind", node.unbind(&at("to/only-top")).await);
    ok("write", node.write_file(&at("to/top/new"), b"", 0o600).await);
    assert!(ok("exists", node.exists(&at("from/new")).await));

    printed(
        subject,
        &format!("cd {} && mkfifo pipe && mknod node c 1 3 && mknod block b 7 99", root.display()),
    )
    .await;
    for (path, kind) in
        [("pipe", "a named pipe"), ("node", "a character device"), ("block", "a block device")]
    {
        match refused(kind, node.bind(&bind(path, "to/other", false, false)).await) {
            Error::NotBindable { path: named, kind: said } => assert_eq!((named, said), (at(path), kind)),
            error => panic!("{kind}: {error}"),
        }
    }
    assert!(refused("nothing", node.bind(&bind("none", "to/other", false, false)).await).is_not_found());
    refused("a file on a directory", node.bind(&bind("from/file", "from", false, false)).await);
    assert!(!ok("exists", node.exists(&at("to/other")).await), "a refusal leaves something");

    ok("unbind", node.unbind(&at("to/all")).await);
    assert!(!ok("exists", node.exists(&at("to/all/file")).await));
    assert!(ok("exists", node.exists(&at("to/file")).await));
    for _ in 0..2 {
        ok("unbind", node.unbind(&at("to")).await);
    }
    assert_eq!(run(subject, &count).await.stdout, b"0\n");
    assert_eq!(ok("read", node.read_file(&at("from/below/file"), 10).await), b"two\n", "the source went too");

    for _ in 0..2 {
        ok("link", node.hard_link(&at("from/file"), &at("second")).await);
    }
    assert_eq!(printed(subject, &format!("stat -c %h {}", at("second").display())).await, "2");
    refused("a link onto another file", node.hard_link(&at("from/new"), &at("second")).await);
    let across = refused("a link across", node.hard_link(&at("from/below/file"), &at("third")).await);
    assert_eq!(across.io_kind(), Some(ErrorKind::CrossesDevices));
    ok("unbind", node.unbind(&root).await);
    ok("remove", node.remove_tree(&root).await);
}
