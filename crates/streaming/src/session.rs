//! What sessions have in common, whatever they run over.

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::watch;

use crate::backend::{Backend, SessionIo, TerminalSize};
use crate::request::{Attach, Exec, Streams};
use crate::status::Outcome;

/// An exec or an attach.
#[derive(Debug)]
pub(crate) enum Command {
    Exec(Exec),
    Attach(Attach),
}

impl Command {
    pub(crate) fn streams(&self) -> Streams {
        match self {
            Self::Exec(exec) => exec.streams,
            Self::Attach(attach) => attach.streams,
        }
    }

    pub(crate) async fn run(&self, backend: &dyn Backend, io: SessionIo) -> Outcome {
        match self {
            Self::Exec(exec) => Outcome::of_exec(backend.exec(exec, io).await),
            Self::Attach(attach) => Outcome::of_attach(backend.attach(attach, io).await),
        }
    }
}

/// What a terminal's sizes may take before they make sense, in bytes.
const LONGEST_SIZE: usize = 1024;

/// Reads sizes, one JSON object after the other, until the client sends no more. What is none is skipped, so
/// that the connection goes on.
pub(crate) async fn read_sizes(
    mut reader: impl AsyncRead + Unpin,
    sizes: watch::Sender<Option<TerminalSize>>,
) {
    let mut buffer = Vec::new();
    let mut piece = [0; 256];
    while let Ok(length @ 1..) = reader.read(&mut piece).await {
        buffer.extend_from_slice(&piece[..length]);
        let taken = parse_sizes(&buffer, |size| {
            sizes.send_replace(Some(size));
        });
        buffer.drain(..taken);
        if buffer.len() > LONGEST_SIZE {
            buffer.clear();
        }
    }
}

/// Gives each size in `bytes`, and tells how many bytes need not be looked at again.
pub(crate) fn parse_sizes(bytes: &[u8], mut give: impl FnMut(TerminalSize)) -> usize {
    let mut sizes = serde_json::Deserializer::from_slice(bytes).into_iter();
    loop {
        let taken = sizes.byte_offset();
        match sizes.next() {
            Some(Ok(size)) => give(size),
            Some(Err(error)) if error.is_eof() => return taken,
            Some(Err(_)) => return bytes.len(),
            None => return sizes.byte_offset(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_come_in_any_pieces() {
        let size = |width, height| TerminalSize { width, height };
        let cases: &[(&str, &[TerminalSize], usize)] = &[
            ("{\"Width\":80,\"Height\":24}\n", &[size(80, 24)], 25),
            ("{\"Width\":1,\"Height\":2}{\"Height\":4,\"Width\":3}", &[size(1, 2), size(3, 4)], 44),
            ("{\"Width\":1,\"Height\":2}\n{\"Wid", &[size(1, 2)], 22),
            ("{\"Width\":70000,\"Height\":2}", &[], 26),
            ("{\"Width\":-1}", &[], 12),
            ("garbage", &[], 7),
            ("", &[], 0),
        ];
        for (text, expected, taken) in cases {
            let mut found = Vec::new();
            assert_eq!(parse_sizes(text.as_bytes(), |size| found.push(size)), *taken, "{text}");
            assert_eq!(&found, expected, "{text}");
        }
    }
}
