//! Bounds: memory, connections, clients that do not read, and the end of the server.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

use sinter::error::ErrorKind;
use sinter::export::nbd::{Listener, Operation, ServerOptions};
use sinter::units::ByteCount;

use crate::raw::{READ, Raw, Style, WRITE, request};
use crate::{Fixture, MIB, eventually, noise};

#[test]
fn payloads_in_flight_stay_within_the_budget() {
    let options =
        ServerOptions { request_budget: ByteCount(33 * MIB), workers: 32, ..ServerOptions::default() };
    let fixture = Fixture::with(64 * MIB, options);
    fixture.memory.write_gate.close();
    let senders: Vec<_> = (0..12)
        .map(|number| {
            let mut raw = Raw::connected(&fixture, Style::Simple);
            std::thread::Builder::new()
                .spawn(move || {
                    // 4 MiB each: only 8 fit.
                    raw.write(0, number, number * 4 * MIB, &vec![1; 4 << 20]);
                    assert_eq!(raw.answer(0).error, 0);
                })
                .unwrap()
        })
        .collect();
    eventually("8 writes are under way", || fixture.memory.write_gate.waiting.load(SeqCst) == 8);
    // Another connection's small requests need no budget, and go on.
    let mut small = Raw::connected(&fixture, Style::Simple);
    for _ in 0..100 {
        small.request(0, READ, 1, 0, 512);
        assert_eq!(small.answer(512).error, 0);
    }
    assert_eq!(fixture.memory.write_gate.waiting.load(SeqCst), 8, "the others wait for memory");
    fixture.memory.write_gate.open();
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    assert_eq!(fixture.server().statistics().operation(Operation::Write).requests.load(Relaxed), 12);
}

#[test]
fn one_more_connection_is_closed_at_once() {
    let fixture = Fixture::with(MIB, ServerOptions { connections_max: 2, ..ServerOptions::default() });
    let one = Raw::connected(&fixture, Style::Simple);
    let _other = Raw::connected(&fixture, Style::Simple);
    assert_eq!(fixture.server().connections_to("v"), 2);
    let mut third = UnixStream::connect(fixture.socket()).unwrap();
    assert_eq!(third.read(&mut [0]).unwrap(), 0);
    assert_eq!(fixture.server().statistics().connections_refused.load(Relaxed), 1);
    drop(one);
    eventually("the first has gone", || fixture.server().connections_to("v") == 1);
    let mut again = Raw::connected(&fixture, Style::Simple);
    again.request(0, READ, 1, 0, 512);
    assert_eq!(again.answer(512).error, 0);
}

#[test]
fn a_handshake_has_a_time_limit() {
    let limit = Duration::from_millis(200);
    let fixture = Fixture::with(MIB, ServerOptions { handshake_limit: limit, ..ServerOptions::default() });
    let mut idle = Raw::greeted(&fixture);
    let mut done = Raw::connected(&fixture, Style::Simple);
    idle.assert_closed();
    std::thread::yield_now();
    done.request(0, READ, 1, 0, 512);
    assert_eq!(done.answer(512).error, 0, "a client past its handshake may idle");
}

#[test]
fn a_client_that_does_not_read_holds_up_nobody() {
    let options =
        ServerOptions { workers: 2, send_limit: Duration::from_millis(1500), ..ServerOptions::default() };
    let fixture = Fixture::with(64 * MIB, options);
    let mut deaf: Vec<Raw> = (0..4).map(|_| Raw::connected(&fixture, Style::Simple)).collect();
    for raw in &mut deaf {
        let mut bytes = Vec::new();
        for cookie in 0..4 {
            bytes.extend(request(Style::Simple, 0, READ, cookie, 0, 2 << 20));
        }
        for cookie in 4..40 {
            bytes.extend(request(Style::Simple, 0, READ, cookie, 0, 32 << 10));
        }
        raw.send(&bytes);
    }
    let mut fair = Raw::connected(&fixture, Style::Simple);
    fixture.memory.cold.store(true, SeqCst);
    for cookie in 0..50 {
        fair.request(0, READ, cookie, 0, 4096);
        assert_eq!(fair.answer(4096).cookie, cookie);
    }
    eventually("the deaf ones are cut off", || fixture.server().connections_to("v") == 1);
    for raw in &mut deaf {
        let mut got = Vec::new();
        raw.stream.read_to_end(&mut got).unwrap();
        assert!(got.len() < 8 << 20);
    }
}

#[test]
fn a_slow_client_gets_everything() {
    let fixture = Fixture::new(16 * MIB);
    let mut raw = Raw::connected(&fixture, Style::Simple);
    raw.write(0, 1, 0, &noise(8 << 20, 4));
    assert_eq!(raw.answer(0).error, 0);
    let mut bytes = Vec::new();
    for cookie in 0..8 {
        bytes.extend(request(Style::Simple, 0, READ, cookie, cookie * MIB, MIB));
    }
    raw.send(&bytes);
    // Long enough for workers to lose patience.
    raw.stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let pause = std::sync::Condvar::new();
    let nobody = std::sync::Mutex::new(());
    let mut seen = [false; 8];
    for _ in 0..8 {
        drop(pause.wait_timeout(nobody.lock().unwrap(), Duration::from_millis(120)).unwrap());
        let answer = raw.answer(1 << 20);
        let at = usize::try_from(answer.cookie).unwrap();
        assert!(answer.payload == noise(8 << 20, 4)[at << 20..(at + 1) << 20]);
        seen[at] = true;
    }
    assert_eq!(seen, [true; 8]);
    raw.request(0, READ, 1, 0, 512);
    assert_eq!(raw.answer(512).error, 0);
}

#[test]
fn stopping_answers_what_was_received() {
    let mut fixture = Fixture::new(8 * MIB);
    let mut raw = Raw::connected(&fixture, Style::Simple);
    let mut idle = Raw::connected(&fixture, Style::Simple);
    fixture.memory.write_gate.close();
    for cookie in 0..3 {
        raw.write(0, cookie, 0, &vec![1; 1 << 20]);
    }
    eventually("the writes are under way", || fixture.memory.write_gate.waiting.load(SeqCst) == 3);
    let server = fixture.server.take().unwrap();
    let stopped = std::thread::Builder::new().spawn(move || server.stop(Duration::from_secs(20))).unwrap();
    idle.assert_closed();
    fixture.memory.write_gate.open();
    let mut cookies: Vec<u64> = (0..3).map(|_| raw.answer(0).cookie).collect();
    cookies.sort_unstable();
    assert_eq!(cookies, [0, 1, 2]);
    raw.assert_closed();
    assert!(stopped.join().unwrap(), "drained in time");
    assert!(!fixture.socket().exists(), "the socket's file is gone");
    assert!(UnixStream::connect(fixture.socket()).is_err());
}

#[test]
fn clients_of_one_export_can_be_let_go() {
    let fixture = Fixture::new(MIB);
    fixture.exports.add("w", "", &crate::memory::Memory::new(MIB));
    let mut raw = Raw::connected(&fixture, Style::Simple);
    let mut other = Raw::greeted(&fixture);
    other.haggle(7, &crate::raw::info_data("w", &[]));
    fixture.server().disconnect("v");
    raw.assert_closed();
    other.request(0, READ, 1, 0, 512);
    assert_eq!(other.answer(512).error, 0);
}

#[test]
fn a_socket_file_is_replaced_only_when_it_is_stale() {
    let fixture = Fixture::new(MIB);
    let mode = std::fs::metadata(fixture.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let kind = |path: &std::path::Path| Listener::unix(path).map(|_| ()).map_err(|error| error.kind());
    assert_eq!(kind(&fixture.socket()), Err(ErrorKind::Busy), "a server listens there");
    let file = fixture.file("precious");
    std::fs::write(&file, "data").unwrap();
    assert_eq!(kind(&file), Err(ErrorKind::Exists));
    assert_eq!(std::fs::read(&file).unwrap(), b"data");
    let stale = fixture.file("stale");
    drop(UnixListener::bind(&stale).unwrap());
    assert_eq!(kind(&stale), Ok(()));
    assert!(!stale.exists());
    let tcp = Listener::tcp(([127, 0, 0, 1], fixture.tcp_port).into());
    assert_eq!(tcp.unwrap_err().kind(), ErrorKind::Busy);
}

#[test]
fn requests_are_counted() {
    let fixture = Fixture::new(MIB);
    let mut raw = Raw::connected(&fixture, Style::Simple);
    for cookie in 0..10 {
        raw.write(0, cookie, 0, &[1; 512]);
        assert_eq!(raw.answer(0).error, 0);
    }
    raw.request(0, WRITE, 1, MIB, 0);
    assert_eq!(raw.answer(0).error, 22);
    let statistics = fixture.server().statistics();
    let writes = statistics.operation(Operation::Write);
    let loaded = (writes.requests.load(Relaxed), writes.bytes.load(Relaxed), writes.errors.load(Relaxed));
    assert_eq!(loaded, (11, 5120, 1));
    assert_eq!(writes.latency.iter().map(|bucket| bucket.load(Relaxed)).sum::<u64>(), 11);
}
