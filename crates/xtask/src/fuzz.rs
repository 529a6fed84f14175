//! `cargo xtask fuzz`: LLVM's fuzzer around the targets of `crates/fuzz`.
//!
//! It works with a stable compiler: what `-Zsanitizer` would add, the pass that
//! counts coverage has by itself, and the code under test has no unsafe blocks
//! for an address sanitizer to watch.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::shell::{Workspace, output, run as run_command, run_watching};

/// What turns the coverage counters on that libFuzzer reads.
const COVERAGE: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// What was asked for.
#[derive(Debug, PartialEq)]
struct Request {
    /// All targets if there is none.
    targets: Vec<String>,
    seconds: u64,
}

/// The command.
pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    let request = parse(arguments)?;
    let folder = workspace.target("fuzz");
    let list = output(
        workspace
            .cargo()
            .args(["run", "--quiet", "--package", "kina-fuzz", "--bin", "kina-fuzz-seeds", "--"])
            .arg(&folder),
    )?;
    let known: Vec<&str> = list.lines().filter_map(|line| line.split(':').next()).collect();
    let targets = if request.targets.is_empty() {
        known
    } else {
        for name in &request.targets {
            if !known.contains(&name.as_str()) {
                bail!("no fuzz target `{name}`; there are:\n{list}");
            }
        }
        request.targets.iter().map(String::as_str).collect()
    };
    let fuzzer = build(workspace, &folder)?;
    let mut reports = Vec::new();
    let mut found = Vec::new();
    for name in targets {
        let mut report = Report::default();
        let command = &mut fuzz(&fuzzer, &folder.join(name), name, request.seconds)?;
        let ended = run_watching(command, |line| report.read(line));
        reports.push(format!("{name:14} {report}"));
        if let Err(error) = ended {
            found.push(format!("{name}: {error:#}"));
        }
    }
    println!("{}", reports.join("\n"));
    if !found.is_empty() {
        bail!("{}\ninputs are in {}/TARGET/findings", found.join("\n"), folder.display());
    }
    Ok(())
}

/// Builds the fuzzer, instrumented, beside and not instead of other builds.
fn build(workspace: &Workspace, folder: &Path) -> Result<std::path::PathBuf> {
    // With a target named, build scripts and procedural macros are left alone.
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    run_command(
        workspace
            .cargo()
            .env("RUSTFLAGS", COVERAGE)
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("CARGO_PROFILE_RELEASE_STRIP", "none")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "line-tables-only")
            .env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true")
            .env("CARGO_PROFILE_RELEASE_OVERFLOW_CHECKS", "true")
            .args(["build", "--quiet", "--release", "--package", "kina-fuzz", "--features", "libfuzzer"])
            .args(["--bin", "kina-fuzz", "--target", &triple, "--target-dir"])
            .arg(folder.join("build")),
    )?;
    Ok(folder.join("build").join(triple).join("release/kina-fuzz"))
}

fn fuzz(fuzzer: &Path, folder: &Path, name: &str, seconds: u64) -> Result<Command> {
    let findings = folder.join("findings");
    std::fs::create_dir_all(&findings).with_context(|| format!("make {}", findings.display()))?;
    let mut command = Command::new("nice");
    command.arg(fuzzer).env("KINA_FUZZ_TARGET", name);
    // Images are written to files; they need no disk.
    if Path::new("/dev/shm").is_dir() {
        command.env("TMPDIR", "/dev/shm");
    }
    let words = folder.join("words");
    // libFuzzer takes an empty dictionary for a broken one.
    if std::fs::metadata(&words).is_ok_and(|words| words.len() > 0) {
        command.arg(format!("-dict={}", words.display()));
    }
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-artifact_prefix={}/", findings.display()))
        // A run that takes seconds or much memory is a finding too.
        .args(["-timeout=5", "-rss_limit_mb=512", "-max_len=16384", "-print_final_stats=1"])
        .arg(folder.join("corpus"));
    Ok(command)
}

/// What libFuzzer says at the end.
#[derive(Default)]
struct Report {
    executions: u64,
    covered: u64,
    corpus: u64,
    peak_mib: u64,
}

impl Report {
    /// Reads `stat::NAME: NUMBER`, and `#1 DONE cov: 1 ft: 2 corp: 3/4b ...`.
    fn read(&mut self, line: &str) {
        let number = |text: &str| text.trim().parse().unwrap_or(0);
        if let Some((name, value)) = line.strip_prefix("stat::").and_then(|line| line.split_once(':')) {
            match name {
                "number_of_executed_units" => self.executions = number(value),
                "peak_rss_mb" => self.peak_mib = number(value),
                _ => {}
            }
        } else if line.starts_with('#') {
            let after = |word: &str| {
                let rest = line.split_once(word)?.1.trim_start();
                Some(number(rest.split([' ', '/']).next().unwrap_or_default()))
            };
            self.covered = after("cov:").unwrap_or(self.covered);
            self.corpus = after("corp:").unwrap_or(self.corpus);
        }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { executions, covered, corpus, peak_mib } = self;
        write!(
            formatter,
            "{executions:>12} runs, {covered:>5} edges, {corpus:>5} inputs kept, {peak_mib} MiB"
        )
    }
}

fn parse(arguments: &[String]) -> Result<Request> {
    let mut request = Request { targets: Vec::new(), seconds: 60 };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--seconds" => {
                let value = arguments.next().and_then(|value| value.parse().ok());
                request.seconds = value.filter(|seconds| *seconds > 0).context("--seconds needs a number")?;
            }
            other if other.starts_with('-') => {
                bail!("unknown argument `{other}`; there is [TARGET]... [--seconds N]")
            }
            name => request.targets.push(name.to_owned()),
        }
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_and_seconds_are_read() {
        let strings = |arguments: &[&str]| arguments.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        assert_eq!(parse(&[]).unwrap(), Request { targets: Vec::new(), seconds: 60 });
        let request = parse(&strings(&["tar", "--seconds", "5"])).unwrap();
        assert_eq!(request, Request { targets: vec!["tar".to_owned()], seconds: 5 });
        for wrong in [&["--seconds"][..], &["--seconds", "0"], &["--jobs"]] {
            assert!(parse(&strings(wrong)).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_fuzzers_last_words_are_counted() {
        let mut report = Report::default();
        for line in [
            "#2 INITED cov: 10 ft: 12 corp: 3/40b exec/s: 0 rss: 50Mb",
            "#999 DONE   cov: 41 ft: 99 corp: 17/4Kb lim: 80 exec/s: 3 rss: 60Mb",
            "stat::number_of_executed_units: 999",
            "stat::peak_rss_mb:              61",
        ] {
            report.read(line);
        }
        assert_eq!(report.to_string(), "         999 runs,    41 edges,    17 inputs kept, 61 MiB");
    }
}
