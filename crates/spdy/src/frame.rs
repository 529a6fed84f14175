//! The frames of SPDY/3, between bytes and values. No IO.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::error::ProtocolError;
use crate::header::{Compressor, Decompressor, Headers};

const VERSION: u16 = 3;
const CONTROL: u16 = 0x8000;
/// Stream numbers, window sizes and the like have 31 bits.
const MASK: u32 = 0x7fff_ffff;
const HEAD: usize = 8;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

const FLAG_FIN: u8 = 1;
const FLAG_UNIDIRECTIONAL: u8 = 2;
const FLAG_CLEAR_SETTINGS: u8 = 1;

/// The longest data frame that can be written, in bytes: its length has 24 bits.
pub const LONGEST_DATA: usize = (1 << 24) - 1;

/// Why a stream was reset: a number of RST_STREAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ResetStatus(pub u32);

impl ResetStatus {
    /// The peer did what the protocol does not allow.
    pub const PROTOCOL_ERROR: Self = Self(1);
    /// A frame came for a stream that is not open.
    pub const INVALID_STREAM: Self = Self(2);
    /// The stream was refused before anything was done for it.
    pub const REFUSED_STREAM: Self = Self(3);
    /// The stream is no longer wanted.
    pub const CANCEL: Self = Self(5);
    /// The sender failed.
    pub const INTERNAL_ERROR: Self = Self(6);
}

impl fmt::Display for ResetStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::PROTOCOL_ERROR => formatter.write_str("PROTOCOL_ERROR"),
            Self::INVALID_STREAM => formatter.write_str("INVALID_STREAM"),
            Self::REFUSED_STREAM => formatter.write_str("REFUSED_STREAM"),
            Self::CANCEL => formatter.write_str("CANCEL"),
            Self::INTERNAL_ERROR => formatter.write_str("INTERNAL_ERROR"),
            Self(number) => write!(formatter, "{number}"),
        }
    }
}

/// Why a connection ends: a number of GOAWAY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GoAwayStatus(pub u32);

impl GoAwayStatus {
    /// Nothing is wrong.
    pub const OK: Self = Self(0);
    /// The peer did what the protocol does not allow.
    pub const PROTOCOL_ERROR: Self = Self(1);
}

/// One entry of SETTINGS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// Its flags.
    pub flags: u8,
    /// Which setting, in 24 bits.
    pub id: u32,
    /// Its value.
    pub value: u32,
}

/// A frame. `fin` says that it is the sender's last of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Opens a stream.
    SynStream {
        /// The new stream's number: odd from clients, even from servers, never 0.
        stream: u32,
        /// The stream that it belongs to, or 0.
        associated: u32,
        /// 0 is the highest, 7 the lowest.
        priority: u8,
        /// The sender will not send on it.
        fin: bool,
        /// The receiver must not send on it.
        unidirectional: bool,
        /// What it is for.
        headers: Headers,
    },
    /// Accepts a stream.
    SynReply {
        /// The stream.
        stream: u32,
        /// The sender will not send on it.
        fin: bool,
        /// The answer to the stream's headers.
        headers: Headers,
    },
    /// Ends a stream at once, in both directions.
    RstStream {
        /// The stream.
        stream: u32,
        /// Why.
        status: ResetStatus,
    },
    /// Tells what the sender knows of the connection.
    Settings {
        /// Forget what was persisted.
        clear: bool,
        /// The entries.
        entries: Vec<Setting>,
    },
    /// Asks for the same frame back, if the number is the other side's kind (odd: clients'; even: servers').
    Ping {
        /// Its number.
        id: u32,
    },
    /// No more streams are taken.
    GoAway {
        /// The last stream of the receiver that the sender took, or 0.
        last_stream: u32,
        /// Why.
        status: GoAwayStatus,
    },
    /// More headers of an open stream.
    Headers {
        /// The stream.
        stream: u32,
        /// The sender's last frame.
        fin: bool,
        /// The headers.
        headers: Headers,
    },
    /// Room for more data, which Kubernetes does not use.
    WindowUpdate {
        /// The stream, or 0 for the connection.
        stream: u32,
        /// How many bytes more.
        delta: u32,
    },
    /// Bytes of a stream.
    Data {
        /// The stream.
        stream: u32,
        /// The sender's last frame.
        fin: bool,
        /// The bytes; at most [`LONGEST_DATA`].
        data: Bytes,
    },
}

/// What came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoded {
    /// A frame. A long data frame comes in pieces, of which the last has its `fin`.
    Frame(Frame),
    /// A frame whose headers are not allowed (a name that is empty, doubled or not in lower case, or text
    /// that is not UTF-8). It concerns its stream only, which should be reset.
    Malformed {
        /// The stream.
        stream: u32,
        /// It would have opened the stream.
        opens: bool,
    },
}

/// Makes bytes of frames, for one direction of one connection.
#[derive(Debug)]
pub struct Encoder {
    compressor: Compressor,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Encoder {
    /// The encoder of a new connection.
    #[must_use]
    pub fn new() -> Self {
        Self { compressor: Compressor::new() }
    }

    /// Appends a frame. All that was appended must reach the peer in this order, since header blocks depend
    /// on those before.
    ///
    /// Longer data than [`LONGEST_DATA`] becomes several frames.
    pub fn encode(&mut self, frame: &Frame, to: &mut BytesMut) {
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        match frame {
            Frame::SynStream { stream, associated, priority, fin, unidirectional, headers } => {
                let block = self.compressor.compress(headers);
                let flags = flag(*fin, FLAG_FIN) | flag(*unidirectional, FLAG_UNIDIRECTIONAL);
                control(to, SYN_STREAM, flags, 10 + block.len());
                to.put_u32(stream & MASK);
                to.put_u32(associated & MASK);
                to.put_u8(priority << 5);
                to.put_u8(0);
                to.put_slice(&block);
            }
            Frame::SynReply { stream, fin, headers } | Frame::Headers { stream, fin, headers } => {
                let block = self.compressor.compress(headers);
                let kind = if matches!(frame, Frame::SynReply { .. }) { SYN_REPLY } else { HEADERS };
                control(to, kind, flag(*fin, FLAG_FIN), 4 + block.len());
                to.put_u32(stream & MASK);
                to.put_slice(&block);
            }
            Frame::RstStream { stream, status } => {
                control(to, RST_STREAM, 0, 8);
                to.put_u32(stream & MASK);
                to.put_u32(status.0);
            }
            Frame::Settings { clear, entries } => {
                control(to, SETTINGS, flag(*clear, FLAG_CLEAR_SETTINGS), 4 + 8 * entries.len());
                to.put_u32(u32::try_from(entries.len()).unwrap_or(u32::MAX));
                for entry in entries {
                    to.put_u32(u32::from(entry.flags) << 24 | entry.id & 0x00ff_ffff);
                    to.put_u32(entry.value);
                }
            }
            Frame::Ping { id } => {
                control(to, PING, 0, 4);
                to.put_u32(*id);
            }
            Frame::GoAway { last_stream, status } => {
                control(to, GOAWAY, 0, 8);
                to.put_u32(last_stream & MASK);
                to.put_u32(status.0);
            }
            Frame::WindowUpdate { stream, delta } => {
                control(to, WINDOW_UPDATE, 0, 8);
                to.put_u32(stream & MASK);
                to.put_u32(delta & MASK);
            }
            Frame::Data { stream, fin, data } => {
                let mut rest = &data[..];
                loop {
                    let (piece, after) = rest.split_at(rest.len().min(LONGEST_DATA));
                    let last = after.is_empty();
                    to.put_u32(stream & MASK);
                    to.put_u32(u32::from(flag(*fin && last, FLAG_FIN)) << 24 | piece.len() as u32);
                    to.put_slice(piece);
                    rest = after;
                    if last {
                        break;
                    }
                }
            }
        }
    }
}

fn control(to: &mut BytesMut, kind: u16, flags: u8, length: usize) {
    to.put_u16(CONTROL | VERSION);
    to.put_u16(kind);
    to.put_u32(u32::from(flags) << 24 | u32::try_from(length).unwrap_or(u32::MAX) & 0x00ff_ffff);
}

/// Makes frames of bytes, for one direction of one connection. It holds no more than a control frame.
#[derive(Debug)]
pub struct Decoder {
    decompressor: Decompressor,
    control_frame: usize,
    /// A data frame of which pieces are still to come.
    data: Option<OpenData>,
}

#[derive(Debug, Clone, Copy)]
struct OpenData {
    stream: u32,
    fin: bool,
    left: usize,
}

impl Decoder {
    /// The decoder of a new connection, which takes control frames of up to `control_frame` bytes with
    /// header blocks of up to `header_block` bytes.
    #[must_use]
    pub fn new(control_frame: usize, header_block: usize) -> Self {
        Self { decompressor: Decompressor::new(header_block), control_frame, data: None }
    }

    /// Takes the next frame, or the next piece of one, from the bytes that came in; none if more must come.
    ///
    /// # Errors
    ///
    /// If the peer broke the protocol. What comes later cannot be read then.
    pub fn decode(&mut self, from: &mut BytesMut) -> Result<Option<Decoded>, ProtocolError> {
        if let Some(open) = self.data {
            return Ok(self.piece(open, from));
        }
        let Some(head) = from.first_chunk::<HEAD>() else { return Ok(None) };
        let [a, b, c, d, flags, rest @ ..] = *head;
        let length = rest.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        let first = u16::from_be_bytes([a, b]);
        if first & CONTROL == 0 {
            let stream = u32::from_be_bytes([a, b, c, d]);
            if stream == 0 {
                return Err(ProtocolError::StreamZero { frame: "DATA" });
            }
            from.advance(HEAD);
            return Ok(self.piece(OpenData { stream, fin: flags & FLAG_FIN != 0, left: length }, from));
        }
        let version = first & !CONTROL;
        if version != VERSION {
            return Err(ProtocolError::Version { version });
        }
        if length > self.control_frame {
            return Err(ProtocolError::FrameTooLong { length, limit: self.control_frame });
        }
        if from.len() < HEAD + length {
            return Ok(None);
        }
        from.advance(HEAD);
        let body = from.split_to(length).freeze();
        self.control(u16::from_be_bytes([c, d]), flags, body).map(Some)
    }

    fn piece(&mut self, open: OpenData, from: &mut BytesMut) -> Option<Decoded> {
        if from.is_empty() && open.left > 0 {
            self.data = Some(open);
            return None;
        }
        let data = from.split_to(open.left.min(from.len())).freeze();
        let left = open.left - data.len();
        self.data = (left > 0).then_some(OpenData { left, ..open });
        Some(Decoded::Frame(Frame::Data { stream: open.stream, fin: open.fin && left == 0, data }))
    }

    fn control(&mut self, kind: u16, flags: u8, mut body: Bytes) -> Result<Decoded, ProtocolError> {
        let length = body.len();
        let (frame, fits) = match kind {
            SYN_STREAM => ("SYN_STREAM", length >= 10),
            SYN_REPLY => ("SYN_REPLY", length >= 4),
            RST_STREAM => ("RST_STREAM", length == 8),
            SETTINGS => ("SETTINGS", length >= 4),
            PING => ("PING", length == 4),
            GOAWAY => ("GOAWAY", length == 8),
            HEADERS => ("HEADERS", length >= 4),
            WINDOW_UPDATE => ("WINDOW_UPDATE", length == 8),
            kind => return Err(ProtocolError::FrameType { kind }),
        };
        let wrong_length = ProtocolError::FrameLength { frame, length };
        if !fits {
            return Err(wrong_length);
        }
        let fin = flags & FLAG_FIN != 0;
        let first = body.get_u32();
        let stream = first & MASK;
        if stream == 0 && matches!(kind, SYN_STREAM | SYN_REPLY | RST_STREAM | HEADERS) {
            return Err(ProtocolError::StreamZero { frame });
        }
        Ok(Decoded::Frame(match kind {
            SYN_STREAM => {
                let associated = body.get_u32() & MASK;
                let priority = body.get_u8() >> 5;
                body.advance(1);
                let Some(headers) = self.decompressor.decompress(&body)? else {
                    return Ok(Decoded::Malformed { stream, opens: true });
                };
                let unidirectional = flags & FLAG_UNIDIRECTIONAL != 0;
                Frame::SynStream { stream, associated, priority, fin, unidirectional, headers }
            }
            SYN_REPLY | HEADERS => {
                let Some(headers) = self.decompressor.decompress(&body)? else {
                    return Ok(Decoded::Malformed { stream, opens: false });
                };
                if kind == SYN_REPLY {
                    Frame::SynReply { stream, fin, headers }
                } else {
                    Frame::Headers { stream, fin, headers }
                }
            }
            RST_STREAM => Frame::RstStream { stream, status: ResetStatus(body.get_u32()) },
            SETTINGS => {
                if body.len() as u64 != u64::from(first) * 8 {
                    return Err(wrong_length);
                }
                let mut entries = Vec::with_capacity(body.len() / 8);
                while body.has_remaining() {
                    let word = body.get_u32();
                    let flags = (word >> 24) as u8;
                    entries.push(Setting { flags, id: word & 0x00ff_ffff, value: body.get_u32() });
                }
                Frame::Settings { clear: flags & FLAG_CLEAR_SETTINGS != 0, entries }
            }
            PING => Frame::Ping { id: first },
            GOAWAY => Frame::GoAway { last_stream: stream, status: GoAwayStatus(body.get_u32()) },
            // The last kind that passed above.
            _ => Frame::WindowUpdate { stream, delta: body.get_u32() & MASK },
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decoder() -> Decoder {
        Decoder::new(4096, 16384)
    }

    /// All frames of `bytes`, which come in pieces of `step`.
    fn decode_all(bytes: &[u8], step: usize) -> Result<Vec<Decoded>, ProtocolError> {
        let mut decoder = decoder();
        let mut buffer = BytesMut::new();
        let mut frames = Vec::new();
        for piece in bytes.chunks(step) {
            buffer.extend_from_slice(piece);
            while let Some(frame) = decoder.decode(&mut buffer)? {
                frames.push(frame);
            }
        }
        Ok(frames)
    }

    fn samples() -> Vec<Frame> {
        let headers = || Headers::new().with("streamtype", "error");
        vec![
            Frame::SynStream {
                stream: 1,
                associated: 0,
                priority: 3,
                fin: true,
                unidirectional: true,
                headers: headers(),
            },
            Frame::SynReply { stream: 1, fin: false, headers: Headers::new() },
            Frame::RstStream { stream: 5, status: ResetStatus::CANCEL },
            Frame::Settings { clear: true, entries: vec![Setting { flags: 1, id: 7, value: 65536 }] },
            Frame::Ping { id: 0xffff_ffff },
            Frame::GoAway { last_stream: 7, status: GoAwayStatus::PROTOCOL_ERROR },
            Frame::Headers { stream: 3, fin: true, headers: headers() },
            Frame::WindowUpdate { stream: 0, delta: MASK },
            Frame::Data { stream: MASK, fin: true, data: Bytes::new() },
            Frame::Data { stream: 2, fin: false, data: Bytes::from_static(b"abc") },
        ]
    }

    #[test]
    fn every_frame_comes_out_as_it_went_in() {
        let mut encoder = Encoder::new();
        let mut bytes = BytesMut::new();
        for frame in samples() {
            encoder.encode(&frame, &mut bytes);
        }
        let frames: Vec<_> = samples().into_iter().map(Decoded::Frame).collect();
        assert_eq!(decode_all(&bytes, bytes.len()), Ok(frames));
        // Byte by byte only data differs: it comes as it comes.
        let frames = decode_all(&bytes, 1).unwrap();
        assert_eq!(frames.len(), samples().len() + 2);
    }

    #[test]
    fn the_bytes_are_those_of_the_protocol() {
        let mut bytes = BytesMut::new();
        let mut encoder = Encoder::new();
        encoder.encode(&Frame::Ping { id: 2 }, &mut bytes);
        encoder.encode(&Frame::RstStream { stream: 5, status: ResetStatus::REFUSED_STREAM }, &mut bytes);
        encoder.encode(&Frame::Data { stream: 3, fin: true, data: Bytes::from_static(b"x") }, &mut bytes);
        assert_eq!(
            bytes[..],
            *b"\x80\x03\0\x06\0\0\0\x04\0\0\0\x02\x80\x03\0\x03\0\0\0\x08\0\0\0\x05\0\0\0\x03\0\0\0\x03\x01\0\0\x01x"
        );
    }

    #[test]
    fn only_the_last_piece_of_data_ends_the_stream() {
        let frames = decode_all(b"\0\0\0\x03\x01\0\0\x04abcd", 10).unwrap();
        let data = |fin, data| Decoded::Frame(Frame::Data { stream: 3, fin, data: Bytes::from_static(data) });
        assert_eq!(frames, [data(false, b"ab"), data(true, b"cd")]);
    }

    #[test]
    fn what_breaks_the_protocol_is_named() {
        let cases: &[(&[u8], ProtocolError)] = &[
            (b"\x80\x02\0\x06\0\0\0\x04", ProtocolError::Version { version: 2 }),
            (b"\x80\x03\0\x05\0\0\0\0", ProtocolError::FrameType { kind: 5 }),
            (b"\x80\x03\0\x06\0\0\0\x05\0\0\0\0\0", ProtocolError::FrameLength { frame: "PING", length: 5 }),
            (b"\x80\x03\0\x06\0\0\0\0", ProtocolError::FrameLength { frame: "PING", length: 0 }),
            (b"\x80\x03\0\x01\0\xff\xff\xff", ProtocolError::FrameTooLong { length: 0xff_ffff, limit: 4096 }),
            (b"\0\0\0\0\0\0\0\x01", ProtocolError::StreamZero { frame: "DATA" }),
            (
                b"\x80\x03\0\x03\0\0\0\x08\x80\0\0\0\0\0\0\x05",
                ProtocolError::StreamZero { frame: "RST_STREAM" },
            ),
            (
                b"\x80\x03\0\x04\0\0\0\x04\x20\0\0\x01",
                ProtocolError::FrameLength { frame: "SETTINGS", length: 4 },
            ),
            (b"\x80\x03\0\x02\0\0\0\x08\0\0\0\x01abcd", ProtocolError::Compression),
        ];
        for (bytes, error) in cases {
            assert_eq!(decode_all(bytes, 64).as_ref(), Err(error), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn headers_that_are_not_allowed_do_not_end_the_connection() {
        let mut bytes = BytesMut::new();
        let mut encoder = Encoder::new();
        let mut bad = Headers::new();
        bad.set("", "no name");
        encoder.encode(&Frame::SynReply { stream: 9, fin: false, headers: bad }, &mut bytes);
        encoder.encode(&Frame::Ping { id: 1 }, &mut bytes);
        let frames = decode_all(&bytes, 1024).unwrap();
        assert_eq!(frames[0], Decoded::Malformed { stream: 9, opens: false });
        assert_eq!(frames[1], Decoded::Frame(Frame::Ping { id: 1 }));
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), step in 1..50_usize) {
            let _ = decode_all(&bytes, step);
        }
    }
}
