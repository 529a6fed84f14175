//! The task that moves bytes between the transport and a connection's state.

use std::future::pending;
use std::io;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::connection::Limits;
use crate::error::{Closed, ProtocolError};
use crate::frame::{Decoder, GoAwayStatus};
use crate::state::{Next, Shared};

/// What one read takes from the transport, in bytes.
const READ: usize = 32 << 10;

/// How reading ended, if not by the peer's end.
enum Ended {
    Protocol(ProtocolError),
    Transport(io::Error),
}

impl From<ProtocolError> for Ended {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Transport(error)
    }
}

/// Runs a connection until it ends. Whoever aborts the task calls [`Shared::finish`].
pub(crate) async fn run(transport: impl AsyncRead + AsyncWrite, limits: Limits, shared: Arc<Shared>) {
    let (reader, writer) = split(transport);
    let reason = drive(reader, writer, &limits, &shared).await;
    shared.finish(reason);
}

async fn drive(
    reader: impl AsyncRead,
    writer: impl AsyncWrite,
    limits: &Limits,
    shared: &Arc<Shared>,
) -> Closed {
    let mut reading = std::pin::pin!(read(reader, limits, shared));
    let mut writing = std::pin::pin!(write(writer, shared));
    let closing = async {
        // Whatever the peer does, an end that was begun comes.
        shared.closing().await;
        sleep(limits.close_timeout).await;
    };
    let mut closing = std::pin::pin!(closing);
    tokio::select! {
        ended = &mut reading => match ended {
            Ok(()) => Closed::ByPeer,
            Err(Ended::Transport(error)) => Closed::Transport(Arc::new(error)),
            Err(Ended::Protocol(error)) => {
                // Tell the peer, if it still listens.
                shared.begin_close(GoAwayStatus::PROTOCOL_ERROR);
                let _: Result<_, _> = timeout(limits.close_timeout, writing).await;
                Closed::Protocol(error)
            }
        },
        ended = &mut writing => match ended {
            Err(error) => Closed::Transport(Arc::new(error)),
            Ok(()) => {
                // A transport that is closed while bytes of the peer lie unread is reset, and the peer may
                // lose what was sent last. So hear the peer out.
                tokio::select! {
                    _ = &mut reading => {}
                    () = &mut closing => {}
                }
                Closed::Here
            }
        },
        () = &mut closing => Closed::Here,
        reason = watch(limits, shared) => reason,
    }
}

async fn read(reader: impl AsyncRead, limits: &Limits, shared: &Shared) -> Result<(), Ended> {
    let mut reader = std::pin::pin!(reader);
    let mut decoder = Decoder::new(limits.control_frame, limits.header_block);
    let mut buffer = BytesMut::with_capacity(READ);
    loop {
        while let Some(decoded) = decoder.decode(&mut buffer)? {
            while !shared.lock().admits(&decoded) {
                shared.room.notified().await;
            }
            // Room does not shrink meanwhile: nobody else receives.
            if shared.lock().receive(decoded)? {
                shared.news.notify_waiters();
            }
            // It may have been answered.
            shared.work.notify_one();
        }
        buffer.reserve(READ);
        if reader.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

async fn write(writer: impl AsyncWrite, shared: &Shared) -> io::Result<()> {
    let mut writer = std::pin::pin!(writer);
    let mut batch = BytesMut::new();
    loop {
        let next = shared.lock().next_batch(&mut batch);
        match next {
            Next::Write => {
                // Control frames have left their queue.
                shared.room.notify_one();
                writer.write_all(&batch).await?;
                writer.flush().await?;
            }
            Next::Wait => shared.work.notified().await,
            Next::Done => {
                writer.shutdown().await?;
                return Ok(());
            }
        }
    }
}

/// Ends an idle connection, and pings a quiet one: a transport whose peer has vanished fails then, also
/// when nothing is read from it.
async fn watch(limits: &Limits, shared: &Shared) -> Closed {
    let idle = async {
        loop {
            let active = shared.lock().active;
            let due = active + limits.idle_timeout;
            if due <= Instant::now() {
                return;
            }
            sleep_until(due).await;
        }
    };
    let pings = async {
        let Some(interval) = limits.ping_interval else { return pending().await };
        loop {
            sleep(interval).await;
            shared.lock().ping_after(interval);
            shared.work.notify_one();
        }
    };
    tokio::select! {
        () = idle => Closed::Idle,
        () = pings => Closed::Idle,
    }
}
