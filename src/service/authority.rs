//! Clients that name the socket's path as the server they speak to.
//!
//! gRPC's C core (Python, C++, Ruby), grpc-java and others send the path of a
//! unix socket as a request's `:authority`, percent-encoded or as it is. No host
//! has such a name, and h2 refuses each of their calls; servers in Go take them.
//! Nothing here asks for the authority. So what no host's name has is replaced
//! before h2 reads it, byte by byte and by what takes as much room in the
//! header block, so that lengths and header tables stay right (RFC 9113 section
//! 4, RFC 7541 section 6).
//!
//! A block that names `:authority` by an entry of the dynamic table, with
//! another value than before, is left as it is: one connection has one server.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::uri::Authority;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::codegen::http;
use tonic::transport::server::Connected;

/// What is read at once, in bytes.
const CHUNK: usize = 8 << 10;

/// The length of what an HTTP/2 client says first (RFC 9113 section 3.4).
const PREFACE: usize = 24;

/// The length of what stands before a frame's payload (section 4.1).
const FRAME_HEAD: usize = 9;

/// The largest frame that h2 takes unless told otherwise (section 6.5.2).
const LARGEST_FRAME: usize = 16 << 10;

/// The type of a frame that begins a header block, and its flags (section 6.2).
const HEADERS: u8 = 1;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// `:authority` in the static table (RFC 7541 appendix A).
const AUTHORITY: usize = 1;

/// The symbols of Huffman's code (RFC 7541 appendix B) of 5 to 8 bits, in the
/// order of their codes: length, first code, symbols. Longer ones are no part of
/// a path that anybody has.
const CODES: [(usize, u32, &[u8]); 4] = [
    (5, 0, b"012aceiost"),
    (6, 0x14, b" %-./3456789=A_bdfghlmnpru"),
    (7, 0x5c, b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz"),
    (8, 0xf8, b"&*,;XZ"),
];

/// A connection whose requests have an authority that h2 takes.
#[derive(Debug)]
pub(crate) struct Lenient<IO> {
    io: IO,
    at: At,
    /// What was read and not yet given on.
    held: Vec<u8>,
    /// So much of `held` may be given on.
    seen: usize,
    ended: bool,
}

/// Where in the stream of frames the next unseen byte is, with the bytes to come.
#[derive(Debug)]
enum At {
    Preface(usize),
    FrameHead,
    Payload(usize),
}

impl<IO> Lenient<IO> {
    pub(crate) fn new(io: IO) -> Self {
        Self { io, at: At::Preface(PREFACE), held: Vec::new(), seen: 0, ended: false }
    }

    /// Looks at what was read, as far as it is all there.
    fn examine(&mut self) {
        loop {
            let rest = self.held.get_mut(self.seen..).unwrap_or_default();
            match &mut self.at {
                At::Preface(left) | At::Payload(left) => {
                    let taken = rest.len().min(*left);
                    self.seen += taken;
                    *left -= taken;
                    if *left > 0 {
                        return;
                    }
                    self.at = At::FrameHead;
                }
                At::FrameHead => {
                    let Some((&mut [a, b, c, kind, flags, ..], payload)) =
                        rest.split_first_chunk_mut::<FRAME_HEAD>()
                    else {
                        return;
                    };
                    let length = u32::from_be_bytes([0, a, b, c]) as usize;
                    if kind == HEADERS && length <= LARGEST_FRAME {
                        let Some(payload) = payload.get_mut(..length) else { return };
                        if let Some(block) = block(flags, payload) {
                            // What cannot be read is h2's to refuse.
                            let _ = mend(block);
                        }
                        self.seen += FRAME_HEAD + length;
                    } else {
                        self.seen += FRAME_HEAD;
                        self.at = At::Payload(length);
                    }
                }
            }
        }
    }
}

/// The part of a HEADERS frame's payload that is a header block.
fn block(flags: u8, payload: &mut [u8]) -> Option<&mut [u8]> {
    let (padding, payload) = match flags & PADDED {
        0 => (0, payload),
        _ => payload.split_first_mut().map(|(padding, payload)| (usize::from(*padding), payload))?,
    };
    let start = if flags & PRIORITY == 0 { 0 } else { 5 };
    let end = payload.len().checked_sub(padding)?;
    payload.get_mut(start..end)
}

/// Mends every authority in a header block. `None` if it ends too early, which it
/// may: only the first part of it is here, and pseudo headers come first.
fn mend(block: &mut [u8]) -> Option<()> {
    let mut at = 0;
    while let Some(first) = block.get(at) {
        let index_bits = match first {
            0x80.. => {
                integer(block, &mut at, 7)?;
                continue;
            }
            0x40..=0x7f => 6,
            0x20..=0x3f => {
                integer(block, &mut at, 5)?;
                continue;
            }
            0..=0x1f => 4,
        };
        let named = match integer(block, &mut at, index_bits)? {
            0 => text(block, &string(block, &mut at)?).as_deref() == Some(b":authority"),
            index => index == AUTHORITY,
        };
        let value = string(block, &mut at)?;
        if named && text(block, &value).is_some_and(|text| Authority::try_from(text.as_slice()).is_err()) {
            let huffman = value.huffman;
            let bytes = block.get_mut(value.bytes)?;
            if huffman { mend_huffman(bytes)? } else { bytes.iter_mut().for_each(mend_byte) }
        }
    }
    Some(())
}

/// A string in a header block.
struct Text {
    huffman: bool,
    bytes: Range<usize>,
}

fn string(block: &[u8], at: &mut usize) -> Option<Text> {
    let huffman = block.get(*at)? & 0x80 != 0;
    let length = integer(block, at, 7)?;
    let bytes = *at..at.checked_add(length)?;
    *at = bytes.end;
    (bytes.end <= block.len()).then_some(Text { huffman, bytes })
}

/// An integer whose first byte has so many bits of it (RFC 7541 section 5.1).
fn integer(block: &[u8], at: &mut usize, bits: u32) -> Option<usize> {
    let mask = (1_usize << bits) - 1;
    let mut value = usize::from(*block.get(*at)?) & mask;
    *at += 1;
    if value < mask {
        return Some(value);
    }
    for shift in [0, 7, 14, 21] {
        let byte = usize::from(*block.get(*at)?);
        *at += 1;
        value += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// What a string says; `None` for a symbol that [`CODES`] has not.
fn text(block: &[u8], string: &Text) -> Option<Vec<u8>> {
    let bytes = block.get(string.bytes.clone())?;
    if !string.huffman {
        return Some(bytes.to_vec());
    }
    let mut text = Vec::new();
    let mut at = 0;
    while let Some((symbol, length)) = symbol(bytes, at)? {
        text.push(symbol);
        at += length;
    }
    Some(text)
}

fn host_has(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.')
}

fn mend_byte(byte: &mut u8) {
    if !host_has(*byte) {
        *byte = b'-';
    }
}

/// As [`mend_byte`], each symbol by one whose code is as long.
fn mend_huffman(bytes: &mut [u8]) -> Option<()> {
    let mut at = 0;
    while let Some((symbol, length)) = symbol(bytes, at)? {
        if !host_has(symbol) {
            let (_, first, symbols) = CODES.iter().find(|(of, _, _)| *of == length)?;
            let (code, _) = (*first..).zip(*symbols).find(|(_, symbol)| host_has(**symbol))?;
            for bit in 0..length {
                set(bytes, at + bit, code >> (length - 1 - bit) & 1 != 0);
            }
        }
        at += length;
    }
    Some(())
}

/// The symbol at that bit and its length in bits. `Some(None)` at the end, where
/// less than a byte of ones is left; `None` for a longer code.
#[allow(clippy::option_option, reason = "an end is no failure")]
fn symbol(bytes: &[u8], at: usize) -> Option<Option<(u8, usize)>> {
    let mut code = 0;
    for length in 1..=8 {
        let Some(bit) = get(bytes, at + length - 1) else { return Some(None) };
        code = code << 1 | u32::from(bit);
        let found = CODES
            .iter()
            .find(|(of, _, _)| *of == length)
            .and_then(|(_, first, symbols)| symbols.get(usize::try_from(code.checked_sub(*first)?).ok()?));
        if let Some(symbol) = found {
            return Some(Some((*symbol, length)));
        }
    }
    None
}

fn get(bytes: &[u8], bit: usize) -> Option<bool> {
    bytes.get(bit / 8).map(|byte| byte & 0x80 >> (bit % 8) != 0)
}

fn set(bytes: &mut [u8], bit: usize, value: bool) {
    if let Some(byte) = bytes.get_mut(bit / 8) {
        let mask = 0x80 >> (bit % 8);
        *byte = if value { *byte | mask } else { *byte & !mask };
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Lenient<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.seen == 0 && !this.ended {
            let mut chunk = [0; CHUNK];
            let mut chunk = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut this.io).poll_read(context, &mut chunk))?;
            this.held.extend_from_slice(chunk.filled());
            if chunk.filled().is_empty() {
                this.ended = true;
                this.seen = this.held.len();
            } else {
                this.examine();
            }
        }
        let given = this.seen.min(buffer.remaining());
        buffer.put_slice(this.held.get(..given).unwrap_or_default());
        this.held.drain(..given);
        this.seen -= given;
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Lenient<IO> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(context, buffer)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(context)
    }
}

impl<IO: Connected> Connected for Lenient<IO> {
    type ConnectInfo = IO::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.io.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    /// The block, mended. Those in Huffman's code were written by Python's `hpack`.
    fn mended(block: &str) -> String {
        let mut block = hex::decode(block).unwrap();
        mend(&mut block);
        hex::encode(block)
    }

    #[test]
    fn a_hosts_name_stays() {
        // www.example.com, RFC 7541 appendix C.4.1; localhost; both plain, too.
        for block in [
            "828684418cf1e3c2e5f23a6ba0ab90f4ff",
            "8386448263cf4186a0e41d139d09",
            "828684410f7777772e6578616d706c652e636f6d",
            "41096c6f63616c686f7374",
        ] {
            assert_eq!(mended(block), block);
        }
    }

    #[test]
    fn a_path_becomes_a_hosts_name_of_the_same_length() {
        for (block, wanted) in [
            // By the static table's name, in Huffman's code: /tmp/kina.sock,
            // tmp%2Fkina.sock, /a:b&c.
            ("8386448263cf418a6134d6c7535435d07275", "8386448263cf418a5934d6b7535435d07275"),
            ("8386448263cf418b4d35aa2c3d4d50d741c9d7", "8386448263cf418b4d35ac2c3d4d50d741c9d7"),
            ("8386448263cf4185607723f827", "8386448263cf4185587763fc27"),
            // By the name itself, plain, as gRPC's C core: tmp%2Fx.
            ("400a3a617574686f7269747907746d7025324678", "400a3a617574686f7269747907746d702d324678"),
            // The name in Huffman's code, never indexed: /tmp//x.
            ("1088b83b5339ec327d7f072f746d702f2f78", "1088b83b5339ec327d7f072d746d702d2d78"),
        ] {
            assert_eq!(mended(block), wanted);
        }
    }

    #[test]
    fn what_is_no_authority_stays() {
        // A path with a percent sign; the header x-y.
        for block in ["04042f252f25", "4003782d7903252f25"] {
            assert_eq!(mended(block), block);
        }
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn conversation(padded: bool) -> (Vec<u8>, Vec<u8>) {
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        let settings = frame(4, 0, &[0, 2, 0, 0, 0, 0]);
        let data = frame(0, 1, b"\0\0\0\0\x02%/");
        let headers = |value: &[u8]| {
            let block = [b"\x83\x01\x07", value].concat();
            match padded {
                false => frame(HEADERS, 4, &block),
                true => frame(
                    HEADERS,
                    4 | PADDED | PRIORITY,
                    &[b"\x02\x01\x01\x01\x01\x01", block.as_slice(), b"%%"].concat(),
                ),
            }
        };
        let of = |value| {
            [preface.clone(), settings.clone(), headers(value), data.clone(), headers(value)].concat()
        };
        (of(b"tmp%2Fx"), of(b"tmp-2Fx"))
    }

    #[tokio::test]
    async fn frames_are_found_wherever_they_are_cut() {
        for padded in [false, true] {
            let (sent, wanted) = conversation(padded);
            for cut in 0..=sent.len() {
                let (first, second) = sent.split_at(cut);
                // Never in one read.
                let io = first.chain(second);
                let mut found = Vec::new();
                Lenient::new(io).read_to_end(&mut found).await.unwrap();
                assert_eq!(found, wanted, "cut at {cut}");
            }
        }
    }

    #[tokio::test]
    async fn a_connection_that_ends_in_a_frame_gives_all_it_had() {
        let (sent, _) = conversation(false);
        let sent = &sent[..sent.len() - 3];
        let mut found = Vec::new();
        Lenient::new(sent).read_to_end(&mut found).await.unwrap();
        assert_eq!(found.len(), sent.len());
    }

    proptest! {
        #[test]
        fn any_bytes_keep_their_length(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let length = bytes.len();
            let _ = mend(&mut bytes);
            prop_assert_eq!(bytes.len(), length);
            let _ = block(0xff, &mut bytes);
        }
    }
}
