//! Credential helpers: `docker-credential-NAME get` (docker-credential-helpers'
//! protocol). The server goes to its input, JSON comes from its output.
//!
//! What a helper prints is never logged or shown.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::{Credentials, Kind};
use crate::Error;

const OUTPUT_LIMIT: u64 = 256 << 10;
const MAX_NAME: usize = 64;
/// The user name with which a helper says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";
/// What helpers print when they have nothing for a server.
const NOTHING: &str = "credentials not found";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// Asks a helper. It is killed when it takes too long or nobody waits any more.
pub(super) async fn get(
    name: &str,
    server: &str,
    directories: &[PathBuf],
    deadline: Duration,
) -> Result<Option<Credentials>, Error> {
    let failed = |reason: String| Error::CredentialHelper { name: name.escape_debug().to_string(), reason };
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(safe) {
        return Err(failed("its name is not made of letters, digits, '-', '_' and '.'".to_owned()));
    }
    let program = format!("docker-credential-{name}");
    let inherited = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&inherited).chain(directories.iter().cloned());
    let path = std::env::join_paths(places)
        .map_err(|_| failed("the directories of credential helpers cannot be joined to a PATH".to_owned()))?;
    let mut child = Command::new(&program)
        .arg("get")
        // It is looked for there, too.
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| {
            failed(format!(
                "cannot start {program}: {error}; install it, or set image.credential_helper_directories"
            ))
        })?;
    let talk = async {
        if let Some(mut input) = child.stdin.take() {
            // One that does not read its input may answer all the same.
            let _ = input.write_all(format!("{server}\n").as_bytes()).await;
        }
        let mut output = Vec::new();
        if let Some(pipe) = child.stdout.take() {
            pipe.take(OUTPUT_LIMIT + 1)
                .read_to_end(&mut output)
                .await
                .map_err(|error| failed(format!("cannot read its answer: {error}")))?;
        }
        if output.len() as u64 > OUTPUT_LIMIT {
            return Err(failed(format!("it answers with more than {OUTPUT_LIMIT} bytes")));
        }
        let status =
            child.wait().await.map_err(|error| failed(format!("cannot wait for its end: {error}")))?;
        Ok((status, output))
    };
    let (status, output) = match tokio::time::timeout(deadline, talk).await {
        Ok(outcome) => outcome?,
        Err(_) => {
            return Err(failed(format!("no answer within {deadline:?}; does it wait for a password?")));
        }
    };
    if !status.success() {
        let text = String::from_utf8_lossy(&output);
        if text.to_ascii_lowercase().contains(NOTHING) {
            return Ok(None);
        }
        return Err(failed(format!("{status}; run `{program} get` with {server} as its input to see why")));
    }
    let answer: Answer = serde_json::from_slice(&output)
        .map_err(|_| failed("its answer is no JSON with Username and Secret".to_owned()))?;
    let Answer { username, secret } = answer;
    if secret.is_empty() {
        return Ok(None);
    }
    let kind = if username == TOKEN_USER {
        Kind::IdentityToken(secret)
    } else {
        Kind::Basic { username, password: secret }
    };
    Ok(Some(Credentials { kind, server: None }))
}
