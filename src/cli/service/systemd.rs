//! The service under systemd.

use std::path::{Path, PathBuf};

use anyhow::bail;

use super::unit::{self, PROPERTIES, Shown, UNIT};
use super::{Host, Service, Status, Tool, write};

/// Where administrators' units are.
pub(super) const DIRECTORY: &str = "/etc/systemd/system";

/// systemd, asked through systemctl.
pub(super) struct Systemd {
    systemctl: Tool,
    file: PathBuf,
}

impl Systemd {
    /// Fails where there is no systemctl. `directory` is where the unit is.
    pub(super) fn new(host: &Host, directory: &Path) -> anyhow::Result<Self> {
        let remedy = "start `kina serve` by what starts services here (docs/service.md says what it needs)";
        Ok(Self { systemctl: host.tool("systemctl", remedy)?, file: directory.join(UNIT) })
    }

    async fn shown(&self) -> anyhow::Result<Shown> {
        let said = self.systemctl.must(&["show", UNIT, PROPERTIES]).await?;
        Ok(unit::shown(&said.stdout))
    }

    /// A daemon that runs by the same unit is left alone, unless it is `outdated`.
    pub(super) async fn install(
        &self,
        host: &Host,
        service: &Service,
        outdated: bool,
    ) -> anyhow::Result<Vec<String>> {
        if host.user != 0 {
            bail!("only root may install a service of the system: sudo kina service install");
        }
        let text = unit::render(service)?;
        let same = std::fs::read(&self.file).is_ok_and(|there| there == text.as_bytes());
        if !same {
            write(&self.file, text.as_bytes())?;
        }
        self.systemctl.must(&["daemon-reload"]).await?;
        self.systemctl.must(&["enable", UNIT]).await?;
        if same && !outdated && self.shown().await?.active == "active" {
            return Ok(vec![format!("{UNIT} is installed and runs already ({})", self.file.display())]);
        }
        // It returns when the daemon serves.
        self.systemctl.must(&["restart", UNIT]).await?;
        Ok(vec![
            format!("{} {}", if same { "there is" } else { "wrote" }, self.file.display()),
            format!("started {UNIT}: it serves, and starts at every boot"),
            "its log: kina service logs".to_owned(),
        ])
    }

    pub(super) async fn uninstall(&self, host: &Host) -> anyhow::Result<Vec<String>> {
        if host.user != 0 {
            bail!("only root may remove a service of the system: sudo kina service uninstall");
        }
        let mut lines = Vec::new();
        if !self.file.exists() {
            let elsewhere = self.shown().await?.fragment;
            if !elsewhere.is_empty() {
                bail!(
                    "the unit is {elsewhere}, which a package brought: `systemctl disable --now {UNIT}` \
                     switches it off, removing the package removes it"
                );
            }
            return Ok(lines);
        }
        self.systemctl.must(&["disable", "--now", UNIT]).await?;
        lines.push(format!("stopped {UNIT}; pods go on"));
        if super::remove(&self.file)? {
            lines.push(format!("removed {}", self.file.display()));
        }
        self.systemctl.must(&["daemon-reload"]).await?;
        // A unit that never failed has nothing to forget, which is an error to systemctl.
        self.systemctl.ask(&["reset-failed", UNIT]).await?;
        Ok(lines)
    }

    pub(super) async fn status(&self) -> anyhow::Result<Status> {
        let shown = self.shown().await?;
        let state = match shown.load.as_str() {
            "not-found" => "not installed".to_owned(),
            _ => format!("{} ({}), {}", shown.active, shown.sub, shown.enabled),
        };
        Ok(Status {
            manager: "systemd",
            name: UNIT.to_owned(),
            file: (!shown.fragment.is_empty()).then(|| shown.fragment.clone().into()),
            program: None,
            running: shown.active == "active",
            state,
            pid: shown.pid,
            last_exit: (shown.result != "success").then(|| format!("{} ({})", shown.exit, shown.result)),
            log: format!("journalctl --unit {UNIT}"),
        })
    }
}

/// What an installation would do, as commands.
pub(super) fn plan(directory: &Path, service: &Service) -> anyhow::Result<String> {
    Ok(format!(
        "# {}\n{}\n# systemctl daemon-reload\n# systemctl enable {UNIT}\n# systemctl restart {UNIT}",
        directory.join(UNIT).display(),
        unit::render(service)?.trim_end(),
    ))
}
