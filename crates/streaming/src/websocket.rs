//! Exec, attach and port-forward over WebSocket: messages whose first byte is a channel, or SPDY inside
//! messages.

use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf, duplex};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use crate::backend::{Backend, Input, Output, Resizes, SessionIo};
use crate::forward::failure;
use crate::session::{Command, read_sizes};
use crate::status::Outcome;

/// The longest message that is taken, in bytes; some clients send all of their input in one.
const LONGEST_MESSAGE: usize = 4 << 20;
/// What a pipe between socket and backend holds, in bytes.
const PIPE: usize = 64 << 10;
/// What one message carries, in bytes.
const PIECE: usize = 32 << 10;
/// Messages that wait to be sent.
const QUEUE: usize = 4;
/// How long what a client still sends is forwarded after the pod has ended its direction.
const LINGER: Duration = Duration::from_secs(1);
/// How long the client may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(5);

// Channel 0 is standard input, and 4 the sizes of the terminal.
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
/// Since the fifth version: the channel that follows is closed.
const CLOSE: u8 = 255;

/// How channels are written into messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Codec {
    /// A digit and base64 text instead of a byte and bytes.
    base64: bool,
    /// The client says when a channel ends.
    close: bool,
}

impl Codec {
    /// The codec of a negotiated protocol.
    pub(crate) fn of(protocol: &str) -> Self {
        Self { base64: protocol.contains("base64"), close: protocol == "v5.channel.k8s.io" }
    }

    /// Reads a message of one of `channels` channels, of which there are 64 at most.
    pub(crate) fn decode(self, message: &Bytes, channels: u8) -> Decoded {
        let Some((&first, rest)) = message.split_first() else { return Decoded::Nothing };
        if self.close && first == CLOSE {
            return match rest {
                [channel] if *channel < channels => Decoded::Close(*channel),
                _ => Decoded::Broken,
            };
        }
        let channel = if self.base64 { first.wrapping_sub(b'0') } else { first };
        if channel >= channels {
            return Decoded::Nothing;
        }
        if !self.base64 {
            return Decoded::Data(channel, message.slice(1..));
        }
        STANDARD.decode(rest).map_or(Decoded::Nothing, |data| Decoded::Data(channel, data.into()))
    }

    pub(crate) fn encode(self, channel: u8, data: &[u8]) -> Message {
        if self.base64 {
            let mut text = String::from(char::from(b'0' + channel));
            STANDARD.encode_string(data, &mut text);
            return Message::text(text);
        }
        let mut message = Vec::with_capacity(1 + data.len());
        message.push(channel);
        message.extend_from_slice(data);
        Message::binary(message)
    }
}

/// What a message says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decoded {
    Data(u8, Bytes),
    Close(u8),
    /// Empty, or for no channel that is listened to.
    Nothing,
    /// What a client of this protocol does not send.
    Broken,
}

/// Times of a session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) idle: Duration,
    pub(crate) keepalive: Duration,
}

/// The server's end of a WebSocket whose handshake is over.
pub(crate) struct Socket<Transport> {
    socket: WebSocketStream<Transport>,
    times: Times,
}

/// When something last passed.
#[derive(Debug)]
struct Activity(Mutex<Instant>);

impl Activity {
    fn touch(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Returns when nothing has passed for so long.
    async fn ceased(&self, idle: Duration) {
        loop {
            let due = *self.0.lock().unwrap_or_else(PoisonError::into_inner) + idle;
            if due <= Instant::now() {
                return;
            }
            sleep_until(due).await;
        }
    }
}

impl<Transport: AsyncRead + AsyncWrite + Unpin> Socket<Transport> {
    pub(crate) async fn new(transport: Transport, times: Times) -> Self {
        let config = WebSocketConfig::default()
            .max_message_size(Some(LONGEST_MESSAGE))
            .max_frame_size(Some(LONGEST_MESSAGE))
            .write_buffer_size(0)
            .max_write_buffer_size(1 << 20);
        Self { socket: WebSocketStream::from_raw_socket(transport, Role::Server, Some(config)).await, times }
    }

    /// Sends what comes through `queue` while `speak` runs, and a goodbye; meanwhile gives the client's
    /// messages to `inward`. None if the client went before that.
    async fn converse<Outcome>(
        self,
        (sender, mut queue): (mpsc::WeakSender<Message>, mpsc::Receiver<Message>),
        speak: impl Future<Output = Outcome>,
        mut inward: Inward,
    ) -> Option<Outcome> {
        let (mut sink, mut source) = self.socket.split();
        let activity = Activity(Mutex::new(Instant::now()));
        let keepalive = {
            let every = self.times.keepalive;
            async move {
                loop {
                    sleep(every).await;
                    // Clients wait for an answer to their pings, which stand behind what nobody reads yet.
                    if let Some(sender) = sender.upgrade() {
                        let _: Result<_, _> = sender.try_send(Message::Pong(Bytes::new()));
                    }
                }
            }
        };
        let active = &activity;
        // It owns the queue: when the socket fails, nobody waits to send.
        let send = async move {
            while let Some(message) = queue.recv().await {
                if !message.is_pong() {
                    active.touch();
                }
                sink.send(message).await?;
            }
            let goodbye = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            sink.send(Message::Close(Some(goodbye))).await
        };
        let mut receive = std::pin::pin!(async {
            while let Some(Ok(message)) = source.next().await {
                activity.touch();
                let data = match message {
                    Message::Binary(data) => data,
                    Message::Text(text) => text.into(),
                    Message::Close(_) => {
                        // The answer goes out when more is read, of which there is none.
                        let _: Result<_, _> = timeout(GOODBYE, source.next()).await;
                        return;
                    }
                    Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
                };
                if !inward.hear(data).await {
                    return;
                }
            }
        });
        // When sending fails the client has gone, which receiving does not see while nobody takes what came.
        let speak = async { Ok(speak.await) };
        let result = tokio::select! {
            result = futures::future::try_join(speak, send) => result.ok().map(|(outcome, ())| outcome),
            () = &mut receive => None,
            () = keepalive => None,
            () = activity.ceased(self.times.idle) => None,
        };
        if result.is_some() {
            // A transport that is closed while bytes of the client lie unread is reset.
            let _: Result<_, _> = timeout(GOODBYE, receive).await;
        }
        result
    }

    /// Exec or attach. Returns why it had no outcome.
    pub(crate) async fn command(
        self,
        backend: &dyn Backend,
        command: &Command,
        protocol: &str,
    ) -> Result<Outcome, &'static str> {
        let codec = Codec::of(protocol);
        let json = protocol.starts_with("v4.") || protocol.starts_with("v5.");
        let streams = command.streams();
        let pipe = |wanted: bool| wanted.then(|| duplex(PIPE)).unzip();
        let (to_stdin, stdin) = pipe(streams.stdin);
        let (from_stdout, stdout) = pipe(streams.stdout);
        let (from_stderr, stderr) = pipe(streams.stderr);
        let (to_sizes, size_bytes) = pipe(streams.tty);
        let (sizes, resizes) = Resizes::channel();
        let io = SessionIo {
            stdin: stdin.map(|pipe| Box::new(pipe) as Input),
            stdout: stdout.map(|pipe| Box::new(pipe) as Output),
            stderr: stderr.map(|pipe| Box::new(pipe) as Output),
            resizes: streams.tty.then_some(resizes),
        };
        let (sender, queue) = mpsc::channel(QUEUE);
        let ends = (sender.downgrade(), queue);
        let speak = async move {
            // Tells clients that wait for it that the session is there.
            let first = if streams.stdout {
                STDOUT
            } else if streams.stderr {
                STDERR
            } else {
                ERROR
            };
            let _: Result<_, _> = sender.send(codec.encode(first, b"")).await;
            let (outcome, (), ()) = tokio::join!(
                command.run(backend, io),
                send_all(from_stdout, codec, STDOUT, &sender),
                send_all(from_stderr, codec, STDERR, &sender),
            );
            let report = if json { outcome.json() } else { outcome.text().unwrap_or_default().into_bytes() };
            if !report.is_empty() {
                let _: Result<_, _> = sender.send(codec.encode(ERROR, &report)).await;
            }
            outcome
        };
        let boxed = |pipe: Option<DuplexStream>| pipe.map(|pipe| Box::new(pipe) as Output);
        let pipes = vec![boxed(to_stdin), None, None, None, boxed(to_sizes)];
        let inward = Inward { codec: Some(codec), pipes };
        let read_sizes = async {
            if let Some(bytes) = size_bytes {
                read_sizes(bytes, sizes).await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            outcome = self.converse(ends, speak, inward) => outcome.ok_or("the client went before the end"),
            () = read_sizes => Err("the client went before the end"),
        }
    }

    /// Port-forward with two channels for each port, the first with the bytes and the second for an error.
    pub(crate) async fn forward(self, backend: &dyn Backend, pod: &str, ports: &[u16], protocol: &str) {
        let codec = Codec::of(protocol);
        let (sender, queue) = mpsc::channel(QUEUE);
        let ends = (sender.downgrade(), queue);
        let mut pipes: Vec<Option<Output>> = Vec::new();
        let mut forwards = Vec::new();
        for (port, channel) in std::iter::zip(ports, (0..=u8::MAX).step_by(2)) {
            let (near, far) = duplex(PIPE);
            let (reader, writer) = tokio::io::split(near);
            pipes.extend([Some(Box::new(writer) as Output), None]);
            forwards.push(forward_port(backend, (pod, *port), far, reader, codec, channel, sender.clone()));
        }
        drop(sender);
        let speak = futures::future::join_all(forwards);
        if self.converse(ends, speak, Inward { codec: Some(codec), pipes }).await.is_none() {
            tracing::debug!(pod, "the client of a port-forward went");
        }
    }

    /// Carries the bytes of a SPDY connection, whose server end is at the pipe's other end.
    pub(crate) async fn tunnel(self, pipe: DuplexStream) {
        let (mut reader, writer) = tokio::io::split(pipe);
        let (sender, queue) = mpsc::channel(QUEUE);
        let ends = (sender.downgrade(), queue);
        let speak = async move {
            let mut piece = vec![0; PIECE];
            while let Ok(length @ 1..) = reader.read(&mut piece).await {
                if sender.send(Message::binary(piece[..length].to_vec())).await.is_err() {
                    return;
                }
            }
        };
        let inward = Inward { codec: None, pipes: vec![Some(Box::new(writer))] };
        let _: Option<()> = self.converse(ends, speak, inward).await;
    }
}

/// Where the client's messages go.
struct Inward {
    /// None if messages are the bytes of the only pipe.
    codec: Option<Codec>,
    /// By channel; none where nobody listens (any more).
    pipes: Vec<Option<Output>>,
}

impl Inward {
    /// Waits until the message has found room. False if the conversation cannot go on.
    async fn hear(&mut self, message: Bytes) -> bool {
        let channels = u8::try_from(self.pipes.len()).unwrap_or(u8::MAX);
        let (channel, data) = match self.codec.map(|codec| codec.decode(&message, channels)) {
            None => (0, message),
            Some(Decoded::Data(channel, data)) => (channel, data),
            Some(Decoded::Close(channel)) => {
                self.pipes[usize::from(channel)] = None;
                return true;
            }
            Some(Decoded::Nothing) => return true,
            Some(Decoded::Broken) => return false,
        };
        let pipe = &mut self.pipes[usize::from(channel)];
        if let Some(writer) = pipe
            && writer.write_all(&data).await.is_err()
        {
            // Its reader has gone; the others go on.
            *pipe = None;
        }
        self.codec.is_some() || pipe.is_some()
    }
}

/// Sends what comes out of a pipe until its writer is dropped.
async fn send_all(
    pipe: Option<impl AsyncRead + Unpin>,
    codec: Codec,
    channel: u8,
    sender: &mpsc::Sender<Message>,
) {
    let Some(mut pipe) = pipe else { return };
    let mut piece = vec![0; PIECE];
    while let Ok(length @ 1..) = pipe.read(&mut piece).await {
        if sender.send(codec.encode(channel, &piece[..length])).await.is_err() {
            return;
        }
    }
}

async fn forward_port(
    backend: &dyn Backend,
    (pod, port): (&str, u16),
    far: DuplexStream,
    reader: ReadHalf<DuplexStream>,
    codec: Codec,
    channel: u8,
    sender: mpsc::Sender<Message>,
) {
    // Clients read the port first, from both channels.
    for channel in [channel, channel + 1] {
        let _: Result<_, _> = sender.send(codec.encode(channel, &port.to_le_bytes())).await;
    }
    let mut forwarded = pin!(backend.port_forward(pod, port, Box::new(far)));
    let mut sent = pin!(send_all(Some(reader), codec, channel, &sender));
    let result = tokio::select! {
        result = &mut forwarded => {
            sent.await;
            result
        }
        // Neither side of this protocol can say that its own direction has ended: the client
        // does not know that the pod's has, and would wait for ever.
        () = &mut sent => timeout(LINGER, forwarded).await.unwrap_or(Ok(())),
    };
    if let Err(error) = result {
        let text = failure(pod, port, &*error);
        let _: Result<_, _> = sender.send(codec.encode(channel + 1, text.as_bytes())).await;
    }
}

/// The bytes of SPDY in a tunnel: the end that the connection gets, and the end for [`Socket::tunnel`].
pub(crate) fn tunnel_pipe() -> (DuplexStream, DuplexStream) {
    duplex(PIPE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_and_their_messages() {
        let raw = Codec::of("v4.channel.k8s.io");
        let close = Codec::of("v5.channel.k8s.io");
        let base64 = Codec::of("v4.base64.channel.k8s.io");
        let data = |channel, data: &'static [u8]| Decoded::Data(channel, Bytes::from_static(data));
        let cases: &[(Codec, &'static [u8], Decoded)] = &[
            (raw, b"", Decoded::Nothing),
            (raw, b"\0", data(0, b"")),
            (raw, b"\0abc", data(0, b"abc")),
            (raw, b"\x05abc", Decoded::Nothing),
            (raw, b"\xff\0", Decoded::Nothing),
            (close, b"\xff\0", Decoded::Close(0)),
            (close, b"\xff\x05", Decoded::Broken),
            (close, b"\xff", Decoded::Broken),
            (close, b"\xff\0\0", Decoded::Broken),
            (base64, b"0Zm9v", data(0, b"foo")),
            (base64, b"0???", Decoded::Nothing),
            (base64, b"/Zm9v", Decoded::Nothing),
        ];
        for (codec, message, expected) in cases {
            assert_eq!(&codec.decode(&Bytes::from_static(message), 5), expected, "{message:?}");
        }
        assert_eq!(base64.encode(1, b"foo"), Message::text("1Zm9v"));
        assert_eq!(raw.encode(3, b"x"), Message::binary(b"\x03x".to_vec()));
    }
}
