//! The unit by which systemd runs kina. Pure.

use anyhow::bail;

use super::Service;

/// The unit's name.
pub(super) const UNIT: &str = "kina.service";

/// The unit's text.
///
/// # Errors
/// When a path has characters that mean something to systemd.
pub(super) fn render(service: &Service) -> anyhow::Result<String> {
    let words: Vec<String> = service.command().iter().map(|word| quoted(word)).collect::<Result<_, _>>()?;
    let command = words.join(" ");
    Ok(format!(
        "# Written by `kina service install`, and again by the next one: changes belong into a\n\
         # drop-in (`systemctl edit kina`).\n\
         [Unit]\n\
         Description=kina, which gives every Kubernetes pod a machine of its own\n\
         After=network.target local-fs.target\n\
         Before=kubelet.service\n\
         # A node without its runtime is of no use: starting is tried for as long as it takes.\n\
         StartLimitIntervalSec=0\n\
         \n\
         [Service]\n\
         Type=notify\n\
         NotifyAccess=main\n\
         # Layers, and the network of machines. What is built in or missing is no failure.\n\
         ExecStartPre=-/sbin/modprobe --all --quiet overlay erofs loop tun vxlan\n\
         ExecStart={command}\n\
         Restart=always\n\
         RestartSec=2\n\
         # A configuration that makes no sense does not get better by trying again.\n\
         RestartPreventExitStatus=64\n\
         # A start reads what runs and cleans what is half made; a stop waits for calls.\n\
         TimeoutStartSec=300\n\
         TimeoutStopSec=30\n\
         # Pods outlive the daemon: systemd leaves their guests, machines, cgroups and\n\
         # sockets alone. For the same reason it gives the daemon no mounts of its own\n\
         # (no ProtectSystem=, no PrivateTmp=).\n\
         KillMode=process\n\
         Delegate=yes\n\
         RuntimeDirectory=kina\n\
         RuntimeDirectoryMode=0711\n\
         RuntimeDirectoryPreserve=yes\n\
         StateDirectory=kina\n\
         StateDirectoryMode=0711\n\
         # Containers start with these limits, too.\n\
         LimitNOFILE=65536:1048576\n\
         LimitNPROC=infinity\n\
         LimitCORE=infinity\n\
         TasksMax=infinity\n\
         # When memory runs out pods go first. Guests and containers get scores of their own.\n\
         OOMScoreAdjust=-999\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n"
    ))
}

/// A word of a command line in a unit.
fn quoted(word: &str) -> anyhow::Result<String> {
    if let Some(odd) = word.chars().find(|char| char.is_control() || "\"'\\%$;".contains(*char)) {
        bail!("{word:?}: {odd:?} means something else in a unit of systemd; use another path");
    }
    Ok(if word.contains(' ') { format!("\"{word}\"") } else { word.to_owned() })
}

/// What `systemctl show` tells of the unit.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Shown {
    /// `loaded`, `not-found` ...
    pub(super) load: String,
    /// `enabled`, `disabled` ...; empty where there is no file.
    pub(super) enabled: String,
    /// `active`, `activating`, `failed` ...
    pub(super) active: String,
    /// `running`, `auto-restart` ...
    pub(super) sub: String,
    /// The daemon's process.
    pub(super) pid: Option<u32>,
    /// `success`, `exit-code`, `signal`, `timeout` ...
    pub(super) result: String,
    /// The last exit code.
    pub(super) exit: String,
    /// Where the unit is.
    pub(super) fragment: String,
}

/// The properties asked for.
pub(super) const PROPERTIES: &str =
    "--property=LoadState,UnitFileState,ActiveState,SubState,MainPID,Result,ExecMainStatus,FragmentPath";

/// Reads them.
pub(super) fn shown(text: &str) -> Shown {
    let value = |key: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        found.unwrap_or_default().to_owned()
    };
    Shown {
        load: value("LoadState"),
        enabled: value("UnitFileState"),
        active: value("ActiveState"),
        sub: value("SubState"),
        pid: value("MainPID").parse().ok().filter(|pid| *pid != 0),
        result: value("Result"),
        exit: value("ExecMainStatus"),
        fragment: value("FragmentPath"),
    }
}
