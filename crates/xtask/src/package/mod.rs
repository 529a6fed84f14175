//! `cargo xtask package`: archives of kina, below `target/package`.
//!
//! ```text
//! kina-VERSION-x86_64-unknown-linux-gnu.tar.gz    bin, libexec, the unit, documentation
//! kina-VERSION-aarch64-apple-darwin.tar.gz        bin, libexec, documentation
//! kina_VERSION_amd64.deb                          the first of them, for Debian
//! kina.rb                                         Homebrew's formula for the second, with --url
//! SHA256SUMS                                      of all of them
//! ```
//!
//! What goes in decides alone what comes out: entries are sorted, and belong to
//! nobody; all times are the last commit's (or `SOURCE_DATE_EPOCH`). Whether the
//! programs are the same is up to the compiler.

mod archive;
mod debian_package;
mod formula;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::guest::Processor;
use crate::shell::{Workspace, output, run as run_command};
use crate::{debian, guest, macos, pod_image, rust_source, setup};
use archive::{Entry, Tree};

/// What kina's binary is called everywhere.
const NAME: &str = "kina";

/// The Rust target of the archive for Linux.
const LINUX: &str = "x86_64-unknown-linux-gnu";

/// Documents that go with every archive, and what they show, from the root of the tree.
const DOCUMENTS: &[&str] = &[
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "launchd/kina.daemon.plist",
    "launchd/kina.service",
];

/// Permissions of programs, and of everything else.
const PROGRAM: u32 = 0o755;
const FILE: u32 = 0o644;

/// What was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    /// Programs as for development: quick to make, large, slow.
    development: bool,
    /// Where the archives will be: `https://host/path`. Homebrew's formula needs it.
    url: Option<String>,
    /// The targets left out.
    skip: Vec<String>,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self> {
        let mut options = Self::default();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().cloned().with_context(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--dev" => options.development = true,
                "--url" => options.url = Some(value()?.trim_end_matches('/').to_owned()),
                "--skip" => options.skip.extend(value()?.split(',').map(str::to_owned)),
                other => bail!("unknown argument `{other}`; there is --dev, --url URL, --skip linux,macos"),
            }
        }
        if let Some(odd) = options.skip.iter().find(|name| !matches!(name.as_str(), "linux" | "macos")) {
            bail!("--skip: nothing is called `{odd}`; there is linux and macos");
        }
        if ["linux", "macos"].iter().all(|name| options.skip.iter().any(|skipped| skipped == name)) {
            bail!("--skip: nothing is left to make");
        }
        if let Some(url) = options.url.as_ref().filter(|url| !url.starts_with("https://")) {
            bail!("--url: {url} does not begin with https://");
        }
        Ok(options)
    }

    fn profile(&self) -> &'static str {
        if self.development { "dev" } else { "release" }
    }

    /// The folder of the profile, below that of a target.
    fn folder(&self) -> &'static str {
        if self.development { "debug" } else { "release" }
    }
}

/// What all archives have in common.
struct Release {
    version: String,
    /// Seconds since 1970.
    time: u64,
    folder: PathBuf,
}

/// The command.
pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let options = Options::parse(arguments)?;
    if !debian::present() {
        bail!("packages are made on Debian: what they are made with comes from its archive");
    }
    if Processor::HERE != Processor::X86 {
        bail!("packages are made on x86_64: the archive for Linux has this machine's programs");
    }
    let wanted = |name: &str| !options.skip.iter().any(|skipped| skipped == name);
    let groups: &[&setup::Group] =
        if wanted("macos") { &[&setup::ARM64_COMPILER, &setup::MACOS] } else { &[] };
    setup::install(workspace, groups)?;

    let folder = workspace.target("package");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let release = Release { version, time: time(workspace)?, folder };
    let mut made = Vec::new();
    if wanted("linux") {
        made.extend(linux(workspace, &options, &release)?);
    }
    if wanted("macos") {
        made.extend(mac(workspace, &options, &release)?);
    }
    let sums = archive::sums(&made)?;
    fs::write(release.folder.join("SHA256SUMS"), &sums).context("write SHA256SUMS")?;
    print!("{sums}");
    Ok(())
}

/// The time that all entries have.
fn time(workspace: &Workspace) -> Result<u64> {
    let text = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text,
        Err(_) => {
            output(Command::new("git").current_dir(workspace.root()).args(["log", "-1", "--format=%ct"]))?
        }
    };
    text.trim().parse().with_context(|| format!("`{}` is no time in seconds", text.trim()))
}

fn linux(workspace: &Workspace, options: &Options, release: &Release) -> Result<Vec<PathBuf>> {
    run_command(workspace.cargo().args([
        "build",
        "--quiet",
        "--profile",
        options.profile(),
        "--package",
        NAME,
        "--package",
        "kina-vsock",
        "--bin",
        NAME,
        "--bin",
        "kina-vsock",
    ]))?;
    let built = workspace.target(options.folder());
    let mut tree = documents(workspace)?;
    tree.extend([
        Entry::new("bin/kina", PROGRAM, built.join(NAME)),
        Entry::new("libexec/kina/kina-vsock", PROGRAM, built.join("kina-vsock")),
        Entry::new("libexec/kina/kina-guest", PROGRAM, guest::build(workspace)?),
        Entry::new("share/kina/kina.service", FILE, workspace.root().join("launchd/kina.service")),
    ]);
    let archive = tarball(&tree, release, LINUX)?;
    let package = debian_package::make(&tree, release)?;
    Ok(vec![archive, package])
}

/// Machines on a Mac boot the image, which has their guest in it.
fn mac(workspace: &Workspace, options: &Options, release: &Release) -> Result<Vec<PathBuf>> {
    let Some(program) = macos::build(workspace, options.profile(), options.folder())? else {
        bail!("{}", rust_source::MISSING);
    };
    let guest = guest::build_for(workspace, Processor::Arm)?.context(rust_source::MISSING)?;
    let image = pod_image::build_for_mac(&guest, &workspace.target("macos"))?;
    let archive = tarball(&mac_tree(workspace, program, image)?, release, macos::TARGET)?;
    let mut made = vec![archive.clone()];
    match &options.url {
        Some(url) => made.push(formula::write(url, &archive, &release.folder)?),
        None => eprintln!("no formula for Homebrew: --url says where the archives will be"),
    }
    Ok(made)
}

/// What a Mac gets. `kina service install` writes the agent, which has the user's places in it.
fn mac_tree(workspace: &Workspace, program: PathBuf, image: PathBuf) -> Result<Tree> {
    let mut tree = documents(workspace)?;
    tree.extend([
        Entry::new("bin/kina", PROGRAM, program),
        Entry::new("libexec/kina/kina-pod.tar", FILE, image),
    ]);
    Ok(tree)
}

fn tarball(tree: &Tree, release: &Release, target: &str) -> Result<PathBuf> {
    let name = format!("{NAME}-{}-{target}", release.version);
    archive::tarball(tree, &name, release.time, &release.folder)
}

/// The documentation, placed so that links between its pages hold.
fn documents(workspace: &Workspace) -> Result<Tree> {
    let root = workspace.root();
    let mut tree = Tree::default();
    for document in DOCUMENTS {
        tree.extend([Entry::new(&format!("share/doc/kina/{document}"), FILE, root.join(document))]);
    }
    let pages = root.join("docs");
    for page in fs::read_dir(&pages).with_context(|| format!("read {}", pages.display()))? {
        let page = page.with_context(|| format!("read {}", pages.display()))?;
        let name = page.file_name().to_string_lossy().into_owned();
        if name.ends_with(".md") {
            tree.extend([Entry::new(&format!("share/doc/kina/docs/{name}"), FILE, page.path())]);
        }
    }
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn what_is_asked_for() {
        let parse =
            |words: &[&str]| Options::parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        let options = parse(&["--dev", "--url", "https://h/p/", "--skip", "macos"]).unwrap();
        assert_eq!((options.profile(), options.url.as_deref()), ("dev", Some("https://h/p")));
        assert_eq!(options.skip, ["macos"]);
        for (words, expected) in [
            (["--skip", "windows"], "`windows`"),
            (["--skip", "macos,linux"], "nothing is left"),
            (["--url", "http://h"], "https://"),
            (["--dev", "--url"], "needs a value"),
            (["--dev", "--fast"], "`--fast`"),
        ] {
            let error = parse(&words).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_documentation_is_there_with_its_pages() {
        let workspace = Workspace::at(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
        let tree = documents(&workspace).unwrap();
        for path in ["share/doc/kina/LICENSE", "share/doc/kina/docs/service.md"] {
            assert!(tree.entries().any(|entry| entry.path == path), "{path}");
        }
    }

    #[test]
    fn links_between_pages_hold_in_an_archive_and_a_package() {
        let workspace = Workspace::at(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."));
        let archive = documents(&workspace).unwrap();
        for tree in [&archive, &debian_package::placed(&archive)] {
            let directory = tempfile::tempdir().unwrap();
            tree.lay_out(directory.path()).unwrap();
            let mut links = 0;
            for page in tree.entries().filter(|entry| entry.path.ends_with(".md")) {
                let page = directory.path().join(&page.path);
                let text = fs::read_to_string(&page).unwrap();
                for link in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
                    if !link.is_empty() && !link.contains(':') {
                        links += 1;
                        let to = page.parent().unwrap().join(link);
                        assert!(to.exists(), "{}: {link}", page.display());
                    }
                }
            }
            assert!(links > 20, "{links}");
        }
    }
}
