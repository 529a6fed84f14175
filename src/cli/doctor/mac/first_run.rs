//! `kina doctor --first-run`: from a Mac with `container` to a pod that outlives its
//! daemon, step by step, with what each step should print. With `--run` the steps
//! are done and compared; the first that is otherwise ends it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::cli::print_line;
use crate::cli::program::{ask, find};

/// A step.
pub(super) struct Step {
    /// What it finds out.
    pub(super) about: &'static str,
    /// A line for the shell. `$WORK` is a directory for all steps.
    pub(super) command: &'static str,
    /// Texts that the answer has, one of each row.
    pub(super) expected: &'static [&'static [&'static str]],
    /// Where to look when it is otherwise.
    pub(super) otherwise: &'static str,
}

/// The steps. What one makes the later ones use; the last ones clean up.
pub(super) const STEPS: &[Step] = &[
    Step {
        about: "the Mac: Apple silicon",
        command: "uname -sm",
        expected: &[&["Darwin arm64"]],
        otherwise: "kina needs Apple silicon",
    },
    Step {
        about: "macOS 26 or later",
        command: "sw_vers -productVersion",
        expected: &[&["26.", "27.", "28."]],
        otherwise: "networks of machines need macOS 26",
    },
    Step {
        about: "Apple's container, with its service",
        command: "container --version && container system status",
        expected: &[&["version 1."], &["running"]],
        otherwise: "container system start",
    },
    Step {
        about: "Apple's container by itself boots a machine: what fails here is not kina's",
        command: "container run --rm docker.io/library/busybox:stable uname -s -m",
        expected: &[&["Linux aarch64"]],
        otherwise: "container system kernel set --recommended; container system logs",
    },
    Step {
        about: "kina's own opinion of the Mac",
        command: "kina doctor",
        expected: &[&["Everything is as it should be", "`kina serve` works here"]],
        otherwise: "do what it says after each arrow",
    },
    Step {
        about: "the daemon as a service",
        command: "kina service install",
        expected: &[&["answers"]],
        otherwise: "kina service logs",
    },
    Step {
        about: "the daemon by CRI, and the machines' handler",
        command: "crictl version && crictl info",
        expected: &[&["RuntimeName:  kina"], &["\"RuntimeReady\""]],
        otherwise: "crictl comes with: brew install cri-tools",
    },
    Step {
        about: "an image",
        command: "crictl pull docker.io/library/busybox:stable",
        expected: &[&["Image is up to date"]],
        otherwise: "kina service logs; docs/registries.md",
    },
    Step {
        about: "a pod: a machine of its own",
        command: "printf '{\"metadata\":{\"name\":\"first\",\"namespace\":\"run\",\"uid\":\"1\",\"attempt\":0},\
                  \"log_directory\":\"%s\",\"linux\":{}}' \"$WORK\" > \"$WORK/pod.json\" && \
                  crictl runp \"$WORK/pod.json\" | tee \"$WORK/pod\" && crictl pods",
        expected: &[&["first"], &[" Ready"]],
        otherwise: "kina service logs; kina machine ls",
    },
    Step {
        about: "the same machine, as Apple's container sees it",
        command: "container list | grep \"$(cut -c1-12 \"$WORK/pod\")\"",
        expected: &[&["running"]],
        otherwise: "kina machine ls; container list --all",
    },
    Step {
        about: "a container in it",
        command: "printf '{\"metadata\":{\"name\":\"shell\",\"attempt\":0},\"image\":{\"image\":\
                  \"docker.io/library/busybox:stable\"},\"command\":[\"sh\",\"-c\",\
                  \"uname -s -m; exec sleep 100000\"],\"log_path\":\"shell.log\"}' > \"$WORK/container.json\" && \
                  crictl create \"$(cat \"$WORK/pod\")\" \"$WORK/container.json\" \"$WORK/pod.json\" \
                  | tee \"$WORK/container\" && crictl start \"$(cat \"$WORK/container\")\" && \
                  crictl exec \"$(cat \"$WORK/container\")\" ps",
        expected: &[&["sleep 100000"]],
        otherwise: "kina service logs; kina machine console POD",
    },
    Step {
        about: "its log",
        command: "crictl logs \"$(cat \"$WORK/container\")\"",
        expected: &[&["Linux aarch64"]],
        otherwise: "kina machine console POD",
    },
    Step {
        about: "its network: a name, and a page from outside",
        command: "crictl exec \"$(cat \"$WORK/container\")\" wget -q -O - http://example.com",
        expected: &[&["Example Domain"]],
        otherwise: "kina doctor (routes, local network); a VPN or a filter on the Mac",
    },
    Step {
        about: "a daemon that is killed: launchd starts another, the pod goes on",
        command: "launchctl kill SIGKILL \"gui/$(id -u)/kina.daemon\" && kina service install && \
                  kina service status && crictl ps",
        expected: &[&["answers on"], &["Running"]],
        otherwise: "kina service logs",
    },
    Step {
        about: "the pod's end leaves nothing",
        command: "crictl rmp -f \"$(cat \"$WORK/pod\")\" && all=$(container list --all --quiet) && \
                  echo \"left: $(echo \"$all\" | grep -c \"$(cut -c1-12 \"$WORK/pod\")\")\"",
        expected: &[&["left: 0"]],
        otherwise: "kina machine ls; container list --all",
    },
    Step {
        about: "the service's end",
        command: "kina service uninstall",
        expected: &[&["removed"]],
        otherwise: "launchctl print gui/$(id -u)/kina.daemon",
    },
];

/// How long a step may take: one pulls an image.
const PATIENCE: Duration = Duration::from_secs(300);

/// Whether an answer is as expected.
pub(super) fn is_expected(step: &Step, answer: &str) -> bool {
    step.expected.iter().all(|row| row.iter().any(|text| answer.contains(text)))
}

/// The steps for people, who ask the daemon at a socket.
pub(in crate::cli::doctor) fn list(socket: &Path) -> String {
    let mut text = format!(
        "The first run on a Mac. Each step should print what stands below it; `--run` does them all.\n\
         Before the first, in the same shell:\n\n   \
         $ export WORK=$(mktemp -d)\n   \
         $ export CONTAINER_RUNTIME_ENDPOINT='unix://{0}'\n   \
         $ export IMAGE_SERVICE_ENDPOINT='unix://{0}'\n",
        socket.display()
    );
    for (index, step) in STEPS.iter().enumerate() {
        let _ = write!(text, "\n{}", heading(index, step));
        let _ = write!(text, "   prints: {}\n   else:   {}\n", wanted(step), step.otherwise);
    }
    text.trim_end().to_owned()
}

/// What a step should print, in words.
fn wanted(step: &Step) -> String {
    let rows: Vec<String> = step.expected.iter().map(|row| row.join(" or ").trim().to_owned()).collect();
    rows.join(", and ")
}

fn heading(index: usize, step: &Step) -> String {
    format!("{:2}. {}\n   $ {}\n", index + 1, step.about, step.command)
}

/// Does the steps. `first` goes before the search path.
pub(in crate::cli::doctor) async fn run(
    first: &[PathBuf],
    search: &[PathBuf],
    socket: &Path,
) -> anyhow::Result<()> {
    let shell = find("sh", search).context("there is no sh")?;
    let work = WorkDirectory::new()?;
    let path = std::env::join_paths(first.iter().chain(search)).context("the search path")?;
    let endpoint = format!("unix://{}", socket.display());
    let settings = [
        format!("PATH={}", path.to_string_lossy()),
        format!("WORK={}", work.0.display()),
        format!("CONTAINER_RUNTIME_ENDPOINT={endpoint}"),
        format!("IMAGE_SERVICE_ENDPOINT={endpoint}"),
    ];
    let env = find("env", search).context("there is no env")?;
    for (index, step) in STEPS.iter().enumerate() {
        print_line(heading(index, step).trim_end())?;
        let shell = shell.display().to_string();
        let mut words: Vec<&str> = settings.iter().map(String::as_str).collect();
        words.extend([shell.as_str(), "-c", step.command]);
        let said = ask(&env, &words, PATIENCE).await?;
        for line in said.stdout.lines().chain(said.stderr.lines()) {
            print_line(&format!("   {line}"))?;
        }
        if !said.status.success() || !is_expected(step, &said.stdout) {
            bail!(
                "step {} ({}) did not print {}; {}: {}\n(what the steps before made is still there: `crictl -r \
                 {endpoint} rmp -f POD` and `kina service uninstall` remove it)",
                index + 1,
                step.about,
                wanted(step),
                said.status,
                step.otherwise
            );
        }
    }
    print_line(&format!("\nAll {} steps printed what they should.", STEPS.len()))?;
    Ok(())
}

/// A directory that goes with the run.
struct WorkDirectory(PathBuf);

impl WorkDirectory {
    fn new() -> anyhow::Result<Self> {
        let path = std::env::temp_dir().join(format!("kina-first-run-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for WorkDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
