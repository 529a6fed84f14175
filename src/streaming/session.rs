//! A client at a process: an exec's, or a container's own.

use std::convert::Infallible;
use std::future::Future;

use kina_guest_api::v1::{attach_response, exec_response};
use kina_guest_api::{AttachInput, AttachSession, ExecInput, ExecSession, GuestError};
use kina_streaming::{Input, Output, Resizes, SessionIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// How much of a client's input is read at once.
const PIECE_BYTES: usize = 16 << 10;

/// Carries an exec's streams until it has ended; its exit code.
pub(super) async fn exec(session: ExecSession, io: SessionIo) -> Result<i32, GuestError> {
    use exec_response::What;
    let ExecSession { pid: _, input, mut responses } = session;
    let SessionIo { stdin, stdout, stderr, resizes } = io;
    let (mut stdout, mut stderr) = (Writer(stdout), Writer(stderr));
    let output = async {
        loop {
            match responses.next().await? {
                Some(What::Stdout(bytes)) => stdout.write(&bytes).await,
                Some(What::Stderr(bytes)) => stderr.write(&bytes).await,
                Some(What::Exited(exited)) => return Ok(exited.code),
                Some(What::Started(_)) => return Err(twice("Exec")),
                None => return Err(GuestError::Gone { call: "Exec" }),
            }
        }
    };
    until(output, &input, stdin, resizes).await
}

/// Carries a container's streams until it has ended.
pub(super) async fn attach(session: AttachSession, io: SessionIo) -> Result<(), GuestError> {
    use attach_response::What;
    let AttachSession { started: _, input, mut responses } = session;
    let SessionIo { stdin, stdout, stderr, resizes } = io;
    let (mut stdout, mut stderr) = (Writer(stdout), Writer(stderr));
    let output = async {
        loop {
            match responses.next().await? {
                Some(What::Stdout(bytes)) => stdout.write(&bytes).await,
                Some(What::Stderr(bytes)) => stderr.write(&bytes).await,
                Some(What::End(_)) => return Ok(()),
                Some(What::Started(_)) => return Err(twice("Attach")),
                None => return Err(GuestError::Gone { call: "Attach" }),
            }
        }
    };
    until(output, &input, stdin, resizes).await
}

fn twice(call: &'static str) -> GuestError {
    GuestError::Protocol { call, violation: "`started` twice" }
}

/// Carries input for as long as there is output.
async fn until<T>(
    output: impl Future<Output = Result<T, GuestError>>,
    to: &impl Towards,
    stdin: Option<Input>,
    resizes: Option<Resizes>,
) -> Result<T, GuestError> {
    let input = async {
        tokio::join!(carry(stdin, to), resize(resizes, to));
        // The output may go on when there is no more input.
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        result = output => result,
        never = input => match never {},
    }
}

/// Input until the client ends it. The process's end, which makes sending fail,
/// shows in the output.
async fn carry(stdin: Option<Input>, to: &impl Towards) {
    let Some(mut stdin) = stdin else { return };
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match stdin.read(&mut piece).await {
            Ok(0) => return drop(to.stdin_end().await),
            Ok(length) => {
                if to.stdin(&piece[..length]).await.is_err() {
                    return;
                }
            }
            // The client has gone, and the session ends. What it has sent is not
            // all: the process must not take it for that.
            Err(_) => return,
        }
    }
}

async fn resize(resizes: Option<Resizes>, to: &impl Towards) {
    let Some(mut resizes) = resizes else { return };
    while let Some(size) = resizes.next().await {
        if to.resize(size.width.into(), size.height.into()).await.is_err() {
            return;
        }
    }
}

/// A client's output. One that does not want it, or no more, does not hold the
/// process up.
struct Writer(Option<Output>);

impl Writer {
    async fn write(&mut self, bytes: &[u8]) {
        if let Some(output) = &mut self.0
            && output.write_all(bytes).await.is_err()
        {
            self.0 = None;
        }
    }
}

/// The way to a process in a guest.
trait Towards: Sync {
    fn stdin(&self, bytes: &[u8]) -> impl Future<Output = Result<(), GuestError>> + Send;
    fn stdin_end(&self) -> impl Future<Output = Result<(), GuestError>> + Send;
    fn resize(&self, columns: u32, rows: u32) -> impl Future<Output = Result<(), GuestError>> + Send;
}

macro_rules! towards {
    ($input:ident) => {
        impl Towards for $input {
            async fn stdin(&self, bytes: &[u8]) -> Result<(), GuestError> {
                $input::stdin(self, bytes).await
            }

            async fn stdin_end(&self) -> Result<(), GuestError> {
                $input::stdin_end(self).await
            }

            async fn resize(&self, columns: u32, rows: u32) -> Result<(), GuestError> {
                $input::resize(self, columns, rows).await
            }
        }
    };
}

towards!(ExecInput);
towards!(AttachInput);
