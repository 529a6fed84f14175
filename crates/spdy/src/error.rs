//! What can go wrong.

use std::io;
use std::sync::Arc;

use crate::frame::ResetStatus;

/// What a peer sent that is not SPDY/3, or more than was agreed to take. The connection cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// A control frame of another version.
    #[error("a control frame of SPDY version {version}; only version 3 is spoken")]
    Version {
        /// The version it names.
        version: u16,
    },
    /// A control frame of a type that SPDY/3 does not have.
    #[error("a control frame of the unknown type {kind}")]
    FrameType {
        /// The type's number.
        kind: u16,
    },
    /// A control frame that is longer than [`Limits::control_frame`](crate::Limits::control_frame).
    #[error("a control frame of {length} bytes, where {limit} are allowed")]
    FrameTooLong {
        /// Its length, in bytes.
        length: usize,
        /// The bound.
        limit: usize,
    },
    /// A control frame whose length does not fit its type.
    #[error("a {frame} frame of {length} bytes, which cannot be")]
    FrameLength {
        /// The frame's name.
        frame: &'static str,
        /// Its length, in bytes.
        length: usize,
    },
    /// A frame of a stream on stream 0, which does not exist.
    #[error("a {frame} frame for stream 0")]
    StreamZero {
        /// The frame's name.
        frame: &'static str,
    },
    /// A header block that zlib cannot read.
    #[error("a header block that does not decompress")]
    Compression,
    /// A header block that inflates beyond [`Limits::header_block`](crate::Limits::header_block).
    #[error("a header block that inflates beyond {limit} bytes")]
    HeaderBlockTooLong {
        /// The bound, in bytes.
        limit: usize,
    },
    /// A header block that ends in the middle of a field, or goes on after the last.
    #[error("a header block whose lengths do not add up")]
    HeaderBlock,
    /// A new stream whose number is not above those before it, or is the other side's to give.
    #[error("a new stream with the number {stream}, after {last}")]
    StreamNumber {
        /// The number it names.
        stream: u32,
        /// The peer's last stream before.
        last: u32,
    },
}

/// Why a connection has ended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Closed {
    /// It was closed or dropped on this side.
    #[error("the connection was closed")]
    Here,
    /// The peer ended it.
    #[error("the peer closed the connection")]
    ByPeer,
    /// Nothing was heard or sent for [`Limits::idle_timeout`](crate::Limits::idle_timeout).
    #[error("the connection was idle for too long")]
    Idle,
    /// The peer broke the protocol.
    #[error("the peer broke the protocol")]
    Protocol(#[source] ProtocolError),
    /// The transport failed.
    #[error("the connection broke")]
    Transport(#[source] Arc<io::Error>),
}

/// Why a stream could not be opened.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OpenError {
    /// The connection has ended.
    #[error("no stream can be opened")]
    Closed(#[source] Closed),
    /// The peer has said that it takes no more streams.
    #[error("the peer takes no more streams")]
    GoingAway,
    /// The peer refused this stream.
    #[error("the peer refused the stream with status {status}")]
    Refused {
        /// The status that it gave.
        status: ResetStatus,
    },
    /// As many streams are open as the limits allow.
    #[error("{limit} streams are open, which is all that is allowed; close some first")]
    TooMany {
        /// The bound.
        limit: usize,
    },
    /// The connection has had 2³⁰ streams.
    #[error("the connection has no stream numbers left; make a new one")]
    OutOfNumbers,
    /// The headers do not fit into a frame.
    #[error("the headers are longer than a frame")]
    HeadersTooLong,
}
