//! What a confined process still can. Each case runs in a process of its own: there is
//! no way back.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write;
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus};

const CASE: &str = "KINA_TEST_CASE";
/// A file that only root may read.
const SECRET: &str = "KINA_TEST_SECRET";
const USER: u32 = 2_100_000_000;
const SIGSYS: i32 = 31;

/// Runs this test once more, for one case.
fn child(case: &str, secret: &Path) -> ExitStatus {
    let mut test = Command::new(std::env::current_exe().unwrap());
    test.args(["--exact", "what_is_left", "--nocapture", "--test-threads", "1"]);
    test.env(CASE, case).env(SECRET, secret);
    test.status().unwrap()
}

fn status(name: &str) -> String {
    // Of this thread: the test runner has another.
    let text = fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The error of a system call with this argument and nothing else.
fn call(number: libc::c_long, argument: libc::c_int) -> std::io::Error {
    #[allow(unsafe_code, reason = "calls that are refused")]
    // SAFETY: neither call reads memory, as no pointer is given to either; a child would only end.
    let result = unsafe { libc::syscall(number, libc::c_long::from(argument), 0, 0, 0, 0) };
    assert_eq!(result, -1);
    std::io::Error::last_os_error()
}

#[test]
fn what_is_left() {
    let Ok(case) = std::env::var(CASE) else {
        // Who has confined itself could not remove it.
        let secret = tempfile::NamedTempFile::new().unwrap();
        let child = |case| child(case, secret.path());
        assert!(child("work").success());
        for deadly in ["execute", "internet", "namespace", "clone"] {
            assert_eq!(child(deadly).signal(), Some(SIGSYS), "{deadly}");
        }
        return;
    };
    let mut file = tempfile::tempfile().unwrap();
    kina_confine::confine(Some(USER)).unwrap();
    match case.as_str() {
        "work" => {
            assert_eq!(status("Uid"), format!("{USER} {USER} {USER} {USER}"));
            assert_eq!(status("Gid"), format!("{USER} {USER} {USER} {USER}"));
            assert_eq!(status("Groups"), "");
            for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                assert_eq!(status(set), "0000000000000000", "{set}");
            }
            assert_eq!((status("NoNewPrivs"), status("Seccomp")), ("1".to_owned(), "2".to_owned()));
            // What was open stays so, and what is another's cannot be opened.
            file.write_all(b"still here").unwrap();
            let secret = std::env::var_os(SECRET).unwrap();
            assert_eq!(fs::read(secret).unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
            let (mut one, _other) = UnixStream::pair().unwrap();
            one.write_all(b"x").unwrap();
            std::thread::spawn(|| assert_eq!(status("CapBnd"), "0000000000000000")).join().unwrap();
            // Which flags it is called with cannot be seen.
            assert_eq!(call(libc::SYS_clone3, 0).raw_os_error(), Some(libc::ENOSYS));
        }
        "execute" => drop(Command::new("/bin/true").exec()),
        "internet" => drop(UdpSocket::bind("127.0.0.1:0")),
        "namespace" => {
            let flags = rustix::thread::UnshareFlags::NEWUSER;
            #[allow(unsafe_code, reason = "the call is to end this process")]
            // SAFETY: nothing comes after it.
            let _ended = unsafe { rustix::thread::unshare_unsafe(flags) };
        }
        "clone" => drop(call(libc::SYS_clone, libc::CLONE_NEWUSER | libc::SIGCHLD)),
        other => panic!("{other}"),
    }
}
