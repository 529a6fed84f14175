//! Reads the words (`ArgumentSet.swift`, `CommandParser.swift`).

use std::collections::{BTreeMap, BTreeSet};

use super::definition::{Command, Definition, Kind};
use super::message;
use super::split::{Element, Name, Token, split};
use crate::error::Failure;
use crate::settings::Release;

/// What was given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matches {
    flags: BTreeSet<&'static str>,
    values: BTreeMap<&'static str, Vec<String>>,
    positionals: Vec<String>,
}

impl Matches {
    /// Whether a flag was given.
    #[must_use]
    pub fn flag(&self, key: &str) -> bool {
        self.flags.contains(key)
    }

    /// The values of an option.
    #[must_use]
    pub fn all(&self, key: &str) -> &[String] {
        self.values.get(key).map_or(&[], Vec::as_slice)
    }

    /// The value of an option; of several the last.
    #[must_use]
    pub fn one(&self, key: &str) -> Option<&str> {
        self.all(key).last().map(String::as_str)
    }

    /// The value of an option whose kind is a number.
    #[must_use]
    pub fn number<T: std::str::FromStr>(&self, key: &str) -> Option<T> {
        self.one(key).and_then(|value| value.parse().ok())
    }

    /// All arguments.
    #[must_use]
    pub fn positionals(&self) -> &[String] {
        &self.positionals
    }

    /// An argument.
    #[must_use]
    pub fn positional(&self, index: usize) -> &str {
        self.positionals.get(index).map_or("", String::as_str)
    }
}

/// Reads what follows a command's words.
///
/// # Errors
/// [`Failure::Usage`], or [`Failure::Help`] if that was asked for.
pub fn parse(command: &Command, words: &[String], release: Release) -> Result<Matches, Failure> {
    let elements = split(words)?;
    let mut parser = Parser { command, release, words, elements, next: 0, matches: Matches::default() };
    let outcome = parser.run();
    // Help outranks errors, but is an ordinary word once it is captured.
    if parser.asks_for_help(outcome.is_err()) {
        return Err(Failure::Help(message::usage(command, release)));
    }
    outcome?;
    parser.refuse_the_rest()?;
    Ok(parser.matches)
}

struct Parser<'a> {
    command: &'a Command,
    release: Release,
    words: &'a [String],
    elements: Vec<Element>,
    next: usize,
    matches: Matches,
}

impl Parser<'_> {
    fn run(&mut self) -> Result<(), Failure> {
        self.options()?;
        self.arguments()
    }

    fn captures(&self) -> bool {
        self.command.positionals.iter().any(|positional| positional.captures)
    }

    fn definition(&self, name: &Name) -> Option<&'static Definition> {
        self.command.definitions(self.release).find(|definition| match name {
            Name::Long(name) => definition.long.contains(&name.as_str()),
            Name::Short(name) => definition.short == Some(*name),
            Name::Cluster(_) => false,
        })
    }

    fn options(&mut self) -> Result<(), Failure> {
        while self.next < self.elements.len() {
            let index = self.next;
            self.next += 1;
            if self.elements[index].used {
                continue;
            }
            match self.elements[index].token.clone() {
                Token::Value(_) if self.captures() => break,
                Token::Value(_) | Token::Terminator => {}
                Token::Option { name, value } => match self.definition(&name) {
                    Some(definition) => self.option(index, &name, value, definition)?,
                    // A word of letters may still be understood letter by letter.
                    None if self.captures() && !self.has_letters(index) => break,
                    None => {}
                },
            }
        }
        Ok(())
    }

    fn has_letters(&self, index: usize) -> bool {
        let word = self.elements[index].word;
        self.elements.get(index + 1).is_some_and(|next| next.word == word)
    }

    fn option(
        &mut self,
        index: usize,
        name: &Name,
        value: Option<String>,
        definition: &'static Definition,
    ) -> Result<(), Failure> {
        if matches!(definition.kind, Kind::Flag) {
            if let Some(value) = value {
                return Err(message::unexpected_value(name, &value));
            }
            self.matches.flags.insert(definition.key);
            self.consume(index);
            return Ok(());
        }
        let value = match value {
            Some(value) => value,
            None => self.next_word(index).ok_or_else(|| self.missing_value(index, name, definition))?,
        };
        check(name, &value, definition)?;
        self.matches.values.entry(definition.key).or_default().push(value);
        self.consume(index);
        Ok(())
    }

    /// The next whole word, if it is a value: not an option, and not behind the terminator.
    fn next_word(&mut self, index: usize) -> Option<String> {
        let next = self.elements[index + 1..]
            .iter_mut()
            .find(|element| !element.used && element.letter.is_none())?;
        match &next.token {
            Token::Value(value) => {
                next.used = true;
                Some(value.clone())
            }
            Token::Option { .. } | Token::Terminator => None,
        }
    }

    fn missing_value(&self, index: usize, name: &Name, definition: &Definition) -> Failure {
        let element = &self.elements[index];
        match element.letter {
            Some(_) => message::missing_value_or_unknown(name, &self.words[element.word], definition),
            None => message::missing_value(name, definition),
        }
    }

    /// Marks an element as used, and with a letter the word that it is of.
    fn consume(&mut self, index: usize) {
        self.elements[index].used = true;
        if self.elements[index].letter.is_some() {
            let word = self.elements[index].word;
            for element in &mut self.elements {
                if element.word == word && element.letter.is_none() {
                    element.used = true;
                }
            }
        }
    }

    fn arguments(&mut self) -> Result<(), Failure> {
        let whole: Vec<usize> = (0..self.elements.len())
            .filter(|index| !self.elements[*index].used && self.elements[*index].letter.is_none())
            .collect();
        let mut left = whole.into_iter();
        for positional in self.command.positionals {
            let mut count = 0;
            while count == 0 || positional.repeats {
                let is_value = |index: &usize| {
                    positional.captures || matches!(self.elements[*index].token, Token::Value(_))
                };
                let Some(index) = left.find(is_value) else {
                    break;
                };
                let word = self.elements[index].word;
                self.matches.positionals.push(self.words[word].clone());
                for element in &mut self.elements {
                    element.used |= element.word == word;
                }
                count += 1;
            }
            if count == 0 && !positional.optional {
                return Err(message::missing_argument(positional));
            }
        }
        Ok(())
    }

    /// `-h` and `--help`: anywhere if something else is wrong, or among what nobody took.
    fn asks_for_help(&self, failed: bool) -> bool {
        self.elements.iter().any(|element| {
            let help = match &element.token {
                Token::Option { name: Name::Long(name), .. } => name == "help",
                Token::Option { name: Name::Short(name), .. } => *name == 'h',
                Token::Option { name: Name::Cluster(_), .. } | Token::Value(_) | Token::Terminator => false,
            };
            help && (failed || !element.used)
        })
    }

    fn refuse_the_rest(&self) -> Result<(), Failure> {
        let left: Vec<&Element> = self.elements.iter().filter(|element| !element.used).collect();
        let option = left.iter().find_map(|element| match &element.token {
            Token::Option { name, .. } => Some(name),
            Token::Value(_) | Token::Terminator => None,
        });
        if let Some(name) = option {
            return Err(message::unknown_option(name, self.command, self.release));
        }
        let values: Vec<&str> = left
            .iter()
            .filter(|element| element.token != Token::Terminator)
            .map(|element| self.words[element.word].as_str())
            .collect();
        if values.is_empty() { Ok(()) } else { Err(message::unexpected(&values)) }
    }
}

fn check(name: &Name, value: &str, definition: &Definition) -> Result<(), Failure> {
    let wrong = |why: Option<&str>| Err(message::invalid_value(name, value, definition, why));
    match definition.kind {
        Kind::Flag | Kind::Text => Ok(()),
        Kind::Integer(least, most) => match value.parse::<i128>() {
            Ok(number) if (least..=most).contains(&number) => Ok(()),
            Ok(_) | Err(_) => wrong(None),
        },
        Kind::OneOf(words) if words.contains(&value) => Ok(()),
        Kind::OneOf(_) => wrong(None),
        Kind::Checked(check) => check(value).or_else(|why| wrong(Some(&why))),
    }
}
