//! Errors, with the texts that Apple's command prints.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The class of a [`Problem`]; its text is part of the long form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Code {
    /// Nothing is known about it.
    Unknown,
    /// A value that makes no sense.
    InvalidArgument,
    /// Everything else.
    InternalError,
    /// A name that is taken.
    Exists,
    /// A name that nothing has.
    NotFound,
    /// Not in this state.
    InvalidState,
    /// It took too long.
    Timeout,
    /// Not on this machine.
    Unsupported,
    /// The other end has gone away.
    Interrupted,
}

impl fmt::Display for Code {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Unknown => "unknown",
            Self::InvalidArgument => "invalidArgument",
            Self::InternalError => "internalError",
            Self::Exists => "exists",
            Self::NotFound => "notFound",
            Self::InvalidState => "invalidState",
            Self::Timeout => "timeout",
            Self::Unsupported => "unsupported",
            Self::Interrupted => "interrupted",
        })
    }
}

/// An error of the services: `ContainerizationError` of apple/containerization.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// Its class.
    pub code: Code,
    /// What went wrong.
    pub message: String,
    /// The long form of what made it go wrong.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cause: Option<String>,
}

impl Problem {
    /// A problem without a cause.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), cause: None }
    }

    /// An internal error.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::InternalError, message)
    }

    /// A value that makes no sense.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// As clients wrap what a service answers.
    #[must_use]
    pub fn because(message: impl Into<String>, cause: &Self) -> Self {
        Self { code: Code::InternalError, message: message.into(), cause: Some(cause.to_string()) }
    }

    /// What is printed after `Error: ` when this is what ended a command (`errorDescription`).
    #[must_use]
    pub fn short(&self) -> String {
        match &self.cause {
            None => self.message.clone(),
            Some(cause) => format!("{} (cause: \"{cause}\")", self.message),
        }
    }

    /// As it arrives at the other end of a connection, where the cause is text.
    #[must_use]
    pub fn flattened(&self) -> Self {
        Self { code: self.code, message: self.short(), cause: None }
    }
}

/// The long form (`description`).
impl fmt::Display for Problem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: \"{}\"", self.code, self.message)?;
        match &self.cause {
            None => Ok(()),
            Some(cause) => write!(formatter, " (cause: \"{cause}\")"),
        }
    }
}

impl std::error::Error for Problem {}

/// An error of the operating system, as an internal problem.
impl From<std::io::Error> for Problem {
    fn from(error: std::io::Error) -> Self {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(inner) = source {
            text.push_str(&format!(": {inner}"));
            source = inner.source();
        }
        Self::internal(text)
    }
}

impl From<rustix::io::Errno> for Problem {
    fn from(error: rustix::io::Errno) -> Self {
        std::io::Error::from(error).into()
    }
}

impl From<serde_json::Error> for Problem {
    fn from(error: serde_json::Error) -> Self {
        Self::internal(error.to_string())
    }
}

/// How a command ends badly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The command line is wrong: exit code 64, with the usage.
    Usage {
        /// After `Error: `.
        message: String,
        /// After `Help:  `, if not empty.
        help: String,
    },
    /// Exit code 1 with the short form.
    Problem(Problem),
    /// Exit code 1 with a text of its own.
    Plain(String),
    /// This exit code and no text.
    Exit(u8),
    /// Not an error: a text for standard output, and exit code 0.
    Help(String),
}

impl Failure {
    /// A usage error without a help line.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Usage { message: message.into(), help: String::new() }
    }

    /// Several problems, each in its long form and on its own line (`AggregateError`).
    #[must_use]
    pub fn aggregate(problems: &[Problem]) -> Self {
        Self::Plain(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }
}

impl<T: Into<Problem>> From<T> for Failure {
    fn from(problem: T) -> Self {
        Self::Problem(problem.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_are_those_of_containerization_error() {
        let inner = Problem::new(Code::NotFound, "container with ID x not found");
        let outer = Problem::because("failed to stop container", &inner);
        assert_eq!(
            outer.to_string(),
            r#"internalError: "failed to stop container" (cause: "notFound: "container with ID x not found"")"#
        );
        assert_eq!(
            outer.short(),
            r#"failed to stop container (cause: "notFound: "container with ID x not found"")"#
        );
    }
}
