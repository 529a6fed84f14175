//! Serves the machine it runs on, for trying clients by hand. Prints URLs: one
//! for each line it reads, `exec COMMAND…`, `tty COMMAND…` or `forward`.
//!
//! Nothing is confined and nobody is asked who they are: use it on a machine of
//! your own. A terminal is only told its sizes, on standard output.

#![allow(clippy::print_stdout, reason = "an example talks to its terminal")]

use std::process::Stdio;
use std::sync::Arc;

use async_trait::async_trait;
use kina_streaming::{
    Attach, Backend, BackendError, ByteStream, Config, Exec, PortForward, Request, Server, SessionIo, Streams,
};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

struct ThisMachine;

#[async_trait]
impl Backend for ThisMachine {
    async fn exec(&self, exec: &Exec, io: SessionIo) -> Result<i32, BackendError> {
        let SessionIo { stdin, stdout, stderr, resizes } = io;
        let mut stdout = stdout.ok_or("this example needs an output")?;
        if let Some(mut resizes) = resizes {
            for _ in 0..2 {
                let Some(size) = resizes.next().await else { break };
                stdout.write_all(format!("{}x{}\r\n", size.width, size.height).as_bytes()).await?;
            }
            return Ok(0);
        }
        let [program, arguments @ ..] = &exec.command[..] else { return Err("no command is given".into()) };
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(mut input), Some(mut output), Some(mut errors)) = pipes else {
            return Err("the command has no pipes".into());
        };
        let to_child = async {
            if let Some(mut stdin) = stdin
                && tokio::io::copy(&mut stdin, &mut input).await.is_ok()
            {
                drop(input);
            }
            std::future::pending::<()>().await;
        };
        let from_child = async {
            let errors = async {
                match stderr {
                    Some(mut stderr) => tokio::io::copy(&mut errors, &mut stderr).await,
                    None => Ok(0),
                }
            };
            tokio::try_join!(tokio::io::copy(&mut output, &mut stdout), errors)?;
            child.wait().await
        };
        tokio::select! {
            status = from_child => Ok(status?.code().unwrap_or(137)),
            () = to_child => Ok(137),
        }
    }

    async fn attach(&self, attach: &Attach, _io: SessionIo) -> Result<(), BackendError> {
        Err(format!("{} does not run", attach.container).into())
    }

    async fn port_forward(&self, _pod: &str, port: u16, mut stream: ByteStream) -> Result<(), BackendError> {
        let mut target = TcpStream::connect(("127.0.0.1", port)).await?;
        tokio::io::copy_bidirectional(&mut stream, &mut target).await?;
        Ok(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let base = format!("http://{}", listener.local_addr()?);
    let server = Server::new(Config::default(), Arc::new(ThisMachine))?;
    let serving = server.clone();
    tokio::spawn(async move { serving.serve(listener).await });
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        println!("{}", server.url_for(&base, request(&line))?);
    }
    server.stop().await;
    Ok(())
}

fn request(line: &str) -> Request {
    let mut words = line.split_whitespace().map(str::to_owned);
    let verb = words.next().unwrap_or_default();
    let tty = verb == "tty";
    let streams = Streams { stdin: true, stdout: true, stderr: !tty, tty };
    let container = "this-machine".to_owned();
    match verb.as_str() {
        "forward" => Request::PortForward(PortForward { pod: container, ports: Vec::new() }),
        _ => Request::Exec(Exec { container, command: words.collect(), streams }),
    }
}
