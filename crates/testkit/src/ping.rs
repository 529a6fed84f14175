//! Whether a guest answers, by the ping of HTTP/2.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kina_machine::Stream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\0kinakina";
const TYPE_PING: u8 = 6;
const ACKNOWLEDGED: u8 = 1;

/// Pings on streams to guests, each of which begins HTTP/2 once.
#[derive(Debug, Default)]
pub struct Pings {
    /// Streams on which it was begun, by their address.
    begun: Mutex<BTreeSet<usize>>,
}

impl Pings {
    /// Pings once.
    ///
    /// # Errors
    /// When the stream ends, or nobody answers before the deadline.
    pub async fn ping(&self, stream: &mut dyn Stream, deadline: Duration) -> io::Result<()> {
        let begun = || self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let address = (&raw mut *stream).cast::<()>() as usize;
        let answered = async {
            if begun().insert(address) {
                stream.write_all(PREFACE).await?;
            }
            stream.write_all(PING).await?;
            loop {
                let mut header = [0; 9];
                stream.read_exact(&mut header).await?;
                let length = usize::from(header[1]) << 8 | usize::from(header[2]);
                stream.read_exact(&mut vec![0; length]).await?;
                if header[3] == TYPE_PING && header[4] == ACKNOWLEDGED {
                    return Ok(());
                }
            }
        };
        let answered = tokio::time::timeout(deadline, answered).await;
        let answered = answered.unwrap_or(Err(io::ErrorKind::TimedOut.into()));
        if answered.is_err() {
            // Another stream may come to be at this address.
            begun().remove(&address);
        }
        answered
    }
}
