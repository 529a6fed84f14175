//! Homebrew's formula for the archive of macOS.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::archive::digest;

/// The formula, with names in braces for what is of one release.
const TEMPLATE: &str = include_str!("kina.rb");

/// Writes the formula of an archive that will be below `url`.
pub(super) fn write(url: &str, archive: &Path, folder: &Path) -> Result<PathBuf> {
    let name = archive.file_name().unwrap_or_default().to_string_lossy();
    let text = fill(url, &name, &digest(archive)?)?;
    let formula = folder.join("kina.rb");
    fs::write(&formula, text).with_context(|| format!("write {}", formula.display()))?;
    Ok(formula)
}

/// The formula. Homebrew takes the version from the archive's name.
fn fill(url: &str, archive: &str, digest: &str) -> Result<String> {
    if let Some(odd) = url.chars().find(|char| matches!(char, '"' | '#' | '\\') || char.is_whitespace()) {
        bail!("--url: {odd:?} has no place in a formula");
    }
    Ok(TEMPLATE
        .replace("{homepage}", url)
        .replace("{url}", &format!("{url}/{archive}"))
        .replace("{sha256}", digest))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    use serde_json::{Value, json};

    use super::*;
    use crate::package::{Release, mac_tree, tarball};
    use crate::shell::Workspace;

    /// The archive of a Mac, with a program in it that says its version, and the formula.
    fn release(folder: &Path, program: &str) -> (PathBuf, PathBuf) {
        let (kina, image) = (folder.join("program"), folder.join("image"));
        fs::write(&kina, program).unwrap();
        fs::write(&image, "content").unwrap();
        let workspace = Workspace::at(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
        let tree = mac_tree(&workspace, kina, image).unwrap();
        let release = Release { version: "1.2.3".to_owned(), time: 0, folder: folder.to_owned() };
        let archive = tarball(&tree, &release, crate::macos::TARGET).unwrap();
        let formula = write("https://host/path", &archive, folder).unwrap();
        (archive, formula)
    }

    /// What Homebrew would do with them, or why not.
    fn installed(archive: &Path, formula: &Path, prefix: &Path) -> Result<Value, String> {
        let homebrew = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/package/homebrew.rb");
        let mut ruby = Command::new("ruby");
        ruby.arg("-w").arg(homebrew).args([formula, archive, prefix]);
        let output = ruby.output().expect("Debian's package ruby; `cargo xtask setup` installs it");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        match output.status.success() && said.is_empty() {
            true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
            false => Err(said),
        }
    }

    #[test]
    fn homebrew_installs_what_the_archive_has() {
        let directory = tempfile::tempdir().unwrap();
        let (archive, formula) = release(directory.path(), "#!/bin/sh\necho kina 1.2.3+abc\n");
        let prefix = directory.path().join("prefix");
        let said = installed(&archive, &formula, &prefix).unwrap();
        assert_eq!(said["version"], "1.2.3");
        assert_eq!(said["url"], "https://host/path/kina-1.2.3-aarch64-apple-darwin.tar.gz");
        assert_eq!(
            (&said["homepage"], &said["license"]),
            (&json!("https://host/path"), &json!("Apache-2.0"))
        );
        assert_eq!(said["depends_on"], json!([{ "arch": "arm64" }, { "macos": "tahoe" }]));
        assert!(said["caveats"].as_str().unwrap().contains("kina service install"));
        // All of it, where kina looks for it.
        let names = crate::shell::output(Command::new("tar").arg("-tzf").arg(&archive)).unwrap();
        let mut names: Vec<&str> = names
            .lines()
            .filter_map(|name| name.strip_prefix("kina-1.2.3-aarch64-apple-darwin/"))
            .filter(|name| !name.is_empty() && !name.ends_with('/'))
            .collect();
        names.sort_unstable();
        assert_eq!(said["files"], json!(names));
        assert!(names.contains(&"libexec/kina/kina-pod.tar") && names.contains(&"share/doc/kina/LICENSE"));
        let mode = fs::metadata(prefix.join("bin/kina")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
    }

    #[test]
    fn homebrew_sees_what_is_wrong() {
        let directory = tempfile::tempdir().unwrap();
        let (archive, formula) = release(directory.path(), "#!/bin/sh\necho kina 1.2.4\n");
        let fails = |prefix: &str| installed(&archive, &formula, &directory.path().join(prefix)).unwrap_err();
        assert!(fails("a").contains("\"kina 1.2.3\" is not in"), "{}", fails("b"));
        let text = fs::read_to_string(&formula).unwrap();
        fs::write(&formula, text.replace("libexec/kina/*", "libexec/other/*")).unwrap();
        assert!(fails("c").contains("nothing to install into"), "{}", fails("d"));
        fs::write(&archive, "another").unwrap();
        assert!(fails("e").contains("the digest is another"), "{}", fails("f"));
    }

    #[test]
    fn an_address_that_ruby_would_read_otherwise_is_refused() {
        for odd in ["https://h/\"", "https://h/#{x}", "https://h/\\", "https://h/ x"] {
            assert!(fill(odd, "a", "b").is_err(), "{odd}");
        }
        // Nothing is left to fill in, but for Ruby's own braces.
        let text = fill("https://h", "a", "b").unwrap();
        assert!(!text.replace("#{", "").contains('{'), "{text}");
    }
}
