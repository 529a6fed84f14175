//! Exec, Attach and PortForward as the kubelet uses them: a call for a URL, and
//! SPDY at that.

mod soak;

use kina::cri::v1;
use kina_spdy::{Connection, Headers, Limits, Stream};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tonic::{Code, Status};

use crate::harness::machine::{also_in_apple, also_in_vm};
use crate::harness::{Cri, Daemon, Options, PATIENCE, handler, namespaces, script, shell, wait_until};

const FOREVER: &str = "sleep 1000";
const SUCCESS: &str = r#"{"metadata":{},"status":"Success"}"#;
pub(crate) const COMMAND: &str = "v4.channel.k8s.io";
pub(crate) const FORWARD: &str = "portforward.k8s.io";

pub(crate) fn exec(container: &str, command: &str) -> v1::ExecRequest {
    v1::ExecRequest {
        container_id: container.to_owned(),
        cmd: shell(command),
        stdout: true,
        ..v1::ExecRequest::default()
    }
}

pub(crate) fn attach(container: &str) -> v1::AttachRequest {
    v1::AttachRequest { container_id: container.to_owned(), stdout: true, ..v1::AttachRequest::default() }
}

pub(crate) async fn exec_url(cri: &Cri, request: v1::ExecRequest) -> Result<String, Status> {
    Ok(cri.client.runtime.clone().exec(request).await?.into_inner().url)
}

pub(crate) async fn attach_url(cri: &Cri, request: v1::AttachRequest) -> Result<String, Status> {
    Ok(cri.client.runtime.clone().attach(request).await?.into_inner().url)
}

pub(crate) async fn forward_url(cri: &Cri, pod: &str, port: Vec<i32>) -> Result<String, Status> {
    let request = v1::PortForwardRequest { pod_sandbox_id: pod.to_owned(), port };
    Ok(cri.client.runtime.clone().port_forward(request).await?.into_inner().url)
}

/// Asks for an upgrade and gives the status of the answer.
async fn upgrade(url: &str, protocol: &str) -> std::io::Result<(u16, TcpStream)> {
    upgrade_on(TcpStream::connect(split(url).0).await?, url, protocol).await
}

/// A URL's address and path.
fn split(url: &str) -> (&str, &str) {
    url.strip_prefix("http://").unwrap().split_once('/').unwrap()
}

/// The same on a connection of the caller's.
async fn upgrade_on(mut stream: TcpStream, url: &str, protocol: &str) -> std::io::Result<(u16, TcpStream)> {
    let (address, token) = split(url);
    let request = format!(
        "POST /{token} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
         X-Stream-Protocol-Version: {protocol}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(timeout(PATIENCE, stream.read_u8()).await??);
    }
    let answer = String::from_utf8(answer).unwrap();
    let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
    Ok((status, stream))
}

pub(crate) async fn connect(url: &str, protocol: &str) -> Connection {
    let (status, stream) = upgrade(url, protocol).await.unwrap();
    assert_eq!(status, 101);
    Connection::client(stream, Limits::default())
}

pub(crate) async fn open(connection: &Connection, kind: &str) -> Stream {
    timeout(PATIENCE, connection.open(Headers::new().with("streamType", kind))).await.unwrap().unwrap()
}

/// All that comes.
pub(crate) async fn text(mut stream: impl AsyncRead + Unpin) -> String {
    let mut text = String::new();
    timeout(PATIENCE, stream.read_to_string(&mut text)).await.unwrap().unwrap();
    text
}

/// Reads until that has come.
async fn read_until(stream: &mut Stream, expected: &str) {
    let mut found = Vec::new();
    while !String::from_utf8_lossy(&found).contains(expected) {
        let byte = timeout(PATIENCE, stream.read_u8()).await;
        found.push(byte.unwrap_or_else(|_| panic!("{:?}", String::from_utf8_lossy(&found))).unwrap());
    }
}

/// The streams of one connection to a port: data, and the error's.
pub(crate) async fn forward(connection: &Connection, port: u16, number: u32) -> (Stream, Stream) {
    let headers = |kind: &str| {
        Headers::new()
            .with("streamType", kind)
            .with("port", port.to_string())
            .with("requestID", number.to_string())
    };
    let error = connection.open(headers("error")).await.unwrap();
    (connection.open(headers("data")).await.unwrap(), error)
}

#[tokio::test]
async fn commands() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let one = cri.run(&pod, script("one", FOREVER)).await;

    // Input to its end, both outputs, an exit code.
    let request = v1::ExecRequest { stdin: true, stderr: true, ..exec(&one, "cat; echo bad >&2; exit 7") };
    let url = exec_url(&cri, request).await.unwrap();
    let connection = connect(&url, COMMAND).await;
    let error = open(&connection, "error").await;
    let mut stdin = open(&connection, "stdin").await;
    let (stdout, stderr) = (open(&connection, "stdout").await, open(&connection, "stderr").await);
    let input = "0123456789abcdef".repeat(100_000);
    let feed = async {
        stdin.write_all(input.as_bytes()).await.unwrap();
        stdin.shutdown().await.unwrap();
    };
    let ((), output, errors, outcome) = tokio::join!(feed, text(stdout), text(stderr), text(error));
    assert!(output == input, "{} bytes", output.len());
    assert_eq!(errors, "bad\n");
    assert!(outcome.contains(r#""reason":"ExitCode","message":"7""#), "{outcome}");
    drop((stdin, connection));
    // Its URL has done its work.
    assert_eq!(upgrade(&url, COMMAND).await.unwrap().0, 404);

    // A terminal with the client's size.
    let request = v1::ExecRequest {
        tty: true,
        stdin: true,
        cmd: shell("read line; echo $line; busybox stty size"),
        ..exec(&one, "")
    };
    let connection = connect(&exec_url(&cri, request).await.unwrap(), COMMAND).await;
    let error = open(&connection, "error").await;
    let mut stdin = open(&connection, "stdin").await;
    let mut stdout = open(&connection, "stdout").await;
    let mut resize = open(&connection, "resize").await;
    resize.write_all(b"{\"Width\":91,\"Height\":37}\n").await.unwrap();
    // The size and the input come by different ways: the size is there when it is seen. A terminal
    // that is not there yet, or still locked, has none.
    wait_until("the size", async || {
        let sizes = "for tty in /dev/pts/[0-9]*; do busybox stty size < $tty; done; true";
        cri.sh(&one, sizes).await.contains("37 91")
    })
    .await;
    stdin.write_all(b"hello\n").await.unwrap();
    read_until(&mut stdout, "hello\r\n37 91\r\n").await;
    assert_eq!(text(error).await, SUCCESS);
    drop((stdin, stdout, resize, connection));

    // What cannot run is told as the session's outcome.
    let missing = v1::ExecRequest { cmd: vec!["/no-such-program".to_owned()], ..exec(&one, "") };
    let connection = connect(&exec_url(&cri, missing).await.unwrap(), COMMAND).await;
    let error = open(&connection, "error").await;
    let _stdout = open(&connection, "stdout").await;
    let outcome = text(error).await;
    assert!(outcome.contains("InternalError") && outcome.contains("no-such-program"), "{outcome}");

    // A client that vanishes takes its command along, as does a daemon that ends.
    let idle = daemon.place.processes(&pod).len();
    for vanishes in [true, false] {
        let url = exec_url(&cri, exec(&one, "echo up; exec sleep 999")).await.unwrap();
        let connection = connect(&url, COMMAND).await;
        let _error = open(&connection, "error").await;
        let mut stdout = open(&connection, "stdout").await;
        read_until(&mut stdout, "up").await;
        if vanishes {
            drop((stdout, connection));
        } else {
            let unused = exec_url(&cri, exec(&one, "true")).await.unwrap();
            daemon.stop().await;
            timeout(PATIENCE, connection.closed()).await.unwrap();
            daemon.start_again(Options::default()).await;
            // What it has promised, the next one does not keep.
            assert!(upgrade(&unused, COMMAND).await.map_or(true, |(status, _)| status == 404));
        }
        wait_until("the command's end", async || daemon.place.processes(&pod).len() == idle).await;
    }
    let cri = daemon.cri();
    let url = exec_url(&cri, exec(&one, "echo on")).await.unwrap();
    let connection = connect(&url, COMMAND).await;
    let _error = open(&connection, "error").await;
    assert_eq!(text(open(&connection, "stdout").await).await, "on\n");
    drop((connection, cri));
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn what_is_refused() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let one = cri.run(&pod, script("one", FOREVER)).await;
    let created = cri.create(&pod, script("created", FOREVER)).await.unwrap();
    let bare = |id: &str| v1::ExecRequest { stdout: false, ..exec(id, "true") };
    for (request, code) in [
        (exec("no-such-container", "true"), Code::NotFound),
        (exec(&created, "true"), Code::FailedPrecondition),
        (bare(&one), Code::InvalidArgument),
        (v1::ExecRequest { tty: true, stderr: true, ..exec(&one, "true") }, Code::InvalidArgument),
        (v1::ExecRequest { cmd: Vec::new(), ..exec(&one, "true") }, Code::InvalidArgument),
    ] {
        let error = exec_url(&cri, request.clone()).await.unwrap_err();
        assert_eq!(error.code(), code, "{request:?}: {error}");
    }
    for (request, code) in [
        (attach("no-such-container"), Code::NotFound),
        (attach(&created), Code::FailedPrecondition),
        (v1::AttachRequest { stdout: false, ..attach(&one) }, Code::InvalidArgument),
        (v1::AttachRequest { tty: true, stderr: true, ..attach(&one) }, Code::InvalidArgument),
    ] {
        let error = attach_url(&cri, request.clone()).await.unwrap_err();
        assert_eq!(error.code(), code, "{request:?}: {error}");
    }
    let refused = async |pod: &str, port: i32| forward_url(&cri, pod, vec![port]).await.unwrap_err().code();
    assert_eq!(refused("no-such-pod", 80).await, Code::NotFound);
    assert_eq!(refused(&pod, 0).await, Code::InvalidArgument);
    assert_eq!(refused(&pod, 70_000).await, Code::InvalidArgument);
    // One that ends before its client comes.
    let url = exec_url(&cri, exec(&one, "true")).await.unwrap();
    cri.stop_pod(&pod).await.unwrap();
    assert_eq!(refused(&pod, 80).await, Code::FailedPrecondition);
    let connection = connect(&url, COMMAND).await;
    let error = open(&connection, "error").await;
    let _stdout = open(&connection, "stdout").await;
    let outcome = text(error).await;
    assert!(outcome.contains("cannot run a command in it"), "{outcome}");
    let failed = "kina_streaming_sessions_ended_total{kind=\"exec\",result=\"failed\"}";
    assert_eq!(daemon.metric(failed).await, 1.0);
    drop((connection, cri));
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn attached_clients() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let mut config = script("one", "while read line; do echo got $line; done; echo bad >&2; exit 3");
    (config.stdin, config.stdin_once) = (true, true);
    let one = cri.run(&pod, config).await;
    let watch = v1::AttachRequest { stderr: true, ..attach(&one) };
    let watcher = connect(&attach_url(&cri, watch.clone()).await.unwrap(), COMMAND).await;
    let watcher_error = open(&watcher, "error").await;
    let mut watcher_stdout = open(&watcher, "stdout").await;
    let _watcher_stderr = open(&watcher, "stderr").await;
    let url = attach_url(&cri, v1::AttachRequest { stdin: true, ..watch }).await.unwrap();
    let connection = connect(&url, COMMAND).await;
    let error = open(&connection, "error").await;
    let mut stdin = open(&connection, "stdin").await;
    let mut stdout = open(&connection, "stdout").await;
    let stderr = open(&connection, "stderr").await;
    stdin.write_all(b"one\n").await.unwrap();
    read_until(&mut stdout, "got one\n").await;
    stdin.write_all(b"two\n").await.unwrap();
    // The other may have come a moment later than the first line.
    read_until(&mut watcher_stdout, "got two\n").await;
    // The end of the one input is the end of all that the container gets.
    stdin.shutdown().await.unwrap();
    assert_eq!(text(stderr).await, "bad\n");
    assert_eq!((text(stdout).await, text(error).await), ("got two\n".to_owned(), SUCCESS.to_owned()));
    assert_eq!(text(watcher_error).await, SUCCESS);
    assert_eq!(cri.wait_exit(&one).await.exit_code, 3);
    drop((watcher, connection));

    // A terminal's client leaves, and the container goes on.
    let mut config = script("tty", "while read line; do echo got $line; done");
    (config.stdin, config.tty) = (true, true);
    let tty = cri.run(&pod, config).await;
    for line in ["three", "four"] {
        let request = v1::AttachRequest { stdin: true, tty: true, ..attach(&tty) };
        let connection = connect(&attach_url(&cri, request).await.unwrap(), COMMAND).await;
        let _error = open(&connection, "error").await;
        let mut stdin = open(&connection, "stdin").await;
        let mut stdout = open(&connection, "stdout").await;
        let _resize = open(&connection, "resize").await;
        stdin.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        read_until(&mut stdout, &format!("got {line}\r\n")).await;
    }
    assert_eq!(cri.status(&tty).await.unwrap().state(), v1::ContainerState::ContainerRunning);
    drop(cri);
    daemon.leave_nothing().await;
}

#[tokio::test]
async fn forwarded_connections() {
    let mut daemon = Daemon::start().await;
    let cri = daemon.cri();
    let pod = cri.make_pod("p").await;
    let serve = "mkdir -p /tmp/www; head -c 3000000 /dev/zero | tr '\\0' x > /tmp/www/much; \
                 httpd -p 127.0.0.1:80 -h /tmp/www; echo up; exec sleep 1000";
    let one = cri.run(&pod, script("one", serve)).await;
    cri.wait_output(&one, "up").await;
    let connection = connect(&forward_url(&cri, &pod, vec![80]).await.unwrap(), FORWARD).await;
    // Two at once, one of which sends its end first and one that does not.
    let get = async |number: u32, half_close: bool| {
        let (mut data, error) = forward(&connection, 80, number).await;
        data.write_all(b"GET /much HTTP/1.0\r\n\r\n").await.unwrap();
        if half_close {
            data.shutdown().await.unwrap();
        }
        let answer = text(&mut data).await;
        assert!(answer.starts_with("HTTP/1."), "{}", &answer[..answer.len().min(200)]);
        assert!(answer.ends_with(&"x".repeat(3_000_000)), "{} bytes", answer.len());
        drop(data);
        // A client that is done has had no error.
        assert_eq!(text(error).await, "");
    };
    tokio::join!(get(1, false), get(2, true));
    let (data, error) = forward(&connection, 81, 3).await;
    let failure = text(error).await;
    assert!(failure.contains("error forwarding port 81") && failure.contains("refused"), "{failure}");
    drop((data, connection));

    // The node's ports, for a pod on the node's network.
    if handler() == "shared" {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut config = cri.pod("node");
        config.hostname = String::new();
        let linux = config.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default().namespace_options =
            Some(v1::NamespaceOption { network: v1::NamespaceMode::Node.into(), ..namespaces() });
        let pod = cri.run_pod(&config).await.unwrap();
        let connection = connect(&forward_url(&cri, &pod, Vec::new()).await.unwrap(), FORWARD).await;
        let (mut data, _error) = forward(&connection, port, 1).await;
        data.write_all(b"ping").await.unwrap();
        let (mut accepted, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
        let mut ping = [0; 4];
        timeout(PATIENCE, accepted.read_exact(&mut ping)).await.unwrap().unwrap();
        accepted.write_all(b"pong").await.unwrap();
        read_until(&mut data, "pong").await;
        assert_eq!(&ping, b"ping");
    }
    drop(cri);
    daemon.leave_nothing().await;
}

also_in_vm! {
    attached_clients,
    commands,
    forwarded_connections,
}

also_in_apple! {
    attached_clients,
    commands,
    forwarded_connections,
}
