//! The service under launchd, as an agent of the user: Apple's `container` works
//! in the user's session, and only the same user may talk to it.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

use super::agent::{self, LABEL, Printed};
use super::{Host, Service, Status, Tool, write};

/// How long a service that was told to go may take: its own time to stop, and some.
const GONE_PATIENCE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(100);

/// What launchctl answers when the user has no session at the screen.
const NO_SESSION: [&str; 2] = ["Domain does not support specified action", "Could not find domain"];

/// launchd, asked through launchctl.
pub(super) struct Launchd<'a> {
    host: &'a Host,
    launchctl: Tool,
    /// How long a service that was told to go may take.
    pub(super) patience: Duration,
}

impl<'a> Launchd<'a> {
    /// Fails where there is no launchctl, and for root.
    pub(super) fn new(host: &'a Host) -> anyhow::Result<Self> {
        if host.user == 0 {
            bail!(
                "kina serves one user on a Mac, and root is none: run this without sudo, as the user who \
                 runs `container`"
            );
        }
        let launchctl = host.tool("launchctl", "launchd is on Macs only")?;
        Ok(Self { host, launchctl, patience: GONE_PATIENCE })
    }

    fn domain(&self) -> String {
        domain(self.host)
    }

    fn target(&self) -> String {
        format!("{}/{LABEL}", self.domain())
    }

    /// What launchd knows of the service; nothing if it is not loaded.
    async fn printed(&self) -> anyhow::Result<Option<Printed>> {
        let said = self.launchctl.ask(&["print", &self.target()]).await?;
        Ok(said.status.success().then(|| agent::printed(&said.stdout)))
    }

    /// Nothing is done if the same is there, loaded and not `outdated`.
    pub(super) async fn install(&self, service: &Service, outdated: bool) -> anyhow::Result<Vec<String>> {
        let (file, log) = (agent::file(&self.host.home), agent::log(&self.host.home));
        let text = agent::render(service, &self.host.home)?;
        let loaded = self.printed().await?.is_some();
        if loaded && !outdated && std::fs::read(&file).is_ok_and(|there| there == text) {
            return Ok(vec![format!("{LABEL} is installed and loaded already ({})", file.display())]);
        }
        let logs = log.parent().context("the log is in a directory")?;
        std::fs::create_dir_all(logs).with_context(|| format!("create {}", logs.display()))?;
        // First, so that a file that is the same always means that launchd has read it.
        if loaded {
            self.unload().await?;
        }
        write(&file, &text)?;
        // Somebody may have disabled it, and bootstrapping would then do nothing.
        self.launchctl.must(&["enable", &self.target()]).await?;
        self.bootstrap(&file).await?;
        Ok(vec![
            format!("wrote {}", file.display()),
            format!("loaded {}: it starts now, and whenever you log in", self.target()),
            format!("its log: {}", log.display()),
        ])
    }

    async fn bootstrap(&self, file: &Path) -> anyhow::Result<()> {
        let said = self.launchctl.ask(&["bootstrap", &self.domain(), &file.display().to_string()]).await?;
        if said.status.success() {
            return Ok(());
        }
        let words = said.words();
        if NO_SESSION.iter().any(|text| words.contains(text)) {
            bail!(
                "launchd has no session of user {} at the screen ({words}); log in at the Mac itself or by \
                 screen sharing (ssh makes no such session), then run this again",
                self.host.user
            );
        }
        bail!(
            "launchctl bootstrap: {words}; `launchctl print {}` and {} may tell more",
            self.target(),
            agent::log(&self.host.home).display()
        )
    }

    /// Takes the service out of launchd and waits until it is gone, which
    /// launchctl does not: a service that is still going cannot be loaded.
    async fn unload(&self) -> anyhow::Result<()> {
        let said = self.launchctl.ask(&["bootout", &self.target()]).await?;
        let deadline = Instant::now() + self.patience;
        while self.printed().await?.is_some() {
            if Instant::now() >= deadline {
                bail!("launchctl bootout {}: the service is still there; {}", self.target(), said.words());
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    pub(super) async fn uninstall(&self) -> anyhow::Result<Vec<String>> {
        let mut lines = Vec::new();
        if self.printed().await?.is_some() {
            self.unload().await?;
            lines.push(format!("stopped {}; pods go on", self.target()));
        }
        let file = agent::file(&self.host.home);
        if super::remove(&file)? {
            lines.push(format!("removed {}", file.display()));
        }
        Ok(lines)
    }

    pub(super) async fn status(&self) -> anyhow::Result<Status> {
        let file = agent::file(&self.host.home);
        let text = std::fs::read(&file).ok();
        let printed = self.printed().await?;
        let state = match (&text, &printed) {
            (None, None) => "not installed".to_owned(),
            (Some(_), None) => "installed, and not loaded".to_owned(),
            (_, Some(printed)) => printed.state.clone(),
        };
        let printed = printed.unwrap_or_default();
        Ok(Status {
            manager: "launchd",
            name: self.target(),
            program: text.as_deref().and_then(agent::program),
            file: text.is_some().then_some(file),
            running: printed.pid.is_some(),
            state,
            pid: printed.pid,
            last_exit: printed.last_exit,
            log: agent::log(&self.host.home).display().to_string(),
        })
    }
}

/// What an installation would do, as commands.
pub(super) fn plan(host: &Host, service: &Service) -> anyhow::Result<String> {
    let file = agent::file(&host.home);
    let text = agent::render(service, &host.home)?;
    let domain = domain(host);
    Ok(format!(
        "# launchctl bootout {domain}/{LABEL}   (if it is loaded)\n# {}\n{}\n# launchctl enable \
         {domain}/{LABEL}\n# launchctl bootstrap {domain} {}",
        file.display(),
        String::from_utf8_lossy(&text).trim_end(),
        file.display()
    ))
}

/// The session of a user at the screen.
fn domain(host: &Host) -> String {
    format!("gui/{}", host.user)
}
