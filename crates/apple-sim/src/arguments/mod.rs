//! A command line as swift-argument-parser reads it.
//!
//! Only what Apple's command uses of it, but that with its order of checks and its texts:
//! options in any order before and between arguments; an option's value that begins with a dash
//! needs `=`; `-it` is `-i -t` but `-c4` is not `-c 4`; arguments that are captured for another
//! program are taken as they stand, `--` included.

mod definition;
mod message;
mod parse;
mod split;
#[cfg(test)]
mod tests;

pub use definition::{Command, Definition, Kind, Positional};
pub(crate) use message::usage;
pub use parse::{Matches, parse};
