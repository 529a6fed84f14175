//! File data: from the stream straight to the image.

use std::io::BufRead;

use crate::error::Error;
use crate::image::format::{BLOCK_BITS, BLOCK_BYTES, NULL_BLOCK};
use crate::image::sink::Sink;
use crate::tar::{Archive, Segment, SparseMap};
use crate::tree::Chunked;

/// Chunks in one file's map, at most; larger files get larger chunks.
const MAX_CHUNKS: u64 = 1 << 18;

/// Writes the current entry's data; gives its first block.
pub(crate) fn write_plain<R: BufRead>(
    archive: &mut Archive<'_, R>,
    sink: &mut Sink<'_>,
) -> Result<u32, Error> {
    let block = sink.block()?;
    loop {
        let data = archive.peek_data()?;
        let count = data.len();
        if count == 0 {
            break;
        }
        sink.write_data(data)?;
        archive.consume_data(count);
    }
    sink.align()?;
    Ok(block)
}

/// How a sparse file is cut into chunks.
#[derive(Clone, Copy)]
pub(crate) struct ChunkGeometry {
    size: u64,
    bits: u8,
}

impl ChunkGeometry {
    pub(crate) fn of(size: u64) -> Self {
        let mut bits = 0;
        while size.div_ceil(BLOCK_BYTES << bits) > MAX_CHUNKS {
            bits += 1;
        }
        Self { size, bits }
    }

    pub(crate) fn chunks(self) -> usize {
        // At most MAX_CHUNKS.
        usize::try_from(self.size.div_ceil(self.chunk_bytes())).unwrap_or(usize::MAX)
    }

    /// What the chunks with data in them take in the image.
    pub(crate) fn allocated_bytes(self, map: &SparseMap) -> u64 {
        let mut chunks = 0;
        let mut next = 0;
        for &Segment { offset, length } in &map.segments {
            let first = (offset / self.chunk_bytes()).max(next);
            next = (offset + length).div_ceil(self.chunk_bytes());
            chunks += next.saturating_sub(first);
        }
        chunks * self.chunk_bytes()
    }

    fn chunk_bytes(self) -> u64 {
        1 << (BLOCK_BITS + self.bits)
    }
}

/// Writes the chunks that have data in them.
pub(crate) fn write_sparse<R: BufRead>(
    archive: &mut Archive<'_, R>,
    sink: &mut Sink<'_>,
    map: &SparseMap,
    geometry: ChunkGeometry,
) -> Result<Chunked, Error> {
    let mut writer =
        ChunkWriter { geometry, blocks: vec![NULL_BLOCK; geometry.chunks()], current: None, at: 0 };
    for &Segment { offset, length } in &map.segments {
        let end = offset + length;
        let mut at = offset;
        while at < end {
            writer.seek(sink, at)?;
            let chunk_end = (at / geometry.chunk_bytes() + 1) * geometry.chunk_bytes();
            let wanted = usize::try_from(end.min(chunk_end) - at).unwrap_or(usize::MAX);
            let data = archive.peek_data()?;
            let count = data.len().min(wanted);
            if count == 0 {
                // The map was checked against the entry's size.
                return Err(archive.truncated("a sparse file's data"));
            }
            sink.write(&data[..count])?;
            archive.consume_data(count);
            at += count as u64;
            writer.at = at;
        }
    }
    writer.finish_chunk(sink)?;
    Ok(Chunked { size: map.real_size, bits: geometry.bits, blocks: writer.blocks })
}

struct ChunkWriter {
    geometry: ChunkGeometry,
    blocks: Vec<u32>,
    current: Option<u64>,
    /// Where in the file the image stands, while there is a current chunk.
    at: u64,
}

impl ChunkWriter {
    /// Brings the image to an offset of the file, which is not before the last one.
    fn seek(&mut self, sink: &mut Sink<'_>, to: u64) -> Result<(), Error> {
        let chunk = to / self.geometry.chunk_bytes();
        if self.current != Some(chunk) {
            self.finish_chunk(sink)?;
            let index = usize::try_from(chunk).unwrap_or(usize::MAX);
            self.blocks[index] = sink.block()?;
            self.current = Some(chunk);
            self.at = chunk * self.geometry.chunk_bytes();
        }
        sink.skip(to - self.at)?;
        self.at = to;
        Ok(())
    }

    fn finish_chunk(&mut self, sink: &mut Sink<'_>) -> Result<(), Error> {
        if let Some(chunk) = self.current.take() {
            let end = ((chunk + 1) * self.geometry.chunk_bytes()).min(self.geometry.size);
            sink.skip(end - self.at)?;
            sink.align()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_counts_once_however_many_segments_touch_it() {
        let geometry = ChunkGeometry::of(100 * BLOCK_BYTES);
        let allocated = |pairs: &[u64]| {
            let stored = pairs.chunks(2).map(|pair| pair[1]).sum();
            let map = SparseMap::new(b"f", 100 * BLOCK_BYTES, stored, pairs).unwrap();
            geometry.allocated_bytes(&map) / BLOCK_BYTES
        };
        assert_eq!(allocated(&[]), 0);
        assert_eq!(allocated(&[0, 1, 2, 1, 4095, 1]), 1);
        assert_eq!(allocated(&[0, 1, 4095, 2, 4098, 1]), 2);
        assert_eq!(allocated(&[4096, 8192, 40960, 1]), 3);
        assert_eq!(ChunkGeometry::of(8 << 40).chunk_bytes(), 32 << 20);
        assert_eq!(ChunkGeometry::of(0).chunks(), 0);
    }
}
