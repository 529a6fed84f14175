//! The words of a command line, before anybody knows which options there are
//! (`SplitArguments.swift`).

use std::fmt;

use crate::error::Failure;

/// The name of an option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Long(String),
    Short(char),
    /// `-xyz` as one.
    Cluster(String),
}

impl fmt::Display for Name {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Long(name) => write!(formatter, "--{name}"),
            Self::Short(name) => write!(formatter, "-{name}"),
            Self::Cluster(name) => write!(formatter, "-{name}"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Option { name: Name, value: Option<String> },
    Value(String),
    Terminator,
}

/// A word, or one letter of a word like `-it`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Element {
    /// Which word.
    pub(super) word: usize,
    /// Which letter of it.
    pub(super) letter: Option<usize>,
    pub(super) token: Token,
    pub(super) used: bool,
}

impl Element {
    fn new(word: usize, letter: Option<usize>, token: Token) -> Self {
        Self { word, letter, token, used: false }
    }
}

pub(super) fn split(words: &[String]) -> Result<Vec<Element>, Failure> {
    let mut elements = Vec::new();
    let mut terminated = false;
    for (index, word) in words.iter().enumerate() {
        let whole = |token| Element::new(index, None, token);
        let dashes = word.len() - word.trim_start_matches('-').len();
        if terminated || dashes == 0 || word == "-" {
            elements.push(whole(Token::Value(word.clone())));
            continue;
        }
        match dashes {
            2 if word == "--" => {
                terminated = true;
                elements.push(whole(Token::Terminator));
            }
            1 => {
                let rest = &word[1..];
                let (name, value) = name_and_value(rest);
                let mut letters = name.chars();
                match (letters.next(), letters.next()) {
                    (Some(letter), None) => {
                        let name = Name::Short(letter);
                        elements.push(whole(Token::Option { name, value }));
                    }
                    _ => {
                        let alone = value.is_none();
                        let cluster = Name::Cluster(name.to_owned());
                        elements.push(whole(Token::Option { name: cluster, value }));
                        if alone {
                            elements.extend(name.chars().enumerate().map(|(place, letter)| {
                                let token = Token::Option { name: Name::Short(letter), value: None };
                                Element::new(index, Some(place), token)
                            }));
                        }
                    }
                }
            }
            2 => {
                let (name, value) = name_and_value(&word[2..]);
                let name = Name::Long(name.to_owned());
                elements.push(whole(Token::Option { name, value }));
            }
            _ => return Err(Failure::usage(format!("Invalid option: {word}"))),
        }
    }
    Ok(elements)
}

/// `name=value`; an empty value is none.
fn name_and_value(text: &str) -> (&str, Option<String>) {
    match text.split_once('=') {
        Some((name, "")) => (name, None),
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    }
}
