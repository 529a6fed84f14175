//! Whether a Cilium agent is well: for its network configurations of versions
//! that have no STATUS.

use std::path::Path;
use std::time::Duration;

use kina_node::Node;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::error::chain;

/// The type of Cilium's plugin.
pub(super) const PLUGIN: &str = "cilium-cni";

/// Where the agent listens unless `CILIUM_SOCK` says otherwise.
const SOCKET: &str = "/var/run/cilium/cilium.sock";

/// The most of an answer that is read, in bytes.
const LIMIT: u64 = 1 << 20;

/// HTTP/1.0: one answer, in one piece, and then the end.
const REQUEST: &[u8] =
    b"GET /v1/healthz HTTP/1.0\r\nHost: localhost\r\nAccept: application/json\r\nbrief: true\r\n\r\n";

/// Asks the agent of this node how it is.
///
/// # Errors
/// Why pods cannot be connected now.
pub(super) async fn probe(node: &dyn Node, patience: Duration) -> Result<(), String> {
    let socket = std::env::var("CILIUM_SOCK").unwrap_or_else(|_| SOCKET.to_owned());
    let asked = tokio::time::timeout(patience, ask(node, Path::new(&socket))).await;
    let answer = match asked {
        Ok(answer) => answer.map_err(|reason| format!("the Cilium agent does not answer: {reason}"))?,
        Err(_) => return Err(format!("the Cilium agent does not answer on {socket} within {patience:?}")),
    };
    judge(&answer)
}

async fn ask(node: &dyn Node, socket: &Path) -> Result<Vec<u8>, String> {
    let mut stream = node.dial(socket).await.map_err(|error| chain(&error))?;
    let failed = |error: std::io::Error| error.to_string();
    stream.write_all(REQUEST).await.map_err(failed)?;
    let mut answer = Vec::new();
    stream.take(LIMIT).read_to_end(&mut answer).await.map_err(failed)?;
    Ok(answer)
}

/// What an answer comes to.
fn judge(answer: &[u8]) -> Result<(), String> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let code = head.strip_prefix("HTTP/1.").and_then(|rest| rest.split_whitespace().nth(1)).unwrap_or("");
    if code != "200" {
        let first: String = head.lines().next().unwrap_or_default().chars().take(100).collect();
        return Err(format!("the Cilium agent is not well: it answers {first:?}"));
    }
    // A brief answer need not have it.
    let body: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    let own = &body["cilium"];
    match own["state"].as_str() {
        Some(state @ ("Failure" | "Disabled")) => {
            let message: String = own["msg"].as_str().unwrap_or_default().chars().take(500).collect();
            Err(format!("the Cilium agent says {state}: {message}"))
        }
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers() {
        for (answer, expected) in [
            ("HTTP/1.0 200 OK\r\n\r\n{\"cilium\": {\"state\": \"Ok\"}}", None),
            ("HTTP/1.1 200 OK\r\nA: b\r\n\r\n", None),
            ("HTTP/1.0 200 OK\r\n\r\n{\"cilium\": {\"state\": \"Warning\"}}", None),
            (
                "HTTP/1.0 200 OK\r\n\r\n{\"cilium\": {\"state\": \"Failure\", \"msg\": \"no etcd\"}}",
                Some("Failure: no etcd"),
            ),
            ("HTTP/1.0 503 Service Unavailable\r\n\r\n", Some("503 Service Unavailable")),
            ("", Some("\"\"")),
            ("garbage", Some("garbage")),
        ] {
            match (judge(answer.as_bytes()), expected) {
                (Ok(()), None) => {}
                (Err(reason), Some(expected)) => assert!(reason.contains(expected), "{reason}"),
                (result, _) => panic!("{answer:?}: {result:?}"),
            }
        }
    }
}
