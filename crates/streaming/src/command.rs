//! Exec and attach over SPDY.

use std::time::Duration;

use kina_spdy::{Connection, ResetStatus, Stream};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

use crate::backend::{Backend, Input, Output, Resizes, SessionIo};
use crate::request::Streams;
use crate::session::{Command, read_sizes};
use crate::status::Outcome;

/// Runs a session over a connection whose client will open its streams. Returns why it had no outcome.
pub(crate) async fn serve(
    connection: Connection,
    backend: &dyn Backend,
    command: &Command,
    protocol: &str,
    creation_timeout: Duration,
) -> Result<Outcome, &'static str> {
    // Terminals have sizes since the third version, outcomes are JSON since the fourth.
    let resize = command.streams().tty && matches!(protocol, "v4.channel.k8s.io" | "v3.channel.k8s.io");
    let json = protocol == "v4.channel.k8s.io";
    let streams = timeout(creation_timeout, collect(&connection, command.streams(), resize))
        .await
        .map_err(|_| "the client did not open all streams in time")?
        .ok_or("the client went before it had opened all streams")?;
    let ClientStreams { mut error, stdin, stdout, stderr, resize } = streams;

    let (sizes, resizes) = Resizes::channel();
    let io = SessionIo {
        stdin: stdin.map(|stream| Box::new(stream) as Input),
        stdout: stdout.map(|stream| Box::new(stream.finish_on_drop()) as Output),
        stderr: stderr.map(|stream| Box::new(stream.finish_on_drop()) as Output),
        resizes: resize.is_some().then_some(resizes),
    };
    let sizes = async {
        if let Some(stream) = resize {
            read_sizes(stream, sizes).await;
        }
        std::future::pending::<()>().await;
    };
    // A client that says that it opens no more streams is leaving. It may not close the transport: client-go
    // waits for streams that it has forgotten.
    let gone = async {
        while let Some(incoming) = connection.accept().await {
            incoming.refuse(ResetStatus::REFUSED_STREAM);
        }
    };
    let outcome = tokio::select! {
        outcome = command.run(backend, io) => outcome,
        () = gone => return Err("the client went before the end"),
        () = sizes => return Err("the client went before the end"),
    };
    let report = if json { outcome.json() } else { outcome.text().unwrap_or_default().into_bytes() };
    // If the client has gone meanwhile there is nobody to tell.
    if error.write_all(&report).await.is_ok() {
        let _: Result<_, _> = error.shutdown().await;
    }
    connection.close().await;
    Ok(outcome)
}

struct ClientStreams {
    error: Stream,
    stdin: Option<Stream>,
    stdout: Option<Stream>,
    stderr: Option<Stream>,
    resize: Option<Stream>,
}

/// Waits for the streams that the session needs, each once, in any order; none if the client goes.
async fn collect(connection: &Connection, wanted: Streams, resize: bool) -> Option<ClientStreams> {
    let mut open: [(&str, bool, Option<Stream>); 5] = [
        ("error", true, None),
        ("stdin", wanted.stdin, None),
        ("stdout", wanted.stdout, None),
        ("stderr", wanted.stderr, None),
        ("resize", resize, None),
    ];
    while open.iter().any(|(_, wanted, stream)| *wanted && stream.is_none()) {
        let incoming = connection.accept().await?;
        let kind = incoming.headers().get("streamType").unwrap_or_default();
        let slot =
            open.iter_mut().find(|(name, wanted, stream)| *name == kind && *wanted && stream.is_none());
        match slot {
            Some((_, _, stream)) => *stream = Some(incoming.accept()),
            None => incoming.refuse(ResetStatus::REFUSED_STREAM),
        }
    }
    let [(_, _, error), (_, _, stdin), (_, _, stdout), (_, _, stderr), (_, _, resize)] = open;
    Some(ClientStreams { error: error?, stdin, stdout, stderr, resize })
}
