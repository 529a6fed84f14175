//! A package for Debian: the archive for Linux in Debian's places. It brings the
//! unit and enables nothing.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::Release;
use super::archive::{Entry, Tree};
use crate::shell::run;

/// What dpkg is told. QEMU is for pods in virtual machines; virtiofsd, the one in
/// Rust, is in no release yet that Debian 12 has. The compiler of package apparmor is for
/// the containers' default profile.
const CONTROL: &str = "\
Package: kina
Version: {version}
Section: admin
Priority: optional
Architecture: amd64
Maintainer: the kina project <kina@localhost>
Installed-Size: {size}
Depends: libc6 (>= 2.34), libgcc-s1
Recommends: qemu-system-x86, containernetworking-plugins, apparmor
Description: CRI runtime that gives every Kubernetes pod a machine of its own
 A daemon for kubelet and crictl. A pod gets a virtual machine of QEMU's or, by its
 runtime handler, the node's own kernel. `kina doctor` says what the machine lacks;
 `systemctl enable --now kina` starts the service.
";

/// systemd has to know of the unit, and of its going. Pods are not ended.
const SCRIPT: &str = "#!/bin/sh\nset -e\nif [ -d /run/systemd/system ]; then systemctl daemon-reload; fi\n";
const BEFORE_REMOVAL: &str = "#!/bin/sh\nset -e\n\
     if [ \"$1\" = remove ] && [ -d /run/systemd/system ]; then systemctl disable --now kina.service; fi\n";

/// An archive's files at a package's places.
pub(super) fn placed(tree: &Tree) -> Tree {
    let mut placed = Tree::default();
    for entry in tree.entries() {
        let at = |path: String| Entry { path, ..entry.clone() };
        match entry.path.as_str() {
            "share/kina/kina.service" => placed.extend([at("usr/lib/systemd/system/kina.service".into())]),
            path => placed.extend([at(format!("usr/{path}"))]),
        }
        // Where Debian wants it; pages link to the other.
        if entry.path == "share/doc/kina/LICENSE" {
            placed.extend([at("usr/share/doc/kina/copyright".into())]);
        }
    }
    placed
}

/// Makes it.
pub(super) fn make(tree: &Tree, release: &Release) -> Result<PathBuf> {
    let stage = release.folder.join("stage");
    let placed = placed(tree);
    placed.lay_out(&stage)?;
    let mut bytes = 0;
    for entry in placed.entries() {
        let context = || format!("look at {}", entry.source.display());
        bytes += fs::metadata(&entry.source).with_context(context)?.len();
    }
    let control =
        CONTROL.replace("{version}", &release.version).replace("{size}", &bytes.div_ceil(1024).to_string());
    let folder = stage.join("DEBIAN");
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    for (name, text, mode) in [
        ("control", control.as_str(), 0o644),
        ("postinst", SCRIPT, 0o755),
        ("prerm", BEFORE_REMOVAL, 0o755),
        ("postrm", SCRIPT, 0o755),
    ] {
        let file = folder.join(name);
        fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        fs::set_permissions(&file, Permissions::from_mode(mode))
            .with_context(|| format!("set the permissions of {}", file.display()))?;
    }
    // Directories have what the umask left them.
    run(Command::new("chmod").args(["-R", "u+rwX,go=rX"]).arg(&stage))?;
    let package = release.folder.join(format!("kina_{}_amd64.deb", release.version));
    run(Command::new("dpkg-deb")
        .env("SOURCE_DATE_EPOCH", release.time.to_string())
        .args(["--root-owner-group", "-Zxz", "--build"])
        .arg(&stage)
        .arg(&package))?;
    fs::remove_dir_all(&stage).with_context(|| format!("remove {}", stage.display()))?;
    Ok(package)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::package::archive::digest;
    use crate::shell::output;

    #[test]
    fn debian_takes_the_package_and_it_depends_on_its_content_alone() {
        let mut digests = Vec::new();
        for _ in 0..2 {
            let directory = tempfile::tempdir().unwrap();
            let source = directory.path().join("program");
            fs::write(&source, "x".repeat(3000)).unwrap();
            let mut tree = Tree::default();
            tree.extend([
                Entry::new("bin/kina", 0o755, source.clone()),
                Entry::new("share/kina/kina.service", 0o644, source.clone()),
                Entry::new("share/doc/kina/LICENSE", 0o644, source),
            ]);
            let folder = directory.path().to_owned();
            let release = Release { version: "1.2.3".to_owned(), time: 1_700_000_000, folder };
            let package = make(&tree, &release).unwrap();
            let ask = |words: &[&str]| output(Command::new("dpkg-deb").args(words).arg(&package)).unwrap();
            assert!(ask(&["--info"]).contains("Installed-Size: 12"), "{}", ask(&["--info"]));
            let content = ask(&["--contents"]);
            for line in
                ["./usr/bin/kina", "./usr/lib/systemd/system/kina.service", "./usr/share/doc/kina/copyright"]
            {
                let found = content.lines().find(|one| one.ends_with(line));
                assert!(found.is_some_and(|one| one.contains("root/root")), "{line}: {content}");
            }
            digests.push(digest(&package).unwrap());
        }
        assert_eq!(digests[0], digests[1]);
    }

    #[test]
    fn its_scripts_are_scripts() {
        for script in [SCRIPT, BEFORE_REMOVAL] {
            let said = Command::new("sh").args(["-n", "-c", script]).output().unwrap();
            assert!(said.status.success(), "{said:?}");
        }
    }
}
