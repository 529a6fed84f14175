//! The process, its environment, user and limits, and the machine's size.

use std::collections::BTreeMap;
use std::fs;

use super::memory;
use crate::arguments::Matches;
use crate::error::Problem;
use crate::images::ImageConfig;
use crate::resources::{Process, Resources, Rlimit, User};

/// The process of `run` and `create`.
///
/// # Errors
/// What is wrong with the options, or that there is no command.
pub fn process(matches: &Matches, arguments: &[String], image: &ImageConfig) -> Result<Process, Problem> {
    let environment = environment(&image.env, matches)?;
    let working_directory = matches
        .one("workdir")
        .map(str::to_owned)
        .or_else(|| image.working_dir.clone())
        .unwrap_or_else(|| "/".to_owned());
    let entrypoint = matches.one("entrypoint").filter(|word| !word.is_empty());
    let mut command = match entrypoint {
        Some(word) => vec![word.to_owned()],
        None => image.entrypoint.clone(),
    };
    if !arguments.is_empty() {
        command.extend_from_slice(arguments);
    } else if entrypoint.is_none() {
        command.extend_from_slice(&image.cmd);
    }
    let Some((executable, arguments)) = command.split_first() else {
        return Err(Problem::invalid("command/entrypoint not specified for container process"));
    };
    let default = match &image.user {
        Some(user) => User::Raw { user_string: user.clone() },
        None => User::Id { uid: 0, gid: 0 },
    };
    let (user, supplemental_groups) = user(matches, default);
    Ok(Process {
        executable: executable.clone(),
        arguments: arguments.to_vec(),
        environment,
        working_directory,
        terminal: matches.flag("tty"),
        user,
        supplemental_groups,
        rlimits: rlimits(matches.all("ulimit"))?,
    })
}

/// The machine's size.
///
/// # Errors
/// An amount of memory that is not understood.
pub fn resources(matches: &Matches) -> Result<Resources, Problem> {
    Ok(Resources {
        cpus: matches.number("cpus").unwrap_or(4),
        memory_in_bytes: matches.one("memory").map_or(Ok(1 << 30), memory::mebibytes)?,
        cpu_overhead: 1,
    })
}

/// The user and further groups.
#[must_use]
pub fn user(matches: &Matches, default: User) -> (User, Vec<u32>) {
    if let Some(user) = matches.one("user").filter(|user| !user.is_empty()) {
        return (User::Raw { user_string: user.to_owned() }, Vec::new());
    }
    match (matches.number::<u32>("uid"), matches.number::<u32>("gid")) {
        (Some(uid), Some(gid)) => (User::Id { uid, gid }, Vec::new()),
        (Some(uid), None) => (User::Raw { user_string: uid.to_string() }, Vec::new()),
        (None, Some(gid)) => (default, vec![gid]),
        (None, None) => (default, Vec::new()),
    }
}

/// All of the environment, by name: of each the last. Apple's order is that of a hash table; this
/// one is by name.
///
/// # Errors
/// A file that is not understood.
pub fn environment(image: &[String], matches: &Matches) -> Result<Vec<String>, Problem> {
    let mut all: Vec<String> = image.iter().filter(|entry| entry.contains('=')).cloned().collect();
    for file in matches.all("env-file") {
        all.extend(environment_file(file)?);
    }
    for entry in matches.all("env") {
        if entry.contains('=') {
            all.push(entry.clone());
        } else if let Ok(value) = std::env::var(entry) {
            all.push(format!("{entry}={value}"));
        }
    }
    let named: BTreeMap<String, String> = all
        .into_iter()
        .map(|entry| (entry.split('=').find(|part| !part.is_empty()).unwrap_or(&entry).to_owned(), entry))
        .collect();
    Ok(named.into_values().collect())
}

fn environment_file(path: &str) -> Result<Vec<String>, Problem> {
    let bytes = fs::read(path).map_err(|error| {
        let cause = Some(error.to_string());
        Problem { cause, ..Problem::invalid(format!("failed to read envfile at {path}")) }
    })?;
    let content = String::from_utf8(bytes)
        .map_err(|_| Problem::invalid(format!("env file {path} contains invalid utf8 bytes")))?;
    let mut entries = Vec::new();
    for line in content.lines().map(str::trim_start) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (line, None),
        };
        if name.contains([' ', '\t']) {
            return Err(Problem::invalid(format!("variable '{name}' contains whitespaces")));
        }
        if name.is_empty() {
            return Err(Problem::invalid(format!("no variable name on line '{line}'")));
        }
        match value {
            Some(value) => entries.push(format!("{name}={value}")),
            None => entries.extend(std::env::var(name).map(|value| format!("{name}={value}"))),
        }
    }
    Ok(entries)
}

const LIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

fn rlimits(given: &[String]) -> Result<Vec<Rlimit>, Problem> {
    let mut limits: Vec<Rlimit> = Vec::new();
    for text in given {
        let limit = rlimit(text)?;
        if limits.iter().any(|known| known.limit == limit.limit) {
            let name = text.split('=').next().unwrap_or_default();
            return Err(Problem::invalid(format!("duplicate ulimit type: {name}")));
        }
        limits.push(limit);
    }
    Ok(limits)
}

fn rlimit(text: &str) -> Result<Rlimit, Problem> {
    let format =
        || Problem::invalid(format!("invalid ulimit format '{text}': expected <type>=<soft>[:<hard>]"));
    let (name, values) = text
        .split_once('=')
        .filter(|(name, values)| !name.is_empty() && !values.is_empty())
        .ok_or_else(format)?;
    let name = name.to_lowercase();
    if !LIMITS.contains(&name.as_str()) {
        return Err(Problem::invalid(format!(
            "unsupported ulimit type '{name}': valid types are {}",
            LIMITS.join(", ")
        )));
    }
    let number = |value: &str| match value.trim().to_lowercase().as_str() {
        "unlimited" | "-1" => Ok(u64::MAX),
        number => number.parse().map_err(|_| {
            Problem::invalid(format!(
                "invalid ulimit value '{value}' for '{name}': must be a non-negative integer or 'unlimited'"
            ))
        }),
    };
    let (soft, hard) = match values.split_once(':') {
        Some((soft, hard)) => (number(soft)?, number(hard)?),
        None => (number(values)?, number(values)?),
    };
    if soft > hard {
        return Err(Problem::invalid(format!(
            "ulimit '{name}' soft limit ({soft}) cannot exceed hard limit ({hard})"
        )));
    }
    Ok(Rlimit { limit: format!("RLIMIT_{}", name.to_uppercase()), soft, hard })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_soft_and_hard() {
        let limit = rlimit("nofile=1:unlimited").unwrap();
        assert_eq!((limit.limit.as_str(), limit.soft, limit.hard), ("RLIMIT_NOFILE", 1, u64::MAX));
        for (text, expected) in [
            ("nofile", "invalid ulimit format 'nofile': expected <type>=<soft>[:<hard>]"),
            (
                "nofile=x",
                "invalid ulimit value 'x' for 'nofile': must be a non-negative integer or 'unlimited'",
            ),
            ("nofile=2:1", "ulimit 'nofile' soft limit (2) cannot exceed hard limit (1)"),
        ] {
            assert_eq!(rlimit(text).unwrap_err().message, expected);
        }
        assert!(
            rlimit("x=1")
                .unwrap_err()
                .message
                .starts_with("unsupported ulimit type 'x': valid types are core, ")
        );
    }
}
