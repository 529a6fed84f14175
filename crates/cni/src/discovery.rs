//! The directory of network configurations.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::config::{Draft, Network, Plugin};
use crate::error::{ConfigProblem, Error};
use crate::host::{Host, HostError};

/// Largest configuration in bytes.
const MAX_FILE: usize = 1 << 20;

/// Most files of one directory that are read.
const MAX_FILES: usize = 1000;

/// What lies in a configuration directory, in order: the first usable
/// configuration is the one for containers that ask for none.
#[derive(Debug, Default)]
pub struct Configurations {
    /// Each file with its network, or what is wrong with it.
    pub files: Vec<ConfigFile>,
}

/// A file of a configuration directory.
#[derive(Debug)]
pub struct ConfigFile {
    /// The file.
    pub path: PathBuf,
    /// Its network.
    pub network: Result<Network, Error>,
}

impl Configurations {
    /// The first usable network, passing over broken files, as CRI-O does.
    #[must_use]
    pub fn first_usable(&self) -> Option<&Network> {
        self.files.iter().find_map(|file| file.network.as_ref().ok())
    }

    /// The network of the first file, broken or not, as containerd does: who
    /// keeps the last good one does so when this is an error.
    #[must_use]
    pub fn first(&self) -> Option<&ConfigFile> {
        self.files.first()
    }

    /// The first usable network of a name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Network> {
        self.files.iter().filter_map(|file| file.network.as_ref().ok()).find(|network| network.name() == name)
    }

    /// The files that are not usable, with the reasons.
    pub fn broken(&self) -> impl Iterator<Item = (&Path, &Error)> {
        self.files.iter().filter_map(|file| Some((file.path.as_path(), file.network.as_ref().err()?)))
    }
}

/// Reads a configuration directory: files whose names end in `.conf`,
/// `.conflist` or `.json`, ordered by the bytes of their names.
///
/// `.conflist` files hold a list of plugins; the files
/// `<directory>/<network>/*.conf` belong to it unless it says
/// `loadOnlyInlinedPlugins`. The others hold one plugin. Files that begin with
/// a dot are left out. A directory that does not exist is empty.
///
/// # Errors
/// The directory cannot be listed. Files that are not usable are no error: they
/// are in the list with the reason.
pub async fn load_directory(host: &dyn Host, directory: &Path) -> Result<Configurations, Error> {
    let listed = list(host, directory, &["conf", "conflist", "json"]).await;
    let paths = listed.map_err(|source| Error::List { path: directory.to_owned(), source })?;
    let mut files = Vec::new();
    for path in paths {
        let network = load_file(host, &path).await;
        files.push(ConfigFile { path, network });
    }
    Ok(Configurations { files })
}

/// Reads one file of a configuration directory, and what belongs to it.
///
/// # Errors
/// [`Error::Config`].
pub async fn load_file(host: &dyn Host, path: &Path) -> Result<Network, Error> {
    let loaded = if path.extension() == Some(OsStr::new("conflist")) {
        load_list(host, path).await
    } else {
        read(host, path).await.and_then(|json| Network::from_single(&json))
    };
    loaded.map_err(|problem| Error::Config { origin: path.display().to_string(), problem })
}

async fn load_list(host: &dyn Host, path: &Path) -> Result<Network, ConfigProblem> {
    let Draft { network, load_only_inlined } = Draft::from_list(&read(host, path).await?)?;
    let mut siblings = Vec::new();
    if !load_only_inlined {
        let directory = path.with_file_name(network.name());
        for path in list(host, &directory, &["conf"]).await.map_err(ConfigProblem::Unreadable)? {
            let plugin = read(host, &path).await.and_then(|json| Plugin::from_json(&json));
            siblings.push(plugin.map_err(|problem| {
                let problem = Box::new(problem);
                ConfigProblem::Sibling { path, problem }
            })?);
        }
    }
    Draft { network, load_only_inlined }.with_siblings(siblings)
}

async fn read(host: &dyn Host, path: &Path) -> Result<Vec<u8>, ConfigProblem> {
    let read = host.read_file(path, MAX_FILE).await.map_err(ConfigProblem::Unreadable)?;
    read.ok_or(ConfigProblem::Gone)
}

/// The files of a directory that have one of the extensions, ordered.
async fn list(host: &dyn Host, directory: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, HostError> {
    let mut names = host.list_directory(directory).await?;
    names.retain(|name| {
        let extension = Path::new(name).extension().and_then(OsStr::to_str);
        !name.starts_with('.') && extension.is_some_and(|extension| extensions.contains(&extension))
    });
    if names.len() > MAX_FILES {
        return Err(format!("more than {MAX_FILES} configurations").into());
    }
    names.sort();
    Ok(names.into_iter().map(|name| directory.join(name)).collect())
}
