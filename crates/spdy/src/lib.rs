//! SPDY/3.1 as Kubernetes speaks it for exec, attach and port-forward.
//!
//! [`Connection`] runs SPDY over a byte stream, as server or as client. The
//! other side opens streams, which [`Connection::accept`] yields, or this side
//! does with [`Connection::open`]. A [`Stream`] is `AsyncRead + AsyncWrite`;
//! shutting it down closes one direction, dropping it resets it.
//!
//! [`Encoder`] and [`Decoder`] are the frames alone, without IO.
//!
//! What the other side sends is hostile: [`Limits`] bounds frames, header
//! blocks, streams and buffers. Windows are not used, because Kubernetes' own
//! implementation has none; a connection of which one stream is not read stops
//! reading at all. The README says more.
//!
//! ```
//! use kina_spdy::{Connection, Headers, Limits};
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (near, far) = tokio::io::duplex(1 << 16);
//! let server = Connection::server(far, Limits::default());
//! tokio::spawn(async move {
//!     while let Some(incoming) = server.accept().await {
//!         let mut stream = incoming.accept();
//!         let mut text = String::new();
//!         stream.read_to_string(&mut text).await?;
//!         stream.write_all(text.to_uppercase().as_bytes()).await?;
//!         stream.shutdown().await?;
//!     }
//!     std::io::Result::Ok(())
//! });
//!
//! let client = Connection::client(near, Limits::default());
//! let mut stream = client.open(Headers::new().with("streamType", "echo")).await?;
//! stream.write_all(b"hello").await?;
//! stream.shutdown().await?;
//! let mut answer = String::new();
//! stream.read_to_string(&mut answer).await?;
//! assert_eq!(answer, "HELLO");
//! # Ok(())
//! # }
//! ```

mod connection;
mod dictionary;
mod driver;
mod entry;
mod error;
mod frame;
mod header;
mod state;
mod stream;

pub use crate::connection::{Connection, Incoming, Limits};
pub use crate::error::{Closed, OpenError, ProtocolError};
pub use crate::frame::{Decoded, Decoder, Encoder, Frame, GoAwayStatus, LONGEST_DATA, ResetStatus, Setting};
pub use crate::header::Headers;
pub use crate::stream::Stream;
