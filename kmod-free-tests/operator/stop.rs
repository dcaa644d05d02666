//! Told to stop, the daemon answers what it has, makes it durable and ends with 0; told again, it ends at once.

use std::io::Read;
use std::io::Write;
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
    assert!(log.contains("nothing to replay"), "{log}");
    let read = crate::get(&daemon, "/api/v1/volumes/disk/read?offset=8192");
    assert!(read.contains("\"c3RvcHBpbmc=\""), "{read}");
    let mut nbd = raw::connect(&daemon.socket(), "disk");
    nbd.write_all(&raw::request(raw::READ, 9, 65536, 32 * 4096, b"")).unwrap();
    assert_eq!(raw::answer(&mut nbd), (0, 9));
    let mut data = vec![0; 32 * 4096];
    nbd.read_exact(&mut data).unwrap();
    assert!(data.chunks(4096).zip(1u8..).all(|(block, byte)| block.iter().all(|found| *found == byte)));
}

/// What a server that stops answers to requests that came too late.
const SHUTTING_DOWN: u32 = 108;

/// Sends `count` writes of `length` bytes one after another, tells the daemon to stop once the first is answered,
/// and expects an answer to each of them, and then the end of the connection.
fn stop_below_writes<S: Read + Write + Send + 'static>(
    daemon: Daemon,
    mut listener: S,
    mut speaker: S,
    (count, length): (u64, u32),
) {
    let speak = move || -> std::io::Result<S> {
        for cookie in 1..=count {
            let data = vec![cookie as u8; length as usize];
            let offset = (cookie - 1) % 64 * u64::from(length);
            speaker.write_all(&raw::request(raw::WRITE, cookie, offset, length, &data))?;
        }
        Ok(speaker)
    };
    let speaking = std::thread::Builder::new().spawn(speak).unwrap();
    let mut answered = vec![raw::answer(&mut listener)];
    tell(&daemon);
    answered.extend((1..count).map(|_| raw::answer(&mut listener)));
    assert_eq!(listener.read(&mut [0]).unwrap(), 0, "the server closes once all is answered");
    drop(speaking.join().unwrap().expect("what the client sends is taken to the last byte"));
    assert!(answered.iter().all(|(error, _)| matches!(*error, 0 | SHUTTING_DOWN)), "{answered:?}");
    let mut cookies: Vec<u64> = answered.iter().map(|(_, cookie)| *cookie).collect();
    cookies.sort_unstable();
    assert_eq!(cookies, (1..=count).collect::<Vec<_>>());
    assert!(daemon.wait().success());
}

#[test]
fn a_client_with_many_large_writes_under_way_gets_all_its_answers() {
    let scratch = Scratch::new();
    let (daemon, _manager) = start(&scratch);
    let listener = raw::connect(&daemon.socket(), "disk");
    let speaker = listener.try_clone().unwrap();
    stop_below_writes(daemon, listener, speaker, (64, 1 << 20));
}

#[test]
fn a_client_with_thousands_of_small_writes_under_way_gets_all_its_answers() {
    let scratch = Scratch::new();
    let (daemon, _manager) = start(&scratch);
    let listener = raw::connect(&daemon.socket(), "disk");
    let speaker = listener.try_clone().unwrap();
    stop_below_writes(daemon, listener, speaker, (5_000, 4096));
    let (daemon, _manager) = start(&scratch);
    let mut listener = TcpStream::connect(daemon.nbd.strip_prefix("nbd://").unwrap()).unwrap();
    listener.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    raw::ask_for(&mut listener, "disk");
    let speaker = listener.try_clone().unwrap();
    stop_below_writes(daemon, listener, speaker, (5_000, 4096));
}

#[test]
#[expect(clippy::disallowed_methods, reason = "measures how long the real daemon takes to end")]
fn half_a_request_or_none_does_not_hold_up_the_end() {
    let scratch = Scratch::new();
    let (daemon, _manager) = start(&scratch);
    let silent = raw::connect(&daemon.socket(), "disk");
    let mut half = raw::connect(&daemon.socket(), "disk");
    half.write_all(&raw::request(raw::WRITE, 1, 0, 1 << 20, &[1; 4096])).unwrap();
    // Long enough for both to be waited for in the way of idle connections.
    std::thread::park_timeout(Duration::from_millis(500));
    let asked = std::time::Instant::now();
    assert!(daemon.terminate().success());
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    drop((silent, half));
}

#[test]
fn a_client_that_takes_no_answers_does_not_hold_up_the_end_for_ever() {
    let scratch = Scratch::new();
    let (daemon, _manager) = start(&scratch);
    let client = stalled_client(&daemon);
    assert!(daemon.terminate().success(), "its connection was cut, and all else was done in peace");
    drop(client);
    let (_daemon, log) = next_log(scratch.path());
    assert!(log.contains("nothing to replay"), "{log}");
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
