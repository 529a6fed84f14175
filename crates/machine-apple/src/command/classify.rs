//! What Apple's error messages mean. They are sentences for people; the ones here
//! are of versions 0.12 to 1.2 (`ContainerizationError` and where it is thrown, and
//! the form that `AggregateError` gives it in stop, kill and delete).

use crate::Error;

/// The most of a message that is passed on, in bytes.
const WORDS_LIMIT: usize = 1000;

/// The exit code of a command line that is not understood.
const USAGE: i32 = 64;

pub(super) fn classify(command: String, code: i32, said: &str) -> Error {
    let has = |words: &str| said.contains(words);
    // First: any call says so when the service is not there.
    if has("container system start") || has("XPC connection error") {
        return Error::ServiceDown { command };
    }
    if has("XPC timeout for request") {
        return Error::ServiceHangs { command };
    }
    let words = words(said);
    if code == USAGE {
        return Error::Usage { command, words };
    }
    if has("default kernel not configured") || has("kernel not found at") {
        return Error::NoKernel { command };
    }
    if has("and may be in use") {
        return Error::SocketExists { command, words };
    }
    if has("already exist") {
        return Error::Exists { command };
    }
    if has("image not found") || has("HTTP request to URL failed") || has("image with reference") {
        return Error::NoImage { command, words };
    }
    if has("network") && (has("not found") || has("failed to get plugin")) && !has("container ") {
        return Error::NoNetwork { command, words };
    }
    if has("is stopping and can not be deleted") {
        return Error::Stopping { command };
    }
    if has("is not running") || has("no runtime client exists") {
        return Error::NotRunning { command };
    }
    if has("container not found") || has("no such container") || (has("container") && has("not found")) {
        return Error::NotFound { command };
    }
    Error::Failed { command, code, words }
}

/// A message in one bounded line, without the word with which each begins.
fn words(said: &str) -> String {
    let said = said.trim();
    let said = said.strip_prefix("Error: ").unwrap_or(said);
    let mut words = said.split_whitespace().collect::<Vec<_>>().join(" ");
    if words.len() > WORDS_LIMIT {
        let end = (0..=WORDS_LIMIT).rev().find(|at| words.is_char_boundary(*at)).unwrap_or(0);
        words.truncate(end);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(code: i32, said: &str) -> &'static str {
        match classify("delete x".to_owned(), code, said) {
            Error::ServiceDown { .. } => "down",
            Error::ServiceHangs { .. } => "hangs",
            Error::NotFound { .. } => "not found",
            Error::Exists { .. } => "exists",
            Error::NotRunning { .. } => "not running",
            Error::Stopping { .. } => "stopping",
            Error::SocketExists { .. } => "socket",
            Error::NoImage { .. } => "image",
            Error::NoKernel { .. } => "kernel",
            Error::NoNetwork { .. } => "network",
            Error::Usage { .. } => "usage",
            Error::Failed { .. } => "failed",
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn apples_words() {
        for (code, said, expected) in [
            (
                1,
                "Error: interrupted: \"XPC connection error: Connection invalid\"\nEnsure container system service \
                 has been started with `container system start`.",
                "down",
            ),
            (1, "Error: XPC timeout for request to com.apple.container.apiserver/containerList", "hangs"),
            (1, "Error: container not found: kina-1", "not found"),
            (1, "Error: get failed: container kina-1 not found", "not found"),
            (1, "Error: no such container: kina-1", "not found"),
            (
                1,
                "Error: internalError: \"failed to delete container\" (cause: \"notFound: \"container with ID kina-1 \
                 not found\"\")",
                "not found",
            ),
            (1, "Error: container with id kina-1 already exists", "exists"),
            (1, "Error: container already exists: kina-1", "exists"),
            (1, "Error: hostname(s) already exist: [\"kina-1\"]", "exists"),
            (1, "Error: host socket /run/s/1.sock already exists and may be in use", "socket"),
            (1, "Error: image not found: localhost/kina-pod:1", "image"),
            (1, "Error: HTTP request to URL failed with response: 404 Not Found", "image"),
            (
                1,
                "Error: notFound: \"default kernel not configured for architecture arm64, please use the `container \
                 system kernel set` command to configure it\"",
                "kernel",
            ),
            (1, "Error: notFound: \"network mine not found\"", "network"),
            (1, "Error: container kina-1 is not running", "not running"),
            (
                1,
                "Error: internalError: \"failed to kill container\" (cause: \"invalidState: \"no runtime client \
                 exists: container is stopped\"\")",
                "not running",
            ),
            (1, "Error: invalidState: \"container kina-1 is stopping and can not be deleted\"", "stopping"),
            (64, "Error: Unknown option '--masked-path'\nUsage: container run ...", "usage"),
            (1, "Error: minimum memory amount allowed is 200 MiB (got 1 bytes)", "failed"),
            (137, "", "failed"),
        ] {
            assert_eq!(kind(code, said), expected, "{said}");
        }
    }

    #[test]
    fn what_to_type_is_said() {
        let text = |code, said: &str| classify("list".to_owned(), code, said).to_string();
        assert!(text(1, "XPC connection error: x").contains("type `container system start`"));
        assert!(text(1, "XPC timeout for request").contains("type `container system stop`"));
        assert!(
            text(1, "default kernel not configured").contains("container system kernel set --recommended")
        );
        assert!(text(1, "network mine not found").contains("container network list"));
    }

    #[test]
    fn words_are_bounded_and_one_line() {
        assert_eq!(words("Error: a\n  b\n"), "a b");
        assert!(words(&"ä ".repeat(2000)).len() <= WORDS_LIMIT);
    }
}
