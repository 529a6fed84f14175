//! The texts (`UsageGenerator.swift`).

use super::definition::{Command, Definition, Kind, Positional};
use super::split::Name;
use crate::error::Failure;
use crate::settings::Release;

/// `--name`, or `-n` where there is no other.
fn preferred(definition: &Definition) -> String {
    match (definition.long.first(), definition.short) {
        (Some(long), _) => format!("--{long}"),
        (None, Some(short)) => format!("-{short}"),
        (None, None) => String::new(),
    }
}

/// The usage line of a command: everything, or only what is needed where that would be too much.
pub(crate) fn usage(command: &Command, release: Release) -> String {
    let definitions: Vec<_> = command.definitions(release).collect();
    let mut words = vec![command.words()];
    if definitions.len() + command.positionals.len() > 12 {
        words.push("[<options>]".to_owned());
    } else {
        for definition in definitions {
            let name = preferred(definition);
            let repeated = if definition.repeats { " ..." } else { "" };
            words.push(match definition.kind {
                Kind::Flag => format!("[{name}]"),
                Kind::Text | Kind::Integer(..) | Kind::OneOf(_) | Kind::Checked(_) => {
                    format!("[{name} <{}>{repeated}]", definition.value)
                }
            });
        }
    }
    words.extend(command.positionals.iter().map(synopsis));
    let line = words.join(" ");
    format!("Usage: {line}\n  See '{} --help' for more information.", command.words())
}

fn synopsis(positional: &Positional) -> String {
    let repeated = if positional.repeats { " ..." } else { "" };
    let text = format!("<{}>{repeated}", positional.name);
    if positional.optional { format!("[{text}]") } else { text }
}

pub(super) fn unknown_option(name: &Name, command: &Command, release: Release) -> Failure {
    let text = name.to_string();
    let near = match name {
        Name::Short(_) => None,
        Name::Long(_) | Name::Cluster(_) => command
            .definitions(release)
            .flat_map(|definition| definition.long.iter())
            .map(|long| format!("--{long}"))
            .map(|long| (distance(&long, &text), long))
            .filter(|(distance, _)| *distance < 4)
            .min_by_key(|(distance, _)| *distance),
    };
    Failure::usage(match near {
        Some((_, near)) => format!("Unknown option '{text}'. Did you mean '{near}'?"),
        None => format!("Unknown option '{text}'"),
    })
}

pub(super) fn missing_value(name: &Name, definition: &Definition) -> Failure {
    Failure::Usage {
        message: format!("Missing value for '{name} <{}>'", definition.value),
        help: format!("{name} <{}>  {}", definition.value, definition.about),
    }
}

/// Of a letter in a word: either the word was meant as one, or the letter's value is missing.
pub(super) fn missing_value_or_unknown(name: &Name, cluster: &str, definition: &Definition) -> Failure {
    let value = definition.value;
    Failure::usage(format!(
        "Unknown option '{cluster}'\n   or: Missing value for '{name} <{value}>' in '{cluster}'"
    ))
}

pub(super) fn invalid_value(name: &Name, value: &str, definition: &Definition, why: Option<&str>) -> Failure {
    let what = definition.value;
    let reason = match (why, definition.kind) {
        (Some(why), _) => format!(": {why}"),
        (None, Kind::OneOf(words)) => format!(". Please provide one of {}.", alternatives(words)),
        (None, Kind::Flag | Kind::Text | Kind::Integer(..) | Kind::Checked(_)) => String::new(),
    };
    Failure::Usage {
        message: format!("The value '{value}' is invalid for '{name} <{what}>'{reason}"),
        help: format!("{name} <{what}>  {}", definition.about),
    }
}

fn alternatives(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
    match quoted.split_last() {
        Some((last, rest)) if rest.len() > 1 => format!("{} or {last}", rest.join(", ")),
        Some(_) | None => quoted.join(" and "),
    }
}

pub(super) fn unexpected_value(name: &Name, value: &str) -> Failure {
    Failure::usage(format!("The option '{name}' does not take any value, but '{value}' was specified."))
}

pub(super) fn missing_argument(positional: &Positional) -> Failure {
    Failure::Usage {
        message: format!("Missing expected argument '{}'", synopsis(positional)),
        help: format!("<{}>  {}", positional.name, positional.about),
    }
}

pub(super) fn unexpected(values: &[&str]) -> Failure {
    Failure::usage(match values {
        [one] => format!("Unexpected argument '{one}'"),
        _ => format!("{} unexpected arguments: '{}'", values.len(), values.join("', '")),
    })
}

/// How many letters to add, take away or change.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (line, letter) in from.chars().enumerate() {
        let mut corner = line;
        row[0] = line + 1;
        for (column, other) in to.iter().enumerate() {
            let changed = corner + usize::from(letter != *other);
            corner = row[column + 1];
            row[column + 1] = changed.min(corner + 1).min(row[column] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (from, to, expected) in
            [("", "", 0), ("a", "", 1), ("--name", "--nam", 1), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(from, to), expected, "{from} {to}");
        }
    }

    #[test]
    fn alternatives_are_listed() {
        assert_eq!(alternatives(&["a", "b"]), "'a' and 'b'");
        assert_eq!(alternatives(&["a", "b", "c"]), "'a', 'b' or 'c'");
    }
}
