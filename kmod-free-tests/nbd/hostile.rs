//! Requests that no client should send. The server answers with the protocol's error or closes the
//! connection; it never dies, and no block changes.

use crate::raw::{
    BLOCK_STATUS, CACHE, DISC, FLUSH, FUA, PAYLOAD_LEN, READ, Raw, Style, TRIM, WRITE, WRITE_ZEROES, request,
};
use crate::{Fixture, MIB, noise};

const EPERM: u32 = 1;
const EINVAL: u32 = 22;
const ENOSPC: u32 = 28;
const EOVERFLOW: u32 = 75;

/// flags, command, offset, length, payload bytes that follow, error
type Case = (u16, u16, u64, u64, usize, u32);

const SIZE: u64 = 4 * MIB + 512;

const CASES: &[Case] = &[
    (0, READ, 0, 0, 0, EINVAL),
    (0, READ, SIZE, 1, 0, EINVAL),
    (0, READ, SIZE - 1, 2, 0, EINVAL),
    (0, READ, u64::MAX, 4096, 0, EINVAL),
    (0, READ, u64::MAX - 4095, 4096, 0, EINVAL),
    (FUA << 1, READ, 0, 4096, 0, EINVAL),
    (1 << 3, READ, 0, 4096, 0, EINVAL),
    (1 << 15, READ, 0, 4096, 0, EINVAL),
    (0, TRIM, SIZE - 4096, 4097, 0, EINVAL),
    (0, TRIM, 0, 0, 0, EINVAL),
    (1 << 1, TRIM, 0, 4096, 0, EINVAL),
    (0, WRITE_ZEROES, SIZE - 4096, 4097, 0, ENOSPC),
    (0, WRITE_ZEROES, u64::MAX, u32::MAX as u64, 0, ENOSPC),
    (0, WRITE_ZEROES, 0, 0, 0, EINVAL),
    (1 << 2, WRITE_ZEROES, 0, 4096, 0, EINVAL),
    (0, FLUSH, 1, 0, 0, EINVAL),
    (0, FLUSH, 0, 1, 0, EINVAL),
    (0, CACHE, SIZE, 4096, 0, EINVAL),
    (1 << 4, CACHE, 0, 4096, 0, EINVAL),
    (0, 8, 0, 4096, 0, EINVAL),
    (0, 0xffff, 0, 0, 0, EINVAL),
    (0, BLOCK_STATUS, SIZE, 4096, 0, EINVAL),
    (0, BLOCK_STATUS, 0, 0, 0, EINVAL),
];

const WRITES: &[(u16, u64, usize, u32)] = &[
    (0, SIZE, 4096, ENOSPC),
    (0, SIZE - 4096, 4097, ENOSPC),
    (0, u64::MAX - 10, 4096, ENOSPC),
    (0, SIZE - 4096, 2 << 20, ENOSPC),
    (1 << 1, 0, 4096, EINVAL),
    (1 << 14, 0, 300_000, EINVAL),
    (0, 0, (32 << 20) + 1, EINVAL),
];

fn prepared() -> (Fixture, Vec<u8>) {
    let fixture = Fixture::new(SIZE);
    let before = noise(usize::try_from(SIZE).unwrap(), 7);
    let mut raw = Raw::connected(&fixture, Style::Simple);
    raw.write(0, 1, 0, &before);
    assert_eq!(raw.answer(0).error, 0);
    (fixture, before)
}

/// The connection still works, and the data is what it was.
fn assert_unharmed(fixture: &Fixture, raw: &mut Raw, before: &[u8]) {
    raw.request(0, READ, 99, 512, 512);
    let answer = raw.answer(512);
    assert_eq!((answer.cookie, answer.error), (99, 0));
    assert!(answer.payload.ends_with(&before[512..1024]));
    assert!(fixture.memory.bytes(0, before.len()) == before, "a block has changed");
}

#[test]
fn wrong_requests_get_the_protocols_error() {
    let (fixture, before) = prepared();
    for style in [Style::Simple, Style::Structured, Style::Extended] {
        let mut raw = Raw::connected(&fixture, style);
        for case @ (flags, command, offset, length, _, error) in CASES {
            raw.request(*flags, *command, 5, *offset, *length);
            let answer = raw.answer(0);
            assert_eq!((answer.cookie, answer.error), (5, *error), "{style:?} {case:?}");
        }
        assert_unharmed(&fixture, &mut raw, &before);
    }
}

#[test]
fn the_payload_of_a_refused_write_is_swallowed() {
    let (fixture, before) = prepared();
    for style in [Style::Simple, Style::Structured, Style::Extended] {
        let mut raw = Raw::connected(&fixture, style);
        for case @ (flags, offset, len, error) in WRITES {
            // A payload that looks like a request must not be taken for one.
            let evil = request(style, 0, WRITE_ZEROES, 66, 0, MIB);
            let data: Vec<u8> = evil.iter().copied().cycle().take(*len).collect();
            raw.write(*flags, 6, *offset, &data);
            let answer = raw.answer(0);
            assert_eq!((answer.cookie, answer.error), (6, *error), "{style:?} {case:?}");
        }
        assert_unharmed(&fixture, &mut raw, &before);
    }
}

#[test]
fn refused_requests_in_a_row_are_all_answered() {
    let (fixture, before) = prepared();
    let mut raw = Raw::connected(&fixture, Style::Structured);
    let mut bytes = Vec::new();
    for cookie in 0..5000 {
        bytes.extend(request(Style::Structured, 0, 77, cookie, 0, 0));
    }
    let mut writer = raw.stream.try_clone().unwrap();
    let sender = std::thread::Builder::new()
        .spawn(move || std::io::Write::write_all(&mut writer, &bytes).unwrap())
        .unwrap();
    for cookie in 0..5000 {
        let answer = raw.answer(0);
        assert_eq!((answer.cookie, answer.error), (cookie, EINVAL));
    }
    sender.join().unwrap();
    assert_unharmed(&fixture, &mut raw, &before);
}

#[test]
fn reads_too_long_are_refused() {
    let fixture = Fixture::new(64 * MIB);
    for (style, error) in
        [(Style::Simple, EINVAL), (Style::Structured, EOVERFLOW), (Style::Extended, EOVERFLOW)]
    {
        let mut raw = Raw::connected(&fixture, style);
        raw.request(0, READ, 1, 0, (32 << 20) + 1);
        assert_eq!(raw.answer(0).error, error);
        raw.request(0, READ, 1, 0, 32 << 20);
        assert_eq!(raw.answer(32 << 20).error, 0);
    }
}

#[test]
fn a_read_only_export_refuses_changes() {
    let (fixture, before) = prepared();
    fixture.memory.read_only.store(true, std::sync::atomic::Ordering::SeqCst);
    let mut raw = Raw::connected(&fixture, Style::Structured);
    raw.write(0, 1, 0, &[1; 4096]);
    assert_eq!(raw.answer(0).error, EPERM);
    raw.write(0, 1, 0, &vec![1; 200_000]);
    assert_eq!(raw.answer(0).error, EPERM);
    for command in [TRIM, WRITE_ZEROES] {
        raw.request(0, command, 1, 0, 4096);
        assert_eq!(raw.answer(0).error, EPERM);
    }
    raw.request(0, FLUSH, 1, 0, 0);
    assert_eq!(raw.answer(0).error, 0);
    assert_unharmed(&fixture, &mut raw, &before);
}

#[test]
fn what_is_no_request_closes_the_connection() {
    let (fixture, before) = prepared();
    let mut wrong_magic = request(Style::Simple, 0, READ, 1, 0, 4096);
    wrong_magic[0] ^= 0xff;
    let too_long = request(Style::Simple, 0, WRITE, 1, 0, u64::from(u32::MAX));
    for bytes in [wrong_magic, too_long, request(Style::Extended, 0, READ, 1, 0, 4096), noise(4096, 3)] {
        let mut raw = Raw::connected(&fixture, Style::Simple);
        raw.send(&bytes);
        raw.assert_closed();
    }
    let mut raw = Raw::connected(&fixture, Style::Extended);
    raw.send(&request(Style::Extended, PAYLOAD_LEN, TRIM, 1, 0, u64::MAX));
    raw.assert_closed();
    assert_unharmed(&fixture, &mut Raw::connected(&fixture, Style::Simple), &before);
}

#[test]
fn half_sent_requests_change_nothing() {
    let (fixture, before) = prepared();
    for len in [4096, 60_000, 70_000, MIB] {
        for missing in [1, 2000] {
            let mut bytes = request(Style::Simple, 0, WRITE, 1, 4096, len);
            bytes.resize(bytes.len() + usize::try_from(len).unwrap() - missing, 0xee);
            let mut raw = Raw::connected(&fixture, Style::Simple);
            raw.send(&bytes);
            raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
            raw.assert_closed();
        }
    }
    let mut raw = Raw::connected(&fixture, Style::Simple);
    raw.send(&request(Style::Simple, 0, WRITE, 1, 0, 4096)[..20]);
    drop(raw);
    assert_unharmed(&fixture, &mut Raw::connected(&fixture, Style::Simple), &before);
}

#[test]
fn any_bytes_after_the_handshake_are_survived() {
    let (fixture, _) = prepared();
    for seed in 0..200 {
        let mut raw = Raw::connected(&fixture, Style::Simple);
        let mut bytes = request(Style::Simple, 0, 0, 1, 0, 512);
        let garbage = noise(64, seed);
        let at = 4 + usize::try_from(seed % 24).unwrap();
        bytes[at..].copy_from_slice(&garbage[..28 - at]);
        raw.send(&bytes);
        raw.stream.shutdown(std::net::Shutdown::Write).unwrap();
        std::io::Read::read_to_end(&mut raw.stream, &mut Vec::new()).unwrap();
    }
    let mut raw = Raw::connected(&fixture, Style::Simple);
    raw.request(0, READ, 1, 0, 4096);
    assert_eq!(raw.answer(4096).error, 0, "the server is still there");
}

#[test]
fn payloads_where_none_belong_are_swallowed() {
    let (fixture, before) = prepared();
    let mut raw = Raw::connected(&fixture, Style::Extended);
    for (command, len) in [(READ, 4096), (TRIM, 100_000), (FLUSH, 1), (BLOCK_STATUS, 16), (55, 4096)] {
        let mut bytes = request(Style::Extended, PAYLOAD_LEN, command, 3, 0, len);
        bytes.resize(bytes.len() + usize::try_from(len).unwrap(), 0);
        raw.send(&bytes);
        let answer = raw.answer(0);
        assert_eq!((answer.cookie, answer.error), (3, EINVAL), "command {command}");
    }
    // The one payload that means something: a choice of contexts.
    for (context, error) in [(1u32, 0), (2, EINVAL)] {
        let mut bytes = request(Style::Extended, PAYLOAD_LEN, BLOCK_STATUS, 4, 0, 12);
        bytes.extend(4096u64.to_be_bytes());
        bytes.extend(context.to_be_bytes());
        raw.send(&bytes);
        let answer = raw.answer(0);
        assert_eq!(answer.error, error);
        if error == 0 {
            assert_eq!((answer.kind, answer.payload.len()), (6, 8 + 16));
            assert_eq!(answer.payload[8..16], 4096u64.to_be_bytes());
        }
    }
    assert_unharmed(&fixture, &mut raw, &before);
}

#[test]
fn status_without_a_context_is_refused() {
    let fixture = Fixture::new(MIB);
    let mut raw = Raw::connected(&fixture, Style::Simple);
    raw.request(0, BLOCK_STATUS, 1, 0, 4096);
    assert_eq!(raw.answer(0).error, EINVAL);
}

#[test]
fn disc_answers_what_came_before_it() {
    let fixture = Fixture::new(MIB);
    fixture.memory.cold.store(true, std::sync::atomic::Ordering::SeqCst);
    let mut raw = Raw::connected(&fixture, Style::Simple);
    let mut bytes = Vec::new();
    for cookie in 0..20 {
        bytes.extend(request(Style::Simple, 0, READ, cookie, 0, 4096));
    }
    bytes.extend(request(Style::Simple, 0, DISC, 0, 0, 0));
    raw.send(&bytes);
    let mut cookies: Vec<u64> = (0..20).map(|_| raw.answer(4096).cookie).collect();
    cookies.sort_unstable();
    assert_eq!(cookies, (0..20).collect::<Vec<u64>>());
    raw.assert_closed();
}
