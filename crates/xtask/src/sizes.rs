//! Source files that have grown too long to be read in one sitting.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::shell::Workspace;

/// More lines than this, and a file probably holds two topics.
const LIMIT: usize = 600;

/// A line for each Rust file of the workspace that is too long.
pub(crate) fn long_files(workspace: &Workspace) -> Result<Vec<String>> {
    let mut long = Vec::new();
    for folder in ["src", "crates", "tests", "benches"] {
        visit(&workspace.root().join(folder), &mut |file| {
            let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
            let lines = text.lines().count();
            if lines > LIMIT {
                let shown = file.strip_prefix(workspace.root()).unwrap_or(file);
                long.push(format!("{}: {lines} lines, more than {LIMIT}", shown.display()));
            }
            Ok(())
        })?;
    }
    long.sort();
    Ok(long)
}

fn visit(folder: &Path, file: &mut impl FnMut(&Path) -> Result<()>) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let path: PathBuf = entry.with_context(|| format!("read {}", folder.display()))?.path();
        if path.is_dir() {
            visit(&path, file)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_rust_files_are_named_and_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("crates/a/src");
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("long.rs"), "\n".repeat(LIMIT + 1)).unwrap();
        fs::write(deep.join("short.rs"), "\n".repeat(LIMIT)).unwrap();
        fs::write(deep.join("long.txt"), "\n".repeat(LIMIT + 1)).unwrap();
        let found = long_files(&Workspace::at(folder.path())).unwrap();
        assert_eq!(found, ["crates/a/src/long.rs: 601 lines, more than 600"]);
    }
}
