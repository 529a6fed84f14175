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
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_formula_names_the_archive_and_its_digest() {
        let directory = tempfile::tempdir().unwrap();
        let archive = directory.path().join("kina-1.2.3-aarch64-apple-darwin.tar.gz");
        fs::write(&archive, "content").unwrap();
        let formula = write("https://host/path", &archive, directory.path()).unwrap();
        let text = fs::read_to_string(&formula).unwrap();
        assert!(text.contains("url \"https://host/path/kina-1.2.3-aarch64-apple-darwin.tar.gz\""), "{text}");
        let sha256 = text.lines().find_map(|line| line.trim().strip_prefix("sha256 ")).unwrap();
        assert_eq!(sha256.trim_matches('"'), digest(&archive).unwrap());
        // Nothing is left to fill in, but for Ruby's own braces.
        assert!(!text.replace("#{", "").contains('{'), "{text}");
        assert!(fill("https://h/\"", "a", "b").is_err());

        // Ruby's own opinion, where there is Ruby.
        let check = Command::new("ruby").arg("-c").arg(&formula).stdout(Stdio::null()).status();
        if let Ok(status) = check {
            assert!(status.success(), "{text}");
        }
        // Without it, at least every block ends.
        let words = |line: &str| {
            let line = line.trim();
            line.starts_with("class ") || line.starts_with("def ") || line.ends_with(" do")
        };
        let begun = text.lines().filter(|line| words(line)).count();
        assert_eq!(begun, text.lines().filter(|line| line.trim() == "end").count(), "{text}");
    }
}
