//! A forwarded connection.

use std::pin::pin;

use kina_guest_api::{GuestError, PortForward};
use kina_streaming::ByteStream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How much of a client's data is read at once.
const PIECE_BYTES: usize = 32 << 10;

/// What has come to an end.
enum Ended {
    /// One direction, in order.
    Direction,
    /// The client's part of the connection. That is no error to tell it: kubectl
    /// cuts every connection that it is done with, and gives up all others when it
    /// is told of one.
    Client,
}

/// Carries data until both directions have ended, or the client has.
pub(super) async fn run(connection: PortForward, stream: ByteStream) -> Result<(), GuestError> {
    let PortForward { input, mut output } = connection;
    let (mut reader, mut writer) = tokio::io::split(stream);
    let inward = async {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let sent = match reader.read(&mut piece).await {
                Ok(0) => {
                    drop(input.end().await);
                    return Ended::Direction;
                }
                Ok(length) => input.send(&piece[..length]).await,
                Err(_) => return Ended::Client,
            };
            // Why shows in the other direction.
            if sent.is_err() {
                return Ended::Direction;
            }
        }
    };
    let outward = async {
        while let Some(bytes) = output.next().await? {
            if writer.write_all(&bytes).await.is_err() {
                return Ok(Ended::Client);
            }
        }
        match writer.shutdown().await {
            Ok(()) => Ok(Ended::Direction),
            Err(_) => Ok(Ended::Client),
        }
    };
    let (mut inward, mut outward) = (pin!(inward), pin!(outward));
    tokio::select! {
        ended = &mut inward => match ended {
            Ended::Direction => outward.await.map(drop),
            Ended::Client => Ok(()),
        },
        ended = &mut outward => {
            if let Ended::Direction = ended? {
                inward.await;
            }
            Ok(())
        }
    }
}
