//! Where kina's things are unless the configuration says otherwise.
//!
//! On Linux the daemon is root's, and its places are the system's. On a Mac it
//! belongs to the user in whose session it runs, because Apple's `container`
//! does; so do its places, all in one directory with a short name: the sockets
//! of machines lie in it, and their paths have little room.

use std::path::{Path, PathBuf};

/// The places that depend on the platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locations {
    /// The configuration file.
    pub config: PathBuf,
    /// What lasts.
    pub root: PathBuf,
    /// What does not outlive a boot.
    pub run: PathBuf,
}

impl Locations {
    /// Those of an operating system, named as [`std::env::consts::OS`] does.
    #[must_use]
    pub fn of(system: &str, home: &Path) -> Self {
        match system {
            "macos" => {
                let directory = home.join(".kina");
                Self {
                    config: directory.join("config.toml"),
                    root: directory.join("data"),
                    run: directory.join("run"),
                }
            }
            _ => Self {
                config: "/etc/kina/config.toml".into(),
                root: "/var/lib/kina".into(),
                run: "/run/kina".into(),
            },
        }
    }

    /// Those of this process.
    #[must_use]
    pub fn here() -> Self {
        Self::of(std::env::consts::OS, &home())
    }
}

/// The home directory of this process's user. A user without one gets a path
/// that cannot be written to.
pub(crate) fn home() -> PathBuf {
    std::env::home_dir().filter(|home| home.is_absolute()).unwrap_or_else(|| "/var/empty".into())
}

/// The text of the defaults with the values of a platform's places.
pub(super) fn localised(text: &str, locations: &Locations) -> String {
    let quoted = |path: &Path| toml::Value::String(path.display().to_string()).to_string();
    let root = format!("root = {}", quoted(&locations.root));
    let run = format!("run = {}", quoted(&locations.run));
    let lines = text.lines().map(|line| match line {
        _ if line.starts_with("root = ") => root.as_str(),
        _ if line.starts_with("run = ") => run.as_str(),
        _ => line,
    });
    lines.flat_map(|line| [line, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, DEFAULT_TOML, SOCKET_PATH_LIMIT};

    #[test]
    fn a_mac_s_places_are_the_user_s() {
        let locations = Locations::of("macos", Path::new("/Users/a"));
        assert_eq!(locations.config, Path::new("/Users/a/.kina/config.toml"));
        for (system, home) in [("macos", "/Users/a \"b\""), ("linux", "/root")] {
            let locations = Locations::of(system, Path::new(home));
            let text = localised(DEFAULT_TOML, &locations);
            let config = Config::parse(&text, Path::new("test.toml")).unwrap();
            let expected =
                Config { root: locations.root.clone(), run: locations.run.clone(), ..Config::default() };
            assert_eq!(config, expected);
            assert!(config.check().is_ok());
            assert_eq!(text.lines().count(), DEFAULT_TOML.lines().count());
        }
    }

    #[test]
    fn a_long_user_name_leaves_room_for_the_socket() {
        let locations = Locations::of("macos", Path::new("/Users/a-name-of-thirty-one-characters"));
        let config = Config { run: locations.run, ..Config::default() };
        assert!(config.socket_path().as_os_str().len() < SOCKET_PATH_LIMIT - 40);
    }
}
