//! What the demo's containers have written, and whether any of it is missing.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// How long lines may take to come.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(20);

/// What the lines of a log in the CRI format say, their stamps left out. A line
/// that is still being written is not there yet.
pub(super) fn messages(log: &str) -> Vec<String> {
    let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| line.splitn(4, ' ').nth(3).unwrap_or_default().to_owned()).collect()
}

/// A log file as it is now.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<String>> {
    let log = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    Ok(messages(&String::from_utf8_lossy(&log)))
}

/// A log file once it has that many lines.
pub(super) async fn wait(path: &Path, lines: usize) -> anyhow::Result<Vec<String>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        // The file may not be there yet.
        let found = read(path).unwrap_or_default();
        if found.len() >= lines {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("{} has {} lines and not {lines}:\n{}", path.display(), found.len(), found.join("\n"));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The number in the client's line `hello 7 from demo`.
pub(super) fn answer(line: &str) -> anyhow::Result<u64> {
    let number = line.strip_prefix("hello ").and_then(|rest| rest.split(' ').next()?.parse().ok());
    number.with_context(|| format!("{line:?} is no answer of the server"))
}

/// Checks that no line of either log is lost, doubled or out of order, given the
/// answer that went to an exec. Returns how many requests there were.
pub(super) fn check(server: &[String], client: &[String], exec: u64) -> anyhow::Result<u64> {
    let mut count = 0;
    for line in server.iter().filter(|line| !line.starts_with("listening on ")) {
        let number: Option<u64> = line.split(' ').next().and_then(|word| word.parse().ok());
        count += 1;
        if number != Some(count) {
            bail!("the server's log should have request {count} and has {line:?}");
        }
    }
    let mut expected = 1;
    for line in client {
        if expected == exec {
            expected += 1;
        }
        let number = answer(line)?;
        if number != expected {
            bail!("the client's log should have answer {expected} and has {number}");
        }
        expected += 1;
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[&str]) -> Vec<String> {
        text.iter().map(|line| (*line).to_owned()).collect()
    }

    #[test]
    fn a_log_in_the_cri_format() {
        let log = "2026-01-02T03:04:05.000000006Z stdout F hello 1 from demo\n\
                   2026-01-02T03:04:05.100000006Z stdout F \n\
                   2026-01-02T03:04:05.2";
        assert_eq!(messages(log), ["hello 1 from demo", ""]);
        assert!(messages("").is_empty());
    }

    #[test]
    fn gaps_and_doubles_are_found() {
        let server = lines(&["listening on 0.0.0.0:80", "1 peer GET", "2 peer GET", "3 peer GET"]);
        let client = lines(&["hello 1 from x", "hello 3 from x"]);
        assert_eq!(check(&server, &client, 2).unwrap(), 3);
        assert!(check(&server, &client, 9).is_err(), "answer 2 is lost");
        assert!(check(&server[..3], &client[..1], 2).is_ok());
        let doubled = lines(&["hello 1 from x", "hello 1 from x"]);
        assert!(check(&server, &doubled, 2).is_err());
        let lost = lines(&["listening on 0.0.0.0:80", "1 peer GET", "3 peer GET"]);
        assert!(check(&lost, &client, 2).is_err());
        let refused = lines(&["hello 1 from x", "http://127.0.0.1:80: Connection refused"]);
        assert!(check(&server, &refused, 2).is_err());
    }
}
