//! The outcome of a session, as clients read it from the error stream.

use std::error::Error;

use serde::Serialize;

use crate::backend::BackendError;

/// How a session ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Success,
    /// A command that ran and failed.
    Exit(i32),
    /// A session that could not be had.
    Failure(String),
}

impl Outcome {
    pub(crate) fn of_exec(result: Result<i32, BackendError>) -> Self {
        match result {
            Ok(0) => Self::Success,
            Ok(code) => Self::Exit(code),
            Err(error) => Self::Failure(format!("error executing command in container: {}", chain(&*error))),
        }
    }

    pub(crate) fn of_attach(result: Result<(), BackendError>) -> Self {
        match result {
            Ok(()) => Self::Success,
            Err(error) => Self::Failure(format!("error attaching to container: {}", chain(&*error))),
        }
    }

    /// `metav1.Status` as JSON, since `v4.channel.k8s.io`.
    pub(crate) fn json(&self) -> Vec<u8> {
        let status = match self {
            Self::Success => Status { status: "Success", ..Status::default() },
            Self::Exit(code) => Status {
                status: "Failure",
                message: self.text(),
                reason: Some("NonZeroExitCode"),
                details: Some(Details {
                    causes: [Cause { reason: Some("ExitCode"), message: code.to_string() }],
                }),
                ..Status::default()
            },
            Self::Failure(text) => Status {
                status: "Failure",
                message: Some(format!("Internal error occurred: {text}")),
                reason: Some("InternalError"),
                details: Some(Details { causes: [Cause { reason: None, message: text.clone() }] }),
                code: Some(500),
                ..Status::default()
            },
        };
        // There is nothing in it that JSON cannot say.
        serde_json::to_vec(&status).unwrap_or_default()
    }

    /// Plain text, or none for success, before that.
    pub(crate) fn text(&self) -> Option<String> {
        match self {
            Self::Success => None,
            Self::Exit(code) => Some(format!("command terminated with non-zero exit code: {code}")),
            Self::Failure(text) => Some(text.clone()),
        }
    }
}

/// An error with its sources.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[derive(Debug, Default, Serialize)]
struct Status {
    metadata: Metadata,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
}

#[derive(Debug, Default, Serialize)]
struct Metadata {}

#[derive(Debug, Serialize)]
struct Details {
    causes: [Cause; 1],
}

#[derive(Debug, Serialize)]
struct Cause {
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_is_what_client_go_reads() {
        let json = |outcome: Outcome| String::from_utf8(outcome.json()).unwrap();
        assert_eq!(json(Outcome::Success), r#"{"metadata":{},"status":"Success"}"#);
        assert_eq!(
            json(Outcome::of_exec(Ok(3))),
            r#"{"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code: 3","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#
        );
        let error = std::io::Error::other("no such file");
        assert_eq!(
            json(Outcome::of_exec(Err(error.into()))),
            r#"{"metadata":{},"status":"Failure","message":"Internal error occurred: error executing command in container: no such file","reason":"InternalError","details":{"causes":[{"message":"error executing command in container: no such file"}]},"code":500}"#
        );
    }
}
