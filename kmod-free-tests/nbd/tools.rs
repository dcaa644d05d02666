//! The tools that people use: libnbd's, QEMU's and fio.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering::SeqCst;

use crate::{Fixture, MIB, noise};

fn run(program: &str, arguments: &[&str]) -> String {
    let output =
        Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}\n{text}\n{said}");
    text
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A sparse image: data, zeros, data up to an odd end.
fn image(fixture: &Fixture) -> (std::path::PathBuf, Vec<u8>) {
    let mut bytes = noise(3 << 20, 21);
    bytes.resize(9 << 20, 0);
    bytes.extend(noise((1 << 20) + 512, 22));
    let file = fixture.file("image");
    std::fs::write(&file, &bytes).unwrap();
    (file, bytes)
}

#[test]
fn nbdinfo_sees_what_is_offered() {
    let fixture = Fixture::new(8 * MIB);
    for uri in [fixture.unix_uri(), fixture.tcp_uri()] {
        let info = run("nbdinfo", &[&uri]);
        for line in [
            "export-size: 8388608",
            "base:allocation",
            "can_multi_conn: true",
            "can_fua: true",
            "can_flush: true",
            "can_trim: true",
            "can_zero: true",
            "can_fast_zero: true",
            "can_df: true",
            "can_cache: true",
            "is_read_only: false",
            "block_size_minimum: 1",
            "block_size_preferred: 4096",
            "block_size_maximum: 33554432",
        ] {
            assert!(info.contains(line), "{line} is missing from\n{info}");
        }
        let listed = run("nbdinfo", &["--list", "--json", &uri]);
        assert!(listed.contains("\"description\": \"the only one\""), "{listed}");
    }
}

#[test]
fn nbdcopy_takes_an_image_in_and_out() {
    let fixture = Fixture::new((10 << 20) + 512);
    let (file, bytes) = image(&fixture);
    let back = fixture.file("back");
    for (uri, connections) in [(fixture.unix_uri(), "1"), (fixture.unix_uri(), "4"), (fixture.tcp_uri(), "4")]
    {
        run("nbdcopy", &["--flush", "-C", connections, path(&file), &uri]);
        assert!(fixture.memory.bytes(0, bytes.len()) == bytes);
        assert!(fixture.memory.durable.load(SeqCst) > 0);
        run("nbdcopy", &["-C", connections, &uri, path(&back)]);
        assert!(std::fs::read(&back).unwrap() == bytes);
        run("nbdcopy", &["--destination-is-zero", &uri, "null:"]);
    }
    let map = run("nbdinfo", &["--map", &fixture.unix_uri()]);
    let shapes: Vec<Vec<&str>> = map.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(shapes[0], ["0", "3145728", "0", "data"]);
    assert_eq!(shapes[1], ["3145728", "6291456", "3", "hole,zero"]);
    assert_eq!(shapes[2], ["9437184", "1049088", "0", "data"]);
}

#[test]
fn nbdcopy_overlaps_cold_reads() {
    let fixture = Fixture::new((10 << 20) + 512);
    let (file, bytes) = image(&fixture);
    let back = fixture.file("back");
    run("nbdcopy", &[path(&file), &fixture.unix_uri()]);
    fixture.memory.cold.store(true, SeqCst);
    run("nbdcopy", &["--request-size=65536", &fixture.unix_uri(), path(&back)]);
    assert!(std::fs::read(&back).unwrap() == bytes);
}

#[test]
fn qemu_img_converts_and_compares() {
    let fixture = Fixture::new((10 << 20) + 512);
    let (file, bytes) = image(&fixture);
    let back = fixture.file("back");
    for uri in [fixture.unix_uri(), fixture.tcp_uri()] {
        run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", path(&file), &uri]);
        assert!(fixture.memory.bytes(0, bytes.len()) == bytes);
        run("qemu-img", &["compare", "-f", "raw", "-F", "raw", path(&file), &uri]);
        run("qemu-img", &["convert", "-f", "raw", "-O", "raw", &uri, path(&back)]);
        assert!(std::fs::read(&back).unwrap() == bytes);
    }
    let map = run("qemu-img", &["map", "-f", "raw", "--output=json", &fixture.unix_uri()]);
    assert!(map.contains("\"start\": 3145728, \"length\": 6291456"), "{map}");
}

#[test]
fn qemu_io_writes_discards_and_zeroes() {
    let fixture = Fixture::new(64 * MIB);
    for uri in [fixture.unix_uri(), fixture.tcp_uri()] {
        let commands = [
            "write -P 0x5a 100 70000",
            "read -P 0x5a 100 70000",
            "write -f -P 0x5b 1M 3M",
            "aio_write -P 0x11 4M 1M",
            "aio_write -P 0x22 5M 1M",
            "aio_flush",
            "read -P 0x11 4M 1M",
            "read -P 0x22 5M 1M",
            "discard 1M 1M",
            "read -P 0 1M 1M",
            "write -z -u 2M 1M",
            "write -z 0 64k",
            "read -P 0 0 64k",
            "read -P 0x5b 3M 1M",
            "discard 0 64M",
            "flush",
        ];
        let arguments: Vec<&str> = commands.iter().flat_map(|command| ["-c", command]).collect();
        let said = run("qemu-io", &[&["-f", "raw", &uri][..], &arguments].concat());
        assert!(!said.contains("failed") && !said.contains("Pattern verification"), "{said}");
    }
    assert_eq!(fixture.memory.durable.load(SeqCst), fixture.memory.acknowledged.load(SeqCst));
}

#[test]
fn nbdsh_speaks_every_command_it_has() {
    let fixture = Fixture::new(8 * MIB);
    let script = r#"
import nbd
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_uri(URI)
assert h.get_size() == 8 << 20 and h.can_multi_conn() and h.get_structured_replies_negotiated()
h.set_strict_mode(0)
data = bytes(range(256)) * 16
h.pwrite(data, 12345, nbd.CMD_FLAG_FUA)
assert h.pread(4096, 12345) == data
assert h.pread(4096, 12345, nbd.CMD_FLAG_DF) == data
h.zero(4096, 12345, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO)
assert h.pread(4096, 12345) == bytearray(4096)
h.trim(1 << 20, 0, nbd.CMD_FLAG_FUA)
h.cache(1 << 20, 0)
h.flush()
chunks = []
h.pread_structured(8192, 12345 - 4096, lambda d, o, s, e: chunks.append(s))
extents = []
h.block_status(8 << 20, 0, lambda c, o, e, err: extents.extend(e))
assert sum(extents[::2]) == 8 << 20, extents
for call in [lambda: h.pread(4096, 8 << 20), lambda: h.pwrite(data, (8 << 20) - 1)]:
    try:
        call()
        raise SystemExit("it should have failed")
    except nbd.Error as error:
        assert error.errno in ("EINVAL", "ENOSPC"), error
cookies = [h.aio_pread(nbd.Buffer(4096), i * 4096) for i in range(200)]
while h.aio_in_flight() > 0:
    h.poll(-1)
assert all(h.aio_command_completed(cookie) for cookie in cookies)
h.shutdown()
"#;
    for uri in [fixture.unix_uri(), fixture.tcp_uri()] {
        run("/usr/bin/python3", &["-c", &format!("URI = '{uri}'\n{script}")]);
    }
}

#[test]
fn fio_verifies_what_it_wrote() {
    let fixture = Fixture::new(32 * MIB);
    for cold in [false, true] {
        fixture.memory.cold.store(cold, SeqCst);
        for (bs, uri) in [("4k", fixture.unix_uri()), ("512-300k", fixture.tcp_uri())] {
            let size = if bs == "4k" { "--bs" } else { "--bsrange" };
            run(
                "fio",
                &[
                    "--thread",
                    "--name=verify",
                    "--ioengine=nbd",
                    &format!("--uri={uri}"),
                    "--rw=randwrite",
                    &format!("{size}={bs}"),
                    "--size=16m",
                    "--iodepth=32",
                    "--fsync=50",
                    "--verify=crc32c",
                    "--verify_state_save=0",
                    "--do_verify=1",
                ],
            );
        }
    }
}
