//! `cargo xtask test`: everything that CI runs, each step whatever the others do.

use std::process::Command;

use anyhow::{Result, bail};

use crate::shell::{Workspace, run as run_command, run_watching};
use crate::steps::{Outcome, Steps};
use crate::{debian, guest, macos, pod_image, rust_source, setup, sizes, tools};

/// A step: its name on the command line, what it does, and whether it is run
/// unless asked for.
struct Step {
    name: &'static str,
    about: &'static str,
    default: bool,
}

const STEPS: &[Step] = &[
    Step { name: "setup", about: "install what is missing", default: true },
    Step { name: "fmt", about: "the format of every source file; names long ones", default: true },
    Step { name: "clippy", about: "lints, of all targets, as errors", default: true },
    Step { name: "doc", about: "the documentation, its links and its examples", default: true },
    Step { name: "deny", about: "licences, bans and sources of dependencies", default: true },
    Step {
        name: "advisories",
        about: "known vulnerabilities of dependencies; fetches a database, so only on request",
        default: false,
    },
    Step { name: "guest", about: "build the static guest, and the image with it", default: true },
    Step { name: "tests", about: "every test", default: true },
    Step { name: "arm64", about: "build the guest for arm64 machines, and boot it in one", default: true },
    Step { name: "macos", about: "type-check and link kina for macOS", default: true },
];

/// What was asked for.
struct Selection {
    steps: Vec<&'static str>,
    filters: Vec<String>,
}

/// The command.
pub(crate) fn run(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        print!("{}", help());
        return Ok(());
    }
    let selection = select(arguments)?;
    let mut steps = Steps::default();
    let mut summary = None;
    for name in &selection.steps {
        steps.step(name, || perform(workspace, name, &selection, &mut summary));
    }
    eprintln!("\n== report\n{}", steps.report());
    if !selection.steps.contains(&"advisories") {
        eprintln!(
            "advisories: not checked, their database is on no package registry; \
             with a network, `cargo xtask test --only advisories` does"
        );
    }
    if let Some(summary) = summary {
        println!("{summary}");
    }
    steps.result()
}

fn perform(
    workspace: &Workspace,
    name: &str,
    selection: &Selection,
    summary: &mut Option<String>,
) -> Result<Outcome> {
    let cargo = || cargo(workspace);
    match name {
        "setup" => {
            // The tools of a step that is left out are not missed.
            let mut groups = vec![&setup::TEST];
            if selection.steps.contains(&"arm64") {
                groups.extend([&setup::ARM64_COMPILER, &setup::ARM64_MACHINE]);
            }
            groups.extend(selection.steps.contains(&"macos").then_some(&setup::MACOS));
            setup::install(workspace, &groups)?;
        }
        "fmt" => {
            for long in sizes::long_files(workspace)? {
                eprintln!("note: {long}");
            }
            run_command(cargo().args(["fmt", "--all", "--check"]))?;
        }
        "clippy" => run_command(
            cargo()
                .args(["clippy", "--quiet", "--keep-going", "--workspace", "--all-targets"])
                .args(["--", "--deny", "warnings"]),
        )?,
        "doc" => {
            run_command(cargo().env("RUSTDOCFLAGS", "--deny warnings").args([
                "doc",
                "--quiet",
                "--workspace",
                "--no-deps",
                "--document-private-items",
            ]))?;
            run_command(cargo().args(["test", "--quiet", "--workspace", "--doc"]))?;
        }
        "deny" => deny(workspace, &["bans", "licenses", "sources"])?,
        "advisories" => deny(workspace, &["advisories"])?,
        "guest" => {
            pod_image::build(workspace)?;
            guest::build_simulator(workspace)?;
        }
        "tests" => tests(workspace, selection, summary)?,
        "arm64" => return arm64(workspace),
        "macos" => return macos::link(workspace),
        other => bail!("`{other}` is listed and not implemented"),
    }
    Ok(Outcome::Done)
}

/// Cargo for a step.
fn cargo(workspace: &Workspace) -> Command {
    let mut command = workspace.cargo();
    build_once(&mut command);
    command
}

/// The test runner, with all that tests look for.
fn nextest(workspace: &Workspace) -> Result<Command> {
    let mut command = tools::wheel_command(workspace, &tools::NEXTEST)?;
    build_once(&mut command);
    command.env("KINA_GUEST", guest::path(workspace)).envs(setup::environment(workspace));
    command.args(["nextest", "run", "--workspace", "--cargo-quiet"]);
    Ok(command)
}

/// CI builds once, so incremental files would only cost time.
fn build_once(command: &mut Command) {
    if std::env::var_os("CI").is_some() {
        command.env("CARGO_INCREMENTAL", "0");
    }
}

fn deny(workspace: &Workspace, checks: &[&str]) -> Result<()> {
    let mut command = tools::wheel_command(workspace, &tools::DENY)?;
    // Duplicates are a matter for people, who see them with `cargo deny check bans`.
    run_command(command.args(["--log-level", "error", "check", "--hide-inclusion-graph"]).args(checks))
}

fn tests(workspace: &Workspace, selection: &Selection, summary: &mut Option<String>) -> Result<()> {
    let guest = guest::path(workspace);
    if !guest.exists() {
        eprintln!("note: there is no {}: tests that run it will fail", guest.display());
    }
    run_watching(
        nextest(workspace)?
            .args(["--color", if coloured() { "always" } else { "never" }])
            .args(&selection.filters),
        |line| {
            if let Some(counts) = Counts::parse(line) {
                *summary = Some(counts.to_string());
            }
        },
    )
}

/// The guest for arm64 is built from source down to the standard library, and runs a
/// container in an emulated machine. On an arm64 machine all tests do that.
fn arm64(workspace: &Workspace) -> Result<Outcome> {
    if guest::Processor::HERE == guest::Processor::Arm {
        return Ok(Outcome::Skipped("this machine is arm64: its own guest is tested".into()));
    }
    if !debian::present() {
        return Ok(Outcome::Skipped("the standard library's source and the kernel come from Debian".into()));
    }
    if guest::build_for(workspace, guest::Processor::Arm)?.is_none() {
        return Ok(Outcome::Skipped(format!("{}: no guest for arm64", rust_source::MISSING)));
    }
    run_command(nextest(workspace)?.args(["--run-ignored", "only", "-E", "binary(vm) and test(arm64)"]))?;
    Ok(Outcome::Done)
}

fn coloured() -> bool {
    use std::io::IsTerminal as _;
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// What the test runner's last line counts.
struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Counts {
    /// Reads `Summary [ 1.2s] 3 tests run: 2 passed (1 slow), 1 timed out, 4 skipped`.
    /// Whatever ran and did not pass has failed.
    fn parse(line: &str) -> Option<Self> {
        let plain = without_colours(line);
        let counts = plain.trim_start().strip_prefix("Summary [")?.split_once(']')?.1;
        let (run, outcomes) = counts.split_once(':')?;
        // An interrupted run says `2/3 tests run`.
        let run: u64 = run.split_whitespace().next()?.split('/').next()?.parse().ok()?;
        let of = |word: &str| {
            outcomes.split(',').find_map(|part| {
                let mut words = part.split_whitespace();
                let count = words.next()?.parse::<u64>().ok()?;
                (words.next()? == word).then_some(count)
            })
        };
        let passed = of("passed").unwrap_or(0);
        Some(Self { passed, failed: run.saturating_sub(passed), skipped: of("skipped").unwrap_or(0) })
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { passed, failed, skipped } = self;
        write!(formatter, "tests: {passed} passed, {failed} failed, {skipped} skipped")
    }
}

fn without_colours(line: &str) -> String {
    let mut text = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("\u{1b}[") {
        text.push_str(before);
        rest = after.split_once('m').map_or("", |(_, rest)| rest);
    }
    text.push_str(rest);
    text
}

fn select(arguments: &[String]) -> Result<Selection> {
    let mut only: Option<Vec<&'static str>> = None;
    let mut skip = Vec::new();
    let mut filters = Vec::new();
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--" => filters.extend(arguments.by_ref().cloned()),
            "--only" => only.get_or_insert_default().extend(names(arguments.next())?),
            "--skip" => skip.extend(names(arguments.next())?),
            other => bail!("unknown argument `{other}`; `cargo xtask test --help` lists them"),
        }
    }
    let steps = STEPS
        .iter()
        .filter(|step| match &only {
            Some(only) => only.contains(&step.name),
            None => step.default,
        })
        .map(|step| step.name)
        .filter(|name| !skip.contains(name))
        .collect();
    Ok(Selection { steps, filters })
}

/// The steps named in `a,b`.
fn names(list: Option<&String>) -> Result<Vec<&'static str>> {
    let known = || STEPS.iter().map(|step| step.name).collect::<Vec<_>>().join(", ");
    let Some(list) = list else {
        bail!("a list of steps is missing; there is {}", known());
    };
    let mut names = Vec::new();
    for name in list.split(',') {
        match STEPS.iter().find(|step| step.name == name) {
            Some(step) => names.push(step.name),
            None => bail!("no step `{name}`; there is {}", known()),
        }
    }
    Ok(names)
}

fn help() -> String {
    let mut text = String::from(
        "Usage: cargo xtask test [--only STEP,...] [--skip STEP,...] [-- NEXTEST ARGUMENTS]\n\n\
         Runs every step, whatever becomes of the others, and reports at the end.\n\nSteps:\n",
    );
    for step in STEPS {
        text.push_str(&format!("  {:11} {}\n", step.name, step.about));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(arguments: &[&str]) -> Vec<String> {
        arguments.iter().map(|argument| (*argument).to_owned()).collect()
    }

    #[test]
    fn steps_keep_their_order_however_they_are_asked_for() {
        let selection = select(&strings(&["--only", "tests,guest", "--", "store"])).unwrap();
        assert_eq!(selection.steps, ["guest", "tests"]);
        assert_eq!(selection.filters, ["store"]);
    }

    #[test]
    fn without_arguments_all_but_the_steps_on_request() {
        let steps = select(&[]).unwrap().steps;
        assert!(!steps.contains(&"advisories"));
        assert_eq!(steps.len(), STEPS.len() - 1);
        assert!(!select(&strings(&["--skip", "macos"])).unwrap().steps.contains(&"macos"));
    }

    #[test]
    fn an_unknown_step_is_refused_by_name() {
        for arguments in [["--only", "test"], ["--skip", "test"]] {
            let Err(error) = select(&strings(&arguments)) else {
                panic!("{arguments:?} was taken");
            };
            assert!(error.to_string().contains("`test`"), "{error}");
        }
    }

    #[test]
    fn whatever_ran_and_did_not_pass_has_failed() {
        let line = "     Summary [   1.2s] 5 tests run: 2 passed (1 slow), 2 failed, 1 timed out, 4 skipped";
        assert_eq!(Counts::parse(line).unwrap().to_string(), "tests: 2 passed, 3 failed, 4 skipped");
        let coloured = "\u{1b}[32;1m     Summary\u{1b}[0m [   0.005s] \u{1b}[1m1\u{1b}[0m test run: \
                        \u{1b}[1m1\u{1b}[0m \u{1b}[32;1mpassed\u{1b}[0m, \u{1b}[1m0\u{1b}[0m skipped";
        assert_eq!(Counts::parse(coloured).unwrap().to_string(), "tests: 1 passed, 0 failed, 0 skipped");
        assert!(Counts::parse("    PASS [   0.005s] a b").is_none());
    }
}
