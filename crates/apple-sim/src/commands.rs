//! The commands and their options, as `ContainerCommands` of apple/container declares them
//! (`Sources/ContainerCommands`, `Sources/Services/ContainerAPIService/Client/Flags.swift`).

use crate::arguments::{Command, Definition, Kind, Positional};
use crate::settings::Release;

const UINT32: Kind = Kind::Integer(0, u32::MAX as i128);
const INT32: Kind = Kind::Integer(i32::MIN as i128, i32::MAX as i128);
const INT64: Kind = Kind::Integer(i64::MIN as i128, i64::MAX as i128);
const FORMATS: Kind = Kind::OneOf(&["json", "table", "yaml", "toml"]);
const PROGRESS: Kind = Kind::OneOf(&["auto", "none", "ansi", "plain", "color"]);

const fn flag(long: &'static [&'static str], about: &'static str) -> Definition {
    Definition::flag(None, long, about)
}

const fn short_flag(short: char, long: &'static [&'static str], about: &'static str) -> Definition {
    Definition::flag(Some(short), long, about)
}

const fn option(long: &'static [&'static str], value: &'static str, about: &'static str) -> Definition {
    Definition::option(None, long, value, about)
}

const fn short(
    short: char,
    long: &'static [&'static str],
    value: &'static str,
    about: &'static str,
) -> Definition {
    Definition::option(Some(short), long, value, about)
}

const LOGGING: &[Definition] = &[flag(&["debug"], "Debug output")];

const PROCESS: &[Definition] = &[
    short('e', &["env"], "env", "Environment variables").repeated(),
    option(&["env-file"], "env-file", "A file of environment variables").repeated(),
    option(&["gid"], "gid", "The group id of the process").of(UINT32),
    short_flag('i', &["interactive"], "Keep the standard input open"),
    short_flag('t', &["tty"], "A terminal for the process"),
    short('u', &["user"], "user", "The user of the process"),
    option(&["uid"], "uid", "The user id of the process").of(UINT32),
    short('w', &["workdir", "cwd"], "dir", "The working directory"),
    option(&["ulimit"], "limit", "Resource limits").repeated(),
];

const RESOURCES: &[Definition] = &[
    short('c', &["cpus"], "cpus", "The number of CPUs").of(INT64),
    short('m', &["memory"], "memory", "The amount of memory"),
];

const MANAGEMENT: &[Definition] = &[
    short('a', &["arch"], "arch", "The architecture of the image"),
    option(&["cap-add"], "cap", "A capability more").repeated(),
    option(&["cap-drop"], "cap", "A capability less").repeated(),
    option(&["cidfile"], "cidfile", "Where to write the id"),
    short_flag('d', &["detach"], "Do not wait for the process"),
    option(&["dns"], "ip", "A name server").repeated(),
    option(&["dns-domain"], "domain", "The default domain"),
    option(&["dns-option"], "option", "Options of the resolver").repeated(),
    option(&["dns-search"], "domain", "Domains to search").repeated(),
    option(&["entrypoint"], "cmd", "Instead of the image's entry point"),
    flag(&["init"], "Run an init process"),
    option(&["init-image"], "image", "Instead of the default init image"),
    short('k', &["kernel"], "path", "A kernel"),
    option(&["kernel-arg"], "arg", "A word for the kernel's command line").repeated().since(Release::V1_2_0),
    short('l', &["label"], "label", "A label").repeated(),
    option(&["masked-path"], "path", "A path to hide, or NONE").repeated().since(Release::V1_2_1),
    option(&["mount"], "mount", "A mount").repeated(),
    option(&["name"], "name", "The id"),
    option(&["network"], "network", "A network").repeated(),
    flag(&["no-dns"], "No name servers"),
    option(&["os"], "os", "The operating system of the image"),
    short('p', &["publish"], "spec", "A port").repeated(),
    option(&["platform"], "platform", "The platform of the image"),
    option(&["publish-socket"], "spec", "A socket").repeated(),
    flag(&["read-only"], "A root that cannot be written"),
    option(&["read-only-path"], "path", "A path that cannot be written, or NONE")
        .repeated()
        .since(Release::V1_2_1),
    flag(&["rm", "remove"], "Remove it when it stops"),
    flag(&["rosetta"], "Rosetta"),
    option(&["runtime"], "runtime", "The runtime"),
    flag(&["ssh"], "The SSH agent's socket"),
    option(&["shm-size"], "shm-size", "The size of /dev/shm"),
    option(&["tmpfs"], "tmpfs", "A tmpfs").repeated(),
    flag(&["virtualization"], "Virtualization inside"),
    short('v', &["volume"], "volume", "A volume").repeated(),
];

const REGISTRY: &[Definition] = &[option(&["scheme"], "scheme", "http, https or auto")];
const PROGRESS_OPTIONS: &[Definition] = &[option(&["progress"], "type", "How to show progress").of(PROGRESS)];
const FETCH: &[Definition] =
    &[option(&["max-concurrent-downloads"], "max-concurrent-downloads", "How many downloads at once")
        .of(INT64)];
const FORMAT: Definition = option(&["format"], "format", "The format of the output").of(FORMATS);
const QUIET: Definition = short_flag('q', &["quiet"], "Names only");
const ALL: Definition = short_flag('a', &["all"], "All");
const IMAGE: Positional = Positional::one("image", "Image name");
const ID: Positional = Positional::one("container-id", "Container ID");
const IDS: Positional = Positional::any("container-ids", "Container IDs");

const fn command(
    path: &'static [&'static str],
    options: &'static [&'static [Definition]],
    positionals: &'static [Positional],
) -> Command {
    Command { path, aliases: &[], options, positionals }
}

const fn alias(mut command: Command, aliases: &'static [&'static str]) -> Command {
    command.aliases = aliases;
    command
}

/// Every command.
pub const COMMANDS: &[Command] = &[
    command(
        &["run"],
        &[PROCESS, RESOURCES, MANAGEMENT, REGISTRY, PROGRESS_OPTIONS, FETCH, LOGGING],
        &[IMAGE, Positional::rest("arguments", "Container init process arguments", true)],
    ),
    command(
        &["create"],
        &[PROCESS, RESOURCES, MANAGEMENT, REGISTRY, FETCH, LOGGING],
        &[IMAGE, Positional::rest("arguments", "Container init process arguments", true)],
    ),
    command(
        &["start"],
        &[
            &[
                short_flag('a', &["attach"], "Attach output"),
                short_flag('i', &["interactive"], "Attach input"),
            ],
            LOGGING,
        ],
        &[ID],
    ),
    command(
        &["stop"],
        &[
            &[
                ALL,
                short('s', &["signal"], "signal", "The signal"),
                short('t', &["time"], "time", "Seconds to wait before killing").of(INT32),
            ],
            LOGGING,
        ],
        &[IDS],
    ),
    command(&["kill"], &[&[ALL, short('s', &["signal"], "signal", "The signal")], LOGGING], &[IDS]),
    alias(
        command(&["delete"], &[&[ALL, short_flag('f', &["force"], "Even if it runs")], LOGGING], &[IDS]),
        &["rm"],
    ),
    alias(command(&["list"], &[&[ALL, FORMAT, QUIET], LOGGING], &[]), &["ls"]),
    command(&["inspect"], &[LOGGING], &[Positional::some("container-ids", "Container IDs to inspect")]),
    command(
        &["exec"],
        &[PROCESS, LOGGING, &[short_flag('d', &["detach"], "Do not wait for the process")]],
        &[ID, Positional::rest("arguments", "New process arguments", false)],
    ),
    command(
        &["logs"],
        &[
            &[
                flag(&["boot"], "The log of the boot"),
                short_flag('f', &["follow"], "Go on"),
                Definition::option(Some('n'), &[], "num-lines", "How many lines from the end").of(INT64),
            ],
            LOGGING,
        ],
        &[ID],
    ),
    command(
        &["stats"],
        &[&[FORMAT, flag(&["no-stream"], "Once")], LOGGING],
        &[Positional::any("containers", "Container IDs")],
    ),
    command(
        &["system", "start"],
        &[
            &[
                short('a', &["app-root"], "app-root", "Where data lies"),
                option(&["install-root"], "install-root", "Where programs lie"),
                option(&["log-root"], "log-root", "Where logs lie"),
                flag(&["enable-kernel-install"], "Install the default kernel"),
                flag(&["disable-kernel-install"], "Do not"),
                option(&["timeout"], "timeout", "Seconds to wait").of(Kind::Checked(seconds)),
            ],
            LOGGING,
        ],
        &[],
    ),
    command(&["system", "stop"], &[&[PREFIX], LOGGING], &[]),
    command(&["system", "status"], &[&[PREFIX, FORMAT], LOGGING], &[]),
    command(&["system", "version"], &[&[FORMAT], LOGGING], &[]),
    command(
        &["system", "kernel", "set"],
        &[
            &[
                option(&["arch"], "arch", "The architecture of the kernel"),
                option(&["binary"], "binary", "The kernel's file"),
                flag(&["force"], "Overwrite"),
                flag(&["recommended"], "The recommended one"),
                option(&["tar"], "tar", "An archive with the kernel"),
                option(&["digest"], "digest", "The archive's digest"),
            ],
            LOGGING,
        ],
        &[],
    ),
    command(
        &["network", "create"],
        &[
            &[
                flag(&["internal"], "Host only"),
                option(&["label"], "label", "A label").repeated(),
                option(&["option"], "option", "An option of the plugin").repeated(),
                option(&["plugin"], "plugin", "The plugin"),
                option(&["subnet"], "subnet", "The IPv4 subnet").of(Kind::Checked(ipv4_subnet)),
                option(&["subnet-v6"], "subnet-v6", "The IPv6 prefix").of(Kind::Checked(ipv6_subnet)),
            ],
            LOGGING,
        ],
        &[Positional::one("name", "Network name")],
    ),
    alias(
        command(
            &["network", "delete"],
            &[&[ALL], LOGGING],
            &[Positional::any("network-names", "Network names")],
        ),
        &["rm"],
    ),
    alias(command(&["network", "list"], &[&[FORMAT, QUIET], LOGGING], &[]), &["ls"]),
    command(&["network", "inspect"], &[LOGGING], &[Positional::some("networks", "Networks to inspect")]),
    alias(
        command(&["image", "list"], &[&[FORMAT, QUIET, short_flag('v', &["verbose"], "More")], LOGGING], &[]),
        &["ls"],
    ),
    command(&["image", "inspect"], &[LOGGING], &[Positional::some("images", "Images to inspect")]),
    command(
        &["image", "load"],
        &[
            &[
                short('i', &["input"], "input", "The archive"),
                short_flag('f', &["force"], "Even if some files are not valid"),
            ],
            LOGGING,
        ],
        &[],
    ),
    command(
        &["image", "pull"],
        &[
            REGISTRY,
            PROGRESS_OPTIONS,
            FETCH,
            LOGGING,
            &[
                short('a', &["arch"], "arch", "The architecture"),
                option(&["os"], "os", "The operating system"),
                option(&["platform"], "platform", "The platform"),
            ],
        ],
        &[Positional::one("reference", "Image name")],
    ),
    alias(
        command(
            &["image", "delete"],
            &[&[ALL, short_flag('f', &["force"], "Ignore what is not found")], LOGGING],
            &[Positional::any("images", "Images")],
        ),
        &["rm"],
    ),
    command(
        &["image", "tag"],
        &[LOGGING],
        &[
            Positional::one("source", "The existing reference"),
            Positional::one("target", "The new reference"),
        ],
    ),
    command(
        &["volume", "create"],
        &[
            &[
                Definition::option(Some('s'), &[], "size", "The size"),
                option(&["opt"], "driver-opts", "An option of the driver").repeated(),
                option(&["label"], "labels", "A label").repeated(),
            ],
            LOGGING,
        ],
        &[Positional::one("name", "Volume name")],
    ),
    alias(
        command(&["volume", "delete"], &[&[ALL], LOGGING], &[Positional::any("names", "Volume names")]),
        &["rm"],
    ),
    alias(command(&["volume", "list"], &[&[FORMAT, QUIET], LOGGING], &[]), &["ls"]),
    command(&["volume", "inspect"], &[LOGGING], &[Positional::some("names", "Volume names")]),
];

const PREFIX: Definition = short('p', &["prefix"], "prefix", "The prefix of the services");

fn seconds(value: &str) -> Result<(), String> {
    value.parse::<f64>().map(drop).map_err(|_| format!("Invalid timeout value: {value}"))
}

fn ipv4_subnet(value: &str) -> Result<(), String> {
    crate::resources::Subnet::parse(value).map(drop).map_err(|problem| problem.short())
}

fn ipv6_subnet(value: &str) -> Result<(), String> {
    let wrong = || format!("invalid CIDR: {value}");
    let (address, bits) = value.split_once('/').ok_or_else(wrong)?;
    let bits_fit = bits.parse::<u8>().is_ok_and(|bits| bits <= 128);
    if bits_fit && address.parse::<std::net::Ipv6Addr>().is_ok() { Ok(()) } else { Err(wrong()) }
}

/// The command that some words begin with, and how many of them are its own.
#[must_use]
pub fn find(words: &[String]) -> Option<(&'static Command, usize)> {
    COMMANDS.iter().find_map(|command| {
        let length = command.path.len();
        let (last, group) = command.path.split_last()?;
        let given = words.get(..length)?;
        let (given_last, given_group) = given.split_last()?;
        let named = given_last == last || command.aliases.contains(&given_last.as_str());
        (named && given_group.iter().zip(group).all(|(given, wanted)| is_group(given, wanted)))
            .then_some((command, length))
    })
}

/// Groups have aliases too.
fn is_group(given: &str, wanted: &str) -> bool {
    given == wanted
        || matches!((given, wanted), ("n", "network") | ("i", "image") | ("v", "volume") | ("s", "system"))
}
