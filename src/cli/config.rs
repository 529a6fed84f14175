//! `kina config`: show and check the configuration.

use std::path::PathBuf;

use clap::Subcommand;

use super::print_line;
use crate::config::{Config, default_toml};

/// What to do with the configuration.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Print the defaults with a word about each.
    Default,
    /// Check a configuration file, without starting anything.
    Check {
        /// The file [default: /etc/kina/config.toml, on a Mac ~/.kina/config.toml, or the built-in
        /// defaults if that is missing].
        file: Option<PathBuf>,
    },
    /// Print the whole configuration that a file results in.
    Show {
        /// The file [default: as for check].
        file: Option<PathBuf>,
    },
}

/// Runs one of them.
pub(super) fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Default => print_line(default_toml().trim_end())?,
        Command::Check { file } => {
            Config::load(file.as_deref())?.check()?;
            print_line("the configuration is good")?;
        }
        Command::Show { file } => {
            let config = Config::load(file.as_deref())?;
            print_line(toml::to_string_pretty(&config)?.trim_end())?;
        }
    }
    Ok(())
}
