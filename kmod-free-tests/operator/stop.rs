//! Told to stop, the daemon answers what it has, makes it durable and ends with 0; told again, it ends at once.

use std::io::Read as _;
use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use crate::daemon::Daemon;
use crate::daemon::Scratch;
use crate::raw;

/// A daemon with a volume, which tells `manager` how far it is.
fn start(scratch: &Scratch) -> (Daemon, UnixDatagram) {
    let path = scratch.join("notify");
    let _ = std::fs::remove_file(&path);
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let daemon = Daemon::start_with(
        scratch.path(),
        &["--volume", "disk:256MiB"],
        Stdio::inherit(),
        &[("NOTIFY_SOCKET", path.to_str().unwrap())],
    );
    (daemon, manager)
}

/// Sends the signal that asks for an end.
fn tell(daemon: &Daemon) {
    assert!(Command::new("kill").args(["-TERM", &daemon.pid().to_string()]).status().unwrap().success());
}

/// Waits until the daemon says that it is stopping.
fn wait_for_stopping(manager: &UnixDatagram) {
    let mut bytes = [0; 4096];
    loop {
        let count = manager.recv(&mut bytes).expect("the daemon says that it is stopping");
        if bytes[..count].starts_with(b"STOPPING=1") {
            return;
        }
    }
}

/// What a start logs that follows.
fn next_log(data: &Path) -> (Daemon, String) {
    let log = data.join("next.log");
    let daemon = Daemon::start_logging(data, &[], std::fs::File::create(&log).unwrap().into());
    let text = std::fs::read_to_string(&log).unwrap();
    (daemon, text)
}

/// A client that asks for more than fits on the way to it, and takes nothing: its answers never get through.
fn stalled_client(daemon: &Daemon) -> std::os::unix::net::UnixStream {
    let mut stream = raw::connect(&daemon.socket(), "disk");
    let data = vec![7; 1 << 20];
    stream.write_all(&raw::request(raw::WRITE, 1, 0, 1 << 20, &data)).unwrap();
    assert_eq!(raw::answer(&mut stream), (0, 1));
    for cookie in 2..18 {
        stream.write_all(&raw::request(raw::READ, cookie, 0, 1 << 20, b"")).unwrap();
    }
    // The first answer has begun: the rest of it is on its way, and the others behind it.
    assert_eq!(raw::answer(&mut stream).0, 0);
    stream
}

#[test]
fn a_request_of_either_kind_that_has_come_is_answered() {
    let scratch = Scratch::new();
    let (daemon, manager) = start(&scratch);
    let mut nbd = raw::connect(&daemon.socket(), "disk");
    let body = br#"{"offset": 8192, "data": "c3RvcHBpbmc="}"#;
    let address = daemon.url.strip_prefix("http://").unwrap();
    let mut rest = TcpStream::connect(address).unwrap();
    rest.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let head = format!(
        "POST /api/v1/volumes/disk/write HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    rest.write_all(head.as_bytes()).unwrap();
    rest.write_all(&body[..10]).unwrap();
    let mut requests = Vec::new();
    for cookie in 0..32 {
        requests.extend(raw::request(
            raw::WRITE,
            cookie,
            cookie * 4096 + 65536,
            4096,
            &[cookie as u8 + 1; 4096],
        ));
    }
    nbd.write_all(&requests).unwrap();
    tell(&daemon);
    let mut cookies: Vec<u64> = (0..32)
        .map(|_| raw::answer(&mut nbd))
        .map(|(error, cookie)| {
            assert_eq!(error, 0);
            cookie
        })
        .collect();
    cookies.sort_unstable();
    assert_eq!(cookies, (0..32).collect::<Vec<_>>());
    wait_for_stopping(&manager);
    rest.write_all(&body[10..]).unwrap();
    let mut answer = String::new();
    rest.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(daemon.wait().success());

    let (daemon, log) = next_log(scratch.path());
    assert!(log.contains("closed in peace") && !log.contains("replayed"), "{log}");
    let read = crate::get(&daemon, "/api/v1/volumes/disk/read?offset=8192");
    assert!(read.contains("\"c3RvcHBpbmc=\""), "{read}");
    let mut nbd = raw::connect(&daemon.socket(), "disk");
    nbd.write_all(&raw::request(raw::READ, 9, 65536, 32 * 4096, b"")).unwrap();
    assert_eq!(raw::answer(&mut nbd), (0, 9));
    let mut data = vec![0; 32 * 4096];
    nbd.read_exact(&mut data).unwrap();
    assert!(data.chunks(4096).zip(1u8..).all(|(block, byte)| block.iter().all(|found| *found == byte)));
}

#[test]
fn a_client_that_takes_no_answers_does_not_hold_up_the_end_for_ever() {
    let scratch = Scratch::new();
    let (daemon, _manager) = start(&scratch);
    let client = stalled_client(&daemon);
    assert!(daemon.terminate().success(), "its connection was cut, and all else was done in peace");
    drop(client);
    let (_daemon, log) = next_log(scratch.path());
    assert!(log.contains("closed in peace") && !log.contains("replayed"), "{log}");
}

#[test]
fn a_second_signal_ends_it_at_once_and_loses_nothing() {
    let scratch = Scratch::new();
    let (mut daemon, manager) = start(&scratch);
    let client = stalled_client(&daemon);
    tell(&daemon);
    wait_for_stopping(&manager);
    std::thread::park_timeout(Duration::from_millis(500));
    assert_eq!(daemon.ended(), None, "it waits for its client");
    tell(&daemon);
    for _ in 0..300 {
        if daemon.ended().is_some() {
            break;
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    assert_eq!(daemon.ended().expect("it has ended within seconds").code(), Some(130));
    drop(client);

    // Nothing was flushed, and no checkpoint was made.
    let (daemon, log) = next_log(scratch.path());
    assert!(log.contains("operations replayed"), "{log}");
    let mut stream = raw::connect(&daemon.socket(), "disk");
    stream.write_all(&raw::request(raw::READ, 9, 0, 1 << 20, b"")).unwrap();
    assert_eq!(raw::answer(&mut stream), (0, 9));
    let mut data = vec![0; 1 << 20];
    stream.read_exact(&mut data).unwrap();
    assert!(data.iter().all(|byte| *byte == 7));
}
