//! What may be answered when: acknowledged, durable, out of order.

use std::sync::atomic::Ordering::SeqCst;

use sinter::error::ErrorKind;

use crate::raw::{BLOCK_STATUS, CACHE, FLUSH, FUA, READ, Raw, Style, TRIM, WRITE_ZEROES, request};
use crate::{Fixture, MIB, eventually, noise};

#[test]
fn a_write_is_acknowledged_before_it_is_answered() {
    let fixture = Fixture::new(8 * MIB);
    for style in [Style::Simple, Style::Structured, Style::Extended] {
        let mut raw = Raw::connected(&fixture, style);
        for len in [1, 4096, 50_000, 100_000, 1 << 20] {
            let before = fixture.memory.acknowledged.load(SeqCst);
            let data = noise(len, 5);
            raw.write(0, 1, 77, &data);
            assert_eq!(raw.answer(0).error, 0);
            assert_eq!(fixture.memory.acknowledged.load(SeqCst), before + 1);
            assert!(fixture.memory.bytes(77, len) == data);
        }
        for command in [TRIM, WRITE_ZEROES] {
            let before = fixture.memory.acknowledged.load(SeqCst);
            raw.request(0, command, 1, 0, 8192);
            assert_eq!(raw.answer(0).error, 0);
            assert_eq!(fixture.memory.acknowledged.load(SeqCst), before + 1);
        }
    }
    assert_eq!(fixture.memory.durable.load(SeqCst), 0, "nothing asked for durability");
}

#[test]
fn fua_is_durable_when_it_is_answered() {
    let fixture = Fixture::new(64 * MIB);
    let mut raw = Raw::connected(&fixture, Style::Extended);
    let mut writes = 0;
    for len in [4096, 100_000] {
        raw.write(FUA, 1, 0, &noise(len, 5));
        assert_eq!(raw.answer(0).error, 0);
        writes += 1;
        assert_eq!(fixture.memory.durable.load(SeqCst), writes);
    }
    for command in [TRIM, WRITE_ZEROES] {
        // A long range may take its time, and is left to a worker.
        for length in [4096, 32 * MIB] {
            raw.request(FUA, command, 1, 0, length);
            assert_eq!(raw.answer(0).error, 0);
            writes += 1;
            assert_eq!(fixture.memory.durable.load(SeqCst), writes);
        }
    }
    raw.request(FUA, READ, 1, 0, 4096);
    assert_eq!(raw.answer(4096).error, 0, "FUA is valid for all commands");
    assert_eq!(fixture.memory.durable.load(SeqCst), writes);
}

#[test]
fn a_flush_covers_what_was_answered_on_any_connection() {
    let fixture = Fixture::new(MIB);
    let mut one = Raw::connected(&fixture, Style::Simple);
    let mut other = Raw::connected(&fixture, Style::Structured);
    one.write(0, 1, 0, &[1; 4096]);
    assert_eq!(one.answer(0).error, 0);
    other.request(0, FLUSH, 2, 0, 0);
    assert_eq!(other.answer(0).error, 0);
    assert_eq!(fixture.memory.durable.load(SeqCst), 1);
}

#[test]
fn a_flush_does_not_hold_up_reads_and_writes() {
    let fixture = Fixture::new(MIB);
    let mut raw = Raw::connected(&fixture, Style::Simple);
    fixture.memory.flush_gate.close();
    // Alone, so that the connection's own thread executes it ...
    raw.request(0, FLUSH, 1, 0, 0);
    eventually("the flush has begun", || fixture.memory.flush_gate.waiting.load(SeqCst) == 1);
    // ... and what comes later is received in its place.
    for cookie in 2..50 {
        raw.request(0, READ, cookie, 0, 4096);
        assert_eq!(raw.answer(4096).cookie, cookie);
        raw.write(0, cookie, 0, &noise(4096, cookie));
        assert_eq!(raw.answer(0).cookie, cookie);
        raw.write(0, cookie, 0, &noise(200_000, cookie));
        assert_eq!(raw.answer(0).cookie, cookie);
    }
    // FUA and further flushes wait, and share one sync.
    let syncs = fixture.memory.syncs.load(SeqCst);
    raw.request(0, FLUSH, 100, 0, 0);
    raw.write(FUA, 101, 0, &[1; 4096]);
    raw.request(0, FLUSH, 102, 0, 0);
    raw.assert_silent();
    fixture.memory.flush_gate.open();
    let mut cookies: Vec<u64> = (0..4).map(|_| raw.answer(0).cookie).collect();
    cookies.sort_unstable();
    assert_eq!(cookies, [1, 100, 101, 102]);
    assert_eq!(fixture.memory.syncs.load(SeqCst), syncs + 2, "one for the first, one for the other three");
    // The owner is back in its place.
    raw.request(0, READ, 7, 0, 4096);
    assert_eq!(raw.answer(4096).cookie, 7);
}

#[test]
fn a_cold_read_does_not_hold_up_others() {
    let fixture = Fixture::new(8 * MIB);
    let mut raw = Raw::connected(&fixture, Style::Simple);
    fixture.memory.cold.store(true, SeqCst);
    fixture.memory.read_gate.close();
    for cookie in 0..8 {
        raw.request(0, READ, cookie, 0, 4096);
    }
    raw.request(0, READ, 8, 0, 1 << 20);
    eventually("cold reads overlap", || fixture.memory.read_gate.waiting.load(SeqCst) == 9);
    fixture.memory.cold.store(false, SeqCst);
    raw.request(0, READ, 50, 0, 4096);
    assert_eq!(raw.answer(4096).cookie, 50, "a warm read overtakes cold ones");
    raw.write(0, 51, 0, &[7; 512]);
    assert_eq!(raw.answer(0).cookie, 51);
    fixture.memory.read_gate.open();
    let mut bytes = 0;
    let mut rest: Vec<u64> = (0..8).collect();
    rest.push(8);
    while !rest.is_empty() {
        // The large one may come at any place: its cookie says how much data follows.
        let mut head = [0; 16];
        std::io::Read::read_exact(&mut raw.stream, &mut head).unwrap();
        let cookie = u64::from_be_bytes(head[8..].try_into().unwrap());
        let mut data = vec![0; if cookie == 8 { 1 << 20 } else { 4096 }];
        std::io::Read::read_exact(&mut raw.stream, &mut data).unwrap();
        rest.retain(|it| *it != cookie);
        bytes += data.len();
    }
    assert_eq!(bytes, 8 * 4096 + (1 << 20));
}

#[test]
fn a_long_write_does_not_hold_up_reads() {
    let fixture = Fixture::new(8 * MIB);
    let mut raw = Raw::connected(&fixture, Style::Simple);
    fixture.memory.write_gate.close();
    raw.write(0, 1, 0, &vec![1; 1 << 20]);
    raw.write(0, 2, MIB, &vec![2; 1 << 20]);
    raw.request(0, READ, 3, 0, 512);
    assert_eq!(raw.answer(512).cookie, 3);
    fixture.memory.write_gate.open();
    let mut cookies = [raw.answer(0).cookie, raw.answer(0).cookie];
    cookies.sort_unstable();
    assert_eq!(cookies, [1, 2]);
    assert!(fixture.memory.bytes(MIB, 1 << 20) == vec![2; 1 << 20]);
}

#[test]
fn small_requests_that_wait_together_are_acknowledged_together() {
    let fixture = Fixture::new(MIB);
    let mut raw = Raw::connected(&fixture, Style::Structured);
    let mut bytes = Vec::new();
    for cookie in 0..30 {
        bytes.extend(request(Style::Structured, 0, 1, cookie, cookie * 512, 512));
        bytes.extend(vec![u8::try_from(cookie).unwrap(); 512]);
        bytes.extend(request(Style::Structured, 0, READ, cookie + 100, cookie * 512, 512));
    }
    raw.send(&bytes);
    let mut cookies: Vec<u64> = (0..60).map(|_| raw.answer(0).cookie).collect();
    cookies.sort_unstable();
    assert_eq!(cookies, (0..30).chain(100..130).collect::<Vec<u64>>());
    assert_eq!(fixture.memory.acknowledged.load(SeqCst), 30);
    let calls = fixture.memory.acknowledges.load(SeqCst);
    assert!(calls <= 3, "{calls} acknowledges for 30 writes sent at once");
}

#[test]
fn errors_reach_the_client_as_what_they_are() {
    let fixture = Fixture::new(MIB);
    let kinds = [
        (ErrorKind::NoSpace, 28),
        (ErrorKind::Stopped, 5),
        (ErrorKind::Device, 5),
        (ErrorKind::Corrupt, 5),
        (ErrorKind::NotPrimary, 108),
        (ErrorKind::ReadOnly, 1),
    ];
    for style in [Style::Simple, Style::Structured, Style::Extended] {
        let mut raw = Raw::connected(&fixture, style);
        for (kind, errno) in kinds {
            *fixture.memory.fault.lock().unwrap() = Some(kind);
            raw.write(0, 1, 0, &[1; 512]);
            assert_eq!(raw.answer(0).error, errno);
            raw.write(FUA, 1, 0, &vec![1; 100_000]);
            assert_eq!(raw.answer(0).error, errno);
            raw.request(0, WRITE_ZEROES, 1, 0, 4096);
            assert_eq!(raw.answer(0).error, errno);
            *fixture.memory.fault.lock().unwrap() = None;
            *fixture.memory.acknowledge_fault.lock().unwrap() = Some(kind);
            raw.write(0, 1, 0, &[1; 512]);
            assert_eq!(raw.answer(0).error, errno, "committed, but not acknowledged");
            raw.write(FUA, 1, 0, &[1; 512]);
            assert_eq!(raw.answer(0).error, errno, "what is not acknowledged is not durable");
            *fixture.memory.acknowledge_fault.lock().unwrap() = None;
        }
        raw.write(0, 1, 0, &[1; 512]);
        assert_eq!(raw.answer(0).error, 0);
    }
}

#[test]
fn holes_are_told_and_not_sent() {
    let fixture = Fixture::new(8 * MIB);
    let mut raw = Raw::connected(&fixture, Style::Structured);
    raw.write(0, 1, MIB, &noise(1 << 20, 1));
    assert_eq!(raw.answer(0).error, 0);
    for len in [4096u32, 1 << 20] {
        raw.request(0, READ, 1, 0, u64::from(len));
        let answer = raw.answer(0);
        assert_eq!(answer.kind, 2, "a hole");
        assert_eq!(answer.payload, [0u64.to_be_bytes().to_vec(), len.to_be_bytes().to_vec()].concat());
        raw.request(1 << 2, READ, 1, 0, u64::from(len));
        let answer = raw.answer(0);
        assert_eq!((answer.kind, answer.payload.len()), (1, 8 + len as usize), "DF: the zeros themselves");
        raw.request(0, READ, 1, MIB, u64::from(len));
        let answer = raw.answer(0);
        assert_eq!(answer.kind, 1);
        assert!(answer.payload[8..] == noise(1 << 20, 1)[..len as usize]);
    }
    raw.request(0, BLOCK_STATUS, 1, 0, 8 * MIB);
    let expected: Vec<u8> =
        [1u32, 1 << 20, 3, 1 << 20, 0, 6 << 20, 3].iter().flat_map(|it| it.to_be_bytes()).collect();
    let answer = raw.answer(0);
    assert_eq!((answer.kind, answer.payload), (5, expected));
    raw.request(1 << 3, BLOCK_STATUS, 1, 100, 8 * MIB - 100);
    assert_eq!(raw.answer(0).payload.len(), 4 + 8, "REQ_ONE");
    raw.request(0, CACHE, 1, 0, 8 * MIB);
    assert_eq!(raw.answer(0).error, 0);
}
