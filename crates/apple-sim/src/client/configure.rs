//! From the options of `run` and `create` to a container (`Utility.containerConfigFromFlags`),
//! with its order of checks: what is wrong with a value is found after the image is.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use serde_json::json;

use super::{Client, MINUTE, TEN_SECONDS, host_platform};
use crate::arguments::Matches;
use crate::error::{Code, Failure, Problem};
use crate::images::{Images, normalize};
use crate::protocol::{Answer, Request};
use crate::resources::{
    AttachmentConfiguration, AttachmentOptions, Configuration, Dns, Filesystem, FilesystemKind,
    ImageDescription, Network, Platform, Volume, now,
};
use crate::settings::Release;
use crate::values::{self, Mounted, ParsedNetwork};

/// No network.
const NO_NETWORK: &str = "none";
/// The most published ports.
const MOST_PORTS: usize = 64;

/// Whether a container may be called so.
pub(super) fn valid_name(name: &str, release: Release) -> bool {
    let ordinary = |letter: char| letter.is_ascii_alphanumeric() || "_.-".contains(letter);
    let longest = if release >= Release::V1_2_0 { 63 } else { usize::MAX };
    (2..=longest).contains(&name.len())
        && name.starts_with(|letter: char| letter.is_ascii_alphanumeric())
        && name.chars().all(ordinary)
}

/// A name for what has none.
pub(super) fn generated_name() -> Result<String, Problem> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = hex::encode(bytes);
    Ok(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
}

/// The container that the options describe, and words for its kernel.
pub(super) fn configuration(
    client: &Client,
    matches: &Matches,
    id: &str,
) -> Result<(Configuration, Vec<String>), Failure> {
    if matches.flag("no-dns")
        && ["dns", "dns-domain", "dns-option", "dns-search"].iter().any(|key| matches.one(key).is_some())
    {
        // Checked before anything is asked of the server; see `Flags.Management.validate`.
        return Err(Failure::usage(
            "`--no-dns` cannot be used with DNS configuration flags (`--dns`, `--dns-domain`, `--dns-option`, `--dns-search`)",
        ));
    }
    let platform = platform(matches)?;
    check_scheme(matches)?;
    let (name, arguments) = (matches.positional(0), matches.positionals().get(1..).unwrap_or_default());
    let image = fetch(client, matches, name, &platform)?;
    let kernel_arguments = kernel(client, matches)?;
    if let Some(init) = matches.one("init-image") {
        fetch(client, matches, init, &host_platform())?;
    }
    let config = Images::new(&client.place.root).config(&image, &platform)?;
    let init_process = values::process(matches, arguments, &config)?;
    let resources = values::resources(matches)?;
    let mounts = mounts(client, matches)?;
    let shm_size = matches.one("shm-size").map(values::bytes).transpose()?;
    let networks = networks(client, matches, id)?;
    let dns = (!matches.flag("no-dns")).then(|| Dns {
        nameservers: matches.all("dns").to_vec(),
        domain: matches.one("dns-domain").map(str::to_owned),
        search_domains: matches.all("dns-search").to_vec(),
        options: matches.all("dns-option").to_vec(),
    });
    let host_architecture = host_platform().architecture;
    if matches.flag("rosetta") && host_architecture != "arm64" {
        return Err(Problem::new(Code::Unsupported, "--rosetta flag requires an arm64 host").into());
    }
    let rosetta =
        matches.flag("rosetta") || (host_architecture == "arm64" && platform.architecture == "amd64");
    let labels = values::labels(matches.all("label"))?;
    let published_ports: Vec<_> =
        matches.all("publish").iter().map(|text| values::port(text)).collect::<Result<_, _>>()?;
    if published_ports.len() > MOST_PORTS {
        let message = format!("cannot exceed more than {MOST_PORTS} port publish descriptors");
        return Err(Problem::invalid(message).into());
    }
    if values::overlap(&published_ports) {
        let message = "host ports for different publish port specs may not overlap";
        return Err(Problem::invalid(message).into());
    }
    let published_sockets =
        matches.all("publish-socket").iter().map(|text| values::socket(text)).collect::<Result<_, _>>()?;
    let configuration = Configuration {
        id: id.to_owned(),
        image,
        mounts,
        published_ports,
        published_sockets,
        labels,
        sysctls: BTreeMap::new(),
        networks,
        dns,
        rosetta,
        init_process,
        platform,
        resources,
        runtime_handler: matches.one("runtime").unwrap_or("container-runtime-linux").to_owned(),
        virtualization: matches.flag("virtualization"),
        ssh: matches.flag("ssh"),
        read_only: matches.flag("read-only"),
        use_init: matches.flag("init"),
        cap_add: values::capabilities(matches.all("cap-add"))?,
        cap_drop: values::capabilities(matches.all("cap-drop"))?,
        shm_size,
        stop_signal: config.stop_signal,
        masked_paths: values::masked(matches.all("masked-path"))?,
        readonly_paths: values::readonly(matches.all("read-only-path"))?,
        creation_date: now(),
    };
    Ok((configuration, kernel_arguments))
}

/// The platform that is asked for (`DefaultPlatform.resolveWithDefaults`).
pub(super) fn platform(matches: &Matches) -> Result<Platform, Problem> {
    if let Some(text) = matches.one("platform") {
        return parse_platform(text);
    }
    if let Ok(text) = std::env::var("CONTAINER_DEFAULT_PLATFORM")
        && !text.is_empty()
    {
        return parse_platform(&text).map_err(|problem| Problem {
            cause: Some(problem.to_string()),
            ..Problem::invalid(format!(
                "invalid platform \"{text}\" in CONTAINER_DEFAULT_PLATFORM environment variable"
            ))
        });
    }
    let host = host_platform();
    Ok(Platform {
        os: matches.one("os").unwrap_or("linux").to_owned(),
        architecture: matches.one("arch").map_or(host.architecture, canonical),
        variant: None,
    })
}

fn canonical(architecture: &str) -> String {
    match architecture {
        "arm" | "armhf" | "armel" => "arm",
        "aarch64" | "arm64" => "arm64",
        "x86_64" | "x86-64" | "amd64" => "amd64",
        other => other,
    }
    .to_owned()
}

fn parse_platform(text: &str) -> Result<Platform, Problem> {
    let (os, rest) = text.split_once('/').unwrap_or((text, ""));
    if !matches!(os, "linux" | "windows" | "darwin") {
        return Err(Problem::invalid(format!("unknown OS in {os}")));
    }
    let (architecture, variant) = match rest.split_once('/') {
        Some((architecture, variant)) => (architecture, Some(variant.to_owned())),
        None => (rest, None),
    };
    if architecture.is_empty() {
        return Err(Problem::invalid(format!("missing architecture in {text}")));
    }
    let architecture = canonical(architecture);
    let variant = variant.or_else(|| (architecture == "arm64").then(|| "v8".to_owned()));
    Ok(Platform { os: os.to_owned(), architecture, variant })
}

/// Errors if `--scheme` is none.
pub(super) fn check_scheme(matches: &Matches) -> Result<(), Problem> {
    match matches.one("scheme").unwrap_or("auto") {
        "http" | "https" | "auto" => Ok(()),
        other => Err(Problem::invalid(format!("unsupported scheme {other}"))),
    }
}

/// Finds an image, or has it pulled.
fn fetch(
    client: &Client,
    matches: &Matches,
    name: &str,
    platform: &Platform,
) -> Result<ImageDescription, Problem> {
    let normalized = normalize(name)?;
    let Answer::Images(images) = client.ask(&Request::ImageList, None)? else {
        return Err(Problem::internal("no images"));
    };
    let found = images.into_iter().find(|image| image.reference == name || image.reference == normalized);
    if let Some(image) = found {
        Images::new(&client.place.root).config(&image, platform)?;
        return Ok(image);
    }
    let downloads: i64 = matches.number("max-concurrent-downloads").unwrap_or(3);
    if downloads <= 0 {
        return Err(Problem::invalid(format!(
            "maximum number of concurrent downloads must be greater than 0, got {downloads}"
        )));
    }
    client.ask(&Request::ImagePull { reference: normalized }, None)?;
    Err(Problem::new(Code::NotFound, format!("image with reference {name}")))
}

/// The kernel must be there; words for its command line.
fn kernel(client: &Client, matches: &Matches) -> Result<Vec<String>, Problem> {
    match matches.one("kernel") {
        Some(path) => {
            let path = values::absolute(path);
            File::open(&path).map_err(|_| {
                let message = format!("kernel file not found at path {}", path.display());
                Problem::new(Code::NotFound, message)
            })?;
        }
        None => {
            client.ask(&Request::GetDefaultKernel, None).map_err(|problem| match problem.code {
                Code::NotFound => Problem::new(
                    Code::NotFound,
                    format!(
                        "default kernel not configured for architecture {}, please use the `container system kernel set` command to configure it",
                        host_platform().architecture
                    ),
                ),
                _ => problem,
            })?;
        }
    }
    Ok(matches.all("kernel-arg").to_vec())
}

fn mounts(client: &Client, matches: &Matches) -> Result<Vec<Filesystem>, Problem> {
    let distinct = |key: &str| {
        let mut seen = Vec::new();
        for value in matches.all(key) {
            if !seen.contains(value) {
                seen.push(value.clone());
            }
        }
        seen
    };
    let mut mounts: Vec<Filesystem> =
        distinct("tmpfs").iter().map(|path| values::tmpfs(path)).collect::<Result<_, _>>()?;
    let volumes: Vec<Mounted> =
        matches.all("volume").iter().map(|text| values::volume(text)).collect::<Result<_, _>>()?;
    let others: Vec<Mounted> =
        distinct("mount").iter().map(|text| values::mount(text)).collect::<Result<_, _>>()?;
    for mounted in volumes.into_iter().chain(others) {
        mounts.push(match mounted {
            Mounted::Filesystem(filesystem) => filesystem,
            Mounted::Volume { name, destination, options } => {
                volume_mount(client, name, destination, options)?
            }
        });
    }
    Ok(mounts)
}

/// A mount of a volume, which is made if it is not there.
fn volume_mount(
    client: &Client,
    name: Option<String>,
    destination: String,
    options: Vec<String>,
) -> Result<Filesystem, Problem> {
    let anonymous = name.is_none();
    let name = name.map_or_else(generated_name, Ok)?;
    let Answer::Volumes(known) = client.ask(&Request::VolumeList, None)? else {
        return Err(Problem::internal("no volumes"));
    };
    let volume = match known.into_iter().find(|volume| volume.name == name) {
        Some(volume) => volume,
        None => {
            let label = ("com.apple.container.resource.anonymous".to_owned(), String::new());
            let labels = if anonymous { BTreeMap::from([label]) } else { BTreeMap::new() };
            super::volume::make(client, &name, labels, BTreeMap::new(), None)?
        }
    };
    let Volume { name, format, source, .. } = volume;
    Ok(Filesystem {
        kind: FilesystemKind::Volume {
            name,
            format,
            cache: json!({ "on": {} }),
            sync: json!({ "fsync": {} }),
        },
        source,
        destination,
        options,
    })
}

fn networks(client: &Client, matches: &Matches, id: &str) -> Result<Vec<AttachmentConfiguration>, Problem> {
    let given = matches.all("network");
    let parsed: Vec<ParsedNetwork> =
        given.iter().map(|text| values::network(text)).collect::<Result<_, _>>()?;
    if given.iter().any(|name| name == NO_NETWORK) {
        if given.len() > 1 {
            let message = format!("no other networks may be created along with network {NO_NETWORK}");
            return Err(Problem::new(Code::Unsupported, message));
        }
        return Ok(Vec::new());
    }
    let Answer::Networks(known) = client.ask(&Request::NetworkList, TEN_SECONDS)? else {
        return Err(Problem::internal("no networks"));
    };
    let builtin = known.iter().find(|network| network.is_builtin());
    for network in &parsed {
        if let Some(mac) = &network.mac {
            values::valid_mac(mac)?;
        }
    }
    // An id with dots is a name in full.
    let hostname = if id.contains('.') { format!("{id}.") } else { id.to_owned() };
    let wanted = if parsed.is_empty() {
        let Some(builtin) = builtin else {
            return Err(Problem::new(Code::InvalidState, "builtin network is not present"));
        };
        vec![ParsedNetwork { name: builtin.id.clone(), mac: None, mtu: None }]
    } else {
        parsed
    };
    let exists = |name: &str| known.iter().any(|network: &Network| network.id == name);
    wanted
        .into_iter()
        .enumerate()
        .map(|(index, network)| {
            if !exists(&network.name) {
                let message = format!("network {} not found", network.name);
                return Err(Problem::new(Code::NotFound, message));
            }
            Ok(AttachmentConfiguration {
                network: network.name,
                options: AttachmentOptions {
                    hostname: if index == 0 { hostname.clone() } else { id.to_owned() },
                    mac_address: network.mac.map(|mac| mac.to_lowercase().replace('-', ":")),
                    mtu: Some(network.mtu.unwrap_or(1280)),
                },
            })
        })
        .collect()
}

/// Asks the server to make a container.
pub(super) fn create(client: &Client, matches: &Matches, id: &str) -> Result<(), Failure> {
    let (configuration, kernel_arguments) = configuration(client, matches, id)?;
    let request = Request::ContainerCreate {
        configuration: Box::new(configuration),
        auto_remove: matches.flag("rm"),
        kernel_arguments,
    };
    client.ask(&request, MINUTE)?;
    Ok(())
}

/// Writes the id where `--cidfile` says.
pub(super) fn write_id(matches: &Matches, id: &str) -> Result<(), Problem> {
    match matches.one("cidfile") {
        None | Some("") => Ok(()),
        Some(path) => std::fs::write(Path::new(path), id).map_err(|error| {
            let number = error.raw_os_error().unwrap_or(0);
            Problem::internal(format!("failed to create cidfile at {path}: {number}"))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_containers() {
        let newest = Release::V1_2_2;
        for name in ["a1", "A.b_c-d", &"x".repeat(63)] {
            assert!(valid_name(name, newest), "{name}");
        }
        for name in ["", "a", "-ab", ".ab", "a b", "a/b", &"x".repeat(64)] {
            assert!(!valid_name(name, newest), "{name}");
        }
        assert!(valid_name(&"x".repeat(64), Release::V1_1_0));
        let generated = generated_name().unwrap();
        assert!(generated.len() == 36 && valid_name(&generated, newest));
    }

    #[test]
    fn platforms_have_aliases() {
        let platform = parse_platform("linux/aarch64").unwrap();
        assert_eq!((platform.architecture.as_str(), platform.variant.as_deref()), ("arm64", Some("v8")));
        assert_eq!(parse_platform("linux/x86_64").unwrap().architecture, "amd64");
        assert!(parse_platform("plan9/amd64").is_err() && parse_platform("linux").is_err());
    }
}
