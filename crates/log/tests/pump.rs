//! Pumps, and the sinks behind them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kina_log::format::records;
use kina_log::{
    Error, FileSink, LogWriter, MAX_RECORD, PumpMetrics, RecordBuffer, Sink, Stream, pump, pump_observed,
};
use tokio::io::AsyncWriteExt;
use tokio::time::timeout;

const DEADLINE: Duration = Duration::from_secs(30);

/// The output of one stream that a log holds.
fn content(log: &[u8], stream: Stream) -> Vec<u8> {
    let mut content = Vec::new();
    for record in records(log) {
        let record = record.unwrap();
        if record.stream == stream {
            content.extend_from_slice(record.content);
            if !record.partial {
                content.push(b'\n');
            }
        }
    }
    content
}

/// Output with short, long and empty lines that ends without a newline.
fn output(seed: usize) -> Vec<u8> {
    let mut output = Vec::new();
    for line in 0..400 {
        let length = (line * 7919 + seed) % 997 * if line % 50 == 0 { 60 } else { 1 };
        output.extend(std::iter::repeat_n(b'a' + (line % 26) as u8, length));
        output.push(b'\n');
    }
    output.extend_from_slice(b"the end");
    output
}

#[tokio::test]
async fn both_outputs_reach_the_file_across_rotations() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("0.log");
    let file = Arc::new(FileSink::new(LogWriter::open(&path).unwrap()));
    let sink = Sink::File(Arc::clone(&file));
    let metrics = Arc::new(PumpMetrics::default());
    let mut tasks = tokio::task::JoinSet::new();
    for (stream, seed) in [(Stream::Stdout, 1), (Stream::Stderr, 2)] {
        let (sink, metrics) = (sink.clone(), Arc::clone(&metrics));
        let (mut write, read) = tokio::net::unix::pipe::pipe().unwrap();
        tasks.spawn(async move { write.write_all(&output(seed)).await.unwrap() });
        tasks.spawn(async move { pump(read, stream, &sink, &metrics).await.unwrap() });
    }
    let mut rotated = Vec::new();
    for number in 0..20 {
        tokio::task::yield_now().await;
        let name = directory.path().join(format!("0.log.{number}"));
        fs::rename(&path, &name).unwrap();
        file.reopen().unwrap();
        rotated.push(name);
    }
    while let Some(done) = timeout(DEADLINE, tasks.join_next()).await.unwrap() {
        done.unwrap();
    }
    rotated.push(path);
    let files: Vec<Vec<u8>> = rotated.iter().map(|path| fs::read(path).unwrap()).collect();
    let used = files.iter().filter(|content| !content.is_empty()).count();
    assert!(used > 1, "no rotation met any output");
    // Each file by itself is whole records.
    for file in &files {
        kina_log::format::validate(file).unwrap();
    }
    let log = files.concat();
    assert!(content(&log, Stream::Stdout) == output(1));
    assert!(content(&log, Stream::Stderr) == output(2));
    let counted = metrics.snapshot();
    assert_eq!(counted.bytes_read as usize, output(1).len() + output(2).len());
    assert_eq!(counted.bytes_stored as usize, log.len());
    assert_eq!((counted.waits, counted.write_failures), (0, 0));
}

#[tokio::test]
async fn an_unread_stream_holds_the_container_back_and_loses_nothing() {
    let buffer = Arc::new(RecordBuffer::new(64 * 1024));
    let sink = Sink::Stream(Arc::clone(&buffer));
    let metrics = Arc::new(PumpMetrics::default());
    let observed = Arc::new(Mutex::new(Vec::new()));
    let (mut write, read) = tokio::net::unix::pipe::pipe().unwrap();
    let writer = tokio::spawn(async move { write.write_all(&output(3)).await.unwrap() });
    let task = {
        let (metrics, buffer) = (Arc::clone(&metrics), Arc::clone(&buffer));
        let observed = Arc::clone(&observed);
        tokio::spawn(async move {
            let observe = |bytes: &[u8]| observed.lock().unwrap().extend_from_slice(bytes);
            pump_observed(read, Stream::Stdout, &sink, &metrics, observe).await.unwrap();
            buffer.close();
        })
    };
    // Nobody reads: the buffer fills and the writer is stuck.
    let full = async {
        while metrics.snapshot().waits == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, full).await.unwrap();
    assert!(!writer.is_finished());
    assert!(buffer.end() <= 64 * 1024);
    assert!(buffer.end() > (64 * 1024 - MAX_RECORD) as u64);

    let (mut log, mut connections) = (Vec::new(), 0);
    while let Some(chunk) = timeout(DEADLINE, buffer.next(log.len() as u64, 4000)).await.unwrap().unwrap() {
        assert_eq!(chunk.offset, log.len() as u64);
        kina_log::format::validate(&chunk.bytes).unwrap();
        connections += 1;
        // Every third chunk is lost with its connection and asked for again.
        if connections % 3 == 0 {
            continue;
        }
        log.extend_from_slice(&chunk.bytes);
        buffer.acknowledge(chunk.end()).unwrap();
    }
    timeout(DEADLINE, task).await.unwrap().unwrap();
    writer.await.unwrap();
    assert!(content(&log, Stream::Stdout) == output(3));
    assert!(*observed.lock().unwrap() == output(3));
    let counted = metrics.snapshot();
    assert!(counted.wait_time > Duration::ZERO && counted.waited_bytes > 0);
}

#[tokio::test]
async fn a_stream_refuses_wrong_offsets() {
    let buffer = RecordBuffer::default();
    let record = b"2026-11-24T12:00:00.000000000Z stdout F hello\n";
    buffer.append(&record.repeat(3)).await.unwrap();
    let length = record.len() as u64;
    buffer.acknowledge(length).unwrap();
    buffer.acknowledge(0).unwrap();
    for offset in [0, length + 1, 3 * length + 1, u64::MAX] {
        assert!(matches!(buffer.next(offset, 1).await, Err(Error::Offset { .. })), "{offset}");
    }
    for offset in [length + 1, 3 * length + 1, u64::MAX] {
        assert!(matches!(buffer.acknowledge(offset), Err(Error::Offset { .. })), "{offset}");
    }
    assert_eq!((buffer.start(), buffer.end()), (length, 3 * length));
    assert!(matches!(buffer.append(b"not a whole record").await, Err(Error::Malformed { .. })));
    buffer.close();
    assert!(matches!(buffer.append(record).await, Err(Error::Closed)));
    assert!(buffer.next(length, 1).await.unwrap().is_some());
    assert!(buffer.next(3 * length, 1).await.unwrap().is_none());
}

#[tokio::test]
async fn closing_frees_who_waits() {
    let buffer = Arc::new(RecordBuffer::new(1));
    let record = b"2026-11-24T12:00:00.000000000Z stdout F hello\n";
    let reader = {
        let buffer = Arc::clone(&buffer);
        tokio::spawn(async move { buffer.next(0, 1).await })
    };
    tokio::task::yield_now().await;
    buffer.close();
    let end = timeout(DEADLINE, reader).await.unwrap().unwrap();
    assert!(end.unwrap().is_none());

    let buffer = Arc::new(RecordBuffer::new(1));
    let writer = {
        let buffer = Arc::clone(&buffer);
        tokio::spawn(async move { buffer.append(&record.repeat(1000)).await })
    };
    tokio::task::yield_now().await;
    buffer.close();
    let end = timeout(DEADLINE, writer).await.unwrap().unwrap();
    assert!(matches!(end, Err(Error::Closed)));
}

#[tokio::test]
async fn the_end_of_a_terminal_is_the_end_of_output() {
    let reader = scripted(vec![Ok(b"one\ntwo".to_vec()), Err(std::io::Error::from_raw_os_error(5))]);
    let buffer = Arc::new(RecordBuffer::default());
    let sink = Sink::Stream(Arc::clone(&buffer));
    pump(reader, Stream::Stdout, &sink, &PumpMetrics::default()).await.unwrap();
    let chunk = buffer.next(0, usize::MAX).await.unwrap().unwrap();
    assert_eq!(content(&chunk.bytes, Stream::Stdout), b"one\ntwo");
}

#[tokio::test]
async fn a_read_error_is_told_after_what_was_read_is_stored() {
    let reader = scripted(vec![Ok(b"kept".to_vec()), Err(std::io::Error::from_raw_os_error(9))]);
    let buffer = Arc::new(RecordBuffer::default());
    let sink = Sink::Stream(Arc::clone(&buffer));
    let outcome = pump(reader, Stream::Stderr, &sink, &PumpMetrics::default()).await;
    assert!(matches!(outcome, Err(Error::Read { stream: "stderr", .. })));
    let chunk = buffer.next(0, usize::MAX).await.unwrap().unwrap();
    assert_eq!(content(&chunk.bytes, Stream::Stderr), b"kept");
}

/// Yields these outcomes, one per read.
struct Scripted(std::vec::IntoIter<std::io::Result<Vec<u8>>>);

fn scripted(outcomes: Vec<std::io::Result<Vec<u8>>>) -> Scripted {
    Scripted(outcomes.into_iter())
}

impl tokio::io::AsyncRead for Scripted {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        _context: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Ready(match self.0.next() {
            Some(Ok(bytes)) => {
                buffer.put_slice(&bytes);
                Ok(())
            }
            Some(Err(error)) => Err(error),
            None => Ok(()),
        })
    }
}

#[test]
fn an_idle_pump_is_small() {
    let (_write, read) = tokio::io::duplex(1);
    let sink = Sink::Discard;
    let metrics = PumpMetrics::default();
    let future = pump(read, Stream::Stdout, &sink, &metrics);
    let size = std::mem::size_of_val(&future);
    assert!(size < 1024, "{size} bytes");
}

mod writer {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const RECORD: &[u8] = b"2026-11-24T12:00:00.000000000Z stdout F hello\n";

    #[cfg(target_os = "linux")]
    #[test]
    fn only_regular_files_are_opened() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("target");
        fs::write(&target, "").unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(matches!(LogWriter::open(&link), Err(Error::Open { .. })));
        let fifo = directory.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
        assert!(matches!(LogWriter::open(&fifo), Err(Error::NotRegular { .. })));
        let missing = directory.path().join("missing/0.log");
        assert!(matches!(LogWriter::open(missing), Err(Error::Open { .. })));
    }

    #[test]
    fn a_new_file_is_for_its_group_to_read_at_most() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        LogWriter::open(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode & !0o640, 0, "{mode:o}");
    }

    #[test]
    fn a_torn_tail_is_cut_at_open() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        fs::write(&path, [RECORD, b"2026-11"].concat()).unwrap();
        let mut writer = LogWriter::open(&path).unwrap();
        assert_eq!(writer.position().unwrap().offset, RECORD.len() as u64);
        writer.append(RECORD).unwrap();
        assert_eq!(fs::read(&path).unwrap(), RECORD.repeat(2));

        fs::write(&path, b"2026").unwrap();
        LogWriter::open(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");

        // Longer than any record: not ours, so not thrown away.
        let foreign = vec![b'x'; MAX_RECORD + 1];
        fs::write(&path, &foreign).unwrap();
        LogWriter::open(&path).unwrap();
        assert!(fs::read(&path).unwrap() == [&foreign[..], b"\n"].concat());
    }

    #[test]
    fn only_whole_records_are_appended() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let mut writer = LogWriter::open(&path).unwrap();
        assert!(matches!(writer.append(b"half"), Err(Error::Malformed { .. })));
        writer.append(b"").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn reopening_the_same_file_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let mut writer = LogWriter::open(&path).unwrap();
        writer.append(RECORD).unwrap();
        let before = writer.position().unwrap();
        writer.reopen().unwrap();
        assert_eq!(writer.position().unwrap(), before);

        // A failed reopen keeps the old file.
        fs::rename(&path, directory.path().join("0.log.1")).unwrap();
        fs::create_dir(&path).unwrap();
        writer.reopen().unwrap_err();
        writer.append(RECORD).unwrap();
        let old = fs::read(directory.path().join("0.log.1")).unwrap();
        assert_eq!(old, RECORD.repeat(2));
    }

    /// A small file system of its own; unmounted when dropped.
    #[cfg(target_os = "linux")]
    struct SmallDisk(tempfile::TempDir);

    #[cfg(target_os = "linux")]
    impl SmallDisk {
        fn new() -> Self {
            use rustix::mount::{MountFlags, mount};
            let directory = tempfile::tempdir().unwrap();
            let options = c"size=256k,mode=700";
            mount("tmpfs", directory.path(), "tmpfs", MountFlags::empty(), options).unwrap();
            Self(directory)
        }

        fn grow(&self) {
            use rustix::mount::{MountFlags, mount_remount};
            mount_remount(self.0.path(), MountFlags::empty(), c"size=4m").unwrap();
        }
    }

    #[cfg(target_os = "linux")]
    impl Drop for SmallDisk {
        fn drop(&mut self) {
            use rustix::mount::{UnmountFlags, unmount};
            let _ = unmount(self.0.path(), UnmountFlags::DETACH);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_leaves_whole_records_and_a_retry_the_rest() {
        let disk = SmallDisk::new();
        let path = disk.0.path().join("0.log");
        let mut writer = LogWriter::open(&path).unwrap();
        let batch = RECORD.repeat(512 * 1024 / RECORD.len());
        let Err(Error::Append { written, .. }) = writer.append(&batch) else {
            panic!("the disk never filled up");
        };
        assert!(written > 0 && written % RECORD.len() == 0);
        assert!(fs::read(&path).unwrap() == batch[..written]);
        assert_eq!(writer.position().unwrap().offset, written as u64);

        disk.grow();
        writer.append(&batch[written..]).unwrap();
        assert!(fs::read(&path).unwrap() == batch);
    }

    /// Lets time pass until the pump has failed to write a few times.
    #[cfg(target_os = "linux")]
    async fn failing(metrics: &PumpMetrics) {
        while metrics.snapshot().write_failures < 5 {
            tokio::task::yield_now().await;
            tokio::time::advance(Duration::from_millis(100)).await;
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test(start_paused = true)]
    async fn a_pump_waits_for_a_full_disk() {
        let disk = SmallDisk::new();
        let path = disk.0.path().join("0.log");
        let sink = Sink::File(Arc::new(FileSink::new(LogWriter::open(&path).unwrap())));
        let metrics = Arc::new(PumpMetrics::default());
        // More than the disk takes, and it ends within a batch.
        let output: Vec<u8> = (0..20_000).flat_map(|n| format!("{n}\n").into_bytes()).collect();
        let task = {
            let (metrics, output) = (Arc::clone(&metrics), output.clone());
            tokio::spawn(async move { pump(&output[..], Stream::Stdout, &sink, &metrics).await })
        };
        failing(&metrics).await;
        kina_log::format::validate(&fs::read(&path).unwrap()).unwrap();
        disk.grow();
        timeout(DEADLINE, task).await.unwrap().unwrap().unwrap();
        let log = fs::read(&path).unwrap();
        assert!(content(&log, Stream::Stdout) == output);
        let counted = metrics.snapshot();
        assert_eq!(counted.bytes_stored as usize, log.len());
        assert!(counted.wait_time > Duration::ZERO);
        assert_eq!(counted.waits, 1);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_durable_log_writes_a_chunk_whole_or_not_at_all() {
        let disk = SmallDisk::new();
        let path = disk.0.path().join("0.log");
        let mut log = kina_log::DurableLog::create(&path).unwrap();
        log.recorded(&log.cursor());
        let cursor = log.write(0, RECORD).unwrap();
        log.recorded(&cursor);
        let chunk = RECORD.repeat(512 * 1024 / RECORD.len());
        for _ in 0..2 {
            let outcome = log.write(cursor.offset, &chunk);
            assert!(matches!(outcome, Err(Error::Append { .. })));
            assert_eq!(log.cursor(), cursor);
            assert!(log.is_recorded());
            assert_eq!(fs::read(&path).unwrap(), RECORD);
        }
        disk.grow();
        log.write(cursor.offset, &chunk).unwrap();
        assert!(fs::read(&path).unwrap() == [RECORD, &chunk].concat());
    }
}
