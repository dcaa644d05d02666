//! Negotiation: every option, refused and accepted.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use crate::memory::Memory;
use crate::raw::{Raw, info_data, meta_data, option};
use crate::{Fixture, MIB};

const UNSUP: u32 = (1 << 31) + 1;
const INVALID: u32 = (1 << 31) + 3;
const UNKNOWN: u32 = (1 << 31) + 6;
const EXT_HEADER_REQD: u32 = (1 << 31) + 10;

fn kinds(replies: &[(u32, Vec<u8>)]) -> Vec<u32> {
    replies.iter().map(|(kind, _)| *kind).collect()
}

#[test]
fn options_are_answered_as_the_protocol_says() {
    let fixture = Fixture::new(MIB);
    let mut raw = Raw::greeted(&fixture);
    assert_eq!(raw.haggle(3, &[]), [(2, b"\0\0\0\x01vthe only one".to_vec()), (1, vec![])]);
    assert_eq!(kinds(&raw.haggle(3, b"x")), [INVALID], "LIST takes no data");
    assert_eq!(kinds(&raw.haggle(5, &[])), [UNSUP], "no TLS");
    assert_eq!(kinds(&raw.haggle(5, b"x")), [INVALID]);
    assert_eq!(kinds(&raw.haggle(4711, b"whatever")), [UNSUP]);
    assert_eq!(kinds(&raw.haggle(6, &info_data("nobody", &[]))), [UNKNOWN]);
    assert_eq!(kinds(&raw.haggle(6, b"\xff\xff\xff\xff")), [INVALID]);
    assert_eq!(
        kinds(&raw.haggle(10, &meta_data("v", &["base:allocation"]))),
        [INVALID],
        "needs structured replies"
    );
    assert_eq!(kinds(&raw.haggle(8, b"x")), [INVALID]);
    assert_eq!(kinds(&raw.haggle(8, &[])), [1]);
    assert_eq!(kinds(&raw.haggle(9, &meta_data("v", &[]))), [4, 1]);
    assert_eq!(kinds(&raw.haggle(9, &meta_data("v", &["base:"]))), [4, 1]);
    assert_eq!(kinds(&raw.haggle(9, &meta_data("v", &["qemu:dirty-bitmap:x"]))), [1]);
    assert_eq!(kinds(&raw.haggle(10, &meta_data("v", &["base:"]))), [1], "a wildcard chooses nothing");
    assert_eq!(kinds(&raw.haggle(10, &meta_data("nobody", &["base:allocation"]))), [UNKNOWN]);
    assert_eq!(kinds(&raw.haggle(11, &[])), [1]);
    assert_eq!(kinds(&raw.haggle(8, &[])), [EXT_HEADER_REQD]);
    let replies = raw.haggle(6, &info_data("", &[1, 2, 3, 77]));
    assert_eq!(kinds(&replies), [3, 3, 3, 3, 1]);
    assert_eq!(replies[0].1[..10], [0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0], "the size");
    assert_eq!(replies[1].1, b"\0\x01v", "the empty name is the only export");
    assert_eq!(replies[2].1, b"\0\x02the only one");
    assert_eq!(replies[3].1, [0, 3, 0, 0, 0, 1, 0, 0, 0x10, 0, 2, 0, 0, 0]);
    assert_eq!(kinds(&raw.haggle(2, &[])), [1], "ABORT is answered");
    raw.assert_closed();
}

#[test]
fn the_empty_name_is_refused_among_several() {
    let fixture = Fixture::new(MIB);
    fixture.exports.add("w", "", &Memory::new(MIB));
    let mut raw = Raw::greeted(&fixture);
    assert_eq!(kinds(&raw.haggle(7, &info_data("", &[]))), [UNKNOWN]);
    assert_eq!(kinds(&raw.haggle(7, &info_data("w", &[]))), [3, 1]);
}

#[test]
fn export_name_pads_unless_told_otherwise() {
    for (flags, len) in [(1u32, 134), (3, 10)] {
        let fixture = Fixture::new(MIB);
        let mut stream = UnixStream::connect(fixture.socket()).unwrap();
        stream.read_exact(&mut [0; 18]).unwrap();
        stream.write_all(&flags.to_be_bytes()).unwrap();
        stream.write_all(&option(1, b"v")).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut reply = Vec::new();
        stream.read_to_end(&mut reply).unwrap();
        assert_eq!(reply.len(), len);
        assert_eq!(reply[..8], MIB.to_be_bytes());
    }
}

#[test]
fn whoever_breaks_the_handshake_is_cut_off() {
    let fixture = Fixture::new(MIB);
    let long = [b"IHAVEOPT".to_vec(), vec![0, 0, 0, 3, 0, 2, 0, 0]].concat();
    let garbage = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec();
    for (what, bytes) in [
        ("wrong magic", garbage),
        ("data too long", long),
        ("EXPORT_NAME of no export", option(1, b"nobody")),
        ("EXPORT_NAME that is no string", option(1, b"a\0b")),
    ] {
        let mut raw = Raw::greeted(&fixture);
        raw.send(&bytes);
        println!("{what}");
        raw.assert_closed();
    }
    let mut stream = UnixStream::connect(fixture.socket()).unwrap();
    stream.read_exact(&mut [0; 18]).unwrap();
    stream.write_all(&[0, 0, 1, 0]).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "unknown client flags");
    let mut raw = Raw::greeted(&fixture);
    assert_eq!(kinds(&raw.haggle(11, &[])), [1]);
    raw.send(&option(1, b"v"));
    raw.assert_closed();
}

#[test]
fn a_new_size_is_seen_by_the_next_connection() {
    let fixture = Fixture::new(MIB);
    let mut old = Raw::connected(&fixture, crate::raw::Style::Simple);
    fixture.memory.resize(2 * MIB);
    old.request(0, crate::raw::READ, 1, MIB, 4096);
    assert_eq!(old.answer(4096).error, 22);
    let mut new = Raw::connected(&fixture, crate::raw::Style::Simple);
    new.request(0, crate::raw::READ, 1, MIB, 4096);
    assert_eq!(new.answer(4096).error, 0);
}
