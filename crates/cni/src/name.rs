//! The rules for names, which become environment variables and file names.

use crate::Error;

/// Longest name of an interface in bytes, as the kernel has it.
pub const MAX_INTERFACE_NAME: usize = 15;

/// Longest container id or network name in bytes. The specification sets no
/// limit; both are parts of one file name, which may have 255.
pub const MAX_NAME: usize = 100;

/// A letter or digit, then letters, digits, `_`, `.` and `-`.
fn is_name(text: &str) -> bool {
    text.len() <= MAX_NAME
        && text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.chars().all(|next| next.is_ascii_alphanumeric() || matches!(next, '_' | '.' | '-'))
}

/// Checks a container id.
///
/// # Errors
/// [`Error::InvalidName`].
pub fn check_container_id(text: &str) -> Result<(), Error> {
    named(is_name(text), "container id", text)
}

/// Checks the name of a network.
///
/// # Errors
/// [`Error::InvalidName`].
pub fn check_network_name(text: &str) -> Result<(), Error> {
    named(is_name(text), "network name", text)
}

/// Checks the name of an interface: 1 to 15 bytes, not `.` or `..`, without
/// `/`, `:` and white space.
///
/// # Errors
/// [`Error::InvalidName`].
pub fn check_interface_name(text: &str) -> Result<(), Error> {
    let fits = !text.is_empty() && text.len() <= MAX_INTERFACE_NAME;
    let clean = !text.contains(|each: char| matches!(each, '/' | ':' | '\0') || each.is_whitespace());
    named(fits && clean && text != "." && text != "..", "interface name", text)
}

/// Checks the `type` of a plugin, which is the name of its executable.
///
/// # Errors
/// [`Error::InvalidName`].
pub fn check_plugin_type(text: &str) -> Result<(), Error> {
    let clean = !text.contains(['/', '\\', '\0']);
    named(!text.is_empty() && text.len() <= 255 && clean && text != "." && text != "..", "plugin type", text)
}

fn named(good: bool, what: &'static str, text: &str) -> Result<(), Error> {
    if good { Ok(()) } else { Err(Error::InvalidName { what, name: text.chars().take(300).collect() }) }
}
