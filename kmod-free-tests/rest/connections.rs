//! Connections that say nothing, or half of something, keep nobody out.

use std::io::Read;
use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use crate::daemon::Scratch;
use crate::start;

#[test]
fn silent_clients_keep_nobody_out() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &[]);
    let address = daemon.url.strip_prefix("http://").unwrap();
    let mut silent: Vec<TcpStream> = (0..300).map(|_| TcpStream::connect(address).unwrap()).collect();
    for half in silent.iter_mut().step_by(2) {
        half.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n").unwrap();
    }
    let mut asking = TcpStream::connect(address).unwrap();
    asking.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    asking.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    asking.read_to_string(&mut answer).expect("the answer comes though all connections were taken");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // The first of them has made room.
    let mut first = silent.swap_remove(0);
    first.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    assert_eq!(first.read_to_end(&mut Vec::new()).expect("it is closed"), 0);
}

#[test]
fn a_slow_head_is_slow_and_no_more() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &[]);
    let mut stream = TcpStream::connect(daemon.url.strip_prefix("http://").unwrap()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    for part in ["GET /hea", "lth HTTP/1.1\r\nHost: x\r\n", "Connection: close\r\n\r\n"] {
        stream.write_all(part.as_bytes()).unwrap();
        std::thread::park_timeout(Duration::from_millis(1200));
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}
