//! Encoding and parsing of CRI log records.
//!
//! Rules, as kubelet's reader expects them and containerd writes them:
//! - a line of at most [`MAX_CONTENT`] bytes is one record with tag `F`;
//! - a longer line is cut into records of [`MAX_CONTENT`] bytes with tag `P`,
//!   the last part with tag `F`;
//! - output that ends without a newline becomes a record with tag `P`: the
//!   reader adds a newline for `F` only, so it shows exactly what was written.
//!
//! Content is any bytes but `\n`; a `\r` before the newline is content.

use crate::error::Error;
use crate::timestamp::{TIMESTAMP_LEN, Timestamp};

/// Most bytes of content in one record.
pub const MAX_CONTENT: usize = 16 * 1024;

/// Bytes before the content: timestamp, stream, tag and three spaces. `stdout`
/// and `stderr` are equally long.
const HEADER_LEN: usize = TIMESTAMP_LEN + 1 + 6 + 1 + 1 + 1;

/// Most bytes of one record, its newline included.
pub const MAX_RECORD: usize = HEADER_LEN + MAX_CONTENT + 1;

/// Which of a container's outputs a record comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output; also everything from a container with a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// The name in a record.
    pub const fn name(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
        }
    }
}

/// Turns one output of a container into records.
///
/// Holds the beginning of a line whose end was not seen yet: at most
/// [`MAX_CONTENT`] bytes, and no memory while there is none.
#[derive(Debug)]
pub struct Encoder {
    stream: Stream,
    partial: Vec<u8>,
}

impl Encoder {
    /// An encoder for one output.
    pub fn new(stream: Stream) -> Self {
        Self { stream, partial: Vec::new() }
    }

    /// Encodes from the front of `input` and appends whole records, stamped
    /// `now`, to `records`. Stops when `input` is used up or `records` has
    /// grown to `limit` bytes or more; it then exceeds `limit` by less than
    /// [`MAX_RECORD`]. Returns how many bytes of `input` were taken (at least
    /// one, unless `input` is empty or `records` is at its limit already).
    pub fn encode(&mut self, now: Timestamp, input: &[u8], records: &mut Vec<u8>, limit: usize) -> usize {
        let stamp = now.format();
        let mut rest = input;
        while !rest.is_empty() && records.len() < limit {
            // One byte more than fits: a newline there still ends a full line.
            let room = MAX_CONTENT - self.partial.len();
            let window = &rest[..rest.len().min(room + 1)];
            match window.iter().position(|byte| *byte == b'\n') {
                Some(end) => {
                    self.emit(&stamp, b'F', &rest[..end], records);
                    rest = &rest[end + 1..];
                }
                None if rest.len() > room => {
                    self.emit(&stamp, b'P', &rest[..room], records);
                    // Takes the byte that shows that the line goes on, so that
                    // something is taken also when there was no room.
                    self.partial.push(rest[room]);
                    rest = &rest[room + 1..];
                }
                None => {
                    self.partial.extend_from_slice(rest);
                    rest = &[];
                }
            }
        }
        input.len() - rest.len()
    }

    /// Ends the output: a line without its newline becomes a `P` record.
    pub fn finish(&mut self, now: Timestamp, records: &mut Vec<u8>) {
        if !self.partial.is_empty() {
            self.emit(&now.format(), b'P', &[], records);
        }
    }

    /// Bytes held of a line that has not ended.
    pub fn pending(&self) -> usize {
        self.partial.len()
    }

    fn emit(&mut self, stamp: &[u8; TIMESTAMP_LEN], tag: u8, content: &[u8], records: &mut Vec<u8>) {
        records.reserve(HEADER_LEN + self.partial.len() + content.len() + 1);
        records.extend_from_slice(stamp);
        records.push(b' ');
        records.extend_from_slice(self.stream.name().as_bytes());
        records.extend_from_slice(&[b' ', tag, b' ']);
        records.extend_from_slice(&self.partial);
        records.extend_from_slice(content);
        records.push(b'\n');
        self.partial = Vec::new();
    }
}

/// One record, borrowed from the bytes that it was parsed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The timestamp as written; its fields were checked, not the calendar.
    pub timestamp: &'a [u8],
    /// Which output it comes from.
    pub stream: Stream,
    /// Tag `P`: the line goes on in the next record of the same stream.
    pub partial: bool,
    /// The content, without newline.
    pub content: &'a [u8],
}

impl<'a> Record<'a> {
    /// Parses the record at the front of `bytes`; returns it and its length
    /// with the newline. Accepts exactly what [`Encoder`] writes.
    ///
    /// # Errors
    /// [`Error::Malformed`], also for a record without its newline.
    pub fn parse(bytes: &'a [u8]) -> Result<(Self, usize), Error> {
        let bad = |reason| Error::Malformed { at: 0, reason };
        let window = &bytes[..bytes.len().min(MAX_RECORD)];
        let end = window
            .iter()
            .position(|byte| *byte == b'\n')
            .ok_or_else(|| bad("no newline within the longest record"))?;
        let line = &window[..end];
        if line.len() < HEADER_LEN {
            return Err(bad("shorter than a header"));
        }
        let (header, content) = line.split_at(HEADER_LEN);
        let (timestamp, header) = header.split_at(TIMESTAMP_LEN);
        let shape = b"dddd-dd-ddTdd:dd:dd.dddddddddZ";
        let fits = |(byte, form): (&u8, &u8)| match form {
            b'd' => byte.is_ascii_digit(),
            _ => byte == form,
        };
        if !timestamp.iter().zip(shape).all(fits) {
            return Err(bad("bad timestamp"));
        }
        let stream = match &header[..8] {
            b" stdout " => Stream::Stdout,
            b" stderr " => Stream::Stderr,
            _ => return Err(bad("unknown stream")),
        };
        let partial = match &header[8..] {
            b"P " => true,
            b"F " => false,
            _ => return Err(bad("unknown tag")),
        };
        let record = Self { timestamp, stream, partial, content };
        Ok((record, end + 1))
    }
}

/// Iterates over the records in `bytes`; ends after the first bad one.
pub fn records(bytes: &[u8]) -> impl Iterator<Item = Result<Record<'_>, Error>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = bytes.get(at..).filter(|rest| !rest.is_empty())?;
        match Record::parse(rest) {
            Ok((record, length)) => {
                at += length;
                Some(Ok(record))
            }
            Err(Error::Malformed { reason, .. }) => {
                let bad = Error::Malformed { at, reason };
                at = bytes.len();
                Some(Err(bad))
            }
            Err(other) => {
                at = bytes.len();
                Some(Err(other))
            }
        }
    })
}

/// Checks that `bytes` is a sequence of whole records. What comes from a VM
/// passes here before it reaches a file.
///
/// # Errors
/// [`Error::Malformed`] with the offset of the first bad record.
pub fn validate(bytes: &[u8]) -> Result<(), Error> {
    records(bytes).try_for_each(|record| record.map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: &str = "2026-11-24T12:00:00.000000001Z";

    fn now() -> Timestamp {
        Timestamp::from_unix(1_795_521_600, 1)
    }

    fn encode(chunks: &[&[u8]], limit: usize) -> Vec<u8> {
        let mut encoder = Encoder::new(Stream::Stdout);
        let mut all = Vec::new();
        for chunk in chunks {
            let mut rest = *chunk;
            while !rest.is_empty() {
                let mut records = Vec::new();
                let taken = encoder.encode(now(), rest, &mut records, limit);
                assert!(taken > 0 && records.len() < limit.saturating_add(MAX_RECORD));
                assert!(encoder.pending() <= MAX_CONTENT);
                rest = &rest[taken..];
                all.extend(records);
            }
        }
        encoder.finish(now(), &mut all);
        assert_eq!(encoder.pending(), 0);
        all
    }

    fn decode(log: &[u8]) -> Vec<u8> {
        let mut output = Vec::new();
        for record in records(log) {
            let record = record.unwrap();
            output.extend_from_slice(record.content);
            if !record.partial {
                output.push(b'\n');
            }
        }
        output
    }

    #[track_caller]
    fn check(input: &[u8], expected: &[(char, &[u8])]) {
        let log = encode(&[input], usize::MAX);
        let bytes: Vec<&[u8]> = input.chunks(1).collect();
        assert!(log == encode(&bytes, 1));
        let mut wanted = Vec::new();
        for (tag, content) in expected {
            wanted.extend_from_slice(format!("{NOW} stdout {tag} ").as_bytes());
            wanted.extend_from_slice(content);
            wanted.push(b'\n');
        }
        assert!(log == wanted, "{}", String::from_utf8_lossy(&log));
        assert_eq!(decode(&log), input);
    }

    #[test]
    fn lines() {
        check(b"", &[]);
        check(b"\n", &[('F', b"")]);
        check(b"one\ntwo\r\n", &[('F', b"one"), ('F', b"two\r")]);
        check(b"no newline", &[('P', b"no newline")]);
        check(b"a\nb", &[('F', b"a"), ('P', b"b")]);
    }

    #[test]
    fn long_lines_are_cut_at_16_kib() {
        let full = vec![b'x'; MAX_CONTENT];
        let line = |parts: &[&[u8]]| parts.concat();
        check(&line(&[&full, b"\n"]), &[('F', &full)]);
        check(&full, &[('P', &full)]);
        check(&line(&[&full, b"y\n"]), &[('P', &full), ('F', b"y")]);
        check(&line(&[&full, &full, b"\n"]), &[('P', &full), ('F', &full)]);
        check(&line(&[&full, b"y"]), &[('P', &full), ('P', b"y")]);
    }

    #[test]
    fn malformed_records_are_refused() {
        let good = format!("{NOW} stderr F content\n");
        assert!(validate(good.as_bytes()).is_ok());
        for bad in [
            "\n".to_owned(),
            good.replace("stderr", "stdlog"),
            good.replace(" F ", " X "),
            good.replace('T', " "),
            good.trim_end().to_owned(),
            format!("{NOW} stdout F {}\n", "x".repeat(MAX_CONTENT + 1)),
        ] {
            let bytes = format!("{good}{bad}");
            match validate(bytes.as_bytes()) {
                Err(Error::Malformed { at, .. }) => assert_eq!(at, good.len(), "{bad}"),
                other => panic!("{bad}: {other:?}"),
            }
        }
    }

    /// Bytes with newlines at all distances from the 16 KiB bound.
    fn output() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..64),
            (MAX_CONTENT - 2..MAX_CONTENT + 3).prop_map(|length| vec![b'x'; length]),
            Just(b"\n".to_vec()),
        ];
        proptest::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_chunking_gives_the_same_records(
            output in output(),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12),
            limit in 1..100_000usize,
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(output.len() + 1)).collect();
            cuts.extend([0, output.len()]);
            cuts.sort_unstable();
            let chunks: Vec<&[u8]> = cuts.windows(2).map(|cut| &output[cut[0]..cut[1]]).collect();
            let log = encode(&chunks, limit);
            prop_assert!(log == encode(&[&output], usize::MAX));
            prop_assert!(decode(&log) == output);
        }

        #[test]
        fn arbitrary_bytes_never_panic_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = validate(&bytes);
        }
    }
}
