//! What a command takes.

use crate::settings::Release;

/// What an option's value has to be.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// No value.
    Flag,
    /// Any text.
    Text,
    /// A number in a range.
    Integer(i128, i128),
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// What this accepts; an error is its text.
    Checked(fn(&str) -> Result<(), String>),
}

/// An option.
#[derive(Clone, Copy, Debug)]
pub struct Definition {
    /// What it is asked for by, and its value's name unless that is given: as its long name.
    pub key: &'static str,
    /// `-x`.
    pub short: Option<char>,
    /// `--xyz`, the preferred one first.
    pub long: &'static [&'static str],
    /// In `<>`.
    pub value: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// The release that it came with.
    pub since: Release,
    /// Whether it may be given more than once and all of its values count.
    pub repeats: bool,
    /// One line about it.
    pub about: &'static str,
}

impl Definition {
    /// A flag with a long name.
    #[must_use]
    pub const fn flag(short: Option<char>, long: &'static [&'static str], about: &'static str) -> Self {
        Self {
            key: long[0],
            short,
            long,
            value: "",
            kind: Kind::Flag,
            since: Release::V0_12_3,
            repeats: false,
            about,
        }
    }

    /// An option with a text as value.
    #[must_use]
    pub const fn option(
        short: Option<char>,
        long: &'static [&'static str],
        value: &'static str,
        about: &'static str,
    ) -> Self {
        Self {
            key: if long.is_empty() { value } else { long[0] },
            short,
            long,
            value,
            kind: Kind::Text,
            since: Release::V0_12_3,
            repeats: false,
            about,
        }
    }

    /// The same, with another kind of value.
    #[must_use]
    pub const fn of(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// The same, as often as wanted.
    #[must_use]
    pub const fn repeated(mut self) -> Self {
        self.repeats = true;
        self
    }

    /// The same, since a release.
    #[must_use]
    pub const fn since(mut self, release: Release) -> Self {
        self.since = release;
        self
    }
}

/// An argument that is no option.
#[derive(Clone, Copy, Debug)]
pub struct Positional {
    /// In `<>`.
    pub name: &'static str,
    /// One line about it.
    pub about: &'static str,
    /// Whether it may be missing.
    pub optional: bool,
    /// Whether all that is left is this.
    pub repeats: bool,
    /// Whether everything from here on is taken as it stands.
    pub captures: bool,
}

impl Positional {
    /// Exactly one.
    #[must_use]
    pub const fn one(name: &'static str, about: &'static str) -> Self {
        Self { name, about, optional: false, repeats: false, captures: false }
    }

    /// Any number.
    #[must_use]
    pub const fn any(name: &'static str, about: &'static str) -> Self {
        Self { name, about, optional: true, repeats: true, captures: false }
    }

    /// One or more.
    #[must_use]
    pub const fn some(name: &'static str, about: &'static str) -> Self {
        Self { name, about, optional: false, repeats: true, captures: false }
    }

    /// Everything that is left, as it stands.
    #[must_use]
    pub const fn rest(name: &'static str, about: &'static str, optional: bool) -> Self {
        Self { name, about, optional, repeats: true, captures: true }
    }
}

/// A command that does something.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// Its words after `container`.
    pub path: &'static [&'static str],
    /// Other words for its last.
    pub aliases: &'static [&'static str],
    /// Groups of options, in the order of the usage line.
    pub options: &'static [&'static [Definition]],
    /// Its arguments. They come last in the usage line.
    pub positionals: &'static [Positional],
}

impl Command {
    /// Its options in a release.
    pub fn definitions(&self, release: Release) -> impl Iterator<Item = &'static Definition> {
        let options = self.options;
        options.iter().flat_map(|group| group.iter()).filter(move |definition| definition.since <= release)
    }

    /// Its words.
    #[must_use]
    pub fn words(&self) -> String {
        format!("container {}", self.path.join(" "))
    }
}
